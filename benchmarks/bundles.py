"""All that the benchmarks know of the bundles' configs: building a network, training, evaluating, reading what they leave."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser, run
from torch import Tensor, nn

from benchmarks.tables import read_json
from benchmarks.timing import machine
from monai_sre.data import dataset_info
from monai_sre.evaluation.transformations import PROTOCOLS

BUNDLES = Path(__file__).parents[1] / "bundles"
VESSELS, HIPPOCAMPUS = "CHASE_DB1", "hippocampus"
#: The bundles of data sets that are pairs of images and maps, and their spatial axes.
_PAIRS = {VESSELS: ("retinal_vessel_segmentation", 2), HIPPOCAMPUS: ("hippocampus_segmentation", 3)}
#: Entries of a bundle's config that rotate images at random in training.
_TURNED: dict[str, dict[str, Any]] = {
    "medmnist_2d_classification": {"train#preprocessing#rotation": 180, "train#preprocessing#fill": "background"},
    "medmnist_3d_classification": {"train#preprocessing#rotation": True},
    "retinal_vessel_segmentation": {"rotation": True},
    "hippocampus_segmentation": {"rotation": True, "patch_size": 44},
}
#: Arguments of a bundle's network that one of another kind takes over.
_SHARED = ("spatial_dims", "in_channels", "num_classes", "out_channels", "_mode_")
#: Entries of a bundle's network without energies, and with the published kernel.
RADIAL = {"network_def#conv": "radial", "network_def#profile": "gaussian", "network_def#orthonormal": True}
BANDS = {**RADIAL, "network_def#profile": "band", "network_def#orthonormal": False}
#: A plain network whose maps have the number and the size of those of the retinal vessels' network, at each level.
SAME_MAPS: dict[str, Any] = {
    "_target_": "monai.networks.nets.DynUNet",
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [16, 32, 64],
    "norm_name": "batch",
    "act_name": ["relu", {"inplace": True}],
}
#: Names of entries of a state dict that are no parameters: statistics, and what a moving average keeps.
_NO_PARAMETER = re.compile(r"running_mean$|running_var$|num_batches_tracked$|^average\.")


@dataclass(frozen=True)
class Model:
    """A network and its training: what differs from a bundle's ``train.json``.

    Args:
        title: how the tables call it.
        overlays: further config files of the bundle.
        settings: entries of the config.
        settings_3d: further ones for volumes.
        turned: whether images are rotated at random in training.
        other: class and arguments of a network in place of the bundle's; axes, channels and classes are the same.
        wrapper: name of a module around the network: it takes ``wraps``, the network's class, and its arguments.
        averaged: the model that is averaged over rotations at test time, in place of a training of its own; of volumes that
            are segmented, over the orientations of the grid.
        sweep: options of its evaluation in place of those of the study, where a whole sweep takes too long.
        colour: of its curve; a model without one has no curve.
        few: train on so many percent of the images of a MedMNIST set, or on so many volumes, in as many steps as the whole
            training set takes, validated as often; 0: on the whole.
    """

    title: str
    overlays: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    turned: bool = False
    other: dict[str, Any] = field(default_factory=dict)
    wrapper: str = ""
    averaged: str = ""
    colour: str = ""
    settings_3d: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    few: int = 0

    @property
    def label(self) -> str:
        """How the pictures call it: the title without marks of code."""
        return self.title.replace("`", "")


@dataclass(frozen=True)
class Source:
    """A data set, the bundle that learns it, and the entries of its config that say where it is."""

    name: str
    bundle: Path
    spatial_dims: int
    entries: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """The bundle's ``train.json``."""
        found: dict[str, Any] = ConfigParser.load_config_file(self.bundle / "configs" / "train.json")
        return found


def source_of(dataset: str, dataset_dir: str = "", size: int = 28) -> Source:
    """How to learn a data set: ``"CHASE_DB1"``, ``"hippocampus"``, or one of MedMNIST's with ``size`` pixels a side.

    Example:
        >>> source = source_of("breastmnist", size=64)
        >>> source.name, source.bundle.name, source.spatial_dims
        ('breastmnist_64', 'medmnist_2d_classification', 2)
    """
    if dataset in _PAIRS:
        name, entries = dataset, {}
        bundle, dims = BUNDLES / _PAIRS[dataset][0], _PAIRS[dataset][1]
    else:
        dims = dataset_info(dataset, dataset_dir).spatial_dims
        bundle, name = BUNDLES / f"medmnist_{dims}d_classification", dataset + ("" if size == 28 else f"_{size}")
        entries = {"dataset_name": dataset, "size": size}
    entries |= {
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "logging_file": str(bundle / "configs" / "logging.conf"),
        "bundle_root": str(bundle),
        "dataset_dir": dataset_dir,
    }
    return Source(name, bundle, dims, entries)


