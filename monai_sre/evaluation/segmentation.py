"""Scores of class maps: Dice, area under the ROC curve, sensitivity, specificity and centreline Dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import optional_import
from torch import Tensor

roc_auc_score, _ = optional_import("sklearn.metrics", name="roc_auc_score")
skeletonize, _ = optional_import("skimage.morphology", name="skeletonize")

MAP_METRICS = ("Dice", "AUC", "sensitivity", "specificity", "clDice")
NAN = float("nan")


def map_scores(score: np.ndarray, label: np.ndarray, metrics: Sequence[str] = MAP_METRICS) -> dict[str, float]:
    """Scores of one image's class map, each the mean over the foreground classes.

    A pixel is decided for the class of the highest score. With true and false positives and negatives among the pixels that
    count: ``Dice`` is 2 TP / (2 TP + FP + FN), ``sensitivity`` TP / (TP + FN), ``specificity`` TN / (TN + FP); ``AUC`` is the
    area under the ROC curve of the class's score. ``clDice`` (Shit et al., CVPR 2021) is the harmonic mean of the shares of
    either centreline that lie inside the other map.

    Args:
        score: shape ``(C, *spatial)``, probabilities; class 0 is the background.
        label: shape ``(*spatial)``, class numbers; a pixel below 0 does not count.
        metrics: which of them.

    Returns:
        One value a metric; NaN where the image has none, such as the Dice of a class that is absent, or where a score is NaN.

    Raises:
        ValueError: a metric is unknown, or the shapes differ.

    Example:
        >>> label = np.array([[0, 1, 1, -1]])
        >>> score = np.array([[[0.9, 0.8, 0.1, 0.5]], [[0.1, 0.2, 0.9, 0.5]]])
        >>> {name: round(value, 3) for name, value in map_scores(score, label).items()}
        {'Dice': 0.667, 'AUC': 1.0, 'sensitivity': 0.5, 'specificity': 1.0, 'clDice': 0.667}
    """
    unknown = set(metrics) - set(MAP_METRICS)
    if unknown:
        raise ValueError(f"metrics must be some of {MAP_METRICS}, got {sorted(unknown)}")
    if score.shape[1:] != label.shape:
        raise ValueError(f"score {score.shape} must be (C, *spatial) and label {label.shape} (*spatial)")
    if not np.isfinite(score).all():
        return dict.fromkeys(metrics, NAN)
    inside, decided = label >= 0, score.argmax(axis=0)
    rows = []
    for index in range(1, len(score)):
        found, truth = (decided == index) & inside, label == index
        hits, positives, marked = int((found & truth).sum()), int(truth.sum()), int(found.sum())
        negatives = int(inside.sum()) - positives
        row = {
            "Dice": 2 * hits / (marked + positives) if positives else NAN,
            "sensitivity": hits / positives if positives else NAN,
            "specificity": 1 - (marked - hits) / negatives if negatives else NAN,
        }
        if "AUC" in metrics:
            both = positives > 0 and negatives > 0
            row["AUC"] = float(roc_auc_score(truth[inside], score[index][inside])) if both else NAN
        if "clDice" in metrics:
            row["clDice"] = _centreline_dice(found, truth)
        rows.append(row)
    return {name: nan_mean([row[name] for row in rows]) for name in metrics}


def _centreline_dice(found: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        return NAN
    found_line, true_line = (skeletonize(mask) for mask in (found, truth))
    if not found_line.any():
        return 0.0
    precision, sensitivity = truth[found_line].mean(), found[true_line].mean()
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if none is left.

    Example:
        >>> nan_mean([1.0, float("nan"), 2.0])
        1.5
    """
    present = [value for value in values if value == value]
    return float(np.mean(present)) if present else NAN


def as_arrays(score: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One image's ``(C, *spatial)`` scores and ``(1, *spatial)`` labels as :func:`map_scores` takes them."""
    return torch.as_tensor(score).cpu().numpy(), torch.as_tensor(label)[0].round().long().cpu().numpy()


class _MapMetric(CumulativeIterationMetric):
    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Any:
        assert y is not None
        pairs = (as_arrays(score, label) for score, label in zip(y_pred, y, strict=True))
        values = [map_scores(*pair, metrics=(self.metric,))[self.metric] for pair in pairs]
        return torch.tensor(values, dtype=torch.float64, device=y_pred.device).unsqueeze(1)

    def aggregate(self, *_: Any, **__: Any) -> Any:
        return nan_mean(self.get_buffer().flatten().tolist())


class SegmentationScore(IgniteMetricHandler):
    """Ignite metric: a score of :func:`map_scores`, averaged over all images of all processes.

    Args:
        metric: one of ``"Dice"``, ``"AUC"``, ``"sensitivity"``, ``"specificity"``, ``"clDice"``.
        output_transform: takes the engine's output to ``(scores (N, C, *spatial), labels (N, 1, *spatial))``, as
            ``from_engine(["score", "label"])`` does.

    Raises:
        ValueError: ``metric`` is none of them.

    Example:
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda _, batch: batch)
        >>> SegmentationScore("Dice").attach(engine, "dice")
        >>> label = torch.tensor([[[[0.0, 1.0, 1.0]]]])
        >>> round(engine.run([(torch.tensor([[[[0.9, 0.8, 0.1]], [[0.1, 0.2, 0.9]]]]), label)]).metrics["dice"], 4)
        0.6667
    """

    def __init__(self, metric: str, output_transform: Any = lambda output: output) -> None:
        if metric not in MAP_METRICS:
            raise ValueError(f"metric must be one of {MAP_METRICS}, got {metric!r}")
        super().__init__(_MapMetric(metric), output_transform=output_transform, save_details=False)
