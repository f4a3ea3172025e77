"""What is not finite stays in its image, and reaches only the positions that a kernel or a window reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_sre import fold_sre
from monai_sre.layers import (
    CentredAvgPool1d,
    CentredAvgPool2d,
    CentredAvgPool3d,
    CentredBlurPool,
    CentredMaxPool1d,
    CentredMaxPool2d,
    CentredMaxPool3d,
    CentredUpsample,
    SREConv1d,
    SREConv2d,
    SREConv3d,
    SREConvTranspose2d,
    SREConvTranspose3d,
    SREHarmonicConv1d,
    SREHarmonicConv2d,
    SREHarmonicConv3d,
)
from monai_sre.layers.centred import CentredConv2d, CentredConv3d, CentredConvTranspose2d
from monai_sre.layers.pool import CentredNearest
from monai_sre.ops.ring import cpu as ring_cpu
from monai_sre.ops.ring import energy_cpu

SMALL, LARGE = {1: (12,), 2: (5, 6), 3: (3, 2, 5)}, {1: (41,), 2: (9, 13), 3: (5, 6, 7)}
GAUSSIAN: dict[str, Any] = {"profile": "gaussian"}
CONVOLUTIONS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "conv 1d": (1, lambda: SREConv1d(2, 3, 3, padding=1)),
    "conv 2d": (2, lambda: SREConv2d(2, 3, 3, padding=1)),
    "conv 2d strided": (2, lambda: SREConv2d(2, 3, 3, stride=2, padding=1)),
    "conv 2d grouped": (2, lambda: SREConv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular")),
    "conv 2d gaussian": (2, lambda: SREConv2d(2, 3, (3, 5), padding=(1, 2), **GAUSSIAN)),
    "conv 3d": (3, lambda: SREConv3d(2, 3, 3, padding=1)),
    "conv 3d gaussian": (3, lambda: SREConv3d(2, 3, (1, 3, 3), padding=(0, 1, 1), **GAUSSIAN)),
    "transposed 2d": (2, lambda: SREConvTranspose2d(2, 3, 3, stride=2, padding=1)),
    "transposed 3d": (3, lambda: SREConvTranspose3d(2, 3, 3, padding=1)),
    "centred 2d": (2, lambda: CentredConv2d(2, 3, 3, stride=2, padding=1)),
    "centred 2d dilated": (2, lambda: CentredConv2d(2, 3, 2, stride=2, padding=1, dilation=2)),
    "centred 3d": (3, lambda: CentredConv3d(2, 3, 3, stride=(1, 2, 2), padding=1)),
    "centred transposed 2d": (2, lambda: CentredConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)),
    "harmonic 1d": (1, lambda: SREHarmonicConv1d(2, 3, 3, padding=1)),
    "harmonic 2d": (2, lambda: SREHarmonicConv2d(2, 3, 3, padding=1, taps=3)),
    "harmonic 2d replicated": (2, lambda: SREHarmonicConv2d(2, 3, 3, padding=1, taps=3, padding_mode="replicate")),
    "harmonic 3d": (3, lambda: SREHarmonicConv3d(2, 3, 3, padding=1)),
}
RESAMPLING: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "avg 1d": (1, lambda: CentredAvgPool1d(2)),
    "avg 2d": (2, lambda: CentredAvgPool2d(3, 2, 1)),
    "avg 3d": (3, lambda: CentredAvgPool3d(2)),
    "avg 2d blurred": (2, lambda: CentredAvgPool2d(2, antialias=0.3)),
    "max 1d": (1, lambda: CentredMaxPool1d(2)),
    "max 2d": (2, lambda: CentredMaxPool2d(3, 2, 1)),
    "max 3d": (3, lambda: CentredMaxPool3d(2)),
    "max 2d blurred": (2, lambda: CentredMaxPool2d(3, 2, 1, antialias=0.3)),
    "blur 2d": (2, lambda: CentredBlurPool(2, 0.3)),
    "blur 3d": (3, lambda: CentredBlurPool(2, 0.3)),
    "centred blurred": (2, lambda: CentredConv2d(2, 3, 3, stride=2, padding=1, antialias=0.3, algorithm="dense")),
    "up 1d": (1, lambda: CentredUpsample(2)),
    "up 2d": (2, lambda: CentredUpsample(3)),
    "up 3d": (3, lambda: CentredUpsample(2)),
    "nearest 2d": (2, lambda: CentredNearest(scale_factor=1.5)),
}


def outcome(module: nn.Module, x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient by ``x``, and the output's gradient, drawn where none is given."""
    x = x.clone().requires_grad_()
    out = module(x)
    if grad is None:
        grad = torch.rand(out.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    return out.detach(), torch.autograd.grad(out, x, grad)[0], grad


def spoilt(tensor: Tensor, value: float, corner: bool) -> Tensor:
    """A copy with ``value`` at one position of the second of its images: a corner, or inside."""
    tensor = tensor.clone()
    tensor[(1, 0, *[-1 if corner else length // 2 for length in tensor.shape[2:]])] = value
    return tensor


def check(module: nn.Module, reference: nn.Module | None, size: tuple[int, ...], value: float, corner: bool) -> None:
    """What is not finite: at least where a large finite value shows, and at most where it is for the reference.

    Without a reference these are the same; but a gradient that is not finite may then spread in its map.
    """
    x = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1))
    out, slope, grad = outcome(module, x)
    for inputs, large in (
        ((spoilt(x, value, corner), grad), (spoilt(x, 1e3, corner), grad)),
        ((x, spoilt(grad, value, corner)), (x, spoilt(grad, 1e3, corner))),
    ):
        found = [~tensor.isfinite() for tensor in outcome(module, *inputs)[:2]]
        moved = [now != before for now, before in zip(outcome(module, *large)[:2], (out, slope), strict=True)]
        bounds = moved if reference is None else [~t.isfinite() for t in outcome(reference, *inputs)[:2]]
        assert not (found[0] & ~bounds[0]).any()
        if reference is not None or inputs[0] is not x:
            assert not (found[1] & ~bounds[1]).any()
        assert not found[0][::2].any()
        assert not found[1][::2].any()
        assert not (moved[0] & ~found[0]).any()
        if inputs[0] is x:
            assert not (moved[1] & ~found[1]).any()


@pytest.mark.parametrize("engine", ["dense", "compiled", "eager"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's convolutions with the expanded kernel."""
    ndim, build = CONVOLUTIONS[name]
    module = build()
    reference = fold_sre(copy.deepcopy(module))
    monkeypatch.setenv("MONAI_SRE_ALGORITHM", "dense" if engine == "dense" else "ring")
    for size in (SMALL[ndim], LARGE[ndim]):
        for value in (float("inf"), float("nan")):
            for corner in (False, True):
                with monkeypatch.context() as patch:
                    if engine == "eager":
                        for library in (ring_cpu.LIBRARY, energy_cpu.LIBRARY):
                            patch.setattr(library, "libraries", dict.fromkeys((torch.float32, torch.float64)))
                    check(module, PlainEnergies(reference, patch), size, value, corner)


class PlainEnergies(nn.Module):
    """A network whose energies are convolutions of torch."""

    def __init__(self, network: nn.Module, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.network, self.patch = network, patch

    def forward(self, x: Tensor) -> Tensor:
        with self.patch.context() as patch:
            patch.setattr("monai_sre.ops.energy.is_eager_cpu_call", lambda *_: False)
            return self.network(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling(name: str) -> None:
    ndim, build = RESAMPLING[name]
    module = build()
    for size in (SMALL[ndim], LARGE[ndim]):
        for value in (float("inf"), float("nan")):
            for corner in (False, True):
                check(module, None, size, value, corner)


def test_derivatives_of_resampling() -> None:
    """Where an input is not finite, the gradients by the others are those of the linear map, of every order."""
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    bad = spoilt(x.detach().expand(2, 1, 6, 7), float("nan"), corner=True).requires_grad_()
    for module in (CentredBlurPool(2, 0.3), CentredUpsample(2)):
        grad = torch.randn_like(module(x))
        slope = torch.autograd.grad(module(x), x, grad)[0]
        found = torch.autograd.grad(module(bad), bad, grad.expand(2, *grad.shape[1:]), create_graph=True)[0]
        torch.testing.assert_close(found, slope.expand_as(found))
