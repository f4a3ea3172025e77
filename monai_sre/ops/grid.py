"""Centred grids: their sizes and margins, and padding and cropping that are alike at both ends of every axis.

A pool or a strided convolution samples positions ``0, s, 2s, ...`` of the ``L`` windows that fit. Unless ``s`` divides
``L - 1``, the remainder ``r`` lies at the far end: the sampling grid is off centre, and a flip moves it. Here half of ``r``
stays at each end. Where ``r`` is odd the grid then falls between pixels, and neighbours are first joined in pairs (mean or
maximum). The number of outputs is that of ``torch.nn``; so are the values wherever torch's own grid is centred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def script_if_tracing(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Scripted inside a trace, so that the trace serves all sizes.

    But not for ONNX, whose runtimes fail on its loops: there such a function holds no branch on a size.
    """
    scripted = torch.jit.script_if_tracing(function)

    @wraps(scripted)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = (function if torch.onnx.is_in_onnx_export() else scripted)(*args, **kwargs)
        return result

    return call


def serves_all_sizes(x: Tensor) -> bool:
    """Whether a graph for ONNX, or by ``torch.export`` with free sizes, is captured: it may hold no branch on a size.

    TorchScript compiles both sides of ``if``.
    """
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505 - TorchScript would compile it
        return torch.onnx.is_in_onnx_export() or any(isinstance(size, torch.SymInt) for size in x.shape[1:])


