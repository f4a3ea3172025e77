"""The smooth profiles: conditioning, error under rotation, spacing and axes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_sre.layers import SREConv2d, SREConv3d
from monai_sre.ops import radial_basis
from monai_sre.ops.isotropy import isotropic_kernels, kernel_error, project_isotropic
from monai_sre.ops.radial import centred_basis, tap_offsets, tap_radii
from monai_sre.symmetry import equivariance_error
from monai_sre.symmetry.lattice import lattice_symmetries
from monai_sre.symmetry.rotation import disc, rotate

SMOOTH = ["linear", "gaussian", "isotropic"]


def waves(sigma: float, spatial_dims: int, count: int = 400, seed: int = 0) -> Any:
    """Gaussian-filtered noise as a function of continuous places: a sum of plane waves, exact wherever it is sampled."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.randn(count, spatial_dims, generator=generator, dtype=torch.float64) / (2 * sigma) * 2**0.5
    phase = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)

    def image(places: Tensor) -> Tensor:
        return torch.cos(places @ frequency.T + phase).sum(-1) * (2 / count) ** 0.5

    return image


def grid(size: tuple[int, ...], spacing: tuple[float, ...]) -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step for n, step in zip(size, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@pytest.mark.parametrize("profile", SMOOTH)
@pytest.mark.parametrize(
    ("size", "spatial_dims"), [(3, 1), (9, 1), (3, 2), (5, 2), (7, 2), (9, 2), (11, 2), (3, 3), (5, 3), (7, 3)]
)
@pytest.mark.parametrize("circular", [True, False])
def test_rank_and_conditioning(profile: str, size: int, spatial_dims: int, circular: bool) -> None:
    basis = radial_basis((size,) * spatial_dims, profile=profile, circular=circular).flatten(1)
    full = size // 2 + (1 if circular or profile == "isotropic" or spatial_dims == 1 else 2)
    assert len(basis) in ({full} if profile == "isotropic" else {full, size // 2 + 1})
    unit = basis / basis.norm(dim=1, keepdim=True)
    assert (
        float(torch.linalg.cond(unit))
        < {"linear": 2.0, "gaussian": 7.0 if circular else 12.0, "isotropic": 1.8}[profile]
    )
    assert torch.equal(basis, basis.flip(1))


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
    offsets = tap_offsets((size,) * spatial_dims, (1.0,) * spatial_dims)
    space = isotropic_kernels(offsets, limit=size // 2 + 1).flatten(1)
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


@pytest.mark.parametrize("profile", ["linear", "gaussian", ("gaussian", {"width": 1.0}), "isotropic"])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_lattice_symmetries_are_exact(profile: Any, spatial_dims: int) -> None:
    basis = radial_basis((5,) * spatial_dims, profile=profile)
    for symmetry in lattice_symmetries(spatial_dims).values():
        assert torch.equal(symmetry(basis), basis)
    radii = tap_radii((5,) * spatial_dims)
    for radius in radii.unique():
        values = basis[:, radii == radius]
        torch.testing.assert_close(values, values[:, :1].expand_as(values), rtol=0, atol=1e-15)


def test_isotropic_with_fewer_rings_and_too_many() -> None:
    few = radial_basis((9, 9), num_rings=3, profile="isotropic")
    offsets = tap_offsets((9, 9), (1.0, 1.0))
    torch.testing.assert_close(project_isotropic(few, offsets, 5.0), few, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="num_rings=6 is too many"):
        radial_basis((9, 9), num_rings=6, profile="isotropic")
    assert radial_basis((1, 1), profile="isotropic").tolist() == [[[1.0]]]
    assert len(radial_basis((3, 7, 7), profile="isotropic")) == 2  # as many as the short axis allows


def test_free_axes_take_the_profile_of_the_plane() -> None:
    plane = radial_basis((7, 7), profile="isotropic")
    free = radial_basis((3, 7, 7), profile="isotropic", axes=(1, 2))
    assert free.shape == (12, 3, 7, 7)
    assert torch.equal(free[:4, 0], plane)
    assert torch.equal(free[:4, 1:], torch.zeros(4, 2, 7, 7, dtype=torch.float64))


@pytest.mark.parametrize("profile", ["linear", "gaussian"])
def test_spacing_gives_the_same_response_on_either_grid(profile: str) -> None:
    """One smooth object, sampled isotropically and with every third slice; the same kernel, a third of its slices.

    Both layers integrate the object against one function of the distance in millimetres, by different sums.
    """
    fine, coarse = (37, 17, 17), (13, 17, 17)
    image = waves(4.0, 3, count=100)
    x_fine, x_coarse = image(grid(fine, (1.0, 1.0, 1.0))), image(grid(coarse, (3.0, 1.0, 1.0)))
    assert torch.equal(x_fine[::3], x_coarse)
    options: dict[str, Any] = {"padding": 0, "bias": False, "profile": profile, "dtype": torch.float64}
    isotropic = SREConv3d(1, 4, 13, num_rings=4, **options)
    thick = SREConv3d(1, 4, (5, 13, 13), num_rings=4, spacing=(3.0, 1.0, 1.0), **options)
    with torch.no_grad():
        isotropic.weight.uniform_(0.5, 1.5)
        thick.weight.copy_(3 * isotropic.weight)  # a voxel of three times the volume
        wanted, found = isotropic(x_fine[None, None])[:, :, ::3], thick(x_coarse[None, None])
    assert wanted.shape == found.shape
    # without the spacing the same weights see another object
    blind = SREConv3d(1, 4, (5, 13, 13), num_rings=4, **options)
    with torch.no_grad():
        blind.weight.copy_(3 * isotropic.weight)
        other = blind(x_coarse[None, None])
    error = float((found - wanted).norm() / wanted.norm())
    assert error < 0.1
    assert float((other - wanted).norm() / wanted.norm()) > 5 * error


def test_spacing_rotates_in_millimetres() -> None:
    """A quarter turn through the thick axis, which maps the object on itself in millimetres but not in voxels."""
    layer = SREConv3d(1, 2, (5, 9, 9), padding="same", spacing=(2.0, 1.0, 1.0), profile="gaussian", dtype=torch.float64)
    allowed = lattice_symmetries(3, spacing=(2.0, 1.0, 1.0))
    x = torch.randn(1, 1, 6, 9, 9, dtype=torch.float64)
    errors = equivariance_error(layer, x)
    assert len(allowed) == 16
    assert max(errors[name] for name in allowed) < 1e-12
    assert min(error for name, error in errors.items() if name not in allowed) > 1e-3


@pytest.mark.parametrize("profile", ["band", "gaussian", "isotropic"])
def test_axes_are_exact_in_the_plane_and_free_along_the_other(profile: str) -> None:
    torch.manual_seed(0)
    layer = SREConv3d(1, 2, (3, 5, 5), padding="same", axes=(1, 2), profile=profile, dtype=torch.float64)
    x = torch.randn(1, 1, 6, 7, 8, dtype=torch.float64)
    plane = lattice_symmetries(3, axes=(1, 2))
    errors = equivariance_error(layer, x)
    assert len(plane) == 8
    assert max(errors[name] for name in plane) < 1e-12
    assert min(error for name, error in errors.items() if name not in plane) > 0.1
    with torch.no_grad():  # free: it can be a derivative along the first axis, which no radial kernel is
        layer.weight.zero_()
        layer.bias.zero_()
        rings = layer.num_rings // 3
        layer.weight[:, :, 0], layer.weight[:, :, 2 * rings] = -0.5, 0.5
        slope = layer(torch.arange(6.0, dtype=torch.float64).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 7, 8))
    inside = slope[0, :, 1:-1, 2:-2, 2:-2]
    torch.testing.assert_close(inside, layer.basis[0].sum().expand_as(inside))


@pytest.mark.parametrize("size", [(4, 4), (2, 4), (2, 6, 4)])
def test_even_kernels_take_the_profile_at_their_own_radii(size: tuple[int, ...]) -> None:
    """The rings lie between radius 0 and half the kernel size, less half a tap; no tap need lie on one."""
    radii, reach = tap_radii(size), (max(size) - 1) / 2
    for name, ring in (
        ("linear", lambda distance, step: (1 - distance.abs() / step).clamp(min=0)),
        ("gaussian", lambda distance, step: torch.exp(-(distance**2) / (2 * 0.7**2))),
    ):
        found = centred_basis(size, profile=name)
        places = torch.linspace(0, reach, len(found), dtype=torch.float64)
        edge = 0.5 + 0.5 * torch.cos(math.pi * (radii - reach).clamp(0, 1))
        step = float(places[1]) if len(found) > 1 else 1.0
        wanted = torch.stack([ring(radii - place, step) * edge for place in places])
        torch.testing.assert_close(found, wanted)
    bands = centred_basis(size)
    edges = torch.linspace(0, reach + 0.5, len(bands) + 1, dtype=torch.float64)
    inside = torch.stack([(radii >= low) & (radii < high) for low, high in pairwise(edges)])
    torch.testing.assert_close(bands, inside.double())
