"""What a pretrained plain network is worth: converted and trained on, against training anew, against distilling it.

    python -m benchmarks.pretrained fill --dataset_dir DIR --work DIR
    python -m benchmarks.pretrained report

``fill`` trains what is not in ``benchmarks/results/pretrained.json`` yet, on BreastMNIST, one thread; ``report`` writes
``pretrained.md``. Every network but the plain one has the same architecture: the plain one, converted.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cells import spread
from benchmarks.tables import RESULTS, markdown, read_json
from monai_sre import conversion_report, convert_to_sre
from monai_sre.data import BatchAugment2d, BatchLoader, BatchPreprocess, load_dataset
from monai_sre.evaluation import rotation_sweep, sweep_transformations
from monai_sre.files import write_json
from monai_sre.layers.harmonic import HarmonicConv

SEEDS, FULL, SHORT = (0, 1, 2), 40, 4
#: Learning rates by the number of epochs: the bundles', and three of which validation chooses for a short training.
RATES = {FULL: (0.02,), SHORT: (0.01, 0.03, 0.1)}
KERNEL_SIZE = 5


@dataclass(frozen=True)
class Arm:
    """One way to a trained network.

    Attributes:
        what: how the table says it.
        epochs: of training.
        init: of the conversion; ``None`` leaves the network plain.
        conv: of the conversion.
        distilled: whether the targets are the plain network's outputs, averaged over rotations, not the labels.
        seeing: whether the energies start with the directions of the plain kernels.
    """

    what: str
    epochs: int
    init: str | None = "project"
    conv: str = "harmonic"
    distilled: bool = False
    seeing: bool = True


ARMS = {
    "plain": Arm("the plain network", FULL, None),
    "converted": Arm("converted, energies that see what the plain kernels saw", SHORT),
    "converted-unseeing": Arm("converted, energies of random directions", SHORT, seeing=False),
    "converted-radial": Arm("converted, radial kernels alone", SHORT, conv="radial"),
    "scratch-short": Arm("from scratch", SHORT, "reset"),
    "distilled-short": Arm("distilled", SHORT, "reset", distilled=True),
    "distilled-converted": Arm("converted, and distilled", SHORT, distilled=True),
    "scratch": Arm("from scratch", FULL, "reset"),
    "converted-long": Arm("converted, energies that see what the plain kernels saw", FULL),
    "distilled": Arm("distilled", FULL, "reset", distilled=True),
    "distilled-converted-long": Arm("converted, and distilled", FULL, distilled=True),
}


def plain_network() -> ResNet:
    """MONAI's ResNet of four blocks for small images, narrow."""
    return ResNet(
        "basic", [1, 1, 1, 1], [12, 24, 48, 96], 2, 1, conv1_t_size=3, conv1_t_stride=1, no_max_pool=True, num_classes=2
    )


class Data:
    """The splits, as batches."""

    def __init__(self, folder: str) -> None:
        self.splits = {
            split: load_dataset("breastmnist", folder, split=split, progress=False)
            for split in ("train", "val", "test")
        }
        self.task = self.splits["train"].info.task

    def training(self, seed: int) -> BatchLoader:
        augment = BatchAugment2d(size=None, seed=seed)
        return BatchLoader(self.splits["train"], 64, shuffle=True, drop_last=True, seed=seed, transform=augment)

    def score(self, network: nn.Module, split: str) -> dict[str, Any]:
        """Upright on the validation split; under rotations by multiples of 30 degrees and flips on the test split."""
        batches = [*BatchLoader(self.splits[split], 256, transform=BatchPreprocess(None))]
        if split == "val":
            return rotation_sweep(network, batches, sweep_transformations(2, step=360, flips=False), self.task).rows[0]
        return rotation_sweep(network, batches, sweep_transformations(2, step=30), self.task).summary()


