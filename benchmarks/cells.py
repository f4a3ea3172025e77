"""Trainings in cells (data set x model x learning rate x epochs x seed), each a JSON file, and the tables made of them.

``fill`` trains where the work folder holds no complete training (it resumes an interrupted one), evaluates the network of
the best validation epoch under the rotation sweep, and stores the cell at once, with what each test image was given in an
npz beside it; a cell that has both is skipped. Each learning rate and number of epochs has cells of its own, and
``--validation_only`` leaves the evaluation out until a rate is chosen: the same command without it adds the sweep.
``shipped`` sweeps the bundles' own weights. ``report`` turns all cells into tables and pictures; a model enters them with
the learning rate that validates best, the mean of its seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import intervals
from benchmarks.bundles import (
    BUNDLES,
    HIPPOCAMPUS,
    VESSELS,
    Model,
    evaluate,
    images_of,
    source_of,
    summary,
    train,
    training_entries,
    upright_of,
)
from benchmarks.tables import RESULTS, markdown, read_json
from monai_sre.evaluation import SweepResult, draw_sweep
from monai_sre.evaluation.transformations import PROTOCOLS
from monai_sre.files import write_arrays, write_json

BACKGROUND, ZERO = PROTOCOLS
#: What the protocols' names mean, once per page.
PROTOCOL_WORDS = (
    f"`{BACKGROUND}`: images are rotated by bilinear interpolation, and their corners filled with each image's background.",
    f"`{ZERO}`: the nearest pixel, and zeros after normalisation (mid-grey as a rule), as SRE-Conv was published.",
)
#: What the tables say of single images' probabilities, likewise.
IMAGE_WORDS = (
    "ECE: expected calibration error, 15 bins. Spread over angles: the standard deviation of an image's probability over",
    "the rotations, mean over the images.",
)
#: Of a task, model and learning rate: its seeds.
Cells = list[dict[str, Any]]
#: How tables call the metrics by which epochs and learning rates are chosen.
_TITLES = {"auc": "AUC", "dice": "Dice"}
LOSS = "final training loss"


class Task(NamedTuple):
    """What one table is of: a data set and the epochs of its trainings."""

    dataset: str
    epochs: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.epochs} epochs"


def sweep_columns(*scores: str) -> dict[str, tuple[str, ...]]:
    """How columns are read from a cell: of the first score and the second, and the consistency."""
    first, second = scores
    return {
        f"{second} upright": ("sweep", BACKGROUND, f"{second} upright"),
        f"{first} upright": ("sweep", BACKGROUND, f"{first} upright"),
        f"{first} rotated, `{BACKGROUND}`": ("sweep", BACKGROUND, f"{first} mean"),
        f"{first} rotated, `{ZERO}`": ("sweep", ZERO, f"{first} mean"),
        f"{second} rotated, `{BACKGROUND}`": ("sweep", BACKGROUND, f"{second} mean"),
        f"consistency, `{BACKGROUND}`": ("sweep", BACKGROUND, "consistency"),
    }


@dataclass(frozen=True)
class Study:
    """Models that are trained and compared.

    Args:
        name: of the page of tables and of the folder of cells.
        models: by name, in the order of the tables.
        metric: of the validation set, by which epochs and learning rates are chosen: ``"auc"`` or ``"dice"``.
        scores: of the sweep, the one that pictures show first.
        intro: first lines of the page.
        shipped: data sets that the bundles' own weights were trained on.
        split: what the networks are evaluated on.
        step: degrees between the rotations of the sweep.
        swept: how many images of the test set are swept, where those are fewer than all; the scores upright are of all.
        epochs: of data sets whose trainings are shorter than the recipe says.
        results: folder of the page and of the cells.
        ours: the model that the others are compared with.
        more_columns: of a data set, further columns behind the parameters: texts by model.
        more_rows: of a data set and the names of the columns, further rows.
        appendix: further lines from the chosen cells.
    """

    name: str
    models: dict[str, Model]
    metric: str
    scores: tuple[str, str]
    intro: Sequence[str] = ()
    shipped: tuple[str, ...] = ()
    split: str = "test"
    step: float = 30
    swept: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    results: Path = RESULTS
    ours: str = "harmonic"
    more_columns: Callable[[str], dict[str, dict[str, str]]] = lambda _: {}
    more_rows: Callable[[str, Sequence[str]], Iterable[Sequence[str]]] = lambda *_: ()
    appendix: Callable[[dict[tuple[Task, str], Cells]], list[str]] = lambda _: []

    @property
    def cells(self) -> Path:
        """Folder of the cells."""
        return self.results / self.name

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """How the columns of its tables are read from a cell."""
        validation = {f"validation {_TITLES[self.metric]}": ("validation", self.metric)}
        return {LOSS: ("final_train_loss",), **validation, **sweep_columns(*self.scores)}


def cell_name(dataset: str, model: str, rate: float, epochs: int, seed: int) -> str:
    """The name of a cell's files, without their ending."""
    return f"{dataset}_{model}_lr{rate:g}_{epochs}_{seed}"


