"""Centred grids: their sizes and margins, and padding and cropping that are alike at both ends of every axis.

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


def script_if_tracing(function: Callable[..., Tensor], any_size: bool = False) -> Callable[..., Tensor]:
    """Scripted inside a trace, so that the trace serves all sizes.

    But not for ONNX, whose runtimes fail on its loops. With ``any_size`` the function has a way for ONNX that holds no branch
    on a size. Of any other, such a graph holds the centring of one size: that of the TorchScript exporter refuses any other;
    that of ``torch.export`` must be told no dynamic spatial axes, as it drops guards on sizes.
    """
    scripted = torch.jit.script_if_tracing(function)

    @wraps(scripted)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return function(args[0] if any_size else one_size(args[0]), *args[1:], **kwargs)
        result: Tensor = scripted(*args, **kwargs)
        return result

    return call


def one_size(x: Tensor) -> Tensor:
    """``x``, whose sizes an exported graph shall hold as they are."""
    return x.expand([-1, *[int(length) for length in x.shape[1:]]])


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


def extend_ends(x: Tensor, amounts: list[int], mode: str) -> Tensor:
    """:func:`pad_ends` by any amounts: ``"reflect"`` and ``"circular"`` go on, where torch stops at the size of the map.

    Example:
        >>> import torch
        >>> extend_ends(torch.tensor([[[1.0, 2.0]]]), [3], "reflect").tolist()
        [[[2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]]]
    """
    fits = True
    for axis in range(len(amounts)):
        fits = fits and amounts[axis] < x.size(axis + 2)
    if fits or mode not in ("reflect", "circular"):
        return pad_ends(x, amounts, mode)
    for axis in range(len(amounts)):
        rest = amounts[axis]
        while rest > 0:
            size = x.size(axis + 2)
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


def centred_margins(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil_mode: bool
) -> tuple[list[int], list[int]]:
    """:func:`centred_margin` for all axes: what to pad at each end, and the width (1 or 2) of the joining window."""
    ndim = len(kernel_size)
    amounts: list[int] = []
    joins: list[int] = []
    for axis in range(ndim):
        reach = dilation[axis] * (kernel_size[axis] - 1) + 1
        size = x.size(axis - ndim)
        amount, between = centred_margin(size, reach, stride[axis], 2 * padding[axis], ceil_mode)
        amounts.append(amount)
        joins.append(2 if between else 1)
    return amounts, joins


def join_neighbours(x: Tensor, joins: list[int], maximum: bool = False) -> Tensor:
    """Mean or maximum of neighbours along the last axes where ``joins`` is 2; ONNX runtimes refuse it as a padded pool."""
    for i in range(len(joins)):
        if joins[i] == 2:
            axis = x.dim() - len(joins) + i
            length = x.size(axis) - 1
            first, second = x.narrow(axis, 0, length), x.narrow(axis, 1, length)
            x = torch.maximum(first, second) if maximum else (first + second) / 2
    return x


def centred_window(x: Tensor, axis: int, length: int) -> Tensor:
    """The middle of one axis; where it lies between pixels, the mean of both neighbours. No branch on a size, for ONNX.

    Example:
        >>> centred_window(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), 2, 3)
        tensor([[[2., 4., 6.]]])
    """
    rest, steps = x.size(axis) - length, torch.arange(length, device=x.device)
    return (x.index_select(axis, steps + rest // 2) + x.index_select(axis, steps + (rest + 1) // 2)) / 2


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
