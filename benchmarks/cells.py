"""Trainings of the bundles that stop and go on, and their cells: JSON files that are written once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from monai.bundle import run

from benchmarks.timing import machine

#: Names of entries of a state dict that are no parameters: statistics, and what :class:`benchmarks.variants.Averaged` keeps.
_NO_PARAMETER = re.compile(r"running_mean$|running_var$|num_batches_tracked$|^average\.")


def train(configs: list[str], entries: dict[str, Any], work: Path) -> None:
    """Run a bundle's training in a folder, from where it stopped; not again where it is complete."""
    if (work / "learning_curves.png").is_file():
        return
    last = work / "models" / "last.pt"
    done = last.is_file() and torch.load(last, weights_only=True)["epoch"] > 0
    run(config_file=configs, **entries, resume=done, output_dir=str(work))


def bundle_entries(bundle: Path, dataset_dir: str) -> dict[str, Any]:
    """Entries that every run of a bundle from outside its folder needs."""
    return {
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "logging_file": str(bundle / "configs" / "logging.conf"),
        "bundle_root": str(bundle),
        "dataset_dir": dataset_dir,
        "progress": False,
    }


def summary(work: Path, metric: str) -> dict[str, Any]:
    """What a complete training says of itself: epochs, the one with the best ``metric``, its row, last loss, parameters."""
    history = (work / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(history[0].split(","), line.split(","), strict=True)) for line in history[1:]]
    best = max((row for row in rows if row[metric]), key=lambda row: float(row[metric]))
    weights, about = torch.load(work / "models" / "model.pt", weights_only=True), machine("wall")
    return {
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "final_train_loss": float(rows[-1]["train_loss"]),
        "validation": {
            name.removeprefix("val_"): float(value) for name, value in best.items() if name.startswith("val_")
        },
        "parameters": sum(value.numel() for name, value in weights.items() if not _NO_PARAMETER.search(name)),
        "machine": {key: about[key] for key in ("cpu", "capability", "threads", "torch")},
    }


def is_complete(cell: Path, validation_only: bool) -> bool:
    """Whether a cell holds all that is asked for; says so if it does."""
    found = cell.is_file() and (validation_only or "sweep" in json.loads(cell.read_text()))
    if found:
        print(f"{cell.name} exists")
    return found


def trained(work: Path, metric: str, dataset: str, model: str, seed: int, rate: float) -> dict[str, Any]:
    """What a cell says of its training."""
    return {"dataset": dataset, "model": model, "seed": seed, **summary(work, metric), "learning_rate": rate}


def sweeps(scores: Path) -> dict[str, Any]:
    """Both protocols' sweeps that an evaluation left in its folder."""
    return {name: json.loads((scores / f"sweep_{name}.json").read_text()) for name in ("clean", "paper")}


def store(cell: Path, content: dict[str, Any]) -> None:
    """Write a cell at once or not at all."""
    cell.parent.mkdir(parents=True, exist_ok=True)
    draft = cell.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(cell)
    print(f"{cell.name} written")
