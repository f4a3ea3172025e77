"""The parts of the accuracy benchmark that could spoil its tables unseen."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.accuracy import COMMONEST, MODELS, targets_table
from benchmarks.bundles import (
    Model,
    handler_id,
    network_of,
    parsed,
    source_of,
    split_id,
    summary,
    training_entries,
)
from benchmarks.cells import BACKGROUND, ZERO, Cells, Study, Task, choose, fill, into_card, rates_table, shown_tasks
from benchmarks.peers import peer
from benchmarks.studies.improvements import MODELS as VARIANTS
from benchmarks.studies.improvements import Averaged, Masked
from benchmarks.tables import RESULTS
from monai_sre.evaluation import protocol_name

MISSING = {"official": "SRE_Conv", "gmr": "GMR_Conv"}
UNCHANGED = VARIANTS["unchanged"]


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d"])
@pytest.mark.parametrize("name", [name for name, model in (MODELS | VARIANTS).items() if not model.averaged])
def test_a_model_is_another_network_where_it_says_so(name: str, dataset: str) -> None:
    if name in MISSING and peer(MISSING[name], f"{MISSING[name][:3].lower()}_resnet") is None:
        pytest.skip(f"{MISSING[name]} is not installed")
    if name.startswith("escnn") and (dataset == "adrenalmnist3d" or importlib.util.find_spec("escnn") is None):
        pytest.skip("the networks of escnn are for images, and need an environment of their own with escnn")
    model, source = (MODELS | VARIANTS)[name], source_of(dataset)
    network, bundles = network_of(source, model).eval(), network_of(source, UNCHANGED)
    settings = model.settings | (model.settings_3d if source.spatial_dims == 3 else {})
    changed = model.overlays or model.other or model.wrapper or any("network_def" in key for key in settings)
    assert (repr(network) != repr(bundles)) == bool(changed)
    x = torch.randn(2, 1, 16, 16) if dataset == "breastmnist" else torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert network(x).shape == (2, 2)


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d"])
@pytest.mark.parametrize("name", ["disc", "ema"])
def test_what_is_wrapped_is_the_network_of_the_bundle(name: str, dataset: str) -> None:
    source = source_of(dataset)
    inner = network_of(source, VARIANTS[name]).network
    assert repr(inner) == repr(network_of(source, UNCHANGED))


def test_settings_reach_what_is_wrapped() -> None:
    source = source_of("adrenalmnist3d")
    inner, whole = network_of(source, MODELS["rounder"]).network, network_of(source, MODELS["full"])
    texts = [re.sub(r"stencils=\([^)]*\)", "", repr(network)) for network in (inner, whole)]
    assert texts[0] == texts[1]


def test_a_network_may_be_given_as_a_class_with_arguments() -> None:
    """``"_mode_": "callable"`` makes a functools.partial of an entry."""
    source = source_of("breastmnist")
    called = network_of(source, Model("", settings={"network_def#_mode_": "callable"}))
    assert repr(called) == repr(network_of(source, UNCHANGED))


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d", "CHASE_DB1", "hippocampus"])
def test_the_sweep_of_an_evaluation_is_found_by_its_name(dataset: str) -> None:
    config = source_of(dataset).bundle / "configs" / "evaluate.json"
    index = int(handler_id(config, "RotationSweep").split("#")[-1])
    entry = json.loads(config.read_text())["validate#handlers"][index]
    assert entry["_target_"] == "monai_sre.evaluation.RotationSweep"
    with pytest.raises(ValueError, match=r"evaluate\.json has no handler NoSuchHandler"):
        handler_id(config, "NoSuchHandler")


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d", "CHASE_DB1", "hippocampus"])
def test_the_split_that_is_evaluated_is_an_entry_of_the_config(dataset: str) -> None:
    source = source_of(dataset)
    assert parsed(source, UNCHANGED)[split_id(source)] == "val"
    assert parsed(source, UNCHANGED, "evaluate.json")[split_id(source)] == "test"


def test_a_cell_is_trained_evaluated_and_kept(tmp_path: Path) -> None:
    """A plain network and its average over rotations, on squares of two sizes; the second takes the first one's weights."""
    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    for split in ("train", "val", "test"):
        labels = np.arange(6 if split == "val" else 8) % 2
        images = rng.integers(0, 60, (len(labels), 12, 12), dtype=np.uint8)
        images[:, 5:7, 5:7] = 220
        images[labels == 1, 3:9, 3:9] = 220
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "toy.npz", **arrays)
    narrow = {"network_def#block_inplanes": [4, 4, 4, 4], "batch_size": 8}
    models = {"plain": Model("plain", ("plain.json",), narrow), "averaged": Model("averaged", averaged="plain")}
    study = Study(
        "toys", models, metric="auc", scores=("ACC", "AUC"), split="val", step=90, epochs={"toy": 1}, results=tmp_path
    )
    cells = {}
    for name in models:
        chosen = argparse.Namespace(dataset="toy", model=name, seed=3, size=28, epochs=None, learning_rate=None)
        chosen.validation_only, chosen.dataset_dir, chosen.work = False, str(tmp_path), str(tmp_path / "work")
        fill(study, chosen)
        path = tmp_path / "toys" / f"toy_{name}_lr0.02_1_3.json"
        cells[name], kept = json.loads(path.read_text()), path.with_suffix(".npz")
        written = path.stat().st_mtime_ns
        fill(study, chosen)  # both exist
        assert path.stat().st_mtime_ns == written
        kept.unlink()
        fill(study, chosen)
        assert path.stat().st_mtime_ns > written
        found = np.load(kept)
        for place, protocol in enumerate(found["protocols"]):
            sweep = cells[name]["sweep"][protocol]
            assert found["transformations"].tolist() == [row["transformation"] for row in sweep["rows"]]
            decided = found["log_odds"][place] > 0  # (transformations, images)
            shares = (decided == found["labels"]).mean(axis=1)
            assert shares.tolist() == [row["ACC"] for row in sweep["rows"]]
    assert len(list((tmp_path / "work").iterdir())) == 1
    plain, averaged = cells["plain"], cells["averaged"]
    assert (plain["epochs"], plain["seed"], plain["learning_rate"]) == (1, 3, 0.02)
    assert plain["validation"] == averaged["validation"]
    assert [row["transformation"] for row in plain["sweep"]["nearest_zero"]["rows"]][:4] == ["0", "90", "180", "270"]
    rotated = [row["AUC"] for row in averaged["sweep"]["bilinear_background"]["rows"][:4]]
    assert rotated == pytest.approx([rotated[0]] * 4)
    assert plain["upright"]["num_images"] == 6
    assert plain["upright"]["ACC"] == plain["sweep"]["bilinear_background"]["ACC upright"]


