"""What a rotation sweep costs beside as many plain evaluations.

    python -m benchmarks.studies.sweep_cost --dataset_dir DIR

The networks of the 2-D bundle (SRE with energies; plain) on 64 test images of BreastMNIST: the full sweep of 36 rotations
and 2 flips, in both protocols, against 38 evaluations of the upright images. Interleaved rounds, processor time of one
thread. Writes ``results/sweep_cost.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import MODELS
from benchmarks.bundles import network_of, source_of
from benchmarks.timing import Effort, interleaved, machine
from monai_sre.data import BatchLoader, BatchPreprocess, dataset_info, load_dataset
from monai_sre.evaluation import rotation_sweep, sweep_transformations
from monai_sre.evaluation.transformations import PROTOCOLS
from monai_sre.files import write_json

RESULTS = Path(__file__).with_name("results")
DATASET = "breastmnist"


def _repeated(call: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        call()


def main(dataset_dir: str) -> None:
    torch.set_num_threads(1)
    task = dataset_info(DATASET, dataset_dir).task
    loader = BatchLoader(load_dataset(DATASET, dataset_dir, "test"), 64, transform=BatchPreprocess(32))
    batch = next(iter(loader))
    found: dict[str, Any] = {"machine": machine("cpu"), "images": len(batch["image"]), "networks": {}}
    for name, model in {"SRE": "harmonic", "plain": "plain"}.items():
        sweep = partial(
            rotation_sweep, network_of(source_of(DATASET, dataset_dir), MODELS[model]).eval(), [batch], task=task
        )
        sweeps = {protocol: sweep_transformations(2, protocol) for protocol in PROTOCOLS}
        upright = sweeps["bilinear_background"]
        count = len(upright)
        steps: dict[str, Callable[[], Any]] = {
            "evaluations": partial(_repeated, partial(sweep, {"0": upright["0"]}), count)
        }
        steps |= {protocol: partial(sweep, sweeps[protocol]) for protocol in sweeps}
        times = interleaved(steps, Effort(seconds=0, clock="cpu", rounds=5))
        ratios = {protocol: times[protocol]["ms"] / times["evaluations"]["ms"] for protocol in sweeps}
        found["networks"][name] = {"transformations": count, "times": times, "ratio": ratios}
        print(name, {protocol: round(value, 3) for protocol, value in ratios.items()})
    write_json(RESULTS / "sweep_cost.json", found)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset_dir", required=True)
    main(arguments.parse_args().dataset_dir)
