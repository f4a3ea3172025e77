"""The bundle for retinal vessels through ``monai.bundle``: train, resume, evaluate, two processes."""

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

BUNDLE = running.BUNDLES / "retinal_vessel_segmentation"


def eye(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc in a dark frame with dark straight vessels across it, and the mask of these, rows by columns."""
    rows, columns = np.indices(size)
    rows, columns = rows - (size[0] - 1) / 2, columns - (size[1] - 1) / 2
    disc = np.hypot(rows, columns) < min(size) / 2 - 1
    vessels = np.zeros(size, dtype=bool)
    for _ in range(4):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * min(size)
        vessels |= np.abs(np.cos(angle) * rows + np.sin(angle) * columns - offset) < 1.5
    vessels &= disc
    image = rng.integers(0, 8, (*size, 3)) + disc[..., None] * np.array([150, 90, 30]) - 60 * vessels[..., None]
    return image.clip(0, 255).astype(np.uint8), vessels


@pytest.fixture(scope="session")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images: six to train, two to validate, two (one of them of unequal sides) to test."""
    folder, rng = tmp_path_factory.mktemp("eyes"), np.random.default_rng(0)
    for name in ("images", "labels1"):
        (folder / name).mkdir()
    for number in range(10):
        image, vessels = eye(rng, (48, 55) if number == 9 else (48, 48))
        Image.fromarray(image).save(folder / f"images/Image_{number:02d}.jpg", quality=95)
        Image.fromarray(vessels).save(folder / f"labels1/Image_{number:02d}_1stHO.png")
    return folder


def run(*configs: str, **options: Any) -> None:
    running.run(BUNDLE, *configs, **options)


NETWORK = {"network_def#channels": [4, 8], "network_def#kernel_size": 5, "network_def#conv": "radial"}


def data(folder: Path, **options: Any) -> dict[str, Any]:
    return {"dataset_dir": str(folder), "num_val": 2, "num_test": 2, "roi_size": 32, "device": "cpu", **options}


def toy(folder: Path, **options: Any) -> dict[str, Any]:
    patches = {"patch_size": 24, "patches_per_image": 4, "val_interval": 1, "learning_rate": 0.02}
    return {**data(folder), **patches, **NETWORK, **options}


@pytest.fixture(scope="session")
def trained(eyes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for four epochs without interruption."""
    folder = tmp_path_factory.mktemp("trained")
    run("train", **toy(eyes), max_epochs=4, output_dir=str(folder))
    return folder


@pytest.fixture(scope="session")
def evaluated(eyes: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test set, swept."""
    folder = tmp_path_factory.mktemp("evaluated")
    options = {"ckpt_dir": str(trained / "models"), "output_dir": str(folder), "sweep": True, "sweep_step": 45}
    run("train", "evaluate", **data(eyes), **options)
    return folder


# Training -------------------------------------------------------------------------------------------------------------


def test_training_leaves_what_it_promises_and_learns(trained: Path) -> None:
    history = rows(trained / "metrics.csv")
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    assert set(history[0]) == {"epoch", "train_loss", "learning_rate", "val_dice", "val_auc", "val_loss"}
    assert float(history[-1]["val_dice"]) > 0.8
    state = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    best = max(float(row["val_dice"]) for row in history)
    assert torch.load(trained / "models/last.pt", weights_only=True)["best"] == pytest.approx(best)
    assert (trained / "learning_curves.png").is_file()


def test_a_resumed_run_repeats_an_uninterrupted_one(eyes: Path, tmp_path: Path) -> None:
    """With rotation, whose random numbers are MONAI's own."""
    options = toy(eyes, rotation=True, **{"lr_scheduler#T_max": 2})
    for name, epochs in (("whole", [2]), ("resumed", [1, 2])):
        for index, max_epochs in enumerate(epochs):
            folder = str(tmp_path / name)
            run("train", **options, max_epochs=max_epochs, resume=index > 0, output_dir=folder)
    assert rows(tmp_path / "whole/metrics.csv") == rows(tmp_path / "resumed/metrics.csv")
    states = [torch.load(tmp_path / name / "models/last.pt", weights_only=True) for name in ("whole", "resumed")]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_train_as_the_process_itself_does(
    eyes: Path, trained: Path, tmp_path: Path, context: str
) -> None:
    """However they are started, and also when the training is resumed while they would have lived on."""
    workers = {"num_workers": 1, "multiprocessing_context": context, "persistent_workers": True}
    options = toy(eyes, **{f"train#dataloader#{name}": value for name, value in workers.items()})
    options |= {f"validate#dataloader#{name}": value for name, value in workers.items()} if context == "spawn" else {}
    options |= {"lr_scheduler#T_max": 4, "output_dir": str(tmp_path)}
    run("train", **options, max_epochs=2)
    run("train", **options, max_epochs=3, resume=True)
    assert rows(tmp_path / "metrics.csv") == rows(trained / "metrics.csv")[:3]


def test_a_datalist_takes_the_place_of_a_folder(eyes: Path, trained: Path, tmp_path: Path) -> None:
    """The same pairs listed give the same training."""
    numbers = {"training": range(6), "validation": range(6, 8), "test": range(8, 10)}
    listed = {
        section: [{"image": f"images/Image_{n:02d}.jpg", "label": f"labels1/Image_{n:02d}_1stHO.png"} for n in chosen]
        for section, chosen in numbers.items()
    }
    path = eyes / "list.json"
    path.write_text(json.dumps(listed))
    options = {**toy(eyes), "dataset_name": path.name, "lr_scheduler#T_max": 4, "max_epochs": 1}
    run("train", **options, output_dir=str(tmp_path))
    assert rows(tmp_path / "metrics.csv") == rows(trained / "metrics.csv")[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "labels1/*.png"}, "have no partner under"),
        ({"num_channels": 1}, "Image_00.jpg has 3 channels; the network takes 1"),
        ({"damage": "mask"}, "Image_00_1stHO.png has shape (5, 7) and its image (48, 48)"),
        ({"damage": "image"}, "Image_00.jpg cannot be read as an image"),
    ],
    ids=str,
)
def test_data_that_cannot_be_used_end_training_before_it_starts(
    eyes: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "data"
    for name in ("images", "labels1"):
        (folder / name).mkdir(parents=True)
        for path in (eyes / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    damage = change.pop("damage", None)
    if damage:
        path = folder / ("labels1/Image_00_1stHO.png" if damage == "mask" else "images/Image_00.jpg")
        path.unlink()
        Image.new("L", (7, 5)).save(path) if damage == "mask" else path.write_text("no picture")
    with pytest.raises(RuntimeError) as caught:
        run("train", **toy(folder, **change), output_dir=str(tmp_path / "out"))
    assert message in causes(caught.value)
    assert not (tmp_path / "out").exists()


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_scores_each_image(evaluated: Path) -> None:
    metrics, table = json.loads((evaluated / "metrics.json").read_text()), rows(evaluated / "scores.csv")
    assert [Path(row["file"]).name for row in table] == ["Image_08.jpg", "Image_09.jpg"]
    for name in ("Dice", "AUC", "sensitivity", "specificity", "clDice"):
        assert metrics[name] == pytest.approx(np.mean([float(row[name]) for row in table]))
    assert metrics["Dice"] > 0.8
    with Image.open(evaluated / "segmentations.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("protocol", ["bilinear_background", "nearest_zero"])
def test_sweep_is_flat_at_quarter_turns(evaluated: Path, protocol: str) -> None:
    sweep = json.loads((evaluated / f"sweep_{protocol}.json").read_text())
    scores = {row["transformation"]: row["Dice"] for row in sweep["rows"]}
    assert list(scores) == [str(45 * index) for index in range(8)] + ["flip 0", "flip 1"]
    for name in ("90", "180", "270", "flip 0", "flip 1"):
        assert scores[name] == pytest.approx(scores["0"], abs=1e-6)
    assert sweep["Dice mean"] > sweep["Dice upright"] - 0.1
    assert set(sweep["rows"][0]) == {"transformation", "Dice", "AUC", "sensitivity", "specificity"}


def test_plain_network_for_comparison(eyes: Path, tmp_path: Path) -> None:
    """MONAI's U-Net trains and is swept alike, and is not flat."""
    options = {**toy(eyes), "network_def#channels": [8, 16], "network_def#strides": [2], "max_epochs": 1}
    del options["network_def#kernel_size"], options["network_def#conv"]
    run("train", "plain", **options, output_dir=str(tmp_path))
    options = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path), "sweep": True, "sweep_step": 90}
    run("train", "evaluate", **data(eyes), **options)
    scores = [row["AUC"] for row in json.loads((tmp_path / "sweep_bilinear_background.json").read_text())["rows"]]
    assert max(scores) - min(scores) > 1e-3


# Several processes, real data -----------------------------------------------------------------------------------------


def test_two_processes(eyes: Path, trained: Path, evaluated: Path, tmp_path: Path) -> None:
    """torchrun over gloo: training runs; evaluation gives the table of one process, in its order."""
    shown, hidden = toy(eyes), data(eyes)
    for options in (shown, hidden):
        del options["device"]
    run_in_two_processes(BUNDLE, "train", "multi_gpu_train", **shown, max_epochs=2, output_dir=tmp_path / "train")
    swept = {"sweep": "true", "sweep_step": 45, "ckpt_dir": trained / "models", "output_dir": tmp_path / "evaluation"}
    run_in_two_processes(BUNDLE, "train", "evaluate", "multi_gpu_evaluate", **hidden, **swept)
    assert [row["epoch"] for row in rows(tmp_path / "train/metrics.csv")] == ["1", "2"]
    for one, two in zip(rows(evaluated / "scores.csv"), rows(tmp_path / "evaluation/scores.csv"), strict=True):
        assert one.pop("file") == two.pop("file")
        assert [float(value) for value in two.values()] == pytest.approx([float(value) for value in one.values()])
    one, two = (
        json.loads((folder / "sweep_nearest_zero.json").read_text()) for folder in (evaluated, tmp_path / "evaluation")
    )
    assert two.pop("rows") == [pytest.approx(row) for row in one.pop("rows")]
    assert two == pytest.approx(one)


@pytest.mark.slow
def test_one_epoch_on_real_photographs(data_dir: Path, tmp_path: Path) -> None:
    """CHASE_DB1 with the defaults of the configs, one patch per image: trains, and infers on a photograph."""
    options = {"dataset_dir": str(data_dir / "chase_db1"), "device": "cpu"}
    run("train", **options, max_epochs=1, patches_per_image=1, val_interval=1, output_dir=str(tmp_path / "out"))
    assert 0.3 < float(rows(tmp_path / "out/metrics.csv")[0]["val_auc"]) <= 1
    source = data_dir / "chase_db1/images/Image_14R.jpg"
    options = {"input": str(source), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path / "out/models")}
    run("inference", **options, device="cpu")
    assert Image.open(tmp_path / "Image_14R_seg.png").size == Image.open(source).size


@pytest.mark.slow
def test_shipped_weights_score_as_the_metadata_say(data_dir: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(data_dir / "chase_db1"), "output_dir": str(tmp_path), "device": "cpu"}
    run("train", "evaluate", **options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    stated = json.loads((BUNDLE / "configs/metadata.json").read_text())["eval_metrics"]
    for name in ("Dice", "AUC", "sensitivity", "specificity", "clDice"):
        assert metrics[name] == pytest.approx(stated[name], abs=1e-3), name
