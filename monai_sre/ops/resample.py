"""Centred down- and up-sampling: it commutes with rotations by 90 degrees and flips at every size.

A pool or a strided convolution samples positions ``0, s, 2s, ...`` of the ``L`` windows that fit. Unless ``s`` divides
``L - 1``, the remainder ``r`` lies at the far end: the sampling grid is off centre, and a flip moves it. Here half of ``r``
stays at each end. Where ``r`` is odd the grid then falls between pixels, and neighbours are first joined in pairs (mean or
maximum). The number of outputs is that of ``torch.nn``; so are the values wherever torch's own grid is centred.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _script_if_tracing(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Scripted inside a trace, so that the trace serves all sizes.

    But not for ONNX, whose runtimes fail on its loops: such a graph holds the centring of one size. That of the TorchScript
    exporter refuses any other; that of ``torch.export`` must be told no dynamic spatial axes, as it drops guards on sizes.
    """
    scripted = torch.jit.script_if_tracing(function)

    @wraps(scripted)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            sizes = [int(length) for length in args[0].shape[1:]]
            return function(args[0].expand([-1, *sizes]), *args[1:], **kwargs)
        result: Tensor = scripted(*args, **kwargs)
        return result

    return call


def window_count(size: int, kernel_size: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Number of outputs of a window operation of ``torch.nn`` along one axis.

    Raises:
        ValueError: no window fits.

    Example:
        >>> window_count(8, 3, 2, 1, 1, False), window_count(8, 3, 2, 1, 1, True)
        (4, 5)
    """
    last = size + 2 * padding - dilation * (kernel_size - 1) - 1
    steps = (last + stride - 1) // stride if ceil_mode else last // stride
    if steps < 0:
        raise ValueError(
            f"size {size} is too small for kernel_size={kernel_size}, padding={padding}, dilation={dilation}"
        )
    if ceil_mode and steps * stride >= size + padding:  # torch: the last window starts inside the padded input
        steps -= 1
    return steps + 1


def centred_grid(
    size: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> tuple[int, bool]:
    """How to pad one axis so that a window operation samples it on a centred grid.

    Args:
        size: length of the axis.
        kernel_size: with the other arguments, the window operation as ``torch.nn`` takes it.

    Returns:
        ``(amount, between)``: pad ``amount`` on both sides (negative: crop), join neighbours in pairs if ``between``, then
        apply the operation without padding. It has as many outputs as torch's.

    Raises:
        ValueError: no window fits.

    Example:
        >>> centred_grid(8, kernel_size=3, stride=2, padding=1)  # 4 outputs, between the pixels
        (1, True)
        >>> centred_grid(9, kernel_size=3, stride=2, padding=1)  # 5 outputs, torch's own grid
        (1, False)
    """
    count = window_count(size, kernel_size, stride, padding, dilation, ceil_mode)
    rest = size + 2 * padding - dilation * (kernel_size - 1) - 1 - stride * (count - 1)
    if rest % 2 == 0:
        return padding - rest // 2, False
    return padding + (1 - rest) // 2, True


def _centred_pads(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> tuple[list[int], list[int]]:
    """Arguments of ``F.pad`` for all axes, and the width (1 or 2) of the joining window along each axis."""
    ndim = len(kernel_size)
    pads: list[int] = []
    joins: list[int] = []
    for axis in range(ndim):
        amount, between = centred_grid(
            x.size(axis - ndim), kernel_size[axis], stride[axis], padding[axis], dilation[axis], ceil_mode
        )
        pads = [amount, amount] + pads  # noqa: RUF005 - TorchScript knows no unpacking
        joins.append(2 if between else 1)
    return pads, joins


def _avg_pool(x: Tensor, kernel_size: list[int], stride: list[int]) -> Tensor:
    if len(kernel_size) == 1:
        return functional.avg_pool1d(x, kernel_size, stride)
    if len(kernel_size) == 2:
        return functional.avg_pool2d(x, kernel_size, stride)
    if not x.is_cuda and (x.dtype == torch.bfloat16 or x.dtype == torch.float16):  # torch has no such kernel on CPU
        return functional.avg_pool3d(x.float(), kernel_size, stride).to(x.dtype)
    return functional.avg_pool3d(x, kernel_size, stride)


def _max_pool(x: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    padding = [0] * len(kernel_size)
    if len(kernel_size) == 1:
        return functional.max_pool1d(x, kernel_size, stride, padding, dilation)
    if len(kernel_size) == 2:
        return functional.max_pool2d(x, kernel_size, stride, padding, dilation)
    return functional.max_pool3d(x, kernel_size, stride, padding, dilation)


def join_neighbours(x: Tensor, joins: list[int], maximum: bool = False) -> Tensor:
    """Mean or maximum of neighbours along the last axes where ``joins`` is 2; ONNX runtimes refuse it as a padded pool."""
    for i in range(len(joins)):
        if joins[i] == 2:
            axis = x.dim() - len(joins) + i
            length = x.size(axis) - 1
            first, second = x.narrow(axis, 0, length), x.narrow(axis, 1, length)
            x = torch.maximum(first, second) if maximum else (first + second) / 2
    return x


def _join_and_average(
    x: Tensor, pads: list[int], joins: list[int], kernel_size: list[int], stride: list[int]
) -> Tensor:
    if any([amount != 0 for amount in pads]):  # noqa: C419 - TorchScript knows no generators
        x = functional.pad(x, pads)
    return _avg_pool(join_neighbours(x, joins), kernel_size, stride)


@_script_if_tracing
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
        kernel_size: window, one size an axis; ``stride``, ``padding``, ``ceil_mode`` and ``count_include_pad`` as in
            ``torch.nn.AvgPool*d``, one value an axis.

    Returns:
        Tensor of the shape that ``torch.nn.AvgPool*d`` gives.

    Raises:
        ValueError: no window fits.

    Example:
        >>> x = torch.arange(5.0).reshape(1, 1, 5)
        >>> centred_avg_pool(x, [2], [2], [0])  # windows around the pixels 1 and 3, the outer pixels by half
        tensor([[[1., 3.]]])
    """
    pads, joins = _centred_pads(x, kernel_size, stride, padding, [1] * len(stride), ceil_mode)
    total = _join_and_average(x, pads, joins, kernel_size, stride)
    counted = padding if count_include_pad else [0] * len(padding)
    ndim = len(counted)
    if all([pads[2 * i] <= counted[ndim - 1 - i] for i in range(ndim)]):  # noqa: C419
        return total
    # Share of each window that counts: the input and, on request, torch's padding, but not what centring added.
    present = torch.ones_like(x[:1, :1] if x.dim() == ndim + 2 else x[:1])
    grown: list[int] = []
    rest: list[int] = []
    for i in range(ndim):
        amount = counted[ndim - 1 - i]
        grown += [amount, amount]
        rest += [pads[2 * i] - amount, pads[2 * i] - amount]
    present = functional.pad(present, grown, value=1.0)
    return total / _join_and_average(present, rest, joins, kernel_size, stride)


@_script_if_tracing
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
        kernel_size: window, one size an axis; ``stride``, ``padding``, ``dilation`` and ``ceil_mode`` as in
            ``torch.nn.MaxPool*d``, one value an axis.

    Returns:
        Tensor of the shape that ``torch.nn.MaxPool*d`` gives.

    Raises:
        ValueError: no window fits.

    Example:
        >>> x = torch.tensor([[[3.0, 0.0, 1.0, 0.0, 2.0]]])
        >>> centred_max_pool(x, [2], [2], [0], [1])
        tensor([[[3., 2.]]])
    """
    pads, joins = _centred_pads(x, kernel_size, stride, padding, dilation, ceil_mode)
    if any([amount != 0 for amount in pads]):  # noqa: C419 - TorchScript knows no generators
        x = functional.pad(x, pads, value=float("-inf"))
    return _max_pool(join_neighbours(x, joins, maximum=True), kernel_size, stride, dilation)


@_script_if_tracing
def centred_upsample(x: Tensor, scale_factor: int, size: list[int]) -> Tensor:
    """Linear interpolation onto a centred grid that is ``scale_factor`` times finer: the inverse grid of centred pooling.

    Output ``j`` of ``n`` lies at ``(m - 1) / 2 + (j - (n - 1) / 2) / scale_factor`` in pixels of the ``m`` inputs; outside,
    the border pixel is repeated. Unlike ``interpolate(size=...)`` the spacing is ``1 / scale_factor`` at every size.

    Args:
        x: shape ``(N, C, *spatial)``.
        scale_factor: how many times finer the output grid is.
        size: sizes of the output, one an axis.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> x = torch.tensor([[[0.0, 4.0, 8.0]]])
        >>> centred_upsample(x, 2, [5])
        tensor([[[0., 2., 4., 6., 8.]]])
        >>> centred_upsample(x, 2, [6])
        tensor([[[0., 1., 3., 5., 7., 8.]]])
    """
    ndim = len(size)
    for axis in range(ndim):
        here = x.dim() - ndim + axis
        if x.size(here) <= 96:  # on a CPU a matrix is faster than slices up to here, forward and backward
            x = _refine_short_axis(x, here, scale_factor, size[axis])
        else:
            x = _refine_axis(x, here, scale_factor, size[axis])
    return x


def _refine_short_axis(x: Tensor, axis: int, scale: int, fine: int) -> Tensor:
    """One axis of :func:`centred_upsample`, by the matrix of the interpolation."""
    coarse = x.size(axis)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # which that device lacks
    steps = torch.arange(fine, device=x.device, dtype=exact)
    place = ((steps - (fine - 1) / 2) / scale + (coarse - 1) / 2).clamp(0, coarse - 1)
    nodes = torch.arange(coarse, device=x.device, dtype=exact)
    matrix = (1 - (place.unsqueeze(1) - nodes).abs()).clamp(min=0).to(x.dtype)
    return torch.matmul(x.transpose(axis, -1), matrix.t()).transpose(axis, -1)


def _refine_axis(x: Tensor, axis: int, scale: int, fine: int) -> Tensor:
    """The same at a cost a pixel that does not grow with the length: each phase of the outputs mixes two slices."""
    coarse, count = x.size(axis), (fine + scale - 1) // scale
    unit = 2 * scale  # to a pixel
    first = scale * (coarse - 1) - (fine - 1)  # place of output 0
    before = max(0, (unit - 1 - first) // unit)
    first = first + before * unit
    behind = max(0, (first + unit - 2) // unit + count + 1 - before - coarse)
    if before + behind > 0:
        pads = [0] * (2 * (x.dim() - 1 - axis)) + [before, behind] + [0] * (2 * (axis - 2))
        x = functional.pad(x, pads, mode="replicate")
    phases: list[Tensor] = []
    for phase in range(scale):
        start, rest = (first + 2 * phase) // unit, (first + 2 * phase) % unit
        here = x.narrow(axis, start, count)
        phases.append(here if rest == 0 else torch.lerp(here, x.narrow(axis, start + 1, count), rest / unit))
    return torch.stack(phases, dim=axis + 1).flatten(axis, axis + 1).narrow(axis, 0, fine)


def centred_margin(size: int, reach: int, stride: int, total_padding: int) -> tuple[int, bool]:
    """:func:`centred_grid` for a window of ``reach`` pixels and padding that may differ at the two ends.

    Args:
        size: length of the axis.
        reach: pixels from the first to the last tap of the window.
        stride: step between outputs.
        total_padding: padding at both ends together.

    Returns:
        ``(amount, between)`` as :func:`centred_grid`: the number of outputs stays that of the uncentred operation.

    Raises:
        ValueError: no window fits.

    Example:
        >>> centred_margin(8, reach=3, stride=2, total_padding=1)  # "same" padding as TensorFlow has it: 0 before, 1 behind
        (1, True)
    """
    last = size + total_padding - reach
    if last < 0:
        raise ValueError(f"size {size} with padding {total_padding} is too small for a window of {reach} pixels")
    used = total_padding - last % stride
    if used % 2 == 0:
        return used // 2, False
    return (used + 1) // 2, True


def centred_fit(x: Tensor, size: list[int]) -> Tensor:
    """Pad (repeating the border) or crop all spatial axes to ``size``, by the same amount at both ends.

    Where that amount is half a pixel, neighbours are joined by their mean.

    Args:
        x: shape ``(N, C, *spatial)``.
        size: wanted sizes, one an axis.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> centred_fit(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [5])
        tensor([[[1., 2., 4., 6., 7.]]])
        >>> centred_fit(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [2])
        tensor([[[3., 5.]]])
    """
    ndim = len(size)
    grow: list[int] = []
    crop: list[int] = []
    joins: list[int] = []
    for axis in range(ndim):
        rest = size[axis] - x.size(axis - ndim)
        between = rest % 2 != 0
        amount = (rest + 1) // 2 if between else rest // 2
        grow = [max(amount, 0), max(amount, 0)] + grow  # noqa: RUF005 - TorchScript knows no unpacking
        crop = [min(amount, 0), min(amount, 0)] + crop  # noqa: RUF005
        joins.append(2 if between else 1)
    if max(grow) > 0:
        x = functional.pad(x, grow, mode="replicate")
    if min(crop) < 0:
        x = functional.pad(x, crop)
    return join_neighbours(x, joins)


def centred_nearest(x: Tensor, size: list[int]) -> Tensor:
    """Nearest-neighbour interpolation to ``size`` that treats both ends alike.

    Where a ratio of sizes is an integer it is torch's; elsewhere torch rounds towards one end, and here the mean of rounding
    towards either end is taken.

    Args:
        x: shape ``(N, C, *spatial)``.
        size: sizes of the output, one an axis.

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
