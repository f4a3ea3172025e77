"""What a conversion is asked for: one default, one place for each option, and the layers that it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from monai_sre import SREConv2d, SREHarmonicConv2d, conversion_report, convert_to_sre
from monai_sre.convert.options import Options, embed, make_layer, project, see_rest
from monai_sre.convert.report import RefusedError
from monai_sre.layers import HarmonicConv
from monai_sre.ops import radial_basis

LEARNED = ("gaussian", {"width": 0.7, "learn_width": True})


def radial_part(layer: nn.Module) -> str:
    """The line that says which rings a layer has."""
    return repr(layer.radial if isinstance(layer, HarmonicConv) else layer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "linear"},
        {"profile": "band", "orthonormal": False},
        {"profile": LEARNED},
        {"orthonormal": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(("conv", "kind"), [("radial", SREConv2d), ("harmonic", SREHarmonicConv2d)])
def test_defaults_are_those_of_the_layers(conv: str, kind: Any, options: dict[str, Any]) -> None:
    """Gaussian orthonormal rings beside energies, the published bands without; a word of the caller counts more."""
    new = convert_to_sre(nn.Conv2d(2, 4, 5, padding=2, bias=False), conv=conv, **options)
    assert radial_part(new) == radial_part(kind(2, 4, 5, padding=2, bias=False, **options))


def test_transposed_layers_beside_energies_have_the_same_rings() -> None:
    network = convert_to_sre(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 2, 4, 2, 1)), conv="harmonic")
    assert "profile='gaussian', orthonormal=True" in repr(network[1])


def test_options_of_the_energies() -> None:
    options = {"orders": (1, 3), "hidden_channels": 2, "taps": 7, "norm": "instance", "eps": 0.01}
    new = convert_to_sre(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1)), conv=("harmonic", options))[0]
    assert isinstance(new, HarmonicConv)
    assert (new.orders, new.hidden_channels, new.eps) == ((1, 3), 2, 0.01)
    assert [tuple(energy.stencils.shape[1:]) for energy in new.energies] == [(7, 7), (7, 7)]
    assert isinstance(new.norm, nn.InstanceNorm2d)


@pytest.mark.parametrize(
    ("conv", "match"),
    [
        ("spherical", r"conv must be one of \('radial', 'harmonic'\) or \(name, options\), got 'spherical'"),
        (("harmonic", {"depth": 1}), "conv='harmonic' takes the options .*'orders'.* got 'depth'"),
        (("radial", {"orders": (1,)}), r"conv='radial' takes the options \[\], got 'orders'"),
        (("harmonic", {"profile": "band"}), "conv must not hold 'profile': give the argument profile itself"),
        (("radial", {"circular": False}), "conv must not hold 'circular': give the argument circular itself"),
        (("harmonic", {"orders": (0,)}), "orders must"),
        (("harmonic", {"hidden_channels": 0}), "hidden_channels must"),
    ],
)
def test_bad_kinds_of_convolutions(conv: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        convert_to_sre(nn.Conv2d(1, 4, 3), conv=conv)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"init": "zero"}, r"init must be one of \('project', 'reset'\), got 'zero'"),
        ({"kernel_size": 0}, "kernel_size must be an integer >= 1"),
        ({"num_rings": 0}, "num_rings must be an integer >= 1"),
        ({"profile": ""}, "profile must be one of"),
        ({"profile": "cubic"}, "profile must be one of .*'cubic'"),
        ({"profile": LEARNED, "orthonormal": True}, "orthonormal must be False where the profile's width is learned"),
        ({"spacing": (1.0,)}, "spacing must"),
        ({"axes": (3,)}, "axes must"),
        ({"algorithm": "fast"}, "algorithm must be one of .*'fast'"),
        ({"antialias": -1.0}, "antialias must be True, False or a positive width, got -1.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match=match):
        convert_to_sre(network, **options)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize("profile", [3, ("gaussian",), ["gaussian", "width"]])
@pytest.mark.parametrize("conv", ["radial", "harmonic"])
def test_profiles_of_the_wrong_type(profile: Any, conv: str) -> None:
    with pytest.raises(TypeError, match="profile must be one of"):
        convert_to_sre(nn.Conv2d(1, 2, 3), profile=profile, conv=conv)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": "no"}, "strict must be True or False, got 'no'"),
        ({"spacing": 1.0}, "spacing must be None or 2 positive lengths, got 1.0"),
        ({"spacing": "ab"}, "spacing must be None or 2 positive lengths, got 'ab'"),
    ],
)
def test_arguments_of_the_wrong_type(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        convert_to_sre(nn.Conv2d(1, 2, 3), **options)


def test_kernels_grow_by_whole_taps_at_both_ends() -> None:
    options = Options(kernel_size=(5, 9))
    assert options.enlarged((3, 3)) == [5, 9]
    assert options.enlarged((2, 4)) == [6, 10]  # even ones stay even
    assert options.enlarged((7, 1)) == [7, 1]  # none shrinks, and one tap stays one tap
    with pytest.raises(RefusedError, match=r"kernel_size=\(5, 9\) does not have 3 entries"):
        options.enlarged((3, 3, 3))


def test_kernels_of_unequal_size_are_refused_before_training_breaks_the_symmetry() -> None:
    """The taps that are added start at zero, so no check of the network sees them."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    with pytest.raises(ValueError, match=r"kernel_size=\(3, 7\) differs between the spatial axes 0 and 1"):
        convert_to_sre(network, kernel_size=(3, 7))
    assert isinstance(convert_to_sre(network, kernel_size=(3, 7), spacing=(2.0, 1.0)), nn.Module)


