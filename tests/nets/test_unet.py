"""SREUNet."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from monai_sre.nets import SREUNet
from tests.testers import Case, NetTester, assert_symmetric, lattice_symmetries, relative_error


def narrow(spatial_dims: int, **options: Any) -> SREUNet:
    return SREUNet(spatial_dims, 1, 2, **{"channels": (3, 4, 5), "kernel_size": 3, **options})


def net(spatial_dims: int, **options: Any) -> SREUNet:
    """A narrow network in eval mode and float64, with all its parts away from their initial values."""
    case = Case("", lambda: narrow(spatial_dims, **options), (1, 1, *[1] * spatial_dims))
    module = case.module(dtype=torch.float64)
    assert isinstance(module, SREUNet)
    return module


def noise(*size: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, dtype=torch.float64)


class TestSREUNet(NetTester):
    slow_cases = ("2d residual", "3d")
    cases = (
        Case("1d", lambda: narrow(1, kernel_size=5), (2, 1, 11), sizes=((8,), (5,)), bfloat16=0.2),
        Case(
            "2d",
            lambda: narrow(2, kernel_size=(9, 5, 3)),
            (2, 1, 13, 10),
            sizes=((12, 12), (9, 9), (1, 6)),
            bfloat16=0.2,
        ),
        Case(
            "2d residual",
            lambda: narrow(2, num_res_units=1, antialias=True, profile="gaussian", orthonormal=True),
            (2, 1, 10, 7),
            sizes=((8, 8), (11, 11)),
            bfloat16=0.2,
        ),
        Case(
            "3d",
            lambda: narrow(3, channels=(2, 3), norm=("group", {"num_groups": 1}), act="gelu"),
            (2, 1, 5, 6, 4),
            sizes=((6, 6, 6), (5, 4, 4)),
            bfloat16=0.2,
        ),
    )


# Size -----------------------------------------------------------------------------------------------------------------


def test_parameters() -> None:
    """Counted from the plan: 5 coefficients per 9 x 9 kernel, twice as many norm parameters as channels."""
    a, b, c = 32, 64, 128
    pairs = [(3, a), (a, a), (a, b), (b, b), (b, c), (c, c), (2 * b, b), (b, b), (2 * a, a), (a, a)]
    count = sum(5 * inner * outer + 2 * outer for inner, outer in pairs) + c * b + b * a + a * 2 + 2
    assert sum(parameter.numel() for parameter in SREUNet(2, 3, 2).parameters()) == count
    assert abs(count - 274_306) < 0.1 * 274_306  # the published network


def test_residual_units_add_shortcuts() -> None:
    """Two units per level: twice the convolutions, and a 1 x 1 shortcut with its norm where the channels change."""
    plain = [sum(p.numel() for p in narrow(2, num_res_units=units).parameters()) for units in (0, 1, 2)]
    changes = [(1, 3), (3, 4), (4, 5), (8, 4), (6, 3)]
    assert plain[1] - plain[0] == sum(inner * outer + 2 * outer for inner, outer in changes)
    assert plain[2] - plain[1] == sum(2 * (2 * width * width + 2 * width) for width in (3, 4, 5, 4, 3))


# Symmetry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(16, 40))
def test_commutes_at_every_size(size: int) -> None:
    """Square, and unequal: each remainder of the halvings meets others."""
    network = narrow(2, channels=(3, 4, 4, 5)).eval()
    with torch.no_grad():
        for other in (size, 16 + (17 * size + 5) % 24):
            assert_symmetric(network, torch.randn(1, 1, size, other), "map", 1e-5)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_small_size(ndim: int) -> None:
    """Down to one pixel."""
    network = net(ndim)
    for size in range(1, 9):
        x = noise(*[size] * (ndim - 1), 9 - size)
        assert network(x).shape == (1, 2, *x.shape[2:])
        assert_symmetric(network, x, "map", 1e-12, lattice_symmetries(ndim, swaps=False))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (3, 2), "num_res_units": 1},
        {"strides": ((2, 2), 1), "kernel_size": ((5, 5), 3, 3)},
        {"channels": (3, 4), "profile": "linear", "num_rings": (2, None)},
        {"antialias": True, "norm": "instance", "dropout_prob": 0.5},
        {"conv": ("harmonic", {"orders": (1, 2)})},
    ],
    ids=str,
)
def test_commutes_with_options(options: dict[str, Any]) -> None:
    network = net(2, **options)
    for size in ((12, 12), (13, 18), (17, 17)):
        assert_symmetric(network, noise(*size), "map", 1e-12)


@pytest.mark.parametrize("size", [(8, 9, 10), (7, 7, 11)])
def test_commutes_in_3d(size: tuple[int, int, int]) -> None:
    """All 48 symmetries."""
    assert_symmetric(net(3, channels=(2, 2, 3)), noise(*size), "map", 1e-12)


def test_in_plane_symmetry() -> None:
    """``axes=(1, 2)`` keeps the symmetries of the plane, and sees a flip of the first axis."""
    network, x = net(3, axes=(1, 2)), noise(6, 9, 8)
    assert_symmetric(network, x, "map", 1e-12, lattice_symmetries(3, axes=(1, 2)))
    assert relative_error(network(x.flip(2)), network(x).flip(2)) > 1e-3


# Anisotropic voxels ---------------------------------------------------------------------------------------------------


def geometries(network: nn.Module) -> list[Any]:
    """The spacing of the first convolution of each level on the way down."""
    assert isinstance(network, SREUNet)
    found = []
    for level in network.down:
        layers = [module for module in level.modules() if hasattr(module, "basis")]
        said = re.search(r"spacing=\(([^)]*)\)", layers[0].extra_repr())
        found.append(None if said is None else tuple(float(step) for step in said[1].split(",")))
    return found


def test_spacing_follows_the_strides() -> None:
    """5 x 1 x 1 mm under strides (1, 2, 2): 5 x 2 x 2, then 5 x 4 x 4, and 10 x 8 x 8 after a stride of 2."""
    voxel = torch.tensor([5.0, 1.0, 1.0])  # such as the pixdim of an image
    network = narrow(3, channels=(2, 2, 2, 2), strides=((1, 2, 2), (1, 2, 2), 2), spacing=voxel)
    assert geometries(network) == [(5.0, 1.0, 1.0), (5.0, 2.0, 2.0), (5.0, 4.0, 4.0), (10.0, 8.0, 8.0)]
    assert geometries(narrow(2, strides=((1, 2), (4, 2)))) == [None, (1.0, 2.0), None]


@pytest.mark.parametrize("options", [{"spacing": (4.0, 1.0, 1.0)}, {}], ids=str)
def test_anisotropic_strides(options: dict[str, Any]) -> None:
    """The symmetries that keep voxels and strides: the plane's, and flips of the first axis."""
    network = net(3, strides=((1, 2, 2), (1, 2, 2)), **options)
    kept = lattice_symmetries(3, axes=(1, 2)) + lattice_symmetries(3, swaps=False)
    for size in ((3, 9, 9), (5, 8, 11)):
        assert_symmetric(network, noise(*size), "map", 1e-12, kept)
    x = noise(9, 9, 9)
    assert relative_error(network(x.transpose(2, 4)), network(x).transpose(2, 4)) > 1e-3


