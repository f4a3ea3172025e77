"""What a conversion is asked for: one default, one place for each option, and the layers that it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from monai_sre import SREConv2d, SREHarmonicConv2d, convert_to_sre
from monai_sre.convert.options import Options, embed, make_layer, project
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
