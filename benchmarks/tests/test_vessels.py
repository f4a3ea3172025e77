"""The bundle's weights on retinal vessels: two ways to count give one figure where they count the same."""

from __future__ import annotations

import json

import pytest

from benchmarks.bundles import VESSELS
from benchmarks.cells import BACKGROUND
from benchmarks.tables import RESULTS
from benchmarks.vessels import POOLED


def test_the_mean_of_photographs_is_that_of_the_evaluation() -> None:
    shipped = json.loads((RESULTS / "vessels_shipped.json").read_text())[VESSELS]["sweep"][BACKGROUND]
    assert json.loads(POOLED.read_text())["inside the field of view"][0] == pytest.approx(
        shipped["Dice upright"], abs=2e-4
    )