def config_files(source: Source, model: Model, *more: str) -> list[str]:
    """Paths of the config files of a model, with further ones of the bundle between ``train.json`` and its own."""
    return [str(source.bundle / "configs" / name) for name in ("train.json", *more, *model.overlays)]


def config_entries(source: Source, model: Model) -> dict[str, Any]:
    """Entries of the config that a data set and a model set."""
    entries, inner = {**source.entries, **model.settings}, source.recipe["network_def"]
    if source.spatial_dims == 3:
        entries |= model.settings_3d
    if model.turned:
        entries |= _TURNED[source.bundle.name]
    if model.other:
        entries["network_def"] = {key: inner[key] for key in _SHARED if key in inner} | model.other
    if model.wrapper:
        entries |= {"network_def#_target_": f"benchmarks.{model.wrapper}", "network_def#wraps": inner["_target_"]}
    return entries


def parsed(source: Source, model: Model, *more: str) -> ConfigParser:
    """The config of a model, ready to build parts of it."""
    parser = ConfigParser()
    parser.read_config(config_files(source, model, *more))
    parser.update(config_entries(source, model))
    return parser


def network_of(source: Source, model: Model, *more: str) -> nn.Module:
    """The untrained network of a model."""
    found = parsed(source, model, *more).get_parsed_content("network_def")
    network: nn.Module = found if isinstance(found, nn.Module) else found()
    return network


def windows_of(source: Source, model: Model, *more: str) -> Callable[..., Tensor]:
    """The inferer of a segmenting model."""
    inferer: Callable[..., Tensor] = parsed(source, model, *more).get_parsed_content("validate#inferer")
    return inferer


def first_test_image(source: Source, model: Model) -> dict[str, Tensor]:
    """Image, label and, where there is one, field of view of a model's first test image, each ``(C, *spatial)``."""
    parser = parsed(source, model)
    parser[split_id(source)] = "test"
    case = parser.get_parsed_content("validate#dataset")[0]
    return {key: torch.as_tensor(case[key]).float() for key in ("image", "label", "field") if key in case}


def train(source: Source, model: Model, options: dict[str, Any], work: Path) -> None:
    """Run a training in a folder, from where it stopped; not again where it is complete."""
    if (work / "learning_curves.png").is_file():
        return
    last = work / "models" / "last.pt"
    done = last.is_file() and torch.load(last, weights_only=True)["epoch"] > 0
    entries = {**config_entries(source, model), **options}
    run(config_file=config_files(source, model), **entries, resume=done, output_dir=str(work))


