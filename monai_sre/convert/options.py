"""What a conversion was asked for, and the layers that it makes: radial ones with the weights of plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from monai.networks.layers.factories import split_args
from torch import Tensor, nn

from monai_sre import layers
from monai_sre.convert.report import RefusedError
from monai_sre.layers import harmonic
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.conv import check_algorithm
from monai_sre.ops.pool import blur_width
from monai_sre.ops.radial import centred_basis

SRE_CONVS = (layers.SREConv1d, layers.SREConv2d, layers.SREConv3d)


@dataclass(frozen=True)
class Rules:
    """What the caller of :func:`monai_sre.nets.convert_to_sre` asked for; the fields are its arguments."""

    kernel_size: int | Sequence[int] | None = None
    num_rings: int | None = None
    profile: str | tuple[str, Mapping[str, Any]] = "band"
    init: str = "project"
    circular: bool = True
    orthonormal: bool = False
    spacing: tuple[float, ...] | None = None
    axes: tuple[int, ...] | None = None
    algorithm: str = "auto"
    antialias: bool | float = False
    conv: str | tuple[str, Mapping[str, Any]] = "radial"

    @property
    def energies(self) -> dict[str, Any] | None:
        """Options of the harmonic energies, or ``None`` where convolutions are radial only."""
        kind, options = split_args(self.conv)
        if kind not in ("radial", "harmonic"):
            raise ValueError(f"conv must be 'radial', 'harmonic' or ('harmonic', options), got {self.conv!r}")
        allowed = {"orders", "taps", "norm", "eps"} if kind == "harmonic" else set()
        if not set(options) <= allowed:
            raise ValueError(f"conv={kind!r} takes the options {sorted(allowed)}, got {sorted(options)}")
        return dict(options) if kind == "harmonic" else None

    def geometry(self, spacing: tuple[float, ...] | None) -> dict[str, Any]:
        """Keyword arguments of the radial layers."""
        return {
            "profile": self.profile,
            "circular": self.circular,
            "orthonormal": self.orthonormal,
            "spacing": spacing,
            "axes": self.axes,
        }

    def check(self, spatial_dims: int) -> None:
        """Raise where the geometry cannot work in so many spatial axes."""
        centred_basis((3,) * spatial_dims, **self.geometry(self.spacing))
        if self.num_rings is not None:
            int_tuple("num_rings", self.num_rings, 1, minimum=1)
        check_algorithm(self.algorithm)
        blur_width(self.antialias)
        if self.energies is not None:
            options = {"in_channels": 1, "out_channels": 1, "kernel_size": 3}
            with_energies(build(SRE_CONVS[spatial_dims - 1], options, self, self.spacing), options, self, self.spacing)

    def check_alike(self, what: str, values: Sequence[Any]) -> None:
        """Refuse values that differ between spatial axes that a symmetry exchanges."""
        moving = range(len(values)) if self.axes is None else self.axes
        for first, second in combinations(moving, 2):
            alike = self.spacing is None or self.spacing[first] == self.spacing[second]
            if alike and values[first] != values[second]:
                raise RefusedError(
                    f"{what}={tuple(values)} differs between the spatial axes {first} and {second}, which a rotation "
                    "exchanges; give their spacing, or the axes to be symmetric in"
                )

    def grown(self, taps: Sequence[int]) -> list[int]:
        """Kernel sizes after ``kernel_size``: larger where it is, of the same parity, 1 where they were 1."""
        if self.kernel_size is None:
            return list(taps)
        wanted = [self.kernel_size] * len(taps) if isinstance(self.kernel_size, int) else list(self.kernel_size)
        if len(wanted) != len(taps):
            raise RefusedError(f"kernel_size={self.kernel_size!r} does not have {len(taps)} entries")
        return [k if k == 1 else max(k, w + (w - k) % 2) for k, w in zip(taps, wanted, strict=True)]


def project(kernel: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Coefficients of the radial kernels nearest to given ones, and the share of energy that they keep.

    Args:
        kernel: shape ``(A, B, *kernel_size)``.
        basis: shape ``(b, *kernel_size)``.

    Returns:
        Least-squares coefficients ``(A, B, b)`` in float64, and ``sum(projected**2) / sum(kernel**2)`` (1 for a zero kernel).

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> weight, share = project(torch.ones(1, 1, 3, 3), radial_basis((3, 3)))
        >>> [round(value, 6) for value in weight.flatten().tolist()], round(share, 6)
        ([1.0, 1.0], 1.0)
    """
    flat, rings = kernel.detach().double().flatten(2), basis.double().flatten(1).to(kernel.device)
    weight = flat @ torch.linalg.pinv(rings)
    total = float(flat.square().sum())
    return weight, float((weight @ rings).square().sum()) / total if total > 0 else 1.0


