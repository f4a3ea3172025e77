"""The rotations and flips of a sweep, as they act on images and on class maps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from monai_sre.data.geometry import flip_batch, rotate_batch, turn_volumes
from monai_sre.data.geometry import random_rotations as so3
from monai_sre.ops.arguments import check_flags, int_tuple
from monai_sre.symmetry.lattice import LatticeSymmetry, lattice_symmetries

#: Interpolation and fill of rotated images, both after normalisation. Zeros, those of the published evaluation of SRE-Conv,
#: are mid-grey as a rule.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "bilinear_background": {"mode": "bilinear", "fill": "background"},
    "nearest_zero": {"mode": "nearest", "fill": 0.0},
}
#: The same in words.
PROTOCOL_WORDS = {
    "bilinear_background": "bilinear, filled with the background",
    "nearest_zero": "nearest, filled with 0",
}
#: Names of 0.1, which end with 0.3.
PROTOCOL_ALIASES = {"clean": "bilinear_background", "paper": "nearest_zero"}


def protocol_name(name: str) -> str:
    """The present name of a protocol; the names of 0.1, ``"clean"`` and ``"paper"``, give a ``FutureWarning``.

    Raises:
        ValueError: there is no such protocol.

    Example:
        >>> protocol_name("nearest_zero")
        'nearest_zero'
    """
    present = PROTOCOL_ALIASES.get(name, name)
    if present not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {name!r}")
    if present != name:
        warnings.warn(
            f"protocol {name!r} is named {present!r} since 0.2.0; {name!r} will be refused from 0.3.0 on",
            FutureWarning,
            stacklevel=3,
        )
    return present


@dataclass(frozen=True)
class Transformation:
    """A rotation or a flip, as it acts on images and on class maps, ``(N, C, *spatial)``.

    Args:
        angle_degrees: of the rotation.
        axis: of the rotation in 3-D; with ``flip``, ``None``.
        flip: the axis to flip in place of a rotation.
        symmetry: a symmetry of the grid in its place.
        matrix: of a rotation of volumes in its place, see :func:`monai_sre.data.turn_volumes`, as rows.
        protocol: how images are interpolated and filled; class maps take their nearest value, and -1 (does not count)
            where nothing is known.

    Example:
        >>> Transformation(flip=1)(torch.tensor([[[[1.0, 2.0]]]])).tolist()
        [[[[2.0, 1.0]]]]
        >>> Transformation(45.0).on_classes(torch.ones(1, 1, 5, 5))[0, 0, 0].tolist()
        [-1.0, 1.0, 1.0, 1.0, -1.0]
    """

    angle_degrees: float = 0.0
    axis: int | None = None
    flip: int | None = None
    protocol: str = "bilinear_background"
    symmetry: LatticeSymmetry | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self._apply(images, **PROTOCOLS[protocol_name(self.protocol)])

    def on_classes(self, classes: Tensor) -> Tensor:
        """The same on class numbers."""
        return self._apply(classes, mode="nearest", fill=-1.0)

    @property
    def keeps_the_grid(self) -> bool:
        """Whether it is a flip or by a multiple of 90 degrees: an image of unequal sides is then turned as a whole."""
        fixed = self.flip is not None or self.symmetry is not None
        return fixed or (self.matrix is None and self.angle_degrees % 90 == 0)

    @property
    def inverse(self) -> Transformation:
        """The one that undoes it, but for what is lost."""
        matrix = None if self.matrix is None else tuple(zip(*self.matrix, strict=True))
        symmetry = None if self.symmetry is None else self.symmetry.inverse
        return replace(self, angle_degrees=-self.angle_degrees, symmetry=symmetry, matrix=matrix)

    def _apply(self, x: Tensor, **how: Any) -> Tensor:
        if self.flip is not None:
            return flip_batch(x, axes=self.flip)
        if self.symmetry is not None:
            return self.symmetry(x)
        if self.matrix is not None:
            return turn_volumes(x, torch.tensor(self.matrix), **how)
        if self.angle_degrees == 0:
            return x
        plane = [axis for axis in range(2, x.dim()) if axis - 2 != self.axis]
        if self.keeps_the_grid and len(plane) == 2 and x.shape[plane[0]] != x.shape[plane[1]]:
            return torch.rot90(x, round(self.angle_degrees / 90), plane)
        return rotate_batch(x, self.angle_degrees, axis=self.axis, **how)


def sweep_transformations(
    spatial_dims: int,
    protocol: str = "bilinear_background",
    step: float | None = None,
    flips: bool = True,
    orientations: bool = False,
    random_rotations: int = 0,
) -> dict[str, Transformation]:
    """Rotations by multiples of ``step`` degrees (in 3-D about each axis; the identity once), flips, and on request more.

    Args:
        spatial_dims: 2 or 3.
        protocol: ``"bilinear_background"`` (bilinear, filled with each image's background) or ``"nearest_zero"`` (nearest,
            filled with 0), both on normalised images; see :func:`monai_sre.data.rotate_batch`.
        step: degrees between rotations; ``None`` is 10 in 2-D and 30 in 3-D.
        flips: whether to add the flip along each axis.
        orientations: whether to add all other symmetries of the grid, 7 in 2-D and 47 in 3-D: ``"orientation ..."``.
        random_rotations: how many rotations to add that are drawn uniformly from SO(3), always the same ones; 3-D only.

    Returns:
        ``{name: function of a batch (N, C, *spatial)}``, the identity ``"0"`` first.

    Raises:
        TypeError: ``random_rotations`` is no whole number.
        ValueError: an argument is not one of those above, or ``step`` does not divide 360 or is below 0.1.

    Example:
        >>> list(sweep_transformations(2, step=90))
        ['0', '90', '180', '270', 'flip 0', 'flip 1']
        >>> len(sweep_transformations(3, flips=False))
        34
        >>> list(sweep_transformations(3, step=360, flips=False, random_rotations=1))
        ['0', 'random 1']
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    protocol = protocol_name(protocol)
    step = (10 if spatial_dims == 2 else 30) if step is None else step
    known = isinstance(step, (int, float)) and not isinstance(step, bool) and 0.1 <= step <= 360
    if not known or abs(360 / step - round(360 / step)) > 1e-9:
        raise ValueError(f"step must be a positive divisor of 360 degrees, from 0.1 on, got {step!r}")
    found = {"0": Transformation(protocol=protocol)}
    for axis in [None] if spatial_dims == 2 else range(3):
        for index in range(1, round(360 / step)):
            name = f"{index * step:g}" if axis is None else f"{index * step:g} about axis {axis}"
            found[name] = Transformation(index * step, axis, protocol=protocol)
    for axis in range(spatial_dims) if flips else []:
        found[f"flip {axis}"] = Transformation(flip=axis, protocol=protocol)
    check_flags(flips=flips, orientations=orientations)
    (count,) = int_tuple("random_rotations", random_rotations, 1, minimum=0)
    if count and spatial_dims == 2:
        raise ValueError(f"random_rotations must be 0 in 2-D, got {count}; the angles are those of step")
    for symmetry in list(lattice_symmetries(spatial_dims).values())[1:] if orientations else []:
        found[f"orientation {symmetry.name}"] = Transformation(symmetry=symmetry, protocol=protocol)
    drawn = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).T  # of more, the first are the same
    for index, matrix in enumerate(so3(count, drawn).tolist(), start=1):
        found[f"random {index}"] = Transformation(matrix=tuple(map(tuple, matrix)), protocol=protocol)
    return found


def angle_of(name: str) -> float | None:
    """The angle of a rotation by its name in :func:`sweep_transformations`; None of a flip, and of what is added on request.

    Example:
        >>> angle_of("30 about axis 0"), angle_of("flip 0")
        (30.0, None)
    """
    first = name.split()[0]
    return float(first) if first[0].isdigit() else None
