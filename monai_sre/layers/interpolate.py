"""Interpolation that treats both ends of an axis alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.resample import centred_nearest


class CentredNearest(nn.Module):
    """Nearest-neighbour interpolation that treats both ends alike, see :func:`monai_sre.ops.resample.centred_nearest`.

    Args:
        size: sizes of the output, one for all axes or one an axis; or
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
        self.size: list[int] = [] if size is None else [size] * 3 if isinstance(size, int) else list(size)
        factors = scale_factor
        self.factors: list[float] = (
            [] if factors is None else [float(factors)] * 3 if isinstance(factors, (int, float)) else list(factors)
        )

    def forward(self, x: Tensor) -> Tensor:
        size: list[int] = []
        for axis in range(x.dim() - 2):
            size.append(self.size[axis] if len(self.size) > 0 else int(x.size(axis + 2) * self.factors[axis]))
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
        amount = self.scale_factor // 2
        x = _mean(functional.pad(x, [amount, amount] * (x.dim() - 2)), self.scale_factor)
        return _mean(x, 2) if self.scale_factor % 2 == 0 else x


def _mean(x: Tensor, width: int) -> Tensor:
    if x.dim() == 3:
        return functional.avg_pool1d(x, width, 1)
    if x.dim() == 4:
        return functional.avg_pool2d(x, width, 1)
    return functional.avg_pool3d(x, width, 1)
