"""Predictions on image files: one row of a CSV a file, what went wrong included."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_sre.data.dataset import DatasetInfo
from monai_sre.evaluation.classification import MULTI_LABEL
from monai_sre.evaluation.report import write_csv

_LOGGER = logging.getLogger(__name__)


class FileTable(ABC):
    """Evaluator handler: a CSV with one row a file, and at the end a summary of those that could not be used.

    Args:
        path: of the CSV; its folder is created if need be.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batches hold ``"path"`` and ``"error"``, and whose output holds ``"score"``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, lambda _: write_csv(self.path, self.rows))

    def finish(self) -> None:
        """Log a summary; ends the process with exit code 1 if a file could not be used.

        Raises:
            SystemExit: with a message that lists the files in question.
        """
        bad = [row for row in self.rows if row["error"]]
        _LOGGER.info("%d of %d files predicted -> %s", len(self.rows) - len(bad), len(self.rows), self.path)
        if bad:
            listed = "\n".join(f"  {row['error']}" for row in bad[:20])
            more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
            raise SystemExit(
                f"{len(bad)} of {len(self.rows)} files could not be used, see {self.path}:\n{listed}{more}"
            )

    def _start(self, _: Engine) -> None:
        self.rows = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(self.path, self.rows)

    @abstractmethod
    def _collect(self, engine: Engine) -> None:
        """Add the rows of one batch to ``rows``."""


class PredictionWriter(FileTable):
    """Evaluator handler: ``predictions.csv`` with a row a file: path, class, its name, probabilities, error.

    For a multi-label task the class is the list of labels above 0.5.

    Args:
        output_dir: folder of the file, created if need be.
        info: the task and the class names.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
    """

    def __init__(self, output_dir: str | Path, info: DatasetInfo) -> None:
        super().__init__(Path(output_dir) / "predictions.csv")
        self.info = info

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        scores = output["score"].cpu().numpy()
        names = self.info.class_names
        for path, error, score in zip(batch["path"], batch["error"], scores, strict=True):
            row: dict[str, Any] = {"file": path, "class": "", "name": ""}
            if self.info.task == MULTI_LABEL:
                chosen = [index for index, value in enumerate(score) if value > 0.5]
            else:
                chosen = [int(score.argmax())]
            if not error:
                row["class"] = " ".join(str(index) for index in chosen)
                row["name"] = "; ".join(names[index] for index in chosen)
            row |= {f"p({name})": "" if error else f"{value:.6f}" for name, value in zip(names, score, strict=True)}
            self.rows.append(row | {"error": error})
