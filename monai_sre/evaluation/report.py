"""What a run leaves behind: learning curves while it trains, scores and a confusion matrix when it evaluates."""

from __future__ import annotations

import csv
import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils import evenly_divisible_all_gather
from torch import Tensor
from torch.utils._pytree import tree_map

from monai_sre.data.info import DatasetInfo
from monai_sre.evaluation.classification import MULTI_LABEL, accuracy, area_under_curve, check_scores

_LOGGER = logging.getLogger(__name__)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure without any window, or ``None`` (said once in the log) where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _LOGGER.warning("matplotlib is not installed, so no picture is drawn: pip install 'monai_sre[plot]'")
        return None
    return Figure(figsize=(width, height), layout="constrained")


class LearningCurves:
    """Trainer handler: one row an epoch in ``metrics.csv``, and ``learning_curves.png`` at the end.

    A resumed run keeps the rows of the epochs before it.

    Args:
        output_dir: folder of both files, created if need be.
        evaluator: the validation engine; its metrics become columns in the epochs that it ran in.
        optimizer: its learning rate becomes a column.
        rank: rank of this process; only rank 0 writes.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Engine(lambda engine, batch: {"loss": torch.tensor(1.0 / engine.state.epoch)})
        >>> LearningCurves(folder).attach(trainer)
        >>> _ = trainer.run([0], max_epochs=2)
        >>> print((Path(folder) / "metrics.csv").read_text().strip())
        epoch,train_loss
        1,1.0
        2,0.5
    """

    def __init__(
        self,
        output_dir: str | Path,
        evaluator: Engine | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        rank: int = 0,
    ) -> None:
        self.output_dir, self.evaluator, self.optimizer, self.rank = Path(output_dir), evaluator, optimizer, rank
        self._rows: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._validated = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; after the validation handler, so that a row holds its own epoch's validation."""
        if self.rank != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._draw())
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._mark)

    def _start(self, engine: Engine) -> None:
        path = writable_folder(self.output_dir) / "metrics.csv"
        self._rows = []
        if engine.state.epoch > 0 and path.is_file():
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= engine.state.epoch]

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = (output[0] if isinstance(output, list) else output)["loss"]
        self._losses.append(torch.as_tensor(loss).detach().float().mean())

    def _mark(self, _: Engine) -> None:
        self._validated = True

    def _write(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": engine.state.epoch, "train_loss": float(torch.stack(self._losses).mean())}
        self._losses = []
        if self.optimizer is not None:
            row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.evaluator is not None and self._validated:
            row.update(self.evaluator.state.metrics)
        self._validated = False
        self._rows.append(row)
        write_csv(self.output_dir / "metrics.csv", self._rows)

    def _draw(self) -> None:
        figure = new_figure(9, 3.5)
        if figure is None or not self._rows:
            return
        left, right = figure.subplots(1, 2)
        columns = {name for row in self._rows for name, value in row.items() if value not in ("", None)}
        for name in sorted(columns - {"epoch", "learning_rate"}):
            points = [(int(row["epoch"]), float(row[name])) for row in self._rows if row.get(name) not in ("", None)]
            axes = left if "loss" in name else right
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        left.set_yscale("log")
        for axes, label in ((left, "loss"), (right, "metric")):
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        figure.savefig(self.output_dir / "learning_curves.png", dpi=120)


class ClassificationReport:
    """Evaluator handler: ``predictions.csv``, ``metrics.json``, ``confusion_matrix.csv`` and its picture.

    A multi-label task has no confusion matrix between classes; its file counts true and false positives and negatives of
    each label.

    Args:
        output_dir: folder of the files, created if need be.
        info: the data set's description: task, class names.
        rank: rank of this process; all ranks take part, rank 0 writes.
        world_size: number of processes; sample ``i`` is on rank ``i % world_size``, as ``BatchLoader`` shares them.
    """

    def __init__(self, output_dir: str | Path, info: DatasetInfo, rank: int = 0, world_size: int = 1) -> None:
        self.output_dir, self.info, self.rank, self.world_size = Path(output_dir), info, rank, world_size
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds ``"score"`` and ``"label"`` of whole batches."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        self._outputs = []
        if self.rank == 0:
            writable_folder(self.output_dir)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._outputs.append((output["score"], output["label"]))

    def _write(self, _: Engine) -> None:
        gathered, labels = (torch.cat(parts) for parts in zip(*self._outputs, strict=True))
        if dist.is_available() and dist.is_initialized() and self.world_size > 1:
            gathered, labels = _in_order(gathered), _in_order(labels)
        if self.rank != 0:
            return
        scores = gathered.cpu().numpy()
        truth = check_scores(scores, labels.cpu().numpy(), self.info.task)
        names = self.info.class_names
        rows = []
        for index, (score, label) in enumerate(zip(scores, truth, strict=True)):
            row = {"index": index, "label": _label_text(label)}
            rows.append(row | {f"p({name})": repr(float(value)) for name, value in zip(names, score, strict=True)})
        write_csv(self.output_dir / "predictions.csv", rows)
        metrics = {
            "dataset": self.info.name,
            "task": self.info.task,
            "num_images": len(truth),
            "ACC": accuracy(scores, truth, self.info.task),
            "AUC": area_under_curve(scores, truth, self.info.task),
        }
        write_json(self.output_dir / "metrics.json", metrics)
        self._write_confusion(scores, truth)
        _LOGGER.info("%s: ACC %.4f, AUC %.4f -> %s", self.info.name, metrics["ACC"], metrics["AUC"], self.output_dir)

    def _write_confusion(self, scores: np.ndarray, truth: np.ndarray) -> None:
        names = list(self.info.class_names)
        path = self.output_dir / "confusion_matrix.csv"
        if self.info.task == MULTI_LABEL:
            found, true = scores > 0.5, truth > 0.5
            cells = {
                "true positive": found & true,
                "false positive": found & ~true,
                "false negative": ~found & true,
                "true negative": ~found & ~true,
            }
            counts = {key: value.sum(axis=0) for key, value in cells.items()}
            write_csv(path, [{"label": n} | {k: int(v[i]) for k, v in counts.items()} for i, n in enumerate(names)])
            return
        decided = scores.argmax(axis=1)
        matrix = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(matrix, (truth.astype(int), decided), 1)
        rows = [
            {"true / predicted": name} | dict(zip(names, map(int, matrix[i]), strict=True))
            for i, name in enumerate(names)
        ]
        write_csv(path, rows)
        draw_confusion(matrix, names, self.output_dir / "confusion_matrix.png")


def draw_confusion(matrix: np.ndarray, names: list[str], path: Path) -> None:
    """Picture of a confusion matrix: counts, shaded by the share of each true class."""
    side = 2.5 + 0.5 * len(names)
    figure = new_figure(side + 1, side)
    if figure is None:
        return
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            colour = "white" if share[row, column] > 0.6 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    short = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.savefig(path, dpi=120)


def writable_folder(path: Path) -> Path:
    """Create a folder and prove that it takes files, before a long run and not behind it.

    Raises:
        OSError: it does not; the message names it.

    Example:
        >>> import tempfile
        >>> writable_folder(Path(tempfile.mkdtemp()) / "a/b").is_dir()
        True
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"output_dir={str(path)!r} is no folder that can be written to: {error}") from error
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the union of their columns, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all; NaN, which JSON does not know, becomes ``null``."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(tree_map(_finite, content), indent=2, allow_nan=False) + "\n")
    draft.replace(path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_order(local: Tensor) -> Tensor:
    """All processes' samples in the data set's order, given that rank ``r`` holds ``r, r + world_size, ...``."""
    parts = evenly_divisible_all_gather(local, concat=False)
    total = sum(len(part) for part in parts)
    whole = local.new_empty((total, *local.shape[1:]))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def _label_text(label: np.ndarray) -> str:
    return " ".join(str(int(value)) for value in np.atleast_1d(label))