def test_cubes_at_the_last_level_have_kernels_of_all_symmetries() -> None:
    """Voxels of 4 x 1 x 1 are cubes after two strides (1, 2, 2): the kernels there are those of an isotropic grid."""
    network = narrow(3, strides=((1, 2, 2), (1, 2, 2)), spacing=(4.0, 1.0, 1.0))
    bases = [
        next(module.basis for module in found.down[-1].modules() if hasattr(module, "basis"))
        for found in (network, narrow(3))
    ]
    torch.testing.assert_close(*bases)


# Deep supervision -----------------------------------------------------------------------------------------------------


def test_deep_supervision_gives_a_list_in_training() -> None:
    """One map per level on the way up, each on the input's grid; MONAI's loss takes it, and each head learns."""
    network = narrow(2, channels=(3, 4, 5, 6), deep_supervision=True).train()
    target = torch.randint(0, 2, (2, 1, 13, 18))
    outputs = network(torch.randn(2, 1, 13, 18))
    assert [output.shape for output in outputs] == [(2, 2, 13, 18)] * 3
    DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))(outputs, target).backward()
    for head in (network.head, *network.deep_heads):
        assert all(bool(parameter.grad.any()) for parameter in head.parameters())
    assert network.eval()(torch.randn(2, 1, 13, 18)).shape == (2, 2, 13, 18)


@pytest.mark.parametrize("strides", [None, ((1, 2), (2, 2), (3, 1))])
def test_deep_outputs_turn_too(strides: Any) -> None:
    network = net(2, channels=(3, 4, 5, 6), deep_supervision=True, strides=strides, norm="instance").train()
    for size in ((17, 13), (16, 16), (18, 18)):
        assert_symmetric(network, noise(*size), "map", 1e-12, lattice_symmetries(2, swaps=strides is None))


@pytest.mark.parametrize("size", [36, 37, 39])
def test_deep_maps_are_centred(size: int) -> None:
    """A ramp that is pooled to a level comes back as the same ramp: no shift by part of a coarse pixel."""
    network = narrow(2, channels=(1, 1, 1, 1), deep_supervision=True)
    coarse = ramp = torch.arange(float(size)).expand(1, 1, size, size)
    for head, stage in zip(network.deep_heads, network.down[1:], strict=False):
        coarse = stage[0](coarse)
        torch.nn.init.ones_(head.conv.weight)
        torch.nn.init.zeros_(head.conv.bias)
        logits = head(coarse, ramp)[:, :1]
        torch.testing.assert_close(logits[..., 8:-8], ramp[..., 8:-8], rtol=0, atol=1e-4)


