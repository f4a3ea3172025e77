"""Stencils that take the place of a network's own: exact, as round as the page says, and of the same response."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.stencils import MADE, exchanged, gain_and_error, gaussian_stencils
from monai_sre import equivariance_error
from monai_sre.layers import SREHarmonicConv3d


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_a_gaussian_are_round(dims: int, order: int) -> None:
    stencils = gaussian_stencils(order, dims, 5)
    for share in (0.1, 0.25, 0.5):
        gain, error = gain_and_error(stencils, order, share)
        assert error < 0.004
        assert abs(gain) > 0.01
    assert stencils.flatten(1).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("kind", MADE)
def test_an_exchanged_layer_is_another_one_with_the_symmetries_of_the_grid(kind: str) -> None:
    torch.manual_seed(0)
    network, x = SREHarmonicConv3d(1, 4, 3, padding=1), torch.randn(1, 1, 9, 8, 10)
    changed = exchanged(network, MADE[kind], 5)
    with torch.no_grad():
        assert (changed(x) - network(x)).norm() > 1e-4 * network(x).norm()
    assert max(equivariance_error(changed, x).values()) < 1e-4
    old, new = (each.get_submodule("energies.0").stencils for each in (network, changed))
    assert gain_and_error(new, 1, 0.01)[0] == pytest.approx(gain_and_error(old, 1, 0.01)[0], rel=0.02)
