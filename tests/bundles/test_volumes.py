"""Training of the bundle for volumes on a user's own: thin slices, other classes, folders of pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import create_test_image_3d

from tests.bundles import running
from tests.bundles.running import causes, config_files, rows

BUNDLE = running.BUNDLES / "hippocampus_segmentation"
#: Pairs found by their names, the last of which test and validate.
FOLDER: dict[str, Any] = {"dataset_name": "", "every": 0}


@pytest.fixture(scope="session")
def slabs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balls in noise, of which every fourth slice was taken: voxels of 1 x 1 x 4."""
    folder = tmp_path_factory.mktemp("slabs")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    for number in range(10):
        random = np.random.RandomState(number)
        image, label = create_test_image_3d(
            40, 40, 48, num_objs=6, rad_max=9, rad_min=5, noise_max=0.6, num_seg_classes=1, random_state=random
        )
        for name, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array[..., ::4], affine), folder / f"{name}/{number}.nii.gz")
    return folder


def train(folder: Path, target: Path, **options: Any) -> float:
    """Best validation Dice."""
    common = {"dataset_dir": str(folder), "num_val": 3, "num_test": 2, "patch_size": [24, 24, 12], **FOLDER}
    common |= {"class_names": ["background", "ball"]}
    common |= {"patches_per_image": 2, "val_interval": 1, "roi_size": 40, "pixdim": []}
    running.run(BUNDLE, "train", **{**common, **options}, device="cpu", output_dir=str(target))
    return max(float(row["val_dice"]) for row in rows(target / "metrics.csv"))


@pytest.mark.parametrize("rotation", [False, True])
def test_patches_of_thin_volumes_are_padded(slabs: Path, tmp_path: Path, rotation: bool) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(BUNDLE, "train"))
    options = {"dataset_dir": str(slabs), "num_val": 3, "num_test": 2, "patch_size": 16, "rotation": rotation}
    options |= {**FOLDER, "class_names": ["background", "ball"]}
    options |= {"pixdim": [4, 4, 4] if rotation else [], "patches_per_image": 1, "batch_size": 5}
    parser.update(options)
    for batch in parser.get_parsed_content("train#dataloader"):
        assert batch["image"].shape == batch["label"].shape == (5, 1, 16, 16, 16)  # of 12 slices


def test_rotations_of_slabs_are_refused_as_they_would_shear_them(slabs: Path) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(BUNDLE, "train"))
    options = {"dataset_dir": str(slabs), "num_val": 3, "num_test": 2, "rotation": True, "pixdim": []}
    parser.update({**FOLDER, **options, "class_names": ["background", "ball"]})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("train#dataloader")
    assert "0.nii.gz: rotation=True rotates the grid of voxels, which must be cubes" in causes(caught.value)


def test_classes_come_with_the_model(tmp_path: Path) -> None:
    """Three classes are named in training only; evaluation gives the Dice of each by name, and maps hold all of them."""
    rng = np.random.default_rng(0)
    for number in range(4):
        label = rng.integers(0, 3, (4, 3, 5)).repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint8)
        for name, array in (("imagesTr", label * 90.0 + rng.normal(0, 5, label.shape)), ("labelsTr", label)):
            (tmp_path / name).mkdir(exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(array.astype(array.dtype.char), np.eye(4)), tmp_path / name / f"{number}.nii.gz"
            )
    folder = tmp_path / "output"
    names, small = ["background", "liver", "tumour"], {"network_def#channels": [4, 4], "network_def#kernel_size": 3}
    train(tmp_path, folder, class_names=names, num_val=1, num_test=1, max_epochs=2, **small)
    common = {"ckpt_dir": str(folder / "models"), "device": "cpu"}
    options = {"dataset_dir": str(tmp_path), "num_val": 1, "num_test": 1, "sweep": True, "sweep_step": 90}
    options |= {**FOLDER, **common}
    running.run(BUNDLE, "train", "evaluate", **options, output_dir=str(folder))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["Dice"] == pytest.approx((metrics["Dice of liver"] + metrics["Dice of tumour"]) / 2)
    upright = json.loads((folder / "sweep_bilinear_background.json").read_text())["rows"][0]
    for metric in ("Dice", "HD95 mm", "volume error ml", "Dice of tumour"):
        assert upright[metric] == metrics[metric]
    running.run(BUNDLE, "inference", input=str(tmp_path / "imagesTr/3.nii.gz"), output_dir=str(tmp_path), **common)
    (row,) = rows(tmp_path / "segmentations.csv")
    assert {"share of liver", "share of tumour"} <= set(row)