def test_deep_supervision_scripts() -> None:
    network = narrow(2, channels=(3, 4, 5), deep_supervision=True, norm="instance")
    scripted, x = torch.jit.script(network), torch.randn(2, 1, 13, 10)
    torch.testing.assert_close(scripted.train()(x), network.train()(x))
    torch.testing.assert_close(scripted.eval()(x), network.eval()(x))


def test_deep_heads_alone_are_added() -> None:
    plain, deep = (set(narrow(2, deep_supervision=value).state_dict()) for value in (False, True))
    assert deep - plain == {"deep_heads.0.conv.weight", "deep_heads.0.conv.bias"}
    assert plain <= deep


# Options --------------------------------------------------------------------------------------------------------------


def test_options_reach_the_layers() -> None:
    network = narrow(
        2, num_rings=(2, 1, None), profile="linear", dropout_prob=0.3, norm="instance", act="gelu", algorithm="dense"
    )
    text = repr(network)
    for part in ("num_rings=1", "profile='linear'", "Dropout(p=0.3", "InstanceNorm2d", "GELU", "algorithm=dense"):
        assert part in text
    assert "ReLU" not in text
    assert "CentredBlurPool" in repr(narrow(2, antialias=True))
    assert "SREHarmonicConv2d" in repr(narrow(2, conv="harmonic"))
    mixed = SREUNet(2, 1, 2, (2, 3), conv=["radial", "harmonic"])  # one kind per level
    assert ["SREHarmonicConv2d" in repr(part) for part in (*mixed.down, *mixed.up)] == [False, True, False]
    sizes = [module.kernel_size for module in SREUNet(3, 1, 2, (2, 3)).modules() if hasattr(module, "basis")]
    assert set(sizes) == {(5, 5, 5)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spatial_dims": True}, ValueError, "spatial_dims must be 1, 2 or 3, got True"),
        ({"dropout_prob": True}, ValueError, "dropout_prob must be a number from 0 to 1, got True"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"spatial_dims": 2.0}, ValueError, "spatial_dims must be 1, 2 or 3, got 2.0"),
        ({"in_channels": 0}, ValueError, "in_channels must be an integer >= 1.*got 0"),
        ({"out_channels": "2"}, TypeError, "out_channels must be an integer >= 1.*got '2'"),
        ({"channels": (8,)}, ValueError, r"channels must be two numbers or more, one per level, got \(8,\)"),
        ({"channels": 8}, ValueError, "channels must be two numbers or more, one per level, got 8"),
        ({"channels": (8, 0)}, ValueError, "channels must be an integer >= 1"),
        ({"strides": (2,)}, ValueError, r"strides must be 2 entries, one less than channels, got \(2,\)"),
        ({"strides": 2}, ValueError, "strides must be 2 entries, one less than channels, got 2"),
        ({"strides": (2, 0)}, ValueError, "strides must be an integer >= 1"),
        ({"kernel_size": 4}, ValueError, r"kernel_size must be odd along every axis, got \(4, 4\)"),
        ({"kernel_size": (9, 9)}, ValueError, r"kernel_size must be one value or 3, one per level, got \(9, 9\)"),
        ({"num_rings": (3, 3)}, ValueError, r"num_rings must be one value or 3, one per level, got \(3, 3\)"),
        ({"num_res_units": -1}, ValueError, "num_res_units must be an integer >= 0.*got -1"),
        ({"spacing": (1.0,)}, ValueError, r"spacing must be None or 2 positive lengths, got \(1.0,\)"),
        ({"spacing": (1.0, -1.0)}, ValueError, "spacing must be"),
        ({"axes": (0, 2)}, ValueError, "axes must"),
        ({"profile": "cubic"}, ValueError, "profile must be one of.*got 'cubic'"),
        ({"conv": "dense"}, ValueError, "conv must be one of.*got 'dense'"),
        ({"conv": ("harmonic", {"profile": "band"})}, ValueError, "conv must not hold 'profile'"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be one of.*got 'fft'"),
        ({"deep_supervision": "false"}, TypeError, "deep_supervision must be True or False, got 'false'"),
        ({"dropout_prob": 1.5}, ValueError, "dropout_prob must be a number from 0 to 1, got 1.5"),
        ({"norm": "batches"}, ValueError, "norm='batches' gives no layer"),
        ({"act": "relue"}, ValueError, "act='relue' gives no layer"),
        ({"antialias": True, "strides": ((1, 2), 2)}, ValueError, "antialias=True needs strides that are alike"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        SREUNet(**{"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": (4, 4, 4), **options})


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8), (1, 8, 8), (2, 1, 8, 8, 8)])
def test_inputs_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, \*spatial\) with 2 spatial axes, got"):
        narrow(2)(torch.randn(shape))
