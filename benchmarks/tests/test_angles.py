"""What is taken out of a network keeps its symmetry, and does nothing where there is nothing to take out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.studies.angles import CAUSES, Finer, Framed, Smoothed, resampled, without
from monai_sre import equivariance_error
from monai_sre.nets import SREResNet


@pytest.mark.parametrize("cause", CAUSES)
def test_a_changed_network_is_another_one_with_the_symmetries_of_the_grid(cause: str) -> None:
    torch.manual_seed(0)
    network, x = SREResNet(2, 1, 2, width=4, kernel_size=5, conv="harmonic").eval(), torch.randn(1, 1, 13, 16)
    changed = without(network, [cause])
    with torch.no_grad():
        assert (changed(x) - network(x)).norm() > 1e-4 * network(x).norm()
    assert max(equivariance_error(changed, x).values()) < 1e-4
    assert max(equivariance_error(Framed(network), x).values()) < 1e-4


def test_functions_of_smooth_maps_need_no_finer_grid() -> None:
    torch.manual_seed(0)
    x = resampled(torch.randn(1, 2, 4, 4), (16, 16))  # its square holds twice its frequencies
    square = nn.Module()
    square.forward = torch.square  # type: ignore[method-assign]
    assert torch.allclose(Finer(square)(x), x.square(), atol=1e-4)
    assert torch.allclose(Smoothed(nn.AvgPool2d(2))(x), nn.AvgPool2d(2)(x), atol=1e-4)
