"""What the tests of the ring algorithm share: bases, shapes, a slow reference, and the check against torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops import radial_basis
from monai_sre.ops.ring.convolution import ring_conv

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def slow_reference(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """One tap after the other: shift the padded input, weigh, add. No groups, no bias."""
    kernel = torch.einsum("oir,r...->oi...", weight, basis)
    padded = functional.pad(x, [amount for side in reversed(padding) for amount in (side, side)])
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded.shape[2:], dilation, basis.shape[1:], stride, strict=True)
    ]
    y = x.new_zeros(x.shape[0], weight.shape[0], *size)
    for tap in itertools.product(*(range(k) for k in basis.shape[1:])):
        window = padded
        for axis, (t, d, s, n) in enumerate(zip(tap, dilation, stride, size, strict=True)):
            window = window.narrow(axis + 2, t * d, (n - 1) * s + 1)[
                (slice(None),) * (axis + 2) + (slice(None, None, s),)
            ]
        y = y + torch.einsum("oi,ni...->no...", kernel[(..., *tap)], window)
    return y


def dense(x: Tensor, weight: Tensor, basis: Tensor, bias: Tensor | None = None, *sizes: Any) -> Tensor:
    kernel = torch.einsum("oir,r...->oi...", weight, basis)
    return CONVOLUTIONS[basis.dim() - 2](x, kernel, bias, *sizes)


def error(value: Tensor, reference: Tensor) -> float:
    """Relative error in the norm; 0 for two zeros."""
    assert value.shape == reference.shape
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm().clamp(min=1e-30))


def gradients(function: Callable[..., Tensor], grad: Tensor, *operands: Tensor) -> list[Tensor]:
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, grad)]


def random_basis(rings: int, kernel: tuple[int, ...]) -> Tensor:
    """No symmetry, no repetition: what nothing in the plan may rely on."""
    return torch.randn(rings, *kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


BASES = {
    "band2": radial_basis((5, 5)),
    "band2-9": radial_basis((9, 9)),
    "gaussian2": radial_basis((7, 7), profile="gaussian"),
    "linear-unequal": radial_basis((3, 7), profile="linear", spacing=(2.0, 1.0)),
    "orthonormal2": radial_basis((5, 5), orthonormal=True),
    "orthonormal-gaussian2": radial_basis((5, 5), profile="gaussian", orthonormal=True),
    "band1": radial_basis((5,)),
    "band3": radial_basis((3, 3, 3)),
    "gaussian3": radial_basis((3, 5, 5), profile="gaussian", spacing=(2.0, 1.0, 1.0)),
    "axes3": radial_basis((3, 3, 3), axes=(1, 2)),
    "flat3": radial_basis((1, 5, 5)),
    "random1": random_basis(2, (3,)),
    "random2": random_basis(2, (3, 4)),
    "random3": random_basis(3, (2, 3, 2)),
    "zero2": torch.zeros(2, 3, 3, dtype=torch.float64),
}
SIZES = {
    1: [(1,), (13,), (40,)],
    2: [(1, 1), (2, 5), (4, 4), (9, 20), (33, 17)],
    3: [(1, 2, 3), (5, 4, 7), (6, 18, 17)],
}
# stride, padding (-1: same), dilation, groups
SETTINGS = [(1, -1, 1, 1), (1, 0, 1, 1), (1, 3, 2, 2), (2, -1, 1, 1), (3, 7, 2, 1), (1, 9, 1, 4)]


def fitted(basis: Tensor, size: tuple[int, ...], setting: tuple[int, int, int, int]) -> tuple[Any, ...] | None:
    """Stride, padding and dilation of every axis and the groups, or None where the kernel does not fit."""
    stride, padding, dilation, groups = setting
    kernel = basis.shape[1:]
    pads = tuple(dilation * (k - 1) // 2 if padding < 0 else padding for k in kernel)
    if any(n + 2 * p < dilation * (k - 1) + 1 for n, p, k in zip(size, pads, kernel, strict=True)):
        return None
    return (stride,) * len(size), pads, (dilation,) * len(size), groups


def cases() -> Iterator[Any]:
    for name, basis in BASES.items():
        for size in SIZES[basis.dim() - 1]:
            for setting in SETTINGS:
                if fitted(basis, size, setting) is None:
                    continue
                yield pytest.param(basis, size, setting, id=f"{name}-{'x'.join(map(str, size))}-{setting}")


def check(
    basis: Tensor, size: tuple[int, ...], sizes: tuple[Any, ...], dtype: torch.dtype, channels: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels[0], *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels[1], channels[0] // sizes[3], len(basis), dtype=torch.float64, generator=generator)
    bias = torch.randn(channels[1], dtype=torch.float64, generator=generator)
    grad = torch.randn(dense(x, weight, basis, bias, *sizes).shape, dtype=torch.float64, generator=generator)
    exact = gradients(lambda *leaves: dense(leaves[0], leaves[1], basis, leaves[2], *sizes), grad, x, weight, bias)
    operands = [operand.to(dtype) for operand in (x, weight, bias)]
    ours = gradients(
        lambda *leaves: ring_conv(leaves[0], leaves[1], basis, leaves[2], *sizes), grad.to(dtype), *operands
    )
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == dtype
        assert error(value, reference) < DTYPES[dtype]
