"""Voxel sizes, at the input and on the way through a network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from torch import nn

from monai_sre import convert_to_sre, equivariance_error, spacing_from
from monai_sre.symmetry import lattice_generators


def test_spacing_follows_uneven_strides() -> None:
    network = nets.DynUNet(
        3,
        1,
        2,
        kernel_size=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=(1, (1, 2, 2), 2),
        upsample_kernel_size=((1, 2, 2), 2),
        filters=(4, 8, 8),
    ).double()
    with pytest.raises(ValueError, match="give their spacing"):
        convert_to_sre(copy.deepcopy(network))
    convert_to_sre(network, spacing=(5.0, 1.0, 1.0))
    block: Any = network.downsamples[0]
    assert "spacing=(5.0, 1.0, 1.0)" in repr(block.conv1.conv)
    assert "spacing=(5.0, 2.0, 2.0)" in repr(block.conv2.conv)
    assert "spacing=(10.0, 4.0, 4.0)" in repr(network.bottleneck.conv2.conv)
    x = torch.randn(1, 1, 8, 16, 24, dtype=torch.float64)
    group = lattice_generators(3, spacing=(5, 1, 1))
    assert max(equivariance_error(network, x, group).values()) <= 1e-12


def test_spacing_follows_pools_of_lists() -> None:
    network: Any = nn.Sequential(nn.Conv3d(1, 2, 3), nn.MaxPool3d([1, 2, 2]), nn.Conv3d(2, 2, 3))
    convert_to_sre(network, spacing=(4.0, 1.0, 1.0), verify=(1, 1, 8, 16, 16))
    assert "spacing=(4.0, 2.0, 2.0)" in repr(network[2])


def test_spacing_behind_convolutions_without_padding() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 5), nn.Conv3d(2, 2, 5), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(2, 2, 3))
    convert_to_sre(net, spacing=(4.0, 1.0, 1.0))
    assert "spacing=(4.0, 2.0, 2.0)" in repr(net[3])


def test_spacing_behind_uneven_interpolation() -> None:
    up = nn.Upsample(scale_factor=(4, 1, 1), mode="trilinear")
    net = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), up, nn.Conv3d(1, 1, 3, padding=1))
    convert_to_sre(net, spacing=(4.0, 1.0, 1.0))
    assert "spacing=(4.0, 1.0, 1.0)" in repr(net[0])
    assert "spacing=(1.0, 1.0, 1.0)" in repr(net[2])


def test_spacing_from() -> None:
    affine = torch.tensor([[0.0, -0.7, 0, 9], [0, 0, 0.7003, 2], [5, 0, 0, 1], [0, 0, 0, 1]])
    image = MetaTensor(torch.zeros(1, 4, 8, 8), affine=affine)
    assert spacing_from(image) == pytest.approx((5.0, 0.7, 0.7), rel=1e-6)
    assert spacing_from(image)[1] == spacing_from(image)[2]
    batch = MetaTensor(torch.zeros(2, 1, 4, 8, 8), affine=torch.stack([affine, affine]))
    assert spacing_from(batch) == spacing_from(image)
    with pytest.raises(ValueError, match="one spacing"):
        spacing_from(MetaTensor(torch.zeros(2, 1, 4, 8, 8), affine=torch.stack([affine, 2 * affine])))
    with pytest.raises(TypeError, match="affine"):
        spacing_from(torch.zeros(1, 4, 8, 8))
    layer: Any = convert_to_sre(nn.Conv3d(1, 1, (3, 7, 7), padding=(1, 3, 3)), spacing=spacing_from(image))
    assert "spacing=(5.0, 0.7, 0.7)" in repr(layer)
