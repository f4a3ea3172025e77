"""The sentences about few data say what the cells hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cells import BACKGROUND
from benchmarks.few_data import Point, claim, same_labels
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


def drawn(labels: int, *wrong: int) -> Point:
    """A seed for each number: of 20 images, the two that end with it are wrong under both rotations; for 10, none."""
    truth, seeds = np.arange(20) % 2, []
    for number in wrong:
        rows = np.where(np.arange(20) % 10 == number, -1, 1) * (2 * truth - 1.0)
        seeds.append(
            {
                "protocols": np.array([BACKGROUND]),
                "transformations": np.array(["0", "90"]),
                "labels": truth,
                "log_odds": np.tile(rows, (1, 2, 1)),
            }
        )
    return Point(labels, [{"sweep": {BACKGROUND: {"ACC mean": 0.9}}} for _ in wrong], seeds)


def test_level_is_said_where_the_interval_holds_zero() -> None:
    found = {"ours": [drawn(10, 0, 0), drawn(40, 0, 0)], "plain": [drawn(40, 0, 0)]}
    said = claim("toy", "ACC rotated", Figure("ACC", "mean"), found, "plain")
    assert said.startswith(
        "- toy, ACC rotated: 10 labels of ours are level with 40 of plain (0.900 and 0.900, difference"
    )


def test_networks_are_compared_at_the_same_number_of_labels() -> None:
    """Parts that one of the two lacks, or has of one seed alone, are left out."""
    found = {
        "ours": [drawn(10, 0, 0), drawn(20, 0), drawn(40, 10, 10)],
        "plain": [drawn(10, 0, 0), drawn(20, 0, 0), drawn(40, 0, 0)],
        "plain-turned": [drawn(30, 0, 0)],
    }
    rows = same_labels({"ACC": Figure("ACC", "mean")}, found)[5:]
    assert [row.split(" | ")[:2] for row in rows] == [["| plain", "10"], ["| plain", "40"]]
    assert rows[0].split(" | ")[2].startswith("+0.000 [")
    assert rows[1].split(" | ")[2].startswith("+0.100 [")
