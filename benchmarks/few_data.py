"""How much data a network needs: trainings on parts of the training sets; see :mod:`benchmarks.cells`.

    python -m benchmarks.few_data fill --dataset breastmnist --model ours-10 --seed 0 --dataset_dir DIR --work DIR
    python -m benchmarks.few_data report

The number behind a model's name is the percent of the images that it is trained on, of the hippocampus the number of volumes.
Parts are nested, drawn by the seed, with the classes in their shares (``num_train`` of the bundles); a training takes as many
steps as on the whole set, with the learning rate chosen there. The whole set's cells are those of :mod:`benchmarks.accuracy`
and :mod:`benchmarks.volumes`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from matplotlib.figure import Figure as Picture

from benchmarks import accuracy, volumes
from benchmarks.bundles import HIPPOCAMPUS, Model
from benchmarks.cells import (
    BACKGROUND,
    Cells,
    Study,
    Task,
    bracket,
    choose,
    difference_text,
    fill,
    images_of_seeds,
    main,
    read_cells,
    spread,
    values,
)
from benchmarks.intervals import WORDS, Figure, Images, difference, interval
from benchmarks.tables import markdown

PARTS = (5, 10, 25, 50)
#: Of each data set, epochs and number of labels of the whole training set.
EPOCHS = {"breastmnist": 40, "pneumoniamnist": 5, "adrenalmnist3d": 15, HIPPOCAMPUS: 10}
WHOLE = {"breastmnist": 546, "pneumoniamnist": 4708, "adrenalmnist3d": 1188, HIPPOCAMPUS: 138}
#: How the page calls the networks, their colours and markers.
NETWORKS = {
    "plain": ("plain", "tab:blue", "o"),
    "plain-turned": ("plain, random rotations in training", "tab:orange", "s"),
    "ours": ("ours", "tab:purple", "^"),
}
PICTURE = "few_data.png"
INTRO = [
    "# Few data",
    "",
    "Made by `benchmarks/few_data.py report`: 5, 10, 25 and 50 % of the training images (hippocampus: so many volumes) and",
    "all; parts are nested, drawn by the seed, the classes in their shares. Each training takes as many steps as that on the",
    "whole set, with the learning rate that was chosen there at the time (its column); the validation set, which chooses the",
    "epoch, stays whole. Mean ± standard deviation over seeds; rotated: as in `accuracy.md` and, at random, in `volumes.md`.",
    "Parts and data sets that this page lacks are not trained yet; sentences are of networks with several seeds alone.",
    "Bands in the picture: the intervals of the rotated score.",
    *WORDS,
    "Each interval is one by itself: of as many as here, a few leave zero out by chance.",
]


class Point(NamedTuple):
    """One network after training on so many labels: its cells, and what they hold of single images."""

    labels: int
    members: Cells
    images: list[Images] | None

    def score(self, figure: Figure) -> float:
        """The mean over the seeds."""
        return statistics.mean(values(self.members, ("sweep", BACKGROUND, f"{figure.metric} {figure.part}")))


def _parts(models: dict[str, Model], ours: str) -> dict[str, Model]:
    """Three networks on each part of the training set."""
    named = {"plain": models["plain"], "plain-turned": models["plain-turned"], "ours": models[ours]}
    return {f"{name}-{few}": replace(model, few=few) for name, model in named.items() for few in PARTS}


STUDY = Study(
    "few_data", _parts(accuracy.MODELS, "harmonic"), metric="auc", scores=accuracy.STUDY.scores, epochs=EPOCHS
)
VOLUMES = Study(
    "few_data", _parts(volumes.MODELS, "margins"), metric="dice", scores=volumes.STUDY.scores, step=45, swept=8,
    epochs=EPOCHS,
)  # fmt: skip


def whole_set(dataset: str) -> tuple[Study, dict[str, str]]:
    """The study whose cells are of the whole training set, and how it calls the three networks."""
    names = {"plain": "plain", "plain-turned": "plain-turned"}
    if dataset == HIPPOCAMPUS:
        return volumes.STUDY, {**names, "ours": "margins"}
    return accuracy.STUDY, {**names, "ours": "harmonic"}


def fill_part(_: Study, chosen: argparse.Namespace) -> None:
    """Train and evaluate one cell with the learning rate of the whole set."""
    study, names = whole_set(chosen.dataset)
    task, network = Task(chosen.dataset, EPOCHS[chosen.dataset]), names[chosen.model.rpartition("-")[0]]
    cells = choose(read_cells(study.cells, list(study.models)), study.metric)[task, network]
    chosen.learning_rate = chosen.learning_rate or cells[0]["learning_rate"]
    fill(VOLUMES if chosen.dataset == HIPPOCAMPUS else STUDY, chosen)


def figures_of(dataset: str) -> dict[str, Figure]:
    """The figures of a data set by their titles: upright and rotated."""
    if dataset == HIPPOCAMPUS:
        return {"Dice upright": Figure("Dice", "upright"), "Dice rotated": Figure("Dice", "random mean")}
    parts = {"upright": "upright", "rotated": "mean"}
    return {f"{metric} {title}": Figure(metric, part) for metric in ("ACC", "AUC") for title, part in parts.items()}


def curves(dataset: str, parts: dict[tuple[Task, str, float], Cells]) -> dict[str, list[Point]]:
    """Of each network its points, from the fewest labels to the whole set."""
    study, names = whole_set(dataset)
    whole = choose(read_cells(study.cells, list(study.models)), study.metric)
    chosen = choose({key: members for key, members in parts.items() if key[0].dataset == dataset}, study.metric)
    found: dict[str, list[Point]] = {}
    for network, name in names.items():
        points = [
            Point(members[0]["num_train"], members, images_of_seeds(STUDY, members))
            for (task, model), members in chosen.items()
            if model.rpartition("-")[0] == network
        ]
        members = whole.get((Task(dataset, EPOCHS[dataset]), name), [])
        members = [member for member in members if "sweep" in member]
        if members:
            points.append(Point(WHOLE[dataset], members, images_of_seeds(study, members)))
        found[network] = sorted(points, key=lambda point: point.labels)
    return found


def claim(dataset: str, title: str, figure: Figure, found: dict[str, list[Point]], other: str) -> str:
    """How many labels of ours do what all labels do for another network, of parts with several seeds."""
    whole, name = found[other][-1], NETWORKS[other][0]
    points = [point for point in found["ours"] if len(point.members) > 1]
    if not points or len(whole.members) < 2:
        return f"- {dataset}, {title}: no claim against {name} from one seed."
    reached = [point.score(figure) >= whole.score(figure) for point in points]
    point, does = points[-1], "do less than"
    if reached[-1]:
        point, does = next(part for place, part in enumerate(points) if all(reached[place:])), "do what"
    drawn = None
    if point.images is not None and whole.images is not None:
        drawn = difference(point.images, whole.images, figure)
    if drawn is not None and drawn.word() == "level":
        text = f"{point.labels} labels of ours are level with {whole.labels} of {name}"
    else:
        text = f"{point.labels} labels of ours {does} {whole.labels} do for {name}"
    difference_text = "" if drawn is None else f", difference {drawn.text('+.3f')}"
    return f"- {dataset}, {title}: {text} ({point.score(figure):.3f} and {whole.score(figure):.3f}{difference_text})."


def same_labels(figures: dict[str, Figure], found: dict[str, list[Point]]) -> list[str]:
    """Our figures less those of the other networks after training on as many labels, where both have several seeds."""
    ours, rows = {point.labels: point for point in found["ours"]}, []
    for other in ("plain", "plain-turned"):
        for point in found[other]:
            mine = ours.get(point.labels)
            if mine is None or min(len(mine.members), len(point.members)) < 2:
                continue
            if mine.images is not None and point.images is not None:
                texts = [difference_text(mine.images, point.images, figure) for figure in figures.values()]
                rows.append([NETWORKS[other][0], str(point.labels), *texts])
    table = markdown(["ours, less", "labels", *figures], rows).splitlines()
    return ["", "Differences with the same number of labels, of the same test images:", "", *table] if rows else []


def report_parts(_: Study) -> None:
    """Write the page and the picture."""
    parts = read_cells(STUDY.cells, list(STUDY.models))
    datasets = [name for name in EPOCHS if any(task.dataset == name for task, *_ in parts)]
    shown = {dataset: curves(dataset, parts) for dataset in datasets}
    draw(shown)
    lines = [*INTRO, "", f"![Score against the number of labels]({PICTURE})", "", "## What the labels do", ""]
    for dataset, found in shown.items():
        for title, figure in list(figures_of(dataset).items())[-2:]:
            lines += [claim(dataset, title, figure, found, other) for other in ("plain", "plain-turned")]
    for dataset, found in shown.items():
        figures, rows = figures_of(dataset), []
        for network, points in found.items():
            for point in points:
                paths = [("sweep", BACKGROUND, f"{figure.metric} {figure.part}") for figure in figures.values()]
                texts = [spread(values(point.members, path)) + bracket(point.images, path) for path in paths]
                rate = f"{point.members[0]['learning_rate']:g}"
                rows.append([NETWORKS[network][0], str(point.labels), rate, str(len(point.members)), *texts])
        head = ["network", "labels", "learning rate", "seeds", *figures]
        lines += ["", f"## {dataset}", "", *markdown(head, rows).splitlines(), *same_labels(figures, found)]
    (STUDY.results / "few_data.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def draw(shown: dict[str, dict[str, list[Point]]]) -> None:
    """The last score against the number of labels, a panel per data set: upright solid, rotated dashed with intervals."""
    picture = Picture(figsize=(1 + 4.6 * len(shown), 3.8 + 1.8 / len(shown)), layout="constrained")
    panels: Sequence = picture.subplots(1, len(shown), squeeze=False)[0]
    for panel, (dataset, found) in zip(panels, shown.items(), strict=True):
        upright, rotated = list(figures_of(dataset).values())[-2:]
        for network, points in found.items():
            title, colour, marker = NETWORKS[network]
            numbers = [point.labels for point in points]
            for figure, style, name in ((upright, "-", "upright"), (rotated, "--", "rotated")):
                panel.plot(
                    numbers,
                    [point.score(figure) for point in points],
                    style,
                    color=colour,
                    marker=marker,
                    markersize=7,
                    linewidth=2.2,
                    label=f"{title}: {name}",
                )
            bands = {
                point.labels: interval(point.images, rotated)
                for point in points
                if point.images is not None and len(point.members) > 1
            }
            panel.fill_between(
                list(bands),
                [band.low for band in bands.values()],
                [band.high for band in bands.values()],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
        panel.set_xscale("log")
        ticks = sorted({point.labels for points in found.values() for point in points})
        panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=12)
        panel.minorticks_off()
        panel.tick_params(axis="y", labelsize=12)
        panel.set_title(dataset, fontsize=14)
        panel.set_xlabel("labels to train on", fontsize=13)
        panel.set_ylabel(f"{upright.metric}, test set", fontsize=13)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(3, len(shown)),
        fontsize=12,
        frameon=False,
        handlelength=3.2,
    )
    picture.savefig(STUDY.results / PICTURE, dpi=100)


if __name__ == "__main__":
    main(STUDY, __doc__, write=report_parts, filler=fill_part)
