"""The radial layers."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
import io
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from monai_sre import convert_to_sre
from monai_sre.layers import (
    SREConv1d,
    SREConv2d,
    SREConv3d,
    SREConvTranspose1d,
    SREConvTranspose2d,
    SREConvTranspose3d,
    SREHarmonicConv2d,
    SREHarmonicConv3d,
)
from monai_sre.layers.centred import CentredConv2d, CentredConv3d, CentredConvTranspose2d
from monai_sre.nets import SREResNet, SREUNet
from monai_sre.ops.radial import centred_basis
from monai_sre.ops.ring.convolution import ring_conv
from tests.testers import Case, LayerTester, check_algorithms, check_compiled, lattice_symmetries, relative_error

SMOOTH: dict[str, Any] = {"profile": "gaussian", "orthonormal": True}
CASES = (
    Case("1d", lambda: SREConv1d(2, 3, 5, padding=2), (2, 2, 8), sizes=((7,), (5,))),
    Case("2d", lambda: SREConv2d(2, 3, 5, padding="same"), (2, 2, 6, 7), sizes=((7, 7), (6, 6), (1, 4))),
    Case("3d", lambda: SREConv3d(2, 2, 3, padding=1), (2, 2, 3, 4, 5), sizes=((4, 4, 4), (3, 3, 3))),
    Case(
        "2d reflect groups dilation",
        lambda: SREConv2d(4, 4, 3, padding=2, dilation=2, groups=2, padding_mode="reflect", bias=False, **SMOOTH),
        (2, 4, 6, 7),
        sizes=((7, 7), (6, 6)),
    ),
    Case("2d stride", lambda: SREConv2d(2, 3, 3, stride=2, padding=1), (2, 2, 7, 9), sizes=((7, 7), (5, 1))),
    Case(
        "3d in-plane",
        lambda: SREConv3d(2, 2, (3, 5, 5), padding="same", axes=(1, 2)),
        (2, 2, 4, 4, 5),
        sizes=((3, 4, 4), (2, 5, 5)),
        symmetries=lattice_symmetries(3, axes=(1, 2)),
    ),
    Case(
        "3d spacing",
        lambda: SREConv3d(2, 2, (3, 5, 5), padding="same", spacing=(2, 1, 1)),
        (2, 2, 4, 4, 5),
        sizes=((3, 4, 4),),
        symmetries=[*lattice_symmetries(3, axes=(1, 2)), *lattice_symmetries(3, swaps=False)],
    ),
    Case("2d ring", lambda: SREConv2d(2, 3, 5, padding="same", algorithm="ring"), (2, 2, 6, 7), sizes=((7, 7),)),
    Case("3d ring", lambda: SREConv3d(2, 2, 3, padding=1, algorithm="ring"), (2, 2, 3, 4, 5), sizes=((4, 4, 4),)),
    Case("transposed 1d", lambda: SREConvTranspose1d(2, 3, 5, stride=2, padding=2), (2, 2, 5), sizes=((4,), (1,))),
    Case(
        "transposed 2d",
        lambda: SREConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2),
        (2, 4, 4, 5),
        sizes=((4, 4), (5, 5), (1, 3)),
    ),
    Case("transposed 3d", lambda: SREConvTranspose3d(2, 2, 3, stride=2), (2, 2, 2, 3, 4), sizes=((2, 2, 2),)),
)


class TestLayers(LayerTester):
    cases = CASES
    slow_cases = ("2d reflect groups dilation", "3d in-plane", "2d ring", "transposed 2d")


@pytest.mark.parametrize("case", [case for case in CASES if "transposed" not in case.name], ids=lambda case: case.name)
def test_algorithms_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check_algorithms(case, monkeypatch)


def test_compile_inductor() -> None:
    check_compiled(CASES[1], "inductor")


# Against torch.nn -----------------------------------------------------------------------------------------------------

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PLAIN_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
RADIAL = {1: SREConv1d, 2: SREConv2d, 3: SREConv3d}
RADIAL_TRANSPOSED = {1: SREConvTranspose1d, 2: SREConvTranspose2d, 3: SREConvTranspose3d}
SIZES = {1: (13,), 2: (9, 12), 3: (7, 6, 8)}

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": 5, "padding": "same"},
    {"kernel_size": 5, "padding": "valid", "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 5, "stride": 3, "padding": 4, "groups": 2},
    {"kernel_size": 3, "dilation": 2, "padding": "same", "groups": 4},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": 1, "padding_mode": "replicate", "stride": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 2, "padding_mode": "circular"},
    {"kernel_size": 5, "padding": 2, "circular": False},
    {"kernel_size": 5, "padding": 2, "num_rings": 2, "orthonormal": True},
    {"kernel_size": 5, "padding": 2, "profile": "linear"},
    {"kernel_size": 5, "padding": 2, "profile": ("gaussian", {"width": 0.5}), "orthonormal": True},
]
UNEQUAL: list[tuple[int, dict[str, Any]]] = [
    (2, {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)}),
    (2, {"kernel_size": (1, 5), "padding": "same", "padding_mode": "circular"}),
    (3, {"kernel_size": (1, 3, 5), "stride": (1, 2, 1), "padding": (0, 1, 2), "spacing": (3.0, 1.0, 1.0)}),
    (3, {"kernel_size": (3, 5, 3), "padding": "same", "padding_mode": "replicate", "axes": (0, 2)}),
]
TRANSPOSED: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1},
    {"kernel_size": 3, "stride": 3, "groups": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "output_padding": 1, "orthonormal": True},
]
GEOMETRY = ("num_rings", "profile", "circular", "orthonormal", "spacing", "axes")


def assert_equals_plain(layer: nn.Module, plain: nn.Module, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Values, and gradients by input, weight (through the chain rule) and bias; batched and unbatched."""
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    with torch.no_grad():
        plain.weight.copy_(torch.einsum("oib,b...->oi...", layer.weight, layer.basis))
        if layer.bias is not None:
            plain.bias.copy_(layer.bias.uniform_(-1, 1))
    for shape in ((2, layer.in_channels, *size), (layer.in_channels, *size)):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        ours, theirs = layer(x), plain(x)
        assert relative_error(ours, theirs) < tolerance
        slope = torch.randn_like(theirs)
        gradients = torch.autograd.grad(ours, [x, *layer.parameters()], slope)
        expected = list(torch.autograd.grad(theirs, [x, *plain.parameters()], slope))
        expected[1] = (expected[1].unsqueeze(2) * layer.basis).flatten(3).sum(3)
        for actual, wanted in zip(gradients, expected, strict=True):
            assert relative_error(actual, wanted) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(
    ("ndim", "options"), [*((ndim, o) for ndim in (1, 2, 3) for o in OPTIONS), *UNEQUAL], ids=lambda value: str(value)
)
def test_equals_torch(ndim: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    plain_options = {name: value for name, value in options.items() if name not in GEOMETRY}
    layer = RADIAL[ndim](4, 8, **options, dtype=dtype)
    plain = PLAIN[ndim](4, 8, **plain_options, dtype=dtype)
    assert_equals_plain(layer, plain, SIZES[ndim], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_equals_torch(ndim: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    plain_options = {name: value for name, value in options.items() if name not in GEOMETRY}
    layer = RADIAL_TRANSPOSED[ndim](4, 6, **options, dtype=dtype)
    plain = PLAIN_TRANSPOSED[ndim](4, 6, **plain_options, dtype=dtype)
    assert_equals_plain(layer, plain, SIZES[ndim], dtype)


def test_positional_arguments_are_those_of_torch() -> None:
    """In number, order and meaning, up to ``dtype``."""
    for radial, plain in ((SREConv2d, nn.Conv2d), (SREConvTranspose2d, nn.ConvTranspose2d)):
        ours = list(inspect.signature(radial.__init__).parameters.values())
        theirs = list(inspect.signature(plain.__init__).parameters.values())
        assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
        assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
        assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in ours[len(theirs) :])


@pytest.mark.parametrize("output_size", [[13, 9], [14, 10], [1, 4, 14, 9]], ids=str)
def test_output_size(output_size: list[int]) -> None:
    layer = SREConvTranspose2d(2, 4, 3, stride=2, bias=False)
    plain = nn.ConvTranspose2d(2, 4, 3, stride=2, bias=False)
    plain.weight.data = layer.kernel().detach()
    x = torch.randn(1, 2, 6, 4)
    assert relative_error(layer(x, output_size), plain(x, output_size)) < 1e-5
    for wrong in ([12, 9], [15, 9], [13], [13, 9, 9]):
        with pytest.raises(ValueError, match="output_size"):
            layer(x, wrong)


def test_kernel_is_differentiable_and_in_torch_layout() -> None:
    layer = SREConv2d(4, 6, 5, groups=2)
    assert layer.kernel().shape == nn.Conv2d(4, 6, 5, groups=2).weight.shape
    (gradient,) = torch.autograd.grad(layer.kernel().sum(), layer.weight)
    assert torch.equal(gradient, torch.tensor([1.0, 8.0, 12.0]).expand(6, 2, 3))  # taps per ring


def test_meta_device() -> None:
    """Built without memory, then placed and refilled, as ``torch.nn`` layers can be."""
    layer = SREConv2d(2, 3, 5, device="meta", profile="gaussian")
    assert layer.weight.is_meta
    assert layer.basis.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer.basis, SREConv2d(2, 3, 5, profile="gaussian").basis)
    assert bool(layer(torch.randn(1, 2, 6, 6)).isfinite().all())


def harmonic_with_weight_norm() -> torch.nn.Module:
    layer = SREHarmonicConv2d(2, 8, 3, groups=2)
    weight_norm(layer.radial)
    return layer


def test_weights_assigned_on_the_meta_device() -> None:
    """As large networks are loaded, without memory for a first set of weights."""
    for make, shape in (
        (lambda: SREConv2d(2, 3, 5, profile=("gaussian", {"learn_width": True})), (1, 2, 6, 7)),
        (lambda: SREHarmonicConv3d(2, 4, 3, padding=1), (1, 2, 4, 5, 6)),
        (lambda: SREUNet(2, 2, 3, channels=(4, 8), conv="harmonic"), (1, 2, 13, 16)),
        (lambda: weight_norm(SREConv2d(2, 3, 5)), (1, 2, 6, 7)),
        (harmonic_with_weight_norm, (1, 2, 6, 7)),
    ):
        source = make().eval()
        with torch.device("meta"):
            network = make()
        network.load_state_dict(source.state_dict(), assign=True)
        x = torch.randn(shape)
        assert torch.equal(network.eval()(x), source(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: SREConv2d(2, 3, 5, profile=("gaussian", {"learn_width": True}), dtype=dtype),
        lambda dtype: SREHarmonicConv3d(2, 4, 3, dtype=dtype),
    ],
)
def test_constants_have_the_precision_of_weights_that_are_assigned(
    make: Callable[[torch.dtype], torch.nn.Module],
) -> None:
    exact, single = make(torch.float64), make(torch.float32)
    single.load_state_dict(exact.state_dict(), assign=True)
    for one, other in zip(single.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "make", [SREConv2d, SREConvTranspose2d, partial(SREConv2d, profile=("gaussian", {"learn_width": True}))]
)
def test_parameters_given_to_a_layer_without_a_basis_are_refused(make: Callable[..., nn.Module]) -> None:
    """As to a skeleton on the meta device: what torch reads from a basis there is memory as it finds it."""
    layer = make(2, 3, 5)
    skeleton = copy.deepcopy(layer).to("meta")
    x, parameters = torch.randn(1, 2, 9, 9), dict(layer.named_parameters())
    with pytest.raises(ValueError, match="basis is on the meta device, without values"):
        functional_call(skeleton, parameters, (x,))
    assert torch.equal(functional_call(skeleton, {**parameters, **dict(layer.named_buffers())}, (x,)), layer(x))


@pytest.mark.parametrize("make", [SREConv2d, SREConvTranspose2d, SREHarmonicConv2d])
def test_a_move_that_changes_nothing_leaves_the_graph_its_constants(make: Callable[..., nn.Module]) -> None:
    layer, x = make(4, 4, 5), torch.randn(1, 4, 9, 9)
    expected = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    loss = layer(x).sum()
    layer.to("cpu").float()
    for found, value in zip(torch.autograd.grad(loss, list(layer.parameters())), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_goes_on_beyond_small_maps(mode: str) -> None:
    """Where torch stops, at a padding of the size of the map; batched or not."""
    layer = SREConv2d(1, 2, 7, padding=3, padding_mode=mode).double()
    x = torch.randn(1, 1, 2, 9, dtype=torch.float64)
    extended = np.pad(
        x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), {"circular": "wrap", "replicate": "edge"}.get(mode, mode)
    )
    expected = functional.conv2d(torch.from_numpy(extended), layer.kernel(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])


def test_default_device_without_values() -> None:
    with torch.device("meta"):
        layer = SREConv2d(2, 3, 5, profile=("gaussian", {"learn_width": True}))
    assert layer.basis.is_meta
    assert layer.squares.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    torch.testing.assert_close(layer.current_basis(), SREConv2d(2, 3, 5, profile="gaussian").basis)


def test_meta_tensors_take_the_ring_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def watched(*args: Any) -> torch.Tensor:
        calls.append(args)
        return ring_conv(*args)

    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", watched)
    layer = SREConv2d(2, 3, 5, padding=2, algorithm="ring")
    layer(MetaTensor(torch.randn(1, 2, 8, 8)))
    assert len(calls) == 1


def test_repr_names_what_is_not_default() -> None:
    assert repr(SREConv2d(2, 4, 5)) == "SREConv2d(2, 4, kernel_size=(5, 5), num_rings=3)"
    text = repr(SREConvTranspose2d(2, 4, 3, 2, 1, 1, 2, False, profile="linear", circular=False, algorithm="dense"))
    for part in ("stride=(2, 2)", "padding=(1, 1)", "output_padding=(1, 1)", "groups=2", "bias=False"):
        assert part in text
    for part in ("profile='linear'", "circular=False", "algorithm=dense"):
        assert part in text


# Initialisation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ndim", "kernel_size", "size", "seeds"),
    [(2, 3, 32, 6), (2, 5, 32, 6), (2, 9, 32, 6), (3, 3, 12, 4), (3, 5, 12, 3), (3, 9, 10, 2)],
)
@pytest.mark.parametrize("smooth", [False, True], ids=["band", "gaussian"])
def test_initialisation_keeps_the_scale(ndim: int, kernel_size: int, size: int, seeds: int, smooth: bool) -> None:
    """White noise through 10 layers with ReLU: activations keep their standard deviation within a factor of 3.

    The variance is averaged over networks, and borders are periodic: zeros around an image of a kernel's size are a loss of
    power that no initialisation should make up for.
    """
    if smooth and (ndim, kernel_size) not in ((2, 9), (3, 5)):
        pytest.skip("the smooth profile is checked at one size per dimension")
    options: dict[str, Any] = SMOOTH if smooth else {}
    variance = torch.zeros(10)
    for seed in range(seeds):
        torch.manual_seed(seed)
        x = torch.randn(1, 32, *[size] * ndim)
        with torch.no_grad():
            for index in range(10):
                layer = RADIAL[ndim](32, 32, kernel_size, padding="same", padding_mode="circular", **options)
                x = layer(x).relu()
                variance[index] += x.var() / seeds
    ratio = (variance / variance[0]).sqrt()
    assert 1 / 3 < ratio.min() <= ratio.max() < 3


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_initialisation_keeps_the_scale(stride: int) -> None:
    """An output of a transposed convolution sees only some of the taps, and fewer with a larger stride."""
    powers = []
    for seed in range(10):
        torch.manual_seed(seed)
        layer = SREConvTranspose2d(32, 32, 5, stride=stride, padding=2, bias=False)
        x = torch.randn(4, 32, 16, 16).relu()
        with torch.no_grad():
            y = layer(x)[..., 4:-4, 4:-4]
        powers.append(float(y.square().mean() / x.square().mean()))
    assert 0.5 < sum(powers) / len(powers) < 4.0  # a gain of 2 for the ReLU behind it, as initial_std weighs them


