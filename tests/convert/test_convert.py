"""Converted networks: exact under every lattice symmetry at every size, and honest about what is refused."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from monai.networks.layers import Reshape
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves

from monai_sre import SREConv2d, conversion_report, convert_to_sre, equivariance_error, fold_sre
from monai_sre.convert.report import ATTRIBUTE
from monai_sre.layers import HarmonicConv
from monai_sre.ops import radial_basis
from monai_sre.symmetry import lattice_symmetries
from tests.nets.networks import ARCHITECTURES, Architecture, varied
from tests.testers import relative_error

CASES = [
    pytest.param(architecture, ndim, id=f"{architecture.name} {ndim}d", marks=marks)
    for architecture in ARCHITECTURES
    for ndim in (2, 3)
    for marks in [[pytest.mark.slow] if ndim in architecture.slow else []]
]


#: Promise 2, and the one network that rounds more. As MONAI initialises BasicUNet, each transposed convolution hands on a
#: sixth of its input's power. ``init="reset"`` keeps it, so that the coarse levels count, where norms in a row have scaled
#: up channels far below the others, together with their rounding.
FLOAT32, BASIC_UNET_FLOAT32 = 1e-5, 3e-5


def worst(network: nn.Module, x: Tensor, transforms: Any = "generators", training: bool = False) -> float:
    return max(equivariance_error(network, x, transforms, training=training).values())


def shapes(network: nn.Module, x: Tensor) -> list[torch.Size]:
    with torch.no_grad():
        return [leaf.shape for leaf in tree_leaves(network(x))]


@pytest.mark.parametrize(("architecture", "ndim"), CASES)
def test_every_size(architecture: Architecture, ndim: int) -> None:
    """Promise 2: every network, every symmetry, every size that the original accepts; in training mode, too."""
    original = architecture.build(ndim).eval()
    network = convert_to_sre(varied(architecture.build(ndim).double()), init="reset", verify=False).eval()
    for size in architecture.sizes[ndim]:
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        assert shapes(network, x) == shapes(original, x.float())
        assert relative_error(network(x), network(torch.randn_like(x))) > 1e-6  # it does look at its input
        assert worst(network, x, "lattice" if ndim == 2 else "generators") <= 1e-12
    batch = torch.randn(4, 1, *architecture.sizes[ndim][0], dtype=torch.float64)
    assert worst(network, batch, training=True) <= 1e-11  # norms of maps of a few voxels scale rounding up
    tolerance = BASIC_UNET_FLOAT32 if architecture.name == "BasicUNet" else FLOAT32
    assert worst(network.float(), batch[:1].float()) <= tolerance


@pytest.mark.parametrize(("architecture", "ndim"), CASES)
def test_projected_networks_in_float32(architecture: Architecture, ndim: int) -> None:
    """With the weights that there were, every network keeps promise 2."""
    network = convert_to_sre(varied(architecture.build(ndim)), verify=False)
    assert worst(network, torch.randn(1, 1, *architecture.sizes[ndim][0])) <= FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "ndim"), [case for case in CASES if case.values[1] == 3 and "SERes" not in case.id]
)
def test_all_48_symmetries(architecture: Architecture, ndim: int) -> None:
    network = convert_to_sre(varied(architecture.build(ndim).double()).eval(), init="reset", verify=False)
    x = torch.randn(1, 1, *architecture.sizes[ndim][0], dtype=torch.float64)
    assert worst(network, x, "lattice") <= 1e-12


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "ResNet18"])
def test_swapping_layers_alone_is_not_enough(name: str) -> None:
    """The test can fail: with plain strides and pools the error is far above the tolerance."""
    architecture = next(item for item in ARCHITECTURES if item.name == name)
    network = architecture.build(2).double().eval()
    for parent in network.modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                layer = SREConv2d(child.in_channels, child.out_channels, 3, child.stride, 1, dtype=torch.float64)
                setattr(parent, key, layer)
    x = torch.randn(1, 1, 32, 48, dtype=torch.float64)
    assert worst(network, x, "lattice") > 1e-4


def test_one_dimension() -> None:
    network = convert_to_sre(nets.BasicUNet(1, 1, 2, features=(4, 4, 8, 8, 16, 4)).double().eval())
    for size in (32, 37, 50):
        x = torch.randn(1, 1, size, dtype=torch.float64)
        assert worst(network, x, "lattice") <= 1e-12


def test_axes() -> None:
    network = nets.UNet(3, 1, 2, channels=(4, 8), strides=((1, 2, 2),), kernel_size=3).double().eval()
    convert_to_sre(network, axes=(1, 2))
    x = torch.randn(1, 1, 5, 8, 12, dtype=torch.float64)
    assert worst(network, x, lattice_symmetries(3, axes=(1, 2))) <= 1e-12
    assert worst(network, x, "flip(0)") > 1e-3  # free along the other axis


def down_samples(module: nn.Module) -> bool:
    """Whether pixels are left out here: a stride above 1, or the strided slice of a shortcut "A"."""
    kinds = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
    stride: Any = getattr(module, "stride", 1)
    strided = max(stride if isinstance(stride, tuple) else (stride,)) > 1
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    sliced = isinstance(getattr(module, "downsample", None), functools.partial)
    return sliced or (isinstance(module, kinds) and strided and not transposed)


class TestAntialias:
    """Blurring before strides: the same promises, and less error at other angles."""

    @pytest.mark.parametrize(
        ("architecture", "ndim"),
        [
            case
            for case in CASES
            if case.values[0].name.split(" ")[0] in ("ResNet18", "DenseNet121", "EfficientNet-b0", "UNet", "SegResNet")
        ],
    )
    def test_every_size(self, architecture: Architecture, ndim: int) -> None:
        original = architecture.build(ndim).eval()
        network = convert_to_sre(varied(architecture.build(ndim).double().eval()), antialias=True, verify=False)
        listed = [entry for entry in conversion_report(network).replaced if "antialias=0.6" in entry.after]
        assert len(listed) == sum(map(down_samples, original.modules()))
        folded = fold_sre(copy.deepcopy(network))
        for size in architecture.sizes[ndim]:
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            assert shapes(network, x) == shapes(original, x.float())
            assert relative_error(folded(x), network(x)) <= 1e-12
            assert worst(network, x, "lattice" if ndim == 2 else "generators") <= 1e-12

    def test_folded_graphs_serve_every_size(self) -> None:
        architecture = next(item for item in ARCHITECTURES if item.name == "ResNet18")
        folded = fold_sre(convert_to_sre(architecture.build(2).eval(), antialias=True))
        inputs = [torch.randn(1, 1, *size) for size in architecture.sizes[2]]
        for graph in (torch.jit.trace(folded, inputs[0]), torch.jit.script(folded)):
            assert max(relative_error(graph(x), folded(x)) for x in inputs) < 1e-5

    def test_state_is_that_without_it(self) -> None:
        architecture = ARCHITECTURES[0]
        plain, smooth = convert_to_sre(architecture.build(2)), convert_to_sre(architecture.build(2), antialias=True)
        assert {name: value.shape for name, value in plain.state_dict().items()} == {
            name: value.shape for name, value in smooth.state_dict().items()
        }
        wide = convert_to_sre(architecture.build(2), antialias=1.2)
        smooth.load_state_dict(plain.state_dict())
        wide.load_state_dict(plain.state_dict())
        x = torch.randn(1, 1, 33, 40)
        outputs = [network.eval()(x) for network in (plain, smooth, wide)]
        assert min(relative_error(one, other) for one, other in itertools.combinations(outputs, 2)) > 1e-3

    @pytest.mark.parametrize(
        "layer", [nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 1, 2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2)], ids=str
    )
    def test_less_error_at_other_angles(self, layer: nn.Module) -> None:
        """Texture at the edge of what the coarse grid holds; a maximum makes finer texture of it before it is blurred."""
        rows = torch.arange(65.0, dtype=torch.float64)
        x = (torch.cos(2 * torch.pi * 0.27 * rows)[None, None, :, None] * torch.ones(65, dtype=torch.float64)) + 1
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(1.0)
        errors = [
            equivariance_error(convert_to_sre(copy.deepcopy(layer).double(), antialias=smooth, verify=False), x, 30)
            for smooth in (False, True)
        ]
        assert errors[1]["30 deg"] < (0.7 if isinstance(layer, nn.MaxPool2d) else 0.5) * errors[0]["30 deg"]


class TestHarmonic:
    """Energies beside the radial convolutions."""

    @pytest.mark.parametrize(
        ("architecture", "ndim"),
        [
            case
            for case in CASES
            if case.values[0].name.split(" ")[0] in ("ResNet18", "EfficientNet-b0", "UNet", "SegResNet")
        ],
    )
    def test_every_size(self, architecture: Architecture, ndim: int) -> None:
        original = architecture.build(ndim).double().eval()
        options = {"init": "reset", "conv": "harmonic", "verify": False}
        network = convert_to_sre(varied(copy.deepcopy(original)), **options)
        converted = [entry for entry in conversion_report(network).replaced if entry.after.startswith("HarmonicConv")]
        assert len(converted) == sum(isinstance(module, HarmonicConv) for module in network.modules()) > 0
        for size in architecture.sizes[ndim][:2]:
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            assert shapes(network, x) == shapes(original, x)
            assert worst(network, x) <= 1e-12

    def test_projected_weights_come_first(self) -> None:
        """At the start the energies have no effect; one step of training, and they have."""
        build = next(item for item in ARCHITECTURES if item.name == "ResNet18").build
        torch.manual_seed(0)
        plain = build(2).eval()
        rings = {"profile": "gaussian", "orthonormal": True}
        radial = convert_to_sre(copy.deepcopy(plain), **rings)
        harmonic = convert_to_sre(plain, conv="harmonic")
        x = torch.randn(2, 1, 33, 40)
        torch.testing.assert_close(harmonic(x), radial(x), rtol=1e-5, atol=1e-5)
        harmonic(x).square().sum().backward()
        mixing = [module.mix.weight for module in harmonic.modules() if isinstance(module, HarmonicConv)]
        assert all(weight.grad is not None and bool(weight.grad.any()) for weight in mixing)

    def test_folds(self) -> None:
        network = convert_to_sre(
            nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 5)), init="reset", conv="harmonic"
        )
        x = torch.randn(1, 1, 20, 23)
        expected = network(x)
        folded = fold_sre(copy.deepcopy(network))
        torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)
        assert not any(isinstance(module, SREConv2d) for module in folded.modules())


class Sliced(nn.Module):
    """Breaks the symmetry where no module shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, 1:]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0]


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, 2, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_embeddings


