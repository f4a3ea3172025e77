"""Inference on one image, layer by layer: what a call costs where there is little to compute.

Layers keep channels and size. The smallest input has one position, so that a call on it is all overhead: Python, dispatch
and bringing the weights into the form that the sums are mixed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import PLAIN
from benchmarks.timing import Effort, interleaved
from monai_sre.layers import SREConv2d, SREHarmonicConv2d

#: Channels and size of the images; the first of each width is the overhead.
SHAPES = ((32, 1), (32, 8), (32, 64), (64, 1), (64, 16))
KERNELS = (5, 9)
NAMES = ("auto", "ring", "dense", "energies")
#: Calls in a row, of which the mean is taken: the clock is read once for all.
CALLS = 20


def layer(name: str, in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    """A layer that keeps the size of its input: radial by an algorithm, with energies, or :data:`PLAIN`."""
    sizes: dict[str, Any] = {"in_channels": in_channels, "out_channels": out_channels, "bias": False, "padding": "same"}
    if name == PLAIN:
        return nn.Conv2d(**sizes, kernel_size=3)
    if name == "energies":
        return SREHarmonicConv2d(**sizes, kernel_size=kernel)
    return SREConv2d(**sizes, kernel_size=kernel, algorithm=name)


def one_layer(kind: str, in_channels: int, classes: int) -> nn.Module:
    """What stands for a network of ``benchmarks.networks.KINDS``, or of plain kernels, in a quick run: a layer and a head."""
    first = layer(kind.split()[0].replace("radial", "ring") if kind != PLAIN else kind, in_channels, 8, 5)
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def calls(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Inference, :data:`CALLS` times."""

    @torch.inference_mode()
    def run() -> None:
        for _ in range(CALLS):
            module(x)

    return run


def suite_single(effort: Effort) -> list[dict[str, Any]]:
    """Time of a call of each layer on one image."""
    rows = []
    for channels, size in SHAPES[:2] if effort.quick else SHAPES:
        for kernel in KERNELS[:1] if effort.quick else KERNELS:
            x = torch.randn(1, channels, size, size)
            steps = {name: calls(layer(name, channels, channels, kernel).eval(), x) for name in (*NAMES, PLAIN)}
            times = interleaved(steps, effort)
            for time in times.values():
                time |= {name: time[name] / CALLS for name in ("ms", "iqr_ms", "best_ms")}
            rows.append({"shape": list(x.shape), "kernel": kernel, "times": times})
            print(tuple(x.shape), kernel, {name: round(time["ms"], 3) for name, time in times.items()}, flush=True)
    return rows
