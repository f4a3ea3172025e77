"""What a network, a loss and a metric need to know of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MULTI_LABEL",
    "SECTIONS",
    "SPLITS",
    "TASKS",
    "DatasetInfo",
    "check_class_numbers",
    "check_splits",
    "model_classes",
    "whole_numbers",
]

MULTI_LABEL = "multi-label, binary-class"
#: The kinds of task, in MedMNIST's own words (``medmnist.Evaluator`` takes the same strings).
TASKS = ("binary-class", "multi-class", MULTI_LABEL, "ordinal-regression")
SPLITS = ("train", "val", "test")
#: The list of each split in a datalist.
SECTIONS = {"train": "training", "val": "validation", "test": "test"}
#: What else they are called: refused in a datalist, whose names MONAI reads, and taken for folders.
OTHER_NAMES = {"train": "training", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True)
class DatasetInfo:
    """What a network, a loss and a metric need to know of a data set.

    Args:
        name: name of the data set.
        spatial_dims: 2 for images, 3 for volumes.
        size: longest side of the stored images, in pixels or voxels.
        task: one of ``"binary-class"``, ``"multi-class"``, ``"multi-label, binary-class"``, ``"ordinal-regression"``.
        num_channels: channels of an image: 1 for grey, 3 for RGB.
        num_classes: number of network outputs: classes, or labels of a multi-label task.
        class_names: one name per class.

    Raises:
        ValueError: an argument is out of range, or there is not one name per class, each another.

    Example:
        >>> info = DatasetInfo("toy", 2, 28, "multi-class", 1, 3, ("a", "b", "c"))
        >>> info.num_classes, info.multi_label
        (3, False)
    """

    name: str
    spatial_dims: int
    size: int
    task: str
    num_channels: int
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task of data set {self.name!r} must be one of {TASKS}, got {self.task!r}")
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims of data set {self.name!r} must be 2 or 3, got {self.spatial_dims}")
        if self.num_channels < 1 or self.num_classes < 1 or self.size < 1:
            raise ValueError(f"size, num_channels and num_classes of data set {self.name!r} must be at least 1")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"data set {self.name!r} has {self.num_classes} classes and {len(self.class_names)} class_names"
            )
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"class_names of data set {self.name!r} must differ, got {self.class_names}")
        if self.task == "binary-class" and self.num_classes != 2:
            raise ValueError(
                f"task of data set {self.name!r} must be 'multi-class' with {self.num_classes} classes, got 'binary-class'"
            )

    @property
    def multi_label(self) -> bool:
        """Whether an image can carry several labels at once (targets are then floats of shape ``(N, num_classes)``)."""
        return self.task == MULTI_LABEL


def model_classes(
    source: str | Path, own: Sequence[str], top: int, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """The class names of data; those of a trained model, if there is one, after a check that the data fit it.

    Data may lack classes that the model knows, but may have no other ones. A model whose class names are their numbers was
    trained on data without names: it takes any names.

    Args:
        source: of the data, for messages.
        own: names that the data give; ``()`` where they only number their classes.
        top: largest class number among the labels.
        class_names: those of the model; None: there is none.

    Raises:
        ValueError: the data have a class that the model never saw, or name the classes in another order.

    Example:
        >>> model_classes("list.json", (), 1, ["a", "b", "c"])
        ('a', 'b', 'c')
        >>> model_classes("list.json", ("a", "b", "d"), 2, ["a", "b", "c"])
        Traceback (most recent call last):
        ValueError: list.json has class 2 ('d'), which the model never saw; its classes are 0 'a', 1 'b', 2 'c'
    """
    if class_names is None:
        return tuple(own) or tuple(str(number) for number in range(max(top + 1, 2)))
    known = tuple(str(name) for name in class_names)
    listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(known))
    numbered = known == tuple(str(number) for number in range(len(known)))
    unseen = [number for number, name in enumerate(own) if number >= len(known) or not (numbered or name in known)]
    if unseen or top >= len(known):
        number = unseen[0] if unseen else top
        shown = f"{number} ({own[number]!r})" if number < len(own) else number
        raise ValueError(f"{source} has class {shown}, which the model never saw; its classes are {listed}")
    if not numbered and tuple(own) != known[: len(own)]:
        theirs = ", ".join(f"{number} {name!r}" for number, name in enumerate(own))
        raise ValueError(f"{source} has the classes {theirs}, in another order than the model, which has {listed}")
    return known


def whole_numbers(values: Any, source: str) -> np.ndarray:
    """Class numbers as int64; what is within 0.001 of one is rounded, as writers that scale what they store leave it.

    Args:
        values: numbers of any type and shape, or booleans.
        source: what they are, for messages.

    Raises:
        ValueError: a value is not a whole number from 0.

    Example:
        >>> whole_numbers([0.0, 1.0000153, True], "labels")
        array([0, 1, 1])
        >>> whole_numbers([0, 1.5], "labels")
        Traceback (most recent call last):
        ValueError: labels must be whole numbers from 0, got 1.5
    """
    given = np.asarray(values)
    if given.dtype.kind not in "buif":
        raise ValueError(f"{source} must be whole numbers from 0, got {given.dtype} values")
    nearest = np.rint(given.astype(np.float64))
    good = (np.abs(given - nearest) <= 1e-3) & (nearest >= 0) & (nearest < 2**53)
    if not good.all():
        raise ValueError(f"{source} must be whole numbers from 0, got {given[~good].flat[0]}")
    return nearest.astype(np.int64)


def check_class_numbers(source: str | Path, labels: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers of unnamed classes that leave one out, such as 0 and 255: it would be trained without an image.

    Args:
        source: of the data, for messages.
        labels: class numbers of each split. Without ``"train"`` nothing is to be trained, and all are taken.

    Raises:
        ValueError: a number between 0 and the largest is missing.
    """
    found = np.unique(np.concatenate([values.ravel() for values in labels.values()]))
    missing = np.flatnonzero(found != np.arange(len(found)))
    if "train" in labels and len(missing):
        shown = ", ".join(str(number) for number in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{source} has the labels {shown}; classes are numbered 0, 1, ..., and there is no image of class {missing[0]} "
            "(a datalist may name such classes in 'labels')"
        )


def check_splits(
    source: str | Path, labels: Mapping[str, np.ndarray], splits: Sequence[str], class_names: Sequence[str]
) -> None:
    """Refuse data that lack a split, or that cannot be trained on.

    Args:
        source: of the data, for messages.
        labels: of each split, shape ``(N,)`` or ``(N, 1)``, or ``(N, L)`` of several labels.
        splits: those that are needed; ``"train"`` among them says that a training is to follow.
        class_names: one per class.

    Raises:
        ValueError: a split is absent, or, before a training, all images of one are alike in their labels.
    """
    for split in splits:
        if split not in labels:
            raise ValueError(f"{source} has no images in {SECTIONS[split]!r}, which split={split!r} needs")
        values = labels[split].reshape(len(labels[split]), -1)
        if "train" in splits and (values == values[0]).all():
            shown = _named(values[0, 0], class_names) if values.shape[1] == 1 else values[0].tolist()
            raise ValueError(
                f"{source}: all images in {SECTIONS[split]!r} are of class {shown}; training needs others too"
            )


def _named(number: int, class_names: Sequence[str]) -> str:
    return f"{number} ({class_names[number]!r})"
