"""Both MedMNIST bundles through ``monai.bundle``: train, resume, evaluate, two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bundles import running
from tests.bundles.running import causes, rows, run_in_two_processes

BUNDLES = {dims: running.BUNDLES / f"medmnist_{dims}d_classification" for dims in (2, 3)}
FLAGS = {2: "breastmnist", 3: "adrenalmnist3d"}
WIDTH = {"network_def#width": 4}


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets in MedMNIST's layout that a network can learn: bright squares of two sizes."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for dims in (2, 3):
        arrays = {}
        for split, count in (("train", 24), ("val", 8), ("test", 9)):
            labels = np.arange(count) % 2
            images = rng.integers(0, 60, (count, *[12] * dims), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[(slice(3, 9),) * dims if label else (slice(5, 7),) * dims] = 220
            arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None].astype(np.uint8)}
        np.savez(folder / f"toy{dims}.npz", **arrays)
    return folder


def run(dims: int, *configs: str, **options: Any) -> None:
    running.run(BUNDLES[dims], *configs, **options)


def train(dims: int, **options: Any) -> None:
    run(dims, "train", **WIDTH, **options)


def toy(dims: int, folder: Path, **options: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "dataset_name": f"toy{dims}",
        "dataset_dir": str(folder),
        "batch_size": 8,
    }
    common["learning_rate"] = 0.02 if dims == 2 else 0.01
    return {**common, "device": "cpu", **options}


@pytest.fixture(scope="session")
def trained(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Each bundle trained for four epochs without interruption."""
    folders = {dims: tmp_path_factory.mktemp(f"trained{dims}") for dims in (2, 3)}
    for dims, folder in folders.items():
        train(dims, **toy(dims, toy_dir), max_epochs=4, output_dir=str(folder))
    return folders


def test_classes_keep_the_names_that_the_data_give_them(tmp_path: Path) -> None:
    """Names in another order would call each class by another's: refused in training and in evaluation, before all else."""
    rng = np.random.default_rng(0)
    for name, level in (("benign", 40), ("malignant", 200)):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 50, (8, 8)) + level
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"cells/{name}/{number}.png")
    common = {"dataset_name": "cells", "dataset_dir": str(tmp_path), "size": 8, "batch_size": 8, "device": "cpu"}
    turned = ["malignant", "benign"]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        train(2, **common, max_epochs=1, output_dir=str(tmp_path / "no"), class_names=turned)
    assert "class_names must be ['benign', 'malignant'], in this order" in causes(caught.value)
    assert not (tmp_path / "no").exists()
    train(2, **common, max_epochs=1, output_dir=str(tmp_path / "out"))
    common |= {"ckpt_dir": str(tmp_path / "out/models"), "output_dir": str(tmp_path / "evaluation")}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(2, "train", "evaluate", **common, class_names=turned)
    assert "class_names must be ['benign', 'malignant'], in this order" in causes(caught.value)
    run(2, "train", "evaluate", **common)
    found = rows(tmp_path / "evaluation/predictions.csv")
    assert [Path(row["file"]).relative_to(tmp_path / "cells") for row in found] == [
        Path(name, f"{number}.png") for name in ("benign", "malignant") for number in (8, 9)
    ]
    assert [row["label"] for row in found] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("dims", [2, 3])
