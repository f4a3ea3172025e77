"""The centred pooling and upsampling layers; their numbers are tested in ``tests/ops/test_pool.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from monai_sre.layers import (
    CentredAvgPool1d,
    CentredAvgPool2d,
    CentredAvgPool3d,
    CentredBlurPool,
    CentredMaxPool1d,
    CentredMaxPool2d,
    CentredMaxPool3d,
    CentredUpsample,
)
from monai_sre.layers.pool import CentredNearest, CentredPadPool
from monai_sre.symmetry import equivariance_error
from tests.testers import Case, LayerTester


class TestResampling(LayerTester):
    slow_cases = ("avg 2d padded", "max 2d dilated", "avg 2d blurred", "max 3d blurred", "up 2d")
    cases = (
        Case("avg 1d", lambda: CentredAvgPool1d(2), (2, 2, 7), sizes=((6,), (9,))),
        Case(
            "avg 2d",
            lambda: CentredAvgPool2d(2, ceil_mode=True, count_include_pad=False),
            (2, 2, 6, 7),
            sizes=((7, 7), (6, 6), (1, 5)),
        ),
        Case("avg 2d padded", lambda: CentredAvgPool2d(3, 2, 1), (2, 2, 6, 7), sizes=((7, 7), (6, 6), (1, 5))),
        Case("avg 3d", lambda: CentredAvgPool3d(3, 2, 1), (2, 2, 4, 5, 6), sizes=((4, 4, 4), (5, 5, 5))),
        Case("max 1d", lambda: CentredMaxPool1d(3, 2, 1), (2, 2, 7), sizes=((6,), (9,))),
        Case("max 2d", lambda: CentredMaxPool2d(3, 2, 1), (2, 2, 6, 7), sizes=((7, 7), (6, 6), (2, 5))),
        Case("max 2d dilated", lambda: CentredMaxPool2d(2, 3, 1, 2, True), (2, 2, 6, 7), sizes=((7, 7), (6, 6))),
        Case("max 3d", lambda: CentredMaxPool3d(2), (2, 2, 4, 5, 6), sizes=((4, 4, 4), (5, 5, 5))),
        Case(
            "avg 2d blurred",
            lambda: CentredAvgPool2d(3, 2, 1, antialias=True),
            (2, 2, 6, 7),
            sizes=((7, 7), (6, 6), (1, 5)),
        ),
        Case("max 1d blurred", lambda: CentredMaxPool1d(3, 2, 1, antialias=True), (2, 2, 7), sizes=((6,), (9,))),
        Case(
            "max 2d blurred",
            lambda: CentredMaxPool2d(3, (2, 2), 1, antialias=True),
            (2, 2, 6, 7),
            sizes=((7, 7), (6, 6), (2, 5)),
        ),
        Case(
            "max 3d blurred", lambda: CentredMaxPool3d(2, antialias=True), (2, 2, 4, 5, 6), sizes=((4, 4, 4), (5, 5, 5))
        ),
        Case("up 1d", lambda: CentredUpsample(3), (2, 2, 4), sizes=((5,), (1,))),
        Case("nearest 2d", lambda: CentredNearest(scale_factor=1.5), (2, 2, 4, 5), sizes=((6, 6), (7, 7), (1, 3))),
        Case("up 2d", lambda: CentredUpsample(2), (2, 2, 3, 4), sizes=((3, 3), (4, 4), (1, 3))),
        Case("up 3d", lambda: CentredUpsample(2), (1, 2, 2, 3, 4), sizes=((2, 2, 2), (3, 3, 3))),
    )


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_arguments_are_those_of_torch(ndim: int) -> None:
    """Defaults and positions alike: on sizes where torch's grid is centred the outputs are equal."""
    average = (CentredAvgPool1d, CentredAvgPool2d, CentredAvgPool3d)[ndim - 1]
    maximum = (CentredMaxPool1d, CentredMaxPool2d, CentredMaxPool3d)[ndim - 1]
    plain_average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[ndim - 1]
    plain_maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[ndim - 1]
    x = torch.randn(2, 3, *(9, 15, 21)[:ndim])
    for arguments in ((3,), (3, 2), (3, 2, 1), (3, 2, 1, True), (3, 2, 1, True, False), ((5,) * ndim, (2,) * ndim, 0)):
        torch.testing.assert_close(average(*arguments)(x), plain_average(*arguments)(x))
    for arguments in ((3,), (3, 2), (3, 2, 1), (3, 2, 1, 2)):
        assert torch.equal(maximum(*arguments)(x), plain_maximum(*arguments)(x))
    assert torch.equal(maximum(3, 2, 1, 1, True)(x), plain_maximum(3, 2, 1, 1, ceil_mode=True)(x))


