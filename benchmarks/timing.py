"""How the speed benchmarks take their times, and what is written down about the machine."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_sre.ops.ring.cpu import compiled_for

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
#: Milliseconds that calls of a step in a row take at least, between two events of a device.
_SAMPLE = 2.0


@dataclass(frozen=True)
class Effort:
    """How long and with what a suite measures.

    Attributes:
        seconds: time per row.
        quick: whether only a few rows are run, to see that they do.
        clock: ``"wall"``, (on one thread) ``"cpu"``, the processor time that a step used, or ``"device"``, the time between
            events on the current CUDA stream, over as many calls as take 2 ms.
        rounds: fewest rounds, 2 if ``quick``.
    """

    seconds: float
    quick: bool = False
    clock: str = "wall"
    rounds: int = 8


def interleaved(steps: dict[str, Callable[[], Any]], effort: Effort) -> dict[str, dict[str, float]]:
    """Median and interquartile range of each step in ms, over rounds that run every step once in random order, 60 at most.

    Raises:
        ValueError: processor time is asked for with more than one thread.

    Example:
        >>> times = interleaved({"sum": lambda: sum(range(1000))}, Effort(seconds=0.0))
        >>> times["sum"]["rounds"], 0 < times["sum"]["best_ms"] <= times["sum"]["ms"]
        (8, True)
    """
    if effort.clock == "cpu" and torch.get_num_threads() != 1:  # those that wait for each other use processor time
        raise ValueError(f"processor time tells what one thread does, and there are {torch.get_num_threads()}")
    for step in steps.values():
        step()
    calls = {name: _calls(step) if effort.clock == "device" else 1 for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    begun, order, rounds, least = time.perf_counter(), list(steps), 0, 2 if effort.quick else effort.rounds
    while rounds < least or (time.perf_counter() - begun < effort.seconds and rounds < 60):
        random.shuffle(order)
        for name in order:
            times[name].append(_elapsed(steps[name], effort.clock, calls[name]))
        rounds += 1
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"ms": median, "iqr_ms": high - low, "best_ms": min(values), "rounds": rounds}
    return result


def _elapsed(step: Callable[[], Any], clock: str, calls: int = 1) -> float:
    """Milliseconds of one of ``calls`` calls in a row."""
    if clock == "device":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls
    start = CLOCKS[clock]()
    for _ in range(calls):
        step()
    return (CLOCKS[clock]() - start) * 1e3 / calls


def _calls(step: Callable[[], Any]) -> int:
    """Calls that a sample on a device has, after two that warm up."""
    step()
    return max(1, min(100, round(_SAMPLE / max(_elapsed(step, "device"), 1e-3))))


def machine(clock: str) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "clock": "processor time" if clock == "cpu" else clock,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiled_ring_sums": compiled_for(torch.float32),
        "dtype": "float32",
    }


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str, key: str = "ms") -> float | None:
    """How many times more ``slow`` takes than ``fast``, or ``None`` where one is missing."""
    return times[slow][key] / times[fast][key] if slow in times and fast in times else None