def test_a_part_of_the_data_takes_as_many_steps(tmp_path: Path) -> None:
    """Of 200 images in batches of 64, 4 steps an epoch; a quarter is one batch."""
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": np.zeros((200, 8, 8), dtype=np.uint8), f"{split}_labels": np.arange(200) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    source = source_of("a", str(tmp_path))
    assert training_entries(source, Model(""), 10) == {"max_epochs": 10}
    found = training_entries(source, Model("", few=25), 10)
    assert found == {"max_epochs": 40, "num_train": 50, "val_interval": 4}
    parser = parsed(source, Model("", settings=found))
    assert len(parser.get_parsed_content("train#dataloader")) == 1
    assert len(parser.get_parsed_content("train#dataset")) == 50


def test_a_table_replaces_the_one_between_its_marks(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- accuracy of a -->\nold\n<!-- end of a -->\nafter\n")
    for _ in range(2):
        into_card(card, "a", ["| new |"])
        into_card(card, "b", ["| nowhere |"])
    assert card.read_text() == "before\n<!-- accuracy of a -->\n\n| new |\n\n<!-- end of a -->\nafter\n"


def test_the_learning_rate_that_validates_best_is_chosen() -> None:
    """The mean of the seeds counts; a rate that has fewer seeds, or no sweep, waits."""
    rates = {
        0.02: ((0.9, 0.6), True),
        0.05: ((0.8, 0.8), True),
        0.1: ((0.7, 0.7), True),
        0.2: ((1.0,), True),
        0.5: ((1.0, 1.0), False),
    }
    tried = {
        (Task("a", 5), "plain", rate): [
            {"validation": {"auc": auc}} | ({"sweep": {}} if swept else {}) for auc in scores
        ]
        for rate, (scores, swept) in rates.items()
    }
    assert choose(tried) == {(Task("a", 5), "plain"): tried[Task("a", 5), "plain", 0.05]}


def test_what_was_not_swept_stands_among_what_was_tried() -> None:
    """Of a network with one learning rate that only validated, no other table says anything."""
    study = Study("toy", {"swept": MODELS["plain"], "tried": MODELS["harmonic"]}, metric="auc", scores=("AUC",))
    cell = {"learning_rate": 0.1, "final_train_loss": 0.5, "validation": {"auc": 0.75}}
    cells = {(Task("toy", 1), "swept", 0.1): [{**cell, "sweep": {}}], (Task("toy", 1), "tried", 0.1): [cell]}
    lines = rates_table(study, cells, {})
    assert [line for line in lines if "0.1" in line] == [
        f"| toy, 1 epochs | {MODELS['harmonic'].title} | 0.1 | 1 | 0.500 | 0.750 | 0.750 |  |"
    ]


def test_the_card_shows_the_longest_of_the_fullest_tables() -> None:
    """Models without a curve do not count."""
    tasks = {Task("a", 100): ["plain", "sre"], Task("a", 40): ["plain", "sre", "wide"], Task("a", 200): ["plain"]}
    found: dict[Task, dict[str, Cells]] = {task: {model: [] for model in models} for task, models in tasks.items()}
    assert shown_tasks(found, {"plain", "sre"}) == {"a": Task("a", 100)}


@pytest.mark.parametrize("dataset", COMMONEST)
def test_share_of_the_commonest_class(dataset: str) -> None:
    path = Path(os.environ.get("MONAI_SRE_DATA", "")) / "medmnist" / f"{dataset}.npz"
    if not path.is_file():
        pytest.skip("the folder that MONAI_SRE_DATA names has no such file")
    labels = np.load(path)["test_labels"].ravel()
    assert COMMONEST[dataset] == np.bincount(labels).max() / len(labels)


def test_a_training_is_summed_up_by_its_best_epoch(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    weights = {
        "conv.weight": torch.zeros(3, 4),
        "norm.running_mean": torch.zeros(3),
        "average.conv.weight": torch.zeros(3, 4),
    }
    weights["layers.0.weight"] = weights["conv.weight"]  # as a network with its modules under two names has it
    torch.save(weights, tmp_path / "models" / "model.pt")
    (tmp_path / "metrics.csv").write_text("epoch,train_loss,val_auc\n1,0.9,\n2,0.5,0.8\n3,0.4,0.7\n")
    found = summary(tmp_path, "val_auc")
    assert (found["epochs"], found["best_epoch"], found["final_train_loss"]) == (3, 2, 0.4)
    assert found["validation"] == {"auc": 0.8}
    assert found["parameters"] == 12


def test_the_average_follows_the_network_and_is_what_is_evaluated() -> None:
    torch.manual_seed(0)
    network = Averaged("torch.nn.Linear", decay=0.75, in_features=3, out_features=2)
    x = torch.randn(4, 3)
    network(x)  # the first step takes the weights as they are
    start = network.network.weight.clone()
    with torch.no_grad():
        network.network.weight.add_(1)
    network.eval()
    torch.testing.assert_close(network.average.module.weight, start + 0.25)
    torch.testing.assert_close(network(x), network.average.module(x))
    network.eval()  # no step between: no change
    torch.testing.assert_close(network.average.module.weight, start + 0.25)


@pytest.mark.parametrize("dims", [2, 3])
def test_corners_do_not_reach_a_masked_network(dims: int) -> None:
    seen = Masked("torch.nn.Identity")(torch.ones(1, 1, *[8] * dims))[0, 0]
    assert seen.view(-1)[0] == 0
    assert seen[(4,) * dims] == 1
    assert seen.mean() == pytest.approx({2: 0.785, 3: 0.524}[dims], abs=0.04)  # pi / 4, pi / 6


@pytest.mark.parametrize("dims", [2, 3])
def test_metadata_state_what_the_shipped_weights_scored(dims: int) -> None:
    dataset = {2: "breastmnist", 3: "adrenalmnist3d"}[dims]
    stated = json.loads((source_of(dataset).bundle / "configs/metadata.json").read_text())["eval_metrics"]
    measured = json.loads((RESULTS / "accuracy_shipped.json").read_text())[dataset]["sweep"]
    for metric in ("ACC", "AUC"):
        assert stated[metric] == pytest.approx(measured["bilinear_background"][f"{metric} upright"], abs=6e-5)
    for name in [name for name in stated if ", " in name]:
        what, protocol = name.split(", ")
        key = what.replace("rotated", "mean")
        assert stated[name] == pytest.approx(measured[protocol_name(protocol)][key], abs=6e-5), name


def test_without_images_the_seeds_say_what_is_reached() -> None:
    """Differences to the network itself are of pairs; one seed says nothing, and of a loss less is better."""

    def cells(model: str, *scores: tuple[float, float]) -> Cells:
        known = {"dataset": "toy", "model": model, "learning_rate": 1.0, "epochs": 1, "parameters": 1}
        return [
            {**known, "seed": seed, "final_train_loss": 0.2, "sweep": dict.fromkeys((BACKGROUND, ZERO), figures)}
            for seed, (upright, mean) in enumerate(scores)
            for figures in [
                {"ACC upright": upright, "ACC mean": mean, "AUC upright": 1, "AUC mean": 1, "consistency": 1}
            ]
        ]

    def said(**chosen: Cells) -> dict[str, list[str]]:
        """The difference and the word of each target."""
        lines = targets_table({(Task("toy", 1), model): members for model, members in chosen.items()})
        parts = [[part.strip() for part in line.split("|")[1:-1]] for line in lines if line.startswith("| toy")]
        return {part[1]: part[-2:] for part in parts}

    ours, plain = cells("harmonic", (0.7, 0.65), (0.9, 0.85)), cells("plain", (0.7, 0.3), (0.9, 0.5))
    rows = said(harmonic=ours, plain=plain)
    assert rows["rotated at most a point below its own upright"] == ["-0.050 [-0.050, -0.050] seeds", "**no**"]
    assert rows["rotated at least 10 points above plain"] == ["+0.350 [-0.258, +0.958] seeds", "level"]
    assert rows["final training loss at most 0.1 above plain"] == ["+0.000 [+0.000, +0.000] seeds", "yes"]
    assert said(harmonic=ours[:1])["consistency at least 0.9"] == ["1.000", ""]