def test_training_leaves_what_it_promises(trained: dict[int, Path], dims: int) -> None:
    folder = trained[dims]
    history = rows(folder / "metrics.csv")
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    assert set(history[0]) == {"epoch", "train_loss", "learning_rate", "val_auc", "val_acc", "val_loss"}
    rates = [float(row["learning_rate"]) for row in history]
    base = 0.02 if dims == 2 else 0.01
    expected = [1e-6 + (base - 1e-6) * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    with Image.open(folder / "learning_curves.png") as picture:
        assert picture.width > 500
    state = torch.load(folder / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    best = max(float(row["val_auc"]) for row in history)
    assert torch.load(folder / "models/last.pt", weights_only=True)["best"] == pytest.approx(best)


def test_a_resumed_run_repeats_an_uninterrupted_one(toy_dir: Path, trained: dict[int, Path], tmp_path: Path) -> None:
    options = {**toy(2, toy_dir), "output_dir": str(tmp_path), "lr_scheduler#T_max": 4}
    train(2, **options, max_epochs=2)
    train(2, **options, max_epochs=4, resume=True)
    assert rows(tmp_path / "metrics.csv") == rows(trained[2] / "metrics.csv")
    for name in ("model.pt", "last.pt"):
        resumed, whole = (torch.load(f / "models" / name, weights_only=True) for f in (tmp_path, trained[2]))
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_resuming_what_is_missing_or_damaged_is_refused_and_what_is_complete_gets_its_picture(
    toy_dir: Path, tmp_path: Path
) -> None:
    options = {**toy(2, toy_dir), "output_dir": str(tmp_path), "max_epochs": 1}
    with pytest.raises(RuntimeError) as caught:
        train(2, **options, resume=True)
    assert "no last.pt" in causes(caught.value)
    train(2, **options)
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.csv", "models/last.pt", "models/model.pt")}
    (tmp_path / "learning_curves.png").unlink()  # as if the process had been killed before
    train(2, **options, resume=True)
    assert (tmp_path / "learning_curves.png").is_file()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    (tmp_path / "models/last.pt").write_bytes(b"damaged")
    with pytest.raises(RuntimeError) as caught:
        train(2, **options, resume=True)
    assert "last.pt cannot be read" in causes(caught.value)


def test_early_stopping_ends_the_training(toy_dir: Path, tmp_path: Path) -> None:
    options = {**toy(2, toy_dir), "output_dir": str(tmp_path), "learning_rate": 0.0}
    train(2, **options, **{"optimizer#weight_decay": 0.0}, max_epochs=9, early_stopping=2)
    scores = [float(row["val_auc"]) for row in rows(tmp_path / "metrics.csv")]
    assert len(scores) < 9
    best = int(np.argmax(scores))
    assert len(scores) == best + 1 + 2


def test_seed_and_amp_do_what_they_say(toy_dir: Path, trained: dict[int, Path], tmp_path: Path) -> None:
    losses = {}
    for name, extra in {"same": {"seed": 0}, "seed": {"seed": 1}, "amp": {"amp": True}}.items():
        folder = tmp_path / name
        scheduled = {"lr_scheduler#T_max": 4, "max_epochs": 1}
        train(2, **toy(2, toy_dir), **scheduled, **extra, output_dir=str(folder))
        losses[name] = float(rows(folder / "metrics.csv")[0]["train_loss"])
    reference = float(rows(trained[2] / "metrics.csv")[0]["train_loss"])
    assert losses["same"] == reference
    assert losses["seed"] != reference
    assert losses["amp"] != reference
    assert losses["amp"] == pytest.approx(reference, rel=0.2)  # bfloat16 rounding, through three steps


@pytest.mark.parametrize("dims", [2, 3])
def test_evaluation_equals_medmnist(toy_dir: Path, trained: dict[int, Path], tmp_path: Path, dims: int) -> None:
    from medmnist.evaluator import getACC, getAUC

    options = {**toy(dims, toy_dir), "ckpt_dir": str(trained[dims] / "models"), "output_dir": str(tmp_path)}
    run(dims, "train", "evaluate", **options, sweep=True)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    table = rows(tmp_path / "predictions.csv")
    truth = np.load(toy_dir / f"toy{dims}.npz")["test_labels"]
    scores = np.array([[float(row["p(0)"]), float(row["p(1)"])] for row in table])
    assert metrics["ACC"] == pytest.approx(getACC(truth, scores, "binary-class"), abs=1e-9)
    assert metrics["AUC"] == pytest.approx(getAUC(truth, scores, "binary-class"), abs=1e-9)
    matrix = rows(tmp_path / "confusion_matrix.csv")
    assert sum(int(row[name]) for row in matrix for name in ("0", "1")) == len(truth)
    assert sum(int(matrix[i][str(i)]) for i in range(2)) == round(metrics["ACC"] * len(truth))
    sweep = json.loads((tmp_path / "sweep_bilinear_background.json").read_text())
    assert len(sweep["rows"]) == (36 + 2 if dims == 2 else 34 + 3)
    assert sweep["ACC upright"] == pytest.approx(metrics["ACC"])
    quarter = [row for row in sweep["rows"] if row["transformation"].split()[0] in ("90", "180", "270", "flip")]
    assert all(row["AUC"] == pytest.approx(metrics["AUC"]) for row in quarter)


def test_an_image_may_have_several_labels(toy_dir: Path, tmp_path: Path) -> None:
    """Trained, evaluated, swept and inferred; data of one class per image are refused before any is read."""
    from medmnist.evaluator import getACC, getAUC

    arrays = dict(np.load(toy_dir / "toy2.npz"))
    for split in ("train", "val", "test"):
        numbers = np.arange(len(arrays[f"{split}_labels"]))
        arrays[f"{split}_labels"] = np.stack([numbers % 2, numbers // 2 % 2, numbers // 4 % 2], axis=1).astype(np.uint8)
    np.savez(tmp_path / "several.npz", **arrays)
    options = toy(2, tmp_path, dataset_name="several")
    train(2, **options, max_epochs=1, output_dir=str(tmp_path / "out"))
    model = {"ckpt_dir": str(tmp_path / "out/models")}
    run(2, "train", "evaluate", **options, **model, output_dir=str(tmp_path / "evaluation"), sweep=True)
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    table, task = rows(tmp_path / "evaluation/predictions.csv"), "multi-label, binary-class"
    scores = np.array([[float(row[f"p({number})"]) for number in range(3)] for row in table])
    assert metrics["ACC"] == pytest.approx(getACC(arrays["test_labels"], scores, task), abs=1e-9)
    assert metrics["AUC"] == pytest.approx(getAUC(arrays["test_labels"], scores, task), abs=1e-9)
    sweep = json.loads((tmp_path / "evaluation/sweep_bilinear_background.json").read_text())
    assert sweep["AUC upright"] == pytest.approx(metrics["AUC"])
    counts = rows(tmp_path / "evaluation/confusion_matrix.csv")
    assert [int(row["true positive"]) + int(row["false negative"]) for row in counts] == [4, 4, 4]
    np.save(tmp_path / "a.npy", arrays["test_images"][3])
    run(2, "inference", **model, input=str(tmp_path / "a.npy"), output_dir=str(tmp_path / "inference"), device="cpu")
    (row,) = rows(tmp_path / "inference/predictions.csv")
    found = [float(row[f"p({number})"]) for number in range(3)]
    assert found == pytest.approx(scores[3].tolist(), abs=2e-6)
    assert row["class"] == " ".join(str(number) for number in range(3) if found[number] > 0.5)
    with pytest.raises(RuntimeError) as caught:
        run(2, "train", "evaluate", **toy(2, toy_dir), **model, output_dir=str(tmp_path / "other"))
    assert "task is 'multi-label, binary-class', but the labels of" in causes(caught.value)
    assert not (tmp_path / "other").exists()


def test_a_network_of_the_users_own_is_named_again(toy_dir: Path, tmp_path: Path) -> None:
    """It trains; without ``make_network`` its description cannot hold it, and evaluation says so."""
    network = {"_target_": "monai.networks.nets.DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    network |= {"init_features": 4, "growth_rate": 4, "block_config": [1, 1], "bn_size": 1}
    options = toy(2, toy_dir)
    run(2, "train", **options, network_def=network, max_epochs=1, output_dir=str(tmp_path / "out"))
    options |= {"ckpt_dir": str(tmp_path / "out/models"), "output_dir": str(tmp_path / "evaluation")}
    with pytest.raises(RuntimeError) as caught:
        run(2, "train", "evaluate", **options)
    assert "model.json does not say how the network is made; give the network_def" in causes(caught.value)
    run(2, "train", "evaluate", **options, network_def=network)
    assert len(rows(tmp_path / "evaluation/predictions.csv")) == 9


def test_validation_that_cannot_choose_an_epoch_is_refused_before_the_training(toy_dir: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(toy_dir / "toy2.npz"))
    np.savez(tmp_path / "one.npz", **arrays | {"val_labels": np.zeros_like(arrays["val_labels"])})
    options = toy(2, tmp_path, dataset_name="one", output_dir=str(tmp_path / "out"))
    with pytest.raises(RuntimeError) as caught:
        train(2, **options, max_epochs=2)
    assert "one.npz: all images in 'validation' are of class 0 ('0'); training needs others too" in causes(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_per_class_is_trained_on_evaluated_and_inferred_on(toy_dir: Path, tmp_path: Path) -> None:
    """The classes are those of the folders, in the tables too; the last fifth of each in the order of names tests."""
    arrays = np.load(toy_dir / "toy2.npz")
    for number, (image, label) in enumerate(zip(arrays["train_images"], arrays["train_labels"][:, 0], strict=True)):
        path = tmp_path / "cells" / ("small", "large")[label] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    options = toy(2, tmp_path, dataset_name="cells", output_dir=str(tmp_path / "out"))
    train(2, **options, max_epochs=2)
    model = json.loads((tmp_path / "out/models/model.json").read_text())
    assert model["class_names"] == ["large", "small"]
    options |= {"ckpt_dir": str(tmp_path / "out/models"), "output_dir": str(tmp_path / "evaluation")}
    run(2, "train", "evaluate", **options)
    assert [row["label"] for row in rows(tmp_path / "evaluation/predictions.csv")] == ["0", "0", "1", "1"]


def test_a_training_shorter_than_the_interval_of_validations_leaves_a_model(toy_dir: Path, tmp_path: Path) -> None:
    options = toy(2, toy_dir, output_dir=str(tmp_path))
    train(2, **options, max_epochs=2, val_interval=5)
    assert (tmp_path / "models/model.pt").is_file()
    assert [bool(row["val_auc"]) for row in rows(tmp_path / "metrics.csv")] == [False, True]


@pytest.mark.parametrize("dims", [2, 3])
def test_shipped_weights_score_as_the_metadata_say(data_dir: Path, tmp_path: Path, dims: int) -> None:
    options = {"dataset_dir": str(data_dir / "medmnist"), "output_dir": str(tmp_path), "device": "cpu"}
    run(dims, "train", "evaluate", **options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    stated = json.loads((BUNDLES[dims] / "configs/metadata.json").read_text())["eval_metrics"]
    assert metrics["ACC"] == pytest.approx(stated["ACC"], abs=5e-4)
    assert metrics["AUC"] == pytest.approx(stated["AUC"], abs=5e-4)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])  # the overlays are the same
def test_two_processes(toy_dir: Path, tmp_path: Path, dims: int) -> None:
    """torchrun over gloo: both phases run, every test sample is counted once, and rank 0 alone writes."""
    options = {key: value for key, value in toy(dims, toy_dir).items() if key != "device"}
    folders = {name: tmp_path / name for name in ("train", "evaluation")}
    train = {**options, **WIDTH, "max_epochs": 2, "output_dir": folders["train"]}
    run_in_two_processes(BUNDLES[dims], "train", "multi_gpu_train", **train)
    evaluate = {
        **options,
        "sweep": "true",
        "sweep_step": 45,
        "ckpt_dir": folders["train"] / "models",
        "output_dir": folders["evaluation"],
    }
    run_in_two_processes(BUNDLES[dims], "train", "evaluate", "multi_gpu_evaluate", **evaluate)
    assert [row["epoch"] for row in rows(tmp_path / "train/metrics.csv")] == ["1", "2"]
    table = rows(tmp_path / "evaluation/predictions.csv")
    truth = np.load(toy_dir / f"toy{dims}.npz")["test_labels"].ravel()
    assert [int(row["label"]) for row in table] == truth.tolist()
    alone = tmp_path / "alone"
    options = {**toy(dims, toy_dir), "ckpt_dir": str(tmp_path / "train/models"), "output_dir": str(alone)}
    run(dims, "train", "evaluate", **options, sweep=True, sweep_step=45)
    for one, other in zip(table, rows(alone / "predictions.csv"), strict=True):
        assert float(one["p(1)"]) == pytest.approx(float(other["p(1)"]), abs=1e-5)
    swept = [
        json.loads((folder / "sweep_bilinear_background.json").read_text())
        for folder in (tmp_path / "evaluation", alone)
    ]
    assert len(swept[0]["rows"]) == (8 + 2 if dims == 2 else 22 + 3)
    for one, other in zip(*(sweep["rows"] for sweep in swept), strict=True):
        assert one == pytest.approx(other)
