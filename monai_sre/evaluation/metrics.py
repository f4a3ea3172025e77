"""Scores of classes and of class maps: accuracy and ROC curve as MedMNIST v2 defines them, Dice and its relatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric, calibration_binning, compute_hausdorff_distance
from scipy import ndimage
from scipy.stats import rankdata
from skimage.morphology import skeletonize
from torch import Tensor

from monai_sre.data.info import MULTI_LABEL, TASKS
from monai_sre.ops.arguments import listed

MAP_METRICS = ("Dice", "AUC", "sensitivity", "specificity", "clDice")
#: Those in mm and ml, which need the size of a voxel.
SIZE_METRICS = ("HD95 mm", "volume error ml")
NAN = float("nan")


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Scores in 0..1 from logits: a sigmoid for each label of multi-label tasks, else a softmax over the classes.

    Args:
        logits: shape ``(N, num_classes)``, or ``(N, num_classes, *spatial)`` of maps.
        task: MedMNIST's name of the kind of task.

    Returns:
        Tensor of the same shape: float64 on the CPU, since not every device has float64; of maps, float32 at least, where
        the logits are.

    Example:
        >>> probabilities(torch.zeros(1, 4), "multi-class")
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    wide = logits.cpu().double() if logits.dim() <= 2 else logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.sigmoid() if task == MULTI_LABEL else wide.softmax(dim=1)


def check_scores(scores: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """The labels, without their last axis where that holds a single class number.

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
        return NAN
    if task == MULTI_LABEL:
        return float(((scores > 0.5) == (labels > 0.5)).mean())
    if task == "binary-class":
        return float(((scores[:, -1] > 0.5) == (labels == 1)).mean())
    return float((scores.argmax(axis=1) == labels).mean())


def area_under_curve(scores: np.ndarray, labels: np.ndarray, task: str, class_names: Sequence[str] = ()) -> float:
    """Area under the ROC curve (Yang et al., 2023): of the last class if binary, else the mean over classes or labels.

    A class that no sample, or every sample, belongs to has no curve: it is left out of the mean, with a warning. NaN if
    none is left, or if any score is.

    Args:
        scores: shape ``(N, num_classes)``, in 0..1.
        labels: shape ``(N,)`` or ``(N, 1)``, or ``(N, num_classes)`` of 0 and 1 for multi-label tasks.
        task: MedMNIST's name of the kind of task.
        class_names: one per class, for the warning.

    Raises:
        ValueError: the shapes do not fit, or the task is unknown.

    Example:
        >>> area_under_curve(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 0]), "binary-class")
        1.0
    """
    labels = check_scores(scores, labels, task)
    if np.isnan(scores).any():
        return NAN
    number = scores.shape[1]
    truth = labels > 0.5 if task == MULTI_LABEL else labels[:, None] == np.arange(number)
    if task == "binary-class":
        truth[:, -1] = labels == 1
    chosen = [number - 1] if task == "binary-class" else range(number)
    areas = {index: _area(truth[:, index], scores[:, index]) for index in chosen}
    missing = [str(class_names[index] if class_names else index) for index, area in areas.items() if np.isnan(area)]
    if missing:
        warnings.warn(f"no ROC curve of class {listed(missing)}: it holds all samples, or none", stacklevel=2)
    return nan_mean(list(areas.values()))


def calibration_error(scores: np.ndarray, labels: np.ndarray, task: str, num_bins: int = 15) -> float:
    """Expected calibration error: the distance of probabilities from shares of right decisions (Guo et al., ICML 2017).

    Decisions are sorted into bins of equal width by the probability of the class that they take, or of the yes or no to each
    label of multi-label tasks; the mean over the bins of the difference between their mean probability and their share of
    correct ones, weighted by their number. NaN if any score is.

    Args:
        scores: shape ``(N, num_classes)``, in 0..1.
        labels: shape ``(N,)`` or ``(N, 1)``, or ``(N, num_classes)`` of 0 and 1 for multi-label tasks.
        task: MedMNIST's name of the kind of task.
        num_bins: number of bins.

    Raises:
        ValueError: the shapes do not fit, or the task is unknown.

    Example:
        >>> scores = np.array([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75], [0.25, 0.75]])
        >>> round(calibration_error(scores, np.array([0, 1, 1, 0]), "binary-class"), 6)
        0.0
    """
    labels = check_scores(scores, labels, task)
    if np.isnan(scores).any():
        return NAN
    if task == MULTI_LABEL:
        found, right = np.maximum(scores, 1 - scores), (scores > 0.5) == (labels > 0.5)
    else:
        found, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    y_pred, y = (torch.as_tensor(np.ravel(part), dtype=torch.float32)[None, None] for part in (found, right))
    bins = calibration_binning(y_pred, y, num_bins)
    mean, share, counts = (part[0, 0].nan_to_num().double() for part in bins)
    return float(((mean - share).abs() * counts).sum() / counts.sum())


