"""Centred down- and up-sampling: it commutes with rotations by 90 degrees and flips at every size.

A pool or a strided convolution samples positions ``0, s, 2s, ...`` of the ``L`` windows that fit. Unless ``s`` divides
``L - 1``, the remainder ``r`` lies at the far end: the sampling grid is off centre, and a flip moves it. Here half of ``r``
stays at each end. Where ``r`` is odd the grid then falls between pixels, and neighbours are first joined in pairs (mean or
maximum). The number of outputs is that of ``torch.nn``; so are the values wherever torch's own grid is centred.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    reach = dilation * (kernel_size - 1) + 1
    last = size + 2 * padding - reach
    steps = (last + stride - 1) // stride if ceil_mode else last // stride
    if steps < 0:
        raise ValueError(
            f"size {size} is too small for kernel_size={kernel_size}, padding={padding}, dilation={dilation}"
        )
    if ceil_mode and steps * stride >= size + padding:  # torch: the last window starts inside the padded input
        steps -= 1
    rest = last - stride * steps
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
    return functional.avg_pool3d(x, kernel_size, stride)


def _max_pool(x: Tensor, kernel_size: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    padding = [0] * len(kernel_size)
    if len(kernel_size) == 1:
        return functional.max_pool1d(x, kernel_size, stride, padding, dilation)
    if len(kernel_size) == 2:
        return functional.max_pool2d(x, kernel_size, stride, padding, dilation)
    return functional.max_pool3d(x, kernel_size, stride, padding, dilation)


def _join_and_average(
    x: Tensor, pads: list[int], joins: list[int], kernel_size: list[int], stride: list[int]
) -> Tensor:
    if any([amount != 0 for amount in pads]):  # noqa: C419 - TorchScript knows no generators
        x = functional.pad(x, pads)
    if 2 in joins:
        x = _avg_pool(x, joins, [1] * len(joins))
    return _avg_pool(x, kernel_size, stride)


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
    present = torch.ones_like(x[:1, :1])
    grown: list[int] = []
    rest: list[int] = []
    for i in range(ndim):
        amount = counted[ndim - 1 - i]
        grown += [amount, amount]
        rest += [pads[2 * i] - amount, pads[2 * i] - amount]
    present = functional.pad(present, grown, value=1.0)
    return total / _join_and_average(present, rest, joins, kernel_size, stride)


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
    if 2 in joins:
        ones = [1] * len(joins)
        x = _max_pool(x, joins, ones, ones)
    return _max_pool(x, kernel_size, stride, dilation)


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
        fine, coarse = size[axis], x.size(axis - ndim)
        steps = torch.arange(fine, device=x.device, dtype=torch.float64)
        place = ((steps - (fine - 1) / 2) / scale_factor + (coarse - 1) / 2).clamp(0, coarse - 1)
        nodes = torch.arange(coarse, device=x.device, dtype=torch.float64)
        matrix = (1 - (place.unsqueeze(1) - nodes).abs()).clamp(min=0).to(x.dtype)
        x = torch.matmul(x.movedim(axis - ndim, -1), matrix.t()).movedim(-1, axis - ndim)
    return x
