"""Plans: few additions, and exactly the basis."""

from __future__ import annotations

import pytest
import torch

from monai_sre.ops import radial_basis
from monai_sre.ops.ring.plan import convolution_geometry, plans, sum_matrix
from tests.ops.ring.rings import BASES, error, random_basis


def test_plan_of_a_band_kernel_adds_little() -> None:
    plan, mirrored = plans(radial_basis((9, 9)))
    additions = len(plan.columns.tap) + len(plan.rows.tap)
    assert additions <= 48  # 69 taps
    assert plan.maps == mirrored.maps == 5
    assert plan.mix is plan.fold is None


@pytest.mark.parametrize("name", BASES)
def test_plan_is_the_basis(name: str) -> None:
    """A plan's sums, written out as kernels, are the basis; mirrored plans, its mirror image."""
    basis = BASES[name]
    for plan, exact in zip(plans(basis), (basis, basis.flip(tuple(range(1, basis.dim())))), strict=True):
        kernels = torch.from_numpy(plan.kernels()).flatten(1)
        if plan.fold is not None:
            kernels = torch.from_numpy(plan.fold) @ kernels
        assert error(kernels, exact.flatten(1)) < 1e-12


def test_sum_matrix_of_the_transpose() -> None:
    basis = random_basis(2, (3, 3))
    plan, mirrored = plans(basis)
    geometry = convolution_geometry((5, 4), plan.kernel, (2, 1), (1, 2), (1, 1))
    there = sum_matrix(plan, geometry, torch.float64)
    back = sum_matrix(mirrored, geometry.adjoint(plan.kernel), torch.float64)
    assert torch.equal(there, back.permute(2, 1, 0))
