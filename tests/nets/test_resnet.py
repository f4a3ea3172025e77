"""SREResNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import ResNet
from torch import nn

from monai_sre import SREResNet, sre_resnet18, sre_resnet34, sre_resnet50
from monai_sre.layers import CentredBlurPool
from tests.testers import Case, NetTester, assert_symmetric, lattice_symmetries, relative_error


def narrow(spatial_dims: int, **options: Any) -> SREResNet:
    return SREResNet(spatial_dims, 1, 3, **{"width": 4, **options})


def net(spatial_dims: int, **options: Any) -> nn.Module:
    """A narrow network in eval mode and float64, with all its parts away from their initial values."""
    return Case("", lambda: narrow(spatial_dims, **options), (1, 1, *[1] * spatial_dims)).module(dtype=torch.float64)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestSREResNet(NetTester):
    slow_cases = ("2d harmonic", "3d smooth")
    cases = (
        Case("2d", lambda: narrow(2), (2, 1, 13, 10), "vector", ((12, 12), (9, 9), (1, 6)), bfloat16=0.2),
        Case(
            "3d smooth",
            lambda: narrow(3, profile="gaussian", orthonormal=True, kernel_size=3, stem_kernel_size=3),
            (2, 1, 5, 6, 7),
            "vector",
            ((6, 6, 6), (5, 4, 4)),
            bfloat16=0.2,
        ),
        Case(
            "2d bottleneck",
            lambda: narrow(2, depth=50, width=2, max_pool=True, kernel_size=3, norm=("group", {"num_groups": 2})),
            (2, 1, 16, 11),
            "vector",
            ((10, 10), (11, 11)),
            bfloat16=0.3,
        ),
        Case(
            "2d harmonic",
            lambda: narrow(2, conv="harmonic", kernel_size=3, strides=(1, 2, 1, 2)),
            (2, 1, 9, 10),
            "vector",
            ((8, 8), (9, 9), (1, 6)),
            bfloat16=0.3,
        ),
        Case(
            "3d harmonic",
            lambda: narrow(3, conv=("harmonic", {"orders": (2,)}), kernel_size=3, stem_kernel_size=3),
            (2, 1, 5, 6, 7),
            "vector",
            ((6, 6, 6),),
            bfloat16=0.3,
            onnx=False,
        ),
        Case(
            "2d stem of stride 2, two kinds of stages",
            lambda: narrow(
                2, conv=["harmonic", "radial", "radial", "radial"], kernel_size=3, stem_stride=2, strides=(1, 2, 2, 1)
            ),
            (2, 1, 9, 10),
            "vector",
            ((8, 8), (9, 9), (1, 6), (7, 10)),
            bfloat16=0.3,
        ),
        Case(
            "3d blurred stem of stride 2",
            lambda: narrow(3, kernel_size=3, stem_stride=2, strides=(1, 2, 2, 1), antialias=True),
            (2, 1, 5, 6, 7),
            "vector",
            ((6, 6, 6),),
            bfloat16=0.3,
            onnx=False,
        ),
    )


# Size -----------------------------------------------------------------------------------------------------------------


def test_parameters_2d() -> None:
    """The published SRE-ResNet18 for RGB images and 9 classes."""
    assert parameters(sre_resnet18(2, 3, 9)) == 3_996_105


def test_parameters_3d() -> None:
    """The published SRE-R3D-18 has 3,849,227 for one channel and 11 classes, with a stem of (3, 7, 7).

    There the stem's rings follow its first axis alone: 2 of them. Here they reach as far as its longest axis: 4, that is, 2
    more for each of 64 channels.
    """
    assert parameters(sre_resnet18(3, 1, 11, stem_kernel_size=(3, 7, 7))) == 3_849_227 + 2 * 64


def test_parameters_harmonic() -> None:
    """At most 1.7 times those of the radial network, and with kernels of 5 less than half of the plain one's."""
    for dims, options in ((2, {"kernel_size": 5, "width": 32}), (3, {"width": 16})):
        count = parameters(sre_resnet18(dims, 1, 2, conv="harmonic", **options))
        assert count <= 1.7 * parameters(sre_resnet18(dims, 1, 2, **options))
        widths = [options["width"] * 2**level for level in range(4)]
        plain = ResNet(
            "basic", [2, 2, 2, 2], widths, spatial_dims=dims, n_input_channels=1, conv1_t_size=3, num_classes=2
        )
        assert count < 0.5 * parameters(plain)


