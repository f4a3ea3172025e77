"""U-Nets whose maps turn with the input: rotated by 90 degrees or flipped, at every size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_dropout_layer
from torch import Tensor, nn

from monai_sre.nets.blocks import (
    ConvKind,
    LayerMaker,
    ResidualBlock,
    check_dropout,
    check_input,
    conv_per_level,
    per_level,
    shared_rings,
)
from monai_sre.ops.arguments import check_dims, check_flags, int_tuple
from monai_sre.ops.grid import script_if_tracing
from monai_sre.ops.pool import centred_upsample
from monai_sre.ops.radial import check_geometry


class _TwoConv(nn.Module):
    """Two radial convolutions, each with its norm and activation: the block of MONAI's ``BasicUNet``."""

    def __init__(self, config: LayerMaker, in_channels: int, out_channels: int, kernel_size: Any) -> None:
        super().__init__()
        self.conv1 = config.radial(in_channels, out_channels, kernel_size)
        self.norm1 = config.norm_layer(out_channels)
        self.act = config.act_layer()
        self.conv2 = config.radial(out_channels, out_channels, kernel_size)
        self.norm2 = config.norm_layer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(x)))


class _Up(nn.Module):
    """Fewer channels, the grid of the level above, and that level's maps beside them."""

    def __init__(
        self, config: LayerMaker, in_channels: int, out_channels: int, factors: list[int], convs: nn.Module
    ) -> None:
        super().__init__()
        self.factors = factors
        self.reduce = config.pointwise(in_channels, out_channels)
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = _refine(self.reduce(x), skip, self.factors)
        return self.convs(torch.cat([skip, x], dim=1))


