"""Layers with energies of harmonics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn import functional

from monai_sre.layers import HarmonicEnergy, SREConv2d, SREHarmonicConv1d, SREHarmonicConv2d, SREHarmonicConv3d
from tests.testers import Case, LayerTester, lattice_symmetries

CASES = (
    Case("1d", lambda: SREHarmonicConv1d(2, 4, 5, padding=2), (2, 2, 8), sizes=((7,), (5,))),
    Case("2d", lambda: SREHarmonicConv2d(2, 8, 5, padding="same"), (2, 2, 6, 7), sizes=((7, 7), (6, 6), (1, 4))),
    Case("3d", lambda: SREHarmonicConv3d(2, 4, 3, padding=1), (2, 2, 3, 4, 5), sizes=((4, 4, 4), (3, 3, 3))),
    Case(
        "2d groups reflect",
        lambda: SREHarmonicConv2d(4, 8, 3, padding=1, groups=2, padding_mode="reflect", bias=False, orders=(1,), taps=3),
        (2, 4, 6, 7),
        sizes=((7, 7), (6, 6)),
    ),
    Case("2d stride", lambda: SREHarmonicConv2d(2, 4, 3, stride=2, padding=1, norm=None), (2, 2, 7, 9), sizes=((7, 7),)),
    Case("2d orders", lambda: SREHarmonicConv2d(2, 4, 5, padding=2, orders=(3, 4)), (2, 2, 7, 6), sizes=((6, 6),)),
    Case(
        "3d in-plane",
        lambda: SREHarmonicConv3d(2, 4, (3, 5, 5), padding="same", axes=(1, 2)),
        (2, 2, 4, 4, 5),
        sizes=((3, 4, 4), (2, 5, 5)),
        symmetries=lattice_symmetries(3, axes=(1, 2)),
    ),
    Case(
        "3d spacing",
        lambda: SREHarmonicConv3d(2, 4, (3, 5, 5), padding="same", spacing=(2, 1, 1)),
        (2, 2, 4, 4, 5),
        sizes=((3, 4, 4),),
        symmetries=[*lattice_symmetries(3, axes=(1, 2)), *lattice_symmetries(3, swaps=False)],
    ),
)  # fmt: skip


class TestSREHarmonicConv(LayerTester):
    cases = CASES
    slow_cases = ("2d", "2d groups reflect", "3d in-plane")


class TestHarmonicEnergy(LayerTester):
    slow_cases = ("3d replicate",)
    cases = (
        Case("2d", lambda: HarmonicEnergy(2, 1), (2, 2, 6, 7), sizes=((7, 7), (6, 6), (1, 4))),
        Case("3d replicate", lambda: HarmonicEnergy(3, 2, 3, padding_mode="replicate"), (1, 2, 4, 3, 5)),
    )


def test_it_sees_what_a_radial_layer_cannot() -> None:
    """Stripes, and the cross of the same waves along both axes: no radial kernel tells their powers apart."""
    wave = (torch.arange(16.0) * torch.pi / 4).cos()
    stripes, cross = wave.expand(16, 16)[None, None], ((wave + wave[:, None]) / 2**0.5)[None, None]
    powers = []
    for image in (stripes, stripes.mT, cross):
        radial = SREConv2d(1, 1, 5, padding=2, padding_mode="circular", bias=False)
        nn.init.constant_(radial.weight, 0.3)
        energy = HarmonicEnergy(2, order=1, padding_mode="circular", eps=1e-6)
        powers.append((radial(image).square().mean().item(), energy(image).mean().item()))
    assert powers[1] == pytest.approx(powers[0], rel=1e-5)
    assert powers[2][0] == pytest.approx(powers[0][0], rel=1e-5)
    assert abs(powers[2][1] - powers[0][1]) > 0.1 * powers[0][1]


def test_is_a_radial_layer_of_harmonics() -> None:
    """The whole layer, from its definition: plain convolutions, energies, mixing."""
    layer = SREHarmonicConv2d(3, 8, 5, padding=2, norm=None, orders=(1, 2), hidden_channels=3).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    maps = functional.conv2d(x, layer.radial.kernel(), padding=2)  # type: ignore[operator]
    energies = []
    hidden = maps[:, 8:].flatten(0, 1)[:, None]
    for energy in layer.energies:
        parts = functional.conv2d(hidden, energy.stencils[:, None], padding=2)  # type: ignore[index]
        energies.append((parts.square().sum(dim=1) + 1e-3).sqrt().unflatten(0, (2, 3)))
    torch.testing.assert_close(layer(x), maps[:, :8] + layer.mix(torch.cat(energies, dim=1)))


def test_groups_do_not_mix() -> None:
    layer = SREHarmonicConv2d(4, 8, 3, padding=1, groups=2)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(layer.eval()(x)[:, :4].sum(), x)
    assert bool(grad[:, :2].any())
    assert not bool(grad[:, 2:].any())


def test_unbatched() -> None:
    layer, x = SREHarmonicConv2d(2, 4, 3, padding=1).eval(), torch.randn(2, 6, 7)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


def test_parameters_against_the_radial_layer() -> None:
    """At most 1.7 times as many, with the defaults."""
    for kind, radial, kernel in (
        (SREHarmonicConv2d, Conv["SRECONV", 2], 9),
        (SREHarmonicConv3d, Conv["SRECONV", 3], 5),
    ):
        count = [
            sum(p.numel() for p in made(64, 64, kernel, bias=False).parameters())  # type: ignore[operator]
            for made in (kind, radial)
        ]
        assert count[0] <= 1.7 * count[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"orders": ()}, "orders must be"),
        ({"orders": (0,)}, "orders must"),
        ({"orders": (1, 1)}, "orders must differ"),
        ({"hidden_channels": 0}, "hidden_channels must"),
        ({"hidden_channels": 3, "groups": 2}, "hidden_channels must be a multiple of groups=2, got 3"),
        ({"taps": 4}, "taps must be odd"),
        ({"eps": 0.0}, "eps must be a positive number, got 0.0"),
        ({"eps": None}, "eps must be a positive number, got None"),
        ({"eps": float("inf")}, "eps must be a positive number, got inf"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"profile": 3}, "profile must be one of .*got 3"),
        ({"norm": "foo"}, "norm='foo' gives no layer for 4 channels"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SREHarmonicConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("spatial_dims", [0, 4, 2.0, True])
def test_energies_have_one_to_three_axes(spatial_dims: Any) -> None:
    with pytest.raises(ValueError, match=f"spatial_dims must be 1, 2 or 3, got {spatial_dims}"):
        HarmonicEnergy(spatial_dims, 1)


@pytest.mark.parametrize(
    ("mode", "size"), [("reflect", (2, 2)), ("reflect", (1, 3)), ("circular", (1, 1)), ("circular", (1, 2))]
)
def test_maps_smaller_than_the_stencils(mode: str, size: tuple[int, int]) -> None:
    padding = 0 if 1 in size and mode == "reflect" else 1
    kernel = 1 if padding == 0 else 3
    layer = SREHarmonicConv2d(2, 4, kernel, padding=padding, padding_mode=mode).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    out = layer(x)
    assert out.shape == nn.Conv2d(2, 4, kernel, padding=padding, padding_mode=mode).double()(x).shape
    for symmetry in lattice_symmetries(2):
        torch.testing.assert_close(layer(symmetry(x)), symmetry(out))


def test_rings_are_gaussian_and_orthonormal_unless_something_else_is_asked_for() -> None:
    wanted = SREConv2d(2, 4, 5, profile="gaussian", orthonormal=True).basis
    assert torch.equal(SREHarmonicConv2d(2, 4, 5).radial.basis, wanted)
    assert torch.equal(SREHarmonicConv2d(2, 4, 5, profile=None, orthonormal=None).radial.basis, wanted)
    band = SREHarmonicConv2d(2, 4, 5, profile="band", orthonormal=False)
    assert torch.equal(band.radial.basis, SREConv2d(2, 4, 5).basis)
    assert torch.equal(SREConv2d(2, 4, 5, profile=None, orthonormal=None).basis, SREConv2d(2, 4, 5).basis)


def test_a_learned_width_needs_no_further_word() -> None:
    layer = SREHarmonicConv2d(2, 4, 5, profile=("gaussian", {"learn_width": True}))
    assert layer.radial.log_width.requires_grad
    with pytest.raises(ValueError, match="orthonormal must be False"):
        SREHarmonicConv2d(2, 4, 5, profile=("gaussian", {"learn_width": True}), orthonormal=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_inference_takes_no_backward_pass_along(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values as in training, without the autograd functions and the copies that these keep."""
    layer, x = SREHarmonicConv2d(4, 8, 5, padding=2, groups=groups, algorithm="ring"), torch.randn(3, 4, 9, 8)
    wanted, energy = layer(x), HarmonicEnergy(2, 1)(x)

    def apply(*_: Any) -> None:
        raise AssertionError("nothing is differentiated here")

    monkeypatch.setattr(torch.autograd.Function, "apply", apply)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(layer(x), wanted)
            torch.testing.assert_close(HarmonicEnergy(2, 1)(x), energy)
    with pytest.raises(AssertionError, match="nothing is differentiated"):
        layer(x)


