"""Folded networks: plain convolutions with the same outputs, in any form of deployment, and free of this package."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from monai.networks.utils import copy_model_state
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves

from monai_sre import (
    SREConv2d,
    SREConv3d,
    SREConvTranspose2d,
    SREHarmonicConv2d,
    SREHarmonicConv3d,
    convert_to_sre,
    fold_sre,
)
from monai_sre.convert.fold import FORMS
from monai_sre.layers.centred import CentredConv2d, CentredConvTranspose2d
from monai_sre.layers.conv import RadialNd
from monai_sre.nets import SREResNet, SREUNet
from tests.nets.networks import ARCHITECTURES, Architecture, varied
from tests.testers import relative_error

SEGRESNET: dict[str, Any] = {
    "spatial_dims": 2,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": 2,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}


def folded_pair(architecture: Architecture, ndim: int = 2, form: str = "auto") -> tuple[nn.Module, nn.Module]:
    network = convert_to_sre(architecture.build(ndim), init="reset", verify=False).eval()
    return network, fold_sre(copy.deepcopy(network), form)


def inputs(architecture: Architecture, ndim: int = 2) -> list[Tensor]:
    return [torch.randn(2, 1, *size) for size in architecture.sizes[ndim]]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=[pytest.mark.slow] if 2 in a.slow else []) for a in ARCHITECTURES],
)
class TestNetworks:
    def test_outputs_and_names(self, architecture: Architecture) -> None:
        for form in ("dense", "rings"):
            network, folded = folded_pair(architecture, form=form)
            assert not any(isinstance(m, (SREConv2d, CentredConv2d, CentredConvTranspose2d)) for m in folded.modules())
            same = set(folded.state_dict()) == set(architecture.build(2).state_dict())
            assert same == (form == "dense")
            for x in inputs(architecture):
                with torch.no_grad():
                    assert relative_error(folded.double()(x.double()), network.double()(x.double())) <= 1e-6

    def test_script_and_trace(self, architecture: Architecture) -> None:
        """Both serve every size, though the centring of a grid depends on its parity."""
        _, folded = folded_pair(architecture)
        kinds = [torch.jit.trace(folded, inputs(architecture)[0])]
        if architecture.name != "DynUNet":  # with deep supervision, MONAI's own cannot be scripted
            kinds.append(torch.jit.script(folded))
        for module in kinds:
            buffer = io.BytesIO()
            torch.jit.save(module, buffer)
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
            for x in inputs(architecture):
                with torch.no_grad():
                    assert relative_error(loaded(x), folded(x)) <= 1e-6


#: Both exporters where strides, pools and transposed convolutions meet, else the faster one.
ONNX = (
    ("ResNet18", 2, False),
    ("ResNet18", 3, True),
    ("SegResNet", 2, False),
    ("UNet", 2, True),
    ("UNet", 2, False),
    ("UNet", 3, False),
)


@pytest.mark.parametrize(("name", "ndim", "dynamo"), ONNX)
def test_onnx(name: str, ndim: int, dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    architecture = next(item for item in ARCHITECTURES if item.name == name)
    _, folded = folded_pair(architecture, ndim)
    x = torch.randn(1, 1, *architecture.sizes[ndim][0])
    buffer = io.BytesIO()
    torch.onnx.export(folded, (x,), buffer, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    out = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = tree_leaves(folded(x))
    assert relative_error([torch.from_numpy(np.array(item)) for item in out], wanted) < 1e-5


def onnx_model(network: nn.Module, example: Tensor, dynamo: bool) -> bytes:
    """The exported network, all axes but the channels being dynamic."""
    pytest.importorskip("onnxscript")
    free = [axis for axis in range(example.dim()) if axis != 1]
    how: dict[str, Any] = {"dynamic_axes": {"x": {axis: f"d{axis}" for axis in free}}}
    if dynamo:
        how = {"dynamic_shapes": (dict.fromkeys(free, torch.export.Dim.DYNAMIC),)}
    buffer = io.BytesIO()
    torch.onnx.export(network, (example,), buffer, dynamo=dynamo, verbose=False, input_names=["x"], **how)
    return buffer.getvalue()


def onnx_outputs(model: bytes, *images: Tensor) -> list[Tensor]:
    """Its outputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {"x": x.numpy()})[0]) for x in images]