def name_of(cell: dict[str, Any]) -> str:
    """The name of a cell that is filled, which its training has too."""
    return cell_name(*(cell[key] for key in ("dataset", "model", "learning_rate", "epochs", "seed")))


def images_of_seeds(study: Study, members: Cells) -> list[intervals.Images] | None:
    """What each seed's cell holds of single images; None where one holds nothing, or more than two classes."""
    found = [load_images(study.cells / f"{name_of(member)}.npz") for member in members]
    known = [images for images in found if images is not None and "log_probabilities" not in images]
    return known if len(known) == len(members) > 0 else None


@cache
def load_images(path: Path) -> intervals.Images | None:
    """The arrays of a cell's npz; None where there is none."""
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


def fill(study: Study, chosen: argparse.Namespace) -> None:
    """Train and evaluate one cell, unless its JSON and its images exist."""
    source = source_of(chosen.dataset, chosen.dataset_dir, chosen.size)
    averaged = study.models[chosen.model].averaged
    trained = averaged or chosen.model
    model, recipe = study.models[trained], source.recipe
    rate = chosen.learning_rate or recipe["learning_rate"]
    epochs = chosen.epochs or study.epochs.get(source.name) or recipe["max_epochs"]
    entries = training_entries(source, model, epochs)
    names = [
        cell_name(source.name, model, rate, entries["max_epochs"], chosen.seed) for model in (chosen.model, trained)
    ]
    cell = study.cells / f"{names[0]}.json"
    if cell.is_file() and (chosen.validation_only or cell.with_suffix(".npz").is_file()):
        print(f"{cell.name} exists")
        return
    work = Path(chosen.work) / names[1]
    train(source, model, {"learning_rate": rate, "seed": chosen.seed, **entries}, work)
    content = {"dataset": source.name, "model": chosen.model, "seed": chosen.seed, "learning_rate": rate}
    content |= summary(work, f"val_{study.metric}")
    content |= {"num_train": entries["num_train"]} if "num_train" in entries else {}
    if not chosen.validation_only:
        folder = work / f"evaluation_{chosen.model}"
        options = {"split": study.split, "step": study.step, "ckpt_dir": str(work / "models")}
        if study.swept:
            options |= {"num_test": study.swept, **study.models[chosen.model].sweep}
        content |= evaluate(source, model, folder, bool(averaged), **options)
        images = images_of(folder)
        if study.swept:
            options = {"split": study.split, "ckpt_dir": options["ckpt_dir"], "sweep": False}
            folder = folder.with_name(f"upright_{chosen.model}")
            content |= evaluate(source, model, folder, bool(averaged), **options)
            images |= upright_of(folder)
        cell.with_suffix(".npz").unlink(missing_ok=True)  # of an earlier training
    store(cell, content)
    if not chosen.validation_only:
        write_arrays(cell.with_suffix(".npz"), images)


def shipped(study: Study, chosen: argparse.Namespace) -> None:
    """Sweep the bundles' weights with the steps that their ``evaluate.json`` has."""
    found = {}
    for dataset in study.shipped:
        source = source_of(dataset, chosen.dataset_dir)
        found[dataset] = evaluate(source, Model("the bundle's"), Path(chosen.work) / f"shipped_{dataset}")
    store(study.results / f"{study.name}_shipped.json", found)


