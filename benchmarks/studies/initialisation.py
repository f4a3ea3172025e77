"""Scale of activations through ten layers at initialisation, and the share of data work in a training step.

    python -m benchmarks.studies.initialisation DATASET_DIR

Standard deviation of the activations after each of ten SRE layers with ReLU, relative to the first layer's, on white noise
and on BreastMNIST, mean over five seeds; and the CPU time of loading and augmenting a batch against that of a training
step of SRE-ResNet18, median of seven, one thread. Writes ``benchmarks/studies/results/initialisation.json``.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from monai_sre import SREConv2d, SREConv3d, SREResNet
from monai_sre.data import BatchAugment2d, BatchLoader, BatchPreprocess, load_dataset
from monai_sre.files import write_json

LAYERS, WIDTH, SEEDS = 10, 64, 5


def spread(layer: type[torch.nn.Module], size: int, x: torch.Tensor) -> list[float]:
    """Standard deviation after each layer, relative to the first's, mean over seeds; borders are periodic."""
    runs = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        h, values = x, []
        for _ in range(LAYERS):
            conv = layer(h.shape[1], WIDTH, size, padding="same", padding_mode="circular")
            h = conv(h)
            values.append(float(h.std()))
            h = h.relu()
        runs.append([value / values[0] for value in values])
    return [round(statistics.fmean(column), 3) for column in zip(*runs, strict=True)]


def data_share(dataset_dir: str) -> dict[str, float]:
    """CPU seconds of making a batch and of a training step with it."""
    torch.set_num_threads(1)
    data = load_dataset("breastmnist", dataset_dir, progress=False)
    loader = BatchLoader(data, batch_size=64, shuffle=True, drop_last=True, transform=BatchAugment2d(seed=0))
    network = SREResNet(2, 1, 2, orthonormal=True, profile="gaussian")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    making, stepping = [], []
    batches = iter(loader)
    for _ in range(7):
        started = time.process_time()
        batch = next(batches)
        made = time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
        making.append(made - started)
        stepping.append(time.process_time() - made)
    return {"batch_size": 64, "data_over_step": round(statistics.median(making) / statistics.median(stepping), 4)}


def main(dataset_dir: str) -> None:
    images = load_dataset("breastmnist", dataset_dir, progress=False).images[:8]
    real = BatchPreprocess(32)(images)
    result: dict[str, object] = {"machine": platform.machine(), "torch": torch.__version__}
    with torch.no_grad():
        for size in (3, 5, 9):
            result[f"2-D, k={size}, white noise"] = spread(SREConv2d, size, torch.randn(4, WIDTH, 32, 32))
            result[f"2-D, k={size}, BreastMNIST"] = spread(SREConv2d, size, real)
            result[f"3-D, k={size}, white noise"] = spread(SREConv3d, size, torch.randn(1, WIDTH, 12, 12, 12))
    result["training step"] = data_share(dataset_dir)
    path = Path(__file__).parent / "results" / "initialisation.json"
    write_json(path, result)
    print(path.read_text())


if __name__ == "__main__":
    main(sys.argv[1])