#: Layers of volumes: bands, whose first ring is one tap; rings that overlap, in groups; such as are not symmetric along the
#: first axis; strides and gaps.
VOLUMES: dict[str, dict[str, Any]] = {
    "bands": {"padding": 1, "kernel_size": 3},
    "gaussian": {"profile": "gaussian", "padding": 2, "groups": 2},
    "in-plane": {"profile": "gaussian", "orthonormal": True, "axes": (1, 2), "padding": 2, "spacing": (2.0, 1.0, 1.0)},
    "strided": {"profile": "gaussian", "stride": (1, 2, 1), "padding": (0, 2, 1), "dilation": (1, 1, 2)},
}


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "export"])
@pytest.mark.parametrize("fold", [False, True], ids=["layer", "folded"])
@pytest.mark.parametrize("kind", VOLUMES)
def test_onnx_of_volumes(kind: str, fold: bool, dynamo: bool) -> None:
    """No convolution of as many groups as channels, at which runtimes are slow; two batches and sizes."""
    onnx = pytest.importorskip("onnx")
    layer = SREConv3d(8, 6, **{"kernel_size": 5, "algorithm": "ring", **VOLUMES[kind]}).eval()
    torch.nn.init.uniform_(layer.bias)  # type: ignore[arg-type]
    network = fold_sre(copy.deepcopy(layer), "rings") if fold else layer
    others = [torch.randn(2, 8, 9, 10, 11), torch.randn(1, 8, 12, 9, 13)]
    model = onnx_model(network, others[0], dynamo)
    with torch.no_grad():
        for found, x in zip(onnx_outputs(model, *others), others, strict=True):
            assert relative_error(found, layer(x)) < 1e-5
    nodes = onnx.load_from_string(model).graph.node
    groups = [entry.i for node in nodes if node.op_type == "Conv" for entry in node.attribute if entry.name == "group"]
    assert groups
    assert max(groups) < 8


#: Networks with centred grids that exports serve at every size: how they are made, and their number of spatial axes.
ANY_SIZE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "harmonic": (lambda: SREUNet(2, 1, 2, (2, 3, 4), kernel_size=3, conv="harmonic"), 2),
    "strides": (lambda: SREUNet(2, 1, 2, (2, 3, 4), ((1, 2), (3, 2)), kernel_size=3, num_res_units=1), 2),
    "blur 3d": (lambda: SREUNet(3, 1, 2, (2, 3), kernel_size=3, antialias=True), 3),
    "ResNet": (lambda: SREResNet(2, 1, 2, width=4, kernel_size=3), 2),
    "rings": (lambda: SREResNet(2, 1, 2, width=16, kernel_size=5, max_pool=True, conv="harmonic"), 2),
    "rings 3d": (lambda: SREUNet(3, 1, 2, (16, 16), kernel_size=3, conv="harmonic"), 3),
    "UNet": (lambda: converted(nets.UNet, channels=(4, 8, 8), strides=(2, 2), norm="batch"), 2),
    "UNet 3d": (lambda: converted(nets.UNet, 3, channels=(4, 8), strides=(2,), num_res_units=1, norm="batch"), 3),
    "BasicUNet": (lambda: converted(nets.BasicUNet, features=(4, 4, 8, 8, 8, 4), norm="batch"), 2),
    "pools": (lambda: convert_to_sre(pools(), verify=False), 2),
}


def converted(architecture: Callable[..., nn.Module], ndim: int = 2, **options: Any) -> nn.Module:
    return convert_to_sre(architecture(spatial_dims=ndim, in_channels=1, out_channels=2, **options), verify=False)


