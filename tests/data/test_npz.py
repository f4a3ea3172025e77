"""npz files in MedMNIST's layout: checked headers first, mapped where they can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch

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


def own(tmp_path: Path, **changes: np.ndarray) -> Path:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays_like(dataset_info("breastmnist")) | changes)
    return path


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, ">u2", np.float16, np.int64])
def test_images_of_any_number_become_floats(tmp_path: Path, dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, 2, (4, 28, 28))
    images[:, 0, :2] = 0, 1
    own(tmp_path, val_images=images.astype(dtype))
    found = load_dataset("mine", tmp_path, "val").images
    assert found.dtype == torch.float32
    assert np.array_equal(found[:, 0].numpy(), images)


def test_images_that_do_not_fit_into_memory_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 EiB")

    own(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("monai_sre.data.sources.to_images", full)
        with pytest.raises(
            MemoryError, match=r"mine\.npz: train_images do not fit into memory: Unable to allocate 9 EiB"
        ):
            load_dataset("mine", tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (b"(4000000, 28, 28), }", r"val_images holds 3264 bytes, and \(4000000, 28, 28\) of uint8 are 3136000128"),
        (b"(4, 28, 28)         ", r"mine\.npz cannot be read as an npz file"),
    ],
)
def test_headers_that_are_untrue_or_no_headers(tmp_path: Path, shape: bytes, message: str) -> None:
    """Before anything of that size is allocated."""
    path = own(tmp_path)
    with ZipFile(path) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    header = members["val_images.npy"]
    at = header.find(b"(4, 28, 28)")
    header[at : at + len(shape)] = shape
    with ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(content))
    with pytest.raises(ValueError, match=message):
        dataset_info("mine", tmp_path)


def test_labels_of_an_own_file(tmp_path: Path) -> None:
    arrays = arrays_like(dataset_info("breastmnist"))
    nearly = {key: value * np.float32(1.0000153) for key, value in arrays.items() if "labels" in key}
    own(tmp_path, **nearly)
    assert np.array_equal(load_dataset("mine", tmp_path).labels, arrays["train_labels"][:, 0])
    own(tmp_path, **{key: value * 255.0 for key, value in arrays.items() if "labels" in key})
    with pytest.raises(ValueError, match=r"mine\.npz has the labels 0, 255; .* no image of class 1"):
        dataset_info("mine", tmp_path)
    own(tmp_path, train_labels=np.ones_like(arrays["train_labels"]))
    dataset_info("mine", tmp_path)
    with pytest.raises(ValueError, match=r"mine\.npz: all images in 'training' are of class 1 \('1'\)"):
        dataset_info("mine", tmp_path, splits=("train", "val"))


def test_the_same_images_in_two_splits_are_said(tmp_path: Path) -> None:
    arrays = arrays_like(dataset_info("breastmnist"))
    same = {f"test_{kind}": arrays[f"train_{kind}"] for kind in ("images", "labels")}
    own(tmp_path, **same)
    with pytest.warns(UserWarning, match=r"mine\.npz: train_images and test_images are the same"):
        dataset_info("mine", tmp_path)
