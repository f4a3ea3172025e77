"""Data sets by name: which file a name means, a user's own npz, and the classes of a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_sre.data import DatasetInfo, FitSquared, ReadImaged, dataset_info, load_dataset, scale_to_unit
from tests.data.layouts import arrays_like


def test_own_npz_by_name_and_by_path(tmp_path: Path) -> None:
    info = DatasetInfo("mine", 3, 8, "multi-class", 1, 4, ("0", "1", "2", "3"))
    arrays = arrays_like(info)
    np.savez(tmp_path / "mine.npz", **arrays)
    for name, folder in (("mine", tmp_path), ("mine.npz", tmp_path), (str(tmp_path / "mine.npz"), ".")):
        assert dataset_info(name, folder) == info
    graded = dataset_info("mine", tmp_path, task="ordinal-regression")
    assert graded.task == "ordinal-regression"
    data = load_dataset("mine", tmp_path, "train")
    np.testing.assert_array_equal(data.images[:, 0], arrays["train_images"])
    with pytest.raises(FileNotFoundError, match=r"other\.npz"):
        dataset_info("other.npz", tmp_path)
    with pytest.raises(ValueError, match="column"):
        dataset_info("mine", tmp_path, task="multi-label, binary-class")


def test_a_part_of_the_training_set_alone(tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    images = np.repeat(np.arange(30, dtype=np.uint8), 64).reshape(30, 8, 8)
    splits = ("train", "val", "test")
    np.savez(
        tmp_path / "mine.npz", **{f"{s}_images": images for s in splits}, **{f"{s}_labels": labels for s in splits}
    )
    part = load_dataset("mine", tmp_path, "train", num_train=9, seed=3)
    assert (part.images[:, 0, 0, 0] % 3).tolist() == part.labels.tolist()  # still each with its own label
    assert torch.bincount(part.labels).tolist() == [3, 3, 3]
    assert len(load_dataset("mine", tmp_path, "val", num_train=9)) == 30
    with pytest.raises(
        ValueError, match=r"num_train must be None or a whole number from 3, one per class, to 30, got 2"
    ):
        load_dataset("mine", tmp_path, num_train=2)


def test_own_npz_of_masks_is_black_and_white_as_files_are(tmp_path: Path) -> None:
    arrays = arrays_like(DatasetInfo("mine", 2, 12, "binary-class", 1, 2, ("0", "1")))
    masks = {key: value % 2 if "images" in key else value for key, value in arrays.items()}
    np.savez(tmp_path / "mine.npz", **masks)
    images = load_dataset("mine", tmp_path, "train").images
    assert torch.equal(images[:, 0], torch.from_numpy(masks["train_images"]).float())


def test_own_npz_of_oblong_images_is_padded_as_files_are(tmp_path: Path) -> None:
    arrays = arrays_like(DatasetInfo("mine", 2, 12, "binary-class", 1, 2, ("0", "1")))
    arrays = {key: value[:, :, :7] if "images" in key else value for key, value in arrays.items()}
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_dataset("mine", tmp_path, "train")
    assert data.images.shape[1:] == (1, data.info.size, data.info.size) == (1, 12, 12)
    assert data.images.dtype == torch.uint8
    np.save(tmp_path / "a.npy", arrays["train_images"][1])
    item = ReadImaged("image", spatial_dims=2, num_channels=1)({"image": tmp_path / "a.npy"})
    assert torch.equal(FitSquared("image", data.info.size)(item)["image"].as_tensor(), data.images[1])


def test_other_dtypes_become_0_to_1(tmp_path: Path) -> None:
    arrays = arrays_like(DatasetInfo("ct", 2, 9, "binary-class", 1, 2, ("0", "1")))
    hounsfield = {k: v.astype(np.int16) * 10 - 1000 if "images" in k else v for k, v in arrays.items()}
    np.savez(tmp_path / "ct.npz", **hounsfield)
    window = load_dataset("ct", tmp_path, "val", intensity_range=(-100, 300)).images[:, 0].numpy()
    np.testing.assert_allclose(window, np.clip((hounsfield["val_images"] + 100) / 400.0, 0, 1), atol=1e-6)
    own = load_dataset("ct", tmp_path, "val").images
    assert own.amin((1, 2, 3)).tolist() == [0] * 4
    assert own.amax((1, 2, 3)).tolist() == [1] * 4
    hounsfield["val_images"] = np.where(hounsfield["val_images"] > 0, np.nan, 0.0)
    np.savez(tmp_path / "ct.npz", **hounsfield)
    with pytest.raises(ValueError, match="val_images holds NaN"):
        load_dataset("ct", tmp_path, "val")
    hounsfield["val_images"] = np.where(np.isnan(hounsfield["val_images"]), 1e300, 0.0)
    np.savez(tmp_path / "ct.npz", **hounsfield)
    with pytest.raises(ValueError, match="val_images holds values beyond those of float32"):
        load_dataset("ct", tmp_path, "val")
    fractions = torch.linspace(0.1, 0.9, 18).reshape(2, 1, 3, 3)
    assert torch.equal(scale_to_unit(fractions), fractions)
    beyond = fractions[1:] + torch.tensor([0.5, 0.0, 0.0])
    both = scale_to_unit(torch.cat([fractions[:1], beyond]))
    assert torch.equal(both[:1], fractions[:1])  # as inference has it, which sees one image at a time
    torch.testing.assert_close(both[1:], (beyond - beyond.min()) / (beyond.max() - beyond.min()))
    with pytest.raises(ValueError, match="intensity_range"):
        scale_to_unit(fractions, (1, 1))
    with pytest.raises(ValueError, match="intensity_range must be two increasing values"):
        load_dataset("demo_2d", intensity_range=(5, 1))  # refused though 8-bit images do without it


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_data_are_evaluated_with_the_classes_of_a_trained_model(tmp_path: Path, kind: str) -> None:
    """They may lack the last class; one that the model never saw is named, with the file."""

    def write(top: int) -> None:
        arrays = arrays_like(DatasetInfo("x", 2, 6, "multi-class", 1, top + 1, tuple(map(str, range(top + 1)))))
        if kind == "npz":
            np.savez(tmp_path / "mine.npz", **arrays)
        else:
            np.save(tmp_path / "a.npy", arrays["test_images"][0])
            entries = [{"image": "a.npy", "label": label} for label in range(top + 1)]
            (tmp_path / "mine.json").write_text(json.dumps({"test": entries}))

    options = {"dataset_dir": tmp_path, "size": 6, "class_names": ["a", "b", "c"]}
    write(1)
    info = dataset_info("mine", **options)
    assert (info.task, info.num_classes, info.class_names) == ("multi-class", 3, ("a", "b", "c"))
    data = load_dataset("mine", split="test", progress=False, **options)
    assert data.info == info
    assert int(data.labels.max()) == 1
    write(3)
    with pytest.raises(
        ValueError, match=rf"mine\.{kind} has class 3, which the model never saw; its classes are 0 'a'"
    ):
        load_dataset("mine", split="test", progress=False, **options)


def test_grey_pictures_in_colour_are_evaluated_by_a_grey_model(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(grey).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "mine.json").write_text(json.dumps({"test": [{"image": "a.png", "label": label} for label in (0, 1)]}))
    options = {"dataset_dir": tmp_path, "size": 6}
    assert dataset_info("mine", **options).num_channels == 3
    data = load_dataset("mine", split="test", progress=False, num_channels=1, **options)
    assert data.info == dataset_info("mine", num_channels=1, **options)
    assert data.images.shape == (2, 1, 6, 6)
    torch.testing.assert_close(data.images[0, 0], torch.from_numpy(grey))


def test_data_of_other_axes_or_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="dataset_name='demo_3d' holds volumes, where images are wanted: take the bundle"
    ):
        dataset_info("demo_3d", spatial_dims=2)
    with pytest.raises(ValueError, match="dataset_name='breastmnist' holds images, where volumes are wanted"):
        dataset_info("breastmnist", spatial_dims=3)
    for function in (dataset_info, load_dataset):
        with pytest.raises(ValueError, match="images of data set 'demo_2d' have 1 channels, and the model takes 3"):
            function("demo_2d", num_channels=3)


def test_two_classes_are_binary_and_no_others() -> None:
    with pytest.raises(
        ValueError, match="task of data set 'x' must be 'multi-class' with 3 classes, got 'binary-class'"
    ):
        DatasetInfo("x", 2, 6, "binary-class", 1, 3, ("a", "b", "c"))


def test_official_and_demo_data_are_those_of_the_model_or_refused() -> None:
    assert dataset_info("breastmnist", class_names=["malignant", "normal, benign"]).num_classes == 2
    with pytest.raises(ValueError, match=r"breastmnist has the classes 0 'malignant', .* in another order"):
        dataset_info("breastmnist", class_names=["normal, benign", "malignant"])
    with pytest.raises(ValueError, match=r"demo_2d has class 0 \('brick'\), which the model never saw"):
        load_dataset("demo_2d", class_names=["malignant", "normal, benign"])


def test_only_the_flags_need_the_package_medmnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mine.npz", **arrays_like(DatasetInfo("mine", 2, 6, "binary-class", 1, 2, ("0", "1"))))
    for name in ("medmnist", "medmnist.info"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(load_dataset("mine", tmp_path)) == 7
    assert dataset_info("demo_3d").num_classes == 3
    with pytest.raises(ValueError, match="dataset_name is 'other'"):
        dataset_info("other", tmp_path)
    with pytest.raises(ImportError, match="pip install --no-deps medmnist"):
        dataset_info("breastmnist", tmp_path)