def pools() -> nn.Module:
    """What pads, rounds up, leaves out padding, has gaps, or resamples by a ratio."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 3, 1, 2, padding_mode="replicate"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.Upsample(scale_factor=1.5),
        nn.Conv2d(16, 16, 4, 2, 2),
        nn.ConvTranspose2d(16, 4, 3, 2, 1, 1),
    )


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "export"])
@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("fold", [False, True], ids=["network", "folded"])
def test_graphs_serve_any_size(name: str, fold: bool, dynamo: bool) -> None:
    """Traced, scripted, and in ONNX with dynamic axes: smaller, larger, odd, unequal, down to one pixel."""
    make, ndim = ANY_SIZE[name]
    network = varied(make()).eval()
    network = fold_sre(network) if fold else network
    example = torch.randn(2, 1, *((16, 24, 8) if name.startswith("UNet") else (19, 22, 9))[:ndim])
    sizes = ((7, 6, 5), (13, 16, 8), (30, 1, 2), (1, 1, 1))
    if name.startswith("UNet"):  # MONAI's takes what its strides divide
        sizes = ((8, 4, 4), (12, 16, 8), (32, 4, 2), (4, 4, 2))
    elif name in ("BasicUNet", "pools"):
        sizes = ((17, 33, 1), (34, 49, 1), (48, 16, 1), (16, 16, 1))
    others = [torch.randn(3, 1, *size[:ndim]) for size in sizes]
    others += [torch.randn(1, 1, 100, 112)] if ndim == 2 else []  # of the lengths that are refined by slices
    with torch.no_grad():
        wanted = [network(x) for x in others]
        graphs = {"script": torch.jit.script(network)} | {
            f"trace of {x.shape}": torch.jit.trace(network, x) for x in (example, others[3])
        }
        found = {name: [graph(x) for x in others] for name, graph in graphs.items()}
        found["onnx"] = onnx_outputs(onnx_model(network, example, dynamo), *others)
    for kind, outputs in found.items():
        assert relative_error(outputs, wanted) < 2e-5, kind


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("fold", [pytest.param(False, marks=pytest.mark.slow), True], ids=["network", "folded"])
def test_programs_serve_larger_maps(name: str, fold: bool) -> None:
    """``torch.export`` with free sizes, of which none shrinks to one pixel on the way."""
    make, ndim = ANY_SIZE[name]
    network = varied(make()).eval()
    network = fold_sre(network) if fold else network
    x = torch.randn(2, 1, *(32, 40, 36)[:ndim])
    free = {axis: torch.export.Dim.AUTO for axis in range(x.dim()) if axis != 1}
    program = torch.export.export(network, (x,), dynamic_shapes=(free,), strict=False).module()
    step = 4 if name.startswith("UNet") else 1  # MONAI's takes what its strides divide
    for steps in ((0, 0, 0), (1, 2, 1), (2, 7, 4)):
        x = torch.randn(3, 1, *(32 + step * steps[0], 40 + step * steps[1], 36 + step * steps[2])[:ndim])
        with torch.no_grad():
            assert relative_error(program(x), network(x)) < 2e-5


def test_round_trip() -> None:
    """Original, converted, folded, original: MONAI loads the state, and it converts to the same network again."""
    torch.manual_seed(0)
    original = nets.SegResNet(**SEGRESNET)
    network = convert_to_sre(copy.deepcopy(original)).eval()
    folded = fold_sre(copy.deepcopy(network), "dense")
    other = nets.SegResNet(**SEGRESNET)
    _, updated, missing = copy_model_state(other, folded.state_dict())
    assert len(updated) == len(original.state_dict())
    assert not missing
    again = convert_to_sre(other).eval()
    x = torch.randn(1, 1, 24, 32)
    assert relative_error(again(x), network(x)) < 1e-5
    reloaded = convert_to_sre(nets.SegResNet(**SEGRESNET), init="reset", verify=False).eval()
    reloaded.load_state_dict(network.state_dict())
    assert torch.equal(reloaded(x), network(x))


class Skipping(nn.Module):
    """A U-Net's way up, told the size of the skip."""

    def __init__(self, kernel_size: int, padding: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))
        self.up = nn.ConvTranspose2d(4, 2, kernel_size, 2, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x), output_size=x.shape[2:])


