"""Antialiased down-sampling: a Gaussian filter before the pixels of a centred grid are taken.

A block mean lets through what the coarse grid cannot hold, and more of it along the axes than along the diagonals; a strided
convolution or maximum lets through all of it. What it folds back breaks the equivariance to shifts and to rotations by other
angles than 90 degrees. Source: Zhang, "Making convolutional networks shift-invariant again", ICML 2019, with a Gaussian in
place of binomial weights: it is round, and its width follows the stride. Grids are those of :mod:`monai_sre.ops.resample`, so
that the symmetries of the lattice stay exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_sre.ops.padding import pad_ends
from monai_sre.ops.resample import _max_pool, _script_if_tracing, window_count

#: Standard deviation of the filter, in steps of the coarse grid, where the caller names none: that of binomial weights of 7
#: taps at stride 2, the widest of Zhang's. Wider ones alias less and blur more.
WIDTH = 0.6


def blur_width(antialias: bool | float) -> float:
    """The width that an argument ``antialias`` of a layer or network stands for; 0 is no filter.

    Raises:
        ValueError: it is neither a bool nor a positive number.

    Example:
        >>> blur_width(False), blur_width(True), blur_width(0.8)
        (0.0, 0.6, 0.8)
    """
    if isinstance(antialias, bool):
        return WIDTH if antialias else 0.0
    if not isinstance(antialias, (int, float)) or not 0 < antialias < math.inf:
        raise ValueError(f"antialias must be True, False or a positive width, got {antialias!r}")
    return float(antialias)


def _sampled(x: Tensor, axis: int, step: int, count: int, sigma: float) -> Tensor:
    """``count`` values of the blurred axis, ``step`` pixels apart and centred, as a product with a matrix of weights.

    ``axis`` counts from the end. The weights of each output, within three ``sigma``, add up to 1.
    """
    size = x.size(axis)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # which that device lacks
    pixels = torch.arange(size, device=x.device, dtype=exact)
    outputs = torch.arange(count, device=x.device, dtype=exact)
    places = (size - 1) / 2 + step * (outputs - (count - 1) / 2)
    distance = (pixels - places.unsqueeze(1)).abs()
    weights = torch.exp(-0.5 * (distance / sigma).square()) * (distance <= int(3 * sigma) + 0.5)
    matrix = (weights / weights.sum(dim=1, keepdim=True)).to(x.dtype)
    here, last = x.dim() + axis, x.dim() - 1  # ONNX knows no negative axes here
    return torch.matmul(x.transpose(here, last), matrix.t()).transpose(here, last)


@_script_if_tracing
def centred_blur(x: Tensor, stride: list[int], width: float) -> Tensor:
    """Take out what a grid of the given stride cannot hold; nothing along axes of stride 1.

    Args:
        x: shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        stride: step of the grid that is to come, one an axis.
        width: standard deviation of the Gaussian filter in steps of that grid, cut at three of them.

    Returns:
        Tensor of the shape of ``x``; weights at the border are normalised to 1.

    Example:
        >>> wave = torch.tensor([[[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]]])  # folds back to a constant at stride 2
        >>> centred_blur(wave, [2], 0.6)[..., 3].abs() < 0.01
        tensor([[True]])
    """
    ndim = len(stride)
    for axis in range(ndim):
        if stride[axis] > 1:
            x = _sampled(x, axis - ndim, 1, int(x.size(axis - ndim)), width * stride[axis])
    return x


@_script_if_tracing
def centred_blur_pool(x: Tensor, stride: list[int], width: float = WIDTH) -> Tensor:
    """Down-sampling on a centred grid behind a Gaussian filter: less aliasing than averaging over blocks.

    The outputs lie where those of :func:`monai_sre.ops.resample.centred_avg_pool` with ``kernel_size=stride`` and
    ``ceil_mode=True`` lie.

    Args:
        x: shape ``(N, C, *spatial)``.
        stride: step between outputs, one an axis.
        width: standard deviation of the filter in steps of the output, cut at three of them.

    Returns:
        Tensor of shape ``(N, C, *ceil(size / stride))``; weights at the border are normalised to 1.

    Example:
        >>> centred_blur_pool(torch.ones(1, 1, 7, 8), [2, 2]).shape
        torch.Size([1, 1, 4, 4])
    """
    ndim = len(stride)
    for axis in range(ndim):
        step = stride[axis]
        if step > 1:
            count = (int(x.size(axis - ndim)) + step - 1) // step
            x = _sampled(x, axis - ndim, step, count, width * step)
    return x


@_script_if_tracing
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
    for axis in range(ndim):
        step, taps = stride[axis], kernel_size[axis]
        count = window_count(int(x.size(axis - ndim)), taps, step, padding[axis], 1, ceil_mode)
        sigma = max(width * step if step > 1 else 0.0, math.sqrt((taps * taps - 1) / 12))
        if sigma > 0:
            x = _sampled(x, axis - ndim, step, count, sigma)
    return x


@_script_if_tracing
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
        kernel_size: window, one size an axis; ``stride``, ``padding``, ``dilation`` and ``ceil_mode`` as in
            ``torch.nn.MaxPool*d``, one value an axis.
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
    counts: list[int] = []
    ends: list[int] = []
    for axis in range(ndim):
        size = int(x.size(axis - ndim))
        counts.append(window_count(size, kernel_size[axis], stride[axis], padding[axis], dilation[axis], ceil_mode))
        lacking = dilation[axis] * (kernel_size[axis] - 1) + 1 - size - 2 * padding[axis]
        ends.append(padding[axis] + max(lacking + 1, 0) // 2)  # with ceil_mode, a window may be larger than the map
    x = _max_pool(pad_ends(x, ends, value=float("-inf")), kernel_size, [1] * ndim, dilation)
    for axis in range(ndim):
        if stride[axis] > 1:
            x = _sampled(x, axis - ndim, stride[axis], counts[axis], width * stride[axis])
    return x
