"""Blocks of MONAI that pad, crop, shuffle or pool in their own ``forward``, on centred grids.

Each takes over the class of the block it replaces, so that parameters, names and hooks stay as they are.
"""

from __future__ import annotations

import torch
from monai.networks.blocks.upsample import SubpixelUpsample
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torch.nn import functional

from monai_sre.ops.grid import centred_fit, script_if_tracing, serves_all_sizes
from monai_sre.ops.pool import blur_width, centred_avg_pool, centred_blur_pool


class CentredUpCat(UpCat):
    """MONAI's ``UpCat`` of BasicUNet and FlexibleUNet: where the skip is a pixel larger, half of it is added at each end."""

    def forward(self, x: Tensor, x_e: Tensor | None) -> Tensor:
        x_0 = self.upsample(x)
        if x_e is not None and torch.jit.isinstance(x_e, Tensor):
            if self.is_pad:
                x_0 = _fit(x_0, x_e)
            return self.convs(torch.cat([x_e, x_0], dim=1))
        return self.convs(x_0)


@script_if_tracing
def _fit(x: Tensor, skip: Tensor) -> Tensor:
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if serves_all_sizes(x):  # no branch on a size
            return centred_fit(x, list(skip.shape[2:]))
    size: list[int] = []
    for axis in range(2, x.dim()):
        size.append(int(x.size(axis)) + (1 if skip.size(axis) != x.size(axis) else 0))
    return centred_fit(x, size)


class CentredSubpixel(SubpixelUpsample):
    """MONAI's ``SubpixelUpsample``, its ``conv_block`` being the transposed convolution that it and the shuffle amount to."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pad_pool(self.conv_block(x))


class CentredShuffle(nn.Module):
    """What is equivariant of a pixel shuffle of scalar channels: the mean of the channels that it interleaves, repeated.

    A rotation would exchange those channels; their differences are dropped.

    Args:
        scale_factor: how many times finer the output is.
        spatial_dims: number of the last axes that are made finer; None: all behind the second.

    Example:
        >>> CentredShuffle(2)(torch.arange(4.0).reshape(1, 4, 1, 1)).flatten().tolist()
        [1.5, 1.5, 1.5, 1.5]
    """

    def __init__(self, scale_factor: int, spatial_dims: int | None = None) -> None:
        super().__init__()
        self.scale_factor, self.spatial_dims = scale_factor, spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        ndim = x.dim() - 2 if self.spatial_dims is None else self.spatial_dims
        if x.dim() == ndim + 1:
            return self._finer(x.unsqueeze(0), ndim).squeeze(0)
        return self._finer(x, ndim)

    def _finer(self, x: Tensor, ndim: int) -> Tensor:
        parts = int(self.scale_factor**ndim)  # TorchScript's power is a float
        if x.size(1) % parts != 0:
            raise ValueError(f"the channels must be a multiple of {parts} for a pixel shuffle, got {x.size(1)}")
        mean = x.unflatten(1, [x.size(1) // parts, parts]).mean(dim=2)
        return functional.interpolate(mean, scale_factor=float(self.scale_factor), mode="nearest")


class CentredSubpixelMean(SubpixelUpsample):
    """MONAI's ``SubpixelUpsample`` behind any ``conv_block``: see :class:`CentredShuffle`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pad_pool(self.shuffle(self.conv_block(x)))  # type: ignore[operator]


class CentredPadShortcut(nn.Module):
    """Shortcut "A" of MONAI's ResNet: every ``stride``-th pixel, and channels of zeros.

    As in MONAI, no gradient flows through it.

    Args:
        planes: number of channels of the output.
        stride: step along all axes.
        antialias: blur before pixels are left out: ``True``, or the width of the filter, see
            :func:`monai_sre.ops.pool.centred_blur_pool`.

    Example:
        >>> CentredPadShortcut(5, 2)(torch.randn(1, 3, 7, 8)).shape
        torch.Size([1, 5, 4, 4])
    """

    def __init__(self, planes: int, stride: int, antialias: bool | float = False) -> None:
        super().__init__()
        self.planes, self.stride, self.antialias = planes, stride, blur_width(antialias)

    def forward(self, x: Tensor) -> Tensor:
        ndim = x.dim() - 2
        stride = [self.stride] * ndim
        if self.antialias > 0:
            x = centred_blur_pool(x, stride, self.antialias)
        else:
            x = centred_avg_pool(x, [1] * ndim, stride, [0] * ndim)
        return functional.pad(x.detach(), [0, 0] * ndim + [0, self.planes - x.size(1)])

    def extra_repr(self) -> str:
        return f"{self.planes}, stride={self.stride}" + (f", antialias={self.antialias}" if self.antialias else "")
