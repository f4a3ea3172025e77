"""What a network, a loss and a metric need to know of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MULTI_LABEL", "SPLITS", "TASKS", "DatasetInfo", "model_classes"]

MULTI_LABEL = "multi-label, binary-class"
#: The kinds of task, in MedMNIST's own words (``medmnist.Evaluator`` takes the same strings).
TASKS = ("binary-class", "multi-class", MULTI_LABEL, "ordinal-regression")
SPLITS = ("train", "val", "test")


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
        ValueError: an argument is out of range, or there is not one name per class.

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
    for number in range(max(top + 1, len(own))):
        name = own[number] if number < len(own) else None
        if number >= len(known) or not (numbered or name is None or name in known):
            shown = number if name is None else f"{number} ({name!r})"
            raise ValueError(f"{source} has class {shown}, which the model never saw; its classes are {listed}")
    if not numbered and tuple(own) != known[: len(own)]:
        theirs = ", ".join(f"{number} {name!r}" for number, name in enumerate(own))
        raise ValueError(f"{source} has the classes {theirs}, in another order than the model, which has {listed}")
    return known
