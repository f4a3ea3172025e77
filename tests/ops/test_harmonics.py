"""Stencils of circular and spherical harmonics."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_sre.ops.harmonics import Polynomial, harmonic_stencils, solid_harmonics

CASES = [(1, 1), *itertools.product((2, 3), (1, 2, 3, 4))]


def value(polynomial: Polynomial, places: Tensor) -> Tensor:
    """The polynomial at each row of ``places``."""
    terms = [factor * places.pow(torch.tensor(powers)).prod(dim=1) for powers, factor in polynomial.items()]
    return torch.stack(terms).sum(dim=0)


def places_of(stencils: Tensor) -> Tensor:
    """Offsets of all taps, one row per tap."""
    axes = [torch.arange(length, dtype=torch.float64) - length // 2 for length in stencils.shape[1:]]
    return torch.cartesian_prod(*axes).reshape(-1, stencils.dim() - 1)


@pytest.mark.parametrize(("ndim", "order"), CASES)
def test_solid_harmonics(ndim: int, order: int) -> None:
    """As many as there should be, harmonic, homogeneous, orthogonal, and the sum of their squares is round."""
    harmonics = solid_harmonics(ndim, order)
    assert len(harmonics) == {1: 1, 2: 2, 3: 2 * order + 1}[ndim]
    for harmonic in harmonics:
        assert {sum(powers) for powers in harmonic} == {order}
        laplacian: dict[tuple[int, ...], float] = {}
        for powers, factor in harmonic.items():
            for axis, power in enumerate(powers):
                if power >= 2:
                    lower = (*powers[:axis], power - 2, *powers[axis + 1 :])
                    laplacian[lower] = laplacian.get(lower, 0.0) + factor * power * (power - 1)
        assert all(abs(rest) < 1e-12 for rest in laplacian.values())
    places = torch.randn(50, ndim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.stack([value(harmonic, places) for harmonic in harmonics])
    torch.testing.assert_close(values.square().sum(dim=0), places.norm(dim=1) ** (2 * order))
    # the inner product in which derivatives and monomials are dual is the only one, up to scale, that rotations keep
    table = [
        [sum(factor * other.get(powers, 0.0) * math.prod(map(math.factorial, powers)) for powers, factor in one.items())
         for other in harmonics]
        for one in harmonics
    ]  # fmt: skip
    torch.testing.assert_close(torch.tensor(table), torch.eye(len(harmonics)) * table[0][0])


@pytest.mark.parametrize(("ndim", "order"), CASES)
@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 2.0)])
def test_stencils_differentiate_polynomials(ndim: int, order: int, spacing: tuple[float, ...] | None) -> None:
    """A stencil sees its own harmonic, and nothing of any other polynomial up to its degree."""
    steps = None if spacing is None else spacing[:ndim]
    stencils = harmonic_stencils(order, ndim, taps=5, spacing=steps)
    assert float(stencils.square().sum() / len(stencils)) == pytest.approx(1.0)
    places = places_of(stencils) * (torch.ones(ndim) if steps is None else torch.tensor(steps) / min(steps))
    harmonics = torch.stack([value(harmonic, places) for harmonic in solid_harmonics(ndim, order)])
    response = stencils.flatten(1) @ harmonics.T
    torch.testing.assert_close(response, torch.eye(len(stencils)).double() * response[0, 0], rtol=1e-9, atol=1e-9)
    square = places.square().sum(dim=1)
    for degree in range(order + 1):
        for turns in range(order if degree == order else degree + 1):  # r^2 times lower harmonics, which span the rest
            if (degree - turns) % 2 == 0 and not (ndim == 1 and turns > 1):
                lower = solid_harmonics(ndim, turns) if turns else [{(0,) * ndim: 1.0}]
                others = torch.stack([value(h, places) * square ** ((degree - turns) // 2) for h in lower])
                assert float((stencils.flatten(1) @ others.T).abs().max()) < 1e-9 * float(others.abs().max())


def test_first_order_is_a_gradient() -> None:
    y, x = harmonic_stencils(1, 2, taps=3, width=0.6)
    torch.testing.assert_close(x, y.T)
    torch.testing.assert_close(x, -x.flip(1))
    assert bool((x[:, 2] > 0).all())


def test_order_two_in_a_plane_of_a_volume() -> None:
    stencils = harmonic_stencils(2, 3, taps=5, axes=(1, 2))
    assert stencils.shape == (2, 1, 5, 5)
    torch.testing.assert_close(stencils[:, 0], harmonic_stencils(2, 2, taps=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0}, "order must"),
        ({"order": 2, "spatial_dims": 1}, "order must be 1"),
        ({"order": 1, "taps": 4}, "taps must be odd"),
        ({"order": 3, "taps": 3}, "taps must be odd and more than order=3, got 3"),
        ({"order": 1, "width": 0.0}, "width must be a positive number, got 0.0"),
        ({"order": 1, "spacing": (1.0, -1.0)}, "spacing must"),
        ({"order": 1, "axes": (2,)}, "axes must"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        harmonic_stencils(**{"spatial_dims": 2, **arguments})
