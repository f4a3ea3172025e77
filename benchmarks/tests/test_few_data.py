"""The sentences about few data say what the cells hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cells import BACKGROUND
from benchmarks.few_data import Point, claim
from benchmarks.intervals import Figure


def point(labels: int, *scores: float) -> Point:
    return Point(labels, [{"sweep": {BACKGROUND: {"AUC mean": score}}} for score in scores], None)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([point(10, 0.9), point(20, 0.9)], "no claim against plain from one seed."),
        (
            [point(10, 0.9), point(20, 0.7, 0.9), point(40, 0.9, 0.9)],
            "20 labels of ours do what 40 do for plain (0.800 and 0.800).",
        ),
        (
            [point(10, 0.9, 0.9), point(20, 0.7, 0.7), point(40, 0.8, 0.8)],
            "40 labels of ours do what 40 do for plain (0.800 and 0.800).",
        ),
        (
            [point(10, 0.9, 0.9), point(40, 0.7, 0.7)],
            "40 labels of ours do less than 40 do for plain (0.700 and 0.800).",
        ),
    ],
)
def test_labels_count_from_where_all_larger_parts_do_as_well(ours: list[Point], said: str) -> None:
    found = {"ours": ours, "plain": [point(40, 0.8, 0.8)]}
    assert claim("toy", "AUC rotated", Figure("AUC", "mean"), found, "plain") == f"- toy, AUC rotated: {said}"


def test_level_is_said_where_the_interval_holds_zero() -> None:
    def drawn(labels: int) -> Point:
        """Two seeds, of which one in ten images is wrong."""
        truth = np.arange(20) % 2
        rows = np.where(np.arange(20) % 10, 1, -1) * (2 * truth - 1.0)
        images = {
            "protocols": np.array([BACKGROUND]),
            "transformations": np.array(["0", "90"]),
            "labels": truth,
            "log_odds": np.tile(rows, (1, 2, 1)),
        }
        return Point(labels, 2 * [{"sweep": {BACKGROUND: {"ACC mean": 0.9}}}], 2 * [images])

    found = {"ours": [drawn(10), drawn(40)], "plain": [drawn(40)]}
    said = claim("toy", "ACC rotated", Figure("ACC", "mean"), found, "plain")
    assert said.startswith(
        "- toy, ACC rotated: 10 labels of ours are level with 40 of plain (0.900 and 0.900, difference"
    )
