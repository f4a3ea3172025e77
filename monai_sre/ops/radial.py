"""Geometry of radially symmetric kernels: kernel offsets -> radii -> basis.

A *tap* is one kernel position, its *radius* the distance from the kernel's centre in units of the smallest spacing. A basis
is a stack of ``b`` fixed kernels, one per *ring*, and a *profile* says how a ring spreads over radii. A learned kernel is
``weight @ basis``: it depends on a tap only through its radius, so it commutes with every rotation and reflection that maps
the grid onto itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_sre.ops.arguments import check_flags, int_tuple, on_cpu
from monai_sre.ops.isotropy import project_isotropic

PROFILES = ("band", "linear", "gaussian", "isotropic")
#: Width of the Gaussian profile where the caller names none.
GAUSSIAN_WIDTH = 0.7
#: Radii closer than this are one radius: distances on the grid differ by far more, rounding by far less.
_TOLERANCE = 1e-9


def tap_offsets(kernel_size: Sequence[int], spacing: Sequence[float]) -> list[Tensor]:
    """Positions of the taps along each axis, from the kernel's centre, in units of the smallest spacing.

    Example:
        >>> tap_offsets((3, 2), (2.0, 1.0))
        [tensor([-2.,  0.,  2.], dtype=torch.float64), tensor([-0.5000,  0.5000], dtype=torch.float64)]
    """
    unit = min(spacing)
    pairs = zip(kernel_size, spacing, strict=True)
    return [(torch.arange(length, dtype=torch.float64) - (length - 1) / 2) * (step / unit) for length, step in pairs]


def _radii(offsets: Sequence[Tensor]) -> Tensor:
    """Distances from the centre at all combinations of the given places, one shape entry per axis."""
    squares = torch.zeros((), dtype=torch.float64)
    for places in offsets:
        squares = squares.unsqueeze(-1) + places.square()
    return squares.sqrt()


def radial_basis(
    kernel_size: Sequence[int],
    num_rings: int | None = None,
    profile: str | tuple[str, Mapping[str, Any]] = "band",
    circular: bool = True,
    orthonormal: bool = False,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    r"""The fixed kernels whose weighted sums are all the kernels of a layer.

    With :math:`R` the largest radius along an axis (``kernel_size // 2`` on an isotropic grid), the profiles are

    * ``"band"``: ring :math:`j` is 1 where the radius lies in its half-open interval. ``circular``: the intervals divide
      :math:`[0, R + 1/2)` into :math:`b` equal parts, and taps outside are zero (:math:`b = R + 1` by default). Otherwise
      :math:`b - 1` equal parts of :math:`[0, D)`, :math:`D` the radius of the farthest corner, and a last ring for the taps
      at :math:`D` exactly (:math:`b = R + 2`). This is the kernel of Du et al., arXiv 2501.09753, Section 2.
    * ``"linear"``: hat functions :math:`\max(0, 1 - |r - r_j| / \delta)` at ring radii :math:`r_j` spaced by :math:`\delta`.
    * ``"gaussian"``: :math:`\exp(-(r - r_j)^2 / 2 w^2)`, ``width`` :math:`w = 0.7` unless
      ``profile=("gaussian", {"width": w})`` says otherwise; layers learn it with ``{"learn_width": True}``.
    * ``"isotropic"``: the rings of ``"linear"``, each projected onto the kernels whose frequency response is the same in
      every direction (:func:`monai_sre.ops.isotropy.project_isotropic`), so that the layer commutes with rotations by any
      angle: of all bases with as many rings on these taps, the one whose worst kernel has the least error. It has the
      default :math:`b = R + 1` with equal kernel sizes and one ring per unit of the shortest half-size otherwise, since a
      kernel of few taps along an axis can be isotropic in few ways. Nearly orthogonal, at no cost.

    The other smooth profiles have their rings at :math:`r_j = j \delta` from 0 to :math:`R` (``circular``; times a cosine
    that falls from 1 at :math:`R` to 0 at :math:`R + 1`) or to :math:`D`.

    Args:
        kernel_size: the odd number of taps along each spatial axis; its length is the number of spatial axes.
        num_rings: number of rings ``b``; ``None`` is one per unit of radius, as above, fewer where a ring would be empty.
        profile: ``"band"``, ``"linear"``, ``"gaussian"`` or ``"isotropic"``, or ``(name, options)``.
        circular: whether the kernel ends at the largest ball in its box; otherwise it fills the box.
        orthonormal: return the orthonormal basis of the same span that is nearest to the profile (Loewdin):
            :math:`G^{-1/2} B` with the Gram matrix :math:`G = B B^T`. For bands: each ring divided by the root of its size.
        spacing: the voxel size along each spatial axis, in any one unit, so that kernels are round in that unit.
        axes: the spatial axes in which the kernel is radially symmetric; ``None`` is all. Along the others each offset has
            rings of its own, so that the basis has ``num_rings`` times their kernel sizes entries.

    Returns:
        float64 tensor of shape ``(b, *kernel_size)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a kernel size is even, a ring would be empty, or the rings are not linearly independent.

    Example:
        >>> radial_basis((5, 5)).sum(dim=(1, 2)).tolist()  # taps per ring
        [1.0, 8.0, 12.0]
        >>> radial_basis((5, 5), circular=False).sum(dim=(1, 2)).tolist()
        [1.0, 8.0, 12.0, 4.0]
        >>> radial_basis((3, 7, 7), spacing=(5.0, 1.0, 1.0)).shape
        torch.Size([6, 3, 7, 7])
    """
    odd = _check_size(kernel_size, odd=True)
    return centred_basis(odd, num_rings, profile, circular, orthonormal, spacing, axes)


@on_cpu
def centred_basis(
    kernel_size: Sequence[int],
    num_rings: int | None = None,
    profile: str | tuple[str, Mapping[str, Any]] = "band",
    circular: bool = True,
    orthonormal: bool = False,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """:func:`radial_basis` for kernels of any size: an even one has its centre between its taps.

    Such a kernel serves where a grid lies between the pixels too (:mod:`monai_sre.ops.grid`). Its rings are those of the
    odd sizes: as many as fit between radius 0 and the place of its outermost taps.

    Args:
        kernel_size: number of taps along each axis; with all other arguments as in :func:`radial_basis`.

    Returns:
        float64 tensor of shape ``(b, *kernel_size)``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work.

    Example:
        >>> centred_basis((4, 4))[1]
        tensor([[0., 1., 1., 0.],
                [1., 0., 0., 1.],
                [1., 0., 0., 1.],
                [0., 1., 1., 0.]], dtype=torch.float64)
        >>> centred_basis((2, 2, 2)).sum(), torch.equal(centred_basis((5, 5)), radial_basis((5, 5)))
        (tensor(8., dtype=torch.float64), True)
    """
    size, steps, round_axes = check_geometry(kernel_size, spacing, axes)
    name, options = _check_profile(profile)
    check_flags(circular=circular, orthonormal=orthonormal)
    whole = isinstance(num_rings, (int, np.integer)) and not isinstance(num_rings, bool)
    if num_rings is not None and (not whole or num_rings < 1):
        raise ValueError(f"num_rings must be None or an integer >= 1, got {num_rings!r}")
    offsets = tap_offsets([size[axis] for axis in round_axes], [steps[axis] for axis in round_axes])
    most = math.floor(_reach(offsets) + _TOLERANCE) + (1 if circular else 2)
    for count in range(most, 0, -1) if num_rings is None else [num_rings]:
        rings = _profile_values(name, offsets, count, circular, options)
        fault = _fault(rings)
        if fault is None:
            return _free_axes(_orthonormalise(rings) if orthonormal else rings, size, round_axes)
    raise ValueError(
        f"num_rings={num_rings} is too many for kernel_size={size}, profile={name!r}, circular={circular}, "
        f"spacing={None if spacing is None else steps}: {fault}; use at most {most} rings, or None for the default"
    )


def learns_width(profile: str | tuple[str, Mapping[str, Any]]) -> bool:
    """Whether a layer with this profile learns its width.

    Example:
        >>> learns_width("gaussian"), learns_width(("gaussian", {"learn_width": True}))
        (False, True)
    """
    return bool(_check_profile(profile)[1].get("learn_width", False))


@on_cpu
def learned_gaussian(
    kernel_size: Sequence[int],
    num_rings: int | None = None,
    profile: str | tuple[str, Mapping[str, Any]] = "band",
    circular: bool = True,
    orthonormal: bool = False,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor] | None:
    r"""What a layer needs to learn the width of its Gaussian profile: ``basis = edge * exp(-squares / (2 * width ** 2))``.

    Args:
        kernel_size: odd or even; with all other arguments as in :func:`centred_basis`.

    Returns:
        ``(squares, edge)``: squared distances to each ring and the outer edge, float64, of the basis' shape. ``None`` unless
        ``profile=("gaussian", {"learn_width": True})``.

    Raises:
        ValueError: ``orthonormal`` is asked for as well, whose basis would turn with the width.

    Example:
        >>> squares, edge = learned_gaussian((5, 5), profile=("gaussian", {"learn_width": True}))
        >>> torch.allclose(edge * torch.exp(-squares / (2 * GAUSSIAN_WIDTH**2)), radial_basis((5, 5), profile="gaussian"))
        True
    """
    if not learns_width(profile):
        return None
    if orthonormal:
        raise ValueError("orthonormal must be False where the profile's width is learned, got True")
    size, steps, round_axes = check_geometry(kernel_size, spacing, axes)
    free = math.prod(length for axis, length in enumerate(size) if axis not in round_axes)
    count = len(centred_basis(kernel_size, num_rings, profile, circular, False, spacing, axes)) // free
    offsets = tap_offsets([size[axis] for axis in round_axes], [steps[axis] for axis in round_axes])
    edge = _profile_values("gaussian", offsets, count, circular, {"width": math.inf})
    distance, _ = _ring_distances(offsets, count, _reach(offsets) if circular else float(_radii(offsets).max()))
    squares = torch.where(edge > 0, distance.square(), 0.0)
    parts = (_free_axes(part, size, round_axes) for part in (squares, edge))
    return next(parts), next(parts)


def change_basis(weight: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Weights in ``new`` of the kernels that ``weight`` gives in ``old``: exact where both span the same kernels.

    Args:
        weight: learned coefficients, shape ``(..., b_old)``.
        old: basis of ``weight``, shape ``(b_old, *kernel_size)``.
        new: basis to convert to, shape ``(b_new, *kernel_size)``.

    Returns:
        Coefficients of shape ``(..., b_new)``: the least-squares projection, in the dtype of ``weight``. On the CPU it is
        computed in float64, which not every device has.

    Example:
        >>> plain, unit = radial_basis((5, 5)), radial_basis((5, 5), orthonormal=True)
        >>> change_basis(torch.tensor([1.0, 1.0, 1.0]), plain, unit)  # the square roots of 1, 8 and 12
        tensor([1.0000, 2.8284, 3.4641])
    """
    if old.shape[1:] != new.shape[1:]:
        raise ValueError(f"the bases must have one kernel size, got {tuple(old.shape[1:])} and {tuple(new.shape[1:])}")
    old, new = (basis.to("cpu", torch.float64).flatten(1) for basis in (old, new))
    matrix = old @ torch.linalg.pinv(new)
    exact = torch.promote_types(weight.dtype, torch.float64 if weight.device.type == "cpu" else torch.float32)
    return (weight.to(exact) @ matrix.to(weight.device, exact)).to(weight.dtype)


@on_cpu
def initial_std(basis: Tensor, fan_in: int, gain: float = math.sqrt(2.0)) -> Tensor:
    r"""Standard deviation of each ring's weights that keeps the scale of activations through a deep network.

    All taps of a ring share one weight, so a ring responds to white noise with the power :math:`q_j = \sum_t B_{jt}^2`,
    and to an image that is constant over the kernel with :math:`s_j = (\sum_t B_{jt})^2`, up to the number of taps times
    as much. With a coherent share :math:`\rho` of the input's power, independent weights with

    .. math:: \sigma_j^2 = \frac{g^2}{c\, b\, ((1 - \rho)\, q_j + \rho\, s_j)}

    (:math:`c` channels, :math:`b` rings, gain :math:`g`) give every ring an equal part of an output of the input's power.
    White noise behind one ReLU has :math:`\rho = 1 / \pi` (its squared mean over its second moment); each radial layer
    smooths, and :math:`\rho \to 1` with depth. The value used is the middle of these two.

    Args:
        basis: shape ``(b, *kernel_size)``.
        fan_in: number of input channels that one output sees.
        gain: that of the activation before the layer, :math:`\sqrt 2` for ReLU.

    Returns:
        float64 tensor of shape ``(b,)`` on the CPU.

    Example:
        >>> initial_std(radial_basis((3, 3)), fan_in=8)
        tensor([0.3536, 0.0528], dtype=torch.float64)
    """
    coherent = (1 + 1 / math.pi) / 2
    flat = basis.to("cpu", torch.float64).flatten(1)
    power = (1 - coherent) * flat.square().sum(dim=1) + coherent * flat.sum(dim=1).square()
    return gain / (fan_in * len(flat) * power).sqrt()


def _check_size(kernel_size: Sequence[int], odd: bool = False) -> tuple[int, ...]:
    if isinstance(kernel_size, int) or not 1 <= len(kernel_size) <= 3:
        raise TypeError(
            f"kernel_size must be a sequence of 1 to 3 {'odd ' if odd else ''}integers, got {kernel_size!r}"
        )
    size = int_tuple("kernel_size", kernel_size, len(kernel_size), minimum=1)
    if odd and any(length % 2 == 0 for length in size):
        raise ValueError(
            f"kernel_size must be odd along every axis, got {size}: an even kernel has no tap at its centre, so it shifts "
            "the image by half a pixel and commutes with no rotation"
        )
    return size


def check_geometry(
    kernel_size: Sequence[int], spacing: Sequence[float] | None, axes: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """Kernel size, spacing and round axes (ascending), with their defaults filled in.

    Raises:
        TypeError: one is of the wrong type.
        ValueError: one cannot work; the message names it, its value and what is allowed.

    Example:
        >>> check_geometry((3, 5), spacing=None, axes=None)
        ((3, 5), (1.0, 1.0), (0, 1))
    """
    size = _check_size(kernel_size)
    ndim = len(size)
    try:
        steps = (1.0,) * ndim if spacing is None else tuple(float(step) for step in spacing)
    except (TypeError, ValueError):
        raise TypeError(f"spacing must be None or {ndim} positive lengths, got {spacing!r}") from None
    if len(steps) != ndim or not all(math.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"spacing must be None or {ndim} positive lengths, got {spacing!r}")
    allowed = tuple(range(ndim))
    if axes is not None and (
        not isinstance(axes, Sequence)
        or any(type(axis) is not int and not isinstance(axis, np.integer) for axis in axes)
    ):
        raise TypeError(f"axes must be None or different spatial axes out of {allowed}, got {axes!r}")
    chosen = allowed if axes is None else tuple(axes)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(allowed):
        raise ValueError(f"axes must be None or different spatial axes out of {allowed}, got {axes!r}")
    return size, steps, tuple(sorted(chosen))


def _check_profile(profile: str | tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    pair = (profile, {}) if isinstance(profile, str) else profile
    if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[1], Mapping):
        raise TypeError(f"profile must be one of {PROFILES} or (name, options), got {profile!r}")
    name, options = pair[0], dict(pair[1])
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {PROFILES} or (name, options), got {profile!r}")
    allowed = {"width", "learn_width"} if name == "gaussian" else set()
    if not set(options) <= allowed:
        raise ValueError(f"profile {name!r} takes the options {sorted(allowed)}, got {sorted(options)}")
    width = options.get("width", 1.0)
    if not isinstance(width, (int, float)) or not 0 < width < math.inf:
        raise ValueError(f"the width of profile {name!r} must be a positive number, got {width!r}")
    if not isinstance(options.get("learn_width", False), bool):
        raise TypeError(f"learn_width of profile {name!r} must be True or False, got {options['learn_width']!r}")
    return name, options


def _reach(offsets: Sequence[Tensor]) -> float:
    """The largest radius along an axis."""
    return max(float(places[-1]) for places in offsets)


def _profile_values(
    name: str, offsets: Sequence[Tensor], count: int, circular: bool, options: Mapping[str, Any]
) -> Tensor:
    """Values of ``count`` rings at the taps with the given places along each axis, shape ``(count, *sizes)``."""
    radii, reach = _radii(offsets), _reach(offsets)
    farthest = float(radii.max())
    if name == "band":
        if circular:
            edges = torch.linspace(0, reach + 0.5, count + 1, dtype=torch.float64) - _TOLERANCE
        else:
            edges = torch.linspace(0, farthest, count, dtype=torch.float64) - _TOLERANCE
            edges = torch.cat([edges, edges.new_tensor([math.inf])])
        inside = [(radii >= low) & (radii < high) for low, high in pairwise(edges)]
        return torch.stack(inside).to(torch.float64)
    end = reach if circular or name == "isotropic" else farthest
    distance, step = _ring_distances(offsets, count, end)
    if name in ("linear", "isotropic"):
        values = (1 - distance.abs() / step).clamp(min=0)
    else:
        values = torch.exp(-0.5 * (distance / options.get("width", GAUSSIAN_WIDTH)).square())
    if circular:
        ramp = (radii - reach).clamp(0, 1)
        values = values * (0.5 + 0.5 * torch.cos(math.pi * ramp))
    if name == "isotropic":
        values = project_isotropic(values, offsets, reach + 1 if circular else math.inf)
    return values


def _ring_distances(offsets: Sequence[Tensor], count: int, end: float) -> tuple[Tensor, float]:
    """Distance of each tap to each of ``count`` rings at equal steps from 0 to ``end``, and the step."""
    radii = _radii(offsets)
    centres = torch.linspace(0, end, count, dtype=torch.float64)
    return radii - centres.reshape(-1, *[1] * radii.ndim), end / (count - 1) if count > 1 and end > 0 else 1.0


def _fault(rings: Tensor) -> str | None:
    """Why these rings are no basis, or ``None``."""
    flat = rings.flatten(1)
    empty = [index for index, ring in enumerate(flat) if not ring.any()]
    if empty:
        return f"no tap lies in ring {empty[0]}"
    norms = flat / flat.norm(dim=1, keepdim=True)
    if torch.linalg.matrix_rank(norms, rtol=1e-6) < len(flat):
        return "the rings are not linearly independent"
    return None


def _orthonormalise(rings: Tensor) -> Tensor:
    """``G^{-1/2} B`` as the orthogonal factor of ``B``, which stays finite where rings are nearly dependent."""
    left, _, right = torch.linalg.svd(rings.flatten(1), full_matrices=False)
    return (left @ right).reshape(rings.shape)


def _free_axes(rings: Tensor, size: tuple[int, ...], round_axes: tuple[int, ...]) -> Tensor:
    """Give every offset along the free axes rings of its own: shape ``(prod(free sizes) * num_rings, *size)``."""
    free_size = [length for axis, length in enumerate(size) if axis not in round_axes]
    offsets = math.prod(free_size)
    selector = torch.eye(offsets, dtype=rings.dtype).reshape(offsets, *free_size)
    basis = torch.tensordot(selector, rings, dims=0)  # (offset, *free, ring, *round)
    basis = basis.movedim(1 + len(free_size), 1).flatten(0, 1)
    order = [axis for axis in range(len(size)) if axis not in round_axes] + list(round_axes)
    return basis.permute(0, *[1 + order.index(axis) for axis in range(len(size))]).contiguous()
