"""The bundle for the hippocampus through ``monai.bundle``: volumes as the Decathlon has them, at any orientation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_sre.data import load_pairs
from tests.bundles import running
from tests.bundles.inferring import CODES, reoriented
from tests.bundles.running import causes, rows, run_in_two_processes

BUNDLE = running.BUNDLES / "hippocampus_segmentation"


def anatomy(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A bright body with a brighter tail behind it, in noise, and the map of both."""
    shape = np.array([20, 26, 18]) + rng.integers(-2, 3, 3)
    places = np.moveaxis(np.indices(shape), 0, -1) - shape / 2 + rng.uniform(-1, 1, 3)
    inside = ((places / [5, 9, 5]) ** 2).sum(-1) < 1
    label = np.where(inside, np.where(places[..., 1] > 0, 1, 2), 0).astype(np.uint8)
    image = 20 * label + ndimage.gaussian_filter(rng.normal(0, 20, shape), 1)
    return (scale * (image + 50)).astype(np.float32), label


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve volumes as the Decathlon lists them, of intensities of any scale; two voxels are a thousand times as bright."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    entries = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for number in range(12):
        image, label = anatomy(rng, 10.0 ** rng.uniform(-1, 4))
        image[tuple(rng.integers(0, 16, (3, 2)))] *= 1000
        for name, values in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{name}/h_{number:03d}.nii.gz")
        entries.append({"image": f"./imagesTr/h_{number:03d}.nii.gz", "label": f"./labelsTr/h_{number:03d}.nii.gz"})
    content = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "training": entries[::-1]}
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": 12, "test": ["./imagesTs/h_100.nii.gz"]}))
    return folder


def run(*configs: str, **options: Any) -> None:
    running.run(BUNDLE, *configs, **options)


def toy(folder: Path, **options: Any) -> dict[str, Any]:
    network = {"network_def#channels": [4, 8], "network_def#kernel_size": 3, "network_def#conv": "radial"}
    small = {"patch_size": 16, "patches_per_image": 8, "val_interval": 1, "learning_rate": 0.02, "margins": 0.0}
    return {"dataset_dir": str(folder), "device": "cpu", **small, **network, **options}


