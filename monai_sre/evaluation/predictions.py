"""Predictions on image files: one row of a CSV a file, what went wrong included."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

from monai_sre.data.dataset import DatasetInfo
from monai_sre.data.files import earlier_outputs, note_output
from monai_sre.evaluation.activation import ClassActivation
from monai_sre.evaluation.metrics import MULTI_LABEL
from monai_sre.evaluation.reports import writable_folder

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
        self._claimed: set[Path] = set()
        self._written = 0
        self._earlier: set[Path] = set()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batches hold ``"path"`` and ``"error"``, and whose output holds ``"score"``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)

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

    def claim(self, name: str, ending: str, source: str) -> Path:
        """Where to write what belongs to an input file: ``STEM`` + ``ending``, in the input's folder below that of the table.

        Args:
            name: of the input file, from the folder that holds all inputs.
            ending: of the path.
            source: path of the input file.

        Raises:
            OSError: another file has claimed that path, something that no inference has written lies there beside the input,
                or its folder cannot be created.
        """
        stem = name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else str(Path(name).with_suffix(""))
        target = self.path.parent / f"{stem}{ending}"
        if target in self._claimed:
            raise OSError(f"{target} is that of another file already")
        beside = target.parent.resolve() == Path(source).parent.resolve()
        if beside and target.exists() and target.resolve() not in self._earlier:
            raise OSError(f"{target} exists and is no output of before; choose an output folder apart from the inputs")
        self._claimed.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _start(self, _: Engine) -> None:
        self.rows, self._claimed, self._written = [], set(), 0
        writable_folder(self.path.parent)
        self._earlier = earlier_outputs(self.path.parent)
        self.path.write_text("")

    def _append(self, _: Engine) -> None:
        """Add the newest rows to the file: whatever stops the run, it holds all files so far."""
        with self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            if self._written == 0:
                writer.writeheader()
            writer.writerows(self.rows[self._written :])
        self._written = len(self.rows)

    @abstractmethod
    def _collect(self, engine: Engine) -> None:
        """Add the rows of one batch to ``rows``."""


class PredictionWriter(FileTable):
    """Evaluator handler: ``predictions.csv`` with a row a file: path, class, its name, probabilities, error.

    For a multi-label task the class is the list of labels above 0.5. On request each file also gets a class-activation map
    of its class (multi-label: of the most probable label) as ``NAME_activation.nii.gz``, float32, on the file's own grid
    (:func:`monai_sre.data.file_grids`), NIfTI with its header.

    Args:
        output_dir: folder of the files, created if need be; for maps, folders below that of the inputs are repeated in it.
        info: the task and the class names.
        activation: makes the maps; None: no maps.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
    """

    def __init__(self, output_dir: str | Path, info: DatasetInfo, activation: ClassActivation | None = None) -> None:
        super().__init__(Path(output_dir) / "predictions.csv")
        self.info, self.activation = info, activation

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        scores = output["score"].cpu().numpy()
        names = self.info.class_names
        maps = self._maps(output, batch["error"])
        for index, (path, error, score) in enumerate(zip(batch["path"], batch["error"], scores, strict=True)):
            if not error and not np.isfinite(score).all():
                error = f"{path}: the network gives NaN"
            row: dict[str, Any] = {"file": path, "class": "", "name": ""}
            if self.info.task == MULTI_LABEL:
                chosen = [number for number, value in enumerate(score) if value > 0.5]
            else:
                chosen = [int(score.argmax())]
            if not error:
                row["class"] = " ".join(str(number) for number in chosen)
                row["name"] = "; ".join(names[number] for number in chosen)
            row |= {f"p({name})": "" if error else f"{value:.6f}" for name, value in zip(names, score, strict=True)}
            if self.activation is not None:
                row["activation"] = ""
                if not error:
                    try:
                        target = self.claim(batch["name"][index], "_activation.nii.gz", path)
                        shape = output["image"].shape[2:]
                        self.activation.save(maps[index], shape, Path(path), target, self.info.size)
                        note_output(target, self.path.parent)
                        row["activation"] = str(target)
                    except OSError as problem:
                        error = f"{path}: its activation map cannot be written: {problem}"
            self.rows.append(row | {"error": error})

    def _maps(self, output: dict[str, Tensor], errors: list[str]) -> dict[int, Tensor]:
        """Of the images that could be read, by their number in the batch."""
        good = [index for index, error in enumerate(errors) if not error]
        if self.activation is None or not good:
            return {}
        classes = output["score"][good].argmax(dim=1)
        return dict(zip(good, self.activation(output["image"][good], classes), strict=True))
