"""Training under ``torch.compile``: the step, what compiling costs, and what makes it happen again.

* Steps of all networks, eager and compiled with Inductor, by turns in one process.
* Compile time: a first compiled step, after an eager one, in a fresh process with an empty cache of Inductor, one worker; the
  processor time of this process and of the C++ compiler, always. A part is the same for every network: what Inductor itself
  loads and builds once.
* Graphs compiled for the batches of :data:`BATCHES`, one after the other: by default, where torch takes a second size for a
  sign that it varies, and with the batch marked as varying from the first. Breaks of the graph.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.memory import in_a_fresh_process
from benchmarks.networks import PLAIN, resnet, training_step
from benchmarks.single import one_layer
from benchmarks.timing import Effort, interleaved

NAMES = (PLAIN, "radial 5", "energies 5")
#: Ratio of the step, and of the compile time, to the plain network's that a network should not exceed.
GOALS = {"radial 5": (1.0, 1.5), "energies 5": (1.5, 1.5)}
#: Images of each step. From 16 up, as below that torch itself compiles plain convolutions anew.
BATCHES = (16, 24, 20)
SHAPE = (3, 32, 32)
CLASSES, WIDTH = 9, 32
PROCESSES = 3


def network_of(name: str, quick: bool) -> nn.Module:
    """A network; a single layer if ``quick``, as a whole one is compiled for a minute."""
    return one_layer(name, SHAPE[0], CLASSES) if quick else resnet(name, 2, SHAPE[0], CLASSES, WIDTH)


def step_of(network: Any, batch: int = BATCHES[0], marked: bool = False) -> Callable[[], None]:
    """A training step; the batch ``marked`` as varying or not."""
    x = torch.randn(batch, *SHAPE)
    if marked:
        torch._dynamo.mark_dynamic(x, 0)
    return training_step(network, x, CLASSES)


def compile_seconds(name: str, quick: bool) -> float:
    """Processor time of a first compiled step in this process."""
    network = network_of(name, quick)
    step_of(network)()
    step = step_of(torch.compile(network))
    before = sum(os.times()[:4])  # with the children that have ended
    step()
    return sum(os.times()[:4]) - before


def graphs(network: nn.Module, marked: bool, backend: str = "aot_eager") -> list[int]:
    """Graphs that each of :data:`BATCHES` makes torch compile."""
    torch._dynamo.reset()
    compiled, found = torch.compile(network, backend=backend), []
    for batch in BATCHES:
        before = counters["stats"]["unique_graphs"]
        step_of(compiled, batch, marked)()
        found.append(counters["stats"]["unique_graphs"] - before)
    return found


def suite_compile(effort: Effort) -> list[dict[str, Any]]:
    """One row: times, compile times and graphs of all networks."""
    names = NAMES[:2] if effort.quick else NAMES
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 if effort.quick else PROCESSES):
        for name in random.sample(names, len(names)):
            with TemporaryDirectory() as folder:
                cache = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
                taken = in_a_fresh_process("benchmarks.compiled", name, int(effort.quick), **cache)
            seconds[name].append(taken)
            print(name, f"compiled in {taken:.1f} s", flush=True)
    compiling = {name: {"s": statistics.median(found), "all_s": found} for name, found in seconds.items()}
    networks = {name: network_of(name, effort.quick) for name in names}
    counted: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        counters.clear()
        counted[name] = {"default": graphs(network, False), "marked": graphs(network, True)}
        counted[name]["breaks"] = sum(counters["graph_break"].values())
        print(name, counted[name], flush=True)
    torch._dynamo.reset()
    eager = {name: step_of(network) for name, network in networks.items()}
    compiled = {f"{name}, compiled": step_of(torch.compile(network)) for name, network in networks.items()}
    times = interleaved(eager | compiled, effort)
    print({name: round(value["ms"], 1) for name, value in times.items()}, flush=True)
    shape = [BATCHES[0], *SHAPE]
    return [{"shape": shape, "width": WIDTH, "times": times, "compile": compiling, "graphs": counted, "goals": GOALS}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the compile time of one network in seconds; used by the suite.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("quick", type=int)
    parser.add_argument("threads", type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(json.dumps(compile_seconds(chosen.name, bool(chosen.quick))))