class Cropped(Sliced):
    """Its crop is centred at even sizes only."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (size - size % 2 for size in x.shape[2:])
        return self.conv(x).narrow(2, 0, rows).narrow(3, 0, columns)


class Classes(Sliced):
    """Maps without an axis of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(dim=1)


def tied() -> nn.Module:
    """A weight in two layers, of which one grows by a tap."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, 2, 1), nn.ConvTranspose2d(2, 2, 3, 2, 1, 1))
    network[2].weight = network[1].weight
    return network


class TestRefusals:
    """What cannot be made equivariant is named, with the reason, and the network is left as it was."""

    @pytest.mark.parametrize(
        ("build", "match"),
        [
            (Recurrent, r"lstm \(LSTM.*recurrent"),
            (Sliced, r"\(root\) \(Sliced\).*does not commute"),
            (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, (1, 2), 1)), r"0 \(Conv2d.*stride=\(1, 2\) differs"),
            (lambda: nn.Sequential(nn.Conv2d(1, 2, (1, 3))), r"0 \(Conv2d.*kernel_size=\(1, 3\) differs"),
            (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d((1, 2))), r"1 \(MaxPool2d.*differs"),
            (
                lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 1, 1)), nn.ReLU(), nn.Conv2d(1, 2, 3)),
                r"0 \(ZeroPad2d.*padding=\(2, 1\) differs",
            ),
            (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 2, 3)), r"0 \(PixelUnshuffle.*channels"),
            (lambda: nn.Sequential(weight_norm(nn.Conv2d(1, 2, 3))), r"0 \(.*is computed \(by WeightNorm\)"),
            (
                lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 24 * 40, 3)),
                r"1 \(Flatten\): it does not commute .*; it makes features of positions: take a global pool in front of it",
            ),
            (
                lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.LayerNorm([24, 40])),
                r"1 \(LayerNorm.*each position",
            ),
            (
                lambda: nn.Sequential(nn.Conv2d(1, 2, 8, 8), Positions()),
                r"1 \(Positions.*position_embeddings is a position embedding",
            ),
            (
                lambda: nn.Sequential(
                    nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 4, padding="same", dilation=3, padding_mode="circular")
                ),
                r"1 \(Conv2d.*its padding is odd in all, \(9, 9\) pixels, half of which padding_mode='circular' cannot",
            ),
            (tied, r"2 \(ConvTranspose2d.*its weight is shared with 1"),
            (
                lambda: nets.Regressor((1, 16, 16), (3,), (2, 4), (2, 2)),
                r"final\.0 \(Flatten\): it does not commute",
            ),
        ],
    )
    def test_strict(self, build: Callable[[], nn.Module], match: str) -> None:
        network = build()
        before, held = copy.deepcopy(network), list(network.parameters())
        with pytest.raises(ValueError, match=match):
            convert_to_sre(network, verify=(1, 1, 16, 16) if isinstance(network, nets.Regressor) else True)
        assert repr(network) == repr(before)
        assert [type(module) for module in network.modules()] == [type(module) for module in before.modules()]
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
        assert all(now is then for now, then in zip(network.parameters(), held, strict=True))
        assert not hasattr(network, ATTRIBUTE)

    def test_sizes_that_were_not_given_are_checked_too(self) -> None:
        with pytest.raises(ValueError, match=r"\(root\) \(Cropped\).*does not commute"):
            convert_to_sre(Cropped(), verify=(1, 1, 32, 32))

    def test_maps_without_channels(self) -> None:
        assert max(conversion_report(convert_to_sre(Classes())).errors.values()) < 1e-9

    def test_what_a_converted_network_cannot_take(self) -> None:
        class Choosy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 2, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if type(self.conv) is not nn.Conv2d:
                    raise RuntimeError("no plain convolution")
                return self.conv(x)

        network = Choosy()
        with pytest.raises(
            ValueError, match=r"\(root\).*converted, it raises RuntimeError on an input of shape .1, 1, 5, 5"
        ):
            convert_to_sre(network, verify=(1, 1, 5, 5))
        assert type(network.conv) is nn.Conv2d

    def test_not_strict(self) -> None:
        network = convert_to_sre(Sliced(), strict=False)
        report = conversion_report(network)
        assert [entry.name for entry in report.refused] == [""]
        assert isinstance(network.conv, SREConv2d)
        assert max(report.errors.values()) > 1e-3

    def test_hidden_by_zero_initialisation(self) -> None:
        """A branch that starts at zero is found all the same."""

        class Branch(Sliced):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.zeros(1))

            def forward(self, x: Tensor) -> Tensor:
                out = self.conv(x)
                return out + self.scale * out.cumsum(2)

        with pytest.raises(ValueError, match=r"\(root\)"):
            convert_to_sre(Branch())

    def test_networks_that_cannot_be_converted(self) -> None:
        with pytest.raises(TypeError, match=r"network must be an nn\.Module that is not scripted, got str"):
            convert_to_sre("UNet")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="network must hold convolutions or pools"):
            convert_to_sre(nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"its parameter 0\.weight is lazy: run the network once"):
            convert_to_sre(nn.Sequential(nn.LazyConv2d(2, 3)))
        with pytest.raises(ValueError, match="verify must be a shape of 4 integers"):
            convert_to_sre(nn.Conv2d(1, 2, 3), verify=(1, 1, 16))
        with pytest.raises(ValueError, match="verify must be an example input, its shape or a tuple of arguments"):
            convert_to_sre(nn.Sequential(nn.Conv2d(1, 2, 3), Reshape(2, 11, 7)))


class Summed(nn.Module):
    """A network that returns running sums of its input too, which no replacement of modules mends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x), x.cumsum(2)


