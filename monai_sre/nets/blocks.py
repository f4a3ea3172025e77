"""What the networks share: how their blocks make layers, and the residual block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.networks.layers.factories import Conv, Pool, split_args
from monai.networks.layers.utils import get_act_layer
from torch import Tensor, nn

from monai_sre.layers import centred
from monai_sre.layers.harmonic import make_norm
from monai_sre.layers.pool import CentredBlurPool
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.pool import blur_width
from monai_sre.ops.radial import learns_width

#: Kinds of convolutions: their names in MONAI's factory, their layers with strides, the options of ``conv=(kind, options)``.
_CONVS: dict[str, tuple[str, tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "radial": ("SRECONV", (centred.CentredConv1d, centred.CentredConv2d, centred.CentredConv3d), ()),
    "harmonic": (
        "SREHARMONICCONV",
        (centred.CentredHarmonicConv1d, centred.CentredHarmonicConv2d, centred.CentredHarmonicConv3d),
        ("orders", "hidden_channels", "taps", "norm", "eps"),
    ),
}
#: How networks are asked for convolutions: a kind, or a kind and its options.
ConvKind = str | tuple[str, Mapping[str, Any]]
#: What an argument of its own says.
_RADIAL = ("num_rings", "profile", "circular", "orthonormal", "spacing", "axes", "algorithm")


def check_dropout(dropout_prob: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: it is none.

    Example:
        >>> check_dropout(True)
        Traceback (most recent call last):
        ValueError: dropout_prob must be a number from 0 to 1, got True
    """
    if isinstance(dropout_prob, bool) or not isinstance(dropout_prob, (int, float)) or not 0 <= dropout_prob <= 1:
        raise ValueError(f"dropout_prob must be a number from 0 to 1, got {dropout_prob!r}")


def check_input(x: Tensor, spatial_dims: int, in_channels: int) -> None:
    """Refuse what is no batch of images for a network.

    Raises:
        ValueError: the axes or the channels are others.

    Example:
        >>> import torch
        >>> check_input(torch.zeros(1, 3, 8, 8), 2, 1)
        Traceback (most recent call last):
        ValueError: x must have shape (N, 1, *spatial) with 2 spatial axes, got torch.Size([1, 3, 8, 8])
    """
    if x.dim() != spatial_dims + 2 or x.size(1) != in_channels:
        raise ValueError(
            f"x must have shape (N, {in_channels}, *spatial) with {spatial_dims} spatial axes, got {x.shape}"
        )


def conv_kind(conv: ConvKind) -> tuple[str, dict[str, Any]]:
    """The kind of convolution that the argument ``conv`` asks for, and its options.

    Raises:
        ValueError: there is no such kind, or it takes no such option.

    Example:
        >>> conv_kind("radial"), conv_kind(("harmonic", {"orders": (1,)}))
        (('radial', {}), ('harmonic', {'orders': (1,)}))
    """
    try:
        kind, options = split_args(conv)
        known = kind in _CONVS
    except (TypeError, ValueError):  # an unhashable kind, or no pair
        known = False
    if not known:
        raise ValueError(f"conv must be one of {tuple(_CONVS)} or (name, options), got {conv!r}")
    allowed = _CONVS[kind][2]
    for name in options:
        if name in _RADIAL:
            raise ValueError(f"conv must not hold {name!r}: give the argument {name} itself, got conv={conv!r}")
        if name not in allowed:
            raise ValueError(f"conv={kind!r} takes the options {list(allowed)}, got {name!r}")
    return kind, dict(options)


def per_level(name: str, value: Any, levels: int, what: str = "level") -> tuple[Any, ...]:
    """One value per level: ``value`` itself for all, or those that it holds.

    Example:
        >>> per_level("kernel_size", 3, 2), per_level("kernel_size", (5, (3, 1)), 2)
        ((3, 3), (5, (3, 1)))
    """
    if value is None or isinstance(value, (int, np.integer)):
        return (value,) * levels
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != levels:
        raise ValueError(f"{name} must be one value or {levels}, one per {what}, got {value!r}")
    return tuple(value)


def conv_per_level(conv: ConvKind | Sequence[ConvKind], levels: int, what: str = "level") -> tuple[ConvKind, ...]:
    """:func:`per_level` for the argument ``conv``, one of whose values may be a pair.

    Example:
        >>> conv_per_level(("harmonic", {"orders": (1,)}), 2)
        (('harmonic', {'orders': (1,)}), ('harmonic', {'orders': (1,)}))
        >>> conv_per_level(["harmonic", "radial"], 2)
        ('harmonic', 'radial')
    """
    if isinstance(conv, Sequence) and not isinstance(conv, str) and not any(isinstance(part, Mapping) for part in conv):
        return per_level("conv", conv, levels, what)
    return (conv,) * levels  # type: ignore[return-value]