@pytest.fixture(scope="session")
def trained(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for four epochs without interruption."""
    folder = tmp_path_factory.mktemp("trained")
    run("train", **toy(volumes), max_epochs=4, output_dir=str(folder))
    return folder


@pytest.fixture(scope="session")
def evaluated(volumes: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test set, swept."""
    folder = tmp_path_factory.mktemp("evaluated")
    options = {"ckpt_dir": str(trained / "models"), "sweep": True, "sweep_step": 90, "random_rotations": 2}
    run("train", "evaluate", dataset_dir=str(volumes), device="cpu", output_dir=str(folder), **options)
    return folder


# Training -------------------------------------------------------------------------------------------------------------


def test_training_leaves_what_it_promises_and_learns(trained: Path) -> None:
    history = rows(trained / "metrics.csv")
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    assert set(history[0]) == {"epoch", "train_loss", "learning_rate", "val_dice", "val_loss"}
    assert float(history[-1]["val_dice"]) > 0.7
    model = json.loads((trained / "models/model.json").read_text())
    assert model["class_names"] == ["background", "Anterior", "Posterior"]
    assert (model["axcodes"], model["pixdim"], model["percentiles"]) == ("RAS", [1.0, 1.0, 1.0], [0.5, 99.5])
    assert (trained / "learning_curves.png").is_file()


def test_an_evaluation_takes_the_volumes_that_its_training_left_for_it(volumes: Path, tmp_path: Path) -> None:
    """Whatever the defaults of the configs would take."""
    split = {"every": 0, "num_val": 2, "num_test": 1}
    run("train", **toy(volumes, patches_per_image=1), **split, max_epochs=1, output_dir=str(tmp_path))
    where = {"dataset_dir": str(volumes), "device": "cpu", "ckpt_dir": str(tmp_path / "models")}
    run("train", "evaluate", **where, output_dir=str(tmp_path / "test"))
    assert [Path(row["file"]).name for row in rows(tmp_path / "test/scores.csv")] == ["h_000.nii.gz"]


@pytest.mark.parametrize("rotation", [False, True])
def test_a_resumed_run_repeats_an_uninterrupted_one(volumes: Path, tmp_path: Path, rotation: bool) -> None:
    """Its rate falls step by step."""
    options = toy(volumes, rotation=rotation, patches_per_image=1, **{"lr_scheduler#T_max": 6})
    for name, epochs in (("whole", [2]), ("resumed", [1, 2])):
        for index, max_epochs in enumerate(epochs):
            run("train", **options, max_epochs=max_epochs, resume=index > 0, output_dir=str(tmp_path / name))
    assert rows(tmp_path / "whole/metrics.csv") == rows(tmp_path / "resumed/metrics.csv")
    assert float(rows(tmp_path / "whole/metrics.csv")[0]["learning_rate"]) == pytest.approx(0.01, rel=1e-3)  # halfway
    states = [torch.load(tmp_path / name / "models/last.pt", weights_only=True) for name in ("whole", "resumed")]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_the_number_of_validation_volumes_is_honoured(volumes: Path, tmp_path: Path) -> None:
    """Of the three that the rule gives by name; without a rule, the last of the list but those that test."""
    run("train", **toy(volumes, patches_per_image=1), max_epochs=1, num_val=1, num_test=0, output_dir=str(tmp_path))
    options = {"ckpt_dir": str(tmp_path / "models"), "device": "cpu", "dataset_dir": str(volumes)}
    for rule, names in (({"num_val": 2}, ["h_000", "h_005"]), ({"num_val": 3, "num_test": 1, "every": 0}, "")):
        target = tmp_path / f"out_{len(names)}"
        run("train", "evaluate", **options, **rule, **{"validate#pairs#split": "val"}, output_dir=str(target))
        found = [Path(row["file"]).name[:5] for row in rows(target / "scores.csv")]
        assert found == (names or ["h_003", "h_002", "h_001"])


def test_slices_are_segmented_with_classes_of_numbers(volumes: Path, tmp_path: Path) -> None:
    """Of any direction, with pixels of another size; by the same configs."""
    for section in ("imagesTr", "labelsTr"):
        (tmp_path / section).mkdir()
        for path in (volumes / section).iterdir():
            values = np.asarray(nibabel.load(path).dataobj)
            middle = values[values.shape[0] // 2]  # sagittal
            affine = np.diag([4.0, 1.5, 1.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(middle[None], affine), tmp_path / section / path.name)
    (tmp_path / "dataset.json").write_text((volumes / "dataset.json").read_text())
    slices = {"spatial_dims": 2, "axcodes": "RA", "pixdim": [1.0, 1.0], "class_names": [0, 1, 2]}
    out = tmp_path / "out"
    run("train", **toy(tmp_path, **slices), max_epochs=2, output_dir=str(out))
    where = {"ckpt_dir": str(out / "models"), "device": "cpu"}
    run("train", "evaluate", dataset_dir=str(tmp_path), output_dir=str(out / "test"), **where)
    scored = rows(out / "test/scores.csv")
    assert len(scored) > 0
    assert {"Dice of 1", "HD95 mm of 2"} < set(scored[0])
    assert not any("ml" in name for name in scored[0])
    infer(tmp_path / "imagesTr", out / "maps", ckpt_dir=str(out / "models"), report=True)
    assert len(rows(out / "maps/segmentations.csv")) == 12
    for path in (tmp_path / "imagesTr").iterdir():
        given, found = nibabel.load(path), nibabel.load(out / f"maps/{path.name.split('.')[0]}_seg.nii.gz")
        assert found.shape == given.shape
        np.testing.assert_allclose(found.affine, given.affine)


def test_data_that_cannot_be_used_end_training_before_it_starts(volumes: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"every": 2}, "every must be 0 or a whole number from 3, got 2"),
        ({"dataset_name": "other.json"}, "dataset_name is 'other.json', and no such JSON datalist is here or in"),
        ({"class_names": ["background", "all"]}, "a mask of two classes holds two"),
        ({"dataset_name": ""}, "is a folder of pairs; give class_names, the background first"),
    ):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            run("train", **toy(volumes, **options), max_epochs=1, output_dir=str(tmp_path / "out"))
        assert message in causes(caught.value)
        assert not (tmp_path / "out").exists()


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_scores_each_class_in_mm_and_ml(evaluated: Path, volumes: Path, trained: Path) -> None:
    metrics, table = json.loads((evaluated / "metrics.json").read_text()), rows(evaluated / "scores.csv")
    assert [Path(row["file"]).name for row in table] == ["h_001.nii.gz", "h_006.nii.gz", "h_011.nii.gz"]
    for metric in ("Dice", "HD95 mm", "volume error ml"):
        each = [f"{metric} of Anterior", f"{metric} of Posterior"]
        assert metrics[metric] == pytest.approx(np.mean([metrics[name] for name in each]))
        for name in (metric, *each):
            assert metrics[name] == pytest.approx(np.mean([float(row[name]) for row in table]))
    assert metrics["Dice"] > 0.7
    source = volumes / "imagesTr/h_006.nii.gz"
    run("inference", input=str(source), output_dir=str(evaluated), ckpt_dir=str(trained / "models"), device="cpu")
    found = np.asarray(nibabel.load(evaluated / "h_006_seg.nii.gz").dataobj)
    truth = np.asarray(nibabel.load(volumes / "labelsTr/h_006.nii.gz").dataobj)
    for value, name in ((1, "Anterior"), (2, "Posterior")):
        error = abs(int((found == value).sum()) - int((truth == value).sum())) / 1000
        assert float(table[1][f"volume error ml of {name}"]) == pytest.approx(error, abs=1e-9)


def test_the_sweep_is_flat_over_all_48_orientations(evaluated: Path) -> None:
    sweep = json.loads((evaluated / "sweep_bilinear_background.json").read_text())
    scores = {row["transformation"]: row for row in sweep["rows"]}
    exact = [name for name in scores if name.startswith("orientation")]
    assert len(exact) == 47
    for name in [*exact, "90 about axis 1"]:
        for metric in ("Dice", "HD95 mm", "Dice of Anterior", "Dice of Posterior"):
            assert scores[name][metric] == pytest.approx(scores["0"][metric], abs=1e-6)
    for name in ("random 1", "random 2"):
        assert 0.8 < scores[name]["Dice of the truth, turned and back"] < 1
    assert not list(evaluated.glob("sweep_nearest_zero*"))


def test_the_plain_network_for_comparison_is_not_flat(volumes: Path, tmp_path: Path) -> None:
    options = {**toy(volumes), "max_epochs": 1, "network_def#filters": [4, 8, 8], "learning_rate": 0.003}
    for name in ("channels", "kernel_size", "conv"):
        del options[f"network_def#{name}"]
    run("train", "plain", **options, output_dir=str(tmp_path))
    options = {"ckpt_dir": str(tmp_path / "models"), "sweep": True, "sweep_step": 360, "random_rotations": 0}
    run("train", "evaluate", dataset_dir=str(volumes), device="cpu", output_dir=str(tmp_path), num_test=1, **options)
    scores = [row["Dice"] for row in json.loads((tmp_path / "sweep_bilinear_background.json").read_text())["rows"]]
    assert max(scores) - min(scores) > 1e-3


# Inference ------------------------------------------------------------------------------------------------------------


def infer(source: Path, target: Path, **options: Any) -> None:
    run("inference", input=str(source), output_dir=str(target), device="cpu", **options)


def test_all_48_axis_codes_and_unequal_voxels_give_one_segmentation(trained: Path, tmp_path: Path) -> None:
    """On the grid of each file, with its affine and header."""
    source = tmp_path / "in"
    source.mkdir()
    image, label = anatomy(np.random.default_rng(7), 3e5)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-20.0, 7.0, 3.5)
    original = nibabel.Nifti1Image(image[:, :, ::2], affine)
    original.header["descrip"] = b"a description"
    assert len(set(CODES)) == 48
    for code in CODES:
        nibabel.save(reoriented(original, code), source / f"{code}.nii.gz")
    infer(source, tmp_path / "out", ckpt_dir=str(trained / "models"))
    maps = {}
    for code in CODES:
        given, found = nibabel.load(source / f"{code}.nii.gz"), nibabel.load(tmp_path / f"out/{code}_seg.nii.gz")
        assert "".join(nibabel.aff2axcodes(found.affine)) == code
        assert found.shape == given.shape
        np.testing.assert_allclose(found.affine, given.affine, atol=1e-6)
        assert found.header["descrip"] == given.header["descrip"]
        maps[code] = np.asarray(reoriented(found, "RAS").dataobj)
    truth = label[:, :, ::2]
    for value in (1, 2):
        hits = ((maps["RAS"] == value) & (truth == value)).sum()
        assert 2 * hits / ((maps["RAS"] == value).sum() + (truth == value).sum()) > 0.5
    assert min((found == maps["RAS"]).mean() for found in maps.values()) > 0.999


