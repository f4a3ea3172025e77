"""Tables and pictures from the cells of :mod:`benchmarks.accuracy`."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy_models import BUNDLES, Model, bundle_of
from monai_sre.data import dataset_info
from monai_sre.evaluation import SweepResult, draw_sweep

RESULTS = Path(__file__).with_name("results")
#: Sweeps of the bundles' own weights, by data set and protocol.
SHIPPED = RESULTS / "accuracy_shipped.json"
#: Of a task, model and learning rate: its seeds.
Cells = list[dict[str, Any]]


class Task(NamedTuple):
    """What one table is of: a data set and the epochs of its trainings."""

    dataset: str
    epochs: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.epochs} epochs"


#: How a column is read from a cell.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "final training loss": ("final_train_loss",),
    "validation AUC": ("validation", "auc"),
    "AUC upright": ("sweep", "clean", "AUC upright"),
    "ACC upright": ("sweep", "clean", "ACC upright"),
    "ACC rotated, `clean`": ("sweep", "clean", "ACC mean"),
    "ACC rotated, `paper`": ("sweep", "paper", "ACC mean"),
    "AUC rotated, `clean`": ("sweep", "clean", "AUC mean"),
    "consistency, `clean`": ("sweep", "clean", "consistency"),
}
_LOSS, _VALIDATION, _, _UPRIGHT, _CLEAN, _PAPER, _, _CONSISTENCY = _COLUMNS
#: Share of the commonest class in the test set: the ACC of a network that always gives the same answer.
COMMONEST = {"breastmnist": 114 / 156, "pneumoniamnist": 390 / 624, "adrenalmnist3d": 229 / 298}
_OURS = "harmonic"
#: How tables call the metrics by which epochs and learning rates are chosen.
_TITLES = {"auc": "AUC", "dice": "Dice"}
#: Models that train as another does.
_TRAINED_LIKE = {"plain-turned": "plain", "plain-averaged": "plain"}


@dataclass(frozen=True)
class Target:
    """Something that was asked of our network: ``what`` it is, the least ``gain`` over a peer's figure, its own column.

    Args:
        what: how the table says it.
        column: of our network.
        peers: models to compare with, the first that is there; none: the figure itself counts.
        gain: the least difference (the greatest for a loss), or the least figure where there is no peer.
        peer_column: of the peer, where it is another.
    """

    what: str
    column: str
    peers: tuple[str, ...]
    gain: float
    peer_column: str = ""


_PLAIN, _TURNED, _OFFICIAL = ("plain", "plain-wide"), ("plain-turned",), ("official", "bands")
TARGETS = (
    Target("final training loss at most 0.1 above plain", _LOSS, _PLAIN, 0.1),
    Target("rotated above plain trained with rotations", _CLEAN, _TURNED, 0.0),
    Target("rotated at least 4 points above the published network", _CLEAN, _OFFICIAL, 0.04),
    Target("rotated above GMR-Conv's own network", _CLEAN, ("gmr",), 0.0),
    Target("rotated at least 10 points above plain", _CLEAN, _PLAIN, 0.1),
    Target("upright at most a point below plain trained with rotations", _UPRIGHT, _TURNED, -0.01),
    Target("rotated at most a point below its own upright", _CLEAN, (_OURS,), -0.01, _UPRIGHT),
    Target("the same with the `paper` protocol: 2 points", _PAPER, (_OURS,), -0.02, _UPRIGHT),
    Target("consistency at least 0.9", _CONSISTENCY, (), 0.9),
)


def write(models: dict[str, Model], cells: Path, step: float) -> None:
    """``accuracy.md``, the tables of the bundles' model cards, and one picture a data set in the folder of its card."""
    titles = {name: model.title for name, model in models.items()}
    tried = read_cells(cells, list(titles))
    chosen = choose(tried)
    lines = [
        "# Accuracy under rotation",
        "",
        "Mean ± standard deviation over seeds; the epoch is selected by validation AUC; ACC is that of the test set. No",
        "rotation in training but where the row says so (uniform, bilinear; in 2-D filled with each image's background).",
        f"Rotated: mean over the rotations by multiples of {step} degrees (in 3-D about each axis), the identity once.",
        "`clean`: bilinear, filled with each image's background. `paper`: nearest, filled with 0 after normalisation.",
        "One recipe for all (the bundles' `train.json`). Up to three learning rates are tried with seed 0, one or two of",
        "them with all seeds (below), and of these that of the best mean validation AUC is taken; the wide networks of ours,",
        "the trainings of 100 epochs and those of images of 64 pixels a side (`_64`) have that of the same network in the",
        "bundles' width, in 40 epochs, or on images of 28 pixels, alone.",
        "Another package's own network is built and initialised by that package and runs on this project's engine, which",
        "takes the same steps of training, faster (`tests/test_peer_networks.py`).",
        "Epochs: the published recipe has 100; fewer are what two cores had time for, and where the loss is high more help.",
        "Time and memory: of a step of training, as shares of the plain network's (`accuracy_costs.json`; one thread of a",
        "CPU). Those of the packages' networks are theirs on our engine; `speed.md` has those of their own code.",
        "Loss and validation of the averaged network are those of the network before averaging.",
        "Consistency: share of the images whose decision is the same under all rotations and flips of the sweep.",
    ]
    tasks: dict[Task, dict[str, Cells]] = {}
    for (task, model), members in chosen.items():
        tasks.setdefault(task, {})[model] = members
    shown = _shown(tasks, {name for name, model in models.items() if model.colour})
    for task, found in tasks.items():
        name = task.dataset.split("_")[0]
        info = dataset_info(name)
        table = _table(found, titles, _costs(task.dataset, info.spatial_dims))
        table += [_blind(COMMONEST[name])] if name in COMMONEST else []
        lines += ["", f"## {task}", "", *table]
        if shown[task.dataset] != task:
            continue
        docs = bundle_of(info.spatial_dims) / "docs"
        into_card(docs / "README.md", task.dataset, [f"{task.epochs} epochs:", "", *table])
        drawn = [model for model in found if models[model].colour]
        if len(drawn) > 1:
            counts = [len(found[model]) for model in drawn]
            few, most = min(counts), max(counts)
            seeds = "1 seed" if most == 1 else f"mean of {most if few == most else f'{few} to {most}'} seeds"
            picture = docs / f"rotation_{task.dataset}.png"
            lines += ["", f"![{task}](../../{picture.relative_to(BUNDLES.parent).as_posix()})"]
            draw_sweep(
                {titles[model]: mean_sweep(found[model]) for model in drawn},
                picture,
                title=f"{task}, test set, protocol clean, {seeds}",
                colours={titles[model]: models[model].colour for model in drawn},
            )
    if SHIPPED.is_file():
        sweeps = shipped_table(json.loads(SHIPPED.read_text()), ("ACC", "AUC"))
        lines += ["", "## The bundles' weights, every 10 degrees, in 3-D every 30", "", *sweeps]
    lines += ["", *_targets(chosen), "", *rates_table(tried, titles, chosen)]
    (RESULTS / "accuracy.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read_cells(folder: Path, order: list[str]) -> dict[tuple[Task, str, float], Cells]:
    """All cells of a folder by task, model (in this order) and learning rate."""
    tried: dict[tuple[Task, str, float], Cells] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        task = Task(cell["dataset"], cell["epochs"])
        tried.setdefault((task, cell["model"], cell["learning_rate"]), []).append(cell)
    if not tried:
        raise SystemExit(f"no cell is filled yet in {folder.name}: see --help")
    return dict(sorted(tried.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][2])))


