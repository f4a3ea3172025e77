"""Centred pooling and upsampling as modules: drop-in for torch's, commuting with rotations and flips at every size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from monai_sre.ops.arguments import check_flags, int_tuple
from monai_sre.ops.grid import centred_pad, pad_ends, script_if_tracing, serves_all_sizes
from monai_sre.ops.pool import (
    BLUR_WIDTH,
    avg_pool_nd,
    blur_width,
    blurred_avg_pool,
    blurred_max_pool,
    centred_avg_pool,
    centred_blur_pool,
    centred_max_pool,
    centred_nearest,
    centred_upsample,
)


class _CentredPool(nn.Module):
    spatial_dims: int

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: int | Sequence[int],
        ceil_mode: bool,
        antialias: bool | float,
    ) -> None:
        super().__init__()
        self.kernel_size = int_tuple("kernel_size", kernel_size, self.spatial_dims, minimum=1)
        chosen = kernel_size if stride is None else stride
        self.stride = int_tuple("stride", chosen, self.spatial_dims, minimum=1)
        self.padding = int_tuple("padding", padding, self.spatial_dims, minimum=0)
        if any(2 * amount > length for amount, length in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding must be at most half of kernel_size={self.kernel_size}, got {padding!r}")
        check_flags(ceil_mode=ceil_mode)
        self.ceil_mode, self.antialias = ceil_mode, blur_width(antialias)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return text + (f", antialias={self.antialias}" if self.antialias else "")


class _CentredAvgPool(_CentredPool):
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        antialias: bool | float = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, antialias)
        check_flags(count_include_pad=count_include_pad)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        size, stride, padding = list(self.kernel_size), list(self.stride), list(self.padding)
        if self.antialias > 0:
            return blurred_avg_pool(x, size, stride, padding, self.ceil_mode, self.antialias)
        return centred_avg_pool(x, size, stride, padding, self.ceil_mode, self.count_include_pad)


class _CentredMaxPool(_CentredPool):
    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        *,
        antialias: bool | float = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, antialias)
        self.dilation = int_tuple("dilation", dilation, self.spatial_dims, minimum=1)

    def forward(self, x: Tensor) -> Tensor:
        size, stride, padding = list(self.kernel_size), list(self.stride), list(self.padding)
        if self.antialias > 0:
            return blurred_max_pool(x, size, stride, padding, list(self.dilation), self.ceil_mode, self.antialias)
        return centred_max_pool(x, size, stride, padding, list(self.dilation), self.ceil_mode)


class CentredAvgPool1d(_CentredAvgPool):
    """``torch.nn.AvgPool1d`` on a centred grid; arguments alike, see :class:`CentredAvgPool2d`."""

    spatial_dims = 1


class CentredAvgPool2d(_CentredAvgPool):
    """``torch.nn.AvgPool2d`` on a centred grid; arguments alike, see :func:`monai_sre.ops.pool.centred_avg_pool`.

    With ``antialias=True``, or the width of the filter, a Gaussian filter takes the place of the window, see
    :func:`monai_sre.ops.pool.blurred_avg_pool`.

    Example:
        >>> import torch
        >>> x, pool = torch.randn(1, 2, 7, 10), CentredAvgPool2d(2)
        >>> torch.allclose(pool(x.rot90(1, (2, 3))), pool(x).rot90(1, (2, 3)), atol=1e-6)
        True
    """

    spatial_dims = 2


class CentredAvgPool3d(_CentredAvgPool):
    """``torch.nn.AvgPool3d`` on a centred grid; arguments alike, see :class:`CentredAvgPool2d`."""

    spatial_dims = 3


class CentredMaxPool1d(_CentredMaxPool):
    """``torch.nn.MaxPool1d`` on a centred grid; arguments alike, see :class:`CentredMaxPool2d`."""

    spatial_dims = 1


class CentredMaxPool2d(_CentredMaxPool):
    """``torch.nn.MaxPool2d`` on a centred grid; arguments alike, see :func:`monai_sre.ops.pool.centred_max_pool`.

    With ``antialias=True``, or the width of the filter, the maximum is taken at every pixel, and a Gaussian filter goes
    before the stride, see :func:`monai_sre.ops.pool.blurred_max_pool`.

    Example:
        >>> import torch
        >>> x, pool = torch.randn(1, 2, 7, 10), CentredMaxPool2d(3, stride=2, padding=1)
        >>> torch.equal(pool(x.flip(2)), pool(x).flip(2))
        True
    """

    spatial_dims = 2


class CentredMaxPool3d(_CentredMaxPool):
    """``torch.nn.MaxPool3d`` on a centred grid; arguments alike, see :class:`CentredMaxPool2d`."""

    spatial_dims = 3


class CentredBlurPool(nn.Module):
    """Antialiased down-sampling on a centred grid, see :func:`monai_sre.ops.pool.centred_blur_pool`.

    Args:
        stride: step between outputs, the same along all axes.
        width: standard deviation of the Gaussian filter, in steps of the output.

    Shape:
        ``(N, C, *spatial)`` to ``(N, C, *ceil(spatial / stride))``, 1 to 3 spatial axes.

    Example:
        >>> import torch
        >>> x, pool = torch.randn(1, 2, 7, 10), CentredBlurPool(2)
        >>> torch.allclose(pool(x.rot90(1, (2, 3))), pool(x).rot90(1, (2, 3)), atol=1e-6)
        True
    """

    def __init__(self, stride: int, width: float = BLUR_WIDTH) -> None:
        super().__init__()
        (self.stride,) = int_tuple("stride", stride, 1, minimum=1)
        if not isinstance(width, (int, float)) or not 0 < width < float("inf"):
            raise ValueError(f"width must be a positive number, got {width!r}")
        self.width = float(width)

    def forward(self, x: Tensor) -> Tensor:
        return centred_blur_pool(x, [self.stride] * (x.dim() - 2), self.width)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, width={self.width}"


class CentredUpsample(nn.Module):
    """Linear upsampling onto a centred grid, see :func:`monai_sre.ops.pool.centred_upsample`.

    Args:
        scale_factor: how many times finer the output grid is.

    Shape:
        ``(N, C, *spatial)`` to ``(N, C, *size)``; ``size`` is ``scale_factor`` times the input's unless it is given, for
        example as the size before a centred pooling that is undone.

    Example:
        >>> import torch
        >>> CentredUpsample(2)(torch.randn(1, 3, 5, 6), size=[9, 12]).shape
        torch.Size([1, 3, 9, 12])
    """

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        (self.scale_factor,) = int_tuple("scale_factor", scale_factor, 1, minimum=1)

    def forward(self, x: Tensor, size: list[int] | None = None) -> Tensor:
        if size is not None and (len(size) != x.dim() - 2 or min(size) < 1):
            raise ValueError(f"size must be {x.dim() - 2} sizes >= 1, one per spatial axis, got {size}")
        return centred_upsample(x, self.scale_factor, size)


class CentredNearest(nn.Module):
    """Nearest-neighbour interpolation that treats both ends alike, see :func:`monai_sre.ops.pool.centred_nearest`.

    Args:
        size: sizes of the output, one for all axes or one per axis; or
        scale_factor: ratios to the input's sizes, likewise; sizes are rounded down.

    Example:
        >>> import torch
        >>> CentredNearest(scale_factor=1.5)(torch.randn(1, 2, 4, 5)).shape
        torch.Size([1, 2, 6, 7])
    """

    def __init__(
        self, size: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if (size is None) == (scale_factor is None):
            raise ValueError(f"give either size or scale_factor, got size={size!r} and scale_factor={scale_factor!r}")
        given: Any = scale_factor if size is None else size
        self.scaled = size is None
        self.values = [float(given)] * 3 if isinstance(given, (int, float)) else [float(value) for value in given]

    def forward(self, x: Tensor) -> Tensor:
        return _nearest(x, self.values, self.scaled)


@script_if_tracing
def _nearest(x: Tensor, values: list[float], scaled: bool) -> Tensor:
    size: list[int] = []
    unit = 2_520_000_000  # of ratios of sizes in a graph: thirds, sevenths, and decimals up to the seventh place
    for axis in range(x.dim() - 2):
        if not scaled:
            size.append(int(values[axis]))
        elif serves_all_sizes(x):
            size.append(x.size(axis + 2) * int(round(unit * values[axis])) // unit)  # noqa: RUF046 - TorchScript
        else:
            size.append(int(x.size(axis + 2) * values[axis]))
    return centred_nearest(x, size)


class CentredPadPool(nn.Module):
    """The mean over windows of ``scale_factor`` at stride 1 that smooths a sub-pixel upsampling, centred.

    MONAI pads at the near end only; here an even window is joined once more by pairs.

    Example:
        >>> import torch
        >>> CentredPadPool(2)(torch.tensor([[[0.0, 4.0, 0.0, 0.0]]]))
        tensor([[[1., 2., 1., 0.]]])
    """

    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        (self.scale_factor,) = int_tuple("scale_factor", scale_factor, 1, minimum=1)

    def forward(self, x: Tensor) -> Tensor:
        factor, ones = self.scale_factor, [1] * (x.dim() - 2)
        x = pad_ends(x, [factor // 2] * len(ones))
        x = avg_pool_nd(x, [factor] * len(ones), ones)
        return avg_pool_nd(x, [2] * len(ones), ones) if factor % 2 == 0 else x


class CentredPad(nn.Module):
    """Padding that is one number of pixels in all, alike at both ends: see :func:`monai_sre.ops.grid.centred_pad`.

    Args:
        total: pixels to add along each spatial axis; fewer than none crop.
        mode: as in ``torch.nn.functional.pad``.
        value: what is added with ``"constant"``.

    Example:
        >>> import torch
        >>> CentredPad([2])(torch.tensor([[[1.0, 3.0]]])), CentredPad([1], "replicate")(torch.tensor([[[1.0, 3.0]]]))
        (tensor([[[0., 1., 3., 0.]]]), tensor([[[1., 2., 3.]]]))
    """

    def __init__(self, total: Sequence[int], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.total = [int(amount) for amount in total]
        self.mode, self.value = mode, value

    def forward(self, x: Tensor) -> Tensor:
        size: list[int] = []
        for axis, more in enumerate(self.total):
            size.append(x.size(x.dim() - len(self.total) + axis) + more)
        return centred_pad(x, size, self.mode, self.value)

    def extra_repr(self) -> str:
        return f"total={tuple(self.total)}, mode={self.mode!r}"
