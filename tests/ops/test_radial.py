"""Geometry of radial kernels, against counts published or found by hand, and closed forms in plain Python."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from monai_sre.layers import SREConv3d
from monai_sre.ops import change_basis, radial_basis
from monai_sre.ops.radial import centred_basis, initial_std
from monai_sre.symmetry import equivariance_error
from monai_sre.symmetry.lattice import lattice_symmetries
from tests.ops.waves import grid, waves

CIRCULAR = {3: [1, 8], 5: [1, 8, 12], 7: [1, 8, 12, 16], 9: [1, 8, 12, 16, 32], 11: [1, 8, 12, 24, 24, 28]}
FILLED = {3: [1, 4, 4], 5: [1, 8, 12, 4], 7: [5, 8, 24, 8, 4], 9: [5, 16, 16, 32, 8, 4]}
PROFILES = ["band", "linear", "gaussian", ("gaussian", {"width": 0.4})]


def radii_of(size: tuple[int, ...]) -> Tensor:
    """Distance of each tap from the kernel's centre, tap by tap."""
    middle = [(length - 1) / 2 for length in size]
    distances = [math.dist(tap, middle) for tap in product(*map(range, size))]
    return torch.tensor(distances, dtype=torch.float64).reshape(size)


# Counts of SRE-Conv 1.0.2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel_size", "counts"), CIRCULAR.items())
def test_taps_of_circular_bands(kernel_size: int, counts: list[int]) -> None:
    assert radial_basis((kernel_size,) * 2).sum(dim=(1, 2)).tolist() == counts


@pytest.mark.parametrize(("kernel_size", "counts"), FILLED.items())
def test_taps_of_filled_bands(kernel_size: int, counts: list[int]) -> None:
    basis = radial_basis((kernel_size,) * 2, circular=False)
    assert basis.sum(dim=(1, 2)).tolist() == counts
    assert torch.equal(basis.sum(0), torch.ones(kernel_size, kernel_size, dtype=torch.float64))


