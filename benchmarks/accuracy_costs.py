"""What the models of :mod:`benchmarks.accuracy` cost to train: time and peak memory of a step.

    python -m benchmarks.accuracy_costs --dataset_dir DIR [--axes 2]

One step of SGD on a batch as large as the bundle's, of images of BreastMNIST's and AdrenalMNIST3D's shape: processor time of
one thread, interleaved rounds, and the growth of the resident memory in a fresh process, median of three
(:mod:`benchmarks.memory`). Writes ``results/accuracy_costs.json``; ``python -m benchmarks.accuracy report`` puts the ratios
to the plain network into its table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy_models import MODELS, network_of
from benchmarks.memory import in_a_fresh_process, peak_growth
from benchmarks.networks import training_step
from benchmarks.timing import Effort, interleaved, machine

OUT = Path(__file__).with_name("results") / "accuracy_costs.json"
#: Data set, batch and image of each number of axes.
TASKS = {2: ("breastmnist", (64, 1, 32, 32)), 3: ("adrenalmnist3d", (16, 1, 28, 28, 28))}
#: Networks that differ in cost, by the number of axes; in 3-D without those too wide to train on a CPU.
NAMES = {
    dims: [name for name, model in MODELS.items() if not model.averaged and name != "plain-turned"] for dims in TASKS
}
NAMES[3] = [name for name in NAMES[3] if name not in ("plain-wide", "sre-wide", "official", "gmr")]
CLASSES = 2


def main(dataset_dir: str, axes: list[int]) -> None:
    """Measure and write; what is not measured now keeps its figures."""
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for dims in axes:
        dataset, shape = TASKS[dims]
        steps = {}
        for name in NAMES[dims]:
            try:
                steps[name] = training_step(network_of(MODELS[name], dataset, dataset_dir), torch.randn(shape), CLASSES)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        times = interleaved(steps, Effort(seconds=0, clock="cpu", rounds=7))
        peaks = {
            name: [in_a_fresh_process("benchmarks.accuracy_costs", dataset_dir, dims, name) or 0 for _ in range(3)]
            for name in steps
        }
        found[dataset] = {
            "machine": machine("cpu"),
            "shape": list(shape),
            "times": times,
            "peaks": {name: {"mib": statistics.median(values) / 2**20} for name, values in peaks.items()},
        }
        print(dataset, {name: (round(times[name]["ms"]), statistics.median(peaks[name]) >> 20) for name in steps})
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def peak(dataset_dir: str, dims: int, name: str) -> int:
    """Growth of the resident memory in one step, in bytes."""
    dataset, shape = TASKS[dims]
    network = network_of(MODELS[name], dataset, dataset_dir)

    def step(x: Tensor) -> None:
        training_step(network, x, CLASSES)()

    def tiny() -> None:
        step(torch.randn(2, *shape[1:])[..., :16, :16])
        network.zero_grad()

    batch = torch.randn(shape)
    return peak_growth(tiny, lambda: step(batch))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir")
    parser.add_argument("--axes", type=int, choices=TASKS, nargs="+", default=list(TASKS), help="of the images")
    parser.add_argument(
        "one", nargs="*", help="folder, axes, model and threads: its peak in bytes; used by the measurement"
    )
    chosen = parser.parse_args()
    if chosen.one:
        torch.set_num_threads(int(chosen.one[3]))
        torch.manual_seed(0)
        print(peak(chosen.one[0], int(chosen.one[1]), chosen.one[2]))
    else:
        main(chosen.dataset_dir, chosen.axes)
