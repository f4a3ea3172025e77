"""The parts of the accuracy benchmark that could spoil its tables unseen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy_models import MODELS, VARIANTS, bundle_of, network_of
from benchmarks.accuracy_tables import COMMONEST, SHIPPED, Task, _shown, choose, into_card
from benchmarks.cells import summary
from benchmarks.peers import peer
from benchmarks.variants import Averaged, Masked

MISSING = {"official": "SRE_Conv", "gmr": "GMR_Conv"}


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d"])
@pytest.mark.parametrize("name", [name for name, model in (MODELS | VARIANTS).items() if not model.averaged])
def test_a_model_is_another_network_where_it_says_so(name: str, dataset: str, tmp_path: Path) -> None:
    if name in MISSING and peer(MISSING[name], f"{MISSING[name][:3].lower()}_resnet") is None:
        pytest.skip(f"{MISSING[name]} is not installed")
    model = (MODELS | VARIANTS)[name]
    network = network_of(model, dataset, str(tmp_path)).eval()
    bundles = network_of(VARIANTS["unchanged"], dataset, str(tmp_path))
    changed = model.overlays or any(entry.startswith("network_def") for entry in model.entries(2))
    assert (repr(network) != repr(bundles)) == bool(changed)
    x = torch.randn(2, 1, 16, 16) if dataset == "breastmnist" else torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert network(x).shape == (2, 2)


@pytest.mark.parametrize("dataset", ["breastmnist", "adrenalmnist3d"])
@pytest.mark.parametrize("name", ["disc", "ema"])
def test_what_is_wrapped_is_the_network_of_the_bundle(name: str, dataset: str, tmp_path: Path) -> None:
    inner = network_of(VARIANTS[name], dataset, str(tmp_path)).network
    assert repr(inner) == repr(network_of(VARIANTS["unchanged"], dataset, str(tmp_path)))


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


def test_the_card_shows_the_longest_of_the_fullest_tables() -> None:
    """Models without a curve do not count."""
    tasks = {Task("a", 100): ["plain", "sre"], Task("a", 40): ["plain", "sre", "wide"], Task("a", 200): ["plain"]}
    found: dict[Task, dict[str, list[dict[str, object]]]]
    found = {task: {model: [] for model in models} for task, models in tasks.items()}
    assert _shown(found, {"plain", "sre"}) == {"a": Task("a", 100)}


@pytest.mark.parametrize("dataset", COMMONEST)
def test_share_of_the_commonest_class(dataset: str, data_dir: Path) -> None:
    labels = np.load(data_dir / f"medmnist/{dataset}.npz")["test_labels"].ravel()
    assert COMMONEST[dataset] == np.bincount(labels).max() / len(labels)


def test_a_training_is_summed_up_by_its_best_epoch(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    weights = {
        "conv.weight": torch.zeros(3, 4),
        "norm.running_mean": torch.zeros(3),
        "average.conv.weight": torch.zeros(3, 4),
    }
    torch.save(weights, tmp_path / "models" / "model.pt")
    (tmp_path / "metrics.csv").write_text("epoch,train_loss,val_auc\n1,0.9,\n2,0.5,0.8\n3,0.4,0.7\n")
    found = summary(tmp_path, "val_auc")
    assert (found["epochs"], found["best_epoch"], found["final_train_loss"]) == (3, 2, 0.4)
    assert found["validation"] == {"auc": 0.8}
    assert found["parameters"] == 12


def test_the_average_follows_the_network_and_is_what_is_evaluated() -> None:
    torch.manual_seed(0)
    network = Averaged(torch.nn.Linear(3, 2), decay=0.75)
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
    seen = Masked(torch.nn.Identity())(torch.ones(1, 1, *[8] * dims))[0, 0]
    assert seen.view(-1)[0] == 0
    assert seen[(4,) * dims] == 1
    assert seen.mean() == pytest.approx({2: 0.785, 3: 0.524}[dims], abs=0.04)  # pi / 4, pi / 6


@pytest.mark.parametrize("dims", [2, 3])
def test_metadata_state_what_the_shipped_weights_scored(dims: int) -> None:
    stated = json.loads((bundle_of(dims) / "configs/metadata.json").read_text())["eval_metrics"]
    measured = json.loads(SHIPPED.read_text())[{2: "breastmnist", 3: "adrenalmnist3d"}[dims]]
    for metric in ("ACC", "AUC"):
        assert stated[metric] == pytest.approx(measured["clean"][f"{metric} upright"], abs=6e-5)
    for name in [name for name in stated if ", " in name]:
        what, protocol = name.split(", ")
        key = what.replace("rotated", "mean")
        assert stated[name] == pytest.approx(measured[protocol][key], abs=6e-5), name
