"""The bundle's weights on retinal vessels: two ways to count give one figure where they count the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss, SoftDiceclDiceLoss

from benchmarks.bundles import VESSELS, parsed, source_of
from benchmarks.cells import BACKGROUND
from benchmarks.tables import RESULTS
from benchmarks.vessels import MODELS, POOLED, WHOLE


def test_the_mean_of_photographs_is_that_of_the_evaluation() -> None:
    shipped = json.loads((RESULTS / "vessels_shipped.json").read_text())[VESSELS]["sweep"][BACKGROUND]
    bundle = json.loads(POOLED.read_text())["the bundle's weights, of 16 photographs"][0]["angles"]
    swept = {row["transformation"]: row["Dice"] for row in shipped["rows"]}
    assert bundle == pytest.approx({name: swept[name] for name in bundle}, abs=2e-4)


def test_all_photographs_that_are_not_tested_train(tmp_path: Path) -> None:
    for name in ("images/{:02}.jpg", "labels1/{:02}_1stHO.png"):
        for number in range(28):
            path = tmp_path / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.touch()
    config = parsed(source_of(VESSELS, str(tmp_path)), WHOLE)
    config["validate#pairs#split"] = "test"
    trained, tested = (
        [int(Path(pair["image"]).stem) for pair in config.get_parsed_content(f"{part}#pairs")]
        for part in ("train", "validate")
    )
    assert (trained, tested) == (list(range(20)), list(range(20, 28)))


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


def test_losses_are_those_that_the_titles_say() -> None:
    logits, labels = torch.randn(2, 2, 24, 24), torch.randint(0, 2, (2, 1, 24, 24))
    bundle = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)(logits, labels)
    lines = SoftDiceclDiceLoss(alpha=1.0, to_onehot_y=True, softmax=True)(logits, labels)
    losses = {
        name: parsed(source_of(VESSELS), MODELS[name]).get_parsed_content("loss")
        for name in ("harmonic", "with-centreline", "supervised")
    }
    torch.testing.assert_close(losses["harmonic"](logits, labels), bundle)
    torch.testing.assert_close(losses["with-centreline"](logits, labels), bundle + 0.3 * lines)
    torch.testing.assert_close(losses["supervised"]([logits, logits], labels), 1.5 * bundle)
    network = parsed(source_of(VESSELS), MODELS["supervised"]).get_parsed_content("network")
    assert [out.shape for out in network.train()(torch.randn(1, 3, 24, 24))] == 2 * [(1, 2, 24, 24)]
