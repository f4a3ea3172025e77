"""Single layers: exact at every size, the nearest ones to what they replace, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from monai.networks.blocks import SubpixelUpsample, UpSample
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from monai_sre import SREConv2d, conversion_report, convert_to_sre, equivariance_error, fold_sre
from monai_sre.convert.options import Options
from monai_sre.convert.report import RefusedError
from monai_sre.convert.rules import (
    Kept,
    Replaced,
    convert_conv,
    convert_padding,
    convert_pool,
    convert_subpixel,
    convert_upsample,
    pad_pairs,
)
from monai_sre.layers.centred import CentredConv2d, CentredConvTranspose2d
from monai_sre.layers.pool import CentredPad

LAYERS = [
    nn.Conv2d(2, 3, 4, 2, 1),
    nn.Conv2d(2, 3, 2, 2),
    nn.Conv2d(2, 3, 1, 3),
    nn.Conv2d(2, 4, 3, 2, 2, dilation=2, groups=2),
    nn.Conv2d(2, 4, 3, 3, 1, padding_mode="reflect"),
    nn.Conv2d(2, 4, 4, padding="same"),
    nn.Conv2d(2, 4, 5, 2, 2, padding_mode="circular"),
    nn.ConvTranspose2d(2, 3, 3, 2, 1, 1),
    nn.ConvTranspose2d(2, 3, 4, 2, 1),
    nn.ConvTranspose2d(2, 4, 3, 3, 1, 2, groups=2),
    nn.ConvTranspose2d(2, 3, 3, 2, 1, 1, dilation=2),
    nn.ConvTranspose2d(2, 3, 1, 3, 0, 2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    nn.AdaptiveAvgPool2d(3),
    nn.Upsample(scale_factor=1.5, mode="nearest"),
    nn.Upsample(scale_factor=1.7, mode="bilinear"),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Upsample(size=(17, 17), mode="nearest"),
    nn.Upsample(size=(17, 17), mode="bicubic"),
    nn.PixelShuffle(2),
    UpSample(2, 2, 3, mode="deconvgroup"),
    UpSample(2, 2, 3, 3, mode="pixelshuffle"),
    SubpixelUpsample(2, 2, 3, 2, conv_block=nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU())),
    nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 3, 2)),
    nn.Sequential(nn.ZeroPad2d((-1, 1, -1, 1)), nn.AvgPool2d(1, 2)),
    nn.ReflectionPad2d((2, 3, 1, 4)),
    nn.ReplicationPad2d((0, 2, 2, 0)),
    nn.CircularPad2d((0, 1, 0, 1)),
    nn.ConstantPad2d((0, 3, 0, 3), -2.0),
    nn.Sequential(nn.Conv2d(2, 2, (1, 7), padding=(0, 3)), nn.ReLU(), nn.Conv2d(2, 2, (7, 1), padding="same")),
    nn.Conv2d(2, 4, (5, 1), padding=(4, 0), dilation=2, groups=2),
]


def _named(item: Any) -> str:
    return str(item).replace("\n", "")


@pytest.mark.parametrize("size", [(8, 9), (11, 12), (13, 7)])
@pytest.mark.parametrize("layer", LAYERS, ids=_named)
def test_layers(layer: nn.Module, size: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer).double()
    channels = 4 if isinstance(layer, nn.PixelShuffle) else 2
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    expected = layer(x).shape
    network = convert_to_sre(nn.Sequential(nn.Conv2d(channels, channels, 1), layer).double(), verify=x.shape)
    assert network(x).shape == expected
    assert max(equivariance_error(network, x).values()) <= 1e-12


@pytest.mark.parametrize("layer", LAYERS, ids=_named)
def test_layers_become_torchscript_of_all_sizes(layer: nn.Module) -> None:
    channels = 4 if isinstance(layer, nn.PixelShuffle) else 2
    network = convert_to_sre(nn.Sequential(nn.Conv2d(channels, channels, 1), copy.deepcopy(layer)), verify=False)
    for folded in (network, fold_sre(network)):
        graph = torch.jit.script(folded)
        for size in ((8, 9), (13, 7)):
            x = torch.randn(2, channels, *size)
            assert torch.allclose(graph(x), folded(x), atol=1e-6)


def test_reflections_wider_than_the_image_go_to_and_fro() -> None:
    """Where ``torch.nn.functional.pad`` refuses; reference: NumPy."""
    for shape, before in (((3, 2), 4), ((1, 5), 7)):
        x = torch.randn(1, 1, *shape, dtype=torch.float64)
        assert np.array_equal(CentredPad([2 * before] * 2, "reflect")(x)[0, 0], np.pad(x[0, 0], before, "reflect"))


def test_strided_convolution_samples_the_centred_grid() -> None:
    """Reference: the convolution at stride 1, read on the centred grid by linear interpolation."""
    for size, kernel in ((8, 3), (9, 3), (11, 3), (8, 4), (9, 2), (10, 1)):
        layer = CentredConv2d(1, 1, kernel, 3, 1, bias=False, dtype=torch.float64)
        x = torch.randn(1, 1, size, size, dtype=torch.float64)
        dense = functional.conv2d(functional.pad(x, [9] * 4), layer.kernel())
        count = (size + 2 - kernel) // 3 + 1
        places = (dense.shape[-1] - 1) / 2 + 3 * (torch.arange(count) - (count - 1) / 2)
        low, high = places.floor().long(), places.ceil().long()
        rows = (dense[:, :, low] + dense[:, :, high]) / 2
        assert torch.allclose(layer(x), (rows[..., low] + rows[..., high]) / 2, atol=1e-12)


def test_equals_torch_where_its_grid_is_centred() -> None:
    layer = CentredConv2d(2, 4, 3, 2, 1, groups=2)
    x = torch.randn(1, 2, 9, 13)
    plain = functional.conv2d(x, layer.kernel(), layer.bias, 2, 1, groups=2)
    assert torch.allclose(layer(x), plain, atol=1e-6)
    up = CentredConvTranspose2d(2, 4, 4, 2, 1)
    plain = functional.conv_transpose2d(x, up.kernel(), up.bias, 2, 1)
    assert torch.allclose(up(x), plain, atol=1e-6)


def test_transposed_convolution_keeps_output_size() -> None:
    layer = nn.ConvTranspose2d(1, 1, 3, 2, 1)
    new = convert_to_sre(copy.deepcopy(layer), verify=(1, 1, 5, 6))
    x = torch.randn(1, 1, 5, 6)
    for size in ([9, 11], [10, 12]):
        out = new(x, output_size=size)
        assert out.shape == layer(x, output_size=size).shape
        assert torch.allclose(new(x.flip(2), output_size=size), out.flip(2), atol=1e-6)
    with pytest.raises(ValueError, match="output_size"):
        new(x, output_size=[11, 12])


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(3, 4, 4, 2, 1)])
def test_projection_is_least_squares(layer: nn.Conv2d) -> None:
    kernel = layer.weight.detach().double().numpy().reshape(12, -1)
    new: Any = convert_to_sre(copy.deepcopy(layer), verify=(1, 3, 12, 12))
    basis = new.basis.double().numpy().reshape(new.num_rings, -1)
    solution = np.linalg.lstsq(basis.T, kernel.T, rcond=None)[0].T
    assert np.allclose(new.weight.detach().double().numpy().reshape(12, -1), solution, atol=1e-6)
    share = np.square(solution @ basis).sum() / np.square(kernel).sum()
    assert conversion_report(new).replaced[0].energy == pytest.approx(share, rel=1e-5)
    assert torch.equal(new.bias, layer.bias)


def test_radial_kernels_are_kept_whole() -> None:
    source = SREConv2d(2, 3, 5, padding=2)
    layer = nn.Conv2d(2, 3, 5, padding=2)
    with torch.no_grad():
        layer.weight.copy_(source.kernel())
    new: Any = convert_to_sre(layer)
    assert conversion_report(new).replaced[0].energy == pytest.approx(1.0)
    assert torch.allclose(new.weight, source.weight, atol=1e-6)


def test_transposed_projection_is_that_of_the_operator() -> None:
    """k = 3 with output_padding = 1 lies half a pixel aside: embedded in 4 taps, its projection is the ring means."""
    layer = nn.ConvTranspose2d(1, 1, 3, 2, 1, 1, bias=False)
    new: Any = convert_to_sre(copy.deepcopy(layer), verify=(1, 1, 4, 4))
    full = functional.pad(layer.weight.detach()[0, 0], [0, 1, 0, 1])
    inner = full[1:3, 1:3].mean()
    outer = (full.sum() - full[1:3, 1:3].sum() - full[::3, ::3].sum()) / 8
    assert torch.allclose(new.weight.flatten(), torch.stack([inner, outer]), atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_subpixel_is_a_transposed_convolution(ndim: int) -> None:
    """The kernel that is projected, applied as it is, gives what the convolution and the pixel shuffle give."""
    conv = (nn.Conv2d, nn.Conv3d)[ndim - 2](2, 3 * 2**ndim, 3, padding=1, bias=False)
    seen: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_sre.convert.rules.fill", lambda new, kernel, *rest: seen.append(kernel))
        convert_subpixel(conv, 2, Options(), None)
    x = torch.randn(1, 2, *(4, 5, 3)[:ndim])
    transposed = (functional.conv_transpose2d, functional.conv_transpose3d)[ndim - 2]
    assert torch.allclose(transposed(x, seen[0], None, 2, 2), pixelshuffle(conv(x), ndim, 2), atol=1e-5)


def test_reset_has_the_right_variance() -> None:
    """Rectified white noise through deep networks neither dies nor explodes, with strides and transposed layers."""
    down = [nn.Conv2d(32, 32, 3, 1 + i % 2, 1) for i in range(6)]
    up = [nn.ConvTranspose2d(32, 32, 4, 2, 1) for _ in range(3)]
    layers: list[nn.Module] = []
    for conv in [*down, *up]:
        layers += [conv, nn.ReLU()]
    network = convert_to_sre(nn.Sequential(*layers), init="reset", verify=False)
    x = torch.randn(2, 32, 65, 65).relu()
    with torch.no_grad():
        gain = float(network(x).square().mean() / x.square().mean())
    assert 0.5**9 < gain < 2**9  # less than a factor of 2 per layer


def test_reset_standard_deviation() -> None:
    """Each ring of a 3 x 3 kernel, by the formula of ``initial_std`` worked out by hand."""
    new: Any = convert_to_sre(nn.Conv2d(64, 256, 3, padding=1), init="reset")
    rho = (1 + 1 / np.pi) / 2
    for ring, taps in enumerate((1, 8)):
        std = np.sqrt(2 / (64 * 2 * ((1 - rho) * taps + rho * taps**2)))
        assert new.weight[..., ring].std().item() == pytest.approx(std, rel=0.03)
    assert conversion_report(new).replaced[0].energy is None


def test_larger_kernels() -> None:
    original = nets.UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    network = convert_to_sre(copy.deepcopy(original), kernel_size=5, num_rings=2)
    x = torch.randn(1, 1, 16, 20)
    assert network(x).shape == original(x).shape
    sizes = {m.kernel_size for m in network.modules() if isinstance(m, (SREConv2d, CentredConv2d))}
    assert sizes == {(5, 5)}
    assert {m.kernel_size for m in network.modules() if isinstance(m, CentredConvTranspose2d)} == {(6, 6)}
    assert all(m.num_rings <= 2 for m in network.modules() if isinstance(m, (SREConv2d, CentredConv2d)))


def test_a_computed_bias_is_refused() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    nn.utils.parametrize.register_parametrization(conv, "bias", nn.Softplus())
    with pytest.raises(ValueError, match=r"weight or bias is computed \(by Softplus\): remove that before"):
        convert_to_sre(nn.Sequential(conv))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (nn.utils.weight_norm, "WeightNorm"),
        (nn.utils.spectral_norm, "SpectralNorm"),
        (nn.utils.parametrizations.spectral_norm, "SpectralNorm"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "L1Unstructured"),
    ],
)
def test_computed_weights_are_refused_by_name(change: Callable[[nn.Module], nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=rf"0 .*weight or bias is computed \(by {name}\)"):
        convert_to_sre(nn.Sequential(change(nn.Conv2d(2, 4, 3, padding=1))))


@pytest.mark.parametrize(
    ("rule", "layer", "reason"),
    [
        (lambda conv, options: convert_conv(conv, options, None, None), nn.Conv2d(1, 2, 1), "a 1-tap kernel is radial"),
        (convert_pool, nn.AdaptiveMaxPool2d(3), "adaptive windows lie alike at both ends"),
        (convert_pool, nn.MaxPool2d(3, 1, 1), "stride 1"),
        (convert_pool, nn.AvgPool2d(2, 1), "stride 1"),
        (convert_upsample, nn.Upsample(scale_factor=2), "interpolates on a centred grid"),
        (convert_padding, nn.ReflectionPad2d(2), "pads both ends alike"),
    ],
)
def test_what_may_stay_says_why(rule: Callable[..., Any], layer: nn.Module, reason: str) -> None:
    assert rule(layer, Options()) == Kept(reason)


@pytest.mark.parametrize(
    ("rule", "layer", "match"),
    [
        (convert_pool, nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (convert_pool, nn.AdaptiveMaxPool2d(3, return_indices=True), "return_indices"),
        (convert_pool, nn.AdaptiveAvgPool2d((3, 4)), "output_size=.* differs"),
        (convert_pool, nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
        (convert_upsample, nn.Upsample(scale_factor=(1, 2)), "scale_factor=.* differs"),
        (convert_padding, nn.ZeroPad2d((1, 1, 2, 2)), "padding=.* differs between the spatial axes"),
    ],
)
def test_what_cannot_be_replaced_says_why(rule: Callable[..., Any], layer: nn.Module, match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        rule(layer, Options())


def test_energy_kept_is_none_where_nothing_was_projected() -> None:
    found = convert_conv(nn.Conv2d(1, 2, 3), Options(init="reset"), None, None)
    assert isinstance(found, Replaced)
    assert found.energy is None
    assert convert_pool(nn.MaxPool2d(2), Options()).energy is None  # type: ignore[union-attr]


def test_padding_is_paired_from_the_last_axis() -> None:
    x = torch.zeros(1, 1, 2, 3, 4)
    pads = (0, 1, 2, 3, 4, 5)
    sizes = [size + low + high for size, (low, high) in zip(x.shape[2:], pad_pairs(pads), strict=True)]
    assert list(functional.pad(x, pads).shape[2:]) == sizes


def test_subclasses_with_a_forward_of_their_own() -> None:
    class DoublePool2d(nn.AvgPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Twice(nn.Upsample):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Named(nn.MaxPool2d):
        pass

    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    x = torch.randn(1, 2, 8, 11, dtype=torch.float64)
    for module, plain in ((DoublePool2d(2), nn.AvgPool2d(2)), (Twice(scale_factor=2.5), nn.Upsample(scale_factor=2.5))):
        found, twin = (
            convert_to_sre(nn.Sequential(nn.Conv2d(2, 2, 1), layer).double())[1] for layer in (module, plain)
        )
        torch.testing.assert_close(found(x), 2 * twin(x))
        assert max(equivariance_error(found, x).values()) < 1e-12
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Identity())
    network[1].unused = DoublePool2d(2)
    with pytest.raises(
        ValueError, match=r"1\.unused .*DoublePool2d changes how AvgPool2d pools, and was not seen to run"
    ):
        convert_to_sre(network)
    network[1].unused = Own(1, 2, 1)
    kept = {entry.name: entry.after for entry in conversion_report(convert_to_sre(network)).kept}
    assert kept["1.unused"].endswith("not seen to run")
    network[1].unused = Own(1, 2, 3)
    with pytest.raises(ValueError, match=r"1\.unused .*Own changes how Conv2d convolves, and was not seen to run"):
        convert_to_sre(network)
    converted = convert_to_sre(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Named(2)))
    assert type(converted[1]).__name__ == "CentredMaxPool2d"


def test_numbers_of_numpy() -> None:
    net = nn.Sequential(nn.Conv2d(1, np.int64(4), 3), nn.MaxPool2d(np.int64(2)))  # type: ignore[arg-type]
    assert max(conversion_report(convert_to_sre(net)).errors.values()) < 1e-9


def test_a_window_larger_than_the_map() -> None:
    net = convert_to_sre(nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(3, 2, ceil_mode=True)), antialias=True)
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert net(x).shape == (1, 1, 1, 1)
    torch.testing.assert_close(net(x), net[0](x).amax().reshape(1, 1, 1, 1))


def test_pools_of_powers_are_refused() -> None:
    net = nn.Sequential(nn.Conv3d(1, 1, 3), nn.LPPool3d(2, 2))
    with pytest.raises(ValueError, match=r"LPPool3d.*no centred counterpart"):
        convert_to_sre(net, verify=False)
