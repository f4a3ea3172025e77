"""Grids of pixels in space: that of an image file, and those of what a network sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from nibabel.processing import resample_from_to

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """Pixels (or voxels) at the points of a lattice in space.

    Args:
        shape: number of pixels along each axis, two or three axes.
        affine: ``(4, 4)``, from a pixel's indices to its point in space, as in NIfTI.

    Example:
        >>> grid = Grid((4, 2), np.eye(4))
        >>> fine = grid.around((8, 4))
        >>> fine.affine[:2].tolist()
        [[0.5, 0.0, 0.0, -0.25], [0.0, 0.5, 0.0, -0.25]]
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def around(self, shape: Sequence[int], step: float | Sequence[float] | None = None) -> Grid:
        """The grid of another shape around the same centre, along the same axes.

        Args:
            shape: of the new grid.
            step: distance of its pixels in pixels of this one, one number or one for each axis; None: both grids fill the
                same extent.
        """
        old, new = np.array(self.shape, dtype=float), np.array(shape, dtype=float)
        steps = np.broadcast_to(old / new if step is None else np.asarray(step, dtype=float), old.shape)
        axes = np.arange(len(old))
        change = np.eye(4)
        change[axes, axes] = steps
        change[axes, 3] = (old - 1) / 2 - steps * (new - 1) / 2
        return Grid(tuple(shape), self.affine @ change)

    def inscribed(self, size: int) -> list[int]:
        """Shape of the image in a square (cube) of ``size`` pixels that its longest side fills, with its proportions.

        Rounded so that what is left along each axis can be shared equally between both ends.

        Example:
            >>> Grid((30, 21), np.eye(4)).inscribed(30), Grid((10, 6), np.diag([1.0, 3.0, 1.0, 1.0])).inscribed(9)
            ([30, 20], [5, 9])
        """
        extent = np.array(self.shape) * np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0)
        margins = (1 - extent / extent.max()) * size / 2
        return [max(2 - size % 2, size - 2 * round(float(margin))) for margin in margins]

    def resample(self, values: np.ndarray, target: Grid) -> np.ndarray:
        """Interpolate linearly, between pixels of this grid, at those of another; beyond the outermost, repeat them.

        Args:
            values: one for each pixel of this grid.
            target: where to interpolate.

        Returns:
            Array of the shape of ``target`` and the dtype of ``values``.

        Example:
            >>> grid = Grid((1, 2), np.eye(4))
            >>> grid.resample(np.array([[0.0, 4.0]]), grid.around((1, 4))).tolist()
            [[0.0, 1.0, 3.0, 4.0]]
        """
        here, there = ([*grid.shape, 1][:3] for grid in (self, target))
        image = nibabel.Nifti1Image(values.reshape(here), self.affine)
        found = resample_from_to(image, (tuple(there), target.affine), order=1, mode="nearest")
        return np.asarray(found.dataobj).reshape(target.shape)