def pad_ends(x: Tensor, amounts: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """``torch.nn.functional.pad`` by the same amount at both ends of each of the last axes, the first of them first.

    Example:
        >>> import torch
        >>> pad_ends(torch.ones(1, 1, 3, 4), [1, 0]).shape
        torch.Size([1, 1, 5, 4])
    """
    pads: list[int] = []
    for amount in amounts:
        pads = [amount, amount] + pads  # noqa: RUF005 - TorchScript knows no unpacking
    return functional.pad(x, pads, mode=mode, value=value)


@script_if_tracing
def extend_ends(x: Tensor, amounts: list[int], mode: str) -> Tensor:
    """:func:`pad_ends` by any amounts: ``"reflect"`` and ``"circular"`` go on, where torch stops at the size of the map.

    In a graph for all sizes they stop there too.

    Example:
        >>> import torch
        >>> extend_ends(torch.tensor([[[1.0, 2.0]]]), [3], "reflect").tolist()
        [[[2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]]]
    """
    if serves_all_sizes(x):
        return pad_ends(x, amounts, mode)
    fits = True
    for axis in range(len(amounts)):
        fits = fits and amounts[axis] < x.size(axis - len(amounts))
    if fits or mode not in ("reflect", "circular"):
        return pad_ends(x, amounts, mode)
    for axis in range(len(amounts)):
        rest = amounts[axis]
        while rest > 0:
            size = x.size(axis - len(amounts))
            step = min(rest, max(1, size - 1) if mode == "reflect" else size)
            one = [0] * len(amounts)
            one[axis] = step
            x = pad_ends(x, one, "replicate" if size == 1 else mode)
            rest -= step
    return x


def window_count(size: int, reach: int, stride: int, total_padding: int, ceil_mode: bool = False) -> int:
    """Number of outputs of a window operation of ``torch.nn`` along one axis.

    Args:
        size: length of the axis.
        reach: pixels from the first to the last tap of the window: ``dilation * (kernel_size - 1) + 1``.
        stride: step between outputs.
        total_padding: padding at both ends together.
        ceil_mode: as in the pools of ``torch.nn``.

    Raises:
        ValueError: no window fits.

    Example:
        >>> window_count(8, 3, 2, 2), window_count(8, 3, 2, 2, ceil_mode=True)
        (4, 5)
    """
    last = size + total_padding - reach
    steps = (last + stride - 1) // stride if ceil_mode else last // stride
    if steps < 0:
        raise ValueError(f"size {size} with padding {total_padding} is too small for a window of {reach} pixels")
    if ceil_mode and steps * stride >= size + total_padding // 2:  # torch: the last window starts in the padded input
        steps -= 1
    return steps + 1


def half_of(total: int) -> tuple[int, bool]:
    """What to pad at each end (negative: crop) to grow an axis by ``total``, and whether that is half a pixel too much.

    If it is, neighbours are joined in pairs, see :func:`join_neighbours`.

    Example:
        >>> half_of(4), half_of(3), half_of(-3)
        ((2, False), (2, True), (-1, True))
    """
    between = total % 2 != 0
    return (total + 1) // 2 if between else total // 2, between  # without a rest, which ONNX rounds towards zero


def centred_margin(size: int, reach: int, stride: int, total_padding: int, ceil_mode: bool = False) -> tuple[int, bool]:
    """How to pad one axis so that a window operation samples it on a centred grid.

    Args:
        size: with the other arguments, the window operation as :func:`window_count` takes it.

    Returns:
        ``(amount, between)``: pad ``amount`` at each end (negative: crop), join neighbours in pairs if ``between``, then
        apply the operation without padding. It has as many outputs as torch's.

    Raises:
        ValueError: no window fits.

    Example:
        >>> centred_margin(8, reach=3, stride=2, total_padding=2)  # 4 outputs, between the pixels
        (1, True)
        >>> centred_margin(9, reach=3, stride=2, total_padding=2)  # 5 outputs, torch's own grid
        (1, False)
    """
    count = window_count(size, reach, stride, total_padding, ceil_mode)
    return half_of((count - 1) * stride + reach - size)


def join_neighbours(x: Tensor, joins: list[int], maximum: bool = False) -> Tensor:
    """Mean or maximum of neighbours along the last axes where ``joins`` is 2; ONNX runtimes refuse it as a padded pool."""
    for i in range(len(joins)):
        if joins[i] == 2:
            axis = x.dim() - len(joins) + i
            length = x.size(axis) - 1
            first, second = x.narrow(axis, 0, length), x.narrow(axis, 1, length)
            x = torch.maximum(first, second) if maximum else (first + second) / 2
    return x


def window_spans(
    x: Tensor, reach: list[int], stride: list[int], total_padding: list[int], ceil_mode: bool = False
) -> list[int]:
    """Pixels from the first to the last tap of all windows of an operation, along each of the last axes.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        reach: with the other arguments, one integer per axis, the operation as :func:`window_count` takes it.

    Raises:
        ValueError: no window fits.

    Example:
        >>> window_spans(torch.ones(1, 1, 8), reach=[3], stride=[2], total_padding=[2])
        [9]
    """
    spans: list[int] = []
    for axis in range(len(reach)):
        size, step, total = x.size(axis - len(reach)), stride[axis], total_padding[axis]
        if serves_all_sizes(x):  # no branch on a size
            count = (size + total - reach[axis]) // step + 1
            if ceil_mode:
                more, most = (size + total - reach[axis] + step - 1) // step, (size + total // 2 - 1) // step
                count = (more + most - abs(more - most)) // 2 + 1
        else:
            count = window_count(size, reach[axis], step, total, ceil_mode)
        spans.append((count - 1) * step + reach[axis])
    return spans


def spread_to(x: Tensor, spans: list[int], ends: list[int], value: float = 0.0, maximum: bool = False) -> Tensor:
    """Pad or crop each of the last axes to a span, alike at both ends; where that is half a pixel, neighbours are joined.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        spans: wanted sizes, one per axis.
        ends: most that an axis may grow at each end.
        value: what is added.
        maximum: whether neighbours are joined by their maximum; else by their mean.

    Example:
        >>> spread_to(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), [5], [1])
        tensor([[[0.5000, 1.5000, 2.5000, 3.5000, 2.0000]]])
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            x = pad_ends(x, ends, value=value) if any(ends) else x
            for axis, span in enumerate(spans, x.dim() - len(spans)):
                x = _middle(x, axis, span, maximum)
            fixed = x.dim() - len(spans)  # the number of channels, which was lost
            return x.reshape([x.size(i) if i != fixed - 1 else int(x.size(i)) for i in range(x.dim())])
    amounts: list[int] = []
    joins: list[int] = []
    for axis in range(len(spans)):
        amount, between = half_of(spans[axis] - x.size(axis - len(spans)))
        amounts.append(amount)
        joins.append(2 if between else 1)
    if any([amount != 0 for amount in amounts]):  # noqa: C419 - TorchScript knows no generators
        x = pad_ends(x, amounts, value=value)
    return join_neighbours(x, joins, maximum)


def _middle(x: Tensor, axis: int, length: int, maximum: bool = False) -> Tensor:
    """Of a graph for all sizes: the middle of one axis, its neighbours joined whether it lies between pixels or not."""
    steps = torch.arange(length, device=x.device)  # a slice would guard its ends, and so the sizes
    rest = x.size(axis) - length
    first, second = (x.index_select(axis, steps + start) for start in (rest // 2, (rest + 1) // 2))
    return torch.maximum(first, second) if maximum else (first + second) / 2


@script_if_tracing
def centred_windows(x: Tensor, reach: list[int], stride: list[int], total_padding: list[int]) -> Tensor:
    """What a window operation without padding reads to sample the last axes on a centred grid; zeros outside of ``x``.

    Args:
        x: with the other arguments as in :func:`window_spans`.

    Raises:
        ValueError: no window fits.

    Example:
        >>> centred_windows(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), reach=[3], stride=[2], total_padding=[2])
        tensor([[[0.5000, 1.5000, 2.5000, 3.5000, 2.0000]]])
    """
    ends: list[int] = []
    for total in total_padding:
        ends.append((total + 1) // 2)
    return spread_to(x, window_spans(x, reach, stride, total_padding), ends)


def centred_fit(x: Tensor, size: list[int]) -> Tensor:
    """Pad (repeating the border) or crop all spatial axes to ``size``, by the same amount at both ends.

    Where that amount is half a pixel, neighbours are joined by their mean.

    Args:
        x: shape ``(N, C, *spatial)``.
        size: wanted sizes, one per axis.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> centred_fit(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [5])
        tensor([[[1., 2., 4., 6., 7.]]])
        >>> centred_fit(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), [2])
        tensor([[[3., 5.]]])
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            for axis, length in enumerate(size, x.dim() - len(size)):
                rest, last = x.size(axis) - length, x.size(axis) - 1
                steps = torch.arange(length, device=x.device) - length
                near, far = (
                    steps + (rest + 2 * length + up) // 2 for up in (0, 1)
                )  # of what is not negative, rounded down
                x = (x.index_select(axis, near.clamp(0, last)) + x.index_select(axis, far.clamp(0, last))) / 2
            return x
    grow: list[int] = []
    crop: list[int] = []
    joins: list[int] = []
    for axis in range(len(size)):
        amount, between = half_of(size[axis] - x.size(axis - len(size)))
        grow.append(max(amount, 0))
        crop.append(min(amount, 0))
        joins.append(2 if between else 1)
    if max(grow) > 0:
        x = pad_ends(x, grow, "replicate")
    if min(crop) < 0:
        x = pad_ends(x, crop)
    return join_neighbours(x, joins)