def _shown(tasks: dict[Task, dict[str, Cells]], curves: set[str]) -> dict[str, Task]:
    """Of each data set, the task that its card shows: the most models with a curve, then the most epochs."""
    fullest = sorted(tasks, key=lambda task: (len(curves & tasks[task].keys()), task.epochs))
    return {task.dataset: task for task in fullest}


def _table(found: dict[str, Cells], titles: dict[str, str], costs: dict[str, tuple[float, float]]) -> list[str]:
    """Table of a data set's models."""
    lines = [
        row("network", "parameters", "time", "memory", "learning rate", "seeds", *_COLUMNS),
        row(*["---"] * (6 + len(_COLUMNS))),
    ]
    for model, members in found.items():
        cost = [f"{share:.2f}" for share in costs.get(_TRAINED_LIKE.get(model, model), ())] or ["", ""]
        head = [titles[model], f"{members[0]['parameters'] / 1e6:.2f} M", *cost, f"{members[0]['learning_rate']:g}"]
        lines.append(row(*head, str(len(members)), *(spread(_values(members, name)) for name in _COLUMNS)))
    return lines


def _blind(commonest: float) -> str:
    """Row of a network that gives one answer to all images."""
    scores = {"ACC": f"{commonest:.3f}", "AUC": "0.500", "consistency": "1.000"}
    return row(
        "the commonest class, always", *[""] * 5, *(scores.get(re.split(r"[ ,]", name)[0], "") for name in _COLUMNS)
    )


def _costs(dataset: str, spatial_dims: int) -> dict[str, tuple[float, float]]:
    """Of each model measured on such images, time and memory of a step of training over those of the plain network."""
    path = RESULTS / "accuracy_costs.json"
    measured = {2: "breastmnist", 3: "adrenalmnist3d"}[spatial_dims] + dataset.removeprefix(dataset.split("_")[0])
    task = json.loads(path.read_text()).get(measured) if path.is_file() else None
    if task is None:
        return {}
    times, peaks = task["times"], task["peaks"]
    return {
        name: (times[name]["ms"] / times["plain"]["ms"], peaks[name]["mib"] / peaks["plain"]["mib"]) for name in times
    }