def test_intensities_need_no_calibration(trained: Path, tmp_path: Path) -> None:
    """Another scale, another zero, and a voxel that outshines all."""
    source = tmp_path / "in"
    source.mkdir()
    image, _ = anatomy(np.random.default_rng(8), 1.0)
    bright = image.copy()
    bright[0, 0, 0] = 1.7e6
    for name, values in (("a", image), ("b", 4e4 * image + 1000), ("c", bright)):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), source / f"{name}.nii.gz")
    infer(source, tmp_path / "out", ckpt_dir=str(trained / "models"))
    maps = [np.asarray(nibabel.load(tmp_path / f"out/{name}_seg.nii.gz").dataobj) for name in "abc"]
    assert 0.02 < (maps[0] > 0).mean() < 0.5
    assert (maps[1] == maps[0]).mean() > 0.999
    assert (maps[2] == maps[0]).mean() > 0.99


# Several processes, real data -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes(volumes: Path, trained: Path, evaluated: Path, tmp_path: Path) -> None:
    """torchrun over gloo: training runs; evaluation gives the table of one process, in its order."""
    options = toy(volumes)
    del options["device"]
    run_in_two_processes(BUNDLE, "train", "multi_gpu_train", **options, max_epochs=1, output_dir=tmp_path / "train")
    assert [row["epoch"] for row in rows(tmp_path / "train/metrics.csv")] == ["1"]
    options = {"dataset_dir": volumes, "ckpt_dir": trained / "models", "output_dir": tmp_path / "evaluation"}
    run_in_two_processes(BUNDLE, "train", "evaluate", "multi_gpu_evaluate", **options)
    for one, two in zip(rows(evaluated / "scores.csv"), rows(tmp_path / "evaluation/scores.csv"), strict=True):
        assert one.pop("file") == two.pop("file")
        assert [float(value) for value in two.values()] == pytest.approx([float(value) for value in one.values()])


