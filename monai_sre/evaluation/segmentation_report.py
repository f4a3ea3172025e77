"""What the evaluation of class maps leaves behind: scores, a row an image, and pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from monai_sre.evaluation.report import new_figure, writable_folder, write_csv, write_json
from monai_sre.evaluation.segmentation import MAP_METRICS, as_arrays, map_scores, nan_mean

_LOGGER = logging.getLogger(__name__)


class SegmentationReport:
    """Evaluator handler: ``metrics.json``, ``scores.csv`` with a row an image, and a picture of the first images.

    Args:
        output_dir: folder of the files, created if need be.
        num_pictures: how many images the picture shows.
        rank: rank of this process; all ranks take part, rank 0 writes.
        world_size: number of processes; image ``i`` is on rank ``i % world_size``.
    """

    def __init__(self, output_dir: str | Path, num_pictures: int = 3, rank: int = 0, world_size: int = 1) -> None:
        self.output_dir, self.num_pictures = Path(output_dir), num_pictures
        self.rank, self.world_size = rank, world_size
        self._rows: list[dict[str, Any]] = []
        self._shown: list[tuple[np.ndarray, ...]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds ``"image"``, ``"label"`` and ``"score"`` of whole batches."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        self._rows, self._shown = [], []
        if self.rank == 0:
            writable_folder(self.output_dir)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for image, label, score in zip(output["image"], output["label"], output["score"], strict=True):
            name = str(getattr(image, "meta", {}).get("filename_or_obj", len(self._rows)))
            pair = as_arrays(score, label)
            self._rows.append({"file": name, **map_scores(*pair)})
            if len(self._shown) < self.num_pictures:
                self._shown.append((convert_to_tensor(image).cpu().numpy(), pair[1], pair[0].argmax(axis=0)))

    def _write(self, _: Engine) -> None:
        rows = self._rows
        if dist.is_available() and dist.is_initialized() and self.world_size > 1:
            parts: list[Any] = [None] * self.world_size
            dist.all_gather_object(parts, rows)
            rows = [row for row in chain.from_iterable(zip_longest(*parts)) if row is not None]
        if self.rank != 0:
            return
        write_csv(self.output_dir / "scores.csv", rows)
        metrics = {name: nan_mean([row[name] for row in rows]) for name in MAP_METRICS}
        write_json(self.output_dir / "metrics.json", {"num_images": len(rows), **metrics})
        draw_maps(self._shown, self.output_dir / "segmentations.png")
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        _LOGGER.info("%d images: %s -> %s", len(rows), shown, self.output_dir)


def draw_maps(shown: Sequence[tuple[np.ndarray, ...]], path: Path, titles: Sequence[str] = ()) -> None:
    """Picture with a row an image: the image, the truth, and each decided map with its errors in colour.

    White is foreground that is found, red what is found in excess, blue what is missed. Of a volume, the middle slice
    across the last axis is shown.

    Args:
        shown: of each image ``(image (C, *spatial), truth (*spatial), decided map (*spatial), ...)``.
        path: of the PNG file.
        titles: one for each column; ``()`` names the first three.
    """
    titles = titles or ("image", "truth", "found (red: excess, blue: missed)")
    figure = new_figure(3.6 * len(titles), 3.6 * len(shown))
    if figure is None or not shown:
        return
    grid = figure.subplots(len(shown), len(titles), squeeze=False)
    for index, (image, truth, *maps) in enumerate(shown):
        pictures = [_picture(image), _slice(truth) > 0]
        pictures += [_errors(_slice(found) > 0, _slice(truth)) for found in maps]
        for axes, picture, title in zip(grid[index], pictures, titles, strict=True):
            turned = np.swapaxes(picture, 0, 1)  # MONAI reads columns first
            axes.imshow(turned, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
            axes.set_title("" if index else title, fontsize=10)
    figure.savefig(path, dpi=110)


def _slice(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values[..., values.shape[-1] // 2]


def _picture(image: np.ndarray) -> np.ndarray:
    planes = np.stack([_slice(channel) for channel in image], axis=-1)
    low, high = planes.min(axis=(0, 1)), planes.max(axis=(0, 1))
    planes = (planes - low) / np.maximum(high - low, 1e-6)
    return planes if planes.shape[-1] == 3 else planes.mean(axis=-1)


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    right, counts = truth > 0, truth >= 0
    return np.stack([found & counts, found & right, right], axis=-1).astype(float)
