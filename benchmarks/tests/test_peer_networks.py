"""The benchmarks' peers learn on our engine what they learn on their own."""

from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peer_networks import EscnnResNet18, OrientationAverage, PeerResNet18, RotationAverage
from benchmarks.peers import peer
from monai_sre.symmetry.lattice import lattice_symmetries


def test_averaging_over_rotations_makes_any_network_invariant_to_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(2, 1, 8, 8)
    average = RotationAverage(network, 2)
    turned = x.rot90(1, (2, 3))
    assert not torch.allclose(network(turned), network(x), atol=1e-3)
    assert torch.allclose(average(turned), average(x), atol=1e-5)
    assert torch.allclose(average(x).exp().sum(dim=1), torch.ones(2))
    other = RotationAverage(copy.deepcopy(network).requires_grad_(False), 2)
    for value in other.network.parameters():
        value.zero_()
    other.load_state_dict(average.state_dict())
    assert torch.equal(other(x), average(x))
    assert list(average.state_dict()) == list(network.state_dict())


def test_averaging_maps_over_orientations_makes_any_network_equivariant_to_them() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    x, moves = torch.rand(1, 1, 4, 5, 6), lattice_symmetries(3)
    average = OrientationAverage(network, 3)
    for name in ("rot90(0,1)", "flip(2)", "permute(1,2,0)"):
        assert not torch.allclose(network(moves[name](x)), moves[name](network(x)), atol=1e-2)
        assert torch.allclose(average(moves[name](x)), moves[name](average(x)), atol=1e-5)
    assert torch.allclose(average(x).exp().sum(dim=1), torch.ones(1, 4, 5, 6))


@pytest.mark.parametrize("package", ["SRE_Conv", "GMR_Conv"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_steps_are_those_of_the_package(package: str, spatial_dims: int, monkeypatch: Any) -> None:
    short = package[:3].lower()
    if peer(package, f"{short}_conv") is None:
        pytest.skip(f"the peer package {package} is not installed")
    torch.manual_seed(0)
    kept: list[nn.Module] = []
    module = peer(package, f"{short}_resnet" if spatial_dims == 2 else f"{short}_resnet_3d")
    name = f"{short}_resnet18" if spatial_dims == 2 else f"{short}_r3d_18"
    build = getattr(module, name)

    def keep(**options: Any) -> nn.Module:
        network: nn.Module = build(**options)
        kept.append(copy.deepcopy(network))
        return network

    monkeypatch.setattr(module, name, keep)
    options = {"inplanes": 8} if spatial_dims == 2 else {}
    size = (32, 32) if spatial_dims == 2 else (8, 8, 8)
    ours = PeerResNet18(package, spatial_dims, 1, 3, **options).double()
    theirs = kept[0].double()
    images, labels = torch.randn(2, 4, 1, *size, dtype=torch.float64), torch.randint(3, (2, 4))
    losses = []
    for network, repeats in ((theirs, 3 if spatial_dims == 2 else 1), (ours, 1)):
        optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
        for x, label in zip(images, labels, strict=True):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x.repeat(1, repeats, *[1] * spatial_dims)), label)
            loss.backward()
            optimizer.step()
        losses.append(loss)
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)
    expected = dict(theirs.named_parameters())
    assert len(expected) == len(list(ours.parameters()))
    for key, value in ours.network.named_parameters():
        assert torch.allclose(value, expected[key], rtol=1e-5, atol=1e-7), key


def test_the_network_of_escnn_is_the_bundles_skeleton_and_exact_at_odd_sizes() -> None:
    if importlib.util.find_spec("escnn") is None:
        pytest.skip("escnn is not installed: it needs numpy < 2, see benchmarks/results/README.md")
    torch.manual_seed(0)
    network, x = EscnnResNet18(2, 1, 3, fields=1).eval(), torch.randn(2, 1, 17, 17)
    with torch.no_grad():
        logits = network(x)
        assert torch.allclose(network(x.rot90(1, (2, 3))), logits, atol=1e-4 * float(logits.norm()))
        assert not torch.allclose(network(x.flip(2)), logits, atol=1e-3 * float(logits.norm()))  # C8 has no reflections
    convolutions = [tuple(module.filter.shape) for module in network.modules() if hasattr(module, "basisexpansion")]
    assert sorted(shape[0] for shape in convolutions if shape[-1] == 5) == [8] * 5 + [16] * 4 + [32] * 4 + [64] * 4
    assert [shape[:2] for shape in convolutions if shape[-1] == 1] == [(16, 8), (32, 16), (64, 32)]
    # A kernel is free but for its symmetry: at most 25 weights for each pair of maps, of which the group makes 8 alike.
    dense = sum(math.prod(shape) for shape in convolutions)
    learned = sum(value.numel() for name, value in network.named_parameters() if name.endswith("weights"))
    assert dense / 25 < learned < dense / 8


def test_weights_of_escnns_network_move_between_modes() -> None:
    if importlib.util.find_spec("escnn") is None:
        pytest.skip("escnn is not installed: it needs numpy < 2, see benchmarks/results/README.md")
    x, networks = torch.randn(2, 1, 9, 9), [EscnnResNet18(2, 1, 2, fields=1) for _ in range(2)]
    networks[0](x)
    keys = list(networks[0].state_dict())
    first, second = (network.eval() for network in networks)
    assert list(first.state_dict()) == keys
    assert not torch.allclose(first(x), second(x), atol=1e-3)
    second.load_state_dict(first.state_dict())
    assert torch.allclose(first(x), second(x), atol=1e-6)
