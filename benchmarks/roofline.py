"""The least time that a machine could take for a layer by the ring algorithm: its peaks, and what the layer asks of them.

Counted are the additions of the sums and the multiply-adds of the products, which share the vector units, and the values
that must be read and written once: input, output and their gradients. The peaks are measured in the same run: a matrix
product whose operands sit in cache for the first two, a copy far larger than the caches for the last. The sums reach the
peak of the products only if each addition needs but one load. Arithmetic and memory may overlap, so the bound is the larger
of the two.
"""

from __future__ import annotations

import math

import torch

from benchmarks.timing import Effort, interleaved
from monai_sre.ops import radial_basis
from monai_sre.ops.ring.plan import plans

_PRODUCT_SIZE = 256
_COPIED_VALUES = 2**26


def measured_peaks(effort: Effort) -> dict[str, float]:
    """Multiply-adds per second and bytes (read or written) per second of all threads."""
    a, b = (
        torch.randn(_PRODUCT_SIZE * torch.get_num_threads(), _PRODUCT_SIZE),
        torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE),
    )
    c = torch.empty_like(a)
    source, target = torch.zeros(_COPIED_VALUES), torch.ones(_COPIED_VALUES)
    steps = {"product": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}
    best = {name: value["best_ms"] / 1e3 for name, value in interleaved(steps, effort).items()}
    return {"mac_per_s": len(a) * _PRODUCT_SIZE**2 / best["product"], "bytes_per_s": 2 * source.nbytes / best["copy"]}


def least_times(
    shape: tuple[int, ...], kernel: tuple[int, ...], inference: bool, peaks: dict[str, float]
) -> dict[str, float]:
    """Milliseconds of the sums, the products and the memory of a float32 layer that keeps channels and size.

    Example:
        >>> peaks = {"mac_per_s": 1e9, "bytes_per_s": 1e9}
        >>> least_times((1, 10, 10, 10), (3, 3), True, peaks)  # 2 rings: 10 x 10 x 2 multiply-adds at each of 100 positions
        {'sums': 0.005, 'products': 0.02, 'memory': 0.008, 'bound': 0.025}
    """
    plan, _ = plans(radial_basis(kernel).float())
    values = math.prod(shape)
    stages = (plan.columns, plan.rows, plan.groups) if len(kernel) == 3 else (plan.columns, plan.rows)
    additions = sum(len(stage.tap) - len(stage) for stage in stages)
    products = values * shape[1] * plan.maps * (1 if inference else 3)
    sums = values * additions * (1 if inference else 2)  # backward, one pass of sums serves both gradients
    moved = values * 4 * (2 if inference else 5)
    times = {
        "sums": sums / peaks["mac_per_s"] * 1e3,
        "products": products / peaks["mac_per_s"] * 1e3,
        "memory": moved / peaks["bytes_per_s"] * 1e3,
    }
    times["bound"] = max(times["sums"] + times["products"], times["memory"])
    return times
