"""Strided, even and transposed radial convolutions: every check of a layer, at even, odd and unequal sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from monai_sre.layers.centred import (
    CentredConv1d,
    CentredConv2d,
    CentredConv3d,
    CentredConvTranspose2d,
    CentredConvTranspose3d,
)
from monai_sre.ops.pool import centred_blur
from tests.testers import Case, LayerTester, check_algorithms

SIZES = ((8, 8), (9, 6), (7, 7))


class TestCentred(LayerTester):
    slow_cases = ("2d even", "2d dilated", "2d reflect", "2d blurred crop", "2d learned width", "up 2d padded", "up 3d")
    cases = (
        Case("1d", lambda: CentredConv1d(2, 3, 3, 2, 1), (1, 2, 8), sizes=((9,),)),
        Case("2d", lambda: CentredConv2d(2, 3, 3, 2, 1), (1, 2, 8, 7), sizes=SIZES),
        Case("2d even", lambda: CentredConv2d(2, 3, 4, 2, 1), (1, 2, 8, 7), sizes=SIZES),
        Case("2d crop", lambda: CentredConv2d(2, 4, 1, 3, groups=2, bias=False), (1, 2, 8, 9), sizes=SIZES),
        Case("2d dilated", lambda: CentredConv2d(2, 3, 3, 2, 2, dilation=2), (1, 2, 8, 7), sizes=SIZES),
        Case("2d reflect", lambda: CentredConv2d(2, 3, 3, 2, 1, padding_mode="reflect"), (1, 2, 8, 7), sizes=SIZES),
        Case("2d same", lambda: CentredConv2d(2, 3, 3, 2, 0, far_padding=1), (1, 2, 8, 7), sizes=SIZES),
        Case("2d blurred", lambda: CentredConv2d(2, 3, 3, 2, 1, antialias=True), (1, 2, 8, 7), sizes=SIZES),
        Case("2d blurred crop", lambda: CentredConv2d(2, 3, 1, 3, antialias=True), (1, 2, 8, 9), sizes=SIZES),
        Case(
            "2d learned width",
            lambda: CentredConv2d(2, 3, 4, 2, 1, profile=("gaussian", {"learn_width": True})),
            (1, 2, 8, 7),
            sizes=SIZES,
        ),
        Case("3d", lambda: CentredConv3d(1, 2, 3, 2, 1), (1, 1, 5, 6, 4)),
        Case("up 2d", lambda: CentredConvTranspose2d(2, 3, 3, 2, 1, 1), (1, 2, 4, 5), sizes=((3, 3),)),
        Case("up 2d grouped", lambda: CentredConvTranspose2d(2, 4, 4, 2, 1, groups=2), (1, 2, 4, 5), sizes=((3, 3),)),
        Case(
            "up 2d learned width",
            lambda: CentredConvTranspose2d(2, 3, 3, 2, 1, 1, profile=("gaussian", {"learn_width": True})),
            (1, 2, 4, 5),
            sizes=((3, 3),),
        ),
        Case("up 2d padded", lambda: CentredConvTranspose2d(2, 3, 1, 3, 0, 2), (1, 2, 4, 5), sizes=((3, 3),)),
        Case("up 3d", lambda: CentredConvTranspose3d(1, 2, 2, 2, bias=False), (1, 1, 3, 4, 2)),
    )


@pytest.mark.parametrize(
    "case",
    [case for case in TestCentred.cases if "up" not in case.name and "learned" not in case.name],
    ids=lambda case: case.name,
)
def test_algorithms_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_algorithms(case, monkeypatch)


class TestArguments:
    @pytest.mark.parametrize(
        ("build", "match"),
        [
            (lambda: CentredConv2d(2, 3, 3, groups=2), "groups"),
            (lambda: CentredConv2d(2, 3, 0), "kernel_size"),
            (lambda: CentredConv2d(2, 3, 4, num_rings=9), "num_rings"),
            (lambda: CentredConv2d(2, 3, 3, padding_mode="wrap"), "padding_mode"),
            (lambda: CentredConv2d(2, 3, 3, padding_mode="reflect", far_padding=1), "far_padding"),
            (lambda: CentredConvTranspose2d(2, 3, 3, 2, 1, 2), "output_padding"),
            (lambda: CentredConvTranspose2d(2, 3, 3, padding_mode="reflect"), "padding_mode"),
            (lambda: CentredConv2d(1, 1, 9)(torch.zeros(1, 1, 4, 4)), "too small"),
        ],
    )
    def test_messages(self, build: object, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            build()  # type: ignore[operator]


@pytest.mark.parametrize("size", [41, 42])
def test_strided_convolution_samples_its_blurred_output(size: int) -> None:
    """Reference: convolve at every pixel, blur, and take what lies on the centred grid; away from the border."""
    layer = CentredConv2d(1, 1, 3, 2, 1, bias=False, dtype=torch.float64, antialias=True)
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    dense = centred_blur(functional.conv2d(x, layer.kernel(), padding=1), [2, 2], 0.6)
    between = (dense[..., 1:] + dense[..., :-1]) / 2
    between = (between[..., 1:, :] + between[..., :-1, :]) / 2
    wanted = (between if size % 2 == 0 else dense)[..., ::2, ::2]
    torch.testing.assert_close(layer(x)[..., 4:-4, 4:-4], wanted[..., 4:-4, 4:-4])
