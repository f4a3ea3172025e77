"""Typed code of a user: the lint step reads it with all of ``mypy --strict``, and here it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import monai_sre
from monai_sre.convert import ConversionReport
from monai_sre.layers import CentredAvgPool2d, HarmonicEnergy
from monai_sre.ops import radial_basis, sre_conv
from monai_sre.symmetry import LatticeSymmetry, lattice_symmetries


class Head(nn.Module):
    """A module of a user's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = monai_sre.SREConv2d(channels, 8, 5, padding="same", num_rings=3, profile="gaussian")
        self.energy, self.pool = HarmonicEnergy(2, order=1), CentredAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.pool(self.energy(self.conv(x)))
        return maps


def test_results_are_of_the_types_that_are_declared() -> None:
    x = torch.randn(1, 1, 13, 12)
    network = monai_sre.convert_to_sre(nn.Sequential(Head(1), nn.Conv2d(8, 2, 3))).eval()
    report = assert_type(monai_sre.conversion_report(network), ConversionReport)
    errors = assert_type(monai_sre.equivariance_error(network, x), dict[str, float])
    layers = assert_type(monai_sre.layer_errors(network, x), dict[str, dict[str, float]])
    symmetries = assert_type(lattice_symmetries(2), dict[str, LatticeSymmetry])
    basis = assert_type(radial_basis((5, 5), 3), Tensor)
    maps = assert_type(sre_conv(x, torch.randn(2, 1, 3), basis), Tensor)
    assert isinstance(report, ConversionReport)
    assert max(errors.values()) < 1e-5
    assert {type(value) for row in layers.values() for value in row.values()} == {float}
    assert {type(symmetry) for symmetry in symmetries.values()} == {LatticeSymmetry}
    assert maps.shape == (1, 2, 9, 8)
