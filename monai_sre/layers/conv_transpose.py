"""Transposed radially symmetric convolutions: drop-in where ``torch.nn.ConvTranspose*d`` stood."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_sre.layers.conv import RadialNd
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.conv import conv_transpose_nd, expand_kernel, extra_padding
from monai_sre.ops.radial import initial_std, radial_basis


class RadialTransposeNd(RadialNd):
    """Arguments of transposed radial layers, in the order of ``torch.nn.ConvTranspose*d``.

    ``algorithm`` is taken as in other layers, and changes nothing: these build their kernels and convolve.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **radial: Any,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode of a transposed convolution must be 'zeros', got {padding_mode!r}")
        if isinstance(padding, str):
            raise TypeError(f"padding of a transposed convolution must be integers >= 0, got {padding!r}")
        extra = int_tuple("output_padding", output_padding, self.spatial_dims, minimum=0)
        spread = int_tuple("dilation", dilation, self.spatial_dims, minimum=1)
        taps = int_tuple("kernel_size", kernel_size, self.spatial_dims, minimum=1)
        growth = self._more_taps(extra, spread)
        taps = tuple(length + more for length, more in zip(taps, growth, strict=True))
        sizes: tuple[Any, ...] = (taps, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, *sizes, **radial)
        if any(more >= max(pair) for more, *pair in zip(extra, self.stride, spread, strict=True)):
            raise ValueError(
                f"output_padding must be smaller than stride={self.stride} or dilation={spread}, got {output_padding}"
            )
        self.output_padding = extra
        #: How much smaller the output is than ``(size - 1) * stride + dilation * (kernel_size - 1) + 1``.
        self.margin = tuple(2 * pad - e + more for pad, e, more in zip(self.padding, extra, growth, strict=True))

    def _more_taps(self, output_padding: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
        """By how many taps the kernel is larger than asked for."""
        return [0] * len(dilation)

    def _extra(self, x: Tensor, output_size: list[int]) -> list[int]:
        size, stride, dilation = list(self.kernel_size), list(self.stride), list(self.dilation)
        return extra_padding(x, output_size, size, stride, dilation, list(self.margin), list(self.output_padding))

    def _initial_std(self, basis: Tensor) -> Tensor:
        """An output sees every ``stride``-th tap, from a start that its place decides: the mean power over these counts."""
        powers = []
        for start in itertools.product(*[range(step) for step in self.stride]):
            seen = (slice(None), *[slice(first, None, step) for first, step in zip(start, self.stride, strict=True)])
            powers.append(initial_std(basis[seen], self.in_channels // self.groups) ** -2)
        return torch.stack(powers).mean(dim=0).rsqrt()


class SREConvTransposeNd(RadialTransposeNd):
    """Transposed convolutions with odd kernels, onto the grid of ``torch.nn``."""

    make_basis = staticmethod(radial_basis)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = list(self.output_padding) if output_size is None else self._extra(x, output_size)
        kernel = expand_kernel(self.weight, self.current_basis())
        stride, padding, dilation = list(self.stride), list(self.padding), list(self.dilation)
        return conv_transpose_nd(x, kernel, self.bias, stride, padding, extra, self.groups, dilation)


class SREConvTranspose1d(SREConvTransposeNd):
    """1-D transposed convolution with even kernels; arguments as ``torch.nn.ConvTranspose1d`` and :class:`SREConv2d`.

    Example:
        >>> SREConvTranspose1d(2, 4, 3, stride=2, padding=1)(torch.randn(3, 2, 20)).shape
        torch.Size([3, 4, 39])
    """

    spatial_dims = 1


class SREConvTranspose2d(SREConvTransposeNd):
    """2-D transposed convolution with radially symmetric kernels.

    Arguments as ``torch.nn.ConvTranspose2d`` and :class:`SREConv2d`; ``weight`` is
    ``(in_channels, out_channels / groups, num_rings)``. With ``output_padding=0`` it commutes with the rotations by 90
    degrees and the flips.

    Example:
        >>> SREConvTranspose2d(2, 4, 3, stride=2, padding=1)(torch.randn(3, 2, 8, 8), output_size=[16, 16]).shape
        torch.Size([3, 4, 16, 16])
    """

    spatial_dims = 2


class SREConvTranspose3d(SREConvTransposeNd):
    """3-D transposed convolution with radially symmetric kernels; arguments as :class:`SREConvTranspose2d`.

    Example:
        >>> SREConvTranspose3d(2, 4, 3, stride=2, padding=1)(torch.randn(1, 2, 5, 5, 5)).shape
        torch.Size([1, 4, 9, 9, 9])
    """

    spatial_dims = 3
