"""Resizing, fixed rotations and flips of whole batches, on the batch's device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

__all__ = [
    "background_value",
    "check_cubes",
    "flip_batch",
    "random_rotations",
    "resize_batch",
    "rotate_batch",
    "turn_volumes",
    "voxel_size",
]


def resize_batch(x: torch.Tensor, size: int | Sequence[int]) -> torch.Tensor:
    """Resize a batch by linear interpolation, averaging where it shrinks.

    In 2-D this is PyTorch's antialiased bilinear resampling (that of PIL without its rounding). In 3-D, axes that
    shrink are first averaged over the voxels that fall into a new one, then all are interpolated linearly.

    Args:
        x: ``(B, C, *spatial)`` float.
        size: new side length, or one for each spatial axis.

    Returns:
        ``(B, C, *size)``, the same tensor where nothing changes.

    Raises:
        ValueError: ``size`` does not have one positive value per spatial axis.

    Example:
        >>> resize_batch(torch.ones(2, 1, 28, 28), 32).shape
        torch.Size([2, 1, 32, 32])
    """
    dims = x.ndim - 2
    target = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(target) != dims or min(target) < 1:
        raise ValueError(f"size must be one positive value or one for each of {dims} spatial axes, got {size}")
    if tuple(x.shape[2:]) == target:
        return x
    if dims == 2:
        shrinks = any(new < old for new, old in zip(target, x.shape[2:], strict=True))
        return functional.interpolate(x, target, mode="bilinear", align_corners=False, antialias=shrinks)
    smaller = tuple(min(a, b) for a, b in zip(x.shape[2:], target, strict=True))
    if smaller != tuple(x.shape[2:]):
        x = functional.interpolate(x, smaller, mode="area")
    return x if smaller == target else functional.interpolate(x, target, mode="trilinear", align_corners=False)


def voxel_size(image: torch.Tensor, index: int | None = None) -> list[float] | None:
    """The size of a pixel along each axis, by the affine; None where there is none.

    Args:
        image: ``(C, *spatial)``, or a batch ``(N, C, *spatial)`` with an affine for each image, or one for all.
        index: of the image in the batch; None: it is no batch.

    Example:
        >>> from monai.data import MetaTensor
        >>> voxel_size(MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0]))))
        [1.0, 1.0, 4.0]
    """
    affine = getattr(image, "affine", None)
    if affine is None:
        return None
    places = affine.reshape(-1, *affine.shape[-2:])
    place = places[(index or 0) % len(places)].double()
    axes = image.dim() - (1 if index is None else 2)
    return [float(length) for length in place[:-1, :axes].norm(dim=0)]


def check_cubes(sides: Sequence[float] | None, what: str) -> None:
    """Refuse voxels whose sides differ by more than a hundredth: what rotates their grid would shear what they show.

    Args:
        sides: of a voxel in mm; None or empty: they are not known, and taken to be alike.
        what: rotates the grid, for the message.

    Raises:
        ValueError: they differ.

    Example:
        >>> check_cubes([1.0, 1.0, 4.0], "a sweep")
        Traceback (most recent call last):
        ValueError: a sweep rotates the grid of voxels, which must be cubes; these are 1 x 1 x 4 mm
    """
    if sides and max(sides) > 1.01 * min(sides):
        shown, cubes = " x ".join(f"{side:g}" for side in sides), "cubes" if len(sides) > 2 else "squares"
        raise ValueError(f"{what} rotates the grid of voxels, which must be {cubes}; these are {shown} mm")


def background_value(x: torch.Tensor) -> torch.Tensor:
    """Take the median of the border pixels (in 3-D, of the six faces) of each image and channel.

    Args:
        x: ``(B, C, *spatial)``.

    Returns:
        ``(B, C, 1, ...)`` in the dtype of ``x`` (the lower of the two middle values).

    Example:
        >>> x = torch.zeros(1, 1, 4, 4)
        >>> x[..., 1:3, 1:3] = 9.0
        >>> background_value(x).item()
        0.0
    """
    faces, rest = [], x  # slices: a mask would make a GPU wait
    for axis in range(2, x.ndim):
        last = rest.shape[axis] - 1
        faces += [rest.narrow(axis, place, 1).flatten(2) for place in {0, last}]
        rest = rest.narrow(axis, 1, max(last - 1, 0))
    median = torch.cat(faces, 2).median(dim=-1).values
    return median.reshape(*x.shape[:2], *([1] * (x.ndim - 2)))


def flip_batch(x: torch.Tensor, axes: int | Sequence[int]) -> torch.Tensor:
    """Flip a batch along spatial axes.

    Args:
        x: ``(B, C, *spatial)``.
        axes: spatial axes, counted from 0: in 2-D, 0 is the vertical flip (rows) and 1 the horizontal one.

    Raises:
        ValueError: an axis is not a spatial axis of ``x``.

    Example:
        >>> flip_batch(torch.tensor([[[[1, 2], [3, 4]]]]), 1).tolist()
        [[[[2, 1], [4, 3]]]]
    """
    chosen = (axes,) if isinstance(axes, int) else tuple(axes)
    if not all(0 <= axis < x.ndim - 2 for axis in chosen):
        raise ValueError(f"axes must be spatial axes from 0 to {x.ndim - 3}, got {axes}")
    return torch.flip(x, [axis + 2 for axis in chosen])


def rotate_batch(
    x: torch.Tensor,
    angle_degrees: float,
    axis: int | None = None,
    mode: str = "nearest",
    fill: float | str | torch.Tensor = 0.0,
) -> torch.Tensor:
    r"""Rotate a batch about its centre by one angle, keeping its shape; anticlockwise as a picture is displayed.

    The value at an output position :math:`p` (column, row, measured from the centre) is that of the input at
    :math:`(\cos t\,p_0 - \sin t\,p_1,\ \sin t\,p_0 + \cos t\,p_1)`, :math:`t` the angle.
    The two protocols of a rotation sweep:

    * ``nearest_zero``: ``mode="nearest", fill=0.0`` on normalised images. Equals torchvision's tensor
      ``rotate(..., NEAREST)`` pixel for pixel: the same float32 grid, and ``grid_sample``'s rounding of half to even.
      Multiples of 90 degrees fall on pixel centres, so on square images nothing is lost and nothing is filled; on
      unequal sides, what leaves the frame is lost, what enters is filled, and where the sides differ by an odd number
      the grids are half a pixel apart, which the rounding decides.
    * ``bilinear_background``: ``mode="bilinear", fill="background"``. Outside pixels are the image's own background,
      so that no corner appears that training never showed. The background (a median) and the rotation both commute
      with ``(x - mean) / std``, so rotating before or after normalisation is the same up to rounding.

    In either mode, multiples of 90 degrees of a square plane are done by ``torch.rot90`` and are exact.

    Args:
        x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, floating or integer (then computed in float32, and rounded).
        angle_degrees: the angle.
        axis: in 3-D, the spatial axis (0, 1, 2) to turn about; the plane of the other two, in their order, is rotated
            as an image is. None in 2-D.
        mode: ``"nearest"`` or ``"bilinear"``.
        fill: what enters from outside: a number, a tensor that broadcasts to ``(B, C, 1, ...)``, or
            ``"background"`` (:func:`background_value`).

    Raises:
        ValueError: ``mode``, ``axis`` or ``fill`` is none of the above, or ``x`` has no two or three spatial axes.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> rotate_batch(x, 90).tolist()
        [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    dims = x.ndim - 2
    if dims not in (2, 3):
        raise ValueError(f"x must have shape (B, C, H, W) or (B, C, D, H, W), got {tuple(x.shape)}")
    if (axis is not None) if dims == 2 else (axis not in (0, 1, 2)):
        raise ValueError(f"axis must be {'None in 2-D' if dims == 2 else '0, 1 or 2 in 3-D'}, got {axis}")
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
    _check_fill(fill)
    plane = [a + 2 for a in range(dims) if a != axis]
    turns = angle_degrees / 90.0
    square = x.shape[plane[0]] == x.shape[plane[1]]
    if turns % 4 == 0:
        return x.clone()
    if turns == round(turns) and (square or turns % 2 == 0):
        return torch.rot90(x, round(turns) % 4, plane)
    images = x if x.is_floating_point() else x.float()
    fill = _fill_of(x, fill).to(images.dtype)
    if axis is not None:
        images = images.movedim(axis + 2, 2)
    height, width = images.shape[-2:]
    slices = images.reshape(x.shape[0], -1, height, width)
    grid = _rotation_grid(angle_degrees, height, width, images.dtype, x.device).expand(len(x), -1, -1, -1)
    # One more channel of ones says which pixels have left the frame (by how much, in bilinear mode).
    inside = slices.new_ones(len(x), 1, height, width)
    sampled = functional.grid_sample(torch.cat([slices, inside], 1), grid, mode, "zeros", align_corners=False)
    inside = sampled[:, -1:].unsqueeze(1) if dims == 3 else sampled[:, -1:]
    moved = sampled[:, :-1].reshape(images.shape)
    moved = _filled(moved, inside, mode, fill)
    if axis is not None:
        moved = moved.movedim(2, axis + 2)
    return moved if x.is_floating_point() else moved.round().to(x.dtype)


def turn_volumes(
    x: torch.Tensor, matrix: torch.Tensor, mode: str = "nearest", fill: float | str | torch.Tensor = 0.0
) -> torch.Tensor:
    r"""Rotate volumes about their centres by a matrix, keeping their shape.

    The value at an output position :math:`p` (in voxels from the centre, along the axes in their order) is that of the input
    at :math:`R^T p`.

    Args:
        x: ``(B, C, D, H, W)``, floating.
        matrix: the rotation :math:`R`, ``(3, 3)``, such as one of :func:`random_rotations`.
        mode: ``"nearest"`` or ``"bilinear"`` (in volumes, trilinear).
        fill: what enters from outside, as in :func:`rotate_batch`.

    Raises:
        ValueError: ``x`` or the matrix has another shape, or ``mode`` or ``fill`` is none of these.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
        >>> quarter = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> torch.allclose(turn_volumes(x, quarter, "bilinear"), rotate_batch(x, 90, axis=0), atol=1e-5)
        True
    """
    if x.ndim != 5 or tuple(matrix.shape) != (3, 3):
        raise ValueError(
            f"x must have shape (B, C, D, H, W) and matrix (3, 3), got {tuple(x.shape)} and {tuple(matrix.shape)}"
        )
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"mode must be 'nearest' or 'bilinear', got {mode!r}")
    fill = _fill_of(x, fill).to(x.dtype)
    half = x.new_tensor(x.shape[:1:-1]) / 2  # in the order of grid_sample: columns, rows, depth
    back = matrix.to(x).T.flip(0, 1) * half / half[:, None]
    theta = functional.pad(back, (0, 1)).expand(len(x), -1, -1)
    grid = functional.affine_grid(theta, [len(x), 1, *x.shape[2:]], align_corners=False)
    whole = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:])], 1)
    sampled = functional.grid_sample(whole, grid, mode, "zeros", align_corners=False)
    return _filled(sampled[:, :-1], sampled[:, -1:], mode, fill)


