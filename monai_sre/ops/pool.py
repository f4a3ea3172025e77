"""Centred pooling, upsampling and antialiased down-sampling, on the grids of :mod:`monai_sre.ops.grid`.

A block mean lets through what the coarse grid cannot hold, and more of it along the axes than along the diagonals; a strided
convolution or maximum lets through all of it. What it folds back breaks the equivariance to shifts and to rotations by other
angles than 90 degrees. Source: Zhang, "Making convolutional networks shift-invariant again", ICML 2019, with a Gaussian in
place of binomial weights: it is round, and its width follows the stride. The symmetries of the lattice stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.dispatch import is_eager_cpu_call, keep_subclass, under_autocast, under_transform, without_autocast
from monai_sre.ops.grid import pad_ends, script_if_tracing, serves_all_sizes, spread_to, window_spans

#: Standard deviation of the filter, in steps of the coarse grid, where the caller names none: that of binomial weights of 7
#: taps at stride 2, the widest of Zhang's. Wider ones alias less and blur more.
BLUR_WIDTH = 0.6


def avg_pool_nd(x: Tensor, kernel_size: list[int], stride: list[int]) -> Tensor:
    """``torch.nn.functional.avg_pool*d`` for 1 to 3 spatial axes, without padding; serves half precision in 3-D too.

    Off the CPU, means over three axes are those over one of means over two: ``avg_pool3d`` has no deterministic gradient on
    CUDA, and no kernel on some devices.

    Example:
        >>> avg_pool_nd(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [2], [2])
        tensor([[[2., 6.]]])
    """
    if len(kernel_size) == 1:
        return functional.avg_pool1d(x, kernel_size, stride)
    if len(kernel_size) == 2:
        return functional.avg_pool2d(x, kernel_size, stride)
    if x.device.type != "cpu":
        planes = functional.avg_pool2d(x.flatten(-4, -3), kernel_size[1:], stride[1:])
        rows = planes.unflatten(-3, [x.size(-4), x.size(-3)]).flatten(-2)
        means = functional.avg_pool2d(rows, [kernel_size[0], 1], [stride[0], 1])
        return means.unflatten(-1, [planes.size(-2), planes.size(-1)])
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:  # torch has no such kernel on CPU
        return functional.avg_pool3d(x.float(), kernel_size, stride).to(x.dtype)
    return functional.avg_pool3d(x, kernel_size, stride)


def max_pool_nd(x: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """``torch.nn.functional.max_pool*d`` for 1 to 3 spatial axes, without padding.

    Example:
        >>> max_pool_nd(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [2], [1], [2])
        tensor([[[5., 7.]]])
    """
    padding = [0] * len(kernel_size)
    if len(kernel_size) == 1 and serves_all_sizes(x):  # torch.export makes a constant of the size that max_pool1d takes
        pooled = functional.max_pool2d(x.unsqueeze(-2), [1, kernel_size[0]], [1, stride[0]], [0, 0], [1, dilation[0]])
        return pooled.squeeze(-2)
    if len(kernel_size) == 1:
        return functional.max_pool1d(x, kernel_size, stride, padding, dilation)
    if len(kernel_size) == 2:
        return functional.max_pool2d(x, kernel_size, stride, padding, dilation)
    return functional.max_pool3d(x, kernel_size, stride, padding, dilation)


@script_if_tracing
def centred_avg_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Average pooling on a centred grid.

    Args:
        x: shape ``(N, C, *spatial)``.
        kernel_size: window, one size per axis; ``stride``, ``padding``, ``ceil_mode`` and ``count_include_pad`` as in
            ``torch.nn.AvgPool*d``, one value per axis.

    Returns:
        Tensor of the shape that ``torch.nn.AvgPool*d`` gives.

    Raises:
        ValueError: no window fits.

    Example:
        >>> x = torch.arange(5.0).reshape(1, 1, 5)
        >>> centred_avg_pool(x, [2], [2], [0])  # windows around the pixels 1 and 3, the outer pixels by half
        tensor([[[1., 3.]]])
    """
    total = [2 * amount for amount in padding]
    spans, ends = window_spans(x, kernel_size, stride, total, ceil_mode), _ends(padding, stride, ceil_mode)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            axes = list(range(x.dim() - len(stride), x.dim()))
            settings = zip(axes, spans, kernel_size, stride, padding, strict=True)
            matrices = [
                _averaging(x, axis, (span - size) // step + 1, size, step, pad if count_include_pad else 0)
                for axis, span, size, step, pad in settings
            ]
            return _multiply_axes(x, axes, matrices)
    means = avg_pool_nd(spread_to(x, spans, ends), kernel_size, stride)
    counted = padding if count_include_pad else [0] * len(padding)
    beyond = [end - count for end, count in zip(ends, counted)]  # noqa: B905 - TorchScript knows no strict=
    grown = [spans[axis] - x.size(axis - len(spans)) - 2 * counted[axis] for axis in range(len(spans))]
    if max(grown) <= 0:
        return means
    # Share of each window that counts: the input and, on request, torch's padding, but not what centring added.
    present = torch.ones_like(x[:1, :1] if x.dim() == len(counted) + 2 else x[:1])
    present = spread_to(pad_ends(present, counted, value=1.0), spans, beyond)
    return means / avg_pool_nd(present, kernel_size, stride)


def _averaging(x: Tensor, axis: int, count: int, size: int, step: int, counted: int) -> Tensor:
    """The matrix of one axis of :func:`centred_avg_pool`: of each window the shares of the pixels, of all that counts."""
    windows = step * _places(x, count).unsqueeze(1)
    shares = ((size + 1 - (_places(x, x.size(axis)) - windows).abs()) / 2).clamp(0, 1)
    there = ((size + 1 - (_places(x, x.size(axis) + 2 * counted) - windows).abs()) / 2).clamp(0, 1)
    return (shares / there.sum(dim=1, keepdim=True)).to(x.dtype)


def _ends(padding: list[int], stride: list[int], ceil_mode: bool) -> list[int]:
    """Most that centring adds at each end."""
    ends: list[int] = []
    for axis in range(len(padding)):
        ends.append(padding[axis] + (stride[axis] // 2 if ceil_mode else 0))
    return ends


@script_if_tracing
def centred_max_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool = False,
) -> Tensor:
    """Max pooling on a centred grid: where it falls between pixels, the window is one pixel wider.

    Args:
        x: shape ``(N, C, *spatial)``.
        kernel_size: window, one size per axis; ``stride``, ``padding``, ``dilation`` and ``ceil_mode`` as in
            ``torch.nn.MaxPool*d``, one value per axis.

    Returns:
        Tensor of the shape that ``torch.nn.MaxPool*d`` gives.

    Raises:
        ValueError: no window fits.

    Example:
        >>> x = torch.tensor([[[3.0, 0.0, 1.0, 0.0, 2.0]]])
        >>> centred_max_pool(x, [2], [2], [0], [1])
        tensor([[[3., 2.]]])
    """
    reach = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in range(len(stride))]
    spans = window_spans(x, reach, stride, [2 * amount for amount in padding], ceil_mode)
    x = spread_to(x, spans, _ends(padding, stride, ceil_mode), value=float("-inf"), maximum=True)
    return max_pool_nd(x, kernel_size, stride, dilation)


@script_if_tracing
def centred_upsample(x: Tensor, scale_factor: int, size: list[int] | None = None) -> Tensor:
    """Linear interpolation onto a centred grid that is ``scale_factor`` times finer: the inverse grid of centred pooling.

    Output ``j`` of ``n`` lies at ``(m - 1) / 2 + (j - (n - 1) / 2) / scale_factor`` in pixels of the ``m`` inputs; outside,
    the border pixel is repeated. Unlike ``interpolate(size=...)`` the spacing is ``1 / scale_factor`` at every size.

    Args:
        x: shape ``(N, C, *spatial)``.
        scale_factor: how many times finer the output grid is.
        size: sizes of the output, one per axis; ``None`` is ``scale_factor`` times those of ``x``.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> x = torch.tensor([[[0.0, 4.0, 8.0]]])
        >>> centred_upsample(x, 2, [5])
        tensor([[[0., 2., 4., 6., 8.]]])
        >>> centred_upsample(x, 2, [6])
        tensor([[[0., 1., 3., 5., 7., 8.]]])
    """
    if size is None:
        size = [scale_factor * x.size(axis) for axis in range(2, x.dim())]
    ndim = len(size)
    axes: list[int] = []
    matrices: list[Tensor] = []
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            axes = list(range(x.dim() - ndim, x.dim()))
            return _multiply_axes(x, axes, [_refining(x, axis, scale_factor, size[axis - x.dim()]) for axis in axes])
    for axis in range(ndim):
        here = x.dim() - ndim + axis
        if x.size(here) <= 96:  # on a CPU a matrix is faster than slices up to here, forward and backward
            axes.append(here)
            matrices.append(_refining(x, here, scale_factor, size[axis]))
        else:
            x = _refine_axis(x, here, scale_factor, size[axis])
    return _multiply_axes(x, axes, matrices)


def _multiply_axes(x: Tensor, axes: list[int], matrices: list[Tensor]) -> Tensor:
    """A matrix times each of some axes; in ordinary torch on the CPU, what is not finite stays within their non-zeros."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if under_autocast(x.device.type):  # which would take half precision for matrices, and not for slices
            with without_autocast(x.device.type):
                return _multiply_axes(x, axes, matrices)
    out = x
    for i in range(len(axes)):
        out = torch.matmul(out.transpose(axes[i], x.dim() - 1), matrices[i].t()).transpose(axes[i], x.dim() - 1)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if len(axes) > 0 and is_eager_cpu_call(x, matrices[0]) and out.dtype == matrices[0].dtype:
            one = out.detach()
            for axis in axes[::-1]:
                one = one.select(axis, 0)
            if not math.isfinite(one.sum().item()):  # zeros of the matrices may have spread it over whole axes
                return _local_products(x, axes, matrices)
    return out


@keep_subclass
def _local_products(x: Tensor, axes: list[int], matrices: list[Tensor]) -> Tensor:
    return _LocalProducts.apply(x, tuple(axes), *matrices)


class _LocalProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...], *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(*matrices)
        ctx.axes = axes
        bad = ~x.isfinite()
        reached = _products(bad.to(x.dtype), axes, [(matrix != 0).to(x.dtype) for matrix in matrices])
        return _products(x.masked_fill(bad, 0), axes, matrices).masked_fill(reached > 0, math.nan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        axes, matrices = ctx.axes[::-1], [matrix.T for matrix in ctx.saved_tensors[::-1]]
        slope = (
            _products(grad, axes, matrices) if under_transform(grad) else _LocalProducts.apply(grad, axes, *matrices)
        )
        return slope, None, *[None] * len(matrices)


def _products(x: Tensor, axes: Sequence[int], matrices: Sequence[Tensor]) -> Tensor:
    for axis, matrix in zip(axes, matrices, strict=True):
        x = (x.transpose(axis, -1) @ matrix.T).transpose(axis, -1)
    return x


def _refining(x: Tensor, axis: int, scale: int, fine: int) -> Tensor:
    """The matrix of the interpolation of one axis in :func:`centred_upsample`."""
    coarse = x.size(axis)
    outputs, inputs = _places(x, fine), scale * _places(x, coarse)  # in units of 1 / (2 * scale) of a pixel: integers
    outputs = outputs.clamp(-scale * (coarse - 1), scale * (coarse - 1))
    return (1 - (outputs.unsqueeze(1) - inputs).abs() / (2 * scale)).clamp(min=0).to(x.dtype)


def _places(x: Tensor, count: int) -> Tensor:
    """Places on a centred grid, in halves of its step; in float64 on the CPU only, as some devices have none."""
    exact = torch.float64 if x.device.type == "cpu" or x.dtype == torch.float64 else torch.float32
    return 2 * torch.arange(count, device=x.device, dtype=exact) - (count - 1)


def _refine_axis(x: Tensor, axis: int, scale: int, fine: int) -> Tensor:
    """One axis at a cost per pixel that does not grow with the length: each phase of the outputs mixes two slices."""
    coarse, count = x.size(axis), (fine + scale - 1) // scale
    unit = 2 * scale  # to a pixel
    first = scale * (coarse - 1) - (fine - 1)  # place of output 0
    before = max(0, (unit - 1 - first) // unit)
    first = first + before * unit
    behind = max(0, (first + unit - 2) // unit + count + 1 - before - coarse)
    if before + behind > 0:
        pads = [0] * (2 * (x.dim() - 1 - axis)) + [before, behind] + [0] * (2 * (axis - 2))
        x = functional.pad(x, pads, mode="replicate").to(x.dtype)  # autocast on a CPU would give float32
    phases: list[Tensor] = []
    for phase in range(scale):
        start, rest = (first + 2 * phase) // unit, (first + 2 * phase) % unit
        here = x.narrow(axis, start, count)
        phases.append(here if rest == 0 else torch.lerp(here, x.narrow(axis, start + 1, count), rest / unit))
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1).narrow(axis, 0, fine)


def centred_nearest(x: Tensor, size: list[int]) -> Tensor:
    """Nearest-neighbour interpolation to ``size`` that treats both ends alike.

    Where a ratio of sizes is an integer it is torch's; elsewhere torch rounds towards one end, and here the mean of rounding
    towards either end is taken.

    Args:
        x: shape ``(N, C, *spatial)``.
        size: sizes of the output, one per axis.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> centred_nearest(torch.tensor([[[0.0, 2.0]]]), [3])
        tensor([[[0., 1., 2.]]])
    """
    ndim = len(size)
    for axis in range(ndim):
        fine, coarse = size[axis], x.size(axis - ndim)
        steps = torch.arange(fine, device=x.device)
        index = torch.div((2 * steps + 1) * coarse, 2 * fine, rounding_mode="floor")
        mirrored = coarse - 1 - index.flip(0)
        x = (x.index_select(axis - ndim, index) + x.index_select(axis - ndim, mirrored)) / 2
    return x


def blur_width(antialias: bool | float) -> float:
    """The width that an argument ``antialias`` of a layer or network stands for; 0 is no filter.

    Raises:
        ValueError: it is neither a bool nor a positive number.

    Example:
        >>> blur_width(False), blur_width(True), blur_width(0.8)
        (0.0, 0.6, 0.8)
    """
    if isinstance(antialias, bool):
        return BLUR_WIDTH if antialias else 0.0
    if not isinstance(antialias, (int, float)) or not 0 < antialias < math.inf:
        raise ValueError(f"antialias must be True, False or a positive width, got {antialias!r}")
    return float(antialias)


def _sampled(x: Tensor, steps: list[int], counts: list[int], sigmas: list[float]) -> Tensor:
    """``counts`` values of the last axes, blurred, ``steps`` pixels apart and centred, as products with matrices of weights.

    The weights of each output, within three of ``sigmas``, add up to 1; where that is 0, the axis stays as it is.
    """
    axes: list[int] = []
    matrices: list[Tensor] = []
    for i in range(len(steps)):
        if sigmas[i] > 0:
            axes.append(x.dim() - len(steps) + i)
            matrices.append(_sampling(x, axes[-1], steps[i], counts[i], sigmas[i]))
    return _multiply_axes(x, axes, matrices)


def _sampling(x: Tensor, axis: int, step: int, count: int, sigma: float) -> Tensor:
    distance = (_places(x, x.size(axis)) - step * _places(x, count).unsqueeze(1)).abs() / 2
    weights = torch.exp(-0.5 * (distance / sigma).square()) * (distance <= int(3 * sigma) + 0.5)
    return (weights / weights.sum(dim=1, keepdim=True)).to(x.dtype)


@script_if_tracing
def centred_blur(x: Tensor, stride: list[int], width: float) -> Tensor:
    """Take out what a grid of the given stride cannot hold; nothing along axes of stride 1.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        stride: step of the grid that is to come, one per axis.
        width: standard deviation of the Gaussian filter in steps of that grid, cut at three of them.

    Returns:
        Tensor of the shape of ``x``; weights at the border are normalised to 1.

    Example:
        >>> wave = torch.tensor([[[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]]])  # folds back to a constant at stride 2
        >>> centred_blur(wave, [2], 0.6)[..., 3].abs() < 0.01
        tensor([[True]])
    """
    ndim = len(stride)
    counts = [x.size(axis - ndim) for axis in range(ndim)]
    return _sampled(x, [1] * ndim, counts, [width * step if step > 1 else 0.0 for step in stride])


@script_if_tracing
def centred_blur_pool(x: Tensor, stride: list[int], width: float = BLUR_WIDTH) -> Tensor:
    """Down-sampling on a centred grid behind a Gaussian filter: less aliasing than averaging over blocks.

    The outputs lie where those of :func:`monai_sre.ops.pool.centred_avg_pool` with ``kernel_size=stride`` and
    ``ceil_mode=True`` lie.

    Args:
        x: shape ``(N, C, *spatial)``.
        stride: step between outputs, one per axis.
        width: standard deviation of the filter in steps of the output, cut at three of them.

    Returns:
        Tensor of shape ``(N, C, *ceil(size / stride))``; weights at the border are normalised to 1.

    Example:
        >>> centred_blur_pool(torch.ones(1, 1, 7, 8), [2, 2]).shape
        torch.Size([1, 1, 4, 4])
    """
    ndim = len(stride)
    counts = [(x.size(axis - ndim) + stride[axis] - 1) // stride[axis] for axis in range(ndim)]
    return _sampled(x, stride, counts, [width * step if step > 1 else 0.0 for step in stride])


@script_if_tracing
def blurred_avg_pool(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], ceil_mode: bool, width: float
) -> Tensor:
    """Average pooling with a Gaussian in place of the window, on a centred grid.

    Args:
        x: shape ``(N, C, *spatial)``.
        kernel_size: with ``stride``, ``padding`` and ``ceil_mode`` as in ``torch.nn.AvgPool*d``: they give the number of
            outputs. A window that spreads further than the filter widens it to its own standard deviation.
        width: standard deviation of the filter in steps of the output, cut at three of them.

    Returns:
        Tensor of the shape that ``torch.nn.AvgPool*d`` gives; weights are normalised to 1, so that no padding shows.

    Raises:
        ValueError: no window fits.

    Example:
        >>> blurred_avg_pool(torch.ones(1, 1, 7, 8), [2, 2], [2, 2], [0, 0], False, 0.6).shape
        torch.Size([1, 1, 3, 4])
    """
    ndim = len(stride)
    spans = window_spans(x, kernel_size, stride, [2 * amount for amount in padding], ceil_mode)
    counts: list[int] = []
    sigmas: list[float] = []
    for axis in range(ndim):
        step, taps = stride[axis], kernel_size[axis]
        counts.append((spans[axis] - taps) // step + 1)
        sigmas.append(max(width * step if step > 1 else 0.0, math.sqrt((taps * taps - 1) / 12)))
    return _sampled(x, stride, counts, sigmas)


@script_if_tracing
def blurred_max_pool(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    width: float,
) -> Tensor:
    """Max pooling of stride 1, then a Gaussian filter and down-sampling on a centred grid.

    Args:
        x: shape ``(N, C, *spatial)``.
        kernel_size: window, one size per axis; ``stride``, ``padding``, ``dilation`` and ``ceil_mode`` as in
            ``torch.nn.MaxPool*d``, one value per axis.
        width: standard deviation of the filter in steps of the output, cut at three of them.

    Returns:
        Tensor of the shape that ``torch.nn.MaxPool*d`` gives.

    Raises:
        ValueError: no window fits.

    Example:
        >>> x = torch.tensor([[[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]])
        >>> blurred_max_pool(x, [3], [2], [1], [1], False, 0.6)  # three pixels are 1 before the filter
        tensor([[[0.0220, 0.3383, 0.8045, 0.3383, 0.0220]]])
    """
    ndim = len(stride)
    reach = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in range(ndim)]
    spans = window_spans(x, reach, stride, [2 * amount for amount in padding], ceil_mode)
    counts = [(spans[axis] - reach[axis]) // stride[axis] + 1 for axis in range(ndim)]
    ends: list[int] = []
    for axis in range(ndim):
        end = padding[axis]
        if not serves_all_sizes(x):
            lacking = reach[axis] - x.size(axis - ndim) - 2 * end
            end += max(lacking + 1, 0) // 2  # with ceil_mode, a window may be larger than the map
        ends.append(end)
    x = max_pool_nd(pad_ends(x, ends, value=float("-inf")), kernel_size, [1] * ndim, dilation)
    return _sampled(x, stride, counts, [width * step if step > 1 else 0.0 for step in stride])
