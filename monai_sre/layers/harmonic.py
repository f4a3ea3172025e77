"""Convolutions that add to the radial part what it cannot see: energies of circular and spherical harmonics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_sre.layers.conv import PADDING_MODES, SREConv1d, SREConv2d, SREConv3d, follow_parameters, on_flat
from monai_sre.ops.arguments import check_dims, int_tuple
from monai_sre.ops.energy import add_energies, harmonic_energy
from monai_sre.ops.grid import centred_fit, extend_ends
from monai_sre.ops.harmonics import harmonic_stencils
from monai_sre.ops.radial import learns_width
from monai_sre.ops.ring.energy_portable import cat_groups, split_groups


class HarmonicEnergy(nn.Module):
    """How strongly each channel varies with one angular order: 1 for edges, 2 for streaks, and so on.

    Args:
        spatial_dims: 1 to 3.
        order: angular order of the harmonics, 1 or more.
        taps: odd number of taps of the stencils along each round axis, more than ``order``.
        width: standard deviation of their Gaussian in voxels.
        spacing: with ``axes`` as in :class:`monai_sre.layers.SREConv2d`.
        eps: added to the sum of squares, so that the gradient is finite where nothing varies.
        padding_mode: what lies outside of the image, as in ``torch.nn.Conv2d``.

    Shape:
        ``(N, C, *spatial)`` to the same.

    Raises:
        ValueError: an argument cannot work; the message names it, its value and what is allowed.

    Example:
        >>> ramp = torch.arange(7.0).expand(1, 1, 7, 7)
        >>> HarmonicEnergy(2, order=1)(ramp)[0, 0, 3, 2:5]  # a slope is the same wherever it is
        tensor([3.2282, 3.2282, 3.2282])
    """

    def __init__(
        self,
        spatial_dims: int,
        order: int,
        taps: int = 5,
        width: float = 0.8,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
        eps: float = 1e-3,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        spatial_dims = check_dims(spatial_dims)
        if not isinstance(eps, (int, float)) or not 0 < eps < math.inf:
            raise ValueError(f"eps must be a positive number, got {eps!r}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        self.order, self.eps, self.padding_mode = order, float(eps), padding_mode
        geometry: dict[str, Any] = {"taps": taps, "width": width, "spacing": spacing, "axes": axes}
        self._geometry = geometry
        exact = self._exact_stencils(spatial_dims)
        for name in ("spacing", "axes"):  # copies: the stencils are made again whenever the layer moves
            if geometry[name] is not None:
                geometry[name] = tuple(geometry[name])
        self._reach = [length // 2 for length in exact.shape[1:]]
        held = torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32
        self.register_buffer("stencils", exact.to(torch.empty(0, device=device, dtype=held)), persistent=False)
        self.stencils: Tensor

    def _exact_stencils(self, spatial_dims: int) -> Tensor:
        return harmonic_stencils(self.order, spatial_dims, **self._geometry)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Stencils of full precision after a change of dtype or device: rounded, the symmetry of 3-D ones is inexact."""
        super()._apply(on_flat(fn, self), recurse)
        held = self.stencils.float() if self.stencils.dtype.itemsize < 4 else self.stencils
        self.stencils = self._exact_stencils(held.dim() - 1).to(held)  # new: a graph may still need those that were
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return harmonic_energy(x, self.stencils, self.eps)
        size: list[int] = []
        for axis in range(2, x.dim()):
            size.append(x.size(axis))
        extended = extend_ends(x, self._reach, self.padding_mode)
        return centred_fit(harmonic_energy(extended, self.stencils, self.eps), size)

    def extra_repr(self) -> str:
        """Order and stencil."""
        return f"order={self.order}, stencils={tuple(self.stencils.shape)}"


def make_norm(norm: str | tuple[str, Mapping[str, Any]], spatial_dims: int, channels: int) -> nn.Module:
    """MONAI's normalisation layer of a name, or of a name and arguments.

    Raises:
        TypeError: it takes no such argument.
        ValueError: there is no such layer.

    Example:
        >>> make_norm(("group", {"num_groups": 2}), 2, 4).num_groups
        2
    """
    try:
        return get_norm_layer(norm, spatial_dims, channels)
    except (TypeError, ValueError) as error:
        raise type(error)(f"norm={norm!r} gives no layer for {channels} channels: {error}") from error


