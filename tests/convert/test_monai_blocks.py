"""Blocks of MONAI that act in their own ``forward``."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import SubpixelUpsample
from monai.networks.nets.autoencoderkl import AEKLDownsample
from monai.networks.nets.basic_unet import UpCat
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from monai_sre import conversion_report, convert_to_sre, equivariance_error
from monai_sre.convert.monai_blocks import CentredPadShortcut, CentredShuffle


def test_pixel_shuffle_without_a_batch() -> None:
    network = convert_to_sre(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2)))
    x = torch.randn(1, 10, 12)
    assert network(x).shape == (1, 20, 24)
    torch.testing.assert_close(network(x), network(x[None])[0])


def test_padding_is_centred_by_itself_before_a_convolution_that_stays() -> None:
    net = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), weight_norm(nn.Conv2d(1, 2, 3, 2)))
    x = torch.randn(1, 1, 32, 32)
    out = net[1](nn.functional.pad(x, (1, 1, 1, 1)))
    report = conversion_report(convert_to_sre(net, strict=False))
    assert torch.equal(net(x), out)
    assert {entry.name for entry in report.refused} == {"1"}


def test_padding_within_a_block_stays_before_a_convolution_that_stays() -> None:
    block = AEKLDownsample(2, 2)
    weight_norm(block.conv.conv)
    x = torch.randn(1, 2, 8, 9)
    out = block(x)
    convert_to_sre(block, strict=False, verify=False)
    assert torch.equal(block(x), out)


def test_padding_before_a_convolution_used_elsewhere_is_centred_by_itself() -> None:
    conv = nn.Conv2d(1, 1, 3, 2)
    net = convert_to_sre(nn.ModuleList([conv, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv)]), verify=False).double()
    assert net[0] is net[1][1]
    x = torch.randn(1, 1, 12, 15, dtype=torch.float64)
    assert net[1](x).shape == (1, 1, 6, 7)
    assert max(equivariance_error(net[1], x).values()) < 1e-12


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_shuffle_keeps_the_mean_of_what_it_interleaves(ndim: int) -> None:
    """Each pixel's new neighbours share the mean of its channels; so the mean over all is that of the pixel shuffle."""
    x = torch.randn(2, 3 * 2**ndim, *(3, 4, 5)[:ndim])
    out = CentredShuffle(2)(x)
    assert out.shape == (2, 3, *(6, 8, 10)[:ndim])
    torch.testing.assert_close(out.flatten(2).mean(2), x.unflatten(1, (3, -1)).flatten(2).mean(2))
    assert max(equivariance_error(CentredShuffle(2), x, "generators").values()) < 1e-6
    with pytest.raises(ValueError, match=f"the channels must be a multiple of {2**ndim} for a pixel shuffle, got 3"):
        CentredShuffle(2)(x[:, :3])


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (7, 10)])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_shortcut_pads_channels_and_commutes(size: tuple[int, int], antialias: bool) -> None:
    shortcut, x = CentredPadShortcut(5, 2, antialias), torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    out = shortcut(x)
    assert out.shape == (1, 5, *[-(-length // 2) for length in size])
    assert not out[:, 3:].any()
    assert not out.requires_grad  # as in MONAI
    assert max(equivariance_error(shortcut, x.detach()).values()) < 1e-12
    if not antialias and size == (7, 7):
        assert torch.equal(out[:, :3], x[..., ::2, ::2])


@pytest.mark.parametrize("pad", [True, False])
def test_up_and_cat_at_odd_sizes(pad: bool) -> None:
    """MONAI pads the far end alone; the sizes and the state stay."""
    block = UpCat(2, 4, 2, 4, "relu", "instance", bias=True, dropout=0.0, is_pad=pad).double()
    names = list(block.state_dict())
    low, skip = torch.randn(1, 4, 4, 5, dtype=torch.float64), torch.randn(1, 2, 9, 10, dtype=torch.float64)
    if not pad:
        skip = skip[..., :8, :]
    shape = block(low, skip).shape
    convert_to_sre(block, verify=(low, skip))
    assert block(low, skip).shape == shape
    assert list(block.state_dict()) == names
    turned = block(low.rot90(1, (2, 3)), skip.rot90(1, (2, 3)))
    torch.testing.assert_close(turned, block(low, skip).rot90(1, (2, 3)))


def test_subpixel_upsampling_behind_several_layers() -> None:
    """Behind any block of layers the shuffle becomes a mean; behind one convolution both are a transposed convolution."""
    several = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU())
    for block, kind in ((several, "CentredSubpixelMean"), ("default", "CentredSubpixel")):
        layer = SubpixelUpsample(2, 2, 3, 2, conv_block=block)
        network = convert_to_sre(nn.Sequential(layer)).double()
        assert type(network[0]).__name__ == kind
        assert kind in {entry.after for entry in conversion_report(network).replaced}
        assert max(equivariance_error(network, torch.randn(1, 2, 6, 7, dtype=torch.float64)).values()) < 1e-12
