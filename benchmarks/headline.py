"""The table and the picture of README.md, from the cells of the studies.

python -m benchmarks.headline
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import accuracy, vessels, volumes
from benchmarks.cells import BACKGROUND, RESULTS, Cells, Study, Task, choose, into_card, mean_sweep, read_cells, values
from benchmarks.timing import markdown
from monai_sre.evaluation import draw_sweep

README = Path(__file__).parents[1] / "README.md"
PICTURE = RESULTS / "rotation.png"


class Row(NamedTuple):
    """A data set: how the table calls it, its score and models, and what the sweep's score turned is called."""

    title: str
    study: Study
    task: Task
    ours: str = "harmonic"
    turned: str = "mean"


ROWS = (
    Row("BreastMNIST, ACC", accuracy.STUDY, Task("breastmnist", 100)),
    Row("PneumoniaMNIST, ACC", accuracy.STUDY, Task("pneumoniamnist", 5)),
    Row("AdrenalMNIST3D, ACC", accuracy.STUDY, Task("adrenalmnist3d", 15)),
    Row("CHASE_DB1, Dice", vessels.STUDY, Task("CHASE_DB1", 40)),
    Row("hippocampus, Dice", volumes.STUDY, Task("hippocampus", 10), "margins", "random mean"),
)
_HEAD = ("data set, score", "plain", "plain, turned", "plain, rotations in training", "ours", "ours, turned")


def _cells(row: Row) -> dict[str, Cells]:
    """Of the three networks, those seeds that were swept."""
    chosen = choose(read_cells(row.study.cells, list(row.study.models)), row.study.metric)
    found = {name: chosen[row.task, name] for name in ("plain", "plain-turned", row.ours)}
    return {name: [member for member in members if "sweep" in member] for name, members in found.items()}


def table(rows: Sequence[Row] = ROWS) -> str:
    """Means over the seeds, upright and turned, in Markdown."""
    lines = []
    for row in rows:
        cells, score = _cells(row), row.study.scores[0]

        def mean(name: str, part: str, cells: dict[str, Cells] = cells, score: str = score) -> str:
            numbers = values(cells[name], ("sweep", BACKGROUND, f"{score} {part}"))
            return f"{sum(numbers) / len(numbers):.3f}"

        lines.append([row.title, mean("plain", "upright"), mean("plain", row.turned), mean("plain-turned", row.turned)])
        lines[-1] += [mean(row.ours, "upright"), mean(row.ours, row.turned)]
    return markdown(_HEAD, lines)


def picture(row: Row = ROWS[0]) -> None:
    """The three networks at each angle."""
    cells, models = _cells(row), row.study.models
    titles = {name: "ours" if name == row.ours else models[name].title for name in cells}
    draw_sweep(
        {title: mean_sweep(cells[name], row.study.scores[0]) for name, title in titles.items()},
        PICTURE,
        title=f"{row.title.split(',')[0]}, test set, mean of {len(cells[row.ours])} seeds",
        colours={title: models[name].colour for name, title in titles.items()},
    )


if __name__ == "__main__":
    into_card(README, "three networks", table().splitlines())
    picture()
