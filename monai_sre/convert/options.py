"""What a conversion was asked for, and the layers that it makes: radial ones with the weights of plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_sre.convert.report import RefusedError
from monai_sre.layers import harmonic
from monai_sre.nets.blocks import conv_kind
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.conv import check_algorithm
from monai_sre.ops.pool import blur_width
from monai_sre.ops.radial import centred_basis, learns_width


@dataclass(frozen=True)
class Options:
    """What the caller of :func:`monai_sre.convert.convert_to_sre` asked for; the fields are its arguments."""

    kernel_size: int | Sequence[int] | None = None
    num_rings: int | None = None
    profile: str | tuple[str, Mapping[str, Any]] | None = None
    init: str = "project"
    circular: bool = True
    orthonormal: bool | None = None
    spacing: tuple[float, ...] | None = None
    axes: tuple[int, ...] | None = None
    algorithm: str = "auto"
    antialias: bool | float = False
    conv: str | tuple[str, Mapping[str, Any]] = "radial"

    @property
    def energies(self) -> dict[str, Any] | None:
        """Options of the harmonic energies, or ``None`` where convolutions are radial only."""
        kind, options = conv_kind(self.conv)
        return options if kind == "harmonic" else None

    def geometry(self, spacing: tuple[float, ...] | None) -> dict[str, Any]:
        """Keyword arguments of the radial layers; with energies all have the rings of :class:`SREHarmonicConv2d`."""
        with_energies = self.energies is not None
        profile = ("gaussian" if with_energies else "band") if self.profile is None else self.profile
        # a width that is learned leaves no basis to be orthonormal
        learned = with_energies and learns_width(profile)
        return {
            "profile": profile,
            "circular": self.circular,
            "orthonormal": with_energies and not learned if self.orthonormal is None else self.orthonormal,
            "spacing": spacing,
            "axes": self.axes,
        }

    def check(self, spatial_dims: int) -> None:
        """Raise where the geometry cannot work in so many spatial axes."""
        centred_basis((3,) * spatial_dims, **self.geometry(self.spacing))
        if isinstance(self.kernel_size, tuple):  # new taps start at zero, where no check of a network would see them
            self.check_alike("kernel_size", self.kernel_size)
        if self.num_rings is not None:
            int_tuple("num_rings", self.num_rings, 1, minimum=1)
        check_algorithm(self.algorithm)
        blur_width(self.antialias)
        if self.energies is not None:
            options = {"in_channels": 1, "out_channels": 4, "kernel_size": 3}
            radial = make_layer(Conv["SRECONV", spatial_dims], options, self, self.spacing)
            add_energies(radial, options, self, self.spacing)

    def check_alike(self, what: str, values: Sequence[Any]) -> None:
        """Refuse values that differ between spatial axes that a symmetry exchanges."""
        for first, second in combinations(range(len(values)), 2):
            if self.exchanged(first, second) and values[first] != values[second]:
                raise RefusedError(
                    f"{what}={tuple(values)} differs between the spatial axes {first} and {second}, which a rotation "
                    "exchanges; give their spacing, or the axes to be symmetric in"
                )

    def exchanged(self, first: int, second: int) -> bool:
        """Whether a symmetry exchanges two spatial axes."""
        moving = self.axes is None or (first in self.axes and second in self.axes)
        return moving and (self.spacing is None or self.spacing[first] == self.spacing[second])

    def enlarged(self, taps: Sequence[int]) -> list[int]:
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
        Least-squares coefficients ``(A, B, b)`` in float64 on the CPU, and ``sum(projected**2) / sum(kernel**2)``, which is
        1 for a zero kernel.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> weight, share = project(torch.ones(1, 1, 3, 3), radial_basis((3, 3)))
        >>> [round(value, 6) for value in weight.flatten().tolist()], round(share, 6)
        ([1.0, 1.0], 1.0)
    """
    flat, rings = (tensor.detach().cpu().double() for tensor in (kernel.flatten(2), basis.flatten(1)))
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


def make_layer(
    kind: type[nn.Module], arguments: Mapping[str, Any], options: Options, spacing: tuple[float, ...] | None
) -> nn.Module:
    """A radial layer of the geometry that was asked for, with as many rings as its kernel takes."""
    arguments = {**arguments, **options.geometry(spacing)}
    if options.num_rings is not None:
        tiny = kind(**{**arguments, "in_channels": 1, "out_channels": 1, "groups": 1})
        most: Any = tiny.num_rings
        size = tiny.kernel_size
        if options.axes is not None:
            most //= math.prod(k for axis, k in enumerate(size) if axis not in options.axes)  # type: ignore[arg-type]
        arguments["num_rings"] = min(options.num_rings, most)
    return kind(**arguments)


