"""The table and the picture of README.md, from the cells of the studies.

python -m benchmarks.headline
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import accuracy, vessels, volumes
from benchmarks.cells import (
    BACKGROUND,
    Cells,
    Study,
    Task,
    choose,
    images_of_seeds,
    into_card,
    mean_sweep,
    read_cells,
    values,
)
from benchmarks.intervals import Figure, interval
from benchmarks.tables import RESULTS, markdown
from monai_sre.evaluation import draw_sweep

README = Path(__file__).parents[1] / "README.md"
PICTURE = RESULTS / "rotation.png"


class Row(NamedTuple):
    """A data set: how the table calls it, its score and models, and what the sweep's score turned is called."""

    title: str
    score: str
    study: Study
    task: Task
    ours: str = "harmonic"
    turned: str = "mean"
    plain: str = "plain"


ROWS = (
    Row("BreastMNIST", "AUC", accuracy.STUDY, Task("breastmnist", 100)),
    Row("PneumoniaMNIST", "AUC", accuracy.STUDY, Task("pneumoniamnist", 5)),
    Row("AdrenalMNIST3D", "AUC", accuracy.STUDY, Task("adrenalmnist3d", 15)),
    Row("CHASE_DB1", "Dice", vessels.STUDY, Task("CHASE_DB1", 40)),
    Row("hippocampus", "Dice", volumes.STUDY, Task("hippocampus", 10), "margins", "random mean", "plain-margins"),
)
_HEAD = ("data set", "plain", "plain, turned", "plain + rotations, turned", "ours", "ours, turned")


def _cells(row: Row) -> dict[str, Cells]:
    """Of the three networks, those seeds that were swept."""
    chosen = choose(read_cells(row.study.cells, list(row.study.models)), row.study.metric)
    found = {name: chosen[row.task, name] for name in (row.plain, "plain-turned", row.ours)}
    return {name: [member for member in members if "sweep" in member] for name, members in found.items()}


def _figures(row: Row) -> list[tuple[str, str, list[float]]]:
    """What the row shows: network, part of the sweep, and the score of each seed."""
    cells = _cells(row)
    shown = [(row.plain, "upright"), (row.plain, row.turned), ("plain-turned", row.turned), (row.ours, "upright")]
    return [
        (name, part, values(cells[name], ("sweep", BACKGROUND, f"{row.score} {part}")))
        for name, part in [*shown, (row.ours, row.turned)]
    ]


def spread(rows: Sequence[Row] = ROWS) -> tuple[int, float]:
    """The fewest seeds of all figures of the table, and the largest standard deviation over the seeds, in percent."""
    found = [numbers for row in rows for *_, numbers in _figures(row)]
    return min(map(len, found)), 100 * max(map(statistics.stdev, found))


def table(rows: Sequence[Row] = ROWS) -> str:
    """Means over the seeds in percent, upright and turned, with the intervals of those that hold images, in Markdown."""
    lines = []
    for row in rows:
        cells, score = _cells(row), row.score
        lines.append([row.title])
        for name, part, numbers in _figures(row):
            images = images_of_seeds(row.study, cells[name])
            lines[-1].append(f"{100 * sum(numbers) / len(numbers):.1f}")
            if images is not None:
                drawn = interval(images, Figure(score, part))
                lines[-1][-1] += f" [{100 * drawn.low:.0f}, {100 * drawn.high:.0f}]"
    return markdown(_HEAD, lines)


def picture(row: Row = ROWS[0]) -> None:
    """The three networks at each angle."""
    cells, models = _cells(row), row.study.models
    titles = {name: "ours" if name == row.ours else models[name].title for name in cells}
    draw_sweep(
        {title: mean_sweep(cells[name], row.score) for name, title in titles.items()},
        PICTURE,
        title=f"{row.title}, test set, mean of {len(cells[row.ours])} seeds",
        colours={title: models[name].colour for name, title in titles.items()},
    )


if __name__ == "__main__":
    into_card(README, "three networks", table().splitlines())
    picture()
