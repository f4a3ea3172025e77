"""Strided, even and transposed radial convolutions: every check of a layer, at even, odd and unequal sizes."""

from __future__ import annotations

import pytest
import torch

from monai_sre.layers.centred import (
    CentredConv1d,
    CentredConv2d,
    CentredConv3d,
    CentredConvTranspose2d,
    CentredConvTranspose3d,
)
from monai_sre.layers.pool import CentredNearest, CentredPadPool
from tests.testers import Case, LayerTester

SIZES = ((8, 8), (9, 6), (7, 7))


class TestCentred(LayerTester):
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


class TestInterpolation:
    def test_nearest_is_that_of_torch_at_integer_ratios(self) -> None:
        x = torch.randn(1, 2, 5, 4)
        assert torch.equal(CentredNearest(scale_factor=3)(x), torch.nn.functional.interpolate(x, scale_factor=3))
        assert torch.equal(CentredNearest(size=(10, 4))(x), torch.nn.functional.interpolate(x, size=(10, 4)))

    def test_pad_pool_of_odd_factors_is_that_of_monai(self) -> None:
        """A window of 3 has a centre: only its place differs, by the pixel that MONAI pads at the near end."""
        x = torch.randn(1, 2, 6, 9)
        shifted = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (2, 0, 2, 0)), 3, 1)
        assert torch.allclose(CentredPadPool(3)(x)[..., :-1, :-1], shifted[..., 1:, 1:], atol=1e-6)

    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_pad_pool_is_centred(self, factor: int) -> None:
        x = torch.randn(1, 2, 6, 9)
        out = CentredPadPool(factor)(x)
        assert out.shape == x.shape
        assert torch.allclose(CentredPadPool(factor)(x.flip(2)), out.flip(2), atol=1e-6)


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
            (lambda: CentredNearest(), "size or scale_factor"),
            (lambda: CentredConv2d(1, 1, 9)(torch.zeros(1, 1, 4, 4)), "too small"),
        ],
    )
    def test_messages(self, build: object, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            build()  # type: ignore[operator]