def report(study: Study) -> None:
    """Write the page, the tables of the bundles' model cards, and one picture per data set beside its card."""
    models = study.models
    tried = read_cells(study.cells, list(models))
    chosen = {key: swept for key, members in choose(tried, study.metric).items() if (swept := _swept(members))}
    lines = list(study.intro)
    tasks: dict[Task, dict[str, Cells]] = {}
    for (task, model), members in chosen.items():
        tasks.setdefault(task, {})[model] = members
    shown = shown_tasks(tasks, {name for name, model in models.items() if model.colour})
    for task, found in tasks.items():
        table = table_of(study, task.dataset, found)
        lines += ["", f"## {task}", "", *table, *differences_table(study, found)]
        if shown[task.dataset] != task:
            continue
        docs = source_of(task.dataset if task.dataset == VESSELS else task.dataset.split("_")[0]).bundle / "docs"
        words = [*(intervals.WORDS if "[" in "".join(table) else ()), *(IMAGE_WORDS if "ECE" in table[0] else ())]
        into_card(docs / "README.md", task.dataset, [f"{task.epochs} epochs:", "", *table, "", *words])
        drawn = {models[model].label: members for model, members in found.items() if models[model].colour}
        if len(drawn) > 1:
            picture = docs / f"rotation_{task.dataset.lower()}.png"
            lines += ["", f"![{task}](../../{picture.relative_to(BUNDLES.parent).as_posix()})"]
            draw_sweep(
                {title: mean_sweep(members, study.scores[0]) for title, members in drawn.items()},
                picture,
                title=f"{task}, {study.split} set, filled with the background, {seeds_text(drawn.values())}",
                colours={model.label: model.colour for model in models.values() if model.colour},
            )
    path = study.results / f"{study.name}_shipped.json"
    if path.is_file():
        sweeps = shipped_table(read_json(path), study.scores)
        lines += ["", "## The bundles' weights, every 10 degrees, in 3-D every 30", "", *sweeps]
    lines += ["", *study.appendix(chosen), *rates_table(study, tried, chosen)]
    (study.results / f"{study.name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def read_cells(folder: Path, order: list[str]) -> dict[tuple[Task, str, float], Cells]:
    """All cells of a folder by task, model (in this order) and learning rate."""
    tried: dict[tuple[Task, str, float], Cells] = {}
    for path in sorted(folder.glob("*.json")):
        cell = read_json(path)
        task = Task(cell["dataset"], cell["epochs"])
        tried.setdefault((task, cell["model"], cell["learning_rate"]), []).append(cell)
    if not tried:
        raise SystemExit(f"no cell is filled yet in {folder.name}: see --help")
    return dict(sorted(tried.items(), key=lambda item: (item[0][0], order.index(item[0][1]), item[0][2])))


def shown_tasks(tasks: dict[Task, dict[str, Cells]], curves: set[str]) -> dict[str, Task]:
    """Of each data set, the task that its card shows: the most models with a curve, then the most epochs."""
    fullest = sorted(tasks, key=lambda task: (len(curves & tasks[task].keys()), task.epochs))
    return {task.dataset: task for task in fullest}


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


def _swept(members: Cells) -> Cells:
    """The seeds that were evaluated; all of them as they are, where they are all."""
    found = [member for member in members if "sweep" in member]
    return members if len(found) == len(members) else found


def _validation(members: Cells, metric: str) -> float:
    return statistics.mean(member["validation"][metric] for member in members)


def table_of(study: Study, dataset: str, found: dict[str, Cells]) -> list[str]:
    """Table of a data set's models."""
    more = study.more_columns(dataset)
    images = {model: images_of_seeds(study, members) for model, members in found.items()}
    last = image_columns(images)
    head = ["network", "parameters", *more, "learning rate", "seeds", *study.columns, *last]
    rows = []
    for model, members in found.items():
        first = [
            study.models[model].title,
            parameters_text(members),
            *(texts.get(model, "") for texts in more.values()),
        ]
        first += [f"{members[0]['learning_rate']:g}", str(len(members))]
        shown = [_cell(members, path) + bracket(images[model], path) for path in study.columns.values()]
        rows.append([*first, *shown, *(texts.get(model, "") for texts in last.values())])
    return markdown(head, [*rows, *study.more_rows(dataset, head)]).splitlines()


def figure_of(path: tuple[str, ...]) -> intervals.Figure | None:
    """The figure that a column shows, of which single images tell an interval; None of other columns.

    Example:
        >>> figure_of(("sweep", BACKGROUND, "Dice random mean"))[:2], figure_of(("final_train_loss",))
        (('Dice', 'random mean'), None)
    """
    if path[0] == "upright" and path[1].startswith("Dice"):
        return intervals.Figure(path[1], "upright", protocol="")
    if path[0] != "sweep" or " of " in path[2]:
        return None
    metric, _, part = path[2].partition(" ")
    return intervals.Figure(metric, part, path[1]) if metric in ("ACC", "AUC", "Dice", "consistency") else None


def shown_figure(path: tuple[str, ...], images: list[intervals.Images]) -> intervals.Figure | None:
    """The same of the columns whose intervals the tables show, and that these cells can tell."""
    figure = figure_of(path)
    if figure is None or figure.protocol == ZERO:
        return None
    if not figure.protocol:
        return figure if "upright" in images[0] else None
    if figure.metric == "consistency" and "log_odds" not in images[0]:
        return None
    return figure if _is_swept(figure, images[0]["transformations"].tolist()) else None


def _is_swept(figure: intervals.Figure, transformations: Sequence[str]) -> bool:
    """Whether a sweep has transformations of a figure's part; the identity alone is no mean over rotations."""
    return len(intervals.chosen_places(transformations, figure.part)) > (figure.part == "mean")


def bracket(images: list[intervals.Images] | None, path: tuple[str, ...]) -> str:
    """The interval behind a figure; nothing where there is none."""
    figure = None if images is None else shown_figure(path, images)
    if images is None or figure is None:
        return ""
    return intervals.interval(images, figure).bracket()


def image_columns(images: dict[str, list[intervals.Images] | None]) -> dict[str, dict[str, str]]:
    """Calibration and the spread over angles of classifying models that hold images: texts by model; none: no columns."""
    known = {name: found for name, found in images.items() if found is not None and "log_odds" in found[0]}
    if not known:
        return {}
    columns: dict[str, Callable[[intervals.Images], float]] = {
        "ECE upright": intervals.calibration,
        "ECE rotated": partial(intervals.calibration, part="mean"),
        "spread over angles": intervals.spread_over_angles,
    }
    return {
        title: {name: spread([call(one) for one in found]) for name, found in known.items()}
        for title, call in columns.items()
    }


def difference_text(ours: list[intervals.Images], others: list[intervals.Images], figure: intervals.Figure) -> str:
    """Our figure less another network's, with its interval, and whether that holds zero."""
    drawn = intervals.difference(ours, others, figure)
    return drawn.text("+.3f") + (" level" if drawn.word() == "level" else "")


def differences_table(study: Study, found: dict[str, Cells]) -> list[str]:
    """Our figures less those of each other model, with intervals of the paired differences; level where one holds zero."""
    images = {model: images_of_seeds(study, members) for model, members in found.items()}
    ours, known = images.pop(study.ours, None), {name: one for name, one in images.items() if one is not None}
    if ours is None or not known:
        return []
    figures = {title: figure for title, path in study.columns.items() if (figure := shown_figure(path, ours))}
    head = [f"{study.models[study.ours].title}, less", *figures]
    rows = []
    for name, others in known.items():
        shown = []
        for title, figure in figures.items():
            shown.append(difference_text(ours, others, figure) if shown_figure(study.columns[title], others) else "")
        rows.append([study.models[name].title, *shown])
    return ["", "Differences, of the same test images:", "", *markdown(head, rows).splitlines()]


def rates_table(
    study: Study, tried: dict[tuple[Task, str, float], Cells], chosen: dict[tuple[Task, str], Cells]
) -> list[str]:
    """Title and table of what validation chose from: several learning rates, and networks that were not swept; or nothing."""
    rates = Counter((task, model) for task, model, _ in tried)
    name = f"validation {_TITLES[study.metric]}"
    head = ["data", "network", "learning rate", "seeds", LOSS, f"{name} of seed 0", name, "in the table"]
    rows = []
    for (task, model, rate), members in tried.items():
        if rates[task, model] > 1 or "sweep" not in members[0]:
            scores = [member["validation"][study.metric] for member in members]
            shown = [spread(values(members, ("final_train_loss",))), f"{scores[0]:.3f}", spread(scores)]
            shown.append("yes" if members is chosen.get((task, model)) else "")
            rows.append([str(task), study.models[model].title, f"{rate:g}", str(len(members)), *shown])
    return ["## Learning rates", "", *markdown(head, rows).splitlines()] if rows else []


def shipped_table(found: dict[str, dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Of each data set, what both protocols' sweeps of a bundle's own weights say."""
    keys = [f"{metric} {part}" for metric in metrics for part in ("upright", "mean", "min")] + ["consistency"]
    head = ["data", "protocol", *(key.replace("min", "least") for key in keys)]
    rows = [
        [dataset, f"`{protocol}`", *(f"{sweep[key]:.4f}" for key in keys)]
        for dataset, content in found.items()
        for protocol, sweep in content["sweep"].items()
    ]
    return markdown(head, rows).splitlines()


def into_card(card: Path, dataset: str, table: list[str]) -> None:
    """Put a table between its marks in a model card that has them."""
    text, begin, end = card.read_text(), f"<!-- accuracy of {dataset} -->\n", f"<!-- end of {dataset} -->"
    if begin in text:
        before, rest = text.split(begin)
        card.write_text(before + begin + "\n" + "\n".join(table).rstrip() + "\n\n" + end + rest.split(end)[1])


def store(cell: Path, content: dict[str, Any]) -> None:
    """Write a cell at once or not at all."""
    cell.parent.mkdir(parents=True, exist_ok=True)
    write_json(cell, content)
    print(f"{cell.name} written")


def values(members: Cells, path: tuple[str, ...]) -> list[float]:
    """One number of each seed's cell."""
    found = []
    for member in members:
        value: Any = member
        for key in path:
            value = value[key]
        found.append(float(value))
    return found


def _cell(members: Cells, path: tuple[str, ...]) -> str:
    """What a table shows of one number of each seed's cell; nothing where it was not measured."""
    figure = figure_of(path)
    if figure is not None and figure.protocol:
        rows = members[0].get("sweep", {}).get(figure.protocol, {}).get("rows", [])
        if rows and not _is_swept(figure, [row["transformation"] for row in rows]):
            return ""
    try:
        return spread(values(members, path))
    except KeyError:
        return ""


def spread(numbers: list[float]) -> str:
    """Mean ± standard deviation of the seeds.

    Example:
        >>> spread([0.5, 0.6]), spread([0.25])
        ('0.550 ± 0.071', '0.250')
    """
    deviation = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.3f}{deviation}"


def parameters_text(members: Cells) -> str:
    """The number of parameters in millions."""
    millions = members[0]["parameters"] / 1e6
    return f"{millions:.3f} M" if millions < 0.1 else f"{millions:.2f} M"


def seeds_text(groups: Iterable[Cells]) -> str:
    """How many seeds a picture's curves are means of."""
    counts = [len(members) for members in groups]
    few, most = min(counts), max(counts)
    return "1 seed" if most == 1 else f"mean of {most if few == most else f'{few} to {most}'} seeds"


def mean_sweep(members: Cells, metric: str) -> SweepResult:
    """One metric of the sweep that fills with the background, averaged over seeds."""
    sweeps = [member["sweep"][BACKGROUND] for member in members]
    rows = [
        {"transformation": group[0]["transformation"], metric: statistics.mean(each[metric] for each in group)}
        for group in zip(*(sweep["rows"] for sweep in sweeps), strict=True)
    ]
    return SweepResult(rows, statistics.mean(sweep["consistency"] for sweep in sweeps))


def main(
    study: Study,
    about: str,
    write: Callable[[Study], None] = report,
    filler: Callable[[Study, argparse.Namespace], None] = fill,
    **more: Callable[[argparse.Namespace], None],
) -> None:
    """The command line of a study: ``fill``, ``shipped`` where it has such sets, ``report``, and further commands."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    filling = commands.add_parser("fill", help="train and evaluate one cell")
    only = study.shipped[0] if study.shipped in ((VESSELS,), (HIPPOCAMPUS,)) else None
    filling.add_argument("--dataset", required=only is None, default=only)
    filling.add_argument("--size", type=int, default=28, help="of MedMNIST's files: 28 (resized to 32) or 64")
    filling.add_argument("--model", required=True, choices=study.models)
    filling.add_argument("--seed", type=int, required=True)
    filling.add_argument("--epochs", type=int, help=f"others than the recipe's {study.epochs or ''}")
    filling.add_argument("--learning_rate", type=float, help="another than the recipe's")
    filling.add_argument("--validation_only", action="store_true", help="no sweep: to choose a learning rate")
    calls: dict[str, Callable[[argparse.Namespace], None]] = {"fill": partial(filler, study)}
    if study.shipped:
        calls["shipped"] = partial(shipped, study)
        commands.add_parser("shipped", help="sweep the bundles' weights")
    for name, call in more.items():
        calls[name] = call
        commands.add_parser(name, help=(call.__doc__ or "").lower().rstrip("."))
    for name, call in calls.items():
        command = commands.choices[name]
        command.add_argument("--dataset_dir", required=True)
        command.add_argument("--work", required=True, help=f"folder of trainings, for example /tmp/{study.name}")
        command.set_defaults(call=call)
    commands.add_parser("report", help="tables and pictures from all cells").set_defaults(call=lambda _: write(study))
    chosen = parser.parse_args()
    chosen.call(chosen)
