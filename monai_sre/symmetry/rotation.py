"""Rotation of images and feature maps by any angle with little interpolation error: for measuring, not for training."""

from __future__ import annotations

import math

import torch
from scipy import ndimage
from torch import Tensor

#: Ways to interpolate, and the order of their splines.
INTERPOLATIONS = {"bilinear": 1, "spline3": 3, "spline5": 5}


def rotate(x: Tensor, degrees: float, dims: tuple[int, int] = (-2, -1), interpolation: str = "spline5") -> Tensor:
    """Rotate about the centre in the plane of two axes; ``degrees=90`` is ``torch.rot90(x, 1, dims)``.

    Args:
        x: any shape; the plane's sizes are kept, what turns out of the frame is lost, and the corners repeat the border.
        degrees: the angle, from the first of ``dims`` towards the second as in ``torch.rot90``.
        dims: the two axes of the plane.
        interpolation: ``"bilinear"``, ``"spline3"`` or ``"spline5"``: B-splines of order 1, 3 and 5. The last reproduces what
            is sampled at 3 or more pixels per wavelength to about 1e-3.

    Returns:
        Tensor of the shape, dtype and device of ``x``; computed on the CPU in float64. No gradient.

    Raises:
        ValueError: an unknown interpolation, or integers, which would not hold the result.

    Example:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.allclose(rotate(x, 90.0), x.rot90(1, (2, 3)), atol=1e-5)
        True
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {interpolation!r}")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}")
    first, second = (dim % x.dim() for dim in dims)
    turned = ndimage.rotate(
        x.detach().cpu().double().numpy(),
        degrees if first < second else -degrees,  # scipy sorts the axes
        axes=(first, second),
        reshape=False,
        order=INTERPOLATIONS[interpolation],
        mode="nearest",
    )
    return torch.from_numpy(turned).to(x.device, x.dtype)


def disc(size: tuple[int, int], radius: float, soft: float = 0.0) -> Tensor:
    """1 inside a centred disc, 0 outside, shape ``size``; between ``radius`` and ``radius + soft`` it falls as a cosine.

    Example:
        >>> disc((4, 4), radius=1.6).int().tolist()
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """
    rows, columns = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2 for length in size)
    distance = (rows.square()[:, None] + columns.square()[None, :]).sqrt()
    if soft <= 0:
        return (distance <= radius).double()
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / soft).clamp(0, 1))
