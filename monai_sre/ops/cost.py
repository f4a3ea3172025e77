"""The choice between the dense and the ring algorithm: a small cost model, fitted to measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def choose_algorithm(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> str:
    """``"dense"`` or ``"ring"``, whichever is estimated to be faster for these operands.

    Args:
        x: input of shape ``(N, C, *spatial)``; only shape, dtype, device and ``requires_grad`` count.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``.
        stride: one integer a spatial axis; so ``padding`` and ``dilation``.
        groups: number of blocks of channels that do not mix.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or groups > 1:
        return "dense"
    if torch.is_autocast_enabled("cpu"):
        return "dense"
    taps, rings = math.prod(basis.shape[1:]), basis.shape[0]
    if taps <= rings or max(stride) > 1:
        return "dense"
    pair = min(x.shape[1], weight.shape[0])
    ring = rings * pair + 3 * taps ** 0.5 + 4 * rings
    return "ring" if ring < 0.8 * taps * pair and pair >= 4 else "dense"
