"""Padding that is alike at both ends of every axis."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def pad_ends(x: Tensor, amounts: list[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """``torch.nn.functional.pad`` by the same amount at both ends of each of the last axes, the first of them first.

    Example:
        >>> import torch
        >>> pad_ends(torch.ones(1, 1, 3, 4), [1, 0]).shape
        torch.Size([1, 1, 5, 4])
    """
    pads: list[int] = []
    for amount in amounts:
        pads = [amount, amount] + pads  # noqa: RUF005 - TorchScript knows no unpacking
    return functional.pad(x, pads, mode=mode, value=value)


def extend_ends(x: Tensor, amounts: list[int], mode: str) -> Tensor:
    """:func:`pad_ends` by any amounts: ``"reflect"`` and ``"circular"`` go on, where torch stops at the size of the map.

    Example:
        >>> import torch
        >>> extend_ends(torch.tensor([[[1.0, 2.0]]]), [3], "reflect").tolist()
        [[[2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]]]
    """
    fits = True
    for axis in range(len(amounts)):
        fits = fits and amounts[axis] < x.size(axis + 2)
    if fits or mode not in ("reflect", "circular"):
        return pad_ends(x, amounts, mode)
    for axis in range(len(amounts)):
        rest = amounts[axis]
        while rest > 0:
            size = x.size(axis + 2)
            step = min(rest, max(1, size - 1) if mode == "reflect" else size)
            one = [0] * len(amounts)
            one[axis] = step
            x = pad_ends(x, one, "replicate" if size == 1 else mode)
            rest -= step
    return x