# Against the official package -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> ModuleType:
    """The layers of SRE-Conv 1.0.2, loaded by path: importing the package needs torchio and torchvision."""
    pytest.importorskip("scipy")
    try:
        files = importlib.metadata.files("SRE-Conv") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the official package SRE-Conv is not installed")
    if importlib.metadata.version("SRE-Conv") != "1.0.2":
        pytest.skip("parity is with SRE-Conv 1.0.2")
    path = next(file.locate() for file in files if file.name == "sre_conv.py")
    spec = importlib.util.spec_from_file_location("official_sre_conv", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_layer(official: ModuleType, ndim: int, kernel_size: int, **options: Any) -> nn.Module:
    """An official layer built through its base class: the public constructors cannot reach ``force_circular``."""
    kind = {2: official.SRE_Conv2d, 3: official.SRE_Conv3d}[ndim]
    layer = kind.__new__(kind)
    chosen = {"stride": 1, "padding": 0, "dilation": 1, **options}
    for name in ("stride", "padding", "dilation"):
        chosen[name] = (chosen[name],) * ndim if isinstance(chosen[name], int) else chosen[name]
    official._SRE_ConvNd.__init__(layer, 4, 6, (kernel_size,) * ndim, **chosen)
    return layer


PARITY: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    *((k, {"circular": circular}, {"padding": "same"}) for k in (3, 5, 7, 9) for circular in (True, False)),
    (11, {}, {"padding": 5}),
    (5, {"num_rings": 2}, {}),
    (7, {"num_rings": 3}, {"padding": 3}),
    (9, {"num_rings": 3}, {"padding": 4}),
    (5, {"num_rings": 3, "circular": False}, {}),
    (7, {"num_rings": 3, "circular": False}, {"padding": 3}),
    (5, {}, {"stride": 2, "padding": 2}),
    (3, {}, {"stride": 3, "padding": 1, "bias": False}),
    (5, {}, {"dilation": 2, "padding": "same"}),
    (3, {"circular": False}, {"dilation": 2, "stride": 2, "padding": 2}),
    (5, {}, {"groups": 2, "padding": 2}),
    (5, {}, {"padding": 2, "padding_mode": "reflect"}),
    (5, {}, {"padding": 2, "padding_mode": "replicate", "stride": 2}),
    (5, {"circular": False}, {"padding": 2, "padding_mode": "circular", "groups": 2}),
    (3, {}, {"padding": "valid"}),
]


