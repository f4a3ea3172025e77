r"""How far a kernel is from commuting with every rotation, in closed form, and the space of radial kernels that do.

A radially symmetric kernel commutes with the symmetries of the grid. Under other angles it is only as good as its sampling:
its frequency response must not depend on the direction. For an image of white noise filtered with a Gaussian of width
:math:`\sigma`, whose autocorrelation is :math:`\exp(-d^2 / 4 \sigma^2)` at distance :math:`d`, everything has a closed form.
With taps :math:`t` of values :math:`K_t`, the response has the power

.. math:: Q(K) = \sum_{t, t'} K_t K_{t'} \exp(-|t - t'|^2 / 4 \sigma^2)

and its correlation with what the rotated image gives, averaged over all rotations, is

.. math:: \bar Q(K) = \sum_{t, t'} K_t K_{t'} \exp(-(|t|^2 + |t'|^2) / 4 \sigma^2)\, I(|t| |t'| / 2 \sigma^2)

with :math:`I = \cosh, I_0, \sinh(x)/x` in 1, 2, 3 dimensions (the mean of :math:`e^{x u}` over the directions, :math:`u` the
cosine of the angle between them). The relative error is :math:`\sqrt{2 (Q - \bar Q) / Q}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: Widths of the filtered noise, in units of the largest spacing, over which forms are averaged.
NOISE_WIDTHS = (1.0, 1.5, 2.0, 2.5)
#: Kernels with a smaller relative error count as isotropic. The errors leave a wide gap here: with kernels of ``k`` taps
#: along each axis, ``k // 2 + 1`` independent ones are below 0.12 (up to k = 17), and all others above 0.55.
ISOTROPIC_ERROR = 0.3
#: Relative resolution of the signal form: kernels that respond less are noise of the arithmetic.
_RESOLUTION = 1e-12


def kernel_error(
    kernel: Tensor, sigma: float | Sequence[float] = NOISE_WIDTHS, spacing: Sequence[float] | None = None
) -> Tensor:
    r"""Relative error with which a convolution commutes with rotation, as root mean square over all rotations.

    Args:
        kernel: shape ``(..., *kernel_size)``, 1 to 3 spatial axes: those of ``spacing``, or all axes.
        sigma: width of the Gaussian that filtered the image's white noise, in units of the largest spacing, or several of
            them, over which powers are averaged.
        spacing: voxel size along each spatial axis; ``None`` is 1 everywhere and takes all axes of ``kernel`` as spatial.

    Returns:
        float64 tensor of the leading shape of ``kernel``; exact, nothing is sampled.

    Example:
        >>> blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
        >>> shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        >>> kernel_error(blur), kernel_error(shift)  # the second moves the image by one pixel, wherever it is turned
        (tensor(0.0035, dtype=torch.float64), tensor(0.6057, dtype=torch.float64))
    """
    steps = [1.0] * kernel.dim() if spacing is None else [float(step) for step in spacing]
    size = kernel.shape[kernel.dim() - len(steps) :]
    offsets = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step for n, step in zip(size, steps, strict=True)]
    places = torch.cartesian_prod(*offsets).reshape(-1, len(steps))
    widths = [width * max(steps) for width in ([sigma] if isinstance(sigma, (int, float)) else sigma)]
    flat = kernel.to("cpu", torch.float64).flatten(kernel.dim() - len(steps))
    signal = (flat @ _correlation(places, places, widths) * flat).sum(-1)
    radii = places.norm(dim=1)
    common = (flat @ _turned_correlation(radii, len(steps), widths) * flat).sum(-1)
    return (2 * (signal - common) / signal).clamp(min=0).sqrt()


def project_isotropic(rings: Tensor, offsets: Sequence[Tensor], limit: float = math.inf) -> Tensor:
    r"""The isotropic kernels that are nearest to the given ones, by least squares over the taps.

    Isotropic are, among all radial kernels (one coefficient for each different radius), the generalised eigenvectors
    :math:`2 (Q - \bar Q) v = \lambda Q v` with :math:`\sqrt\lambda` below ``ISOTROPIC_ERROR``. By the theorem of Courant and
    Fischer no other space of that dimension has a better worst kernel. The dimension is one more than the half-size
    of the shortest axis: 1, 2, 3 ... isotropic kernels for 1, 3, 5 ... taps.

    Args:
        rings: radial kernels, shape ``(b, *kernel_size)``.
        offsets: positions of the taps along each axis.
        limit: taps at this radius or beyond are zero.

    Returns:
        float64 tensor of the shape of ``rings``. Taps of one radius have equal values to the last bit.

    Example:
        >>> hat = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
        >>> project_isotropic(hat, [torch.tensor([-1.0, 0.0, 1.0])] * 2)[0, :2]  # nearly 4 to 1, an isotropic Laplacian
        tensor([[0.2843, 0.9113, 0.2843],
                [0.9113, 0.0000, 0.9113]], dtype=torch.float64)
    """
    kernels, index = _isotropic_shells(tuple(tuple(axis.tolist()) for axis in offsets), limit)
    nearest = rings.double().flatten(1) @ kernels[:, index].T @ kernels
    nearest[nearest.abs() < 1e-6 * nearest.abs().max()] = 0
    return nearest[:, index].reshape(rings.shape)


@lru_cache(maxsize=128)
def _isotropic_shells(offsets: tuple[tuple[float, ...], ...], limit: float) -> tuple[Tensor, Tensor]:
    """Orthonormal isotropic kernels, as values ``(n, shells)`` at each different radius, and which radius each tap has."""
    axes = [torch.tensor(axis, dtype=torch.float64) for axis in offsets]
    places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    gaps = [abs(axis[1] - axis[0]) for axis in offsets if len(axis) > 1]
    widths = [width * max(gaps, default=1.0) for width in NOISE_WIDTHS]
    radii, index = _distinct(places.norm(dim=1))
    shells = torch.zeros(len(radii), len(places), dtype=torch.float64)
    shells[index, torch.arange(len(places))] = 1
    inside = radii < limit - 1e-9
    root = shells.sum(dim=1)[inside].sqrt()
    shells = shells[inside] / root[:, None]

    # One orthant stands for all, as the other side of the sum goes over all of them.
    orthant = (places >= 0).all(dim=1)
    copies = 2.0 ** (places[orthant] > 0).sum(dim=1)
    signal = (shells[:, orthant] * copies) @ _correlation(places[orthant], places, widths) @ shells.T
    common = root[:, None] * _turned_correlation(radii[inside], len(axes), widths) * root[None, :]
    error = 2 * (signal - common)

    power, directions = torch.linalg.eigh(signal)
    clear = power > _RESOLUTION * power[-1]
    white = directions[:, clear] / power[clear].sqrt()
    errors, turns = torch.linalg.eigh(white.T @ error @ white)
    basis = torch.linalg.svd((white @ turns[:, errors < ISOTROPIC_ERROR**2]).T, full_matrices=False).Vh
    kernels = torch.zeros(len(basis), len(inside), dtype=torch.float64)
    kernels[:, inside] = basis / root
    return kernels, index


def _distinct(radii: Tensor) -> tuple[Tensor, Tensor]:
    """The different radii, ascending, and which of them each tap has; rounding makes no difference."""
    order = radii.argsort()
    new = torch.cat([order.new_ones(1), (radii[order].diff() > 1e-9).long()])
    index = torch.empty_like(order)
    index[order] = new.cumsum(0) - 1
    return radii[order][new.bool()], index


def _correlation(first: Tensor, second: Tensor, widths: Sequence[float]) -> Tensor:
    squares = (first[:, None, :] - second[None, :, :]).square().sum(dim=-1)
    return torch.stack([torch.exp(-squares / (4 * width**2)) for width in widths]).mean(dim=0)


def _turned_correlation(radii: Tensor, ndim: int, widths: Sequence[float]) -> Tensor:
    """Mean correlation of the image at two radii over all angles between them; scaled so that nothing overflows."""
    product, gap = radii[:, None] * radii[None, :], radii[:, None] - radii[None, :]
    total = torch.zeros_like(product)
    for width in widths:
        argument = product / (2 * width**2)
        if ndim == 1:
            mean = (1 + torch.exp(-2 * argument)) / 2
        elif ndim == 2:
            mean = torch.special.i0e(argument)
        else:
            tiny = argument < 1e-12
            safe = torch.where(tiny, torch.ones_like(argument), argument)
            mean = torch.where(tiny, torch.ones_like(argument), -torch.expm1(-2 * safe) / (2 * safe))
        total += torch.exp(-gap.square() / (4 * width**2)) * mean
    return total / len(widths)