def shipped_table(found: dict[str, dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Of each data set, what both protocols' sweeps of a bundle's own weights say."""
    keys = [f"{metric} {part}" for metric in metrics for part in ("upright", "mean", "min")] + ["consistency"]
    head = ["data", "protocol", *(key.replace("min", "least") for key in keys)]
    return [row(*head), row(*["---"] * len(head))] + [
        row(dataset, f"`{protocol}`", *(f"{sweep[key]:.4f}" for key in keys))
        for dataset, protocols in found.items()
        for protocol, sweep in protocols.items()
    ]


def into_card(card: Path, dataset: str, table: list[str]) -> None:
    """Put a table between its marks in a model card that has them."""
    text, begin, end = card.read_text(), f"<!-- accuracy of {dataset} -->\n", f"<!-- end of {dataset} -->"
    if begin in text:
        before, rest = text.split(begin)
        card.write_text(before + begin + "\n" + "\n".join(table) + "\n\n" + end + rest.split(end)[1])


def choose(tried: dict[tuple[Task, str, float], Cells], metric: str = "auc") -> dict[tuple[Task, str], Cells]:
    """Of each task and model, the learning rate that validates best on average, among those swept with most seeds."""
    seeds: dict[tuple[Task, str], int] = {}
    for (task, model, _), members in tried.items():
        swept = sum("sweep" in member for member in members)
        seeds[task, model] = max(swept, seeds.get((task, model), 1))
    best: dict[tuple[Task, str], Cells] = {}
    for (task, model, _), members in tried.items():
        if sum("sweep" in member for member in members) < seeds[task, model]:
            continue
        rival = best.get((task, model))
        if rival is None or _validation(members, metric) > _validation(rival, metric):
            best[task, model] = members
    return best


def _validation(members: Cells, metric: str) -> float:
    return statistics.mean(member["validation"][metric] for member in members)


def _targets(chosen: dict[tuple[Task, str], Cells]) -> list[str]:
    lines = [
        "## What was asked of the network with energies",
        "",
        "Means of the table above; `published`: SRE-Conv's own network where it was trained, else its kernel in our network.",
        "",
        row("data", "target", "ours", "the other", "difference", "reached"),
        row(*["---"] * 6),
    ]
    for task, model in chosen:
        if model != _OURS:
            continue
        ours = chosen[task, model]
        for target in TARGETS:
            figure = statistics.mean(_values(ours, target.column))
            peer = next((name for name in target.peers if (task, name) in chosen), None)
            if target.peers and peer is None:
                continue
            other = 0.0
            if peer is not None:
                other = statistics.mean(_values(chosen[task, peer], target.peer_column or target.column))
            gain = figure - other
            reached = gain <= target.gain if target.column == _LOSS else gain >= target.gain - 1e-9
            against = [f"{other:.3f}", f"{gain:+.3f}"] if peer is not None else ["", ""]
            lines.append(row(str(task), target.what, f"{figure:.3f}", *against, "yes" if reached else "**no**"))
        turned = chosen.get((task, "plain-turned"))
        if turned is not None:
            share = ours[0]["parameters"] / turned[0]["parameters"]
            what = "less than half of plain's parameters"
            lines.append(row(str(task), what, f"{share:.3f}", "", "", "yes" if share < 0.5 else "**no**"))
    return lines


def rates_table(
    tried: dict[tuple[Task, str, float], Cells],
    titles: dict[str, str],
    chosen: dict[tuple[Task, str], Cells],
    metric: str = "auc",
) -> list[str]:
    """Title and table of the learning rates tried where there are several; else nothing."""
    rates = Counter((task, model) for task, model, _ in tried)
    name = f"validation {_TITLES[metric]}"
    lines = [
        "## Learning rates",
        "",
        row("data", "network", "learning rate", "seeds", _LOSS, f"{name} of seed 0", name, "in the table"),
        row(*["---"] * 8),
    ]
    for (task, model, rate), members in tried.items():
        if rates[task, model] > 1:
            scores = [member["validation"][metric] for member in members]
            shown = [spread(_values(members, _LOSS)), f"{scores[0]:.3f}", spread(scores)]
            shown.append("yes" if members is chosen.get((task, model)) else "")
            lines.append(row(str(task), titles[model], f"{rate:g}", str(len(members)), *shown))
    return lines if len(lines) > 4 else []


def _values(members: Cells, column: str) -> list[float]:
    values = []
    for member in members:
        value: Any = member
        for key in _COLUMNS[column]:
            value = value[key]
        values.append(float(value))
    return values


def row(*parts: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(parts)} |"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of the seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def mean_sweep(members: Cells, metrics: tuple[str, ...] = ("ACC", "AUC")) -> SweepResult:
    """The `clean` sweep, averaged over seeds."""
    sweeps = [member["sweep"]["clean"] for member in members]
    rows = []
    for group in zip(*(sweep["rows"] for sweep in sweeps), strict=True):
        mean = {metric: statistics.mean(each[metric] for each in group) for metric in metrics}
        rows.append({"transformation": group[0]["transformation"], **mean})
    return SweepResult(rows, statistics.mean(sweep["consistency"] for sweep in sweeps))