@pytest.mark.parametrize(
    ("ndim", "kernel_size", "ours", "options"),
    [(ndim, *case) for ndim in (2, 3) for case in PARITY if (ndim, case[0]) not in ((3, 9), (3, 11))],
    ids=str,
)
def test_parity_with_the_official_layer(
    official: ModuleType, ndim: int, kernel_size: int, ours: dict[str, Any], options: dict[str, Any]
) -> None:
    theirs = official_layer(
        official, ndim, kernel_size, sre_k=ours.get("num_rings"), force_circular=ours.get("circular", True), **options
    )
    layer = RADIAL[ndim](4, 6, kernel_size, **options, **ours, algorithm="dense")
    layer.load_state_dict({name: value for name, value in theirs.state_dict().items() if name != "weight_index_mat"})
    x = torch.randn(2, 4, *((11, 14) if ndim == 2 else (7, 8, 9)))
    assert relative_error(layer(x), theirs(x)) < 1e-5
    assert relative_error(layer.eval()(x), theirs.eval()(x)) < 1e-5


# Defects of the official package --------------------------------------------------------------------------------------


def test_eval_mode_keeps_nothing_stale() -> None:
    """Official defect 1: in eval mode, the output followed neither an optimiser step nor a load, and backward worked once."""
    layer, x = SREConv2d(2, 3, 5).eval(), torch.randn(1, 2, 8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        before = layer(x)
        before.square().mean().backward()
        optimizer.step()
        fresh = SREConv2d(2, 3, 5)
        fresh.load_state_dict(layer.state_dict())
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), fresh(x))


