"""Pictures of accuracy against cost, one per data set: time of a step of training, and parameters."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any

from benchmarks.cells import BACKGROUND, Cells, Study, Task, shown_tasks, values
from monai_sre.evaluation.figures import new_figure

#: Distinct to colour-blind eyes (Okabe and Ito, 2008), and with the markers in grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = "osD^vPX*<>hp"


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of points ``(cost, score)``, the names of those that none beats at its cost or less, by rising cost.

    Example:
        >>> front({"a": (1.0, 0.7), "b": (2.0, 0.6), "c": (2.0, 0.9)})
        ['a', 'c']
    """
    kept: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not kept or points[name][1] > points[kept[-1]][1]:
            kept.append(name)
    return kept


def pictures(
    study: Study,
    chosen: Mapping[tuple[Task, str], Cells],
    times: Callable[[str], Mapping[str, str]],
) -> list[str]:
    """Draw each data set's table with most networks, and return the lines that show the pictures.

    Args:
        study: of classification.
        chosen: cells of each task and model.
        times: of a data set, the time of a step of each model over that of the plain network; may lack some, or be empty.
    """
    tasks: dict[Task, dict[str, Cells]] = {}
    for (task, model), members in chosen.items():
        tasks.setdefault(task, {})[model] = members
    lines: list[str] = []
    for task in shown_tasks(tasks, set(study.models)).values():
        costs = {name: float(share) for name, share in times(task.dataset).items() if share and name in tasks[task]}
        if len(costs) > 2:
            lines += [f"![{task}]({_draw(study, task, tasks[task], costs)})", ""]
    title = ["## Accuracy against cost", "", "The front joins networks that no other beats at their cost or less.", ""]
    return [*title, *lines] if lines else []


def _draw(study: Study, task: Task, found: Mapping[str, Cells], times: Mapping[str, float]) -> str:
    """The picture of one task; its file's name."""
    score = study.scores[1]
    path = study.results / f"front_{task.dataset}.png"
    figure = new_figure(9.6, 5.6)
    if figure is None:
        return path.name
    turned = {name: values(found[name], ("sweep", BACKGROUND, f"{score} mean")) for name in times}
    panels: dict[str, Mapping[str, float]] = {
        "time of a step of training, plain = 1": times,
        "parameters in millions": {name: found[name][0]["parameters"] / 1e6 for name in times},
    }
    looks = dict(zip(study.models, zip(cycle(_COLOURS), cycle(_MARKERS), strict=False), strict=False))
    axes: Any
    for axes, (label, costs) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        points = {name: (costs[name], statistics.mean(turned[name])) for name in turned}
        best = [points[name] for name in front(points)]
        axes.step(*zip(*best, strict=True), where="post", color="0.6", linewidth=5, alpha=0.4, label="front", zorder=0)
        for name, (cost, mean) in points.items():
            spread = statistics.stdev(turned[name]) if len(turned[name]) > 1 else 0.0
            colour, marker = looks[name]
            title = f"{study.models[name].title} ({len(turned[name])})"
            axes.errorbar(cost, mean, spread, fmt=marker, color=colour, markersize=8, capsize=3, label=title)
        axes.set_xscale("log", subs=[2, 5])
        for ticks in ("major", "minor"):
            getattr(axes.xaxis, f"set_{ticks}_formatter")("{x:g}")
        axes.set_xlabel(label, fontsize=11)
        axes.grid(alpha=0.4)
    figure.axes[0].set_ylabel(f"{score} rotated, test set", fontsize=11)
    figure.suptitle(f"{task}: mean and standard deviation over the seeds (their number in brackets)", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
    return path.name