def make(arm: Arm, plain: nn.Module, seed: int) -> nn.Module:
    """The network that an arm trains."""
    torch.manual_seed(seed)
    if arm.init is None:
        return plain_network()
    network = convert_to_sre(copy.deepcopy(plain), KERNEL_SIZE, init=arm.init, conv=arm.conv, verify=(1, 1, 28, 28))
    for module in network.modules():
        if isinstance(module, HarmonicConv) and not arm.seeing:
            weight: Any = module.radial.weight
            with torch.no_grad():
                kept = weight.unflatten(0, (module.groups, -1))[:, : -module.hidden_channels // module.groups].clone()
                module.radial.reset_parameters()  # type: ignore[operator]
                weight.unflatten(0, (module.groups, -1))[:, : kept.shape[1]].copy_(kept)
        if arm.init == "reset" and module is not network and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return network


def teacher_of(plain: nn.Module) -> Callable[[Tensor], Tensor]:
    """The plain network's probabilities, averaged over the rotations by 90 degrees."""
    plain.eval()

    @torch.no_grad()
    def teach(x: Tensor) -> Tensor:
        return torch.stack([plain(x.rot90(turns, (2, 3))).softmax(dim=1) for turns in range(4)]).mean(dim=0)

    return teach


def train(
    network: nn.Module, data: Data, epochs: int, rate: float, seed: int, teach: Callable[[Tensor], Tensor] | None
) -> dict[str, Any]:
    """Train, and leave the network of the epoch with the best validation AUC in it."""
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loader, best, kept, chosen = data.training(seed), -1.0, {}, 0
    for epoch in range(epochs):
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            target = batch["label"] if teach is None else teach(batch["image"])
            functional.cross_entropy(network(batch["image"]), target).backward()
            optimizer.step()
        scheduler.step()
        auc = data.score(network, "val")["AUC"]
        if auc > best:
            best, chosen, kept = auc, epoch + 1, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return {"val_auc": best, "epoch": chosen}


def fill(dataset_dir: str, work: Path) -> None:
    """Train and evaluate what is not there yet."""
    torch.set_num_threads(1)
    data, path = Data(dataset_dir), RESULTS / "pretrained.json"
    content: dict[str, Any] = read_json(path, {"cells": {}})
    work.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for name, arm in ARMS.items():
            for rate in RATES[arm.epochs]:
                key = f"{name} {rate} {seed}"
                if key in content["cells"]:
                    continue
                plain = plain_network()
                if arm.init is not None:
                    plain.load_state_dict(torch.load(work / f"plain {RATES[FULL][0]} {seed}.pt"))
                network, begun = make(arm, plain, seed), time.process_time()
                cell: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters())}
                if arm.init == "project":
                    entries = [e for e in conversion_report(network).entries if e.energy is not None]
                    for share in ("energy", "seen"):
                        values = [getattr(entry, share) or 0.0 for entry in entries]
                        cell[share] = sum(values) / len(values)
                cell |= train(network, data, arm.epochs, rate, seed, teacher_of(plain) if arm.distilled else None)
                cell |= {"seconds": round(time.process_time() - begun), **data.score(network, "test")}
                if arm.init is None:
                    torch.save(network.state_dict(), work / f"{key}.pt")
                content["cells"][key] = cell
                content["versions"] = {"torch": torch.__version__}
                write_json(path, content)
                print(key, cell, flush=True)


def mean_auc(cells: dict[str, Any], name: str, rate: float, seeds: Sequence[int] = SEEDS) -> float:
    """Validation AUC, mean over the seeds."""
    return sum(cells[f"{name} {rate} {seed}"]["val_auc"] for seed in seeds) / len(seeds)


def table(cells: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    columns = {
        "validation AUC": "val_auc",
        "ACC upright": "ACC upright",
        "ACC rotated": "ACC mean",
        "AUC upright": "AUC upright",
        "AUC rotated": "AUC mean",
        "consistency": "consistency",
    }
    rows = []
    for name, arm in ARMS.items():
        rates = [rate for rate in RATES[arm.epochs] if all(f"{name} {rate} {seed}" in cells for seed in SEEDS)]
        if not rates:
            continue
        rate = max(rates, key=lambda rate, name=name: mean_auc(cells, name, rate))  # type: ignore[misc]
        members = [cells[f"{name} {rate} {seed}"] for seed in SEEDS]
        kept = "" if "energy" not in members[0] else " + ".join(f"{members[0][key]:.2f}" for key in ("energy", "seen"))
        seconds = sum(member["seconds"] for member in members) / len(members)
        figures = [spread([member[column] for member in members]) for column in columns.values()]
        rows.append([arm.what, str(arm.epochs), f"{seconds:.0f} s", kept, *figures])
    text = (
        "# What a pretrained plain network is worth\n\n"
        "BreastMNIST, 28 pixels a side; a narrow ResNet of four blocks (`benchmarks/pretrained.py`), trained upright, then\n"
        f"converted (kernels of {KERNEL_SIZE}, with energies where not said otherwise). Mean ± standard deviation of\n"
        f"{len(SEEDS)} seeds; the epoch is selected by validation AUC; the other columns are of the test set. Rotated: mean\n"
        "over the rotations by multiples of 30 degrees, bilinear, filled with the background. Distilled: to the\n"
        "plain network's outputs for the same images, averaged over the four rotations by 90 degrees. Kept: mean share of\n"
        "the kernels' energy in the radial part, and in what the energies see. Time: processor time, one thread.\n\n"
    )
    return text + markdown(["network", "epochs", "time", "kept", *columns], rows)


def main() -> None:
    """Fill or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fill", "report"))
    parser.add_argument("--dataset_dir", help="folder of breastmnist.npz")
    parser.add_argument("--work", help="folder for the plain networks")
    chosen = parser.parse_args()
    if chosen.what == "fill":
        fill(chosen.dataset_dir, Path(chosen.work))
    (RESULTS / "pretrained.md").write_text(table(read_json(RESULTS / "pretrained.json")["cells"]))


if __name__ == "__main__":
    main()
