"""Images whose values are known everywhere, for tests that rotate or sample them without interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def waves(sigma: float, spatial_dims: int, count: int = 400, seed: int = 0) -> Any:
    """Gaussian-filtered noise as a function of continuous places: a sum of plane waves, exact wherever it is sampled."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.randn(count, spatial_dims, generator=generator, dtype=torch.float64) / (2 * sigma) * 2**0.5
    phase = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)

    def image(places: Tensor) -> Tensor:
        return torch.cos(places @ frequency.T + phase).sum(-1) * (2 / count) ** 0.5

    return image


def grid(size: tuple[int, ...], spacing: tuple[float, ...]) -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step for n, step in zip(size, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