def training_entries(source: Source, model: Model, epochs: int) -> dict[str, Any]:
    """Entries of the config that say how long to train, and on how many images, where the whole set takes ``epochs``."""
    if not model.few:
        return {"max_epochs": epochs}
    pairs = "pairs" in source.recipe["train"]
    whole = len(parsed(source, model).get_parsed_content("train#pairs" if pairs else "train#dataset"))
    number, batch = model.few if pairs else round(whole * model.few / 100), source.recipe["batch_size"]
    longer = math.ceil(epochs * math.ceil(whole / batch) / math.ceil(number / batch))
    interval = max(source.recipe["val_interval"] * longer // epochs, 1)
    return {"max_epochs": longer, "num_train": number, "val_interval": interval}


def evaluate(source: Source, model: Model, output_dir: Path, averaged: bool = False, **options: Any) -> dict[str, Any]:
    """Evaluate a model under rotations, and return what :func:`scores` reads.

    Args:
        source: the data set.
        model: what was trained.
        output_dir: folder of the files.
        averaged: whether the network is averaged over rotations.
        options: entries of the config: ``split``, ``step`` and ``orientations`` (of the sweep) and others by their names.
    """
    sweep = handler_id(source.bundle / "configs" / "evaluate.json", "RotationSweep")
    names = {"split": split_id(source), "step": f"{sweep}#step", "orientations": f"{sweep}#orientations"}
    options = {"sweep": True, **options}
    entries = {**config_entries(source, model), **{names.get(key, key): value for key, value in options.items()}}
    if averaged:
        kind = "OrientationAverage" if source.name == HIPPOCAMPUS else "RotationAverage"
        entries["network"] = {
            "_target_": f"benchmarks.peer_networks.{kind}",
            "network": source.recipe["network"],
            "spatial_dims": source.spatial_dims,
        }
        entries[f"{sweep}#network"] = "@network"
    files = [*config_files(source, model), str(source.bundle / "configs" / "evaluate.json")]
    run(config_file=files, **entries, output_dir=str(output_dir))
    return scores(output_dir)


def split_id(source: Source) -> str:
    """The id of the config's entry that says which split is evaluated."""
    part = next(name for name in ("pairs", "dataset") if "split" in source.recipe["validate"].get(name, {}))
    return f"validate#{part}#split"


def handler_id(config: Path, name: str) -> str:
    """The id of an evaluator's handler, by the name of its class."""
    handlers = ConfigParser.load_config_file(config)["validate#handlers"]
    for index, entry in enumerate(handlers):
        if isinstance(entry, dict) and entry["_target_"].split(".")[-1] == name:
            return f"validate#handlers#{index}"
    raise ValueError(f"{config} has no handler {name}")


def scores(folder: Path) -> dict[str, Any]:
    """The scores upright and the sweeps that an evaluation left in its folder."""
    files = {name: folder / f"sweep_{name}.json" for name in PROTOCOLS}
    sweeps = {name: read_json(path) for name, path in files.items() if path.is_file()}
    return ({"sweep": sweeps} if sweeps else {}) | {"upright": read_json(folder / "metrics.json")}


def images_of(folder: Path) -> dict[str, np.ndarray]:
    """What an evaluation's sweeps left of each image, in a tenth of the room.

    Returns:
        For P protocols, T transformations and N images: ``"protocols"`` and ``"transformations"``, their names; of two
        classes ``"labels"``, ``(N,)``, and ``"log_odds"``, ``(P, T, N)`` float16, the logarithm of the second class's
        probability over the first's, which keeps decisions and ranks where float16 probabilities would be equal; of more
        classes or labels ``"log_probabilities"``, ``(P, T, N, num_classes)``; of class maps ``"metrics"``, ``(M,)``, and
        ``"scores"``, ``(P, T, N, M)`` float32.
    """
    found = {name: folder / f"sweep_{name}.npz" for name in PROTOCOLS}
    loaded = {name: dict(np.load(path)) for name, path in found.items() if path.is_file()}
    first = next(iter(loaded.values()))
    arrays = {"protocols": np.array(list(loaded)), "transformations": first["transformations"]}
    scores = np.stack([each["scores"] for each in loaded.values()])
    if "metrics" in first:
        return arrays | {"metrics": first["metrics"], "scores": scores}
    arrays["labels"] = first["labels"].astype(np.uint8)
    with np.errstate(divide="ignore"):  # a probability of 0
        logs = np.log(scores)
    if logs.shape[-1] > 2 or arrays["labels"].ndim > 1:
        return arrays | {"log_probabilities": logs.astype(np.float16)}
    return arrays | {"log_odds": (logs[..., 1] - logs[..., 0]).astype(np.float16)}


def upright_of(folder: Path) -> dict[str, np.ndarray]:
    """Of an evaluation of class maps, ``"upright_metrics"``, ``(M,)``, and ``"upright"``, ``(N, M)``, of each image."""
    with (folder / "scores.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "file"} for row in csv.DictReader(file)]
    values = [[float(value or "nan") for value in row.values()] for row in rows]
    return {"upright_metrics": np.array(list(rows[0])), "upright": np.array(values, dtype=np.float32)}


def summary(work: Path, metric: str) -> dict[str, Any]:
    """What a complete training says of itself: epochs, the one with the best ``metric``, its row, last loss, parameters."""
    history = (work / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(history[0].split(","), line.split(","), strict=True)) for line in history[1:]]
    best = max((row for row in rows if row[metric]), key=lambda row: float(row[metric]))
    state, about = torch.load(work / "models" / "model.pt", weights_only=True), machine("wall")
    weights = {value.data_ptr(): value for name, value in state.items() if not _NO_PARAMETER.search(name)}
    return {
        "epochs": len(rows),
        "best_epoch": int(best["epoch"]),
        "final_train_loss": float(rows[-1]["train_loss"]),
        "validation": {
            name.removeprefix("val_"): float(value) for name, value in best.items() if name.startswith("val_")
        },
        "parameters": sum(value.numel() for value in weights.values()),  # a module under two names counts once
        "machine": {key: about[key] for key in ("cpu", "capability", "threads", "torch")},
    }
