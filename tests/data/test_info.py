"""The description of a data set, and the classes of a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monai_sre.data import DatasetInfo
from monai_sre.data.info import check_class_numbers, check_splits, model_classes, whole_numbers


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "regression"}, "task of data set 'toy' must be one of .*got 'regression'"),
        ({"spatial_dims": 1}, "spatial_dims of data set 'toy' must be 2 or 3, got 1"),
        ({"size": 0}, "must be at least 1"),
        ({"class_names": ("a",)}, "has 2 classes and 1 class_names"),
        ({"class_names": ("a", "a")}, r"class_names of data set 'toy' must differ, got \('a', 'a'\)"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], message: str) -> None:
    values = {"name": "toy", "spatial_dims": 2, "size": 8, "task": "binary-class", "num_channels": 1, "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        DatasetInfo(**{**values, "class_names": ("a", "b"), **changed})


@pytest.mark.parametrize(
    ("own", "top", "model", "expected"),
    [
        ((), 2, None, ("0", "1", "2")),
        ((), 0, None, ("0", "1")),
        (("a", "b"), 0, None, ("a", "b")),
        ((), 1, ["a", "b", "c"], ("a", "b", "c")),  # the last class is not in the data
        (("a", "b"), 1, ["a", "b", "c"], ("a", "b", "c")),
        (("a", "b"), 1, ["0", "1"], ("0", "1")),  # trained on data that only number their classes
    ],
)
def test_classes_of_the_model_or_of_the_data(own: Any, top: int, model: Any, expected: tuple[str, ...]) -> None:
    assert model_classes("x.json", own, top, model) == expected


@pytest.mark.parametrize(
    ("own", "top", "message"),
    [
        ((), 3, "x.json has class 3, which the model never saw; its classes are 0 'a', 1 'b', 2 'c'"),
        ((), 10**12, "x.json has class 1000000000000, which the model never saw"),
        (("a", "b", "c", "d"), 3, r"x.json has class 3 \('d'\), which the model never saw"),
        (("a", "x"), 1, r"x.json has class 1 \('x'\), which the model never saw"),
        (("b", "a"), 1, "x.json has the classes 0 'b', 1 'a', in another order than the model, which has 0 'a', 1 'b'"),
    ],
)
def test_classes_that_the_model_does_not_know(own: Any, top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_classes("x.json", own, top, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False], [1, 0]),
        ([[0.0], [1.0000153], [0.9990001]], [[0], [1], [1]]),
        (np.array([3, 0], ">u2"), [3, 0]),
        (np.array([2], np.longdouble), [2]),
    ],
)
def test_class_numbers_are_whole_within_a_thousandth(values: Any, expected: list) -> None:
    found = whole_numbers(values, "labels")
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("bad", [1.5, 1.0011, -1, np.nan, np.inf, 1e300, 1j, "1"])
def test_other_labels_are_refused_by_value(bad: Any) -> None:
    shown = "(complex128|<U21|<U32) values" if isinstance(bad, complex | str) else str(bad).replace("+", r"\+")
    with pytest.raises(ValueError, match=f"labels must be whole numbers from 0, got {shown}"):
        whole_numbers([0, bad], "labels")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "has the labels 1, 2; classes are numbered .* no image of class 0"),
        ([0, 255], "has the labels 0, 255; .* no image of class 1"),
        ([0, 70000], "has the labels 0, 70000; "),
        ([0, 1, 10**12], "has the labels 0, 1, 1000000000000; .* no image of class 2"),
        (list(range(2, 9)), "has the labels 2, 3, 4, 5, 6, ...; .* no image of class 0"),
    ],
)
def test_classes_are_numbered_without_gaps(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"x.npz {message}"):
        check_class_numbers("x.npz", {"train": np.array(labels), "val": np.array(labels[:1])})
    check_class_numbers("x.npz", {"test": np.array(labels)})  # nothing is to be trained
    check_class_numbers("x.npz", {"train": np.array([0, 2]), "val": np.array([1])})


def test_what_a_training_needs_of_its_splits() -> None:
    labels = {"train": np.array([0, 0, 1]), "val": np.array([[1], [1]])}
    check_splits("x.json", labels, (), "abc")
    with pytest.raises(ValueError, match=r"x.json has no images in 'test', which split='test' needs"):
        check_splits("x.json", labels, ("test",), "abc")
    with pytest.raises(
        ValueError, match=r"all images in 'validation' are of class 1 \('b'\); training needs others too"
    ):
        check_splits("x.json", labels, ("train", "val"), "abc")
    several = {"train": np.array([[0, 1, 0], [0, 1, 1]]), "val": np.array([[0, 1, 1]] * 2)}
    with pytest.raises(ValueError, match=r"all images in 'validation' are of class \[0, 1, 1\]"):
        check_splits("x.json", several, ("train", "val"), "abc")
