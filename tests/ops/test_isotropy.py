"""The error of kernels under rotation, and the space of kernels that have little of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_sre.layers import SREConv2d, SREConv3d
from monai_sre.ops import radial_basis
from monai_sre.ops.isotropy import kernel_error, project_isotropic
from monai_sre.ops.radial import tap_offsets
from monai_sre.symmetry.rotation import disc, rotate
from tests.ops.waves import grid, waves


def test_the_form_of_the_error_is_that_of_sampled_noise() -> None:
    """The closed form against plane waves that are rotated exactly, so that nothing is interpolated."""
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    taps = grid((5, 5), (1.0, 1.0)).reshape(-1, 2)
    power = difference = torch.zeros((), dtype=torch.float64)
    for seed in range(6):
        image = waves(1.5, 2, seed=seed)
        places = 60 * torch.rand(300, 2, generator=generator, dtype=torch.float64)
        for angle in torch.arange(8, dtype=torch.float64) * (math.pi / 4) + 0.1 * seed:
            turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
            straight = (image(places[:, None] + taps) * kernel.flatten()).sum(-1)
            turned = (image(places[:, None] + taps @ turn.T) * kernel.flatten()).sum(-1)
            power = power + straight.square().sum() + turned.square().sum()
            difference = difference + 2 * (straight - turned).square().sum()
    sampled = float((difference / power).sqrt())
    assert float(kernel_error(kernel, sigma=1.5)) == pytest.approx(sampled, rel=0.1)


def test_the_error_of_known_kernels() -> None:
    delta = torch.zeros(3, 3, 3)
    delta[1, 1, 1] = 1
    assert float(kernel_error(delta)) < 1e-7
    five, nine = torch.zeros(3, 3), torch.ones(3, 3)
    five[1], five[:, 1] = 1, 1
    five[1, 1], nine[1, 1] = -4, -8
    patra = torch.tensor(
        [[1.0, 4.0, 1.0], [4.0, -20.0, 4.0], [1.0, 4.0, 1.0]]
    )  # the isotropic Laplacian, to fourth order
    assert float(kernel_error(patra)) < 0.2 * min(float(kernel_error(five)), float(kernel_error(nine)))
    (found,) = project_isotropic(patra[None].double(), tap_offsets((3, 3), (1.0, 1.0)))
    ratio = (found[0, 1] / found[0, 0]).item()
    assert ratio == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize(("size", "spatial_dims"), [(5, 2), (7, 2), (9, 2), (5, 3)])
def test_isotropic_space_is_the_best(size: int, spatial_dims: int) -> None:
    """Courant-Fischer: every radial kernel outside the space, orthogonal to it in the signal's power, errs far more."""
    space = radial_basis((size,) * spatial_dims, profile="isotropic", orthonormal=True).flatten(1)
    assert len(space) == size // 2 + 1
    torch.testing.assert_close(space @ space.T, torch.eye(len(space), dtype=torch.float64))
    weight = torch.randn(200, len(space), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernels = (weight @ space).reshape(-1, *(size,) * spatial_dims)
    assert float(kernel_error(kernels, spacing=(1.0,) * spatial_dims).max()) < 0.06
    for profile in ("band", "linear", "gaussian"):
        other = radial_basis((size,) * spatial_dims, profile=profile).flatten(1)
        worst = _worst(other, size, spatial_dims)
        assert worst > 3 * _worst(space, size, spatial_dims)


def _worst(basis: Tensor, size: int, spatial_dims: int) -> float:
    """The largest relative error of any kernel in the span, by random search and ascent: a lower bound."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, len(basis), generator=generator, dtype=torch.float64)
    for spread in (1.0, 0.3, 0.1, 0.03):
        errors = kernel_error((weight @ basis).reshape(-1, *(size,) * spatial_dims), spacing=(1.0,) * spatial_dims)
        best = weight[errors.argmax()]
        weight = best + spread * best.norm() * torch.randn(2000, len(basis), generator=generator, dtype=torch.float64)
        weight[0] = best
    return float(errors.max())


@pytest.mark.parametrize(("size", "spatial_dims", "gain"), [(5, 2, 8.0), (7, 2, 20.0), (9, 2, 20.0), (5, 3, 4.0)])
@pytest.mark.parametrize("orthonormal", [False, True])
def test_measured_error_against_the_bands(size: int, spatial_dims: int, gain: float, orthonormal: bool) -> None:
    """Spline-5 rotations of filtered noise in the central region, random weights as initialised."""
    shape = (64, 64) if spatial_dims == 2 else (10, 36, 36)
    places = grid(shape, (1.0,) * spatial_dims)
    x = torch.stack([waves(1.5, spatial_dims, count=200, seed=seed)(places) for seed in range(2)])[None]
    layer_type = SREConv2d if spatial_dims == 2 else SREConv3d

    def error(profile: str) -> float:
        torch.manual_seed(0)
        layer = layer_type(
            2, 8, size, padding="same", bias=False, profile=profile, orthonormal=orthonormal, dtype=torch.float64
        )
        region = disc(shape[-2:], 0.3 * shape[-1])
        total = 0.0
        with torch.no_grad():
            y = layer(x)
            for angle in (15.0, 30.0, 45.0):
                expected, turned = rotate(y, angle) * region, layer(rotate(x, angle)) * region
                inner = slice(None) if spatial_dims == 2 else slice(2, -2)
                total += float((turned - expected)[:, :, inner].norm() / expected[:, :, inner].norm())
        return total / 3

    assert error("isotropic") * gain < error("band")


def test_isotropic_with_fewer_rings_and_too_many() -> None:
    few = radial_basis((9, 9), num_rings=3, profile="isotropic")
    offsets = tap_offsets((9, 9), (1.0, 1.0))
    torch.testing.assert_close(project_isotropic(few, offsets, 5.0), few, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="num_rings=6 is too many"):
        radial_basis((9, 9), num_rings=6, profile="isotropic")
    assert radial_basis((1, 1), profile="isotropic").tolist() == [[[1.0]]]
    assert len(radial_basis((3, 7, 7), profile="isotropic")) == 2  # as many as the short axis allows
