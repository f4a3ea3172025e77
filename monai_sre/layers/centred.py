"""Radial convolutions with strides, even kernels or transposition, exact under rot90 and flips at every size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_sre.layers.conv import PADDING_MODES
from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.centred import centred_basis, centred_conv_transpose, centred_convnd
from monai_sre.ops.conv import check_algorithm, expand_kernel
from monai_sre.ops.radial import initial_std


class _CentredNd(nn.Module):
    """Arguments, parameters and basis of a convolution on a centred grid.

    Args:
        in_channels: number of channels of the input; with the arguments up to ``dtype`` as in the ``torch.nn`` namesake.
        kernel_size: number of taps, odd or even: an even kernel is radial about a centre between its taps.
        num_rings: with the arguments after it as in :class:`monai_sre.layers.SREConv2d`; a Gaussian's width is not learned.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work; the message names it, its value and what is allowed.
    """

    __jit_unused_properties__ = ("num_rings",)
    spatial_dims: int
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        algorithm: str,
        geometry: dict[str, Any],
    ) -> None:
        super().__init__()
        (self.in_channels,) = int_tuple("in_channels", in_channels, 1, minimum=1)
        (self.out_channels,) = int_tuple("out_channels", out_channels, 1, minimum=1)
        (self.groups,) = int_tuple("groups", groups, 1, minimum=1)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups must divide {name}={channels}, got {groups}")
        ndim = self.spatial_dims
        self.kernel_size = int_tuple("kernel_size", kernel_size, ndim, minimum=1)
        self.stride = int_tuple("stride", stride, ndim, minimum=1)
        self.dilation = int_tuple("dilation", dilation, ndim, minimum=1)
        self.algorithm = check_algorithm(algorithm)
        self._geometry = geometry
        basis = centred_basis(self.kernel_size, **geometry)
        outer, inner = self.out_channels, self.in_channels
        if self.transposed:
            outer, inner = inner, outer
        basis_dtype = dtype or torch.get_default_dtype()
        self.register_buffer("basis", basis.to(device=device, dtype=basis_dtype), persistent=False)
        self.basis: Tensor
        self.weight = nn.Parameter(torch.empty(outer, inner // self.groups, len(basis), device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Refill basis, weight and bias: uniform weights of :func:`monai_sre.ops.radial.initial_std`, zero bias.

        An output of a transposed convolution sees every ``stride``-th tap, from a start that its place decides: the mean
        power over these starts counts.
        """
        exact = centred_basis(self.kernel_size, **self._geometry)
        starts = [range(step) if self.transposed else range(1) for step in self.stride]
        powers = []
        for start in itertools.product(*starts):
            steps = self.stride if self.transposed else (1,) * len(self.stride)
            seen = tuple(slice(first, None, step) for first, step in zip(start, steps, strict=True))
            part = exact[(slice(None),) + seen]  # noqa: RUF005 - a star in an index needs Python 3.11
            powers.append(initial_std(part, self.in_channels // self.groups) ** -2)
        std = torch.stack(powers).mean(dim=0).rsqrt()
        bound = (3**0.5 * std).to(device=self.weight.device, dtype=self.weight.dtype)
        with torch.no_grad():
            self.basis.copy_(exact)
            self.weight.uniform_(-1, 1).mul_(bound)
            if self.bias is not None:
                self.bias.zero_()

    @torch.jit.unused
    def kernel(self) -> Tensor:
        """The dense kernel, in the layout of the ``torch.nn`` namesake's weight; differentiable."""
        return expand_kernel(self.weight, self.basis)

    @property
    def num_rings(self) -> int:
        """Number of learned coefficients a pair of channels."""
        return self.weight.shape[2]

    def extra_repr(self) -> str:
        """The arguments, in the manner of ``torch.nn``."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, num_rings={self.num_rings}, "
            f"stride={self.stride}"
        )
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")


class _CentredConv(_CentredNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        far_padding: int | Sequence[int] = 0,
        num_rings: int | None = None,
        profile: str | tuple[str, Mapping[str, Any]] = "band",
        circular: bool = True,
        orthonormal: bool = False,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
        algorithm: str = "auto",
    ) -> None:
        geometry = {
            "num_rings": num_rings,
            "profile": profile,
            "circular": circular,
            "orthonormal": orthonormal,
            "spacing": spacing,
            "axes": axes,
        }
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation,
            groups,
            bias,
            device,
            dtype,
            algorithm,
            geometry,
        )
        self.padding = int_tuple("padding", padding, self.spatial_dims, minimum=0)
        self.far_padding = int_tuple("far_padding", far_padding, self.spatial_dims, minimum=0)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        if padding_mode != "zeros" and any(self.far_padding):
            raise ValueError(f"far_padding must be 0 with padding_mode={padding_mode!r}, got {far_padding!r}")
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        return centred_convnd(
            x,
            self.weight,
            self.basis,
            self.bias,
            list(self.stride),
            list(self.padding),
            list(self.far_padding),
            list(self.dilation),
            self.groups,
            self.padding_mode,
            self.algorithm,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr() + f", padding={self.padding}"
        text += f", far_padding={self.far_padding}" if any(self.far_padding) else ""
        return text + (f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else "")


class _CentredConvTranspose(_CentredNd):
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
        *,
        num_rings: int | None = None,
        profile: str | tuple[str, Mapping[str, Any]] = "band",
        circular: bool = True,
        orthonormal: bool = False,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode of a transposed convolution must be 'zeros', got {padding_mode!r}")
        geometry = {
            "num_rings": num_rings,
            "profile": profile,
            "circular": circular,
            "orthonormal": orthonormal,
            "spacing": spacing,
            "axes": axes,
        }
        ndim = self.spatial_dims
        taps = int_tuple("kernel_size", kernel_size, ndim, minimum=1)
        steps = int_tuple("stride", stride, ndim, minimum=1)
        spread = int_tuple("dilation", dilation, ndim, minimum=1)
        self_padding = int_tuple("padding", padding, ndim, minimum=0)
        extra = int_tuple("output_padding", output_padding, ndim, minimum=0)
        if any(more >= max(step, d) for more, step, d in zip(extra, steps, spread, strict=True)):
            raise ValueError(f"output_padding must be smaller than stride={steps} or dilation={spread}, got {extra}")
        # Off centre by half a pixel: an even kernel in place of an odd one, and the reverse, puts it right at no cost.
        grown = [
            length + ((2 * pad - more) % 2 if d == 1 else 0)
            for length, pad, more, d in zip(taps, self_padding, extra, spread, strict=True)
        ]
        super().__init__(
            in_channels, out_channels, grown, steps, spread, groups, bias, device, dtype, "dense", geometry
        )
        self.padding = self_padding
        self.output_padding = extra
        #: How much smaller the output is than the full one, see :func:`monai_sre.ops.centred.centred_conv_transpose`.
        self.margin = tuple(
            2 * pad - more + more_taps - length
            for pad, more, more_taps, length in zip(self_padding, extra, grown, taps, strict=True)
        )

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        margin = list(self.margin)
        if output_size is not None:
            margin = self._margin_for(x, output_size)
        kernel = self.weight.matmul(self.basis.to(self.weight.dtype).flatten(1)).unflatten(-1, self.basis.shape[1:])
        return centred_conv_transpose(x, kernel, self.bias, list(self.stride), margin, list(self.dilation), self.groups)

    def _margin_for(self, x: Tensor, output_size: list[int]) -> list[int]:
        """The margin that gives ``output_size`` (spatial axes, or all axes as in ``torch.nn``)."""
        ndim = len(self.kernel_size)
        wanted = output_size[-ndim:]
        smallest: list[int] = []
        margin: list[int] = []
        fits = len(output_size) in (ndim, x.dim())
        for axis in range(ndim):
            full = (
                (x.size(axis - ndim) - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            )
            smallest.append(full - self.margin[axis] - self.output_padding[axis])
            extra = wanted[axis] - smallest[axis] if fits else -1
            fits = fits and 0 <= extra < max(self.stride[axis], self.dilation[axis])
            margin.append(full - wanted[axis] if fits else 0)
        if not fits:
            raise ValueError(
                f"output_size must be {ndim} sizes from {smallest} up to a stride larger, got {output_size}"
            )
        return margin

    def extra_repr(self) -> str:
        return super().extra_repr() + f", margin={self.margin}"


class CentredConv1d(_CentredConv):
    """1-D convolution with an even function as kernel, on a centred grid; arguments as :class:`CentredConv2d`."""

    spatial_dims = 1


class CentredConv2d(_CentredConv):
    """2-D convolution with a radial kernel of any size and stride, on a centred grid.

    Arguments as ``torch.nn.Conv2d`` and :class:`monai_sre.layers.SREConv2d`; ``far_padding`` is padding at the far ends only.
    Outputs have the sizes of ``torch.nn.Conv2d``, and its values wherever its own grid is centred.

    Shape:
        ``(N, in_channels, H, W)`` or ``(in_channels, H, W)`` to the shape that ``torch.nn.Conv2d`` gives.

    Example:
        >>> layer = CentredConv2d(2, 4, 3, stride=2, padding=1)
        >>> x = torch.randn(1, 2, 8, 11)
        >>> layer(x).shape, torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-5)
        (torch.Size([1, 4, 4, 6]), True)
    """

    spatial_dims = 2


class CentredConv3d(_CentredConv):
    """3-D convolution with a radial kernel of any size and stride, on a centred grid; arguments as :class:`CentredConv2d`."""

    spatial_dims = 3


class CentredConvTranspose1d(_CentredConvTranspose):
    """1-D transposed convolution onto a centred grid; arguments as :class:`CentredConvTranspose2d`."""

    spatial_dims = 1


class CentredConvTranspose2d(_CentredConvTranspose):
    """2-D transposed convolution with a radial kernel of any size, onto a centred grid.

    Arguments as ``torch.nn.ConvTranspose2d`` and :class:`monai_sre.layers.SREConv2d`. Where ``output_padding`` leaves torch's
    grid half a pixel off centre (``kernel_size=3, stride=2, padding=1, output_padding=1``), the kernel has one tap more.

    Shape:
        ``(N, in_channels, H, W)`` to the shape that ``torch.nn.ConvTranspose2d`` gives, also for ``output_size``.

    Example:
        >>> layer = CentredConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1)
        >>> x = torch.randn(1, 2, 4, 5)
        >>> layer.kernel_size, layer(x).shape, torch.allclose(layer(x.flip(2)), layer(x).flip(2), atol=1e-5)
        ((4, 4), torch.Size([1, 4, 8, 10]), True)
    """

    spatial_dims = 2


class CentredConvTranspose3d(_CentredConvTranspose):
    """3-D transposed convolution onto a centred grid; arguments as :class:`CentredConvTranspose2d`."""

    spatial_dims = 3
