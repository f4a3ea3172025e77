"""Accuracy and area under the ROC curve as MedMNIST v2 defines them, for all its kinds of task."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import optional_import
from torch import Tensor, float32, promote_types

from monai_sre.data.info import TASKS

roc_auc_score, _ = optional_import("sklearn.metrics", name="roc_auc_score")

MULTI_LABEL = "multi-label, binary-class"
METRICS = ("ACC", "AUC")


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Scores in 0..1 from logits: a sigmoid a label for multi-label tasks, else a softmax over the classes.

    Args:
        logits: shape ``(N, num_classes)``, or ``(N, num_classes, *spatial)`` of maps.
        task: MedMNIST's name of the kind of task.

    Returns:
        Tensor of the same shape, float64; of maps, float32 at least.

    Example:
        >>> import torch
        >>> probabilities(torch.zeros(1, 4), "multi-class")
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    wide = logits.double() if logits.dim() <= 2 else logits.to(promote_types(logits.dtype, float32))
    return wide.sigmoid() if task == MULTI_LABEL else wide.softmax(dim=1)


def check_scores(scores: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """The labels, without their last axis where that is one of a single class number.

    Raises:
        ValueError: they do not fit the scores, or the task is unknown.

    Example:
        >>> check_scores(np.zeros((3, 2)), np.array([[0], [1], [0]]), "binary-class").shape
        (3,)
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    if scores.ndim != 2 or (task != MULTI_LABEL and scores.shape[1] < 2):
        raise ValueError(f"scores of task {task!r} must have shape (N, num_classes), got {scores.shape}")
    if task != MULTI_LABEL and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    wanted = scores.shape if task == MULTI_LABEL else scores.shape[:1]
    if labels.shape != wanted:
        raise ValueError(f"labels of task {task!r} must have shape {wanted} as the scores have, got {labels.shape}")
    return labels


def accuracy(scores: np.ndarray, labels: np.ndarray, task: str) -> float:
    """Share of correct decisions (Yang et al., Scientific Data 10:41, 2023).

    Multi-label: the mean over labels, each decided at 0.5. Binary: the last class is decided at 0.5. Otherwise, ordinal
    regression included: the class of the highest score. NaN if any score is.

    Args:
        scores: shape ``(N, num_classes)``, in 0..1.
        labels: shape ``(N,)`` or ``(N, 1)``, or ``(N, num_classes)`` of 0 and 1 for multi-label tasks.
        task: MedMNIST's name of the kind of task.

    Raises:
        ValueError: the shapes do not fit, or the task is unknown.

    Example:
        >>> accuracy(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), "binary-class")
        0.5
    """
    labels = check_scores(scores, labels, task)
    if np.isnan(scores).any():
        return float("nan")
    if task == MULTI_LABEL:
        return float(((scores > 0.5) == (labels > 0.5)).mean())
    if task == "binary-class":
        return float(((scores[:, -1] > 0.5) == (labels == 1)).mean())
    return float((scores.argmax(axis=1) == labels).mean())


def area_under_curve(scores: np.ndarray, labels: np.ndarray, task: str) -> float:
    """Area under the ROC curve (Yang et al., 2023): of the last class if binary, else the mean over classes or labels.

    A class that no sample, or every sample, belongs to has no curve: it is left out of the mean, with a warning. NaN if
    none is left, or if any score is.

    Args:
        scores: shape ``(N, num_classes)``, in 0..1.
        labels: shape ``(N,)`` or ``(N, 1)``, or ``(N, num_classes)`` of 0 and 1 for multi-label tasks.
        task: MedMNIST's name of the kind of task.

    Raises:
        ValueError: the shapes do not fit, or the task is unknown.

    Example:
        >>> area_under_curve(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 0]), "binary-class")
        1.0
    """
    labels = check_scores(scores, labels, task)
    if np.isnan(scores).any():
        return float("nan")
    classes = range(scores.shape[1])
    if task == "binary-class":
        classes = range(scores.shape[1] - 1, scores.shape[1])
    areas, missing = [], []
    for index in classes:
        truth = labels[:, index] > 0.5 if task == MULTI_LABEL else labels == (1 if task == "binary-class" else index)
        if truth.all() or not truth.any():
            missing.append(index)
        else:
            areas.append(roc_auc_score(truth, scores[:, index]))
    if missing:
        warnings.warn(f"no ROC curve for classes {missing}: all samples agree on them", stacklevel=2)
    return float(np.mean(areas)) if areas else float("nan")


class AddScores:
    """Postprocessing of whole batches: adds ``"score"``, the probabilities of the logits ``"pred"``.

    Args:
        task: MedMNIST's name of the kind of task.

    Example:
        >>> import torch
        >>> AddScores("binary-class")({"pred": torch.zeros(1, 2)})["score"]
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self, output: dict[str, Any]) -> dict[str, Any]:
        return {**output, "score": probabilities(output["pred"].detach(), self.task)}


class _ScoreMetric(CumulativeIterationMetric):
    def __init__(self, metric: str, task: str) -> None:
        super().__init__()
        self.metric, self.task = metric, task

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Any:
        return y_pred, y

    def aggregate(self, *_: Any, **__: Any) -> Any:
        scores, labels = self.get_buffer()
        compute = accuracy if self.metric == "ACC" else area_under_curve
        return compute(scores.cpu().numpy(), labels.cpu().numpy(), self.task)


class ClassificationScore(IgniteMetricHandler):
    """Ignite metric: ACC or AUC over all samples of all processes.

    Args:
        metric: ``"ACC"`` or ``"AUC"``.
        task: MedMNIST's name of the kind of task.
        output_transform: takes the engine's output to ``(scores, labels)``, as ``from_engine(["score", "label"])`` does.

    Raises:
        ValueError: ``metric`` is neither.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda _, batch: batch)
        >>> ClassificationScore("ACC", "multi-class").attach(engine, "acc")
        >>> batch = torch.eye(3), torch.tensor([0, 1, 1])
        >>> round(engine.run([batch]).metrics["acc"], 4)
        0.6667
    """

    def __init__(self, metric: str, task: str, output_transform: Any = lambda output: output) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
        super().__init__(_ScoreMetric(metric, task), output_transform=output_transform, save_details=False)
