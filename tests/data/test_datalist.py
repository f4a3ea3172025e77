"""Datalists of pictures and volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_sre.data import DatasetInfo, dataset_info, load_dataset


def write_datalist(folder: Path, lists: dict, **more: object) -> Path:
    (folder / "mine.json").write_text(json.dumps({**lists, **more}))
    return folder / "mine.json"


def test_datalist_of_pictures(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 20, 10, 3), dtype=np.uint8)
    for i, picture in enumerate(colours):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    lists = {
        "training": [{"image": "0.png", "label": 0}, {"image": "1.png", "label": 2}],
        "validation": [{"image": "2.png", "label": 1}],
        "test": [{"image": "3.png", "label": 1}],
    }
    write_datalist(tmp_path, lists, labels={"0": "a", "1": "b", "2": "c"})
    info = dataset_info("mine", tmp_path, size=20)
    assert info == DatasetInfo("mine", 2, 20, "multi-class", 3, 3, ("a", "b", "c"))
    write_datalist(tmp_path, lists, labels={"c": 2, "a": 0, "b": 1})  # as nnU-Net has it
    assert dataset_info("mine", tmp_path, size=20) == info
    data = load_dataset("mine", tmp_path, "train", size=20, progress=False)
    assert data.images.shape == (2, 3, 20, 20)
    assert data.images.dtype == torch.uint8
    assert data.labels.tolist() == [0, 2]
    # 20 x 10 is padded by 5 columns on each side; rows stay rows.
    np.testing.assert_array_equal(data.images[1, :, :, 5:15].numpy(), np.moveaxis(colours[1], -1, 0))
    border = np.concatenate([colours[1][0, :, 0], colours[1][-1, :, 0], colours[1][1:-1, [0, -1], 0].ravel()])
    assert data.images[1, 0, 3, 2].item() == np.sort(border)[(len(border) - 1) // 2]
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    (tmp_path / "0.png").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"0\.png is missing"):
        load_dataset("mine", tmp_path, "train", progress=False)
    Image.fromarray(colours[0]).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"1 of 2 images of 'train' cannot be used: .*1\.png cannot be read"):
        load_dataset("mine", tmp_path, "train", progress=False)


def test_datalist_of_volumes_is_isotropic_and_multi_label(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(10, 12, 4)).astype(np.float32)
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])  # stored right to left, slices three times as thick
    for i in range(2):
        nibabel.save(nibabel.Nifti1Image(volume + i, affine), tmp_path / f"{i}.nii.gz")
    entry = [{"image": "0.nii.gz", "label": [0, 1, 1]}, {"image": "1.nii.gz", "label": [1, 1, 0]}]
    path = write_datalist(tmp_path, {"training": entry, "validation": entry[:1], "test": entry[1:]})
    data = load_dataset(str(path), split="train", size=12, progress=False)
    assert data.info.spatial_dims == 3
    assert data.info.task == "multi-label, binary-class"
    assert data.info.num_classes == 3
    assert data.images.shape == (2, 1, 12, 12, 12)
    assert data.images.dtype == torch.float32
    assert data.labels.tolist() == [[0, 1, 1], [1, 1, 0]]
    unit = (volume - volume.min()) / (volume.max() - volume.min())
    # 10 x 12 x 4 voxels of 1 x 1 x 3 mm: 10 x 12 x 12 mm; the first axis is turned and padded by one on each side, and
    # every third new slice lies on an old one.
    np.testing.assert_allclose(data.images[0, 0, 1:11, :, 1::3].numpy(), unit[::-1], atol=1e-5)


def test_slices_are_images_in_their_own_axes(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (10, 12, 4), dtype=np.uint8)
    for name, values in {"a": volume[..., :1], "b": volume[:1]}.items():
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 1.0, 1.0])), tmp_path / f"{name}.nii")
    for name, plane in {"a": volume[..., 0], "b": volume[0]}.items():
        size = max(plane.shape)
        path = write_datalist(tmp_path, {"test": [{"image": f"{name}.nii", "label": 1}]})
        data = load_dataset(str(path), split="test", size=size, progress=False)
        margins = [(size - side) // 2 for side in plane.shape]
        inner = data.images[0, 0, margins[0] : size - margins[0], margins[1] : size - margins[1]]
        np.testing.assert_array_equal(inner.numpy(), plane)


def test_byte_order_marks_and_capitals_in_the_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4, dtype=np.uint8))
    text = json.dumps({"training": [{"image": "a.npy", "label": label} for label in (0, 1)]})
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "DATA.JSON").write_text(text, encoding=encoding)
        assert dataset_info("DATA.JSON", tmp_path).num_classes == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON"),
        ("[1]", "not a datalist"),
        ('{"training": [{"image": "a.png"}]}', r"training\[0\]"),
        ('{"training": [{"image": "a.png", "label": "x"}]}', r"label of training\[0\] is 'x'; .* whole number from 0"),
        (
            '{"training": [{"image": "a.png", "label": "x"}], "labels": ["a", "b"]}',
            r"names in 'labels', \['a', 'b'\]",
        ),
        ('{"training": [{"image": "a.png", "label": null}]}', r"label of training\[0\] is None; expected"),
        ('{"training": [{"image": "a.png", "label": 1.01}]}', "of 'training' must be whole numbers from 0, got 1.01"),
        ('{"training": [{"image": "a.png", "label": 1e300}]}', "must be whole numbers from 0, got 1e.300"),
        ('{"training": [{"image": "a.png", "label": 1000000000000}]}', "has the labels 1000000000000; "),
        ('{"training": [{"image": "a.png", "label": 1' + 30 * "0" + "}]}", "must be whole numbers from 0"),
        ('{"training": [{"image": "a.png", "label": 1}, {"image": "b.png", "label": 2}]}', "no image of class 0"),
        ('{"training": [{"image": "a.png", "label": []}]}', "must be whole numbers from 0, or, multi-label"),
        (
            '{"training": [{"image": "a.png", "label": 0}], "labels": ["a", "a"]}',
            "expected a list of class names that differ",
        ),
        ('{"training": []}', "mine.json has no images in training, validation, test"),
        ('{"training": [], "val": []}', "has a list 'val'; the name of that list is 'validation'"),
        ('{"train": []}', "has a list 'train'; the name of that list is 'training'"),
        (
            '{"training": [{"image": "a.png", "label": 0}], "validation": 5}',
            "'validation' must be a list of images .*got 5",
        ),
        (
            '{"training": [{"image": "a.png", "label": 0}], "task": 5}',
            "task is 5, but the labels of .* of a binary-class",
        ),
        ('{"training": [{"image": "a.png", "label": 0}], "task": ["x"]}', r"task is \['x'\], but the labels of"),
        (
            '{"training": [{"image": "images\\a.png", "label": 0}]}',
            "not a readable JSON .*; write it as UTF-8, with '/' in",
        ),
        (
            '{"training": [{"image": "images\\\\a.png", "label": 0}]}',
            "write the path 'images.*a.png' in 'training' with '/'",
        ),
        (
            '{"training": ' + 100_000 * "[" + 100_000 * "]" + "}",
            "not a readable JSON datalist: maximum recursion depth",
        ),
        (
            '{"training": [{"image": "a.png", "label": 1}], "labels": {"a": 0, "b": 2}}',
            "expected a list of class names that differ",
        ),
        ('{"training": [{"image": "a.png", "label": 1}], "labels": "ab"}', "'labels' is 'ab'; expected a list"),
        (
            '{"training": [{"image": "a.png", "label": 1}, {"image": "b.png", "label": 0}], "labels": null, "test": null}',
            r"a\.png is missing",
        ),
        ('{"training": [{"image": "a.png", "label": [0, 1]}, {"image": "b.png", "label": [1]}]}', "whole numbers"),
    ],
)
def test_a_wrong_datalist_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_dataset("mine", tmp_path)
    assert "a.png is missing" in str(caught.value) or "mine.json" in str(caught.value)


def test_text_labels_are_those_that_labels_names(tmp_path: Path) -> None:
    """Numbers, also as 1.0 and true, and names of classes; a model's own names give its numbers."""
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((4, 4), number, dtype=np.uint8))
    entries = [{"image": f"{number}.npy", "label": label} for number, label in enumerate(("b", 0, 1.0000153, True))]
    write_datalist(tmp_path, {"training": entries}, labels=["a", "b"])
    found = [
        load_dataset("mine", tmp_path, split, size=4, progress=False).labels.tolist() for split in ("train", "val")
    ]
    assert found == [[1, 0, 1], [1]]
    write_datalist(tmp_path, {"test": [{"image": "0.npy", "label": "b"}]}, labels=["a", "b"])
    test = load_dataset("mine", tmp_path, "test", size=4, class_names=["b", "c", "a"], progress=False)
    assert test.labels.tolist() == [0]
    assert test.info.class_names == ("b", "c", "a")