#: What the parts of a layer do unless something was put in their place.
_PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, HarmonicEnergy.forward)


def is_plain(part: nn.Module) -> bool:
    """Whether a part of a harmonic layer is what it was built as, without hooks, wrappers or another module in its place.

    Example:
        >>> layer = SREHarmonicConv2d(1, 4, 3)
        >>> is_plain(layer.mix), is_plain(nn.utils.spectral_norm(layer.mix))
        (True, False)
    """
    return getattr(part.forward, "__func__", None) in _PLAIN and not is_hooked(part)


def is_hooked(part: nn.Module) -> bool:
    """Whether something is to be called before or after a module."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return any(len(each) for each in hooks)


class HarmonicConv(nn.Module):
    r"""Energies of harmonics added to a radial convolution; :class:`SREHarmonicConv2d` is the layer to take.

    A radial kernel has no orientation, so it sees no edge and no streak. Here some of the maps of a radial convolution are
    hidden: their :class:`HarmonicEnergy` of each order is taken, normalised if so asked for, and mixed into the other maps,

    .. math:: y = K * x + M\, \mathrm{norm}(e), \qquad e_{m,h} = \Bigl\|\,Y_m(\nabla)\, (K_h * x)\Bigr\|,

    with radial kernels :math:`K`, :math:`K_h` and a matrix :math:`M`. By Hobson's theorem (see
    :mod:`monai_sre.ops.harmonics`) :math:`Y_m(\nabla) K_h` is a filter of order :math:`m` with a learned radial profile.
    Energies turn as scalars do, so the layer takes a convolution's place and keeps its symmetry exact.

    Args:
        radial: a radial convolution without bias. Its output holds, in each group of channels, those of the layer and then
            the hidden ones.
        spatial_dims: 1 to 3.
        out_channels: number of channels of the output.
        hidden_channels: number of the hidden ones.
        groups: those of ``radial``.
        bias: whether to add a learned bias.
        padding_mode: what lies outside of the image, as in ``torch.nn.Conv2d``.
        orders: with the arguments up to ``eps`` as in :class:`SREHarmonicConv2d`.
        spacing: voxel size on the grid of the output.
        axes: as in :class:`monai_sre.layers.SREConv2d`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work; the message names it, its value and what is allowed.
    """

    def __init__(
        self,
        radial: nn.Module,
        spatial_dims: int,
        out_channels: int,
        hidden_channels: int,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        orders: Sequence[int] | None = None,
        taps: int | None = None,
        norm: str | tuple[str, Mapping[str, Any]] | None = None,
        eps: float = 1e-3,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if orders is None:
            orders = (1,) if spatial_dims == 1 or (axes is not None and len(axes) == 1) else (1, 2)
        if isinstance(orders, (int, str)) or not isinstance(orders, Sequence) or not orders:
            raise TypeError(f"orders must be a sequence of integers >= 1, got {orders!r}")
        self.orders = int_tuple("orders", orders, len(orders), minimum=1)
        if len(set(self.orders)) != len(self.orders):
            raise ValueError(f"orders must differ from each other, got {orders!r}")
        if taps is None:
            taps = max(3 if spatial_dims == 3 else 5, max(self.orders) + 1 + max(self.orders) % 2)
        self.out_channels, self._axes_of_a_batch = out_channels, spatial_dims + 2
        self.hidden_channels, self.groups = hidden_channels, groups
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.radial = radial
        self.energies = nn.ModuleList(
            HarmonicEnergy(
                spatial_dims, order, taps, spacing=spacing, axes=axes, eps=eps, padding_mode=padding_mode, **options
            )
            for order in self.orders
        )
        self.eps = float(eps)
        total = hidden_channels * len(self.orders)
        self.norm = nn.Identity() if norm is None else make_norm(norm, spatial_dims, total).to(**options)
        self.mix = Conv["CONV", spatial_dims](total, out_channels, 1, groups=groups, bias=bias, **options)
        self.algorithm = str(getattr(radial, "algorithm", "auto"))
        self._mixes_at_once = norm is None and padding_mode == "zeros"
        self.register_load_state_dict_post_hook(follow_parameters)
        self.reset_parameters()

    def follow(self, parameter: Tensor) -> None:
        """Make the stencils anew, on the device and in the dtype of a parameter that was assigned to the layer."""
        for energy in self.energies:
            doubled = [dtype == torch.float64 for dtype in (parameter.dtype, energy.stencils.dtype)]
            if energy.stencils.device != parameter.device or doubled[0] != doubled[1]:
                energy.to_empty(device=parameter.device).to(parameter)

    def reset_parameters(self) -> None:
        """Refill all parts; the mixed energies start with the power of one energy, the bias with zero."""
        self.radial.reset_parameters()  # type: ignore[operator]
        reset = getattr(self.norm, "reset_parameters", None)
        if reset is not None:
            reset()
        nn.init.normal_(self.mix.weight, std=self.mix.weight.shape[1] ** -0.5)
        if self.mix.bias is not None:
            nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        unbatched = x.dim() == self._axes_of_a_batch - 1
        y = self.radial(x.unsqueeze(0) if unbatched else x)
        at_once = self._mixes_at_once
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
            if at_once:
                at_once = self._parts_are_plain()
        if at_once:
            stencils: list[Tensor] = [energy.stencils for energy in self.energies]  # type: ignore[misc]
            out = add_energies(y, stencils, self.mix.weight, self.mix.bias, self.groups, self.eps, self.algorithm)
        else:
            radial, maps = split_groups(y, self.out_channels, self.groups)
            energies = [energy(maps) for energy in self.energies]
            out = radial + self.mix(self.norm(cat_groups(energies, self.groups)))
        return out.squeeze(0) if unbatched else out

    @torch.jit.unused
    def _parts_are_plain(self) -> bool:
        """Whether what the parts compute is known, so that none has to be called."""
        plain = isinstance(self.norm, nn.Identity) and not is_hooked(self.norm) and is_plain(self.mix)
        plain = plain and max(self.mix.kernel_size) == 1 and self.mix.groups == self.groups
        for energy in self.energies:
            plain = plain and is_plain(energy) and bool(energy.eps == self.eps)
        return plain

    def extra_repr(self) -> str:
        """Orders and widths; the parts say the rest."""
        return f"orders={self.orders}, hidden_channels={self.hidden_channels}"


def hidden_maps(out_channels: int, groups: int, hidden_channels: int | None = None) -> int:
    """``hidden_channels`` if it fits, or a quarter of ``out_channels``, at least one per group.

    Example:
        >>> hidden_maps(64, 1), hidden_maps(6, 2)
        (16, 2)
    """
    if hidden_channels is None:
        return groups * max(1, out_channels // (4 * groups))
    (hidden_channels,) = int_tuple("hidden_channels", hidden_channels, 1, minimum=1)
    if hidden_channels % groups:
        raise ValueError(f"hidden_channels must be a multiple of groups={groups}, got {hidden_channels}")
    return hidden_channels


class SREHarmonicConvNd(HarmonicConv):
    """The radial convolution of ``radial_type`` with energies.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: with the arguments up to ``dtype`` as in ``torch.nn.Conv2d``; see :class:`monai_sre.layers.SREConv2d`.
            Harmonics are taken on the grid of the output.
        orders: angular orders; ``None`` is 1 and 2, and 1 where kernels are round along one axis only.
        hidden_channels: maps that energies are taken of; ``None`` is a quarter of ``out_channels``. A multiple of ``groups``.
        taps: size of the stencils along each axis; ``None`` is 5, in 3-D 3, or what the highest order needs.
        norm: normalisation of the energies in MONAI's notation, ``None`` for none.
        eps: see :class:`HarmonicEnergy`.
        radial: the keyword arguments of :class:`monai_sre.layers.SREConv2d`, such as ``spacing`` and ``axes``. Rings are
            Gaussian and, unless their width is learned, orthonormal if they do not say otherwise.
    """

    spatial_dims: int
    radial_type: type[nn.Module]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        orders: Sequence[int] | None = None,
        hidden_channels: int | None = None,
        taps: int | None = None,
        norm: str | tuple[str, Mapping[str, Any]] | None = None,
        eps: float = 1e-3,
        **radial: Any,
    ) -> None:
        ndim = self.spatial_dims
        (out_channels,) = int_tuple("out_channels", out_channels, 1, minimum=1)
        (groups,) = int_tuple("groups", groups, 1, minimum=1)
        if out_channels % groups:
            raise ValueError(f"groups must divide out_channels={out_channels}, got {groups}")
        hidden = hidden_maps(out_channels, groups, hidden_channels)
        sizes = (kernel_size, stride, padding, dilation, groups, False, padding_mode, device, dtype)
        profile = radial["profile"] = "gaussian" if radial.get("profile") is None else radial["profile"]
        if radial.get("orthonormal") is None:  # a width that is learned leaves no basis to be orthonormal
            radial["orthonormal"] = not learns_width(profile)
        conv: Any = self.radial_type(in_channels, out_channels + hidden, *sizes, **radial)
        super().__init__(
            conv,
            ndim,
            out_channels,
            hidden,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            orders=orders,
            taps=taps,
            norm=norm,
            eps=eps,
            spacing=output_spacing(radial.get("spacing"), conv.stride),
            axes=radial.get("axes"),
        )


def output_spacing(spacing: Sequence[float] | None, stride: Sequence[int]) -> tuple[float, ...] | None:
    """Voxel size behind a stride; ``None`` where all axes are alike.

    Example:
        >>> output_spacing((4.0, 1.0, 1.0), (1, 2, 2)), output_spacing(None, (2, 2))
        ((4.0, 2.0, 2.0), None)
    """
    if spacing is None and len(set(stride)) == 1:
        return None
    steps = [1.0] * len(stride) if spacing is None else spacing
    return tuple(float(step) * factor for step, factor in zip(steps, stride, strict=True))


class SREHarmonicConv1d(SREHarmonicConvNd):
    """1-D even convolution with energies of the first derivative; arguments as :class:`SREHarmonicConv2d`.

    Example:
        >>> SREHarmonicConv1d(2, 4, 5, padding="same")(torch.randn(3, 2, 20)).shape
        torch.Size([3, 4, 20])
    """

    spatial_dims = 1
    radial_type = SREConv1d


class SREHarmonicConv2d(SREHarmonicConvNd):
    """2-D radial convolution with energies of circular harmonics: exact under the grid's symmetries, and it sees edges.

    Arguments as ``torch.nn.Conv2d``, then those of the harmonics and of :class:`monai_sre.layers.SREConv2d`.

    Shape:
        ``(N, in_channels, H, W)`` or ``(in_channels, H, W)`` to the shape that ``torch.nn.Conv2d`` gives.

    Example:
        >>> layer = SREHarmonicConv2d(3, 8, 5, padding=2).eval()
        >>> x = torch.randn(1, 3, 31, 24)
        >>> torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-5)
        True
    """

    spatial_dims = 2
    radial_type = SREConv2d


class SREHarmonicConv3d(SREHarmonicConvNd):
    """3-D radial convolution with energies of spherical harmonics; arguments as :class:`SREHarmonicConv2d`.

    With ``axes=(1, 2)`` the harmonics are circular, in the plane.

    Shape:
        ``(N, in_channels, D, H, W)`` or ``(in_channels, D, H, W)`` to the shape that ``torch.nn.Conv3d`` gives.

    Example:
        >>> SREHarmonicConv3d(1, 4, 5, padding="same", axes=(1, 2))(torch.randn(1, 1, 8, 32, 32)).shape
        torch.Size([1, 4, 8, 32, 32])
    """

    spatial_dims = 3
    radial_type = SREConv3d