def test_saved_layers_stay_small() -> None:
    """Official defect 1: a saved layer held its dense kernel. A 9x9 kernel has 5 rings for 81 taps."""
    layer = SREConv2d(64, 64, 9).eval()
    layer(torch.randn(1, 64, 9, 9))
    learned = sum(4 * parameter.numel() for parameter in layer.parameters())
    for thing in (layer, layer.state_dict()):
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        assert learned < len(buffer.getvalue()) < learned + 20_000


def test_anisotropic_kernels_use_every_axis() -> None:
    """Official defect 2: the rings followed the first axis alone, so a (3, 7, 7) kernel had 19 live taps of 147."""
    basis = SREConv3d(1, 1, (3, 7, 7)).basis
    inside = [z * z + y * y + x * x < 3.5**2 for z in (-1, 0, 1) for y in range(-3, 4) for x in range(-3, 4)]
    assert len(basis) == 4
    assert int((basis.sum(0) > 0).sum()) == sum(inside) > 19


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dtype_argument(ndim: int, dtype: torch.dtype) -> None:
    """Official defect 2: ``dtype=`` crashed in forward, and the 1-D and transposed layers always."""
    for kind in (RADIAL[ndim], RADIAL_TRANSPOSED[ndim]):
        layer = kind(2, 3, 3, padding=1, dtype=dtype)
        assert {tensor.dtype for tensor in (layer.weight, layer.bias, layer.basis)} == {dtype}
        out = layer(torch.randn(1, 2, *[5] * ndim, dtype=dtype))
        assert out.dtype == dtype
        assert out.shape == (1, 3, *[5] * ndim)