@pytest.mark.parametrize(("kernel_size", "live"), [(3, 19), (5, 81), (7, 179)])
def test_live_taps_in_3d(kernel_size: int, live: int) -> None:
    basis = radial_basis((kernel_size,) * 3)
    assert len(basis) == kernel_size // 2 + 1
    assert basis.sum() == live
    assert set(basis.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_1d_bands_are_the_distances(kernel_size: int) -> None:
    """In 1-D every distance has its own ring, circular or not."""
    half = kernel_size // 2
    expected = [[float(abs(tap - half) == ring) for tap in range(kernel_size)] for ring in range(half + 1)]
    assert radial_basis((kernel_size,)).tolist() == expected


def test_one_tap() -> None:
    for ndim, circular, profile in product((1, 2, 3), (True, False), PROFILES):
        assert radial_basis((1,) * ndim, circular=circular, profile=profile).flatten().tolist() == [1.0]


# Closed forms ---------------------------------------------------------------------------------------------------------


def closed_form(profile: str, width: float, radius: float, ring: float, step: float, reach: float | None) -> float:
    """The docstring's formula for one tap; ``reach`` is ``None`` where the kernel fills its box."""
    value = math.exp(-((radius - ring) ** 2) / (2 * width**2))
    if profile == "linear":
        value = max(0.0, 1 - abs(radius - ring) / step)
    if reach is not None:
        value *= 0.5 + 0.5 * math.cos(math.pi * min(max(radius - reach, 0.0), 1.0))
    return value


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize(("profile", "width"), [("linear", 0.0), ("gaussian", 0.7), ("gaussian", 0.5)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_smooth_profiles(kernel_size: int, profile: str, width: float, circular: bool) -> None:
    half = kernel_size // 2
    rings = 3 if kernel_size == 7 else 2
    end = half if circular else half * math.sqrt(2)
    basis = radial_basis(
        (kernel_size,) * 2,
        num_rings=rings,
        profile=profile if width in (0.0, 0.7) else (profile, {"width": width}),
        circular=circular,
    )
    for ring, y, x in product(range(rings), range(kernel_size), range(kernel_size)):
        step = end / (rings - 1)
        radius = math.hypot(y - half, x - half)
        wanted = closed_form(profile, width or 1.0, radius, ring * step, step, half if circular else None)
        assert basis[ring, y, x].item() == pytest.approx(wanted, abs=1e-12)


def test_linear_profile_is_a_partition_of_unity() -> None:
    """So that it interpolates: a constant radial function is in its span, where the kernel fills its box."""
    total = radial_basis((7, 7), profile="linear", circular=False).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


# Spacing --------------------------------------------------------------------------------------------------------------


def test_spacing_samples_the_isotropic_kernel() -> None:
    """On 5 x 1 x 1 mm voxels a kernel has the values of the 1 mm kernel at the positions that exist."""
    for profile, circular in product(PROFILES, (True, False)):
        options: dict[str, Any] = {"num_rings": 6, "profile": profile, "circular": circular}
        fine = radial_basis((11, 11, 11), **options)
        torch.testing.assert_close(radial_basis((3, 11, 11), spacing=(5, 1, 1), **options), fine[:, ::5])


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=3), st.floats(0.1, 10), st.data())
def test_spacing_samples_the_isotropic_kernel_on_any_grid(steps: list[int], unit: float, data: st.DataObject) -> None:
    steps[data.draw(st.integers(0, len(steps) - 1))] = 1
    rings = data.draw(st.integers(1, 5))
    fine = radial_basis((25,) * len(steps), num_rings=rings, profile="linear")
    for axis, step in enumerate(steps):
        fine = fine.index_select(axis + 1, torch.arange(0, 25, step))
    coarse = radial_basis(fine.shape[1:], num_rings=rings, profile="linear", spacing=[unit * step for step in steps])
    torch.testing.assert_close(coarse, fine)


def test_bands_do_not_depend_on_the_unit_of_spacing() -> None:
    """0.1 and 0.3 are no binary fractions: taps that lie on the edge of a band must not change sides."""
    for unit in (0.1, 0.3, 0.7, 1 / 3, 1e-3, 1e3):
        assert torch.equal(radial_basis((9, 9), spacing=(unit, unit)), radial_basis((9, 9)))
        assert torch.equal(radial_basis((3, 9), spacing=(3 * unit, unit)), radial_basis((3, 9), spacing=(3, 1)))
    for coarse in range(2, 10):
        decimal = (float(f"0.{coarse}"), 0.1)  # 0.7 / 0.1 is 6.999...
        assert torch.equal(radial_basis((3, 19), spacing=decimal), radial_basis((3, 19), spacing=(coarse, 1)))


def test_taps_on_the_edge_of_a_band() -> None:
    """4 filled rings in 7 x 7 x 7 have edges at multiples of the root of 3; taps that lie there belong to the outer ring.

    Counted in integers: the ring of a tap is the root, rounded down, of a third of its squared distance.
    """
    counts = [0] * 4
    for z, y, x in product(range(-3, 4), repeat=3):
        counts[math.isqrt((z * z + y * y + x * x) // 3)] += 1
    assert radial_basis((7, 7, 7), 4, circular=False).sum(dim=(1, 2, 3)).tolist() == counts


# Axes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "free"), [((1, 2), 0), ((0, 2), 1), ((1, 0), 2)])
@pytest.mark.parametrize("orthonormal", [True, False])
def test_free_axis(axes: tuple[int, int], free: int, orthonormal: bool) -> None:
    """Each offset along the free axis has the rings of the plane, and no others."""
    size = [5, 5, 5]
    size[free] = 3
    basis = radial_basis(size, axes=axes, orthonormal=orthonormal)
    plane = radial_basis((5, 5), orthonormal=orthonormal)
    expected = torch.zeros(9, *size, dtype=torch.float64)
    for offset in range(3):
        expected[3 * offset : 3 * offset + 3].select(free + 1, offset).copy_(plane)
    assert torch.equal(basis, expected)


def test_two_free_axes() -> None:
    """What is radial in one axis is even in it and free in the others: k * k * (k // 2 + 1) coefficients."""
    basis = radial_basis((3, 5, 3), axes=(1,))
    assert basis.shape == (27, 3, 5, 3)
    assert torch.equal(basis, basis.flip(2))
    assert torch.linalg.matrix_rank(basis.flatten(1)) == 27


def test_all_axes_are_the_default() -> None:
    assert torch.equal(radial_basis((3, 5), axes=(1, 0)), radial_basis((3, 5)))


# Orthonormal bases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("profile", PROFILES, ids=str)
@pytest.mark.parametrize("kernel_size", [(9,), (7, 7), (5, 5, 5), (3, 7, 7)])
def test_orthonormal(kernel_size: tuple[int, ...], profile: Any, circular: bool) -> None:
    """Orthonormal, of the same span, and nearest to the profile: the polar factor, with ``B Q^T`` symmetric positive."""
    options: dict[str, Any] = {"profile": profile, "circular": circular}
    plain = radial_basis(kernel_size, **options).flatten(1)
    unit = radial_basis(kernel_size, orthonormal=True, **options).flatten(1)
    torch.testing.assert_close(unit @ unit.T, torch.eye(len(unit), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(plain @ unit.T @ unit, plain, atol=1e-9, rtol=0)
    polar = plain @ unit.T
    torch.testing.assert_close(polar, polar.T, atol=1e-9, rtol=0)
    assert torch.linalg.eigvalsh(polar).min() > 0


@pytest.mark.parametrize(("kernel_size", "counts"), CIRCULAR.items())
def test_orthonormal_bands_are_divided_by_the_root_of_their_size(kernel_size: int, counts: list[int]) -> None:
    wanted = radial_basis((kernel_size,) * 2) / torch.tensor(counts, dtype=torch.float64).sqrt().reshape(-1, 1, 1)
    torch.testing.assert_close(radial_basis((kernel_size,) * 2, orthonormal=True), wanted)


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_change_basis_is_exact_both_ways(profile: Any) -> None:
    plain = radial_basis((7, 7), profile=profile)
    unit = radial_basis((7, 7), profile=profile, orthonormal=True)
    weight = torch.randn(3, 2, len(plain), dtype=torch.float64)
    there = change_basis(weight, plain, unit)
    torch.testing.assert_close(torch.tensordot(there, unit, 1), torch.tensordot(weight, plain, 1))
    torch.testing.assert_close(change_basis(there, unit, plain), weight)
    assert change_basis(weight.float(), plain, unit).dtype == torch.float32


def test_change_basis_projects() -> None:
    """Between bases of different spans: the least-squares solution, as ``lstsq`` finds it."""
    old, new = radial_basis((7, 7), circular=False), radial_basis((7, 7), profile="gaussian")
    weight = torch.randn(5, len(old), dtype=torch.float64)
    target = (weight @ old.flatten(1)).T
    expected = torch.linalg.lstsq(new.flatten(1).T, target).solution.T
    torch.testing.assert_close(change_basis(weight, old, new), expected)
    with pytest.raises(ValueError, match=r"the bases must have one kernel size, got \(3, 3\) and \(5, 5\)"):
        change_basis(torch.ones(2), radial_basis((3, 3)), radial_basis((5, 5)))


# Symmetry -------------------------------------------------------------------------------------------------------------

SIZES = st.sampled_from([1, 3, 5, 7])


@given(
    size=st.lists(SIZES, min_size=1, max_size=3),
    profile=st.sampled_from(PROFILES),
    circular=st.booleans(),
    orthonormal=st.booleans(),
    data=st.data(),
)
def test_flips(size: list[int], profile: Any, circular: bool, orthonormal: bool, data: st.DataObject) -> None:
    """Flips of the round axes leave every ring unchanged, on any grid, and default rings are a basis."""
    spacing = data.draw(st.none() | st.tuples(*[st.floats(0.2, 5.0)] * len(size)))
    axes = data.draw(st.none() | st.sets(st.integers(0, len(size) - 1), min_size=1).map(tuple))
    basis = radial_basis(size, None, profile, circular, orthonormal, spacing, axes)
    assert basis.shape[1:] == tuple(size)
    directions = functional.normalize(basis.flatten(1), eps=0.0)  # far rings may be small, and still are rings
    assert torch.linalg.matrix_rank(directions, rtol=1e-7) == len(basis)
    for axis in range(len(size)) if axes is None else axes:
        torch.testing.assert_close(basis.flip(axis + 1), basis, rtol=0, atol=1e-12)


@given(
    size=SIZES,
    ndim=st.integers(2, 3),
    profile=st.sampled_from(PROFILES),
    circular=st.booleans(),
    orthonormal=st.booleans(),
)
def test_axes_change_places(size: int, ndim: int, profile: Any, circular: bool, orthonormal: bool) -> None:
    basis = radial_basis((size,) * ndim, None, profile, circular, orthonormal)
    for axis in range(1, ndim):
        torch.testing.assert_close(basis.transpose(axis, axis + 1), basis, rtol=0, atol=1e-12)


@given(st.tuples(SIZES, SIZES, SIZES), st.sampled_from(PROFILES), st.permutations([0, 1, 2]))
def test_permuted_arguments_permute_the_basis(size: tuple[int, ...], profile: Any, order: list[int]) -> None:
    spacing = (1.0, 1.5, 2.0)
    basis = radial_basis(size, profile=profile, spacing=spacing)
    moved = radial_basis([size[axis] for axis in order], profile=profile, spacing=[spacing[axis] for axis in order])
    torch.testing.assert_close(moved, basis.permute(0, *[axis + 1 for axis in order]), rtol=0, atol=1e-12)


@given(st.tuples(SIZES, SIZES), st.sampled_from(["band", "linear"]), st.booleans())
def test_equal_radii_have_equal_values(size: tuple[int, int], profile: str, circular: bool) -> None:
    """What radial means: taps of one distance, (3, 4) and (5, 0) too, are one tap to every ring."""
    basis = radial_basis(size, profile=profile, circular=circular)
    seen: dict[int, Tensor] = {}
    for y, x in product(range(size[0]), range(size[1])):
        square = (y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2
        torch.testing.assert_close(basis[:, y, x], seen.setdefault(square, basis[:, y, x]), rtol=0, atol=1e-12)


# Initialisation -------------------------------------------------------------------------------------------------------


def test_initial_std() -> None:
    """The docstring's formula for the rings 1, 8, 12 of the 5x5 kernel, with the middle of 1 / pi and 1 as coherent share."""
    rho = (1 + 1 / math.pi) / 2
    for fan_in, gain in ((4, math.sqrt(2)), (32, 1.0)):
        expected = [gain / math.sqrt(fan_in * 3 * ((1 - rho) * n + rho * n * n)) for n in (1, 8, 12)]
        assert initial_std(radial_basis((5, 5)), fan_in, gain).tolist() == pytest.approx(expected)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            [(4, 4)],
            {},
            ValueError,
            r"kernel_size must be odd along every axis, got \(4, 4\): an even kernel has no tap",
        ),
        ([(3, 2, 3)], {}, ValueError, r"kernel_size must be odd along every axis, got \(3, 2, 3\)"),
        ([5], {}, TypeError, "kernel_size must be a sequence of 1 to 3 odd integers, got 5"),
        ([(3,) * 4], {}, TypeError, "kernel_size must be a sequence of 1 to 3 odd integers"),
        ([(3, -1)], {}, ValueError, r"kernel_size must be an integer >= 1.*got \(3, -1\)"),
        ([(3.0, 3)], {}, TypeError, r"kernel_size must be an integer >= 1.*got \(3.0, 3\)"),
        (
            [(5, 5), 6],
            {},
            ValueError,
            r"num_rings=6 is too many for kernel_size=\(5, 5\).*no tap lies in ring 1; use at most 3",
        ),
        (
            [(5, 5), 9],
            {"profile": "gaussian"},
            ValueError,
            "num_rings=9 is too many.*not linearly independent; use at most 3",
        ),
        (
            [(3, 9)],
            {"num_rings": 4, "spacing": (9, 1), "axes": (0,)},
            ValueError,
            "num_rings=4 is too many.*no tap lies in",
        ),
        ([(5, 5), 0], {}, ValueError, "num_rings must be None or an integer >= 1, got 0"),
        ([(5, 5), 2.0], {}, ValueError, "num_rings must be None or an integer >= 1, got 2.0"),
        (
            [(5, 5)],
            {"spacing": (1.0, 0.0)},
            ValueError,
            r"spacing must be None or 2 positive lengths, got \(1.0, 0.0\)",
        ),
        ([(5, 5)], {"spacing": (1.0, math.nan)}, ValueError, "spacing must be None or 2 positive lengths"),
        ([(5, 5)], {"spacing": (1.0,)}, ValueError, r"spacing must be None or 2 positive lengths, got \(1.0,\)"),
        ([(5, 5)], {"spacing": 2.0}, TypeError, "spacing must be None or 2 positive lengths, got 2.0"),
        ([(5, 5)], {"spacing": ("a", 1)}, TypeError, r"spacing must be None or 2 positive lengths, got \('a', 1\)"),
        ([(5, 5)], {"axes": ()}, ValueError, r"axes must be None or different spatial axes out of \(0, 1\), got \(\)"),
        ([(5, 5)], {"axes": (0, 0)}, ValueError, "axes must be None or different spatial axes"),
        ([(5, 5)], {"axes": (-1,)}, ValueError, "axes must be None or different spatial axes"),
        ([(5, 5)], {"axes": 1}, TypeError, r"axes must be None or different spatial axes out of \(0, 1\), got 1"),
        ([(5, 5)], {"axes": (1.0,)}, TypeError, "axes must be None or different spatial axes"),
        (
            [(5, 5)],
            {"profile": "bands"},
            ValueError,
            r"profile must be one of \('band', 'linear', 'gaussian', 'isotropic'\).*got 'bands'",
        ),
        ([(5, 5)], {"profile": 3}, TypeError, "profile must be one of .*got 3"),
        ([(5, 5)], {"profile": ("gaussian",)}, TypeError, "profile must be one of .* or \\(name, options\\)"),
        (
            [(5, 5)],
            {"profile": ("gaussian", {"sigma": 1})},
            ValueError,
            r"takes the options \[.*'width'\], got \['sigma'\]",
        ),
        (
            [(5, 5)],
            {"profile": ("band", {"width": 1})},
            ValueError,
            r"profile 'band' takes the options \[\], got \['width'\]",
        ),
        (
            [(5, 5)],
            {"profile": ("gaussian", {"width": 0})},
            ValueError,
            "width of profile 'gaussian' must be a positive.*got 0",
        ),
        (
            [(5, 5)],
            {"profile": ("gaussian", {"width": "1"})},
            ValueError,
            "width of .* must be a positive number, got '1'",
        ),
    ],
    ids=str,
)
def test_errors(arguments: list[Any], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        radial_basis(*arguments, **options)


def test_the_advised_number_of_rings_works() -> None:
    """Where an error says "at most n rings", n works."""
    for size, circular, profile in product([(3, 3), (9, 9), (5, 5, 5), (3, 7)], (True, False), PROFILES):
        with pytest.raises(ValueError, match="is too many") as error:
            radial_basis(size, num_rings=40, circular=circular, profile=profile)
        advised = int(str(error.value).split("use at most ")[1].split()[0])
        assert len(radial_basis(size, num_rings=advised, circular=circular, profile=profile)) == advised


# On images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["linear", "gaussian", "isotropic"])
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


@pytest.mark.parametrize("profile", ["linear", "gaussian", ("gaussian", {"width": 1.0}), "isotropic"])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_lattice_symmetries_are_exact(profile: Any, spatial_dims: int) -> None:
    basis = radial_basis((5,) * spatial_dims, profile=profile)
    for symmetry in lattice_symmetries(spatial_dims).values():
        assert torch.equal(symmetry(basis), basis)
    radii = radii_of((5,) * spatial_dims)
    for radius in radii.unique():
        values = basis[:, radii == radius]
        torch.testing.assert_close(values, values[:, :1].expand_as(values), rtol=0, atol=1e-15)


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
    radii, reach = radii_of(size), (max(size) - 1) / 2
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
