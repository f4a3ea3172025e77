"""Accuracy upright and rotated, cell by cell (data set x model x seed), through the bundles' own configs.

    python -m benchmarks.accuracy fill --dataset breastmnist --model sre --seed 0 --dataset_dir DIR --work DIR
    python -m benchmarks.accuracy report

``fill`` trains where the work folder holds no complete training (it resumes an interrupted one), evaluates the network of
the best validation AUC on the test set under the rotation sweep, and stores the cell as JSON at once; a cell that exists is
skipped. With ``--learning_rate`` it is a cell of its own. ``report`` turns all cells into Markdown tables and one picture a
data set; a model enters them with the learning rate whose seed 0 has the best validation AUC.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, run

from benchmarks.accuracy_tables import write
from monai_sre.data import dataset_info

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CELLS = RESULTS / "accuracy"
STEP = 30


@dataclass(frozen=True)
class Model:
    """A row of the table: what differs from the bundle's ``train.json``.

    Args:
        title: how the table and the pictures call it.
        overlays: further config files of the bundle.
        settings: entries of the config.
        by_dims: more of them, for 2-D and for 3-D data.
        averaged: the model that is averaged over rotations at test time, in place of a training of its own.
    """

    title: str
    overlays: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    by_dims: dict[int, dict[str, Any]] = field(default_factory=dict)
    averaged: str = ""


_TURNED = {
    2: {"train#preprocessing#rotation": 180, "train#preprocessing#fill": "background"},
    3: {"train#preprocessing#rotation": True},
}
_RADIAL = {"network_def#conv": "radial"}
_BANDS = {"network_def#profile": "band", "network_def#orthonormal": False}
_OFFICIAL_SIZE = {"network_def#width": 64, "network_def#kernel_size": [9, 9, 5, 5]}
_PEER = {
    "_target_": "benchmarks.peer_networks.PeerResNet18",
    "spatial_dims": "$@info.spatial_dims",
    "in_channels": "$@info.num_channels",
    "num_classes": "$@info.num_classes",
}
_AVERAGED = {"network": "$@network_def.to(@device)", "spatial_dims": "$@info.spatial_dims"}
MODELS = {
    "plain": Model("plain, 3 x 3", ("plain.json",)),
    "plain-turned": Model("plain, random rotations in training", ("plain.json",), {}, _TURNED),
    "plain-averaged": Model("plain, averaged over rotations at test time", averaged="plain"),
    "bands": Model("SRE, bands (the published kernel)", (), {**_RADIAL, **_BANDS}),
    "sre": Model("SRE, Gaussian rings", (), _RADIAL),
    "harmonic": Model("SRE, Gaussian rings and harmonic energies (the bundles)"),
    "harmonic-1": Model("the same, energies of order 1 only", (), {"network_def#conv": ["harmonic", {"orders": [1]}]}),
    "plain-wide": Model("plain, width 64", ("plain.json",), {"network_def#block_inplanes": [64, 128, 256, 512]}),
    "sre-wide": Model("SRE, Gaussian rings, width 64, kernels 9, 9, 5, 5", (), {**_RADIAL, **_OFFICIAL_SIZE}),
    "official": Model("SRE-Conv's own network, width 64", (), {"network_def": {**_PEER, "package": "SRE_Conv"}}),
    "gmr": Model("GMR-Conv's own network, width 64", (), {"network_def": {**_PEER, "package": "GMR_Conv"}}),
}
#: Entries of a state dict that are no parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def fill(arguments: argparse.Namespace) -> None:
    """Train and evaluate one cell, unless its JSON exists."""
    rate = arguments.learning_rate
    trial = "" if rate is None else f"_lr{rate:g}"
    cell = CELLS / f"{arguments.dataset}_{arguments.model}{trial}_{arguments.seed}.json"
    averaged = MODELS[arguments.model].averaged
    trained = averaged or arguments.model
    if cell.is_file():
        print(f"{cell.name} exists")
        return
    info = dataset_info(arguments.dataset, arguments.dataset_dir)
    bundle = ROOT / "bundles" / f"medmnist_{info.spatial_dims}d_classification"
    model = MODELS[trained]
    configs = [str(bundle / "configs" / name) for name in ("train.json", *model.overlays)]
    work = Path(arguments.work) / f"{arguments.dataset}_{trained}{trial}_{arguments.seed}"
    common = {
        "meta_file": str(bundle / "configs/metadata.json"),
        "logging_file": str(bundle / "configs/logging.conf"),
        "bundle_root": str(bundle),
        "dataset_name": arguments.dataset,
        "dataset_dir": arguments.dataset_dir,
        "progress": False,
        **model.settings,
        **model.by_dims.get(info.spatial_dims, {}),
    }
    common |= {} if rate is None else {"learning_rate": rate}
    epochs = {} if arguments.epochs is None else {"max_epochs": arguments.epochs}
    last = work / "models/last.pt"
    done = torch.load(last, weights_only=True)["epoch"] if last.is_file() else 0
    if not (work / "learning_curves.png").is_file():
        resume = {"resume": True} if done else {}
        run(config_file=configs, **common, **epochs, **resume, seed=arguments.seed, output_dir=str(work))
    scores = work / f"evaluation_{arguments.model}"
    overlay = {"ckpt_dir": str(work / "models"), "output_dir": str(scores), "sweep": True}
    overlay |= {"validate#handlers#3#step": STEP, "validate#handlers#3#network": "@network"}
    if averaged:
        overlay |= {"network": {"_target_": "benchmarks.peer_networks.RotationAverage", **_AVERAGED}}
    run(config_file=[*configs, str(bundle / "configs/evaluate.json")], **common, **overlay)
    history = (work / "metrics.csv").read_text().splitlines()
    columns = history[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in history[1:]]
    best = max(rows, key=lambda row: float(row["val_auc"]))
    weights = torch.load(work / "models/model.pt", weights_only=True)
    content: dict[str, Any] = {
        "dataset": arguments.dataset,
        "model": arguments.model,
        "seed": arguments.seed,
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "final_train_loss": float(rows[-1]["train_loss"]),
        "validation": {"ACC": float(best["val_acc"]), "AUC": float(best["val_auc"])},
        "learning_rate": rate or ConfigParser.load_config_file(configs[0])["learning_rate"],
        "parameters": sum(value.numel() for name, value in weights.items() if not name.endswith(_STATISTICS)),
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "sweep": {name: json.loads((scores / f"sweep_{name}.json").read_text()) for name in ("clean", "paper")},
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    draft = cell.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(cell)
    print(f"{cell.name} written")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    filling = commands.add_parser("fill", help="train and evaluate one cell")
    filling.add_argument("--dataset", required=True)
    filling.add_argument("--model", required=True, choices=MODELS)
    filling.add_argument("--seed", type=int, required=True)
    filling.add_argument("--dataset_dir", required=True)
    filling.add_argument("--work", required=True, help="folder of trainings, for example /tmp/accuracy")
    filling.add_argument("--epochs", type=int)
    filling.add_argument("--learning_rate", type=float, help="another than the recipe's")
    filling.set_defaults(call=fill)
    reporting = commands.add_parser("report", help="tables and pictures from all cells")
    reporting.set_defaults(call=lambda _: write({name: model.title for name, model in MODELS.items()}, CELLS, STEP))
    chosen = parser.parse_args()
    chosen.call(chosen)
