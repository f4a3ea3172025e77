"""The sentences about few data say what the cells hold."""

from __future__ import annotations

import pytest

from benchmarks.cells import BACKGROUND
from benchmarks.few_data import Point, claim
from benchmarks.intervals import Figure


def point(labels: int, *scores: float) -> Point:
    return Point(labels, [{"sweep": {BACKGROUND: {"AUC mean": score}}} for score in scores], None)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([point(10, 0.7), point(20, 0.9)], "20 labels of ours do what 40 do for plain (0.900 and 0.800, of one seed)."),
        ([point(10, 0.7, 0.9), point(40, 0.9, 0.9)], "10 labels of ours do what 40 do for plain (0.800 and 0.800)."),
        (
            [point(10, 0.9), point(20, 0.7), point(40, 0.8, 0.8)],
            "40 labels of ours do what 40 do for plain (0.800 and 0.800).",
        ),
        (
            [point(10, 0.9), point(40, 0.7)],
            "40 labels of ours do less than 40 do for plain (0.700 and 0.800, of one seed).",
        ),
    ],
)
def test_labels_count_from_where_all_larger_parts_do_as_well(ours: list[Point], said: str) -> None:
    found = {"ours": ours, "plain": [point(40, 0.8, 0.8)]}
    assert claim("toy", "AUC rotated", Figure("AUC", "mean"), found, "plain") == f"- toy, AUC rotated: {said}"
