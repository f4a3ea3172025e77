"""The same test set under a list of rotations and flips: does a network keep its accuracy, and its mind?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_sre.data.geometry import flip_batch, rotate_batch
from monai_sre.evaluation.classification import MULTI_LABEL, accuracy, area_under_curve, probabilities
from monai_sre.evaluation.report import new_figure, write_csv, write_json

#: Interpolation and fill of rotated images. ``paper``: zeros enter after normalisation, mid-grey as a rule.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {"mode": "nearest", "fill": 0.0},
    "clean": {"mode": "bilinear", "fill": "background"},
}


def sweep_transformations(
    spatial_dims: int, protocol: str = "clean", step: float | None = None, flips: bool = True
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Rotations by multiples of ``step`` degrees (in 3-D about each axis; the identity once), and flips.

    Args:
        spatial_dims: 2 or 3.
        protocol: ``"clean"`` (bilinear, filled with each image's background) or ``"paper"`` (nearest, filled with 0), both
            on normalised images; see :func:`monai_sre.data.rotate_batch`.
        step: degrees between rotations; ``None`` is 10 in 2-D and 30 in 3-D.
        flips: whether to add the flip along each axis.

    Returns:
        ``{name: function of a batch (N, C, *spatial)}``, the identity ``"0"`` first.

    Raises:
        ValueError: an argument is not one of those above, or ``step`` does not divide 360.

    Example:
        >>> list(sweep_transformations(2, step=90))
        ['0', '90', '180', '270', 'flip 0', 'flip 1']
        >>> len(sweep_transformations(3, flips=False))
        34
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {protocol!r}")
    step = (10 if spatial_dims == 2 else 30) if step is None else step
    if step <= 0 or 360 % step:
        raise ValueError(f"step must be a positive divisor of 360 degrees, got {step!r}")
    found: dict[str, Callable[[Tensor], Tensor]] = {"0": lambda x: x}
    for axis in [None] if spatial_dims == 2 else range(3):
        for index in range(1, round(360 / step)):
            name = f"{index * step:g}" if axis is None else f"{index * step:g} about axis {axis}"
            found[name] = partial(rotate_batch, angle_degrees=index * step, axis=axis, **PROTOCOLS[protocol])
    for axis in range(spatial_dims) if flips else []:
        found[f"flip {axis}"] = partial(flip_batch, axes=axis)
    return found


@dataclass
class SweepResult:
    """Scores of one network under each transformation.

    Args:
        rows: per transformation its name, ``ACC`` and ``AUC``, the identity first.
        consistency: share of images whose decision is the same under all transformations.
    """

    rows: list[dict[str, Any]]
    consistency: float

    def summary(self) -> dict[str, float]:
        """Upright scores; mean, standard deviation and minimum over all rotations (the identity included), flips apart."""
        rotations = [row for row in self.rows if not row["transformation"].startswith("flip")]
        values: dict[str, float] = {}
        for metric in ("ACC", "AUC"):
            swept = np.array([row[metric] for row in rotations])
            values |= {
                f"{metric} upright": self.rows[0][metric],
                f"{metric} mean": float(swept.mean()),
                f"{metric} std": float(swept.std()),
                f"{metric} min": float(swept.min()),
            }
        return {**values, "consistency": self.consistency}


@torch.no_grad()
def rotation_sweep(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Mapping[str, Tensor]],
    transformations: Mapping[str, Callable[[Tensor], Tensor]],
    task: str,
) -> SweepResult:
    """Evaluate a network on the same batches under each transformation.

    Args:
        network: from images to logits ``(N, num_classes)``; a module is put into eval mode for the time.
        batches: ``{"image": normalised (N, C, *spatial), "label"}``, gone through once.
        transformations: from :func:`sweep_transformations`.
        task: MedMNIST's name of the kind of task.

    Example:
        >>> batch = {"image": torch.randn(8, 1, 6, 6), "label": torch.tensor([0, 1] * 4)}
        >>> net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> rotation_sweep(net, [batch], sweep_transformations(2, step=90), "binary-class").consistency
        1.0
    """
    training = isinstance(network, torch.nn.Module) and network.training
    if isinstance(network, torch.nn.Module):
        network.eval()
    scores: dict[str, list[np.ndarray]] = {name: [] for name in transformations}
    labels = []
    for batch in batches:
        labels.append(batch["label"].cpu().numpy())
        for name, transformation in transformations.items():
            logits = network(transformation(batch["image"]))
            scores[name].append(probabilities(logits, task).cpu().numpy())
    if training and isinstance(network, torch.nn.Module):
        network.train()
    truth = np.concatenate(labels)
    rows, decisions = [], []
    for name, parts in scores.items():
        score = np.concatenate(parts)
        metrics = {"ACC": accuracy(score, truth, task), "AUC": area_under_curve(score, truth, task)}
        rows.append({"transformation": name, **metrics})
        decisions.append(score > 0.5 if task == MULTI_LABEL else score.argmax(axis=1)[:, None])
    same = np.all([decision == decisions[0] for decision in decisions], axis=(0, 2))
    return SweepResult(rows, float(same.mean()))


class RotationSweep:
    """Evaluator handler: after an evaluation, the same data under rotations and flips.

    Leaves ``sweep_<protocol>.csv``, ``.json`` and ``.png`` in ``output_dir``.

    Args:
        output_dir: folder of the files, created if need be.
        network: from images to logits.
        loader: the evaluator's own loader of normalised batches.
        task: MedMNIST's name of the kind of task.
        spatial_dims: 2 or 3.
        protocols: which of ``"clean"`` and ``"paper"``.
        step: degrees between rotations; ``None`` is 10 in 2-D and 30 in 3-D.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        loader: Iterable[Mapping[str, Tensor]],
        task: str,
        spatial_dims: int,
        protocols: Iterable[str] = ("clean", "paper"),
        step: float | None = None,
    ) -> None:
        self.output_dir, self.network, self.loader, self.task = Path(output_dir), network, loader, task
        self.sweeps = {name: sweep_transformations(spatial_dims, name, step) for name in protocols}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._run)

    def _run(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for protocol, transformations in self.sweeps.items():
            result = rotation_sweep(self.network, self.loader, transformations, self.task)
            path = self.output_dir / f"sweep_{protocol}.csv"
            write_csv(path, result.rows)
            write_json(path.with_suffix(".json"), {"protocol": protocol, **result.summary(), "rows": result.rows})
            draw_sweep({"this network": result}, path.with_suffix(".png"), title=f"protocol: {protocol}")
            shown = ", ".join(f"{name} {value:.4f}" for name, value in result.summary().items())
            engine.logger.info(f"sweep {protocol}: {shown}")


def draw_sweep(results: Mapping[str, SweepResult], path: Path, metric: str = "ACC", title: str = "") -> None:
    """Polar picture of a metric against the angle of rotation; in 3-D, the mean over the axes at each angle.

    Args:
        results: one curve a name.
        path: of the PNG file.
        metric: ``"ACC"`` or ``"AUC"``.
        title: above the picture.
    """
    figure = new_figure(6.4, 6.8)
    if figure is None:
        return
    axes = figure.add_subplot(projection="polar")
    lowest = 1.0
    for name, result in results.items():
        angles: dict[float, list[float]] = {}
        for row in result.rows:
            if not row["transformation"].startswith("flip"):
                angles.setdefault(float(row["transformation"].split()[0]), []).append(row[metric])
        degrees = sorted(angles)
        values = [float(np.mean(angles[angle])) for angle in degrees]
        lowest = min(lowest, *values)
        axes.plot(np.radians([*degrees, 360.0]), [*values, values[0]], label=name, linewidth=2)
    axes.set_ylim(max(0.0, np.floor(lowest * 10 - 0.5) / 10), 1)
    axes.set_theta_zero_location("N")
    axes.set_rlabel_position(45)
    axes.set_title(f"{metric} against rotation\n{title}" if title else f"{metric} against rotation", fontsize=11)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    figure.savefig(path, dpi=120)