def test_real_volumes_are_read_and_swept(data_dir: Path, tmp_path: Path) -> None:
    """With the shipped weights: two volumes of the test set, upright and at random rotations."""
    folder = data_dir / "msd_hippocampus"
    options = {"dataset_dir": str(folder), "num_test": 2, "sweep": True, "sweep_step": 360, "random_rotations": 1}
    run("train", "evaluate", **options, device="cpu", output_dir=str(tmp_path))
    files = [Path(row["file"]).name for row in rows(tmp_path / "scores.csv")]
    pairs = load_pairs("dataset.json", folder, "test", num_val=None, num_test=2, every=5)
    assert files == [Path(pair["image"]).name for pair in pairs]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert min(metrics["Dice of Anterior"], metrics["Dice of Posterior"]) > 0.75
    sweep = json.loads((tmp_path / "sweep_bilinear_background.json").read_text())
    assert abs(sweep["Dice orientation min"] - sweep["Dice upright"]) < 1e-3
    assert sweep["Dice random mean"] > 0.6


@pytest.mark.slow
def test_one_epoch_on_real_volumes(data_dir: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(data_dir / "msd_hippocampus"), "num_val": 4, "device": "cpu", "max_epochs": 1}
    run("train", **options, val_interval=1, output_dir=str(tmp_path))
    assert float(rows(tmp_path / "metrics.csv")[0]["val_dice"]) > 0.2


@pytest.mark.slow
def test_shipped_weights_score_as_the_metadata_say(data_dir: Path, tmp_path: Path) -> None:
    run("train", "evaluate", dataset_dir=str(data_dir / "msd_hippocampus"), output_dir=str(tmp_path), device="cpu")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    stated = json.loads((BUNDLE / "configs/metadata.json").read_text())["eval_metrics"]
    for name in metrics.keys() - {"num_images"}:
        assert metrics[name] == pytest.approx(stated[name], abs=1e-3), name