def embed(kernel: Tensor, size: Sequence[int], front: Sequence[int]) -> Tensor:
    """``kernel`` in the middle of zeros of ``size``; where that is half a tap, ``front`` says whether the zeros lead."""
    pads: list[int] = []
    for axis, length in reversed(list(enumerate(size))):
        extra = length - kernel.shape[axis + 2]
        before = (extra + (1 if front[axis] else 0)) // 2
        pads += [before, extra - before]
    return nn.functional.pad(kernel, pads)


def build(kind: type[nn.Module], options: dict[str, Any], rules: Rules, spacing: tuple[float, ...] | None) -> nn.Module:
    options = {**options, **rules.geometry(spacing)}
    if rules.num_rings is not None:
        tiny = kind(**{**options, "in_channels": 1, "out_channels": 1, "groups": 1})
        most: Any = tiny.num_rings
        size = tiny.kernel_size
        if rules.axes is not None:
            most //= math.prod(k for axis, k in enumerate(size) if axis not in rules.axes)  # type: ignore[arg-type]
        options["num_rings"] = min(rules.num_rings, most)
    return kind(**options)


def with_energies(
    radial: Any, options: dict[str, Any], rules: Rules, spacing: tuple[float, ...] | None
) -> harmonic.HarmonicConv:
    """``radial``, with energies beside it; they start without any effect where weights are projected."""
    out, groups, weight = radial.out_channels, radial.groups, radial.weight
    hidden = harmonic.hidden_maps(out, groups)
    wide: Any = build(type(radial), {**options, "out_channels": out + hidden, "bias": False}, rules, spacing)
    new = harmonic.HarmonicConv(
        wide,
        radial.spatial_dims,
        out,
        hidden,
        groups,
        radial.bias is not None,
        radial.padding_mode,
        spacing=harmonic.output_spacing(spacing, radial.stride),
        axes=rules.axes,
        **(rules.energies or {}),
    ).to(weight)
    with torch.no_grad():
        wide.weight.unflatten(0, (groups, -1))[:, : out // groups].copy_(weight.unflatten(0, (groups, -1)))
        if rules.init == "project":
            nn.init.zeros_(new.mix.weight)
        if radial.bias is not None:
            new.mix.bias.copy_(radial.bias)  # type: ignore[union-attr]
    new.requires_grad_(weight.requires_grad)
    if radial.bias is not None:
        new.mix.bias.requires_grad_(radial.bias.requires_grad)  # type: ignore[union-attr]
    return new


def fill(new: nn.Module, kernel: Tensor, bias: Tensor | None, old: nn.Module, rules: Rules) -> float | None:
    """Give ``new`` the weights, the device, the dtype and the flags of ``old``; returns the energy kept."""
    weight: Any = old.weight
    new.to(device=weight.device, dtype=weight.dtype)
    new.reset_parameters()  # type: ignore[operator]
    energy = None
    with torch.no_grad():
        if rules.init == "project":
            basis: Any = new.basis
            coefficients, energy = project(kernel, basis)
            new.weight.copy_(coefficients)  # type: ignore[operator, union-attr]
            if bias is not None:
                new.bias.copy_(bias)  # type: ignore[operator, union-attr]
    for name in ("weight", "bias"):
        source = getattr(old, name)
        if source is not None:
            getattr(new, name).requires_grad_(source.requires_grad)
    if getattr(new, "log_width", None) is not None:
        new.log_width.requires_grad_(weight.requires_grad)  # type: ignore[operator, union-attr]
    return energy