def test_upsampling_undoes_the_grid_of_pooling() -> None:
    """Of a linear ramp, pooled and upsampled, the middle is the ramp again, at every size."""
    for length in range(8, 20):
        x = torch.linspace(0, 1, length).reshape(1, 1, length)
        back = CentredUpsample(2)(CentredAvgPool1d(2, ceil_mode=True, count_include_pad=False)(x), [length])
        torch.testing.assert_close(back[..., 3:-3], x[..., 3:-3])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CentredAvgPool2d(0), ValueError, "kernel_size must be an integer >= 1.*got 0"),
        (lambda: CentredAvgPool2d((2, 2, 2)), ValueError, r"kernel_size must be .* 2 of them, got \(2, 2, 2\)"),
        (lambda: CentredMaxPool2d(2.0), TypeError, "kernel_size must be an integer >= 1.*got 2.0"),
        (lambda: CentredMaxPool2d(2, 0), ValueError, "stride must be an integer >= 1.*got 0"),
        (
            lambda: CentredAvgPool3d(3, 2, 2),
            ValueError,
            r"padding must be at most half of kernel_size=\(3, 3, 3\), got 2",
        ),
        (lambda: CentredMaxPool2d(3, dilation=0), ValueError, "dilation must be an integer >= 1.*got 0"),
        (lambda: CentredUpsample(0), ValueError, "scale_factor must be an integer >= 1.*got 0"),
        (lambda: CentredUpsample(1.5), TypeError, "scale_factor must be an integer >= 1.*got 1.5"),
    ],
)
def test_wrong_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pools_of_a_single_image(ndim: int) -> None:
    x, size = torch.randn(3, *(7, 6, 8)[:ndim]), (2,) * ndim
    kind = (CentredAvgPool1d, CentredAvgPool2d, CentredAvgPool3d)[ndim - 1]
    pool = kind(size, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(pool(x), pool(x[None])[0])


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="size 2 with padding 0 is too small for a window of 5 pixels"):
        CentredAvgPool1d(5)(torch.randn(1, 1, 2))
    with pytest.raises(ValueError, match=r"size must be 2 sizes >= 1, one per spatial axis, got \[9\]"):
        CentredUpsample(2)(torch.randn(1, 1, 4, 4), [9])


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


def test_nearest_is_that_of_torch_at_integer_ratios() -> None:
    x = torch.randn(1, 2, 5, 4)
    assert torch.equal(CentredNearest(scale_factor=3)(x), functional.interpolate(x, scale_factor=3))
    assert torch.equal(CentredNearest(size=(10, 4))(x), functional.interpolate(x, size=(10, 4)))


def test_pad_pool_of_odd_factors_is_that_of_monai() -> None:
    """A window of 3 has a centre: only its place differs, by the pixel that MONAI pads at the near end."""
    x = torch.randn(1, 2, 6, 9)
    shifted = functional.avg_pool2d(functional.pad(x, (2, 0, 2, 0)), 3, 1)
    assert torch.allclose(CentredPadPool(3)(x)[..., :-1, :-1], shifted[..., 1:, 1:], atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_pad_pool_is_centred(factor: int) -> None:
    x = torch.randn(1, 2, 6, 9)
    out = CentredPadPool(factor)(x)
    assert out.shape == x.shape
    assert torch.allclose(CentredPadPool(factor)(x.flip(2)), out.flip(2), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upsampling_under_autocast_keeps_the_dtype_at_every_size(dtype: torch.dtype) -> None:
    """Below and above the size where slices take the place of matrices."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {CentredUpsample(2)(torch.ones(1, 1, size, size, dtype=dtype)).dtype for size in (90, 100)} == {dtype}
