r"""Geometry of harmonics: kernel offsets -> stencils that turn a map into its part of one angular order.

A kernel :math:`R(r)\,Y(\hat x)`, :math:`Y` a circular or spherical harmonic of order :math:`m`, sees what a radial kernel
cannot: edges (order 1), streaks and saddles (order 2). By Hobson's theorem it is the derivative of a radial one,

.. math:: Y_m(\nabla)\, f(r) = Y_m(x) \left(\frac1r \frac{d}{dr}\right)^m f(r),

with :math:`Y_m` the solid harmonic, a polynomial of degree :math:`m` (E. W. Hobson, Proc. London Math. Soc. 24, 1892). So a
radial convolution with learned rings followed by a fixed *stencil* for :math:`Y_m(\nabla)` is a convolution with harmonics of
a learned radial profile. That costs far less than harmonics of the full kernel size: the radial part shares its ring sums
with all others, and the stencil acts on one channel at a time.

Under a rotation or reflection of the grid the :math:`2m + 1` (in 2-D: 2) components of one order turn into each other by an
orthogonal matrix. The root of the sum of their squares, the *energy*, therefore does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from monai_sre.ops.arguments import int_tuple, on_cpu
from monai_sre.ops.radial import check_geometry

#: A polynomial: coefficients by exponents.
Polynomial = dict[tuple[int, ...], float]


@on_cpu
def harmonic_stencils(
    order: int,
    spatial_dims: int,
    taps: int = 5,
    width: float = 0.8,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    r"""Stencils for :math:`Y(\nabla)`, :math:`Y` the solid harmonics of one order.

    They differentiate the polynomial of degree ``order`` that fits the values best, each weighted with a Gaussian of its
    distance in voxels (Savitzky and Golay, Anal. Chem. 36, 1964; in images Haralick's facet model). All derivatives of
    polynomials up to that degree are exact, on any spacing.

    Args:
        order: angular order, 1 or more. On one axis only 1 exists.
        spatial_dims: number of spatial axes, 1 to 3.
        taps: odd number of taps along each round axis, more than ``order``; 1 along the others.
        width: standard deviation of the Gaussian, in voxels.
        spacing: the voxel size along each spatial axis, as in :func:`monai_sre.ops.radial_basis`.
        axes: the spatial axes in which the harmonics turn; ``None`` is all.

    Returns:
        float64 tensor of shape ``(components, *kernel_size)``: 1, 2 or ``2 * order + 1`` components for 1, 2 or 3 round
        axes. The mean of their squared norms is 1.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work; the message names it, its value and what is allowed.

    Example:
        >>> harmonic_stencils(1, spatial_dims=2, taps=3)[1]  # the derivative along the last axis
        tensor([[-0.2717,  0.0000,  0.2717],
                [-0.5936,  0.0000,  0.5936],
                [-0.2717,  0.0000,  0.2717]], dtype=torch.float64)
        >>> harmonic_stencils(2, spatial_dims=3).shape
        torch.Size([5, 5, 5, 5])
    """
    (taps,) = int_tuple("taps", taps, 1, minimum=1)
    _, steps, round_axes = check_geometry((taps,) * spatial_dims, spacing, axes)
    (order,) = int_tuple("order", order, 1, minimum=1)
    if len(round_axes) == 1 and order > 1:
        raise ValueError(f"order must be 1 where kernels are round in one axis, got {order}")
    if taps <= order or taps % 2 == 0:
        raise ValueError(f"taps must be odd and more than order={order}, got {taps}")
    if not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise ValueError(f"width must be a positive number, got {width!r}")

    offset = torch.arange(taps, dtype=torch.float64) - taps // 2
    places = torch.cartesian_prod(*[offset] * len(round_axes)).reshape(-1, len(round_axes))
    weight = torch.exp(-places.square().sum(dim=1) / (4 * width**2))  # its square is the Gaussian
    unit = min(steps[axis] for axis in round_axes)
    places = places * torch.tensor([steps[axis] / unit for axis in round_axes], dtype=torch.float64)

    exponents = [
        powers for powers in product(range(order + 1), repeat=len(round_axes)) if sum(powers) in range(order, -1, -2)
    ]
    monomials = torch.stack([places.pow(torch.tensor(powers)).prod(dim=1) for powers in exponents], dim=1)
    fit = torch.linalg.pinv(monomials * weight[:, None]) * weight  # values -> coefficients of the polynomial
    rows = []
    for harmonic in solid_harmonics(len(round_axes), order):
        derivative = torch.zeros(len(exponents), dtype=torch.float64)
        for powers, value in harmonic.items():
            derivative[exponents.index(powers)] = value * math.prod(map(math.factorial, powers))
        rows.append(derivative @ fit)
    stencils = torch.stack(rows)
    stencils = stencils / stencils.square().sum(dim=1).mean().sqrt()
    stencils[stencils.abs() < 1e-12] = 0
    return stencils.reshape(-1, *[taps if axis in round_axes else 1 for axis in range(spatial_dims)])


def solid_harmonics(ndim: int, order: int) -> list[Polynomial]:
    r"""Orthogonal basis of the harmonic homogeneous polynomials of one degree, all of one norm on the sphere.

    In 2-D real and imaginary part of :math:`(x_0 + i x_1)^m`; in 3-D the real solid harmonics in Racah's normalisation
    (:math:`\sum_k C_{mk}^2 = r^{2m}`), by the sum over powers of the third axis given in E. W. Hobson, "The theory of
    spherical and ellipsoidal harmonics", 1931, Section 90.

    Args:
        ndim: number of variables, 1 to 3.
        order: degree ``m``.

    Returns:
        Polynomials ``{exponents of the variables: coefficient}``.

    Example:
        >>> solid_harmonics(2, 2)
        [{(2, 0): 1.0, (0, 2): -1.0}, {(1, 1): 2.0}]
        >>> solid_harmonics(3, 1)
        [{(0, 0, 1): 1.0}, {(1, 0, 0): 1.0}, {(0, 1, 0): 1.0}]
    """
    if ndim == 1:
        return [{(order,): 1.0}]
    if ndim == 2:
        return [part for part in _power(order) if part]
    harmonics: list[Polynomial] = []
    square: Polynomial = {(2, 0, 0): 1.0, (0, 2, 0): 1.0, (0, 0, 2): 1.0}
    for turns in range(order + 1):
        polar: Polynomial = {}
        radius: Polynomial = {(0, 0, 0): 1.0}
        for k in range((order - turns) // 2 + 1):
            power = order - 2 * k - turns
            value = (-1.0) ** k * math.comb(order, k) * math.comb(2 * order - 2 * k, order) / 2**order
            value *= math.factorial(order - 2 * k) / math.factorial(power)
            _add(polar, _times(radius, {(0, 0, power): value}))
            radius = _times(radius, square)
        norm = math.sqrt((2 if turns else 1) * math.factorial(order - turns) / math.factorial(order + turns))
        for part in _power(turns):
            if part:
                planar = {(*powers, 0): norm * value for powers, value in part.items()}
                harmonics.append({powers: value for powers, value in _times(polar, planar).items() if value})
    return harmonics


def _power(order: int) -> tuple[Polynomial, Polynomial]:
    """Real and imaginary part of ``(x + i y) ** order``."""
    parts: tuple[Polynomial, Polynomial] = ({}, {})
    for k in range(order + 1):
        parts[k % 2][order - k, k] = float(math.comb(order, k) * (-1) ** (k // 2))
    return parts


def _times(first: Polynomial, second: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for powers, value in first.items():
        _add(total, {tuple(a + b for a, b in zip(powers, more, strict=True)): value * v for more, v in second.items()})
    return total


def _add(total: Polynomial, part: Polynomial) -> None:
    for powers, value in part.items():
        total[powers] = total.get(powers, 0.0) + value
