"""A Gaussian profile whose width is a parameter of the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from monai_sre import convert_to_sre
from monai_sre.layers import SREConv1d, SREConv2d, SREConv3d, SREConvTranspose2d
from monai_sre.layers.centred import CentredConv2d, CentredConv3d, CentredConvTranspose2d
from monai_sre.nets import SREResNet
from monai_sre.ops.radial import centred_basis

LEARNED = ("gaussian", {"width": 0.8, "learn_width": True})


@pytest.mark.parametrize(
    ("layer_type", "options"),
    [
        (SREConv1d, {"kernel_size": 7}),
        (SREConv2d, {"kernel_size": 5}),
        (SREConv2d, {"kernel_size": 5, "circular": False, "num_rings": 3}),
        (SREConv3d, {"kernel_size": (3, 5, 5), "axes": (1, 2)}),
        (SREConv3d, {"kernel_size": (3, 7, 7), "spacing": (3.0, 1.0, 1.0)}),
        (SREConvTranspose2d, {"kernel_size": 5}),
        (CentredConv2d, {"kernel_size": 5}),
        (CentredConv2d, {"kernel_size": (4, 4), "circular": False}),
        (CentredConv3d, {"kernel_size": (3, 4, 4), "axes": (1, 2)}),
        (CentredConvTranspose2d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    ],
)
def test_basis_follows_the_width(layer_type: Any, options: dict[str, Any]) -> None:
    layer = layer_type(2, 3, profile=LEARNED, dtype=torch.float64, **options)
    geometry = {name: value for name, value in options.items() if name in ("num_rings", "circular", "spacing", "axes")}
    assert "log_width" in layer.state_dict()
    for width in (0.8, 0.5, 1.1):
        with torch.no_grad():
            layer.log_width.fill_(torch.tensor(width).double().log())
        wanted = centred_basis(layer.kernel_size, profile=("gaussian", {"width": width}), **geometry)
        torch.testing.assert_close(layer.current_basis(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["auto", "dense", "ring"])
@pytest.mark.parametrize("build", [SREConv2d, CentredConv2d])
def test_gradients(build: Any, algorithm: str) -> None:
    layer = build(2, 3, 5, padding=2, profile=LEARNED, algorithm=algorithm, dtype=torch.float64)
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)

    def value(log_width: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"log_width": log_width}, x).square().sum()

    step, start = 1e-5, layer.log_width.detach()
    layer(x).square().sum().backward()
    assert layer.log_width.grad is not None
    slope = (value(start + step) - value(start - step)) / (2 * step)
    torch.testing.assert_close(layer.log_width.grad, slope.detach(), rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.kernel(), layer.bias, padding=2))


def test_captured_graphs_copies_and_checkpoints() -> None:
    layer, x = SREConv2d(2, 3, 5, padding=2, profile=LEARNED), torch.randn(1, 2, 9, 8)
    with torch.no_grad():
        layer.log_width.add_(0.3)
    wanted = layer(x)
    for other in (
        torch.jit.script(layer),
        torch.jit.trace(layer, x),
        copy.deepcopy(layer),
        torch.export.export(layer, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), wanted)
    again = SREConv2d(2, 3, 5, padding=2, profile=LEARNED)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), wanted)
    layer.reset_parameters()
    assert float(layer.log_width.detach().exp()) == pytest.approx(0.8)


def test_rings_far_away() -> None:
    """Gaussians of width 1 vanish beyond 38 units; the distances must not."""
    layer = SREConv3d(1, 2, (9, 3, 3), padding="same", spacing=(10.0, 1.0, 1.0), profile=LEARNED)
    layer(torch.randn(1, 1, 9, 6, 6)).square().sum().backward()
    assert layer.log_width.grad.isfinite()
    assert layer.log_width.grad.abs() > 0


def test_networks_and_refusals() -> None:
    net = SREResNet(2, 1, 3, width=4, profile=LEARNED)
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    assert net.conv1.log_width.grad is not None
    even = convert_to_sre(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 4, 2)), profile=LEARNED)
    even(torch.randn(1, 1, 9, 8)).sum().backward()
    assert even[0].log_width.grad.abs() > 0
    with pytest.raises(ValueError, match="orthonormal must be False where the profile's width is learned"):
        SREConv2d(1, 1, 3, profile=LEARNED, orthonormal=True)
    with pytest.raises(TypeError, match="learn_width of profile 'gaussian' must be True or False, got 1"):
        SREConv2d(1, 1, 3, profile=("gaussian", {"learn_width": 1}))
    assert SREConv2d(1, 1, 3, profile=("gaussian", {"learn_width": False})).log_width is None