def test_without_validation_the_last_tenth_of_each_class_validates(tmp_path: Path) -> None:
    """In the order of the list; one image at least of two, and none of a class of one. Of several labels, of all images."""
    classes = [*[0] * 20, *[1] * 2, 2, *[0] * 9, 1]
    for number in range(len(classes)):
        np.save(tmp_path / f"{number}.npy", np.full((4, 4), number, dtype=np.uint8))
    for labels, validate in (
        (classes, ["30", "31", "32"]),
        ([f"class {number}" for number in classes], ["30", "31", "32"]),
        ([[number // 2, number % 2, 1] for number in classes[:12]], ["11"]),
    ):
        entries = [{"image": f"{number}.npy", "label": label} for number, label in enumerate(labels)]
        write_datalist(tmp_path, {"training": entries}, labels=["class 0", "class 1", "class 2"])
        val, train = (load_dataset("mine", tmp_path, split, size=4, progress=False) for split in ("val", "train"))
        assert [Path(file).stem for file in val.files] == validate
        assert len(train) == len(labels) - len(validate)
        part = load_dataset("mine", tmp_path, "train", num_train=len(train) - 1, size=4, progress=False)
        assert [int(Path(file).stem) for file in part.files] == part.images[:, 0, 0, 0].tolist()


def test_what_a_training_lacks_is_found_before_an_image_is_read(tmp_path: Path) -> None:
    lists = {"training": [{"image": "no.npy", "label": 0}, {"image": "one.npy", "label": 1}]}
    write_datalist(tmp_path, lists)
    with pytest.raises(ValueError, match=r"mine.json has no images in 'validation', which split='val' needs"):
        dataset_info("mine", tmp_path, splits=("train", "val"))
    write_datalist(tmp_path, {**lists, "validation": [{"image": "other.npy", "label": 1}]})
    with pytest.raises(ValueError, match=r"all images in 'validation' are of class 1 \('1'\)"):
        dataset_info("mine", tmp_path, splits=("train", "val"))
    write_datalist(tmp_path, {"training": lists["training"][:1]}, labels=["a", "b"])
    with pytest.raises(ValueError, match=r"all images in 'training' are of class 0 \('a'\)"):
        dataset_info("mine", tmp_path, splits=("train",))


def test_an_image_in_two_lists_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4, dtype=np.uint8))
    lists = {"training": [{"image": "a.npy", "label": 0}, {"image": "b.npy", "label": 1}]}
    write_datalist(tmp_path, {**lists, "test": [{"image": "./a.npy", "label": 0}]})
    with pytest.warns(UserWarning, match=r"the same image is in two lists, \./a\.npy in 'training' and 'test'; scores"):
        dataset_info("mine", tmp_path)