def test_stages_of_two_kinds() -> None:
    """The stem is as the first stage, and behind its stride the maps are those of a first stage with that stride."""
    network = narrow(2, conv=["harmonic", "harmonic", "radial", "radial"], stem_stride=2, strides=(1, 2, 2, 2))
    kinds = [{type(module).__name__ for module in part.modules()} for part in (network.conv1, *network.stages)]
    assert ["HarmonicEnergy" in names for names in kinds] == [True, True, True, False, False]
    assert network.reduction == 16
    sizes = [level.shape[2:] for level in network.forward_features(torch.randn(1, 1, 29, 20))]
    assert sizes == [(15, 10), (8, 5), (4, 3), (2, 2)]


def test_depths() -> None:
    """A 3x3 band kernel has 2 coefficients where a plain one has 9: counted from the plan of He et al., Table 1."""
    widths = (64, 128, 256, 512)
    for build, blocks, expansion in ((sre_resnet34, (3, 4, 6, 3), 1), (sre_resnet50, (3, 4, 6, 3), 4)):
        count, channels = 2 * 3 * 64 + 2 * 64, 64
        for width, repeats in zip(widths, blocks, strict=True):
            for _ in range(repeats):
                out = width * expansion
                if expansion == 1:
                    count += 2 * (channels * width + width * width) + 4 * width
                else:
                    count += channels * width + 2 * width * width + width * out + 4 * width + 2 * out
                count += (channels * out + 2 * out) if channels != out else 0
                channels = out
        count += channels * 10 + 10
        assert parameters(build(2, 3, 10, kernel_size=3, stem_kernel_size=3)) == count


# Symmetry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(24, 66))
def test_invariant_at_every_size(size: int) -> None:
    """Square, and unequal: each remainder of the three halvings meets others."""
    network = narrow(2, width=4).eval()
    for other in (size, 24 + (17 * size + 5) % 42):
        x = torch.randn(1, 1, size, other)
        group = lattice_symmetries(2)
        with torch.no_grad():
            upright = torch.cat([t(x) for t in group if t(x).shape == x.shape])
            turned = torch.cat([t(x) for t in group if t(x).shape != x.shape]) if size != other else upright
            logits = torch.cat([network(upright), network(turned)])
        assert relative_error(logits, logits[:1].expand_as(logits)) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"max_pool": True}, {"strides": (2, 3, 1, 2)}, {"depth": 50, "width": 2, "kernel_size": (9, 9, 5, 5)}],
    ids=str,
)
def test_invariant_with_options(options: dict[str, Any]) -> None:
    network = net(2, **options)
    for size in ((24, 24), (25, 30), (28, 28), (31, 26), (33, 33)):
        assert_symmetric(network, torch.randn(1, 1, *size, dtype=torch.float64), "vector", 1e-12)


@pytest.mark.parametrize("size", [(8, 9, 10), (12, 12, 12), (7, 7, 11)])
def test_invariant_in_3d(size: tuple[int, int, int]) -> None:
    """All 48 symmetries."""
    assert_symmetric(net(3), torch.randn(1, 1, *size, dtype=torch.float64), "vector", 1e-12)


@pytest.mark.parametrize("size", [*range(24, 32), 64, 65])
def test_generators_in_3d_at_large_sizes(size: int) -> None:
    """A flip, a swap and a cycle make all 48: every remainder of three halvings, along one long axis."""
    network, x = net(3, kernel_size=3), torch.randn(1, 1, size, 5, 6, dtype=torch.float64)
    generators = (lambda y: y.flip(2), lambda y: y.transpose(2, 3), lambda y: y.movedim(2, 4))
    assert_symmetric(network, x, "vector", 1e-12, generators)