class _DeepHead(nn.Module):
    """Logits of a coarser level, on the input's grid."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, factors: list[int]) -> None:
        super().__init__()
        self.factors = factors
        self.conv = Conv["CONV", spatial_dims](in_channels, out_channels, 1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return _refine(self.conv(x), like, self.factors)


class SREUNet(nn.Module):
    """U-Net of radially symmetric convolutions and centred resampling.

    Its maps commute with all lattice symmetries (8 in 2-D, 48 in 3-D) at every input size. The way down averages blocks onto
    centred grids of ``ceil(size / stride)`` positions, the way up interpolates linearly onto exactly the grid that was
    left, so no size has to be a multiple of anything. The defaults in 2-D follow the network of the authors of SRE-Conv for
    retinal vessels ("Improved Vessel Segmentation with Symmetric Rotation-Equivariant U-Net", ISBI 2025: three levels,
    kernels of 9, 274,306 parameters).

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: number of channels of the input.
        out_channels: number of channels of the output: classes.
        channels: channels of each level, the finest first; their number is the number of levels.
        strides: down-sampling factors from each level to the next, one number or one per spatial axis each; ``None`` is 2.
        kernel_size: odd kernel size, one for all levels or one per level; ``None`` is 9, and 5 in 3-D. A level's entry may
            itself hold one size per axis, which leaves the symmetries that do not exchange axes of other sizes.
        num_res_units: residual units per level, each a shortcut around two convolutions; 0 is two convolutions without any
            shortcut, as in MONAI's ``BasicUNet``.
        num_rings: rings per kernel, one number for all levels or one per level (``None`` is the default of the kernel size).
        profile: with ``circular``, ``orthonormal``, ``axes`` and ``algorithm`` the geometry of all radial layers, see
            :class:`monai_sre.layers.SREConv2d`. ``None`` is bands, or in a network with energies orthonormal Gaussian
            rings.
        spacing: voxel size of the input along each spatial axis. At each level it is multiplied by the strides so far, so
            that kernels stay round in millimetres: voxels of 4 x 1 x 1 mm with ``strides=((1, 2, 2), (1, 2, 2))`` are cubes
            at the last level, and its kernels are balls of voxels. ``None`` is 1 everywhere, and follows the strides alike.
        conv: ``"radial"``, or ``"harmonic"`` for :class:`monai_sre.layers.SREHarmonicConv2d`, which sees edges too; its
            options ``orders``, ``hidden_channels``, ``taps``, ``norm`` and ``eps`` as ``("harmonic", {"orders": (1, 2)})``.
            Or a list of them, one per level.
        norm: normalisation layer, in MONAI's notation.
        act: activation layer, in MONAI's notation.
        dropout_prob: probability of dropping an entry of a level's maps.
        antialias: down-sample behind a Gaussian filter (:class:`monai_sre.layers.CentredBlurPool`) instead of averaging
            blocks; the strides must then be alike along all axes. A number is the filter's width.
        deep_supervision: in training, return a list: the output, and one map of logits for each coarser level on the way
            up, the finest first, all on the input's grid. ``monai.losses.DeepSupervisionLoss`` takes such a list. In eval
            mode the output alone is returned.

    Shape:
        ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial)``, any sizes from 1 up, in training as far
        as ``norm`` takes them.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work; the message names it, its value and what is allowed.

    Example:
        >>> net = SREUNet(2, in_channels=3, out_channels=2)
        >>> net(torch.randn(2, 3, 37, 50)).shape
        torch.Size([2, 2, 37, 50])
        >>> sum(p.numel() for p in net.parameters())
        247586
        >>> deep = SREUNet(3, 1, 2, channels=(4, 8, 16), deep_supervision=True)
        >>> [tuple(logits.shape) for logits in deep(torch.randn(1, 1, 9, 12, 10))]
        [(1, 2, 9, 12, 10), (1, 2, 9, 12, 10)]
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_size: int | Sequence[int | Sequence[int]] | None = None,
        num_res_units: int = 0,
        num_rings: int | Sequence[int | None] | None = None,
        profile: str | tuple[str, Mapping[str, Any]] | None = None,
        circular: bool = True,
        orthonormal: bool | None = None,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
        algorithm: str = "auto",
        conv: ConvKind | Sequence[ConvKind] = "radial",
        norm: str | tuple[str, Mapping[str, Any]] = "batch",
        act: str | tuple[str, Mapping[str, Any]] = ("relu", {"inplace": True}),
        dropout_prob: float = 0.0,
        antialias: bool | float = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        spatial_dims = check_dims(spatial_dims)
        (in_channels,) = int_tuple("in_channels", in_channels, 1, minimum=1)
        (out_channels,) = int_tuple("out_channels", out_channels, 1, minimum=1)
        (num_res_units,) = int_tuple("num_res_units", num_res_units, 1, minimum=0)
        if not isinstance(channels, Sequence) or len(channels) < 2:
            raise ValueError(f"channels must be two numbers or more, one per level, got {channels!r}")
        channels = int_tuple("channels", channels, len(channels), minimum=1)
        levels = len(channels)
        check_dropout(dropout_prob)
        check_flags(deep_supervision=deep_supervision)
        factors = _factors(strides, spatial_dims, levels)
        if antialias and any(len(set(step)) > 1 for step in factors):
            raise ValueError(
                f"antialias={antialias} needs strides that are alike along all axes, got strides={strides!r}"
            )
        if kernel_size is None:
            kernel_size = 5 if spatial_dims == 3 else 9
        kernels = per_level("kernel_size", kernel_size, levels)
        rings = per_level("num_rings", num_rings, levels)
        kinds = conv_per_level(conv, levels)
        radial = {
            **shared_rings(kinds, profile, orthonormal),
            "circular": circular,
            "axes": axes,
            "algorithm": algorithm,
        }
        configs = []
        for level, (kind, count) in enumerate(zip(kinds, rings, strict=True)):
            voxel = _level_spacing(spacing, _product(factors[:level], spatial_dims))
            geometry = {**radial, "spacing": voxel, "num_rings": count}
            configs.append(LayerMaker(spatial_dims, norm, act, antialias, kind, geometry))

        def convs(level: int, inputs: int) -> nn.Module:
            config, width, kernel = configs[level], channels[level], kernels[level]
            if num_res_units == 0:
                parts: list[nn.Module] = [_TwoConv(config, inputs, width, kernel)]
            else:
                widths = [inputs] + [width] * num_res_units
                parts = [ResidualBlock(config, before, width, kernel, 1) for before in widths[:-1]]
            if dropout_prob:
                parts.append(get_dropout_layer(("dropout", {"p": dropout_prob})))
            return nn.Sequential(*parts)

        self.spatial_dims, self.in_channels, self.deep_supervision = spatial_dims, in_channels, deep_supervision
        down: list[nn.Module] = [convs(0, in_channels)]
        for level in range(1, levels):
            step: Any = factors[level - 1]
            pool = configs[level].pool(step[0] if len(set(step)) == 1 else step)
            down.append(nn.Sequential(pool, convs(level, channels[level - 1])))
        self.down = nn.ModuleList(down)
        up: list[nn.Module] = []
        for level in reversed(range(levels - 1)):
            width = channels[level]
            up.append(_Up(configs[level], channels[level + 1], width, factors[level], convs(level, 2 * width)))
        self.up = nn.ModuleList(up)
        self.head = Conv["CONV", spatial_dims](channels[0], out_channels, 1)
        deep = range(1, levels - 1) if deep_supervision else ()
        self.deep_heads = nn.ModuleList(
            _DeepHead(spatial_dims, channels[level], out_channels, _product(factors[:level], spatial_dims))
            for level in deep
        )

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps on the way up, the coarsest level first and the input's grid last, equivariant."""
        check_input(x, self.spatial_dims, self.in_channels)
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        found = [x]
        for index, stage in enumerate(self.up):
            x = stage(x, skips[len(skips) - 2 - index])
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Union[Tensor, list[Tensor]]:  # noqa: UP007 - TorchScript
        """Logits of shape ``(N, out_channels, *spatial)``, equivariant; a list of them with deep supervision in training."""
        levels = self.forward_features(x)
        logits = self.head(levels[-1])
        if not (self.deep_supervision and self.training):
            return logits
        outputs = [logits]
        for index, head in enumerate(self.deep_heads):
            outputs.append(head(levels[len(levels) - 2 - index], x))
        return outputs


