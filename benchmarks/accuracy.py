"""Accuracy upright and rotated, cell by cell (data set x model x seed), through the bundles' own configs.

    python -m benchmarks.accuracy fill --dataset breastmnist --model sre --seed 0 --dataset_dir DIR --work DIR
    python -m benchmarks.accuracy report

``fill`` trains where the work folder holds no complete training (it resumes an interrupted one), evaluates the network of
the best validation AUC on the test set under the rotation sweep, and stores the cell as JSON at once; a cell that exists is
skipped. With ``--learning_rate`` it is a cell of its own. ``report`` turns all cells into Markdown tables and one picture a
data set; a model enters them with the learning rate whose seed 0 has the best validation AUC. Variants of the bundles'
network are evaluated on the validation set instead, and have a table of their own.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, run

from benchmarks.accuracy_models import MODELS, VARIANTS, bundle_of
from benchmarks.accuracy_tables import write
from benchmarks.improvements import write_improvements
from monai_sre.data import dataset_info

RESULTS = Path(__file__).with_name("results")
CELLS = {"test": RESULTS / "accuracy", "val": RESULTS / "improvements"}
STEP = 30
#: Names of entries of a state dict that are no parameters: statistics, and what :class:`benchmarks.variants.Averaged` keeps.
_NO_PARAMETER = re.compile(r"running_mean$|running_var$|num_batches_tracked$|^average\.")


def fill(arguments: argparse.Namespace) -> None:
    """Train and evaluate one cell, unless its JSON exists."""
    rate, split = arguments.learning_rate, "val" if arguments.model in VARIANTS else "test"
    trial = "" if rate is None else f"_lr{rate:g}"
    dataset = arguments.dataset + ("" if arguments.size == 28 else f"_{arguments.size}")
    cell = CELLS[split] / f"{dataset}_{arguments.model}{trial}_{arguments.seed}.json"
    if cell.is_file():
        print(f"{cell.name} exists")
        return
    models = MODELS | VARIANTS
    averaged = models[arguments.model].averaged
    trained = averaged or arguments.model
    model = models[trained]
    dims = dataset_info(arguments.dataset, arguments.dataset_dir).spatial_dims
    bundle, configs = bundle_of(dims), model.configs(dims)
    work = Path(arguments.work) / f"{dataset}_{trained}{trial}_{arguments.seed}"
    common = {
        "meta_file": str(bundle / "configs/metadata.json"),
        "logging_file": str(bundle / "configs/logging.conf"),
        "bundle_root": str(bundle),
        "dataset_name": arguments.dataset,
        "size": arguments.size,
        "dataset_dir": arguments.dataset_dir,
        "progress": False,
        **model.entries(dims),
    }
    common |= {} if rate is None else {"learning_rate": rate}
    epochs = {} if arguments.epochs is None else {"max_epochs": arguments.epochs}
    last = work / "models/last.pt"
    done = torch.load(last, weights_only=True)["epoch"] if last.is_file() else 0
    if not (work / "learning_curves.png").is_file():
        resume = {"resume": True} if done else {}
        run(config_file=configs, **common, **epochs, **resume, seed=arguments.seed, output_dir=str(work))
    scores = work / f"evaluation_{arguments.model}"
    overlay: dict[str, Any] = {"ckpt_dir": str(work / "models"), "output_dir": str(scores), "sweep": True}
    overlay |= {"validate#split": split, "validate#handlers#3#step": STEP, "validate#handlers#3#network": "@network"}
    if averaged:
        average = {"network": "$@network_def.to(@device)", "spatial_dims": "$@info.spatial_dims"}
        overlay |= {"network": {"_target_": "benchmarks.peer_networks.RotationAverage", **average}}
    run(config_file=[*configs, str(bundle / "configs/evaluate.json")], **common, **overlay)
    history = (work / "metrics.csv").read_text().splitlines()
    columns = history[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in history[1:]]
    best = max(rows, key=lambda row: float(row["val_auc"]))
    weights = torch.load(work / "models/model.pt", weights_only=True)
    content: dict[str, Any] = {
        "dataset": dataset,
        "model": arguments.model,
        "seed": arguments.seed,
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "final_train_loss": float(rows[-1]["train_loss"]),
        "validation": {"ACC": float(best["val_acc"]), "AUC": float(best["val_auc"])},
        "learning_rate": rate or ConfigParser.load_config_file(configs[0])["learning_rate"],
        "parameters": sum(value.numel() for name, value in weights.items() if not _NO_PARAMETER.search(name)),
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "sweep": {name: json.loads((scores / f"sweep_{name}.json").read_text()) for name in ("clean", "paper")},
    }
    cell.parent.mkdir(parents=True, exist_ok=True)
    draft = cell.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(cell)
    print(f"{cell.name} written")


def report(_: argparse.Namespace) -> None:
    """Write the tables and pictures."""
    write(MODELS, CELLS["test"], STEP)
    write_improvements(VARIANTS, CELLS["val"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    filling = commands.add_parser("fill", help="train and evaluate one cell")
    filling.add_argument("--dataset", required=True)
    filling.add_argument("--size", type=int, default=28, help="of MedMNIST's files: 28 (resized to 32) or 64")
    filling.add_argument("--model", required=True, choices=MODELS | VARIANTS)
    filling.add_argument("--seed", type=int, required=True)
    filling.add_argument("--dataset_dir", required=True)
    filling.add_argument("--work", required=True, help="folder of trainings, for example /tmp/accuracy")
    filling.add_argument("--epochs", type=int)
    filling.add_argument("--learning_rate", type=float, help="another than the recipe's")
    filling.set_defaults(call=fill)
    reporting = commands.add_parser("report", help="tables and pictures from all cells")
    reporting.set_defaults(call=report)
    chosen = parser.parse_args()
    chosen.call(chosen)
