"""What the models of :mod:`benchmarks.accuracy` cost to train: time and peak memory of a step.

    python -m benchmarks.accuracy_costs --dataset_dir DIR [--images breastmnist_64]

One step of SGD, and one evaluation, on a batch as large as the bundle's, of images of BreastMNIST's and AdrenalMNIST3D's
shape, 28 (in 2-D resized to 32) or 64 pixels a side: processor time of one thread, interleaved rounds; and the growth of the
resident memory in a step in a fresh process, median of three (:mod:`benchmarks.memory`). ``breastmnist_33`` has escnn's
networks, which evaluate with kernels expanded beforehand, and two of the others, at escnn's size. Writes
``results/accuracy_costs.json``; ``python -m benchmarks.accuracy report`` puts the ratios to the plain network into its table.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy import MODELS
from benchmarks.bundles import network_of, source_of
from benchmarks.memory import in_a_fresh_process, peak_growth
from benchmarks.networks import training_step
from benchmarks.tables import read_json
from benchmarks.timing import Effort, interleaved, machine
from monai_sre.files import write_json

OUT = Path(__file__).with_name("results") / "accuracy_costs.json"
#: Shape of a batch of each kind of images.
SHAPES = {
    "breastmnist": (64, 1, 32, 32),
    "breastmnist_64": (64, 1, 64, 64),
    "breastmnist_33": (64, 1, 33, 33),
    "adrenalmnist3d": (16, 1, 28, 28, 28),
    "adrenalmnist3d_64": (16, 1, 64, 64, 64),
}
#: Networks that differ in cost; those too wide to train on a CPU on small images alone, others on volumes alone.
_BASE = [name for name, model in MODELS.items() if not model.averaged and not model.turned]
_WIDE, _VOLUMES = ("plain-wide", "sre-wide", "official", "gmr"), ("strided", "full", "rounder")
_ESCNN = [name for name in _BASE if name.startswith("escnn")]
_LEFT_OUT = {images: (_WIDE if "_64" in images or "3d" in images else ()) for images in SHAPES}
NAMES = {
    images: [
        name for name in _BASE if name not in (*_LEFT_OUT[images], *_ESCNN) and ("3d" in images or name not in _VOLUMES)
    ]
    for images in SHAPES
} | {"breastmnist_33": ["plain", "harmonic", *_ESCNN]}
CLASSES = 2


def main(dataset_dir: str, kinds: list[str]) -> None:
    """Measure and write; what is not measured now keeps its figures."""
    torch.set_num_threads(1)
    found: dict[str, Any] = read_json(OUT, {})
    for images in kinds:
        shape, steps, evaluations = SHAPES[images], {}, {}
        for name in NAMES[images]:
            try:
                steps[name] = training_step(network(images, name, dataset_dir), torch.randn(shape), CLASSES)
                evaluations[name] = partial(_evaluate, network(images, name, dataset_dir).eval(), torch.randn(shape))
            except ImportError as error:
                print(f"{name} is left out: {error}")
        effort = Effort(seconds=0, clock="cpu", rounds=7)
        times = interleaved(steps, effort)
        peaks = {
            name: [in_a_fresh_process("benchmarks.accuracy_costs", dataset_dir, images, name) or 0 for _ in range(3)]
            for name in steps
        }
        found[images] = {
            "machine": machine("cpu"),
            "shape": list(shape),
            "times": times,
            "evaluations": interleaved(evaluations, effort),
            "peaks": {name: {"mib": statistics.median(values) / 2**20} for name, values in peaks.items()},
        }
        write_json(OUT, found)
        print(images, {name: (round(times[name]["ms"]), statistics.median(peaks[name]) >> 20) for name in steps})


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor) -> None:
    model(x)


def network(images: str, name: str, dataset_dir: str) -> nn.Module:
    """The untrained network of a model for a kind of images."""
    return network_of(source_of(images.split("_")[0], dataset_dir), MODELS[name])


def peak(dataset_dir: str, images: str, name: str) -> int:
    """Growth of the resident memory in one step, in bytes."""
    shape, model = SHAPES[images], network(images, name, dataset_dir)

    def step(x: Tensor) -> None:
        training_step(model, x, CLASSES)()

    def tiny() -> None:
        step(torch.randn(2, *shape[1:])[..., :16, :16])
        model.zero_grad()

    batch = torch.randn(shape)
    return peak_growth(tiny, lambda: step(batch))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir")
    parser.add_argument("--images", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument(
        "one", nargs="*", help="folder, images, model and threads: its peak in bytes; used by the measurement"
    )
    chosen = parser.parse_args()
    if chosen.one:
        torch.set_num_threads(int(chosen.one[3]))
        torch.manual_seed(0)
        print(peak(*chosen.one[:3]))
    else:
        main(chosen.dataset_dir, chosen.images)
