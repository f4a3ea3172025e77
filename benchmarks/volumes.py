"""Hippocampus upright and at any orientation, through the bundle's own configs; see :mod:`benchmarks.cells`.

    python -m benchmarks.volumes fill --model plain --seed 0 --epochs 10 --dataset_dir DIR --work DIR
    python -m benchmarks.volumes costs --dataset_dir DIR --work DIR
    python -m benchmarks.volumes select --dataset_dir DIR --work DIR
    python -m benchmarks.volumes shipped --dataset_dir DIR --work DIR
    python -m benchmarks.volumes report
    python -m benchmarks.volumes picture --dataset_dir DIR --work DIR

The data set is Task04 of the Medical Segmentation Decathlon. ``costs`` measures a step of training of each network.
``select`` turns the volumes of the validation set, by which the bundle's weights are chosen.
``picture`` draws contours of the truth, of the plain network (the first seed in ``--work``) and of the bundle's, upright and
under two rotations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bundles import (
    HIPPOCAMPUS,
    RADIAL,
    Model,
    Source,
    evaluate,
    first_test_image,
    network_of,
    parsed,
    source_of,
    windows_of,
)
from benchmarks.cells import BACKGROUND, LOSS, PROTOCOL_WORDS, Study, cell_name, choose, main, name_of, read_cells
from benchmarks.intervals import WORDS
from benchmarks.tables import RESULTS, markdown, read_json
from benchmarks.timing import Effort, interleaved, machine
from monai_sre.data import background_value
from monai_sre.description import load_weights
from monai_sre.evaluation import draw_contours, sweep_transformations
from monai_sre.evaluation.sweep import RESAMPLED, as_cube
from monai_sre.files import write_json

COSTS, SELECTION = RESULTS / "volumes_costs.json", RESULTS / "volumes_selection.json"
_SEGRESNET: dict[str, Any] = {
    "_target_": "monai_sre.description.make_network",
    "target": "monai.networks.nets.SegResNet",
    "spatial_dims": "@spatial_dims",
    "in_channels": "@num_channels",
    "out_channels": "$len(@class_names)",
    "init_filters": 16,
    "blocks_down": [1, 2, 2],
    "blocks_up": [1, 1],
}
_CONVERTED = {"_target_": _SEGRESNET["_target_"], "target": "monai_sre.convert_to_sre", "network": _SEGRESNET}
_NO_MARGINS: dict[str, Any] = {"margins": 0.0}
_MARGINS: dict[str, Any] = {"margins": 0.5}
_RESIDUAL = _NO_MARGINS | {"window_multiple": 4, "network_def": _SEGRESNET}
_ROUNDER = "studies.stencils.Rounder"
_WIDE = _NO_MARGINS | {"network_def#channels": [24, 48, 96]}
_IN_PLANE = _NO_MARGINS | {"network_def#axes": [0, 2]}
_PLAIN, _TURNED, _MOVED = ("plain.json",), "random rotations and flips in training", "margins in training"
MODELS = {
    "plain": Model("DynUNet", _PLAIN, _NO_MARGINS, colour="tab:blue"),
    "plain-averaged": Model(
        "DynUNet, averaged over the 48 orientations",
        averaged="plain",
        sweep={"step": 360, "orientations": False, "random_rotations": 3},
    ),
    "plain-margins": Model(f"DynUNet, {_MOVED}", _PLAIN, _MARGINS),
    "plain-turned": Model(f"DynUNet, {_TURNED}", _PLAIN, _NO_MARGINS, turned=True, colour="tab:orange"),
    "segresnet": Model("SegResNet", (), _RESIDUAL, colour="tab:cyan"),
    "segresnet-turned": Model(f"SegResNet, {_TURNED}", (), _RESIDUAL, turned=True, colour="tab:olive"),
    "converted": Model(
        "SegResNet, converted (`convert_to_sre`)",
        (),
        _RESIDUAL | {"network_def": _CONVERTED},
        colour="tab:green",
    ),
    "sre": Model("SRE-UNet, Gaussian rings", (), _NO_MARGINS | RADIAL, colour="tab:pink"),
    "harmonic": Model("SRE-UNet, Gaussian rings and harmonic energies", (), _NO_MARGINS, colour="tab:purple"),
    "rounder": Model("energies, rounder stencils of 5 taps", (), _NO_MARGINS, wrapper=_ROUNDER),
    "wide": Model("energies, channels 24, 48 and 96", (), _WIDE),
    "in-plane": Model("energies, symmetric in the coronal plane alone", (), _IN_PLANE, colour="tab:brown"),
    "margins": Model(f"SRE-UNet with energies, {_MOVED} (the bundle)", (), _MARGINS, colour="black"),
    "rounder-margins": Model("the same, rounder stencils of 5 taps", (), _MARGINS, wrapper=_ROUNDER),
}
_CLASSES = ("Anterior", "Posterior")
#: Models whose step of training is that of another.
_SAME_STEP = {"plain-averaged": "plain", "plain-margins": "plain", "margins": "harmonic"}


class VolumeStudy(Study):
    """A study whose tables have a column for each class."""

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """How the columns of its tables are read from a cell."""
        swept = ("sweep", BACKGROUND)
        found: dict[str, tuple[str, ...]] = {LOSS: ("final_train_loss",), "validation Dice": ("validation", "dice")}
        for metric in ("Dice", "HD95 mm", "volume error ml"):
            found |= {f"{metric}, {name}": ("upright", f"{metric} of {name}") for name in _CLASSES}
        found |= {
            "swept: Dice upright": (*swept, "Dice upright"),
            "mean over 47 other orientations": (*swept, "Dice orientation mean"),
            "least of them": (*swept, "Dice orientation min"),
            "mean of angles about the axes": (*swept, "Dice mean"),
            "mean of random rotations": (*swept, "Dice random mean"),
        }
        found |= {f"of {name}": (*swept, f"Dice of {name} random mean") for name in _CLASSES}
        found["truth, turned at random and back"] = (*swept, f"{RESAMPLED} random mean")
        return found


def cost_columns(_: str) -> dict[str, dict[str, str]]:
    """Of each model, the processor time of a step of training over that of the plain network."""
    times = read_json(COSTS, {}).get("times", {})
    shares = {name: f"{value['ms'] / times['plain']['ms']:.2f}" for name, value in times.items()}
    return {"time of a step": shares | {name: shares[twin] for name, twin in _SAME_STEP.items() if shares}}


def selection(_: object) -> list[str]:
    """The table of :func:`select`."""
    if not SELECTION.is_file():
        return []
    lines = [
        "## The bundle's weights",
        "",
        "40 epochs, seed 0: Dice of the first 8 volumes of the validation set, by which these weights were chosen.",
        "",
    ]
    rows = []
    for name, content in read_json(SELECTION).items():
        swept = content["sweep"][BACKGROUND]
        rows.append([MODELS[name].title, *(f"{swept[f'Dice {key}']:.3f}" for key in ("upright", "random mean"))])
    return [*lines, *markdown(("network", "upright", "mean of 12 random rotations"), rows).splitlines(), ""]


STUDY = VolumeStudy(
    "volumes",
    MODELS,
    metric="dice",
    scores=("Dice", "HD95 mm"),
    shipped=(HIPPOCAMPUS,),
    step=45,
    swept=8,
    ours="margins",
    more_columns=cost_columns,
    appendix=selection,
    intro=[
        "# Segmentation of the hippocampus at any orientation",
        "",
        "Made by `benchmarks/volumes.py report`: Task04 of the Medical Segmentation Decathlon, 231 volumes of 1 mm; by name,",
        "every 5th validates (47), those after them test (46), the others train (138). One recipe for all, the bundle's",
        "`train.json`: 69 steps of 2 volumes per epoch (boxes of 36 x 52 x 36 voxels; with random rotations cubes of 44, for",
        "the long axis turns too), Dice and cross-entropy, AdamW, cosine. Mean ± standard deviation over the seeds that are",
        "stated; the epoch is selected by validation Dice, the learning rate by validation Dice after 3 epochs with seed 0",
        "(below; a network with random rotations has that of the same without, and the in-plane one that of the bundle). Of",
        "SegResNet and its conversion another rate validates better after 3 epochs than the one in the table. Margins: half",
        "of the boxes are moved by up to half of their size, and filled with the background as a turned volume is.",
        "",
        "Dice, the 95th percentile of the surface distance (HD95) and the volume error without its sign, for each class: the",
        "46 test volumes upright, at the last or best validated epoch. The columns from `swept` on are the mean of both",
        "classes over the first 8 of them, each under the 47 other orientations of the grid, angles of multiples of 45",
        "degrees about the three axes and 12 random rotations of SO(3) (the averaged network: 3 of these alone, under which",
        f"the plain one has .084). Images are interpolated trilinearly, labels take the nearest value. {PROTOCOL_WORDS[0]}",
        "What a rotation itself costs: the Dice of the truth with the truth turned at random and back, in the last column.",
        "The converted network takes sizes that are multiples of 4, as its original: an odd size gets one voxel more at one",
        "end, so other orientations differ in the third decimal. The other symmetric networks take every size.",
        *WORDS,
        "Cells that were filled before images were kept have none.",
    ],
)


def select(arguments: argparse.Namespace) -> None:
    """Random rotations of the validation set, by the network with energies with margins in training and without."""
    source, found = source_of(HIPPOCAMPUS, arguments.dataset_dir), {}
    for name in ("harmonic", "margins"):
        work = Path(arguments.work) / cell_name(HIPPOCAMPUS, name, source.recipe["learning_rate"], 40, 0)
        sweep: dict[str, Any] = {"step": 360, "orientations": False, "random_rotations": 12, "num_val": STUDY.swept}
        found[name] = evaluate(
            source, MODELS[name], work / "selection", split="val", ckpt_dir=str(work / "models"), **sweep
        )
    write_json(SELECTION, found)


def costs(arguments: argparse.Namespace) -> None:
    """Time of a step of training of each network."""
    torch.set_num_threads(1)
    source = source_of(HIPPOCAMPUS, arguments.dataset_dir)
    steps = {name: _step(source, model) for name, model in MODELS.items() if name not in _SAME_STEP}
    times = interleaved(steps, Effort(seconds=0, clock="cpu"))
    write_json(COSTS, {"machine": machine("cpu"), "batch": 2, "times": times})


def _step(source: Source, model: Model) -> Callable[[], None]:
    """Forward, loss, backward and optimizer on two boxes of noise of the size that the network is trained on."""
    parser, network = parsed(source, model), network_of(source, model)
    size, loss = parser.get_parsed_content("train#patch"), parser.get_parsed_content("loss")
    optimizer = torch.optim.AdamW(network.parameters())
    x, y = torch.randn(2, 1, *size), torch.randint(0, 3, (2, 1, *size))

    def step() -> None:
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()

    return step


def picture(arguments: argparse.Namespace) -> None:
    """Contours upright and under two rotations."""
    source = source_of(HIPPOCAMPUS, arguments.dataset_dir)
    tried = read_cells(STUDY.cells, list(MODELS))
    cells = [cell for (_, model), members in choose(tried, "dice").items() if model == "plain" for cell in members]
    folders = [Path(arguments.work) / name_of(cell) for cell in cells]
    folder = next(folder for folder in folders if (folder / "models").is_dir())
    weights = {"plain": folder / "models" / "model.pt", "margins": source.bundle / "models" / "model.pt"}
    networks = {}
    for name, path in weights.items():
        network = load_weights(network_of(source, MODELS[name]), path).eval()
        networks[MODELS[name].title.split(",")[0]] = (network, windows_of(source, MODELS[name]))
    case, views = first_test_image(source, MODELS["margins"]), {}
    moves = sweep_transformations(3, orientations=True, random_rotations=1)
    named = {"upright": "0", "a quarter turn": "90 about axis 0", "a random rotation": "random 1"}
    for title, key in named.items():
        image, truth = case["image"][None], case["label"][None]
        if not moves[key].keeps_the_grid:  # room for the corners, as in a sweep
            image, truth = as_cube(image, background_value(image)), as_cube(truth, -1.0)
        image, truth = moves[key](image), moves[key].on_classes(truth).clamp(min=0)
        maps = {"truth": truth[0, 0].numpy()}
        with torch.no_grad():
            maps |= {
                name: windows(image, network).argmax(dim=1)[0].numpy() for name, (network, windows) in networks.items()
            }
        views[title] = (image[0, 0].numpy(), maps)
    draw_contours(views, source.bundle / "docs" / "contours.png")


if __name__ == "__main__":
    main(STUDY, __doc__, costs=costs, select=select, picture=picture)
