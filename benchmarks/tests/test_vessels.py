"""The bundle's weights on retinal vessels: two ways to count give one figure where they count the same."""

from __future__ import annotations

import json

import pytest

from benchmarks.bundles import VESSELS, parsed, source_of
from benchmarks.cells import BACKGROUND
from benchmarks.tables import RESULTS
from benchmarks.vessels import MODELS, POOLED


def test_the_mean_of_photographs_is_that_of_the_evaluation() -> None:
    shipped = json.loads((RESULTS / "vessels_shipped.json").read_text())[VESSELS]["sweep"][BACKGROUND]
    assert json.loads(POOLED.read_text())["inside the field of view"][0] == pytest.approx(
        shipped["Dice upright"], abs=2e-4
    )


def test_augmentation_takes_the_places_that_it_means() -> None:
    """Entries of a list are named by their numbers: another order in the bundle's config would change something else."""
    names = [
        [entry["_target_"] for entry in parsed(source_of(VESSELS), MODELS[name])["train#sampling"]]
        for name in ("harmonic", "augmented")
    ]
    assert names[1] == ["Rand2DElasticd" if name == "RandRotated" else name for name in names[0]]
    changed = [
        entry["_target_"]
        for entry in parsed(source_of(VESSELS), MODELS["augmented"])["train#sampling"]
        if "channel_wise" in entry
    ]
    assert changed == ["RandScaleIntensityd", "RandShiftIntensityd"]
