"""Functions that a ``forward`` calls: exact, in training, in copies and in graphs; or refused with their place."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import monai_sre
from monai_sre import conversion_report, convert_to_sre, equivariance_error, fold_sre
from monai_sre.convert.functions import CentredFunctions
from monai_sre.convert.options import Options
from monai_sre.ops import radial_basis
from monai_sre.ops.grid import centred_pad
from monai_sre.symmetry.error import tensors_of
from tests.convert.kinds import KINDS, BlurPool2d, Conv2dSame, SkipUNet, StandardConv2d
from tests.convert.test_fold import onnx_model, onnx_outputs
from tests.nets.networks import varied
from tests.testers import loss, relative_error, saved

#: Odd, even, unequal.
SIZES = ((37, 37), (32, 32), (33, 46))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return varied(KINDS[name]())


@pytest.mark.parametrize("name", KINDS)
class TestKinds:
    def test_every_size(self, name: str) -> None:
        """Exact, folded too; names and shapes stay. The check at conversion is not what is relied on."""
        original = made(name).double().eval()
        network = convert_to_sre(copy.deepcopy(original), verify=False)
        folded = [fold_sre(copy.deepcopy(network), form) for form in ("auto", "dense")]
        assert set(network.state_dict()) == set(original.state_dict())
        for size in SIZES:
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            outputs = tensors_of(network(x))
            assert [out.shape for out in outputs] == [out.shape for out in tensors_of(original(x))]
            assert max(equivariance_error(network, x).values()) < 1e-12
            assert max(equivariance_error(original, x, "generators").values()) > 1e-4
            assert all(relative_error(tensors_of(twin(x)), outputs) < 1e-12 for twin in folded)

    def test_training(self, name: str) -> None:
        network, x = convert_to_sre(made(name)), torch.randn(2, 1, 37, 46)
        before = loss(tensors_of(network.eval()(x))).item()
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
        loss(tensors_of(network.train()(x))).backward()
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())
        optimiser.step()
        assert loss(tensors_of(network.eval()(x))).item() != before
        assert max(equivariance_error(network.double(), x.double(), "generators").values()) < 1e-12

    def test_copies(self, name: str) -> None:
        network, x = convert_to_sre(made(name)).eval(), torch.randn(1, 1, 37, 46)
        expected = tensors_of(network(x))
        copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network)), saved(network)]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1.0)
        for twin in copies:
            assert type(twin) is type(network)
            assert all(torch.equal(a, b) for a, b in zip(tensors_of(twin(x)), expected, strict=True))

    def test_compile(self, name: str) -> None:
        """Frames of compiled code do not say who calls: what has centred functions runs as it is, values and gradients."""
        torch.compiler.reset()
        network, x = convert_to_sre(made(name)).double(), torch.randn(2, 1, 37, 46, dtype=torch.float64)
        compiled, found = torch.compile(copy.deepcopy(network), backend="eager"), []
        for twin in (network, compiled):
            out = tensors_of(twin(x))
            loss(out).backward()
            found.append([*out, *(parameter.grad for parameter in twin.parameters())])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("SAME", "dataclass")])
class TestGraphs:
    """A folded network's graph, made at one size, serves the others; but SAME padding counts with numbers of Python."""

    def _network(self, name: str) -> nn.Module:
        return fold_sre(convert_to_sre(made(name), verify=False)).eval()

    def test_trace(self, name: str) -> None:
        network = self._network(name)
        traced = torch.jit.trace(network, torch.randn(1, 1, 37, 46))
        for size in SIZES:
            x = torch.randn(2, 1, *size)
            assert relative_error(traced(x), network(x)) < 1e-5

    @pytest.mark.parametrize(
        "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "export"]
    )
    def test_onnx(self, name: str, dynamo: bool) -> None:
        network = self._network(name)
        inputs = [torch.randn(2, 1, *size) for size in SIZES]
        with torch.no_grad():
            expected = [network(x) for x in inputs]
        model = onnx_model(network, torch.randn(2, 1, 37, 46), dynamo)
        assert relative_error(onnx_outputs(model, *inputs), expected) < 2e-5

    def test_export(self, name: str) -> None:
        network, x = self._network(name), torch.randn(2, 1, 37, 46)
        exported = torch.export.export(network, (x,), strict=False)
        assert relative_error(exported.module()(x + 1), network(x + 1)) < 1e-5