UNTOUCHED = [case.values[0] for case in CASES if case.values[1] == 2]


@pytest.mark.parametrize("architecture", UNTOUCHED, ids=lambda item: item.name)
def test_the_check_leaves_no_trace(architecture: Architecture) -> None:
    """In float32: refused networks are as they were, and converted ones as without the check; every tensor, to the bit."""
    network = Summed(architecture.build(2))
    held = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    values = {name: tensor.clone() for name, tensor in held.items()}
    unchecked = convert_to_sre(copy.deepcopy(network.network), verify=False)
    modules = repr(network)
    with pytest.raises(ValueError, match=r"\(root\) \(Summed\): it does not commute"):
        convert_to_sre(network)
    assert repr(network) == modules
    now = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    assert list(now) == list(held)
    for name, tensor in now.items():
        assert tensor is held[name], name
        assert tensor.dtype == values[name].dtype, name
        assert torch.equal(tensor, values[name]), name

    converted = convert_to_sre(network.network)
    ours = dict(converted.named_parameters(remove_duplicate=False))
    theirs = dict(unchecked.named_parameters(remove_duplicate=False))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert type(parameter) is nn.Parameter, name
        assert (parameter.dtype, parameter.requires_grad) == (torch.float32, True), name
        assert torch.equal(parameter, theirs[name]), name
    for name, buffer in converted.named_buffers():
        assert torch.equal(buffer, unchecked.get_buffer(name)), name
    assert len({id(p) for p in ours.values()}) == len({id(p) for p in theirs.values()})