# Arguments that cannot work -------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"in_channels": 0}, ValueError, "in_channels must be an integer >= 1.*got 0"),
    ({"in_channels": 2.0}, TypeError, "in_channels must be an integer >= 1.*got 2.0"),
    ({"out_channels": -1}, ValueError, "out_channels must be an integer >= 1.*got -1"),
    ({"kernel_size": 4}, ValueError, r"kernel_size must be odd.*\(4, 4\)"),
    ({"kernel_size": (3, 2)}, ValueError, r"kernel_size must be odd.*\(3, 2\)"),
    ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be .* 2 of them, got \(3, 3, 3\)"),
    ({"kernel_size": 0}, ValueError, "kernel_size must be an integer >= 1.*got 0"),
    ({"kernel_size": "3"}, TypeError, "kernel_size must be an integer >= 1.*got '3'"),
    ({"stride": 0}, ValueError, "stride must be an integer >= 1.*got 0"),
    ({"stride": True}, TypeError, "stride must be an integer >= 1.*got True"),
    ({"dilation": (1, 0)}, ValueError, r"dilation must be an integer >= 1.*got \(1, 0\)"),
    ({"padding": -1}, ValueError, "padding must be an integer >= 0.*got -1"),
    ({"padding": None}, TypeError, "padding must be an integer >= 0.*got None"),
    ({"padding": "full"}, ValueError, "padding must be 'same', 'valid', or integers >= 0, got 'full'"),
    ({"padding": "same", "stride": 2}, ValueError, r"padding='same' needs stride 1, got stride=\(2, 2\)"),
    ({"padding_mode": "mirror"}, ValueError, r"padding_mode must be one of \('zeros'.*got 'mirror'"),
    ({"groups": 4}, ValueError, "groups must divide in_channels=6, got 4"),
    ({"groups": 3}, ValueError, "groups must divide out_channels=4, got 3"),
    ({"groups": 0}, ValueError, "groups must be an integer >= 1.*got 0"),
    ({"dtype": torch.int32}, TypeError, "dtype must be None or a floating-point torch.dtype, got torch.int32"),
    ({"num_rings": 6}, ValueError, r"num_rings=6 is too many .*no tap lies in ring 1; use at most 3 rings"),
    ({"orthonormal": "false"}, TypeError, "orthonormal must be True or False, got 'false'"),
    ({"circular": 1}, TypeError, "circular must be True or False, got 1"),
    ({"bias": "false"}, TypeError, "bias must be True or False, got 'false'"),
    ({"num_rings": 0}, ValueError, "num_rings must be None or an integer >= 1, got 0"),
    ({"profile": "cubic"}, ValueError, r"profile must be one of \('band'.*got 'cubic'"),
    ({"spacing": (1, 1, 1)}, ValueError, r"spacing must be None or 2 positive lengths, got \(1, 1, 1\)"),
    ({"axes": (2,)}, ValueError, r"axes must be None or different spatial axes out of \(0, 1\), got \(2,\)"),
    ({"algorithm": "fft"}, ValueError, r"algorithm must be one of \('auto'.*got 'fft'"),
]