def test_in_plane_symmetry() -> None:
    """``axes=(1, 2)`` keeps the symmetries of the plane, and sees a flip of the first axis."""
    network, x = net(3, axes=(1, 2), kernel_size=3), torch.randn(1, 1, 6, 9, 8, dtype=torch.float64)
    assert_symmetric(network, x, "vector", 1e-12, lattice_symmetries(3, axes=(1, 2)))
    assert relative_error(network(x.flip(2)), network(x)) > 1e-3


@pytest.mark.parametrize("size", [(21, 14), (16, 16)])
def test_features(size: tuple[int, int]) -> None:
    """Maps of every stage turn with the image, at ceil(size / stride); the embedding is their mean and stays."""
    network, x = net(2, width=2), torch.randn(2, 1, *size, dtype=torch.float64)
    assert isinstance(network, SREResNet)
    assert_symmetric(network.forward_features, x, "map", 1e-12)
    assert_symmetric(network.embed, x, "vector", 1e-12)
    levels = network.forward_features(x)
    assert [level.shape for level in levels] == [
        (2, 2 * 2**level, *[-(-length // 2**level) for length in size]) for level in range(4)
    ]
    torch.testing.assert_close(network.embed(x), levels[-1].mean((2, 3)))
    torch.testing.assert_close(network(x), network.fc(levels[-1].mean((2, 3))))
    assert network.num_features == levels[-1].shape[1]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_small_size(ndim: int) -> None:
    """Down to one pixel."""
    network = net(ndim, kernel_size=5)
    for size in range(1, 9):
        x = torch.randn(2, 1, *[size] * (ndim - 1), 9 - size, dtype=torch.float64)
        out = network(x)
        assert out.shape == (2, 3)
        assert bool(out.isfinite().all())
        assert_symmetric(network, x, "vector", 1e-12, lattice_symmetries(ndim, swaps=False))


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", ("instance", {"track_running_stats": True, "affine": True})])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_checkpointing_gives_the_same_training(compiled: bool, norm: Any) -> None:
    """The same gradients, and the same statistics of norms, though stages run twice."""
    plain = narrow(2, kernel_size=3, norm=norm).double()
    again = narrow(2, kernel_size=3, norm=norm, checkpointing=True).double()
    again.load_state_dict(plain.state_dict())
    call = torch.compile(again, fullgraph=True, backend="aot_eager") if compiled else again
    x = torch.randn(4, 1, 13, 16, dtype=torch.float64)
    for network in (plain, call):
        network(x).square().sum().backward()
    for ours, theirs in zip(again.parameters(), plain.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-9
    for ours, theirs in zip(again.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointing_keeps_no_activations_inside_stages() -> None:
    def stored(network: nn.Module) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(2, 1, 32, 32))
        return sum(sizes)

    assert stored(narrow(2, checkpointing=True)) < 0.5 * stored(narrow(2))


def test_width_of_the_blur_reaches_the_layers() -> None:
    widths = [layer.width for layer in narrow(2, antialias=1.2).modules() if isinstance(layer, CentredBlurPool)]
    assert set(widths) == {1.2}
    with pytest.raises(ValueError, match=r"antialias must be True, False or a positive width, got -1"):
        narrow(2, antialias=-1)


@pytest.mark.parametrize(("depth", "blurs"), [(18, 3), (50, 6)])
def test_antialiased_networks_keep_names_and_symmetry(depth: int, blurs: int) -> None:
    network = net(2, depth=depth, antialias=True)
    assert sum(isinstance(module, CentredBlurPool) for module in network.modules()) == blurs
    assert network.state_dict().keys() == narrow(2, depth=depth).state_dict().keys()
    assert_symmetric(network, torch.randn(1, 1, 13, 10, dtype=torch.float64), "vector", 1e-12)


def test_options_reach_the_layers() -> None:
    network = narrow(
        2,
        num_rings=(None, 3, 2, None),
        profile="linear",
        dropout_prob=0.3,
        norm="instance",
        act="gelu",
        algorithm="dense",
    )
    text = repr(network)
    for part in ("num_rings=3", "profile='linear'", "Dropout(p=0.3", "InstanceNorm2d", "GELU", "algorithm=dense"):
        assert part in text
    assert "ReLU" not in text
    kernels = [layer.kernel_size for name, layer in narrow(2).named_modules() if name.endswith("0.conv1")]
    assert kernels == [(9, 9), (9, 9), (5, 5), (5, 5)]
    kernels = [
        layer.kernel_size
        for name, layer in narrow(3, kernel_size=((1, 3, 3), 3, 5, 3)).named_modules()
        if name.endswith("0.conv1")
    ]
    assert kernels == [(1, 3, 3), (3, 3, 3), (5, 5, 5), (3, 3, 3)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spatial_dims": True}, ValueError, "spatial_dims must be 1, 2 or 3, got True"),
        ({"dropout_prob": True}, ValueError, "dropout_prob must be a number from 0 to 1, got True"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"spatial_dims": 2.0}, ValueError, "spatial_dims must be 1, 2 or 3, got 2.0"),
        ({"in_channels": 0}, ValueError, "in_channels must be an integer >= 1.*got 0"),
        ({"num_classes": 0}, ValueError, "num_classes must be an integer >= 1.*got 0"),
        ({"num_classes": "9"}, TypeError, "num_classes must be an integer >= 1.*got '9'"),
        ({"depth": 101}, ValueError, r"depth must be one of \(18, 34, 50\), got 101"),
        ({"width": -4}, ValueError, "width must be an integer >= 1.*got -4"),
        ({"kernel_size": 4}, ValueError, r"kernel_size must be odd along every axis, got \(4, 4\)"),
        (
            {"kernel_size": (9, 9, 5)},
            ValueError,
            r"kernel_size must be one value or 4, one per stage, got \(9, 9, 5\)",
        ),
        ({"kernel_size": 3.0}, ValueError, "kernel_size must be one value or 4, one per stage, got 3.0"),
        ({"stem_kernel_size": 2}, ValueError, "kernel_size must be odd"),
        ({"stem_kernel_size": 2, "stem_stride": 2}, ValueError, "kernel_size must be odd along every axis, got 2"),
        ({"stem_stride": 0}, ValueError, "stem_stride must be an integer >= 1.*got 0"),
        ({"conv": ["harmonic", "radial"]}, ValueError, "conv must be one value or 4, one per stage, got"),
        ({"conv": ["radial"] * 3 + ["dense"]}, ValueError, "conv must be one of .* got 'dense'"),
        ({"strides": (1, 2, 2)}, ValueError, r"strides must be an integer >= 1 or 4 of them, got \(1, 2, 2\)"),
        ({"strides": (1, 2, 2, 0)}, ValueError, "strides must be an integer >= 1"),
        ({"num_rings": (3, 3)}, ValueError, r"num_rings must be one value or 4, one per stage, got \(3, 3\)"),
        ({"num_rings": 9}, ValueError, "num_rings=9 is too many"),
        ({"max_pool": "false"}, TypeError, "max_pool must be True or False, got 'false'"),
        ({"checkpointing": "false"}, TypeError, "checkpointing must be True or False, got 'false'"),
        ({"profile": "cubic"}, ValueError, "profile must be one of.*got 'cubic'"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be one of.*got 'fft'"),
        ({"dropout_prob": 1.5}, ValueError, "dropout_prob must be a number from 0 to 1, got 1.5"),
        ({"norm": "batches"}, ValueError, "norm='batches' gives no layer.*Available options"),
        (
            {"norm": ("group", {"num_groups": 3})},
            ValueError,
            r"norm=\('group', {'num_groups': 3}\) gives no layer for 64",
        ),
        ({"act": "relue"}, ValueError, "act='relue' gives no layer"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        SREResNet(**{"spatial_dims": 2, "in_channels": 3, "num_classes": 9, **options})


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8), (1, 8, 8), (2, 1, 8, 8, 8)])
def test_inputs_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, \*spatial\) with 2 spatial axes, got"):
        narrow(2)(torch.randn(shape))