@pytest.mark.parametrize(("kernel_size", "padding"), [(2, 0), (4, 1), (3, 0)])
def test_output_size(kernel_size: int, padding: int) -> None:
    network = convert_to_sre(Skipping(kernel_size, padding).double(), verify=False)
    x = torch.randn(1, 1, 20 + kernel_size % 2, 21, dtype=torch.float64)
    out = network(x)
    fold_sre(network)
    assert relative_error(network(x), out) <= 1e-12
    with pytest.raises(ValueError, match="output_size must be 2 sizes from"):
        network.up(torch.randn(1, 4, 10, 10, dtype=torch.float64), output_size=[30, 30])


def test_plain_types_and_flags() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose2d(4, 2, 1, 3, 0, 2),
        nn.Conv2d(2, 2, 3, 2, 1),
    )
    network[0].eval()
    network[1].weight.requires_grad_(False)
    network = convert_to_sre(network.double())
    x = torch.randn(1, 1, 7, 8, dtype=torch.float64)
    out = network(x)
    fold_sre(network)
    assert relative_error(network(x), out) <= 1e-12
    assert isinstance(network[0], nn.Conv2d)
    assert isinstance(network[1], nn.ConvTranspose2d)
    assert all(isinstance(network[index], (nn.Conv2d, nn.ConvTranspose2d)) for index in (2, 3))
    assert [module.training for module in network] == [False, True, True, True]
    assert [p.requires_grad for p in network[1].parameters()] == [False, True]
    single = SREConv2d(1, 2, 5)
    assert torch.equal(fold_sre(single).weight, single.kernel())
    assert type(fold_sre(single)) is nn.Conv2d
    with pytest.raises(TypeError, match="network"):
        fold_sre("UNet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"form must be one of .* got 'ring'"):
        fold_sre(single, "ring")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "layer",
    [
        SREConv2d(16, 16, 5, padding=1),
        SREConv2d(16, 16, 5, stride=2, padding=4, dilation=2, groups=2, padding_mode="reflect"),
        SREConv2d(16, 16, 3, padding=1, padding_mode="circular", profile=("gaussian", {"learn_width": True})),
        CentredConv2d(16, 16, 4, stride=3, padding=1),
        CentredConv2d(16, 16, 3, stride=2, padding=1, antialias=True, dilation=2, padding_mode="replicate"),
        CentredConv2d(16, 16, 3, stride=2, padding=1, far_padding=1),
        SREHarmonicConv2d(16, 16, 5, padding=2, padding_mode="circular", norm="batch"),
        SREHarmonicConv2d(16, 16, 5, padding=2, groups=2),
        SREHarmonicConv2d(16, 16, 1, orders=(1,)),
        SREHarmonicConv3d(16, 16, 3, padding=1, stride=(1, 2, 2)),
    ],
    ids=lambda layer: layer if isinstance(layer, str) else repr(layer).split("\n")[0][:60],
)
def test_forms(layer: nn.Module, form: str) -> None:
    """Each form is torch's own modules with the same outputs, scripted too; frozen weights stay frozen."""
    torch.manual_seed(0)
    layer = varied(copy.deepcopy(layer)).double().eval()
    next(layer.parameters()).requires_grad_(False)
    x = torch.randn(2, 16, *((12, 13) if "2d" in type(layer).__name__ else (5, 7, 6)), dtype=torch.float64)
    folded = fold_sre(copy.deepcopy(layer), form)
    for y in (x, x[0]):
        assert relative_error(folded(y), layer(y)) < 1e-12
    assert relative_error(torch.jit.script(folded)(x), layer(x)) < 1e-12
    assert not any(isinstance(module, RadialNd) for module in folded.modules())
    assert not all(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["reflect", "circular"])
