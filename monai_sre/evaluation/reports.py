"""What a run leaves behind: learning curves while it trains, scores and pictures when it evaluates."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_sre.data.geometry import voxel_size
from monai_sre.data.info import MULTI_LABEL
from monai_sre.evaluation.figures import draw_confusion, draw_curves, draw_maps
from monai_sre.evaluation.metrics import (
    MAP_METRICS,
    accuracy,
    area_under_curve,
    as_arrays,
    calibration_error,
    check_metrics,
    check_scores,
    gather_items,
    map_scores,
    nan_mean,
    scalar_metrics,
)
from monai_sre.files import writable_folder, write_csv, write_json

_LOGGER = logging.getLogger(__name__)


class LearningCurves:
    """Trainer handler: one row per epoch in ``metrics.csv``, and ``learning_curves.png`` at the end.

    A resumed run keeps the rows of the epochs before it. Of several processes, the first writes.

    Args:
        output_dir: folder of both files, created if need be.
        evaluator: the validation engine; its metrics that are numbers become columns in the epochs that it ran in.
        optimizer: its learning rate becomes a column.

    Raises:
        OSError: the folder cannot be written to; found out before any epoch.
        ValueError: in a resumed run, ``metrics.csv`` does not hold the epochs so far; likewise.

    Example:
        >>> import tempfile
        >>> from ignite.engine import Engine
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
    ) -> None:
        self.output_dir, self.evaluator, self.optimizer = Path(output_dir), evaluator, optimizer
        self._rows: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._validated = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; after the validation handler, so that a row holds its own epoch's validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._draw)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._mark)

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            writable_folder(self.output_dir)
        self._rows = self._earlier(engine.state.epoch)

    def _earlier(self, epoch: int) -> list[dict[str, Any]]:
        """The rows in the file up to an epoch, one per epoch without a gap, all values numbers or empty."""
        path = self.output_dir / "metrics.csv"
        if epoch == 0 or not path.is_file():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file, restval="no value", strict=True))
            for row in rows:
                for value in row.values():
                    float(value or 0)  # of a row that is too long or too short: a list, or a word
            rows = [row for row in rows if int(row["epoch"]) <= epoch]
            numbers = [int(row["epoch"]) for row in rows]
            if numbers != list(range(epoch - len(rows) + 1, epoch + 1)) or not rows:
                raise ValueError(f"its epochs are {numbers}, and the training is at epoch {epoch}")
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} is no table of the epochs so far ({type(error).__name__}: {error}); move it away to go on without it"
            ) from error
        return rows

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
            row.update(scalar_metrics(self.evaluator.state.metrics))
        self._validated = False
        self._rows.append(row)
        if idist.get_rank() == 0:
            write_csv(self.output_dir / "metrics.csv", self._rows)

    def _draw(self, engine: Engine) -> None:
        rows = self._rows or self._earlier(engine.state.epoch)  # a training that was complete has no epoch of its own
        if idist.get_rank() == 0 and rows:
            draw_curves(rows, self.output_dir / "learning_curves.png")


class _Report(ABC):
    """Evaluator handler that keeps items of whole batches, and writes files from those of all processes.

    Of several processes all take part, and the first writes; item ``i`` is that of process ``i % world_size``.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._items: list[Any] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds ``"image"``, ``"label"`` and ``"score"`` of whole batches."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: self._collect(engine.state.output))
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, _: Engine) -> None:
        self._items = []
        if idist.get_rank() == 0:
            writable_folder(self.output_dir)

    def _finish(self, _: Engine) -> None:
        items = gather_items(self._items)
        if idist.get_rank() == 0:
            self._write(items)

    @abstractmethod
    def _collect(self, output: Mapping[str, Tensor]) -> None:
        """Add the items of one batch."""

    @abstractmethod
    def _write(self, items: list[Any]) -> None:
        """Write the files from all items, in the data set's order."""