def centred_pad(x: Tensor, size: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad or crop the last axes to ``size``, alike at both ends, by places that are counted: without a branch on a size.

    So a graph serves all sizes, also where they are those of another map. Where half a pixel is to be added at each end,
    neighbours are joined: by their mean, or by their maximum where ``value`` is ``-inf``.

    Args:
        x: shape ``(N, C, *spatial)``.
        size: wanted sizes, one per axis.
        mode: as in ``torch.nn.functional.pad``: ``"constant"``, ``"replicate"``, ``"reflect"`` or ``"circular"``.
        value: what is added with ``"constant"``.

    Returns:
        Tensor of shape ``(N, C, *size)``.

    Example:
        >>> centred_pad(torch.tensor([[[1.0, 3.0, 5.0]]]), [4]), centred_pad(torch.tensor([[[1.0, 3.0, 5.0]]]), [5])
        (tensor([[[0.5000, 2.0000, 4.0000, 2.5000]]]), tensor([[[0., 1., 3., 5., 0.]]]))
    """
    for axis, length in enumerate(size, x.dim() - len(size)):
        count, last = x.size(axis), x.size(axis) - 1
        steps = torch.arange(length, device=x.device) - length
        ends = []
        for up in (0, 1):
            places = steps + (count + length + up) // 2  # of what is not negative, rounded down
            if mode == "reflect":
                places = last - (last - places.remainder(max(2 * last, 1))).abs()  # to and fro, as often as need be
            elif mode == "circular":
                places = places.remainder(count)
            end = x.index_select(axis, places.clamp(0, last))
            if mode == "constant":
                within = ((places >= 0) & (places <= last)).reshape([-1] + [1] * (x.dim() - 1 - axis))
                end = end.where(within, value)
            ends.append(end)
        x = torch.maximum(ends[0], ends[1]) if value == -math.inf else (ends[0] + ends[1]) / 2
    return x
