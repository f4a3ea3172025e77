"""MedMNIST's table, its files, and their download.

Real files are those of the folder that MONAI_SRE_DATA names. The flags that are not there are tested on tiny files
written here in the same layout: that shows that the layout is handled, not that the official files are.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from medmnist import INFO

from monai_sre.data import dataset_info, load_dataset, medmnist_flags
from monai_sre.data import medmnist as module
from tests.data.layouts import arrays_like

REAL = Path(os.environ.get("MONAI_SRE_DATA", "")) / "medmnist"
needs_data = pytest.mark.skipif(
    "MONAI_SRE_DATA" not in os.environ or not REAL.is_dir(),
    reason="the environment variable MONAI_SRE_DATA names no folder with medmnist/ in it",
)
# name, dimensions, task, channels, classes: from the MedMNIST v2 paper (Yang et al. 2023, tables 2 and 3).
PAPER = [
    ("pathmnist", 2, "multi-class", 3, 9),
    ("chestmnist", 2, "multi-label, binary-class", 1, 14),
    ("dermamnist", 2, "multi-class", 3, 7),
    ("octmnist", 2, "multi-class", 1, 4),
    ("pneumoniamnist", 2, "binary-class", 1, 2),
    ("retinamnist", 2, "ordinal-regression", 3, 5),
    ("breastmnist", 2, "binary-class", 1, 2),
    ("bloodmnist", 2, "multi-class", 3, 8),
    ("tissuemnist", 2, "multi-class", 1, 8),
    ("organamnist", 2, "multi-class", 1, 11),
    ("organcmnist", 2, "multi-class", 1, 11),
    ("organsmnist", 2, "multi-class", 1, 11),
    ("organmnist3d", 3, "multi-class", 1, 11),
    ("nodulemnist3d", 3, "binary-class", 1, 2),
    ("adrenalmnist3d", 3, "binary-class", 1, 2),
    ("fracturemnist3d", 3, "multi-class", 1, 3),
    ("vesselmnist3d", 3, "binary-class", 1, 2),
    ("synapsemnist3d", 3, "binary-class", 1, 2),
]


@pytest.mark.parametrize("case", PAPER, ids=lambda case: case[0])
@pytest.mark.parametrize("size", [28, 64])
def test_every_flag_in_its_layout(case: tuple, size: int, tmp_path: Path) -> None:
    """Tiny files written here, not the official ones."""
    name, dims, task, channels, classes = case
    info = dataset_info(name, size=size)
    assert (info.spatial_dims, info.size, info.task) == (dims, size, task)
    assert (info.num_channels, info.num_classes, len(info.class_names)) == (channels, classes, classes)
    if size == 64 and dims == 3:
        return
    arrays = arrays_like(info, (3, 2, 2))
    np.savez_compressed(tmp_path / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz"), **arrays)
    data = load_dataset(name, tmp_path, "val", size, download=False, check_md5=False)
    expected = arrays["val_images"]
    expected = np.moveaxis(expected, -1, 1) if channels == 3 else expected[:, None]
    assert data.images.dtype == torch.uint8
    np.testing.assert_array_equal(data.images.numpy(), expected)
    assert data.labels.dtype == (torch.float32 if info.multi_label else torch.int64)
    np.testing.assert_array_equal(data.labels.numpy().reshape(2, -1), arrays["val_labels"])


def test_the_flags_and_sizes() -> None:
    assert medmnist_flags() == tuple(case[0] for case in PAPER) == tuple(INFO)
    assert dataset_info("breastmnist", size=224).size == 224
    with pytest.raises(ValueError, match=r"size of nodulemnist3d must be one of \(28, 64\), got 128"):
        dataset_info("nodulemnist3d", size=128)
    with pytest.raises(ValueError, match="did you mean 'breastmnist'"):
        dataset_info("breastmnits")
    with pytest.raises(ValueError, match=r"split must be one of .*got 'training'"):
        load_dataset("demo_2d", split="training")


@needs_data
@pytest.mark.parametrize("name", ["breastmnist", "pneumoniamnist", "adrenalmnist3d"])
def test_real_files_have_the_published_numbers(name: str) -> None:
    for split in ("train", "val", "test"):
        data = load_dataset(name, REAL, split, download=False)
        assert len(data) == INFO[name]["n_samples"][split]
        with np.load(REAL / f"{name}.npz") as archive:
            np.testing.assert_array_equal(data.images[:, 0].numpy(), archive[f"{split}_images"])
            np.testing.assert_array_equal(data.labels.numpy(), archive[f"{split}_labels"][:, 0])
    assert data[2]["image"].shape == (1, *[28] * data.info.spatial_dims)


@needs_data
def test_a_real_file_that_was_cut_or_changed_is_refused(tmp_path: Path) -> None:
    content = (REAL / "breastmnist.npz").read_bytes()
    path = tmp_path / "breastmnist.npz"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"breastmnist\.npz is damaged.*expected 750601b1f35ba3300ea97c75c52ff8f6.*Delete"
    ):
        load_dataset("breastmnist", tmp_path, download=False)
    with pytest.raises(ValueError, match="truncated, damaged"):
        load_dataset("breastmnist", tmp_path, download=False, check_md5=False)
    spoilt = bytearray(content)
    spoilt[len(content) // 3] ^= 255
    path.write_bytes(spoilt)
    with pytest.raises(ValueError, match="MD5"):
        load_dataset("breastmnist", tmp_path, download=False)
    with pytest.raises(ValueError, match=r"breastmnist\.npz cannot be read"):
        load_dataset("breastmnist", tmp_path, "train", download=False, check_md5=False)
    path.write_bytes(content)  # mended in place: the cached MD5 must not stand in the way
    assert len(load_dataset("breastmnist", tmp_path, download=False)) == 546


def test_missing_files_and_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"breastmnist_64\.npz is missing and download=False.*zenodo"):
        load_dataset("breastmnist", tmp_path, size=64, download=False)
    asked = []

    def no_network(url: str, filepath: Path, **options: object) -> None:
        asked.append((url, options))
        Path(filepath).write_bytes(b"half of it")
        raise OSError("Network is unreachable")

    monkeypatch.setattr(module, "download_url", no_network)
    with pytest.raises(RuntimeError, match=r"breastmnist\.npz: OSError: Network is unreachable.*save it as"):
        load_dataset("breastmnist", tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing half done is left
    assert asked[0][0] == INFO["breastmnist"]["url"]
    assert asked[0][1]["hash_val"] == INFO["breastmnist"]["MD5"]
    arrays = arrays_like(dataset_info("breastmnist"))

    def network(url: str, filepath: Path, **options: object) -> None:
        np.savez(filepath, **arrays)

    monkeypatch.setattr(module, "download_url", network)
    with pytest.raises(ValueError, match="MD5"):  # what came is not the official file
        load_dataset("breastmnist", tmp_path / "new")
    assert len(load_dataset("breastmnist", tmp_path / "new", check_md5=False)) == 7


def test_md5_is_that_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert module._md5(str(tmp_path / "f"), 0, 0) == hashlib.md5(b"x" * 3_000_000).hexdigest()