def _area(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve from the ranks of the positives (Mann and Whitney, 1947); NaN without both kinds."""
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives:
        return NAN
    return float((rankdata(score)[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def check_metrics(metrics: Sequence[str]) -> Sequence[str]:
    """The names of scores of class maps.

    Raises:
        ValueError: one is unknown.
    """
    unknown = set(metrics) - {*MAP_METRICS, *SIZE_METRICS}
    if unknown:
        raise ValueError(f"metrics must be some of {(*MAP_METRICS, *SIZE_METRICS)}, got {sorted(unknown)}")
    return metrics


def class_scores(
    score: np.ndarray,
    label: np.ndarray,
    metrics: Sequence[str] = MAP_METRICS,
    spacing: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """Scores of one image's class map, for each foreground class.

    A pixel is decided for the class of the highest score. With true and false positives and negatives among the pixels that
    count: ``Dice`` is 2 TP / (2 TP + FP + FN), ``sensitivity`` TP / (TP + FN), ``specificity`` TN / (TN + FP); ``AUC`` is the
    area under the ROC curve of the class's score. ``clDice`` (Shit et al., CVPR 2021) is the harmonic mean of the shares of
    either centreline that lie inside the other map. ``HD95 mm`` is the 95th percentile of the distances between both surfaces
    (MONAI's), or the diagonal of the image where the class is not found at all, and ``volume error ml`` the difference of
    both volumes without its sign, which images of two axes do not have; both by the unit mm.

    Args:
        score: shape ``(C, *spatial)``, probabilities; class 0 is the background.
        label: shape ``(*spatial)``, class numbers; a pixel below 0 does not count.
        metrics: which of them.
        spacing: size of a voxel along each axis, in mm; None: 1.

    Returns:
        For each class but the background, a value per metric; NaN where the image has none, such as the Dice of a class that
        is absent.

    Raises:
        ValueError: a metric is unknown, the shapes differ, or a score is NaN or infinite.

    Example:
        >>> label = np.array([[0, 1, 1, -1]])
        >>> score = np.array([[[0.9, 0.8, 0.1, 0.5]], [[0.1, 0.2, 0.9, 0.5]]])
        >>> class_scores(score, label, ("sensitivity", "specificity"))
        [{'sensitivity': 0.5, 'specificity': 1.0}]
    """
    check_metrics(metrics)
    if score.shape[1:] != label.shape:
        raise ValueError(f"score {score.shape} must be (C, *spatial) and label {label.shape} (*spatial)")
    if not np.isfinite(score).all():  # no value would leave the image out of the mean, which then tells of the others
        raise ValueError("the network gives NaN or infinite values")
    inside, decided = label >= 0, score.argmax(axis=0)
    voxel = np.ones(label.ndim) if spacing is None else np.asarray(spacing, dtype=float)
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
            row["AUC"] = _area(truth[inside], score[index][inside])
        if "clDice" in metrics:
            row["clDice"] = _centreline_dice(found, truth)
        if "HD95 mm" in metrics:
            row["HD95 mm"] = _surface_distance(found, truth, voxel)
        row["volume error ml"] = abs(marked - positives) * float(voxel.prod()) / 1000 if label.ndim == 3 else NAN
        rows.append({name: row[name] for name in metrics})
    return rows


def map_scores(
    score: np.ndarray,
    label: np.ndarray,
    metrics: Sequence[str] = MAP_METRICS,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The mean of :func:`class_scores` over the foreground classes that have a value; same arguments, same exceptions.

    With ``class_names``, one per class or ``()`` for their numbers, and more than one foreground class, the Dice and what is
    in mm and ml stand there for each class too, as ``"Dice of liver"``.

    Example:
        >>> label = np.array([[0, 1, 1, -1]])
        >>> score = np.array([[[0.9, 0.8, 0.1, 0.5]], [[0.1, 0.2, 0.9, 0.5]]])
        >>> {name: round(value, 3) for name, value in map_scores(score, label, ("Dice", "AUC", "specificity")).items()}
        {'Dice': 0.667, 'AUC': 1.0, 'specificity': 1.0}
    """
    rows = class_scores(score, label, metrics, spacing)
    means = {name: nan_mean([row[name] for row in rows]) for name in metrics}
    if class_names is None or len(rows) < 2:
        return means
    titles = class_names[1:] or [f"class {index}" for index in range(1, len(score))]
    shown = [name for name in metrics if name == "Dice" or name in SIZE_METRICS]
    pairs = list(zip(titles, rows, strict=True))
    return means | {f"{name} of {title}": row[name] for name in shown for title, row in pairs}


def _surface_distance(found: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> float:
    """The 95th percentile of the distances between two surfaces, that of either direction which is greater."""
    if not truth.any():
        return NAN
    if not found.any():
        return float(np.linalg.norm(spacing * truth.shape))
    one, other = (torch.from_numpy(mask)[None, None] for mask in (found, truth))
    how: dict[str, Any] = {"include_background": True, "percentile": 95, "spacing": spacing.tolist()}
    return float(compute_hausdorff_distance(one, other, **how))


def _centreline_dice(found: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        return NAN
    if not found.any():
        return 0.0
    found_line, true_line = (_centreline(mask) for mask in (found, truth))
    precision, sensitivity = truth[found_line].mean(), found[true_line].mean()
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


def _centreline(mask: np.ndarray) -> np.ndarray:
    """The skeleton; of an object of which scikit-image leaves nothing, as of tubes of even width in 3-D, the whole of it."""
    line = skeletonize(mask)
    objects, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return line | (mask & ~np.isin(objects, objects[line]))


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if none is left.

    Example:
        >>> nan_mean([1.0, float("nan"), 2.0])
        1.5
    """
    present = [value for value in values if value == value]
    return float(np.mean(present)) if present else NAN


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an engine that are one number each, without such as a confusion matrix.

    Example:
        >>> scalar_metrics({"acc": torch.tensor(0.5), "loss": 2.0, "matrix": torch.eye(2)})
        {'acc': 0.5, 'loss': 2.0}
    """
    arrays = {name: np.asarray(value.cpu() if isinstance(value, Tensor) else value) for name, value in metrics.items()}
    return {
        name: float(value.item()) for name, value in arrays.items() if value.size == 1 and value.dtype.kind in "buif"
    }


def gather_items(items: list[Any]) -> list[Any]:
    """The items of all processes in the data set's order: item ``i`` is that of process ``i % world_size``.

    Example:
        >>> gather_items([1, 2])
        [1, 2]
    """
    missing = object()
    shares: Any = idist.all_gather(items)  # of one process: a list of its own
    mixed = chain.from_iterable(zip_longest(*shares, fillvalue=missing))
    return [item for item in mixed if item is not missing]


def as_arrays(score: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One image's ``(C, *spatial)`` scores and ``(1, *spatial)`` labels as :func:`map_scores` takes them."""
    return torch.as_tensor(score).cpu().numpy(), torch.as_tensor(label)[0].round().long().cpu().numpy()


class _Gathered(CumulativeIterationMetric):
    """Keeps something of each batch, and makes one number of what all batches of all processes gave."""

    def __init__(self, keep: Callable[[Tensor, Tensor], Any], finish: Callable[[Any], float]) -> None:
        super().__init__()
        self.keep, self.finish = keep, finish

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Any:
        assert y is not None
        return self.keep(y_pred, y)

    def aggregate(self, *_: Any, **__: Any) -> Any:
        return self.finish(self.get_buffer())


class ClassificationScore(IgniteMetricHandler):
    """Ignite metric: ACC or AUC over all samples of all processes.

    Args:
        metric: ``"ACC"`` or ``"AUC"``.
        task: MedMNIST's name of the kind of task.
        class_names: one per class, for warnings.
        output_transform: takes the engine's output to ``(scores, labels)``, as ``from_engine(["score", "label"])`` does.

    Raises:
        ValueError: ``metric`` is neither.

    Example:
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda _, batch: batch)
        >>> ClassificationScore("ACC", "multi-class").attach(engine, "acc")
        >>> batch = torch.eye(3), torch.tensor([0, 1, 1])
        >>> round(engine.run([batch]).metrics["acc"], 4)
        0.6667
    """

    def __init__(
        self,
        metric: str,
        task: str,
        output_transform: Any = lambda output: output,
        class_names: Sequence[str] = (),
    ) -> None:
        computes: dict[str, Callable[..., float]] = {
            "ACC": accuracy,
            "AUC": partial(area_under_curve, class_names=class_names),
        }
        if metric not in computes:
            raise ValueError(f"metric must be one of {tuple(computes)}, got {metric!r}")
        gathered = _Gathered(
            lambda scores, labels: (scores, labels),
            lambda both: computes[metric](both[0].cpu().numpy(), both[1].cpu().numpy(), task),
        )
        super().__init__(gathered, output_transform=output_transform, save_details=False)


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

        def of_images(scores: Tensor, labels: Tensor) -> Tensor:
            pairs = (as_arrays(*pair) for pair in zip(scores, labels, strict=True))
            return torch.tensor([[map_scores(*pair, (metric,))[metric]] for pair in pairs], dtype=torch.float64)

        gathered = _Gathered(of_images, lambda values: nan_mean(values.flatten().tolist()))
        super().__init__(gathered, output_transform=output_transform, save_details=False)