def test_script_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"DecoderBlock calls functions in its forward.* use torch\.jit\.trace"):
        torch.jit.script(convert_to_sre(SkipUNet()))


def test_the_report_names_places() -> None:
    report = conversion_report(convert_to_sre(SkipUNet()))
    found = {entry.name: entry.after for entry in report.replaced if entry.after.startswith("on centred grids")}
    assert set(found) == {"decoder.0", "decoder.1", "decoder.2"}
    assert all("interpolate (" in after and "kinds.py:" in after for after in found.values())


@pytest.mark.parametrize(
    "flatten",
    [lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1), lambda x: x.reshape((len(x), -1))],
    ids=["flatten", "view", "reshape"],
)
def test_a_flattened_map_is_refused_with_the_way_out(flatten: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(1, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(3), nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(flatten(self.pool(self.conv(x))))

    with pytest.raises(
        ValueError, match=r"does not commute .* it calls \w+ \(.*test_functions.py:\d+\), which makes .* pool"
    ):
        convert_to_sre(Net())


def test_standardised_kernels_are_radial() -> None:
    """The kernel that is convolved is the projection of what the layer computes, also after its weights have changed."""
    layer = convert_to_sre(nn.Sequential(StandardConv2d(2, 3, 5, 1, 2).double()))[0]
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    pixel = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    pixel[0, 0, 4, 4] = 1
    kernel = (layer(pixel) - layer.bias[:, None, None])[0, :, 2:7, 2:7].detach()
    rings = radial_basis((5, 5)).flatten(1)
    solution = torch.linalg.lstsq(rings.T, kernel.flatten(1).T).solution
    torch.testing.assert_close((rings.T @ solution).T, kernel.flatten(1))
    assert kernel.std() > 0.01


def test_weights_start_radial_and_are_put_back() -> None:
    same = nn.Sequential(Conv2dSame(1, 2, 3, 2))
    values, parameter = same[0].weight.detach().clone(), same[0].weight
    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(nn.Sequential(same, Rolled()))
    assert same[0].weight is parameter
    assert torch.equal(parameter, values)
    assert type(same[0]) is Conv2dSame
    assert not hasattr(same[0], "_centred_functions")
    convert_to_sre(same)
    assert same[0].weight is parameter
    torch.testing.assert_close(parameter, parameter.rot90(1, (2, 3)))


def test_filters_stay() -> None:
    """A blur pool's weights are symmetric, if not radial: at odd sizes its values are those that there were."""
    pool = BlurPool2d(2)
    network, x = convert_to_sre(nn.Sequential(nn.Conv2d(2, 2, 1), pool)), torch.randn(1, 2, 9, 13)
    torch.testing.assert_close(network[1](x), BlurPool2d(2)(x))


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, 2)


class Calling(nn.Module):
    """Calls a function behind a convolution."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(1, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (
            lambda x: F.pixel_unshuffle(x[:, :, :32, :40], 2),
            "pixel_unshuffle .*test_functions.py:.*positions into channels",
        ),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices .*positions on the grid"),
        (lambda x: F.max_pool2d(x, (1, 2)), r"max_pool2d .*kernel_size=\(1, 2\) differs"),
        (lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1), "a slice .*exchanges what such slices hold"),
        (lambda x: F.lp_pool2d(x, 2.0, 2), "lp_pool2d .*it has none"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "avg_pool2d .*divisor_override=3"),
        (lambda x: F.interpolate(x, scale_factor=(1.5, 1.0)), r"interpolate .*scale_factor=\(1\.5, 1\.0\) differs"),
        (lambda x: F.unfold(x, 3, padding=1), r"does not commute.*; it calls unfold \(.*test_functions.py:"),
        (
            lambda x: x.flatten(2).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]).mean(1),
            r"does not commute.*; it calls reshape \(.*test_functions.py:\d+\), which makes a map of rows of channels",
        ),
        (lambda x: torch.roll(x, 1, 2), r"does not commute.*; it calls roll \(.*test_functions.py:"),
    ],
)
def test_refused_with_its_place(function: Callable[[Tensor], Any], match: str) -> None:
    network = Calling(function)
    with pytest.raises(ValueError, match=rf"\(root\) \(Calling.*{match}"):
        convert_to_sre(network, verify=(1, 1, 32, 40))
    assert type(network) is Calling
    convert_to_sre(network, verify=(1, 1, 32, 40), strict=False)
    network(torch.randn(1, 1, 32, 40))


def test_refused_where_it_was_not_seen() -> None:
    """A call that the trial does not reach raises when it is made."""

    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if x.shape[2] < 60 else F.avg_pool2d(x, 2, divisor_override=3)

    network = convert_to_sre(Calling(pooled), verify=(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"avg_pool2d cannot work on a centred grid.*test_functions.py:"):
        network(torch.randn(1, 1, 64, 64))


def padded_by_halves(x: Tensor) -> Tensor:
    """The mean of both ways to pad 3 rows, and of those to pad one column."""
    rows = (F.pad(x, (0, 0, 1, 2), value=2.0) + F.pad(x, (0, 0, 2, 1), value=2.0)) / 2
    return (F.pad(rows, (0, 1), value=2.0) + F.pad(rows, (1, 0), value=2.0)) / 2


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (lambda x: F.pad(x, (1, 0, 0, 3), value=2.0), padded_by_halves),
        (lambda x: F.pad(x, (2, 0, 0, 2), mode="reflect"), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
        (lambda x: F.pad(x, (2, 0, 0, 2), mode="circular"), lambda x: F.pad(x, (1, 1, 1, 1), mode="circular")),
        (lambda x: F.pad(x, (4, 0, 0, 4), mode="replicate"), lambda x: F.pad(x, (2, 2, 2, 2), mode="replicate")),
        (lambda x: F.avg_pool2d(x, x.shape[2:]), lambda x: x.mean((2, 3), keepdim=True)),
        (lambda x: x[..., ::2, ::2], lambda x: x[..., ::2, ::2]),
        (lambda x: x[:, :, :7, :11], lambda x: x[:, :, 1:8, 1:12]),
        (lambda x: F.interpolate(x, (18, 26)), lambda x: F.interpolate(x, (18, 26))),
    ],
)
def test_values(function: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Any]) -> None:
    """On maps of odd sizes, where torch's own grids are centred, or where half of what is on one side is whole pixels."""
    x = torch.randn(1, 2, 9, 13, dtype=torch.float64)
    with CentredFunctions(2, Options()):
        found = function(x)
    torch.testing.assert_close(found, reference(x))


def test_functions_of_modules_are_left_alone() -> None:
    x = torch.randn(1, 2, 8, 8)
    with CentredFunctions(2, Options()):
        assert torch.equal(nn.MaxPool2d(3, 2)(x), nn.MaxPool2d(3, 2).forward(x))
        assert torch.equal(F.avg_pool1d(x[0], 3, 2), torch.avg_pool1d(x[0], 3, 2))  # of another number of axes
        off = nn.MaxPool2d(3, 2)(x)
    assert torch.equal(off, F.max_pool2d(x, 3, 2))
    assert max(equivariance_error(nn.MaxPool2d(3, 2), x).values()) > 0.1


@pytest.mark.parametrize(("package", "name"), [(torch, "vision"), (monai_sre, "_study")])
def test_packages_whose_names_begin_alike(package: Any, name: str) -> None:
    """Code in ``torchvision`` is a network's own, although the path of ``torch`` is where its path begins."""
    file, names = f"{Path(package.__file__).parent}{name}/net.py", dict[str, Any]()
    code = "from torch import pixel_unshuffle\ndef halve(x):\n    return pixel_unshuffle(x, 2)"
    exec(compile(code, file, "exec"), names)
    with CentredFunctions(2, Options()), pytest.raises(ValueError, match=f"{re.escape(file)}:3"):
        names["halve"](torch.zeros(1, 1, 4, 4))


def test_padding_of_a_maximum() -> None:
    """Where pixels of minus infinity are added by halves, neighbours are joined by their maximum."""
    row = torch.tensor([[[1.0, 5.0, 2.0]]])
    assert centred_pad(row, [4], value=-float("inf")).tolist() == [[[1.0, 5.0, 5.0, 2.0]]]


def test_quantised_layers_are_refused_by_name() -> None:
    layer = torch.ao.nn.quantized.Conv2d(1, 2, 3)
    with pytest.raises(TypeError, match=r"its module 1 is torch\.ao\.nn\.quantized.*\.Conv2d"):
        convert_to_sre(nn.Sequential(nn.Conv2d(1, 1, 3), layer))


# Other ways in ---------------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Users call ``encode`` alone, and gradient checkpointing calls it again in the backward pass."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.down, self.up, self.reentrant = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1), reentrant

    def encode(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.down(x).relu(), 2)

    def decode(self, x: Tensor) -> Tensor:
        return F.interpolate(self.up(x), scale_factor=1.5, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None or not self.training:
            return self.decode(self.encode(x))
        return self.decode(checkpoint(self.encode, x, use_reentrant=self.reentrant))


def autoencoder(reentrant: bool | None = None) -> nn.Module:
    torch.manual_seed(0)
    return convert_to_sre(Autoencoder(reentrant).double())


def test_methods_are_on_centred_grids_when_called_alone() -> None:
    network = autoencoder().eval()
    x, z = torch.randn(1, 1, 21, 26, dtype=torch.float64), torch.randn(1, 4, 7, 9, dtype=torch.float64)
    assert max(equivariance_error(network.encode, x).values()) < 1e-12
    assert max(equivariance_error(network.decode, z).values()) < 1e-12
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied.encode(x), network.encode(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_a_method_gives_the_same_gradients(reentrant: bool) -> None:
    x = torch.randn(1, 1, 21, 26, dtype=torch.float64, requires_grad=True)
    networks = autoencoder().train(), autoencoder(reentrant).train()
    for network in networks:
        network(x).square().sum().backward()
    for ours, theirs in zip(networks[1].parameters(), networks[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_a_local_function_is_refused(reentrant: bool) -> None:
    """It is called again outside of the mode, where gradients would be others; a module in it enters its own mode."""

    class Local(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            def pooled(y: Tensor) -> Tensor:
                return self.block(y) if isinstance(self.block, Autoencoder) else F.max_pool2d(self.block(y), 2)

            return checkpoint(pooled, x, use_reentrant=reentrant) if self.training else pooled(x)

    x = torch.randn(1, 1, 21, 26, dtype=torch.float64, requires_grad=True)
    network = convert_to_sre(Local(nn.Conv2d(1, 4, 3, padding=1))).double().train()
    with pytest.raises(
        ValueError, match=r"max_pool2d works on a centred grid in forward.*a module, or a method.*test_functions"
    ):
        network(x)
    torch.manual_seed(0)
    network, plain = convert_to_sre(Local(Autoencoder().double())).train(), autoencoder()
    plain.load_state_dict(network.block.state_dict())
    for twin in (network, plain):
        twin(x).square().sum().backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_what_is_no_map_stays_so_inside_of_a_module_whose_calls_are_centred() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4, 20, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * F.interpolate(self.table, size=(7, 2)).square().mean()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.inner = nn.Conv2d(4, 4, 1), Table()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(F.max_pool2d(self.mix(x), 2))

    network = Outer().double().eval()
    x = torch.randn(1, 4, 21, 27, dtype=torch.float64)
    table = F.interpolate(network.inner.table, size=(7, 2)).square().mean()
    pooled = F.max_pool2d(x, 2)
    converted = convert_to_sre(network)
    assert float(converted.inner(pooled).sum() / pooled.sum()) == pytest.approx(float(table), rel=1e-12)
    expected = monai_sre.layers.CentredMaxPool2d(2)(converted.mix(x)) * table
    torch.testing.assert_close(converted(x), expected, rtol=1e-12, atol=1e-12)
