"""Strided and transposed convolutions on centred grids: they commute with rot90 and flips at every size.

A convolution with a stride samples a grid that is off centre at most sizes, a transposed one writes to such a grid, and an
even kernel sits half a pixel aside (:mod:`monai_sre.ops.pool` says why). Here the grid is centred, with as many outputs
as torch has. Where it falls half a pixel aside of the kernel's taps, neighbours are joined by their mean; as that is itself a
convolution, the kernel is joined and not the image: one tap more along the axis, at the same stride.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.conv import expand_kernel, sre_convnd
from monai_sre.ops.grid import centred_margin, join_neighbours, pad_ends, script_if_tracing
from monai_sre.ops.pool import centred_blur


def join_taps(kernel: Tensor, dim: int) -> Tensor:
    """Convolve a kernel with the mean of two neighbours along one dimension: one tap more, centred half a pixel aside.

    Example:
        >>> join_taps(torch.tensor([1.0, 2.0, 1.0]), 0)
        tensor([0.5000, 1.5000, 1.5000, 0.5000])
    """
    edge = torch.zeros_like(kernel.narrow(dim, 0, 1))
    return (torch.cat([kernel, edge], dim) + torch.cat([edge, kernel], dim)) / 2


def _on_centred_grid(
    x: Tensor,
    taps: Tensor,
    stride: list[int],
    padding: list[int],
    far_padding: list[int],
    dilation: list[int],
    padding_mode: str,
    blur: float,
) -> tuple[Tensor, Tensor, list[int]]:
    """Input, kernels and zero padding with which a plain convolution samples a centred grid; ``taps`` ends with its axes."""
    ndim = len(stride)
    if blur > 0:
        x = centred_blur(x, stride, blur)
    total = [2 * padding[axis] + far_padding[axis] for axis in range(ndim)]
    if padding_mode != "zeros":
        x = pad_ends(x, padding, padding_mode)
        total = far_padding
    amounts: list[int] = []
    joins: list[int] = []
    for axis in range(ndim):
        reach = dilation[axis] * (taps.size(axis - ndim) - 1) + 1
        amount, between = centred_margin(int(x.size(axis - ndim)), reach, stride[axis], total[axis])
        if between and dilation[axis] == 1:
            taps = join_taps(taps, axis - ndim)
        amounts.append(amount)
        joins.append(2 if between and dilation[axis] > 1 else 1)
    if min(amounts) < 0 or 2 in joins:
        x = join_neighbours(pad_ends(x, amounts), joins)
        amounts = [0] * ndim
    return x, taps, amounts


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
    blur: float = 0.0,
) -> Tensor:
    """Convolution with kernels ``weight @ basis``, on a centred grid.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``, symmetric about its centre, from :func:`monai_sre.ops.radial.centred_basis`.
        padding: at both ends of each axis; ``far_padding`` comes on top at the far end and only counts for the output's size,
            as the grid is centred.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        algorithm: ``"dense"``, ``"ring"`` or ``"auto"``, see :func:`monai_sre.ops.sre_conv`.
        blur: width of the filter that the input passes along axes with a stride, see
            :func:`monai_sre.ops.pool.centred_blur`; 0 is none. As convolutions commute, it is the output that is blurred
            before the stride leaves out pixels, but for the border.

    Returns:
        Tensor of the shape that ``torch.nn.functional.conv*d`` gives.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, weight = torch.randn(1, 2, 7, 10), torch.randn(3, 2, 2)
        >>> def half(x): return centred_convnd(
        ...     x, weight, radial_basis((3, 3)), None, [2, 2], [1, 1], [0, 0], [1, 1], 1, "zeros", "auto")
        >>> half(x).shape, torch.allclose(half(x.flip(3)), half(x).flip(3), atol=1e-5)
        (torch.Size([1, 3, 4, 5]), True)
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript compiles both sides of "and"
        if torch.jit.is_tracing():  # scripted there, so that a trace serves all sizes
            return centred_conv_dense(
                x,
                expand_kernel(weight, basis),
                bias,
                stride,
                padding,
                far_padding,
                dilation,
                groups,
                padding_mode,
                blur,
            )
    x, basis, amounts = _on_centred_grid(x, basis, stride, padding, far_padding, dilation, padding_mode, blur)
    return sre_convnd(x, weight, basis, bias, stride, amounts, dilation, groups, algorithm)


@script_if_tracing
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
    blur: float = 0.0,
) -> Tensor:
    """:func:`centred_convnd` for a dense kernel of shape ``(out_channels, C / groups, *kernel_size)``."""
    x, kernel, amounts = _on_centred_grid(x, kernel, stride, padding, far_padding, dilation, padding_mode, blur)
    ndim = len(stride)
    if ndim == 1:
        return functional.conv1d(x, kernel, bias, stride, amounts, dilation, groups)
    if ndim == 2:
        return functional.conv2d(x, kernel, bias, stride, amounts, dilation, groups)
    return functional.conv3d(x, kernel, bias, stride, amounts, dilation, groups)


def extra_padding(
    x: Tensor,
    output_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    margin: list[int],
    output_padding: list[int],
) -> list[int]:
    """The output padding with which a transposed convolution gives ``output_size``.

    Args:
        x: the input.
        output_size: spatial axes, or all axes, as in ``torch.nn``.
        kernel_size: with ``stride`` and ``dilation``, one integer a spatial axis, those of the layer.
        margin: how much smaller than all that the taps reach its output is.
        output_padding: its own, contained in ``margin``.

    Raises:
        ValueError: the layer cannot give that size.

    Example:
        >>> extra_padding(torch.ones(1, 1, 4), [8], [3], [2], [1], [2], [0])
        [1]
    """
    ndim = len(kernel_size)
    wanted = output_size[-ndim:]
    smallest: list[int] = []
    extra: list[int] = []
    fits = len(output_size) in (ndim, x.dim())
    for axis in range(ndim):
        full = (x.size(axis - ndim) - 1) * stride[axis] + dilation[axis] * (kernel_size[axis] - 1) + 1
        smallest.append(full - margin[axis] - output_padding[axis])
        extra.append(wanted[axis] - smallest[axis] if fits else -1)
        fits = fits and 0 <= extra[axis] < max(stride[axis], dilation[axis])
    if not fits:
        raise ValueError(f"output_size must be {ndim} sizes from {smallest} up to a stride larger, got {output_size}")
    return extra


@script_if_tracing
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
    x = join_neighbours(pad_ends(x, [max(-half, 0) for half in crops]), joins)
    if bias is not None:
        x = x + bias.reshape([-1] + [1] * ndim)
    return x
