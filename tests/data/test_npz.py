"""npz files in MedMNIST's layout: checked headers first, mapped where they can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from monai_sre.data import dataset_info, load_dataset
from monai_sre.data.npz import read_member
from tests.data.layouts import arrays_like


@pytest.mark.parametrize(
    ("field", "value", "reason"), [(8, 99, "That compression method"), (6, 1, "File .* is encrypted")]
)
def test_members_that_zipfile_cannot_open(tmp_path: Path, field: int, value: int, reason: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays_like(dataset_info("breastmnist")))
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):  # headers of the members, and their directory
        at = content.find(mark)
        while at >= 0:
            content[at + field + shift] = value
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    for read in (lambda: load_dataset("mine.npz", tmp_path), lambda: read_member(path, "val_images")):
        with pytest.raises(ValueError, match=rf"mine\.npz cannot be read as an npz file \({reason}"):
            read()


def _spoil(key: str, change: Callable) -> Callable:
    return lambda arrays: arrays.update({key: change(arrays[key])})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("val_labels"), "lacks val_labels"),
        (_spoil("train_images", lambda x: x[..., :20]), r"val_images has shape \(4, 28, 28\).* alike"),
        (_spoil("val_labels", lambda x: x[:-1]), r"val_labels has shape \(3, 1\) for 4 images"),
        (_spoil("test_labels", lambda x: x + 2), "test_labels holds values from 2 to 3, expected 0 to 1"),
        (_spoil("test_labels", lambda x: x * 0.5 - 1), r"test_labels must be whole numbers from 0, got -(0\.5|1\.0)"),
        (_spoil("test_labels", lambda x: x * np.nan), "test_labels must be whole numbers from 0, got nan"),
        (_spoil("train_images", lambda x: x.astype("U3")), "train_images is <U3"),
        (_spoil("train_images", lambda x: x.astype(object)), "pickle|train_images is object"),
        (_spoil("val_images", lambda x: x[:0]), "empty|alike"),
        (lambda a: a.update({k: np.repeat(v, 2, 1) for k, v in a.items() if "images" in k}), "expected .28, 28. for"),
    ],
)
def test_a_wrong_layout_is_one_clear_error(spoil: Callable, message: str, tmp_path: Path) -> None:
    arrays = arrays_like(dataset_info("breastmnist"))
    spoil(arrays)
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("breastmnist", tmp_path, "train", download=False, check_md5=False)
    assert "breastmnist.npz" in str(caught.value)


def test_uncompressed_pixels_are_mapped_and_their_checksum_is_verified(tmp_path: Path) -> None:
    arrays = arrays_like(dataset_info("bloodmnist"))
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    data = load_dataset("mine", tmp_path, "test")
    assert isinstance(read_member(path, "test_images"), np.memmap)
    np.testing.assert_array_equal(data.images.movedim(1, -1), arrays["test_images"])
    data.images[:] = 0  # copy on write: the file stays as it is
    np.testing.assert_array_equal(load_dataset("mine", tmp_path, "test").images.movedim(1, -1), arrays["test_images"])
    content = bytearray(path.read_bytes())
    content[content.find(arrays["test_images"].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum of test_images"):
        load_dataset("mine", tmp_path, "test")