def _check_fill(fill: float | str | torch.Tensor) -> None:
    if isinstance(fill, str) and fill != "background":
        raise ValueError(f"fill must be a number, a tensor or 'background', got {fill!r}")


def _fill_of(x: torch.Tensor, fill: float | str | torch.Tensor) -> torch.Tensor:
    """What enters from outside, as a tensor that broadcasts to ``x``."""
    _check_fill(fill)
    if isinstance(fill, str):
        return background_value(x)
    value = torch.as_tensor(fill, device=x.device)  # not moved there, which a GPU would wait for
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value


def _filled(moved: torch.Tensor, inside: torch.Tensor, mode: str, fill: torch.Tensor) -> torch.Tensor:
    """Values that were sampled, and the fill where (of interpolated ones, as far as) they come from outside."""
    return torch.where(inside < 0.5, fill, moved) if mode == "nearest" else moved + (1 - inside) * fill


def _rotation_grid(degrees: float, height: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make the ``grid_sample`` grid ``(1, H, W, 2)`` of a rotation with the float operations of torchvision."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    columns = torch.linspace(0.5 - width / 2, width / 2 - 0.5, width, dtype=dtype, device=device)
    rows = torch.linspace(0.5 - height / 2, height / 2 - 0.5, height, dtype=dtype, device=device)
    ones = torch.ones(height, width, dtype=dtype, device=device)
    points = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width), ones], -1)
    theta = torch.tensor([[cos, sin], [-sin, cos], [0.0, 0.0]], dtype=dtype, device=device)
    half = torch.tensor([width / 2, height / 2], dtype=dtype, device=device)
    return (points.reshape(1, -1, 3) @ (theta / half)).reshape(1, height, width, 2)


def random_rotations(count: int, uniform: torch.Tensor | None = None) -> torch.Tensor:
    """Rotation matrices drawn uniformly from SO(3) (Shoemake, Uniform random rotations, Graphics Gems III, 1992).

    Args:
        count: how many.
        uniform: ``(3, count)`` numbers in 0..1 to make them from; None draws them.

    Returns:
        ``(count, 3, 3)``.

    Example:
        >>> matrix = random_rotations(1)[0]
        >>> torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-6)
        True
    """
    u = torch.rand(3, count) if uniform is None else uniform
    a, b, first, second = (1 - u[0]).sqrt(), u[0].sqrt(), 2 * math.pi * u[1], 2 * math.pi * u[2]
    x, y, z, w = a * first.sin(), a * first.cos(), b * second.sin(), b * second.cos()
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).reshape(count, 3, 3)
