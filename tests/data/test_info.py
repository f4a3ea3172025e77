"""The description of a data set, and the classes of a trained model."""

from __future__ import annotations

from typing import Any

import pytest

from monai_sre.data import DatasetInfo
from monai_sre.data.info import model_classes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "regression"}, "task of data set 'toy' must be one of .*got 'regression'"),
        ({"spatial_dims": 1}, "spatial_dims of data set 'toy' must be 2 or 3, got 1"),
        ({"size": 0}, "must be at least 1"),
        ({"class_names": ("a",)}, "has 2 classes and 1 class_names"),
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
        (("a", "b", "c", "d"), 3, r"x.json has class 3 \('d'\), which the model never saw"),
        (("a", "x"), 1, r"x.json has class 1 \('x'\), which the model never saw"),
        (("b", "a"), 1, "x.json has the classes 0 'b', 1 'a', in another order than the model, which has 0 'a', 1 'b'"),
    ],
)
def test_classes_that_the_model_does_not_know(own: Any, top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_classes("x.json", own, top, ["a", "b", "c"])