@pytest.mark.parametrize(
    "layer",
    [
        SREConv2d(2, 3, 5, algorithm="ring"),
        SREHarmonicConv2d(2, 3, 3, padding=1),
        SREHarmonicConv2d(2, 8, 3, padding=1, groups=2),
    ],
)
def test_batches_of_gradients(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 2, 7, 6, requires_grad=True)
    out, inputs = layer(x), [x, *layer.parameters()]
    slopes = torch.randn(3, *out.shape)
    batched = torch.autograd.grad(out, inputs, slopes, is_grads_batched=True, retain_graph=True)
    for number, slope in enumerate(slopes):
        for one, many in zip(torch.autograd.grad(out, inputs, slope, retain_graph=True), batched, strict=True):
            torch.testing.assert_close(many[number], one, rtol=1e-4, atol=1e-4)


def test_spacing_as_an_array() -> None:
    layer = SREConv2d(1, 2, 3, spacing=np.array([2.0, 1.0]))
    assert repr(layer) == repr(SREConv2d(1, 2, 3, spacing=(2.0, 1.0)))


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        SREConv2d(**{"in_channels": 6, "out_channels": 4, "kernel_size": 5, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"padding": "same"}, TypeError, "padding of a transposed convolution must be integers >= 0, got 'same'"),
        (
            {"padding_mode": "reflect"},
            ValueError,
            "padding_mode of a transposed convolution must be 'zeros', got 'reflect'",
        ),
        ({"output_padding": 2, "stride": 2}, ValueError, r"output_padding must be smaller than stride=\(2, 2\).*got 2"),
        ({"output_padding": -1}, ValueError, "output_padding must be an integer >= 0.*got -1"),
        ({"groups": 2, "in_channels": 3}, ValueError, "groups must divide in_channels=3, got 2"),
        ({"kernel_size": 2}, ValueError, "kernel_size must be odd"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_arguments_of_transposed_layers(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SREConvTranspose2d(**{"in_channels": 6, "out_channels": 4, "kernel_size": 5, **options})


def test_options_are_copied() -> None:
    options, axes = {"width": 0.7}, [1, 2]
    layer = SREConv3d(1, 1, (1, 5, 5), profile=("gaussian", options), axes=axes)
    before = layer.basis.clone()
    options["width"], axes[0] = 2.0, 0
    assert torch.equal(layer.float().basis, before)


@pytest.mark.parametrize("kind", [SREConv2d, SREHarmonicConv2d])
def test_a_layer_built_in_inference_mode_can_move(kind: type[nn.Module]) -> None:
    x = torch.randn(1, 2, 8, 8)
    with torch.inference_mode():
        layer = kind(2, 4, 5, padding=2)
        expected = layer(x)
    layer.to("cpu")
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("build", [lambda: SREConv3d(1, 2, 3), lambda: SREHarmonicConv3d(1, 4, 3)])
def test_memory_formats_of_volumes(build: Callable[[], nn.Module]) -> None:
    layer, x = build(), torch.randn(1, 1, 6, 7, 8)
    out = layer(x)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last_3d)(x), out)
    layer.to(torch.float64, memory_format=torch.channels_last_3d)
    torch.testing.assert_close(layer(x.double()), out.double(), rtol=1e-4, atol=1e-5)


# A width that is learned ---------------------------------------------------------------------------------------------

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
    state = layer.state_dict()
    assert state["log_width"].shape == (1,)  # torch.distributed shards no scalar, as it once was
    layer.load_state_dict({**state, "log_width": state["log_width"][0]})
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
    torch.testing.assert_close(layer.log_width.grad[0], slope.detach(), rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), functional.conv2d(x, layer.kernel(), layer.bias, padding=2))


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