def test_worker_processes_and_volumes_that_are_not_kept_change_nothing(slabs: Path, tmp_path: Path) -> None:
    """From files, by a process, and from a folder of what was prepared: the weights of a training in memory, to the bit."""
    small = {"network_def#channels": [4, 4], "network_def#kernel_size": 3, "network_def#conv": "radial"}
    small |= {"lr_scheduler#T_max": 10, "num_val": 1, "learning_rate": 0.01}
    train(slabs, tmp_path / "kept", max_epochs=2, **small)
    fed = {**small, "cache_gib": 0, "num_workers": 1}
    train(slabs, tmp_path / "fed", max_epochs=1, **fed)
    disk = {"data": "@train#pairs", "transform": "@train#preprocessing", "cache_dir": str(tmp_path / "cache")}
    disk["hash_transform"] = "$monai.data.utils.pickle_hashing"
    disk = {"train#dataset": {"_target_": "PersistentDataset", **disk}}
    train(slabs, tmp_path / "fed", max_epochs=2, resume=True, **fed, **disk)
    assert len([*(tmp_path / "cache").iterdir()]) == 7
    states = [torch.load(tmp_path / name / "models/last.pt", weights_only=True) for name in ("kept", "fed")]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_prepared_volumes_are_known_by_the_options_of_preprocessing(slabs: Path, tmp_path: Path) -> None:
    """As the page on volumes has it: of the path alone, a training with other options would take what was prepared before."""
    page = (running.BUNDLES.parent / "docs/volumes.md").read_text()
    (snippet,) = re.findall(r'```json\n("train#dataset": .*?)\n```', page, flags=re.DOTALL)
    for spacing, files in (([], 7), ([], 7), ([2.0, 2.0, 4.0], 14)):
        parser = ConfigParser()
        parser.read_config(config_files(BUNDLE, "train"))
        options = {"dataset_dir": str(slabs), **FOLDER, "num_val": 1, "num_test": 2, "pixdim": spacing}
        parser.update({**options, "class_names": ["background", "ball"], **json.loads(f"{{{snippet}}}")})
        parser.update({"train#dataset#cache_dir": str(tmp_path)})
        assert len(list(parser.get_parsed_content("train#dataset"))) == 7
        assert len([*tmp_path.iterdir()]) == files


@pytest.mark.parametrize("phase", ["train", "validate"])
def test_no_more_volumes_are_kept_than_memory_is_given(slabs: Path, phase: str) -> None:
    """40 x 40 x 12 voxels of 16 bytes are 0.29 MiB."""
    parser = ConfigParser()
    parser.read_config(config_files(BUNDLE, "train"))
    options = {"dataset_dir": str(slabs), **FOLDER, "num_val": 3, "num_test": 2, "pixdim": []}
    share = {"train": 0.75, "validate": 0.25}[phase]
    parser.update({**options, "class_names": ["background", "ball"], "cache_gib": 0.6 / 2**10 / share})
    assert parser.get_parsed_content(f"{phase}#dataset").cache_num == 2


def test_spacing_helps_on_slabs(slabs: Path, tmp_path: Path) -> None:
    """Kernels that are round in millimetres find round balls sooner than the same network without ``spacing``."""
    network = {
        "network_def#channels": [8, 16],
        "network_def#kernel_size": [[7, 7, 3], [5, 5, 3]],
        "network_def#strides": [[2, 2, 1]],
        "network_def#conv": "radial",
        "network_def#profile": "gaussian",
        "network_def#orthonormal": True,
        "network_def#norm": "batch",
    }
    options = {**network, "max_epochs": 8, "learning_rate": 0.01}
    aware = train(slabs, tmp_path / "aware", **options, **{"network_def#spacing": [1.0, 1.0, 4.0]})
    assert aware > 0.9
    assert aware > train(slabs, tmp_path / "unaware", **options)
