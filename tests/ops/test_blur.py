"""Antialiased down-sampling: its grid, its weights, its symmetry, and what it does for a network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_sre.layers import CentredAvgPool2d, CentredBlurPool
from monai_sre.layers.centred import CentredConv2d
from monai_sre.nets import SREResNet
from monai_sre.ops.pool import blurred_avg_pool, blurred_max_pool, centred_avg_pool, centred_blur, centred_blur_pool
from monai_sre.symmetry import equivariance_error


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_shape_symmetry_and_constants(size: int, stride: int) -> None:
    x = torch.randn(2, 3, size, size + 3, dtype=torch.float64)
    y = centred_blur_pool(x, [stride, stride])
    assert y.shape == centred_avg_pool(x, [stride] * 2, [stride] * 2, [0, 0], True, False).shape
    assert max(equivariance_error(CentredBlurPool(stride), x).values()) < 1e-14
    torch.testing.assert_close(centred_blur_pool(torch.ones_like(x), [stride, stride]), torch.ones_like(y))


@pytest.mark.parametrize("size", [39, 40])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_the_grid_is_that_of_the_block_means(size: int, stride: int) -> None:
    """A symmetric filter keeps a linear image as it is, so the outputs show where they lie."""
    x = torch.arange(float(size), dtype=torch.float64)[None, None]
    blocks = centred_avg_pool(x, [stride], [stride], [0], True, False)
    torch.testing.assert_close(centred_blur_pool(x, [stride])[..., 3:-3], blocks[..., 3:-3])


def test_weights_are_gaussian() -> None:
    x = torch.zeros(1, 1, 15, dtype=torch.float64)
    x[..., 7] = 1
    offsets = 2.0 * torch.arange(-3, 4, dtype=torch.float64)  # outputs lie at the pixels 1, 3 ... of 15
    y = centred_blur_pool(
        x[..., 1:-1], [2], width=0.5
    )  # 13 pixels: outputs at 0, 2 ... 12, the one at 6 on the impulse
    pixels = torch.arange(-3.0, 4.0, dtype=torch.float64)
    wanted = torch.exp(-0.5 * offsets**2) / torch.exp(-0.5 * pixels**2).sum()
    torch.testing.assert_close(y[0, 0, 2:5], wanted[2:5])


def sampled(line: list[float], count: int, step: int, sigma: float) -> list[float]:
    """Reference: ``count`` Gaussian means of a line, ``step`` apart and centred, pixel by pixel."""
    found = []
    for output in range(count):
        place = (len(line) - 1) / 2 + step * (output - (count - 1) / 2)
        near = [(pixel, abs(pixel - place)) for pixel in range(len(line)) if abs(pixel - place) <= int(3 * sigma) + 0.5]
        shares = [math.exp(-0.5 * (distance / sigma) ** 2) for _, distance in near]
        total = sum(share * line[pixel] for share, (pixel, _) in zip(shares, near, strict=True))
        found.append(total / sum(shares))
    return found


@pytest.mark.parametrize("size", [9, 12, 14])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_are_those_of_the_reference(size: int, kernel: int, stride: int, ceil_mode: bool) -> None:
    x = torch.randn(1, 1, size, dtype=torch.float64)
    options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "ceil_mode": ceil_mode}
    count = nn.functional.max_pool1d(x, **options).shape[-1]
    spread = max(0.6 * stride, math.sqrt((kernel**2 - 1) / 12))
    wanted = sampled(x.flatten().tolist(), count, stride, spread)
    found = blurred_avg_pool(x, [kernel], [stride], [kernel // 2], ceil_mode, 0.6)
    torch.testing.assert_close(found.flatten().tolist(), wanted)
    dense = nn.functional.max_pool1d(x, kernel, 1, kernel // 2)
    wanted = sampled(dense.flatten().tolist(), count, stride, 0.6 * stride)
    found = blurred_max_pool(x, [kernel], [stride], [kernel // 2], [1], ceil_mode, 0.6)
    torch.testing.assert_close(found.flatten().tolist(), wanted)


def test_blur_keeps_the_grid_and_axes_without_stride() -> None:
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    found = centred_blur(x, [3, 1], 0.6)
    for image, blurred in zip(x, found, strict=True):
        for column in range(5):
            wanted = sampled(image[:, column].tolist(), 9, 1, 1.8)
            torch.testing.assert_close(blurred[:, column].tolist(), wanted)
    assert torch.equal(centred_blur(x, [1, 1], 0.6), x)


@pytest.mark.parametrize("size", [41, 42])
def test_strided_convolution_samples_its_blurred_output(size: int) -> None:
    """Reference: convolve at every pixel, blur, and take what lies on the centred grid; away from the border."""
    layer = CentredConv2d(1, 1, 3, 2, 1, bias=False, dtype=torch.float64, antialias=True)
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    dense = centred_blur(nn.functional.conv2d(x, layer.kernel(), padding=1), [2, 2], 0.6)
    between = (dense[..., 1:] + dense[..., :-1]) / 2
    between = (between[..., 1:, :] + between[..., :-1, :]) / 2
    wanted = (between if size % 2 == 0 else dense)[..., ::2, ::2]
    torch.testing.assert_close(layer(x)[..., 4:-4, 4:-4], wanted[..., 4:-4, 4:-4])


def test_script_trace_and_other_sizes() -> None:
    pool, x = CentredBlurPool(2), torch.randn(1, 2, 9, 12)
    for other in (torch.jit.script(pool), torch.jit.trace(pool, x)):
        torch.testing.assert_close(other(x), pool(x))
        torch.testing.assert_close(other(x[..., 1:, :7]), pool(x[..., 1:, :7]))
    with pytest.raises(ValueError, match="width must be a positive number, got 0"):
        CentredBlurPool(2, width=0)


def test_less_error_at_other_angles() -> None:
    """A wave at the edge of what the coarse grid holds: block means alias it, and the filter removes it."""
    rows = torch.arange(65.0)
    x = torch.cos(2 * torch.pi * 0.27 * rows)[None, None, :, None] * torch.ones(65) + 1
    plain = equivariance_error(CentredAvgPool2d(2, ceil_mode=True, count_include_pad=False), x, (20, 45))
    smooth = equivariance_error(CentredBlurPool(2), x, (20, 45))
    assert max(smooth.values()) < 0.5 * min(plain.values())


@pytest.mark.parametrize("depth", [18, 50])
def test_networks(depth: int) -> None:
    net = SREResNet(2, 1, 3, depth=depth, width=8, antialias=True).eval()
    plain = SREResNet(2, 1, 3, depth=depth, width=8)
    assert sum(isinstance(module, CentredBlurPool) for module in net.modules()) == (3 if depth == 18 else 6)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert max(equivariance_error(net, torch.randn(1, 1, 13, 10)).values()) < 1e-5
    for module in (net, SREResNet(3, 1, 2, width=4, antialias=True)):
        assert isinstance(module, nn.Module)
    assert SREResNet(3, 1, 2, width=4, antialias=True)(torch.randn(2, 1, 9, 8, 7)).shape == (2, 2)
