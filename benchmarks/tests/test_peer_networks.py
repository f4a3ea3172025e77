"""The benchmarks' peers learn on our engine what they learn on their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peer_networks import OrientationAverage, PeerResNet18, RotationAverage
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