class ClassificationReport(_Report):
    """Evaluator handler: ``predictions.csv``, ``metrics.json``, ``confusion_matrix.csv`` and its picture.

    A multi-label task has no confusion matrix between classes; its file counts true and false positives and negatives of
    each label. Of several processes all take part, and the first writes; sample ``i`` is that of process ``i % world_size``.

    Args:
        output_dir: folder of the files, created if need be.
        task: MedMNIST's name of the kind of task.
        class_names: one per class.
        name: of the data set, for ``metrics.json`` and the log.
        files: path of each sample, a column of ``predictions.csv``; ``()``: there is none.
    """

    def __init__(
        self,
        output_dir: str | Path,
        task: str,
        class_names: Sequence[str],
        name: str = "",
        files: Sequence[str] = (),
    ) -> None:
        super().__init__(output_dir)
        self.task, self.class_names, self.name = task, [str(title) for title in class_names], name
        self.files = files

    def _collect(self, output: Mapping[str, Tensor]) -> None:
        scores, labels = (convert_to_tensor(output[key]).cpu().numpy() for key in ("score", "label"))
        self._items += zip(scores, labels, strict=True)

    def _write(self, items: list[Any]) -> None:
        scores, labels = (np.stack(part) for part in zip(*items, strict=True))
        truth, names = check_scores(scores, labels, self.task), self.class_names
        rows = []
        for index, (score, label) in enumerate(zip(scores, truth, strict=True)):
            row: dict[str, Any] = {"index": index} | ({"file": self.files[index]} if self.files else {})
            row["label"] = " ".join(str(int(value)) for value in np.atleast_1d(label))
            rows.append(row | {f"p({name})": repr(float(value)) for name, value in zip(names, score, strict=True)})
        write_csv(self.output_dir / "predictions.csv", rows)
        metrics = {
            "dataset": self.name,
            "task": self.task,
            "num_images": len(truth),
            "ACC": accuracy(scores, truth, self.task),
            "AUC": area_under_curve(scores, truth, self.task, names),
            "ECE": calibration_error(scores, truth, self.task),
        }
        write_json(self.output_dir / "metrics.json", metrics)
        self._write_confusion(scores, truth)
        _LOGGER.info("%s: ACC %.4f, AUC %.4f -> %s", self.name, metrics["ACC"], metrics["AUC"], self.output_dir)

    def _write_confusion(self, scores: np.ndarray, truth: np.ndarray) -> None:
        names, path = self.class_names, self.output_dir / "confusion_matrix.csv"
        if self.task == MULTI_LABEL:
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
        matrix = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(matrix, (truth.astype(int), scores.argmax(axis=1)), 1)
        columns = [dict(zip(names, map(int, counts), strict=True)) for counts in matrix]
        write_csv(path, [{"true / predicted": name} | row for name, row in zip(names, columns, strict=True)])
        draw_confusion(matrix, names, path.with_suffix(".png"))


class SegmentationReport(_Report):
    """Evaluator handler: ``metrics.json``, ``scores.csv`` with a row per image, and a picture of the first images.

    Scores are means over the foreground classes; where there are several, the Dice of each is there too, and what is in
    mm and ml. Of several processes all take part, and the first writes; image ``i`` is that of process ``i % world_size``.

    Args:
        output_dir: folder of the files, created if need be.
        class_names: one per class, the background first; ``()`` numbers them.
        num_pictures: how many images the picture shows.
        metrics: of :func:`monai_sre.evaluation.class_scores`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Sequence[str] = (),
        num_pictures: int = 3,
        metrics: Sequence[str] = MAP_METRICS,
    ) -> None:
        super().__init__(output_dir)
        self.metrics = check_metrics(metrics)
        self.class_names, self.num_pictures = [str(title) for title in class_names], num_pictures
        self._shown: list[tuple[np.ndarray, ...]] = []

    def _start(self, engine: Engine) -> None:
        super()._start(engine)
        self._shown = []

    def _collect(self, output: Mapping[str, Tensor]) -> None:
        for image, label, score in zip(output["image"], output["label"], output["score"], strict=True):
            name = str(getattr(image, "meta", {}).get("filename_or_obj", len(self._items)))
            values, classes = as_arrays(score, label)
            try:
                row = map_scores(values, classes, self.metrics, voxel_size(image), self.class_names)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self._items.append({"file": name, **row})
            if len(self._shown) < self.num_pictures:
                self._shown.append((convert_to_tensor(image).cpu().numpy(), classes, values.argmax(axis=0)))

    def _write(self, items: list[Any]) -> None:
        write_csv(self.output_dir / "scores.csv", items)
        names = [name for name in items[0] if name != "file"]
        metrics = {name: nan_mean([row[name] for row in items]) for name in names}
        write_json(self.output_dir / "metrics.json", {"num_images": len(items), **metrics})
        draw_maps(self._shown, self.output_dir / "segmentations.png")
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        _LOGGER.info("%d images: %s -> %s", len(items), shown, self.output_dir)
