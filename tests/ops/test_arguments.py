"""Checks of arguments."""

from __future__ import annotations

from typing import Any

import pytest

from monai_sre.ops.arguments import int_tuple


@pytest.mark.parametrize(
    ("value", "length", "expected"), [(2, 3, (2, 2, 2)), ([1, 2], 2, (1, 2)), ((5,), 1, (5,)), (0, 2, (0, 0))]
)
def test_accepted(value: Any, length: int, expected: tuple[int, ...]) -> None:
    assert int_tuple("stride", value, length, minimum=0) == expected


@pytest.mark.parametrize(
    "value", [1.0, "2", "12", b"12", None, True, (1, True), (1, 2.0), {1, 2}, {1: 2, 2: 3}, [None, 1]]
)
def test_wrong_types(value: Any) -> None:
    with pytest.raises(TypeError) as error:
        int_tuple("stride", value, 2, minimum=1)
    assert str(error.value) == f"stride must be an integer >= 1 or 2 of them, got {value!r}"


@pytest.mark.parametrize("value", [0, -3, (1, 0), (1,), (1, 2, 3), ()])
def test_wrong_values(value: Any) -> None:
    with pytest.raises(ValueError, match="stride must be an integer >= 1 or 2 of them, got ") as error:
        int_tuple("stride", value, 2, minimum=1)
    assert str(error.value).endswith(repr(value))
