"""The compiled energies of harmonics against torch's convolutions, as the layers use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.layers import layer_step
from benchmarks.timing import Effort, interleaved
from monai_sre.layers import SREHarmonicConv2d, SREHarmonicConv3d
from monai_sre.ops.ring import energy_cpu

ROWS: tuple[tuple[type[nn.Module], tuple[int, ...], int], ...] = (
    (SREHarmonicConv2d, (16, 32, 32, 32), 5),
    (SREHarmonicConv3d, (2, 16, 24, 24, 24), 5),
)


def suite_energies(effort: Effort) -> list[dict[str, Any]]:
    """Whole layers that keep channels and size, with compiled energies and without."""
    libraries = {dtype: energy_cpu.LIBRARY.get(dtype) for dtype in (torch.float32, torch.float64)}
    rows = []
    for kind, shape, kernel in ROWS:
        layer = kind(shape[1], shape[1], kernel, padding=kernel // 2, bias=False)
        for inference in (False, True):
            x = torch.randn(shape).requires_grad_(not inference)
            step = layer_step(layer, list(layer.parameters()), x, torch.randn(shape), inference)
            steps = {"compiled": _with(libraries, step), "convolutions": _with(dict.fromkeys(libraries), step)}
            times = interleaved(steps, effort)
            rows.append({"shape": list(shape), "kernel": kernel, "inference": inference, "times": times})
            print(shape, inference, {name: round(value["ms"], 2) for name, value in times.items()}, flush=True)
    return rows


def _with(libraries: dict[torch.dtype, Any], step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with patch.object(energy_cpu.LIBRARY, "libraries", libraries):
            return step()

    return run