@pytest.mark.parametrize("kind", [SREConv2d, SREHarmonicConv2d, CentredConv2d])
def test_ends_that_reach_beyond_small_maps(kind: type[nn.Module], mode: str, form: str) -> None:
    """As deep in a network whose kernels were enlarged; torch's own paddings stop at the size of a map."""
    layer = varied(kind(2, 8, 9, padding=4, padding_mode=mode)).double().eval()
    folded, x = fold_sre(copy.deepcopy(layer), form), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    for y in (x, x[0], torch.randn(1, 2, 11, 12, dtype=torch.float64)):
        assert relative_error(folded(y), layer(y)) < 1e-12
        assert relative_error(torch.jit.script(folded)(y), layer(y)) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_kernels_are_exact_under_autocast(form: str) -> None:
    network = nn.Sequential(SREHarmonicConv2d(2, 8, 5), SREConvTranspose2d(8, 4, 3), SREConv2d(4, 4, 9))
    x, expected = torch.randn(1, 2, 17, 16), fold_sre(copy.deepcopy(network), form)
    with torch.autocast("cpu", torch.bfloat16):
        folded = fold_sre(network, form)
    assert torch.equal(folded(x), expected(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, "bias", 1), "weight", 0.5),
        lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, "weight", 0.2), "weight", 0.5),
        utils.spectral_norm,
        utils.weight_norm,
        utils.parametrizations.spectral_norm,
        utils.parametrizations.weight_norm,
    ],
    ids=["pruned", "pruned twice", "spectral norm", "weight norm", "parametrised", "parametrised weight norm"],
)
@pytest.mark.parametrize("layer", [SREConv2d, SREConvTranspose2d, CentredConv2d, CentredConvTranspose2d])
def test_reparametrised(change: Callable[[nn.Module], Any], layer: type[nn.Module]) -> None:
    """The weights that the layer would compute at its next call, after a step, become those of a plain convolution."""
    calls: list[Any] = []
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = nn.Sequential(layer(2, 4, 3, padding=1), nn.ReLU()).double()
        network[0].register_forward_pre_hook(lambda *arguments: calls.append(arguments))
        change(network[0])
        network.eval()(x)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.rand_like(parameter))
        networks.append(network)
    network, folded = networks[0], fold_sre(networks[1])
    assert relative_error(folded(x), network(x)) <= 1e-12
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}
    assert len(calls) == 4  # the user's own hook is carried over


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(("form", "groups"), [("auto", 1), ("dense", 1), ("auto", 2)])
@pytest.mark.parametrize(
    "change",
    [
        partial(prune.l1_unstructured, name="weight", amount=0.5),
        utils.spectral_norm,
        utils.weight_norm,
        utils.parametrizations.weight_norm,
    ],
)
def test_reparametrised_mixtures_of_energies(change: Callable[[nn.Module], Any], form: str, groups: int) -> None:
    """All parameters are trained, twice, and the weight of the next call is folded, not that of the last one."""
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        layer = SREHarmonicConv2d(2, 4, 3, padding=1, groups=groups).double()
        change(layer.mix)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            assert all(parameter.grad is not None for parameter in layer.parameters())
            optimizer.step()
        networks.append(layer.eval())
    folded, expected = fold_sre(networks[1], form), networks[0](x)
    assert relative_error(folded(x), expected) < 1e-12
    assert {name for name, _ in folded.mix.named_parameters()} == {"weight", "bias"} == set(folded.mix.state_dict())
    assert relative_error(folded.float()(x.float()), expected) < 1e-5  # what is no parameter would stay as it was