def add_energies(
    radial: Any,
    arguments: Mapping[str, Any],
    options: Options,
    spacing: tuple[float, ...] | None,
    kernel: Tensor | None = None,
) -> tuple[harmonic.HarmonicConv, float | None]:
    """``radial``, with energies beside it; they start without any effect where weights are projected.

    Args:
        radial: the layer, with its weights.
        arguments: it was made with.
        options: of the conversion.
        spacing: voxel size where it works.
        kernel: the dense kernel that it was projected from.

    Returns:
        The layer, and the share of the kernel that its energies see, see :func:`see_rest`.
    """
    out, groups, weight = radial.out_channels, radial.groups, radial.weight
    energies = dict(options.energies or {})
    hidden = harmonic.hidden_maps(out, groups, energies.pop("hidden_channels", None))
    extended: Any = make_layer(
        type(radial), {**arguments, "out_channels": out + hidden, "bias": False}, options, spacing
    )
    new = harmonic.HarmonicConv(
        extended,
        radial.spatial_dims,
        out,
        hidden,
        groups,
        radial.bias is not None,
        radial.padding_mode,
        spacing=harmonic.output_spacing(spacing, radial.stride),
        axes=options.axes,
        **energies,
    ).to(weight)
    with torch.no_grad():
        extended.weight.unflatten(0, (groups, -1))[:, : out // groups].copy_(weight.unflatten(0, (groups, -1)))
        if options.init == "project":
            nn.init.zeros_(new.mix.weight)
        if radial.bias is not None:
            new.mix.bias.copy_(radial.bias)
    seen = see_rest(new, kernel) if options.init == "project" and kernel is not None else None
    new.requires_grad_(weight.requires_grad)
    if radial.bias is not None:
        new.mix.bias.requires_grad_(radial.bias.requires_grad)
    return new, seen


@torch.no_grad()
def see_rest(layer: harmonic.HarmonicConv, kernel: Tensor) -> float:
    """Let the energies of a layer be those of what a dense kernel holds besides its radial part.

    An energy is the length of a vector of responses, one per component of an order. Their kernels, the derivatives of a
    hidden radial one, span a space. The hidden kernels become those with which that space holds most of what the radial part
    leaves of the dense kernel: the principal directions of its least-squares coefficients on the derivatives of all rings.

    Args:
        layer: its hidden kernels are written, scaled as they were; where the kernel has fewer directions, the others stay.
        kernel: the dense kernel, shape ``(out, in / groups, *kernel_size)``.

    Returns:
        The share of the kernel's energy (sum of squares) in that space; beside the radial part's share, they make 1 at most.
    """
    radial: Any = layer.radial
    basis, kernel = radial.current_basis().detach().cpu().double(), kernel.detach().cpu().double()
    rest = kernel - (project(kernel, basis)[0] @ basis.flatten(1)).reshape(kernel.shape)
    ndim, total = basis.dim() - 1, float(kernel.square().sum())
    rings, taps = (_spread(part, radial.dilation) for part in (basis.unsqueeze(1), rest))
    derive: Any = getattr(nn.functional, f"conv_transpose{ndim}d")
    energies: Any = layer.energies
    stencils = torch.cat([energy.stencils.cpu().double() for energy in energies]).unsqueeze(0)
    atoms = derive(rings, stencils, dilation=radial.stride)  # (b, components, *size): what a hidden ring stands for
    taps = embed(taps, atoms.shape[2:], [False] * ndim).flatten(2).unflatten(0, (layer.groups, -1))
    atoms = atoms.flatten(2)
    gram = torch.einsum("bct,dft->bcdf", atoms, atoms)
    products = torch.einsum("goit,bct->goibc", taps, atoms)
    inverse = torch.linalg.pinv(gram.flatten(2).flatten(0, 1), hermitian=True).reshape(gram.shape)
    metric = torch.einsum("bcdc->bd", gram)
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.clamp(min=0).sqrt()  # metric = root @ root.T
    rows = torch.einsum("goidf,dfbc,be->gocie", products, inverse, root).flatten(3).flatten(1, 2)
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    count = layer.hidden_channels // layer.groups
    values, directions = values.flip(-1)[:, :count], vectors.flip(-1)[..., :count].mT.unflatten(2, (-1, len(basis)))
    hidden = directions @ torch.linalg.pinv(root)  # (groups, directions, in / groups, b)
    span = torch.einsum("ghib,bcdf,gkid->ghckf", hidden, gram, hidden).flatten(3).flatten(1, 2)
    found = torch.einsum("goibc,ghib->gohc", products, hidden).flatten(2)
    seen = float((found @ torch.linalg.pinv(span, hermitian=True) * found).sum())
    weight = radial.weight.unflatten(0, (layer.groups, -1))
    held = weight[:, -count:][:, : hidden.shape[1]]
    scale = (held.cpu().double() @ basis.flatten(1)).norm(dim=(2, 3)).mean()
    hidden = hidden * (scale / (hidden @ basis.flatten(1)).norm(dim=(2, 3), keepdim=True).clamp(min=1e-12))
    used = (values > 1e-12 * values.amax(dim=1, keepdim=True).clamp(min=1e-30))[..., None, None]
    held.copy_(torch.where(used, hidden, held.cpu().double()))
    return seen / total if total > 0 else 0.0


def _spread(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """The kernel with zeros between its taps."""
    shape = [step * (length - 1) + 1 for step, length in zip(dilation, kernel.shape[2:], strict=True)]
    spread = kernel.new_zeros(*kernel.shape[:2], *shape)
    taps = [slice(None, None, step) for step in (1, 1, *dilation)]
    spread[tuple(taps)] = kernel
    return spread


def fill(new: nn.Module, kernel: Tensor, bias: Tensor | None, old: nn.Module, options: Options) -> float | None:
    """Give ``new`` the weights, the device, the dtype and the flags of ``old``.

    Returns:
        The share of the kernel's energy that is kept; ``None`` where weights start anew.
    """
    weight: Any = old.weight
    new.to(device=weight.device, dtype=weight.dtype)
    new.reset_parameters()  # type: ignore[operator]
    energy = None
    with torch.no_grad():
        if options.init == "project":
            basis: Any = new.basis
            coefficients, energy = project(kernel, basis)
            new.weight.copy_(coefficients)  # type: ignore[operator]
            if bias is not None:
                new.bias.copy_(bias)  # type: ignore[operator]
    for name in ("weight", "bias"):
        source = getattr(old, name)
        if source is not None:
            getattr(new, name).requires_grad_(source.requires_grad)
    if getattr(new, "log_width", None) is not None:
        new.log_width.requires_grad_(weight.requires_grad)
    return energy