@script_if_tracing
def _refine(x: Tensor, like: Tensor, factors: list[int]) -> Tensor:
    """:func:`centred_upsample` to the size of another map, with a factor of its own for each spatial axis."""
    size = [like.size(axis + 2) for axis in range(len(factors))]
    if min(factors) == max(factors):
        return centred_upsample(x, factors[0], size)
    for axis in range(len(factors)):
        if factors[axis] > 1:
            moved = x.transpose(axis + 2, -1)
            rows = centred_upsample(moved.reshape(-1, 1, moved.size(-1)), factors[axis], [size[axis]])
            shape = moved.shape[:-1] + rows.shape[-1:]
            x = rows.reshape(shape).transpose(axis + 2, -1)
    return x


def _factors(strides: Any, spatial_dims: int, levels: int) -> list[list[int]]:
    """Down-sampling factors from each level to the next, one per axis."""
    if strides is None:
        strides = (2,) * (levels - 1)
    if not isinstance(strides, Sequence) or len(strides) != levels - 1:
        raise ValueError(f"strides must be {levels - 1} entries, one less than channels, got {strides!r}")
    return [list(int_tuple("strides", stride, spatial_dims, minimum=1)) for stride in strides]


def _product(factors: Sequence[Sequence[int]], spatial_dims: int) -> list[int]:
    """Down-sampling factor of each axis over several steps."""
    return [math.prod(step[axis] for step in factors) for axis in range(spatial_dims)]


def _level_spacing(spacing: Any, scale: Sequence[int]) -> tuple[float, ...] | None:
    """Voxel size at a level whose grid is ``scale`` times coarser; ``None`` where all axes are alike."""
    if spacing is None:
        return None if len(set(scale)) == 1 else tuple(map(float, scale))
    voxels = check_geometry((1,) * len(scale), spacing, None)[1]
    return tuple(voxel * factor for voxel, factor in zip(voxels, scale, strict=True))
