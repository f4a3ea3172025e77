"""Convolution with radially symmetric kernels, as pure functions, on torch's grids and on centred ones.

``y = conv(x, K) + bias`` with ``K = weight @ basis``. The *dense algorithm* builds ``K`` and convolves. The *ring algorithm*
(:mod:`monai_sre.ops.ring.convolution`) sums the input over each ring and mixes channels with a matrix product: ``b``
multiply-adds per pair of channels instead of one per tap. Both give the same result to rounding.

A convolution with a stride samples a grid that is off centre at most sizes, a transposed one writes to such a grid, and an
even kernel sits half a pixel aside (:mod:`monai_sre.ops.grid` says why). The ``centred`` functions centre the grid, with as
many outputs as torch has: they commute with rot90 and flips at every size. Where a centred grid falls half a pixel aside of
the kernel's taps, neighbours are joined by their mean. As that is itself a convolution, the kernel is joined and not the
image: one tap more along the axis, at the same stride.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.dispatch import is_exporting, may_define_gradient
from monai_sre.ops.grid import (
    centred_margin,
    centred_windows,
    extend_ends,
    half_of,
    join_neighbours,
    pad_ends,
    script_if_tracing,
    serves_all_sizes,
    spread_to,
)
from monai_sre.ops.pool import centred_blur
from monai_sre.ops.ring.convolution import ring_conv
from monai_sre.ops.ring.cost import choose_algorithm, prefers_rings
from monai_sre.ops.ring.portable import conv_nd, exported_ring_conv, ring_ends

ALGORITHMS = ("auto", "dense", "ring")
#: Environment variable that overrides the ``algorithm`` of every call.
ALGORITHM_VARIABLE = "MONAI_SRE_ALGORITHM"
#: The ``ends`` of :func:`sre_conv_nd` for a dense kernel; not empty, as TorchScript would not know its type.
NO_RINGS = [[-1]]


def conv_transpose_nd(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> Tensor:
    """``torch.nn.functional.conv_transpose*d`` for as many spatial axes as the kernel has.

    Example:
        >>> conv_transpose_nd(torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 2), None, [1], [0], [0], 1, [1])
        tensor([[[1., 3., 2.]]])
    """
    if kernel.dim() == 3:
        return functional.conv_transpose1d(x, kernel, bias, stride, padding, output_padding, groups, dilation)
    if kernel.dim() == 4:
        return functional.conv_transpose2d(x, kernel, bias, stride, padding, output_padding, groups, dilation)
    return functional.conv_transpose3d(x, kernel, bias, stride, padding, output_padding, groups, dilation)


def expand_kernel(weight: Tensor, basis: Tensor) -> Tensor:
    """Build the dense kernel ``weight @ basis``.

    Args:
        weight: ring coefficients, shape ``(out_channels, in_channels / groups, b)``.
        basis: shape ``(b, *kernel_size)``.

    Returns:
        Kernel of shape ``(out_channels, in_channels / groups, *kernel_size)``, in the dtype of ``weight``.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> expand_kernel(torch.tensor([[[4.0, 1.0]]]), radial_basis((3, 3)))
        tensor([[[[1., 1., 1.],
                  [1., 4., 1.],
                  [1., 1., 1.]]]])
    """
    return weight.matmul(basis.to(weight.dtype).flatten(1)).unflatten(-1, basis.shape[1:])


def sre_conv(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> Tensor:
    """Convolve with radially symmetric kernels; zero padding.

    Args:
        x: input of shape ``(N, C, *spatial)`` or ``(C, *spatial)``, 1 to 3 spatial axes.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: fixed kernels, shape ``(b, *kernel_size)``, from :func:`monai_sre.ops.radial_basis`.
        bias: shape ``(out_channels,)``, or ``None``.
        stride: step between outputs, one for all axes or one per axis; so ``padding`` (zeros on both sides) and ``dilation``.
        groups: number of blocks of channels that do not mix.
        algorithm: ``"dense"``, ``"ring"``, or ``"auto"`` for the one estimated to be faster. The environment variable
            ``MONAI_SRE_ALGORITHM`` overrides it. Where a graph is exported (TorchScript, ``torch.export``, ONNX) and
            under ``torch.func`` the dense algorithm runs; :func:`monai_sre.fold_sre` prepares a network for export.

    Returns:
        What ``torch.nn.functional.conv*d`` gives for ``expand_kernel(weight, basis)``.

    Raises:
        ValueError, RuntimeError: a shape or a size does not fit; torch's own convolutions say it for the dense algorithm.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3)
        >>> sre_conv(x, weight, radial_basis((5, 5)), padding=2).shape
        torch.Size([2, 6, 9, 9])
    """
    ndim = _check_operands(x, weight, basis)
    return sre_conv_nd(
        x,
        weight,
        basis,
        bias,
        list(int_tuple("stride", stride, ndim, minimum=1)),
        list(int_tuple("padding", padding, ndim, minimum=0)),
        list(int_tuple("dilation", dilation, ndim, minimum=1)),
        groups,
        check_algorithm(algorithm),
        NO_RINGS,
    )


def sre_conv_nd(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    algorithm: str,
    ends: list[list[int]],
) -> Tensor:
    """:func:`sre_conv` for arguments already checked: what layers call, and what TorchScript compiles.

    Args:
        ends: from :func:`monai_sre.ops.ring.portable.ring_ends`, where a graph that is exported is to form sums over rings;
            :data:`NO_RINGS` for the dense kernel.
    """
    if torch.jit.is_scripting():
        if ends[0][0] >= 0:
            return exported_ring_conv(x, weight, basis, ends, bias, stride, padding, dilation, groups)
    elif may_define_gradient(x, weight):
        asked = chosen = "dense" if basis.requires_grad else requested_algorithm(algorithm)
        if asked == "auto":
            chosen = choose_algorithm(x, weight, basis, stride, padding, dilation, groups)
        if chosen == "ring":
            return ring_conv(x, weight, basis, bias, stride, padding, dilation, groups, asked == "ring")
    elif ends[0][0] >= 0 and is_exporting():
        return exported_ring_conv(x, weight, basis, ends, bias, stride, padding, dilation, groups)
    return conv_nd(x, expand_kernel(weight, basis), bias, stride, padding, dilation, groups)


def exported_ends(basis: Tensor, in_channels: int, out_channels: int, groups: int, algorithm: str) -> list[list[int]]:
    """The ``ends`` of :func:`sre_conv_nd` for a layer: with ``"auto"``, none where the dense kernel is faster in a graph.

    And none for volumes whose rings are not symmetric along the first two axes, as
    :func:`monai_sre.ops.ring.portable.folding_kernels` asks for.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> exported_ends(radial_basis((5, 5)), 32, 32, 1, "auto"), exported_ends(radial_basis((5, 5)), 1, 32, 1, "auto")
        ([[2, 2], [1, 1], [0, 0]], [[-1]])
    """
    ends = ring_ends(basis)
    size = basis.shape[1:]
    if len(size) == 3 and not all(torch.allclose(basis, basis.flip(axis), atol=1e-6) for axis in (1, 2)):
        return NO_RINGS
    sizes = [[length - 2 * end for length, end in zip(size, ring, strict=True)] for ring in ends]
    if algorithm == "auto":
        rings = groups == 1 and prefers_rings(in_channels, out_channels, sizes, size)
        algorithm = "ring" if rings else "dense"
    return ends if algorithm == "ring" and math.prod(size) > 1 else NO_RINGS


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
        x = extend_ends(x, padding, padding_mode)
        total = far_padding
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            spread = [dilation[axis] * (taps.size(axis - ndim) - 1) + 1 for axis in range(ndim)]
            return centred_windows(x, spread, stride, total), taps, [0] * ndim
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


def centred_sre_conv(
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
    blur: float,
    ends: list[list[int]],
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
        ends: see :func:`sre_conv_nd`.

    Returns:
        Tensor of the shape that ``torch.nn.functional.conv*d`` gives.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, weight = torch.randn(1, 2, 7, 10), torch.randn(3, 2, 2)
        >>> def half(x): return centred_sre_conv(
        ...     x, weight, radial_basis((3, 3)), None, [2, 2], [1, 1], [0, 0], [1, 1], 1, "zeros", "auto", 0.0, NO_RINGS)
        >>> half(x).shape, torch.allclose(half(x.flip(3)), half(x).flip(3), atol=1e-5)
        (torch.Size([1, 3, 4, 5]), True)
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript compiles both sides of "and"
        if torch.jit.is_tracing():
            return _traced_sre_conv(
                x, weight, basis, bias, stride, padding, far_padding, dilation, groups, padding_mode, blur, ends
            )
    x, basis, amounts = _on_centred_grid(x, basis, stride, padding, far_padding, dilation, padding_mode, blur)
    return sre_conv_nd(x, weight, basis, bias, stride, amounts, dilation, groups, algorithm, ends)


@script_if_tracing
def _traced_sre_conv(
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
    blur: float,
    ends: list[list[int]],
) -> Tensor:
    x, basis, amounts = _on_centred_grid(x, basis, stride, padding, far_padding, dilation, padding_mode, blur)
    return sre_conv_nd(x, weight, basis, bias, stride, amounts, dilation, groups, "auto", ends)


@script_if_tracing
def centred_conv(
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
    """:func:`centred_sre_conv` for a dense kernel of shape ``(out_channels, C / groups, *kernel_size)``."""
    x, kernel, amounts = _on_centred_grid(x, kernel, stride, padding, far_padding, dilation, padding_mode, blur)
    return conv_nd(x, kernel, bias, stride, amounts, dilation, groups)


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
        kernel_size: with ``stride`` and ``dilation``, one integer per spatial axis, those of the layer.
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
    exported = serves_all_sizes(x)
    smallest: list[int] = []
    extra: list[int] = []
    fits = len(output_size) in (ndim, x.dim())
    for axis in range(ndim):
        full = (x.size(axis - ndim) - 1) * stride[axis] + dilation[axis] * (kernel_size[axis] - 1) + 1
        smallest.append(full - margin[axis] - output_padding[axis])
        extra.append(wanted[axis] - smallest[axis] if fits else -1)
        if not exported:
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
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            full = conv_transpose_nd(x, kernel, None, stride, [0] * ndim, [0] * ndim, groups, dilation)
            spans = [full.size(axis + 2) - margin[axis] for axis in range(ndim)]
            ends = [
                max(step, spread) for step, spread in zip(stride, dilation, strict=True)
            ]  # more than output padding
            full = spread_to(full, spans, ends)
            return full if bias is None else full + bias.reshape([-1] + [1] * ndim)
    joins = [1] * ndim
    crops: list[int] = []
    for axis in range(ndim):
        half, between = half_of(margin[axis])
        if between and dilation[axis] == 1:
            kernel = join_taps(kernel, axis + 2)
        elif between:
            half, joins[axis] = half - 1, 2
        crops.append(half)
    cropped = min(crops) >= 0 and 2 not in joins  # by the convolution itself
    padding = [max(half, 0) for half in crops]
    x = conv_transpose_nd(x, kernel, bias if cropped else None, stride, padding, [0] * ndim, groups, dilation)
    if cropped:
        return x
    x = join_neighbours(pad_ends(x, [max(-half, 0) for half in crops]), joins)
    if bias is not None:
        x = x + bias.reshape([-1] + [1] * ndim)
    return x


def check_algorithm(algorithm: str) -> str:
    """Return ``algorithm``, or raise ValueError when it is none of ``ALGORITHMS``."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    return algorithm


def requested_algorithm(algorithm: str) -> str:
    """``algorithm``, unless the environment variable ``MONAI_SRE_ALGORITHM`` says otherwise."""
    override = os.environ.get(ALGORITHM_VARIABLE)
    if not override:
        return algorithm
    if override not in ALGORITHMS:
        raise ValueError(f"the environment variable {ALGORITHM_VARIABLE} must be one of {ALGORITHMS}, got {override!r}")
    return override


def _check_operands(x: Tensor, weight: Tensor, basis: Tensor) -> int:
    ndim = basis.dim() - 1
    if not 1 <= ndim <= 3:
        raise ValueError(f"basis must have shape (b, *kernel_size) with 1 to 3 spatial axes, got {tuple(basis.shape)}")
    if weight.dim() != 3 or weight.shape[2] != basis.shape[0]:
        raise ValueError(
            f"weight must have 3 axes, the last of the basis' {basis.shape[0]} rings, got shape {tuple(weight.shape)}"
        )
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"x must have {ndim + 1} or {ndim + 2} axes for {ndim} spatial axes, got shape {tuple(x.shape)}"
        )
    return ndim