def test_modules_under_two_names() -> None:
    """DynUNet holds its layers once more in its way down and up: they stay shared, float32 and trainable."""
    network: Any = nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8))
    norms = {name: (p, p.clone()) for name, p in network.named_parameters() if "norm" in name}
    assert norms
    convert_to_sre(network)
    for name, (parameter, values) in norms.items():
        assert network.get_parameter(name) is parameter
        assert torch.equal(parameter, values)
    assert network.input_block.conv1.conv is network.skip_layers.downsample.conv1.conv
    network(torch.randn(1, 1, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


class TestHousekeeping:
    """What the caller had stays: modes, flags, dtypes, names."""

    def test_state_is_kept(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, bias=False)).to(
            torch.bfloat16
        )
        network[0].eval()
        network[2].weight.requires_grad_(False)
        names = list(network.state_dict())
        convert_to_sre(network)
        assert list(network.state_dict()) == names
        assert {tensor.dtype for tensor in network.parameters()} == {torch.bfloat16}
        assert [module.training for module in network] == [False, True, True]
        assert [p.requires_grad for p in network.parameters()] == [True, True, True, True, False]

    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    @pytest.mark.parametrize(
        "options", [{"conv": "harmonic"}, {"profile": ("gaussian", {"learn_width": True})}], ids=["harmonic", "width"]
    )
    def test_what_is_frozen_stays_frozen(self, options: dict[str, Any], frozen: str) -> None:
        network = nn.Sequential(nn.Conv2d(2, 4, 5, padding=2))
        getattr(network[0], frozen).requires_grad_(False)
        convert_to_sre(network, **options)
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad == (name.endswith("bias") == (frozen == "weight")), name

    def test_twice_is_harmless(self) -> None:
        network = convert_to_sre(nets.BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 16, 4)))
        x = torch.randn(1, 1, 33, 38)
        modules, entries, out = list(network.modules()), conversion_report(network).entries, network(x)
        convert_to_sre(network)
        assert list(network.modules()) == modules
        assert conversion_report(network).entries == entries
        assert torch.equal(network(x), out)

    def test_copies(self) -> None:
        network = convert_to_sre(nets.BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 16, 4))).eval()
        x = torch.randn(1, 1, 33, 38)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), network(x))
            assert str(conversion_report(twin)) == str(conversion_report(network))

    def test_training(self) -> None:
        network = convert_to_sre(nets.BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 16, 4), upsample="pixelshuffle"))
        network(torch.randn(2, 1, 33, 38)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_bundle_target(self) -> None:
        from monai.bundle import ConfigParser

        network = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
        network |= {"channels": [4, 8], "strides": [2]}
        parser = ConfigParser({"net": {"_target_": "monai_sre.convert_to_sre", "network": network}})
        assert isinstance(parser.get_parsed_content("net"), nets.UNet)

    def test_wrapped_networks(self) -> None:
        for wrap, name in ((nn.DataParallel, "DataParallel"), (torch.compile, "OptimizedModule")):
            net: Any = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
            with pytest.raises(TypeError, match=f"the module that {name} wraps: convert it, and wrap it again"):
                convert_to_sre(wrap(net))
            assert conversion_report(wrap(convert_to_sre(net))).replaced

    def test_complex_networks_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"its parameter 0\.weight is torch\.complex64"):
            convert_to_sre(nn.Sequential(nn.Conv2d(1, 2, 3, dtype=torch.complex64)))


def test_a_default_device_without_values() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.device("meta"):
        converted = convert_to_sre(net)
        assert radial_basis((5, 5)).device.type == "cpu"
        empty = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    assert max(conversion_report(converted).errors.values()) < 1e-9
    with pytest.raises(ValueError, match=r"its parameter 0\.weight is on the meta device"):
        convert_to_sre(empty)


def test_larger_kernels_take_all_sizes_of_before() -> None:
    """The maps of the last convolution are smaller than the padding that reflects them."""
    layers = [nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")).double()
    converted = convert_to_sre(network, kernel_size=np.int64(7))
    for size in ((6, 6), (5, 7)):
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        assert max(equivariance_error(converted, x).values()) < 1e-12


def test_axes_that_are_no_sequence() -> None:
    with pytest.raises(TypeError, match=r"axes must be None or different spatial axes out of \(0, 1\), got 1"):
        convert_to_sre(nn.Sequential(nn.Conv2d(1, 2, 3)), axes=1)  # type: ignore[arg-type]
