"""Accuracy upright and rotated, cell by cell (data set x model x seed), through the bundles' own configs.

    python -m benchmarks.accuracy fill --dataset breastmnist --model sre --seed 0 --dataset_dir DIR --work DIR
    python -m benchmarks.accuracy shipped --dataset_dir DIR --work DIR
    python -m benchmarks.accuracy report

``fill`` trains where the work folder holds no complete training (it resumes an interrupted one), evaluates the network of
the best validation AUC on the test set under the rotation sweep, and stores the cell as JSON at once; a cell that exists is
skipped. Each learning rate and number of epochs has cells of its own, and ``--validation_only`` leaves the test set out
until a rate is chosen: the same command without it adds the sweep. ``shipped`` sweeps the bundles' own weights. ``report``
turns all cells into Markdown tables, one a data set and number of epochs, and a picture a data set; a model enters them
with the learning rate of the best validation AUC, the mean of its seeds. Variants of the bundles' network are evaluated on
the validation set instead, and have a table of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, run

from benchmarks.accuracy_models import MODELS, VARIANTS, bundle_of
from benchmarks.accuracy_tables import SHIPPED, write
from benchmarks.cells import bundle_entries, is_complete, store, sweeps, train, trained
from benchmarks.improvements import write_improvements
from monai_sre.data import dataset_info

RESULTS = Path(__file__).with_name("results")
CELLS = {"test": RESULTS / "accuracy", "val": RESULTS / "improvements"}
STEP = 30
#: Epochs that two cores have time for; elsewhere ``--epochs 100``, as published.
EPOCHS = {"breastmnist": 40, "pneumoniamnist": 5, "adrenalmnist3d": 15, "breastmnist_64": 15}


def fill(arguments: argparse.Namespace) -> None:
    """Train and evaluate one cell, unless its JSON exists."""
    split = "val" if arguments.model in VARIANTS else "test"
    models = MODELS | VARIANTS
    averaged = models[arguments.model].averaged
    source = averaged or arguments.model
    model = models[source]
    dims = dataset_info(arguments.dataset, arguments.dataset_dir).spatial_dims
    bundle, configs = bundle_of(dims), model.configs(dims)
    dataset = arguments.dataset + ("" if arguments.size == 28 else f"_{arguments.size}")
    rate = arguments.learning_rate or ConfigParser.load_config_file(configs[0])["learning_rate"]
    epochs = arguments.epochs or EPOCHS.get(dataset, 100)
    cell = CELLS[split] / f"{dataset}_{arguments.model}_lr{rate:g}_{epochs}_{arguments.seed}.json"
    if is_complete(cell, arguments.validation_only):
        return
    work = Path(arguments.work) / f"{dataset}_{source}_lr{rate:g}_{epochs}_{arguments.seed}"
    entries = {
        **bundle_entries(bundle, arguments.dataset_dir),
        "dataset_name": arguments.dataset,
        "size": arguments.size,
        **model.entries(dims),
        "learning_rate": rate,
    }
    train(configs, {**entries, "max_epochs": epochs, "seed": arguments.seed}, work)
    content = trained(work, "val_auc", dataset, arguments.model, arguments.seed, rate)
    if not arguments.validation_only:
        scores = work / f"evaluation_{arguments.model}"
        overlay: dict[str, Any] = {"ckpt_dir": str(work / "models"), "output_dir": str(scores), "sweep": True}
        overlay |= {
            "validate#split": split,
            "validate#handlers#3#step": STEP,
            "validate#handlers#3#network": "@network",
        }
        if averaged:
            average = {"network": "$@network_def.to(@device)", "spatial_dims": "$@info.spatial_dims"}
            overlay |= {"network": {"_target_": "benchmarks.peer_networks.RotationAverage", **average}}
        run(config_file=[*configs, str(bundle / "configs/evaluate.json")], **entries, **overlay)
        content["sweep"] = sweeps(scores)
    store(cell, content)


def shipped(arguments: argparse.Namespace) -> None:
    """Sweep the bundles' weights with the steps that their ``evaluate.json`` has."""
    found = {}
    for dims, dataset in ((2, "breastmnist"), (3, "adrenalmnist3d")):
        bundle, scores = bundle_of(dims), Path(arguments.work) / f"shipped_{dataset}"
        configs = [str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")]
        run(config_file=configs, **bundle_entries(bundle, arguments.dataset_dir), output_dir=str(scores), sweep=True)
        found[dataset] = sweeps(scores)
    store(SHIPPED, found)


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
    filling.add_argument("--epochs", type=int, help=f"100 unless told; {EPOCHS}")
    filling.add_argument("--learning_rate", type=float, help="another than the recipe's")
    filling.add_argument("--validation_only", action="store_true", help="no sweep: to choose a learning rate")
    filling.set_defaults(call=fill)
    sweeping = commands.add_parser("shipped", help="sweep the bundles' weights")
    sweeping.add_argument("--dataset_dir", required=True)
    sweeping.add_argument("--work", required=True)
    sweeping.set_defaults(call=shipped)
    reporting = commands.add_parser("report", help="tables and pictures from all cells")
    reporting.set_defaults(call=report)
    chosen = parser.parse_args()
    chosen.call(chosen)
