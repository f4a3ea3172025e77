"""Accuracy upright and rotated, cell by cell (data set x model x seed), through the bundles' own configs.

    python benchmarks/accuracy.py fill --dataset breastmnist --model sre --seed 0 --dataset_dir DIR --work DIR
    python benchmarks/accuracy.py report

``fill`` trains where the work folder holds no complete training (it resumes an interrupted one), evaluates the network of
the best validation AUC on the test set under the rotation sweep, and stores the cell as JSON at once; a cell that exists is
skipped. ``report`` turns all cells into a Markdown table and one picture a data set.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import run

from monai_sre.data import dataset_info
from monai_sre.evaluation import SweepResult, draw_sweep

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
    """

    title: str
    overlays: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    by_dims: dict[int, dict[str, Any]] = field(default_factory=dict)


_TURNED = {
    2: {"train#preprocessing#rotation": 180, "train#preprocessing#fill": "background"},
    3: {"train#preprocessing#rotation": True},
}
_RADIAL = {"network_def#conv": "radial"}
_BANDS = {"network_def#profile": "band", "network_def#orthonormal": False}
_OFFICIAL_SIZE = {"network_def#width": 64, "network_def#kernel_size": [9, 9, 5, 5]}
MODELS = {
    "plain": Model("plain, 3 x 3", ("plain.json",)),
    "plain-turned": Model("plain, random rotations in training", ("plain.json",), {}, _TURNED),
    "bands": Model("SRE, bands (the published kernel)", (), {**_RADIAL, **_BANDS}),
    "sre": Model("SRE, Gaussian rings", (), _RADIAL),
    "harmonic": Model("SRE, Gaussian rings and harmonic energies (the bundles)"),
    "plain-wide": Model("plain, width 64", ("plain.json",), {"network_def#block_inplanes": [64, 128, 256, 512]}),
    "sre-wide": Model("SRE, Gaussian rings, width 64, kernels 9, 9, 5, 5", (), {**_RADIAL, **_OFFICIAL_SIZE}),
}


def fill(arguments: argparse.Namespace) -> None:
    """Train and evaluate one cell, unless its JSON exists."""
    cell = CELLS / f"{arguments.dataset}_{arguments.model}_{arguments.seed}.json"
    if cell.is_file():
        print(f"{cell.name} exists")
        return
    info = dataset_info(arguments.dataset, arguments.dataset_dir)
    bundle = ROOT / "bundles" / f"medmnist_{info.spatial_dims}d_classification"
    model = MODELS[arguments.model]
    configs = [str(bundle / "configs" / name) for name in ("train.json", *model.overlays)]
    work = Path(arguments.work) / cell.stem
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
    epochs = {} if arguments.epochs is None else {"max_epochs": arguments.epochs}
    last = work / "models/last.pt"
    done = torch.load(last, weights_only=True)["epoch"] if last.is_file() else 0
    if not (work / "learning_curves.png").is_file():
        resume = {"resume": True} if done else {}
        run(config_file=configs, **common, **epochs, **resume, seed=arguments.seed, output_dir=str(work))
    scores = work / "evaluation"
    overlay = {"ckpt_dir": str(work / "models"), "output_dir": str(scores), "sweep": True}
    handler = {"validate#handlers#3#step": STEP}
    run(config_file=[*configs, str(bundle / "configs/evaluate.json")], **common, **overlay, **handler)
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
        "stored_values": sum(value.numel() for value in weights.values()),
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "sweep": {name: json.loads((scores / f"sweep_{name}.json").read_text()) for name in ("clean", "paper")},
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    draft = cell.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(cell)
    print(f"{cell.name} written")


def report(_: argparse.Namespace) -> None:
    """Write ``accuracy.md`` and a picture a data set from all cells."""
    cells = [json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))]
    if not cells:
        raise SystemExit("no cell is filled yet: see python benchmarks/accuracy.py --help")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["dataset"], cell["model"]), []).append(cell)
    lines = [
        "Mean ± standard deviation over seeds; the epoch is selected by validation AUC; ACC is that of the test set. No",
        "rotation in training but where the row says so (uniform, bilinear; in 2-D filled with each image's background).",
        f"Rotated: mean over the rotations by multiples of {STEP} degrees (in 3-D about each axis), the identity once.",
        "`clean`: bilinear, filled with each image's background. `paper`: nearest, filled with 0 after normalisation.",
        "",
        "| data | network | values stored | epochs | seeds | final training loss | validation AUC | AUC upright |"
        " ACC upright | ACC rotated, `clean` | ACC rotated, `paper` | consistency, `clean` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = list(MODELS)
    for (dataset, model), members in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        columns = [
            [member["final_train_loss"] for member in members],
            [member["validation"]["AUC"] for member in members],
            [member["sweep"]["clean"]["AUC upright"] for member in members],
            [member["sweep"]["clean"]["ACC upright"] for member in members],
            [member["sweep"]["clean"]["ACC mean"] for member in members],
            [member["sweep"]["paper"]["ACC mean"] for member in members],
            [member["sweep"]["clean"]["consistency"] for member in members],
        ]
        epochs = "/".join(sorted({str(member["epochs"]) for member in members}))
        size = f"{members[0]['stored_values'] / 1e6:.2f} M"
        head = [dataset, MODELS[model].title, size, epochs, str(len(members))]
        lines.append("| " + " | ".join(head + [_spread(column) for column in columns]) + " |")
    (RESULTS / "accuracy.md").write_text("\n".join(lines) + "\n")
    for dataset in sorted({name for name, _ in groups}):
        curves = {
            MODELS[model].title: _mean_curve(groups[dataset, model]) for model in MODELS if (dataset, model) in groups
        }
        seeds = max(len(groups[dataset, model]) for model in MODELS if (dataset, model) in groups)
        title = f"{dataset}, test set, mean of {seeds} seeds"
        draw_sweep(curves, RESULTS / f"rotation_{dataset}.png", title=title)
    print("\n".join(lines))


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def _mean_curve(members: list[dict[str, Any]]) -> SweepResult:
    rows = []
    for group in zip(*(member["sweep"]["clean"]["rows"] for member in members), strict=True):
        mean = {metric: statistics.mean(row[metric] for row in group) for metric in ("ACC", "AUC")}
        rows.append({"transformation": group[0]["transformation"], **mean})
    return SweepResult(rows, statistics.mean(member["sweep"]["clean"]["consistency"] for member in members))


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
    filling.set_defaults(call=fill)
    commands.add_parser("report", help="table and pictures from all cells").set_defaults(call=report)
    chosen = parser.parse_args()
    chosen.call(chosen)
