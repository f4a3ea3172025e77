"""Peak memory of one training step, each candidate in a fresh process.

The figure is the growth of the resident memory: its highest value during the step, less what was resident after building
the candidate and a step on a tiny input, which loads the libraries and leaves no gradients behind. All candidates run with
the same settings of malloc: blocks above 64 KiB are returned when they are freed, so that what is resident is what is in
use. Linux only, which lets a process reset its own peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers import LAYERS, candidates, layer_step
from benchmarks.networks import NAMES as NETWORK_NAMES
from benchmarks.networks import NETWORKS, build, training_step
from benchmarks.timing import Effort

LAYER_NAMES = ("ring", "harmonic", "dense", "SRE-Conv", "GMR-Conv", "plain 3")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_ROOT = Path(__file__).parents[1]


def peak_growth(tiny: Callable[[], Any], step: Callable[[], Any]) -> int:
    """Bytes by which the resident memory rises at most while ``step`` runs, after ``tiny``."""
    tiny()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def measure(suite: str, index: int, name: str) -> int | None:
    """Peak growth of one candidate in this process; ``None`` where its package is missing."""
    if suite == "networks":
        row = NETWORKS[index]
        network = build(row, name)
        if network is None:
            return None
        x = row.input()
        tiny = training_step(network, x[:2, ..., :16, :16], row.classes)
        step = training_step(network, x, row.classes)

        def forget() -> None:
            tiny()
            network.zero_grad()

        return peak_growth(forget, step)
    layer = LAYERS[index]
    found = candidates(layer.channels, layer.kernel, layer.ndim, [name])
    if name not in found:
        return None
    steps = []
    for shape in ((1, layer.channels, *(8,) * layer.ndim), layer.shape):
        x = torch.randn(shape).requires_grad_(not layer.inference)
        steps.append(layer_step(*found[name], x, torch.randn(shape), layer.inference))
    return peak_growth(*steps)


def suite_memory(effort: Effort) -> list[dict[str, Any]]:
    """Median of three processes for every candidate of every network and layer."""
    rows = []
    cases = [("networks", index) for index in range(len(NETWORKS))] + [
        ("layers", index) for index in range(len(LAYERS))
    ]
    for suite, index in [cases[0], cases[len(NETWORKS)]] if effort.quick else cases:
        peaks: dict[str, dict[str, float]] = {}
        names = NETWORK_NAMES if suite == "networks" else LAYER_NAMES
        for name in (names[0], names[-1]) if effort.quick else names:
            values = [
                in_a_fresh_process("benchmarks.memory", suite, index, name) for _ in range(1 if effort.quick else 3)
            ]
            measured = [value for value in values if value is not None]
            if measured:
                peaks[name] = {"mib": statistics.median(measured) / 2**20, "most_mib": max(measured) / 2**20}
        row = NETWORKS[index] if suite == "networks" else LAYERS[index]
        rows.append({"suite": suite, "name": row.name, "shape": list(row.shape), "peaks": peaks})
        print(row.name, {name: round(value["mib"]) for name, value in peaks.items()}, flush=True)
    return rows


def in_a_fresh_process(module: str, *arguments: Any, **environment: str) -> Any:
    """The JSON that a module prints last, given the arguments and the number of threads; :data:`MALLOC` by default."""
    command = [sys.executable, "-m", module, *map(str, arguments), str(torch.get_num_threads())]
    surroundings = os.environ | (environment or MALLOC)
    done = subprocess.run(command, cwd=_ROOT, env=surroundings, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the peak growth of one candidate in bytes; used by the suite.")
    parser.add_argument("suite", choices=("networks", "layers"))
    parser.add_argument("index", type=int)
    parser.add_argument("name")
    parser.add_argument("threads", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    found = measure(chosen.suite, chosen.index, chosen.name)
    print(json.dumps(found))
