"""Radial convolutions with strides, even kernels or transposition, exact under rot90 and flips at every size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from monai_sre.layers.conv import RadialNd
from monai_sre.layers.conv_transpose import RadialTransposeNd
from monai_sre.layers.harmonic import SREHarmonicConvNd
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.conv import centred_conv_transpose, centred_sre_conv, expand_kernel
from monai_sre.ops.pool import blur_width


class CentredConvNd(RadialNd):
    """Convolutions with kernels of any size, on centred grids."""

    def __init__(
        self, *arguments: Any, far_padding: int | Sequence[int] = 0, antialias: bool | float = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.far_padding = int_tuple("far_padding", far_padding, self.spatial_dims, minimum=0)
        if self.padding_mode != "zeros" and any(self.far_padding):
            raise ValueError(f"far_padding must be 0 with padding_mode={self.padding_mode!r}, got {far_padding!r}")
        self.antialias = blur_width(antialias)

    def forward(self, x: Tensor) -> Tensor:
        return centred_sre_conv(
            x,
            self.weight,
            self.current_basis(),
            self.bias,
            list(self.stride),
            list(self.padding),
            list(self.far_padding),
            list(self.dilation),
            self.groups,
            self.padding_mode,
            self.algorithm,
            self.antialias,
            self.ends,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", antialias={self.antialias}" if self.antialias else "")


class CentredConvTransposeNd(RadialTransposeNd):
    """Transposed convolutions with kernels of any size, onto centred grids."""

    def _more_taps(self, output_padding: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
        """Off centre by half a pixel: an even kernel in place of an odd one, and the reverse, puts it right at no cost."""
        return [extra % 2 if spread == 1 else 0 for extra, spread in zip(output_padding, dilation, strict=True)]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        margin = list(self.margin)
        if output_size is not None:
            extra = self._extra(x, output_size)
            margin = [self.margin[axis] + self.output_padding[axis] - extra[axis] for axis in range(len(extra))]
        kernel = expand_kernel(self.weight, self.current_basis())
        return centred_conv_transpose(x, kernel, self.bias, list(self.stride), margin, list(self.dilation), self.groups)


class CentredConv1d(CentredConvNd):
    """1-D convolution with an even function as kernel, on a centred grid; arguments as :class:`CentredConv2d`."""

    spatial_dims = 1


class CentredConv2d(CentredConvNd):
    """2-D convolution with a radial kernel of any size and stride, on a centred grid.

    Outputs have the sizes of ``torch.nn.Conv2d``, and its values wherever its own grid is centred.

    Args:
        arguments: with ``options`` as :class:`monai_sre.layers.SREConv2d`. An even kernel is radial about a centre between
            its taps.
        far_padding: zeros at the far ends only, one number for all axes or one per axis.
        antialias: blur before the stride leaves out pixels: ``True``, or the width of the filter, see
            :func:`monai_sre.ops.pool.centred_blur`.

    Shape:
        ``(N, in_channels, H, W)`` or ``(in_channels, H, W)`` to the shape that ``torch.nn.Conv2d`` gives.

    Example:
        >>> import torch
        >>> layer = CentredConv2d(2, 4, 3, stride=2, padding=1)
        >>> x = torch.randn(1, 2, 8, 11)
        >>> layer(x).shape, torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-5)
        (torch.Size([1, 4, 4, 6]), True)
    """

    spatial_dims = 2


class CentredConv3d(CentredConvNd):
    """3-D convolution with a radial kernel of any size and stride, on a centred grid; arguments as :class:`CentredConv2d`."""

    spatial_dims = 3


class CentredConvTranspose1d(CentredConvTransposeNd):
    """1-D transposed convolution onto a centred grid; arguments as :class:`CentredConvTranspose2d`."""

    spatial_dims = 1


class CentredConvTranspose2d(CentredConvTransposeNd):
    """2-D transposed convolution with a radial kernel of any size, onto a centred grid.

    Arguments as ``torch.nn.ConvTranspose2d`` and :class:`monai_sre.layers.SREConv2d`. Where ``output_padding`` leaves torch's
    grid half a pixel off centre (``kernel_size=3, stride=2, padding=1, output_padding=1``), the kernel has one tap more.

    Shape:
        ``(N, in_channels, H, W)`` to the shape that ``torch.nn.ConvTranspose2d`` gives, also for ``output_size``.

    Example:
        >>> import torch
        >>> layer = CentredConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1)
        >>> x = torch.randn(1, 2, 4, 5)
        >>> layer.kernel_size, layer(x).shape, torch.allclose(layer(x.flip(2)), layer(x).flip(2), atol=1e-5)
        ((4, 4), torch.Size([1, 4, 8, 10]), True)
    """

    spatial_dims = 2


class CentredConvTranspose3d(CentredConvTransposeNd):
    """3-D transposed convolution onto a centred grid; arguments as :class:`CentredConvTranspose2d`."""

    spatial_dims = 3


class CentredHarmonicConv1d(SREHarmonicConvNd):
    """1-D convolution with energies on a centred grid; arguments as :class:`CentredHarmonicConv2d`."""

    spatial_dims = 1
    radial_type = CentredConv1d


class CentredHarmonicConv2d(SREHarmonicConvNd):
    """2-D convolution of any stride with energies, on a centred grid.

    Arguments as :class:`monai_sre.layers.SREHarmonicConv2d`, with those of :class:`CentredConv2d`. The energies are taken
    behind the stride.

    Shape:
        ``(N, in_channels, H, W)`` or ``(in_channels, H, W)`` to the shape that ``torch.nn.Conv2d`` gives.

    Example:
        >>> import torch
        >>> layer = CentredHarmonicConv2d(2, 4, 5, stride=2, padding=2)
        >>> x = torch.randn(1, 2, 8, 11)
        >>> layer(x).shape, torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-5)
        (torch.Size([1, 4, 4, 6]), True)
    """

    spatial_dims = 2
    radial_type = CentredConv2d


class CentredHarmonicConv3d(SREHarmonicConvNd):
    """3-D convolution of any stride with energies, on a centred grid; arguments as :class:`CentredHarmonicConv2d`."""

    spatial_dims = 3
    radial_type = CentredConv3d