def test_what_stands_in_the_place_of_a_mixture_stays_when_folded() -> None:
    class Adapter(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    layer = SREHarmonicConv2d(2, 4, 3, padding=1).double()
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    layer.mix.__class__ = Adapter
    expected = layer(x)
    assert relative_error(fold_sre(layer)(x), expected) < 1e-12


@pytest.mark.parametrize("change", [convert_to_sre, fold_sre])
def test_made_in_inference_mode_and_trained_later(change: Callable[[nn.Module], nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 1, 2, 2))
    network = convert_to_sre(network) if change is fold_sre else network
    with torch.inference_mode():
        network = change(network)
    network(torch.randn(1, 1, 6, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_captured_by_export() -> None:
    """What the documentation names in place of ``torch.fx.symbolic_trace``."""
    network = fold_sre(SREUNet(2, 1, 2, channels=(4, 8))).eval()
    x = torch.randn(1, 1, 16, 20)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(network)
    assert relative_error(torch.export.export(network, (x,)).module()(x), network(x)) < 1e-5


def test_runs_without_this_package(tmp_path: Path) -> None:
    """A scripted folded network, and a state dict, in a process that cannot import monai_sre."""
    network = convert_to_sre(nets.SegResNet(**SEGRESNET)).eval()
    folded = fold_sre(copy.deepcopy(network), "dense")
    torch.jit.script(fold_sre(network, "rings")).save(str(tmp_path / "net.ts"))
    x = torch.randn(1, 1, 24, 32)
    torch.save((folded.state_dict(), x, folded(x).detach()), tmp_path / "state.pt")
    program = f"""
import sys
sys.modules["monai_sre"] = None
import torch
state, x, out = torch.load("state.pt", weights_only=True)
assert torch.allclose(torch.jit.load("net.ts")(x), out, atol=1e-5)
from monai.networks.nets import SegResNet
SegResNet(**{SEGRESNET!r}).load_state_dict(state)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)


#: Each starts a process that imports MONAI's bundles, for about ten seconds: every command and both forms once, and the rest.
EXPORTS = [
    ("ckpt_export script", True),
    ("ckpt_export trace", False),
    ("onnx_export", True),
    pytest.param("ckpt_export script", False, marks=pytest.mark.slow),
    pytest.param("ckpt_export trace", True, marks=pytest.mark.slow),
    pytest.param("onnx_export", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("command", "fold"), EXPORTS)
def test_bundle_export(tmp_path: Path, command: str, fold: bool) -> None:
    """A converted SegResNet through the commands of ``monai.bundle``."""
    network = convert_to_sre(nets.SegResNet(**SEGRESNET)).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    target: dict[str, Any] = {
        "_target_": "monai_sre.convert_to_sre",
        "network": {"_target_": "monai.networks.nets.SegResNet", **SEGRESNET},
        "init": "reset",
        "verify": False,
    }
    if fold:
        torch.save(fold_sre(copy.deepcopy(network)).state_dict(), tmp_path / "model.pt")
        target = {"_target_": "monai_sre.fold_sre", "network": target}
    (tmp_path / "inference.json").write_text(json.dumps({"imports": ["$import monai_sre"], "network_def": target}))
    (tmp_path / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    name, _, kind = command.partition(" ")
    exported = tmp_path / ("out.onnx" if name == "onnx_export" else "out.ts")
    arguments = ["--net_id", "network_def", "--filepath", exported.name, "--ckpt_file", "model.pt"]
    arguments += ["--meta_file", "metadata.json", "--config_file", "inference.json", "--key_in_ckpt", ""]
    if kind == "trace" or name == "onnx_export":
        arguments += ["--input_shape", "[1,1,24,32]", "--use_trace", "True"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", name, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    x = torch.randn(1, 1, 24, 32)
    wanted = network(x).detach()
    if name == "ckpt_export":
        assert relative_error(torch.jit.load(exported)(x), wanted) < 1e-5
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported.read_bytes(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(out), wanted) < 1e-5