def shared_rings(convs: Sequence[ConvKind], profile: Any, orthonormal: bool | None) -> dict[str, Any]:
    """The profile of all layers of one network: with energies in any of them, Gaussian and orthonormal by default.

    Example:
        >>> shared_rings(["harmonic", "radial"], None, None), shared_rings(["radial"], None, None)
        ({'profile': 'gaussian', 'orthonormal': True}, {'profile': None, 'orthonormal': None})
    """
    if any(conv_kind(conv)[0] == "harmonic" for conv in convs):
        profile = "gaussian" if profile is None else profile
        orthonormal = not learns_width(profile) if orthonormal is None else orthonormal
    return {"profile": profile, "orthonormal": orthonormal}


class LayerMaker:
    """How the blocks of one network make their layers."""

    def __init__(
        self, spatial_dims: int, norm: Any, act: Any, antialias: bool | float, conv: Any, radial: Mapping[str, Any]
    ) -> None:
        self.spatial_dims, self.antialias = spatial_dims, blur_width(antialias)
        self._norm, self._act = norm, act
        # where these are None, the layer has a default of its own
        unsaid = [name for name in ("profile", "orthonormal") if radial.get(name) is None]
        self._radial = {name: value for name, value in radial.items() if name not in unsaid}
        kind, options = conv_kind(conv)
        self._conv, self._strided, _ = _CONVS[kind]
        self._radial |= options

    def radial(self, in_channels: int, out_channels: int, kernel_size: Any, stride: int = 1) -> nn.Module:
        """The convolution of all blocks, onto a centred grid of ``ceil(size / stride)`` positions."""
        make, options = Conv[self._conv, self.spatial_dims], {"padding": "same", **self._radial}
        if stride > 1:
            make = self._strided[self.spatial_dims - 1]
            sizes = int_tuple("kernel_size", kernel_size, self.spatial_dims, minimum=1)
            if any(length % 2 == 0 for length in sizes):
                raise ValueError(f"kernel_size must be odd along every axis, got {kernel_size!r}")
            reach = [length // 2 for length in sizes]
            options |= {"stride": stride, "padding": reach, "antialias": self.antialias or False}
        conv: nn.Module = make(in_channels, out_channels, kernel_size, bias=False, **options)
        return conv

    def pointwise(self, in_channels: int, out_channels: int) -> nn.Module:
        conv: nn.Module = Conv["CONV", self.spatial_dims](in_channels, out_channels, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        return conv

    def pool(self, stride: int) -> nn.Module:
        """Down-sampling onto a centred grid of ``ceil(size / stride)`` positions: the mean of blocks, or antialiased."""
        if stride == 1:
            return nn.Identity()
        if self.antialias:
            return CentredBlurPool(stride, self.antialias)
        return Pool["CENTREDAVG", self.spatial_dims](stride, ceil_mode=True, count_include_pad=False)

    def shortcut(self, in_channels: int, out_channels: int) -> nn.Module:
        if in_channels == out_channels:
            return nn.Identity()
        return nn.Sequential(self.pointwise(in_channels, out_channels), self.norm_layer(out_channels))

    def norm_layer(self, channels: int) -> nn.Module:
        return make_norm(self._norm, self.spatial_dims, channels)

    def act_layer(self) -> nn.Module:
        try:
            return get_act_layer(self._act)
        except (TypeError, ValueError) as error:
            raise type(error)(f"act={self._act!r} gives no layer: {error}") from error


class ResidualBlock(nn.Module):
    """Two radial convolutions around a shortcut; a stride is an average pooling before them."""

    expansion = 1

    def __init__(self, config: LayerMaker, in_channels: int, width: int, kernel_size: Any, stride: int) -> None:
        super().__init__()
        self.pool = config.pool(stride)
        self.conv1 = config.radial(in_channels, width, kernel_size)
        self.norm1 = config.norm_layer(width)
        self.act = config.act_layer()
        self.conv2 = config.radial(width, width, kernel_size)
        self.norm2 = config.norm_layer(width)
        self.shortcut = config.shortcut(in_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        out = self.act(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.act(out + self.shortcut(x))
