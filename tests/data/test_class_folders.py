"""A folder per class, with and without folders of splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_sre.data import dataset_info, load_dataset
from monai_sre.data.class_folders import list_class_folders


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_each_class_is_split_in_the_order_of_names(tmp_path: Path) -> None:
    for count, name in ((10, "b"), (3, "a"), (21, "c c")):
        for number in range(count):
            picture(tmp_path / f"cells/{name}/{number:02}.png", 10 * "abc".index(name[0]) + number)
    (tmp_path / "cells/.cache").mkdir()
    info = dataset_info("cells", tmp_path, size=8, splits=("train", "val"))
    assert (info.name, info.class_names, info.task, info.num_channels) == ("cells", ("a", "b", "c c"), "multi-class", 1)
    found = {}
    for split in ("train", "val", "test"):
        data = load_dataset(str(tmp_path / "cells"), split=split, size=8, progress=False)
        found[split] = [
            (int(label), int(image[0, 0, 0])) for image, label in zip(data.images, data.labels, strict=True)
        ]
    assert found["val"] == [(0, 1), (1, 17), (2, 35), (2, 36)]
    assert found["test"] == [(0, 2), (1, 18), (1, 19), *((2, value) for value in range(37, 41))]
    assert len(found["train"]) == 34 - 4 - 7
    assert found["train"][0] == (0, 0)


def test_folders_of_splits_say_what_is_in_them(tmp_path: Path) -> None:
    """A class may be absent from one; of a model, the names give the numbers, not their order in the folder."""
    for number, name in enumerate(("train/x/deep/1.png", "train/y/1.png", "validation/x/2.png", "test/y/3.png")):
        picture(tmp_path / name, number)
    lists = list_class_folders(tmp_path)
    assert lists["labels"] == ["x", "y"]
    entries = [(Path(entry["image"]).name, entry["label"]) for entry in lists["training"]]
    assert entries == [("1.png", "x"), ("1.png", "y")]
    test = load_dataset(str(tmp_path), split="test", size=8, class_names=["z", "y", "x"], progress=False)
    assert test.labels.tolist() == [1]
    assert test.info.class_names == ("z", "y", "x")
    with pytest.raises(ValueError, match=r"has class 0 \('x'\), which the model never saw; its classes are 0 'y'"):
        load_dataset(str(tmp_path), split="test", class_names=["y", "z"])
    with pytest.raises(
        ValueError, match=r"all images in 'validation' are of class 0 \('x'\); training needs others too"
    ):
        dataset_info(str(tmp_path), splits=("train", "val"))


def test_folders_of_splits_in_other_writings(tmp_path: Path) -> None:
    for part in ("Training", "valid", "TESTING"):
        for name in ("x", "y"):
            picture(tmp_path / part / name / f"{part}.png", len(part))
    lists = list_class_folders(tmp_path)
    assert lists["labels"] == ["x", "y"]
    for section, part in (("training", "Training"), ("validation", "valid"), ("test", "TESTING")):
        assert {Path(entry["image"]).stem for entry in lists[section]} == {part}
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="has the folders 'TESTING' and 'test', which both mean 'test'"):
        list_class_folders(tmp_path)


def test_folders_of_splits_without_validation(tmp_path: Path) -> None:
    """The last of each class of ``train`` validates; what tests is as it was."""
    for number in range(8):
        picture(tmp_path / ("train" if number < 6 else "test") / "xy"[number % 2] / f"{number}.png", number)
    found = {part: load_dataset(str(tmp_path), split=part, size=8, progress=False) for part in ("train", "val", "test")}
    names = {part: [Path(file).name for file in data.files] for part, data in found.items()}
    assert names == {
        "train": ["0.png", "2.png", "1.png", "3.png"],
        "val": ["4.png", "5.png"],
        "test": ["6.png", "7.png"],
    }


def test_copies_in_other_splits_or_classes_are_said(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("x", "y"):
            picture(tmp_path / part / name / "1.png", 3 if name == "x" else part == "val")
    with pytest.warns(UserWarning, match=r"val/x/1\.png is the same image as .*train/x/1\.png$"):
        list_class_folders(tmp_path)


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png", 0)
    with pytest.raises(ValueError, match=r"/a has 1 images; a class needs at least 3"):
        load_dataset(str(tmp_path))
    picture(tmp_path / "2.png", 0)
    with pytest.raises(ValueError, match=r"2\.png is in no folder of a class; expected .*/CLASS/IMAGE"):
        load_dataset(str(tmp_path))
    (tmp_path / "empty/b").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no image in \['.*/empty/b'\]"):
        dataset_info("empty", tmp_path)
    with pytest.raises(ValueError, match=r"/empty/b is in no folder of a class"):
        dataset_info("b", tmp_path / "empty")


def test_names_that_are_splits_and_names_that_are_none_are_said(tmp_path: Path) -> None:
    for part in ("train", "test", "validate", ".cache"):
        for name in ("x", "y"):
            for number in range(10):
                picture(tmp_path / part / name / f"{number}.png", number)
    with pytest.warns(UserWarning, match=r"left out of .*, as their names are no split \(training, .*\): validate$"):
        list_class_folders(tmp_path)
    for name in ("valid", "invalid"):
        picture(tmp_path / "classes" / name / "1.png", 0)
    with pytest.raises(ValueError, match=r"valid/1\.png is in no .*, as 'valid' is the name of a split \(validation\)"):
        list_class_folders(tmp_path / "classes")


def test_files_that_are_no_images_stop_the_loading_by_name(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"a/{number}.png", number)
        picture(tmp_path / f"b/{number}.png", number + 10)
    (tmp_path / "b/0.mha").touch()
    with pytest.raises(ValueError, match=r"1 of 3 images of 'train' cannot be used: .*0\.mha is MetaImage"):
        load_dataset(str(tmp_path), progress=False)
    (tmp_path / "b/0.mha").unlink()
    assert load_dataset(str(tmp_path), size=8, progress=False).images.dtype == torch.uint8
