"""What the networks share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_sre import SREHarmonicConv2d, equivariance_error
from monai_sre.layers import CentredAvgPool2d, CentredBlurPool, SREConv2d
from monai_sre.nets import SREResNet, SREUNet
from monai_sre.nets.blocks import LayerMaker, ResidualBlock, conv_kind, per_level


def maker(conv: Any = "radial", antialias: bool | float = False, **radial: Any) -> LayerMaker:
    return LayerMaker(2, "batch", "relu", antialias, conv, radial)


@pytest.mark.parametrize(("conv", "kind"), [("radial", SREConv2d), ("harmonic", SREHarmonicConv2d)])
def test_rings_are_those_of_the_layer_unless_said(conv: str, kind: Any) -> None:
    unsaid = maker(conv, profile=None, orthonormal=None).radial(2, 4, 5)
    assert repr(unsaid) == repr(kind(2, 4, 5, padding="same", bias=False))
    said = maker(conv, profile="linear", orthonormal=False).radial(2, 4, 5)
    assert repr(said) == repr(kind(2, 4, 5, padding="same", bias=False, profile="linear", orthonormal=False))


def test_one_default_in_all_networks() -> None:
    """Energies come with orthonormal Gaussian rings, whoever makes the layer; radial networks keep the published bands."""
    for network in (SREResNet(2, 1, 2, width=4, conv="harmonic"), SREUNet(2, 1, 2, channels=(2, 3), conv="harmonic")):
        rings = [repr(module) for module in network.modules() if isinstance(module, SREConv2d)]
        assert rings
        assert all("profile='gaussian', orthonormal=True" in text for text in rings)
    for network in (SREResNet(2, 1, 2, width=4), SREUNet(2, 1, 2, channels=(2, 3))):
        assert "profile" not in repr(network)


BUNDLES = Path(__file__).parents[2] / "bundles"


@pytest.mark.parametrize(
    ("bundle", "kind", "channels"),
    [
        ("medmnist_2d_classification", SREResNet, {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}),
        ("medmnist_3d_classification", SREResNet, {"spatial_dims": 3, "in_channels": 1, "num_classes": 2}),
        ("retinal_vessel_segmentation", SREUNet, {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}),
    ],
)
def test_shipped_weights_need_no_rings_in_their_configs(bundle: str, kind: Any, channels: dict[str, int]) -> None:
    """With ``profile="gaussian"`` and ``orthonormal=True`` in the config of the training, or without: it is the default."""
    described = json.loads((BUNDLES / bundle / "models/model.json").read_text())["network"]
    written = {name: value for name, value in described.items() if name != "_target_"}
    rings = {"profile": "gaussian", "orthonormal": True}
    assert {name: written.get(name, value) for name, value in rings.items()} == rings
    without = {name: value for name, value in written.items() if name not in rings} | channels
    state = torch.load(BUNDLES / bundle / "models" / "model.pt", weights_only=True)
    x = torch.randn(1, channels["in_channels"], *(24, 28, 20)[: channels["spatial_dims"]])

    def logits(options: dict[str, Any]) -> torch.Tensor:
        network = kind(**options).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            return network(x)  # type: ignore[no-any-return]

    expected = logits({**without, **rings})
    assert torch.equal(logits(without), expected)
    assert torch.equal(logits({**written, **channels}), expected)
    bands = logits({**without, "profile": "band", "orthonormal": False})  # as many rings, of another shape
    assert float((bands - expected).norm() / expected.norm()) > 1e-3


@pytest.mark.parametrize(
    ("conv", "match"),
    [
        ("dense", r"conv must be one of \('radial', 'harmonic'\) or \(name, options\), got 'dense'"),
        (3, "conv must be one of"),
        (["harmonic"], "conv must be one of"),
        (("harmonic", {"profile": "band"}), "conv must not hold 'profile': give the argument profile itself"),
        (("harmonic", {"num_rings": 2}), "conv must not hold 'num_rings': give the argument num_rings itself"),
        (("radial", {"orders": (1,)}), r"conv='radial' takes the options \[\], got 'orders'"),
        (("harmonic", {"order": 1}), "takes the options .*'orders', 'hidden_channels'.*, got 'order'"),
    ],
)
def test_bad_kinds_of_convolutions(conv: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        conv_kind(conv)


def test_one_value_for_all_levels_or_one_per_level() -> None:
    assert per_level("num_rings", None, 2) == (None, None)
    assert per_level("num_rings", [1, None, 2], 3) == (1, None, 2)
    for value in ((1, 2), "abc", 3.0):
        with pytest.raises(ValueError, match="kernel_size must be one value or 3, one per stage, got"):
            per_level("kernel_size", value, 3, "stage")


def test_pools() -> None:
    assert isinstance(maker().pool(1), nn.Identity)
    assert isinstance(maker().pool(2), CentredAvgPool2d)
    blur = maker(antialias=1.2).pool(2)
    assert isinstance(blur, CentredBlurPool)
    assert blur.width == 1.2


def test_a_shortcut_only_where_channels_change() -> None:
    assert isinstance(maker().shortcut(3, 3), nn.Identity)
    conv, norm = maker().shortcut(3, 5).children()
    assert (conv.kernel_size, conv.bias, norm.num_features) == ((1, 1), None, 5)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_residual_block_by_hand(stride: int) -> None:
    """relu(norm(conv(relu(norm(conv(pool x))))) + shortcut(pool x)), which commutes with the symmetries."""
    block = ResidualBlock(maker(), 2, 3, 3, stride).double().eval()
    x = torch.randn(1, 2, 10, 7, dtype=torch.float64)
    pooled = block.pool(x)
    inner = block.norm2(block.conv2(block.norm1(block.conv1(pooled)).relu()))
    torch.testing.assert_close(block(x), (inner + block.shortcut(pooled)).relu())
    assert pooled.shape[2:] == (-(-10 // stride), -(-7 // stride))
    assert max(equivariance_error(block, x).values()) < 1e-12