# What users attach -----------------------------------------------------------------------------------------------------


def test_energies_without_values_are_refused() -> None:
    """They are in no state dict, so nothing brings a layer of energies alone from the meta device."""
    with torch.device("meta"):
        energy = HarmonicEnergy(2, 1)
    with pytest.raises(ValueError, match=r"stencils are on the meta device, without values; to_empty\(device="):
        energy(torch.ones(1, 1, 5, 5))
    x = torch.randn(1, 1, 5, 5)
    assert torch.equal(energy.to_empty(device="cpu")(x), HarmonicEnergy(2, 1)(x))


def test_hooks_of_the_parts_are_called_and_other_parts_take_their_place() -> None:
    """The parts compute in one go only while they are what the layer built."""
    torch.manual_seed(0)
    layer = SREHarmonicConv2d(2, 4, 3, padding=1).double()
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    expected, seen = layer(x), list[str]()
    handles = [
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, part in (("mix", layer.mix), *((str(energy.order), energy) for energy in layer.energies))
    ]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert seen == ["1", "2", "mix"]
    for handle in handles:
        handle.remove()
    handle = layer.norm.register_forward_hook(lambda *_: seen.append("norm"))
    layer(x)
    assert seen[3:] == ["norm"]
    handle.remove()
    forward = layer.mix.forward
    layer.mix.forward = lambda energies: 0 * forward(energies)  # as adapters of fine-tuning do
    radial = layer.radial(x)[:, :4]
    torch.testing.assert_close(layer(x), radial, rtol=1e-12, atol=1e-12)
    del layer.mix.forward
    layer.norm = nn.BatchNorm2d(layer.mix.in_channels).double()
    layer(x)
    assert layer.norm.num_batches_tracked == 1
    layer.norm = nn.Identity()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.energies[1].eps = 0.5
    energies = torch.cat([energy(layer.radial(x)[:, 4:]) for energy in layer.energies], 1)
    torch.testing.assert_close(layer(x), radial + layer.mix(energies), rtol=1e-12, atol=1e-12)
    layer.mix = nn.Sequential(layer.mix, nn.Conv2d(4, 4, 1).double())
    assert not torch.allclose(layer.double()(x), expected)
    layer.mix = nn.Conv2d(layer.mix[0].in_channels, 4, 3, padding=1).double()
    energies = torch.cat([energy(layer.radial(x)[:, 4:]) for energy in layer.energies], 1)
    torch.testing.assert_close(layer(x), radial + layer.mix(energies), rtol=1e-12, atol=1e-12)
