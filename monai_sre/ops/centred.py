"""Strided and transposed convolutions on centred grids: they commute with rot90 and flips at every size.

A convolution with a stride samples a grid that is off centre at most sizes, a transposed one writes to such a grid, and an
even kernel sits half a pixel aside (:mod:`monai_sre.ops.resample` says why). Here the grid is centred, with as many outputs
as torch has. Where it falls half a pixel aside of the kernel's taps, neighbours are joined by their mean; as that is itself a
convolution, the kernel is joined and not the image: one tap more along the axis, at the same stride.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops import radial
from monai_sre.ops.conv import expand_kernel, sre_convnd
from monai_sre.ops.resample import _script_if_tracing, centred_margin, join_neighbours


def centred_basis(
    kernel_size: Sequence[int],
    num_rings: int | None = None,
    profile: str | tuple[str, Mapping[str, Any]] = "band",
    circular: bool = True,
    orthonormal: bool = False,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """:func:`monai_sre.ops.radial_basis` for kernels of any size: an even one has its centre between its taps.

    The rings are those of the odd sizes: as many as fit between radius 0 and half the kernel size.

    Args:
        kernel_size: number of taps along each axis; with all other arguments as :func:`monai_sre.ops.radial_basis`.

    Returns:
        float64 tensor of shape ``(b, *kernel_size)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work.

    Example:
        >>> centred_basis((4, 4))[1]
        tensor([[0., 1., 1., 0.],
                [1., 0., 0., 1.],
                [1., 0., 0., 1.],
                [0., 1., 1., 0.]], dtype=torch.float64)
        >>> centred_basis((2, 2, 2)).sum(), torch.equal(centred_basis((5, 5)), radial.radial_basis((5, 5)))
        (tensor(8., dtype=torch.float64), True)
    """
    options: dict[str, Any] = {"circular": circular, "spacing": spacing, "axes": axes}
    if all(length % 2 for length in kernel_size):
        return radial.radial_basis(kernel_size, num_rings, profile, orthonormal=orthonormal, **options)
    # Checked on the next larger odd kernel; then the same rings, at radii from a centre between the taps.
    odd = [length + 1 - length % 2 for length in kernel_size]
    _, steps, round_axes = radial._check_geometry(odd, spacing, axes)
    name, settings = radial._check_profile(profile)
    if num_rings is not None and (isinstance(num_rings, bool) or not isinstance(num_rings, int) or num_rings < 1):
        raise ValueError(f"num_rings must be None or an integer >= 1, got {num_rings!r}")
    size = tuple(kernel_size)
    unit = min(steps[axis] for axis in round_axes)
    offsets = radial.tap_offsets([size[axis] for axis in round_axes], [steps[axis] for axis in round_axes])
    squares = torch.zeros([len(places) for places in offsets], dtype=torch.float64)
    for position, places in enumerate(offsets):
        shape = [-1 if other == position else 1 for other in range(len(offsets))]
        squares = squares + places.square().reshape(shape)
    reach = max((size[axis] - 1) / 2 * steps[axis] for axis in round_axes) / unit
    most = math.floor(reach + 1e-9) + (1 if circular else 2)
    counts = range(most, 0, -1) if num_rings is None else [num_rings]
    for count in counts:
        rings = radial._profile_values(name, squares.sqrt(), count, reach, circular, settings, offsets)
        fault = radial._fault(rings)
        if fault is None:
            rings = radial._orthonormalise(rings) if orthonormal else rings
            return radial._free_axes(rings, size, round_axes)
    raise ValueError(
        f"num_rings={num_rings} is too many for kernel_size={size}, profile={name!r}, circular={circular}: {fault}; "
        f"use at most {most} rings, or None for the default"
    )


def join_taps(kernel: Tensor, dim: int) -> Tensor:
    """Convolve a kernel with the mean of two neighbours along one dimension: one tap more, centred half a pixel aside.

    Example:
        >>> join_taps(torch.tensor([1.0, 2.0, 1.0]), 0)
        tensor([0.5000, 1.5000, 1.5000, 0.5000])
    """
    edge = torch.zeros_like(kernel.narrow(dim, 0, 1))
    return (torch.cat([kernel, edge], dim) + torch.cat([edge, kernel], dim)) / 2


def _conv_margins(
    x: Tensor, taps: list[int], stride: list[int], total_padding: list[int], dilation: list[int]
) -> tuple[list[int], list[bool]]:
    ndim = len(taps)
    amounts: list[int] = []
    between: list[bool] = []
    for axis in range(ndim):
        reach = dilation[axis] * (taps[axis] - 1) + 1
        amount, aside = centred_margin(int(x.size(axis - ndim)), reach, stride[axis], total_padding[axis])
        amounts.append(amount)
        between.append(aside)
    return amounts, between


def _pad_and_join(x: Tensor, amounts: list[int], joins: list[int]) -> Tensor:
    pads: list[int] = []
    for amount in amounts:
        pads = [amount, amount] + pads  # noqa: RUF005 - TorchScript knows no unpacking
    return join_neighbours(functional.pad(x, pads), joins)


def _pad_by_mode(x: Tensor, padding: list[int], mode: str) -> Tensor:
    pads: list[int] = []
    for amount in padding:
        pads = [amount, amount] + pads  # noqa: RUF005
    return functional.pad(x, pads, mode=mode)


def centred_convnd(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    far_padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    algorithm: str,
) -> Tensor:
    """Convolution with kernels ``weight @ basis``, on a centred grid.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``, symmetric about its centre, from :func:`centred_basis`.
        padding: at both ends of each axis; ``far_padding`` comes on top at the far end and only counts for the output's size,
            as the grid is centred.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        algorithm: ``"dense"``, ``"ring"`` or ``"auto"``, see :func:`monai_sre.ops.sre_conv`.

    Returns:
        Tensor of the shape that ``torch.nn.functional.conv*d`` gives.

    Example:
        >>> x, weight = torch.randn(1, 2, 7, 10), torch.randn(3, 2, 2)
        >>> def half(x): return centred_convnd(
        ...     x, weight, centred_basis((3, 3)), None, [2, 2], [1, 1], [0, 0], [1, 1], 1, "zeros", "auto")
        >>> half(x).shape, torch.allclose(half(x.flip(3)), half(x).flip(3), atol=1e-5)
        (torch.Size([1, 3, 4, 5]), True)
    """
    ndim = basis.dim() - 1
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript compiles both sides of "and"
        if torch.jit.is_tracing():  # scripted there, so that a trace serves all sizes
            return centred_conv_dense(
                x, expand_kernel(weight, basis), bias, stride, padding, far_padding, dilation, groups, padding_mode
            )
    total = [2 * padding[axis] + far_padding[axis] for axis in range(ndim)]
    if padding_mode != "zeros":
        x = _pad_by_mode(x, padding, padding_mode)
        total = far_padding
    amounts, between = _conv_margins(x, list(basis.shape[1:]), stride, total, dilation)
    joins = [1] * ndim
    for axis in range(ndim):
        if between[axis] and dilation[axis] == 1:
            basis = join_taps(basis, axis + 1)
        elif between[axis]:
            joins[axis] = 2
    if min(amounts) < 0 or 2 in joins:
        x = _pad_and_join(x, amounts, joins)
        amounts = [0] * ndim
    return sre_convnd(x, weight, basis, bias, stride, amounts, dilation, groups, algorithm)


@_script_if_tracing
def centred_conv_dense(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    far_padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    """:func:`centred_convnd` for a dense kernel of shape ``(out_channels, C / groups, *kernel_size)``."""
    ndim = kernel.dim() - 2
    total = [2 * padding[axis] + far_padding[axis] for axis in range(ndim)]
    if padding_mode != "zeros":
        x = _pad_by_mode(x, padding, padding_mode)
        total = far_padding
    amounts, between = _conv_margins(x, list(kernel.shape[2:]), stride, total, dilation)
    joins = [1] * ndim
    for axis in range(ndim):
        if between[axis] and dilation[axis] == 1:
            kernel = join_taps(kernel, axis + 2)
        elif between[axis]:
            joins[axis] = 2
    if min(amounts) < 0 or 2 in joins:
        x = _pad_and_join(x, amounts, joins)
        amounts = [0] * ndim
    if ndim == 1:
        return functional.conv1d(x, kernel, bias, stride, amounts, dilation, groups)
    if ndim == 2:
        return functional.conv2d(x, kernel, bias, stride, amounts, dilation, groups)
    return functional.conv3d(x, kernel, bias, stride, amounts, dilation, groups)


@_script_if_tracing
def centred_conv_transpose(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: list[int],
    margin: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Transposed convolution onto a centred grid.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        kernel: shape ``(C, out_channels / groups, *kernel_size)``, symmetric about its centre.
        bias: shape ``(out_channels,)``, or ``None``.
        margin: how much smaller each axis of the output is than ``(size - 1) * stride + dilation * (kernel_size - 1) + 1``,
            half at each end: ``2 * padding - output_padding`` of ``torch.nn.ConvTranspose*d``.

    Returns:
        Tensor of shape ``(N, out_channels, *spatial)``.

    Example:
        >>> x, kernel = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.ones(1, 1, 3)
        >>> centred_conv_transpose(x, kernel, None, [2], [1], [1], 1)  # 6 outputs: pixel 0 lies between the outputs 0 and 1
        tensor([[[1.0000, 1.0000, 0.5000, 0.0000, 0.0000, 0.0000]]])
    """
    ndim = len(stride)
    joins = [1] * ndim
    crops: list[int] = []
    for axis in range(ndim):
        half = margin[axis] // 2
        if margin[axis] % 2 != 0:
            if dilation[axis] == 1:
                kernel = join_taps(kernel, axis + 2)
                half = (margin[axis] + 1) // 2
            else:
                joins[axis] = 2
        crops.append(half)
    plain = min(crops) >= 0 and 2 not in joins
    padding = [max(half, 0) for half in crops]
    inner = bias if plain else None
    extra = [0] * ndim
    if ndim == 1:
        x = functional.conv_transpose1d(x, kernel, inner, stride, padding, extra, groups, dilation)
    elif ndim == 2:
        x = functional.conv_transpose2d(x, kernel, inner, stride, padding, extra, groups, dilation)
    else:
        x = functional.conv_transpose3d(x, kernel, inner, stride, padding, extra, groups, dilation)
    if plain:
        return x
    x = _pad_and_join(x, [max(-half, 0) for half in crops], joins)
    if bias is not None:
        x = x + bias.reshape([-1] + [1] * ndim)
    return x
