"""Voxel sizes: those of an image, and those that each layer of a network works at."""

from __future__ import annotations

from typing import Any

import torch
from monai.data.utils import affine_to_spacing
from torch import Tensor, nn

from monai_sre.convert import trial

#: Pixels added along each axis to see by how much a layer's map grows: a multiple of the strides of most networks.
_MORE = 32


def spacing_from(image: Any) -> tuple[float, ...]:
    """Voxel size along each spatial axis of an image, for ``convert_to_sre(..., spacing=spacing_from(image))``.

    Args:
        image: a ``monai.data.MetaTensor`` of shape ``(C, *spatial)``, or ``(N, C, *spatial)`` with one affine per image.

    Returns:
        Column norms of the affine. Sizes within 0.1 % of each other, as headers have them, are made equal.

    Raises:
        TypeError: ``image`` has no affine.
        ValueError: the images of a batch differ in their spacing.

    Example:
        >>> from monai.data import MetaTensor
        >>> spacing_from(MetaTensor(torch.zeros(1, 8, 64, 64), affine=torch.diag(torch.tensor([5.0, 0.7, 0.7001, 1.0]))))
        (5.0, 0.7, 0.7)
    """
    affine = getattr(image, "affine", None)
    if affine is None or not isinstance(image, Tensor):
        raise TypeError(f"image must be a MetaTensor with an affine, got {type(image).__name__}")
    matrices = torch.as_tensor(affine).double().reshape(-1, *affine.shape[-2:])
    ndim = min(image.dim() - (2 if affine.dim() == 3 else 1), affine.shape[-1] - 1)
    rows = [affine_to_spacing(matrix, r=matrix.shape[-1] - 1)[:ndim].tolist() for matrix in matrices.cpu()]
    if any(abs(a - b) > 1e-3 * abs(b) for row in rows for a, b in zip(row, rows[0], strict=True)):
        raise ValueError(f"the images of a batch must have one spacing, got {rows}")
    steps: list[float] = []
    for step in rows[0]:
        alike = [other for other in steps if abs(other - step) <= 1e-3 * other]
        steps.append(alike[0] if alike else float(f"{step:.6g}"))
    return tuple(steps)


def layer_spacings(
    network: nn.Module, spacing: tuple[float, ...] | None, arguments: trial.Arguments | None, spatial_dims: int
) -> dict[int, tuple[float, ...]]:
    """Voxel size at the input of each layer, by ``id``, where strides or factors that differ between axes change its shape.

    A layer's map grows by one voxel where the network's input grows by as many as the voxel is long; padding and the edges
    that convolutions lose do not enter.

    Args:
        network: as it was, and :func:`monai_sre.convert.trial.prepared`.
        spacing: voxel size of its input; ``None`` is no matter.
        arguments: of the network, as the user gave them.
        spatial_dims: number of spatial axes.

    Raises:
        ValueError: strides or factors differ between axes, and no input is known.
    """
    if spacing is None or (len(set(spacing)) == 1 and not _uneven(network)):
        return {}
    found, reason = trial.find_input(network, spatial_dims, divisible=True)
    arguments = found or arguments
    if arguments is None:
        if not _uneven(network):
            return {}
        raise ValueError(
            f"verify must be {trial.EXAMPLE}, as strides that differ between axes change the spacing on the way through the "
            f"network; {reason}"
        )
    sizes = trial.input_sizes(network, arguments, spatial_dims)
    whole = tuple(arguments[0].shape[-spatial_dims:])
    try:
        larger = trial.input_sizes(network, trial.grown(arguments, (_MORE,) * spatial_dims, spatial_dims), spatial_dims)
    except Exception:  # a network of one size only, whatever it raises
        larger = {}
    spacings = {}
    for key, size in sizes.items():
        gains = [after - before for before, after in zip(size, larger.get(key, size), strict=True)]
        if min(gains) > 0:
            ratios = [_ratio(_MORE, gain) for gain in gains]
        else:
            ratios = [_ratio(full, part) for full, part in zip(whole, size, strict=True)]
        if len(set(ratios)) > 1:
            spacings[key] = tuple(step * ratio for step, ratio in zip(spacing, ratios, strict=True))
    return spacings


def _ratio(input_voxels: int, voxels: int) -> float:
    """How many voxels of the input one is long, a whole number or one part of that many."""
    return round(input_voxels / voxels) if input_voxels >= voxels else 1 / round(voxels / input_voxels)


def _uneven(network: nn.Module) -> bool:
    values = [getattr(module, key, 1) for module in network.modules() for key in ("stride", "scale_factor")]
    return any(isinstance(value, (tuple, list)) and len(set(value)) > 1 for value in values)