def test_axes_that_are_exchanged_must_be_alike() -> None:
    Options(spacing=(2.0, 1.0)).check_alike("stride", (1, 2))
    Options(axes=(1, 2)).check_alike("stride", (1, 2, 2))
    with pytest.raises(RefusedError, match=r"stride=\(2, 2, 1\) differs between the spatial axes 1 and 2"):
        Options(axes=(1, 2)).check_alike("stride", (2, 2, 1))


def test_projection_is_the_nearest_kernel() -> None:
    """On an orthonormal basis it is an inner product, and what is lost is orthogonal to what is kept."""
    basis = radial_basis((5, 5), profile="gaussian", orthonormal=True)
    kernel = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    weight, share = project(kernel, basis)
    torch.testing.assert_close(weight, torch.einsum("oihw,bhw->oib", kernel, basis))
    assert share == pytest.approx(float(weight.square().sum() / kernel.square().sum()))
    assert project(torch.zeros(1, 1, 5, 5), basis)[1] == 1


def test_embedding_in_a_larger_kernel() -> None:
    kernel = torch.ones(1, 1, 1, 2)
    assert embed(kernel, (3, 5), (False, False))[0, 0].tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0] * 5]
    assert embed(kernel, (3, 5), (False, True))[0, 0].tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0] * 5]


def test_rings_are_at_most_what_a_kernel_takes() -> None:
    arguments = {"in_channels": 4, "out_channels": 4, "groups": 2}
    for size, rings in ((1, 1), (3, 2), (9, 4)):
        layer: Any = make_layer(SREConv2d, {**arguments, "kernel_size": size}, Options(num_rings=4), None)
        assert layer.num_rings == rings


def responses(layer: Any) -> torch.Tensor:
    """What each component of each energy of a layer of one group responds to a point in each channel, as rows of kernels."""
    channels, size = layer.radial.in_channels, 4 * layer.radial.kernel_size[0] + 1
    rows = []
    for channel in range(channels):
        point = torch.zeros(1, channels, size, size, dtype=torch.float64)
        point[0, channel, size // 2, size // 2] = 1
        maps = layer.radial(point)[:, -layer.hidden_channels :].transpose(0, 1)
        parts = [nn.functional.conv2d(maps, energy.stencils.unsqueeze(1), padding="same") for energy in layer.energies]
        rows.append(torch.cat(parts, dim=1).flatten(0, 1).flip(1, 2))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("dilation", [1, 2])
def test_energies_see_the_share_that_they_say(dilation: int) -> None:
    """Against least squares on responses to single points, and no random directions see as much."""
    torch.manual_seed(0)
    kernel = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    layer = SREHarmonicConv2d(3, 8, 3, padding=dilation, dilation=dilation, padding_mode="zeros").double()
    scale = layer.radial.kernel()[-2:].norm()

    def share() -> float:
        rows = responses(layer)
        spread = torch.zeros(8, 3, 2 * dilation + 1, 2 * dilation + 1, dtype=torch.float64)
        radial = project(kernel, layer.radial.basis)[0]
        spread[..., ::dilation, ::dilation] = kernel - (radial @ layer.radial.basis.flatten(1)).reshape(kernel.shape)
        flat = embed(spread, rows.shape[2:], [False, False]).flatten(1).T
        found = torch.linalg.lstsq(rows.flatten(1).T, flat, driver="gelsd").solution
        return float((rows.flatten(1).T @ found).square().sum() / kernel.square().sum())

    others = []
    for _ in range(5):
        layer.reset_parameters()
        others.append(share())
    seen = see_rest(layer, kernel)
    assert seen == pytest.approx(share(), rel=1e-9)
    assert seen > 1.2 * max(others)
    assert 0.5 * scale < layer.radial.kernel()[-2:].norm() < 2 * scale


@pytest.mark.parametrize("order", [0, 1])
def test_energies_see_all_of_what_they_consist_of(order: int) -> None:
    """A kernel that is a stencil, turned by any angle and in another strength for each channel, has one direction."""
    torch.manual_seed(0)
    layer = SREHarmonicConv2d(3, 6, 5, hidden_channels=1, profile="band", orthonormal=False, groups=1).double()
    stencils = layer.energies[order].stencils
    mixed = torch.einsum("oj,jhw->ohw", torch.randn(6, len(stencils), dtype=torch.float64), stencils)
    kernel = mixed.unsqueeze(1) * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).reshape(3, 1, 1)
    assert see_rest(layer, kernel) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, 2, 1, groups=2),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Conv2d(2, 4, 4, 2, 1),
        nn.Conv3d(2, 4, 3, padding=1),
        nn.Conv1d(2, 4, 5, padding=2),
    ],
    ids=str,
)
def test_shares_of_every_kind_of_layer(conv: Any) -> None:
    """What the radial part keeps and what energies see are parts of one whole; more hidden maps see more."""
    shares = []
    for hidden in (conv.groups, 4 * conv.groups):
        network = convert_to_sre(nn.Sequential(conv), conv=("harmonic", {"hidden_channels": hidden}))
        (entry,) = conversion_report(network).replaced
        assert entry.energy is not None
        assert entry.seen is not None
        assert 0 < entry.seen <= 1 - entry.energy + 1e-12
        shares.append(entry.seen)
    assert shares[0] <= shares[1] + 1e-12


def test_a_kernel_of_zeros_leaves_the_directions_as_they_are() -> None:
    layer = SREHarmonicConv2d(2, 4, 3)
    before = layer.radial.weight.clone()
    assert see_rest(layer, torch.zeros(4, 2, 3, 3)) == 0
    assert torch.equal(layer.radial.weight, before)
