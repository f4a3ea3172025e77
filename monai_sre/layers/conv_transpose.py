"""Transposed radially symmetric convolutions: drop-in where ``torch.nn.ConvTranspose*d`` stood."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_sre.layers.conv import _RadialNd, _SREConvNd
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.centred import extra_padding
from monai_sre.ops.conv import sre_conv_transposend
from monai_sre.ops.radial import initial_std


class _RadialTransposeNd(_RadialNd):
    """Arguments of transposed radial layers, in the order of ``torch.nn.ConvTranspose*d``."""

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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            "zeros",
            device,
            dtype,
            **radial,
        )
        self.output_padding = int_tuple("output_padding", output_padding, self.spatial_dims, minimum=0)
        pairs = zip(self.output_padding, self.stride, self.dilation, strict=True)
        if any(extra >= max(step, spread) for extra, step, spread in pairs):
            raise ValueError(
                f"output_padding must be smaller than stride={self.stride} or dilation={self.dilation}, got {output_padding}"
            )
        #: How much smaller the output is than ``(size - 1) * stride + dilation * (kernel_size - 1) + 1``.
        self.margin = tuple(2 * pad - extra for pad, extra in zip(self.padding, self.output_padding, strict=True))

    def _extra(self, x: Tensor, output_size: list[int]) -> list[int]:
        return extra_padding(
            x,
            output_size,
            list(self.kernel_size),
            list(self.stride),
            list(self.dilation),
            list(self.margin),
            list(self.output_padding),
        )

    def _initial_std(self, basis: Tensor) -> Tensor:
        """An output sees every ``stride``-th tap, from a start that its place decides: the mean power over these counts."""
        powers = []
        for start in itertools.product(*[range(step) for step in self.stride]):
            seen = (slice(None), *[slice(first, None, step) for first, step in zip(start, self.stride, strict=True)])
            powers.append(initial_std(basis[seen], self.in_channels // self.groups) ** -2)
        return torch.stack(powers).mean(dim=0).rsqrt()


class _SREConvTranspose(_RadialTransposeNd, _SREConvNd):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = list(self.output_padding) if output_size is None else self._extra(x, output_size)
        return sre_conv_transposend(
            x,
            self.weight,
            self.current_basis(),
            self.bias,
            list(self.stride),
            list(self.padding),
            output_padding,
            self.groups,
            list(self.dilation),
        )


class SREConvTranspose1d(_SREConvTranspose):
    """1-D transposed convolution with even kernels; arguments as ``torch.nn.ConvTranspose1d`` and :class:`SREConv2d`.

    Example:
        >>> SREConvTranspose1d(2, 4, 3, stride=2, padding=1)(torch.randn(3, 2, 20)).shape
        torch.Size([3, 4, 39])
    """

    spatial_dims = 1


class SREConvTranspose2d(_SREConvTranspose):
    """2-D transposed convolution with radially symmetric kernels.

    Arguments as ``torch.nn.ConvTranspose2d`` and :class:`SREConv2d`; ``weight`` is
    ``(in_channels, out_channels / groups, num_rings)``. With ``output_padding=0`` it commutes with the rotations by 90
    degrees and the flips.

    Example:
        >>> SREConvTranspose2d(2, 4, 3, stride=2, padding=1)(torch.randn(3, 2, 8, 8), output_size=[16, 16]).shape
        torch.Size([3, 4, 16, 16])
    """

    spatial_dims = 2


class SREConvTranspose3d(_SREConvTranspose):
    """3-D transposed convolution with radially symmetric kernels; arguments as :class:`SREConvTranspose2d`.

    Example:
        >>> SREConvTranspose3d(2, 4, 3, stride=2, padding=1)(torch.randn(1, 2, 5, 5, 5)).shape
        torch.Size([1, 4, 9, 9, 9])
    """

    spatial_dims = 3
