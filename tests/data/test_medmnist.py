"""MedMNIST files, a user's own data, and whole-batch loading.

Real files are those of the folder that MONAI_SRE_DATA names. The flags that are not there are tested on tiny files
written here in the same layout: that shows that the layout is handled, not that the official files are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from medmnist import INFO
from PIL import Image

from monai_sre.data import (
    BatchLoader,
    DatasetInfo,
    FileImages,
    LabelledImages,
    dataset_info,
    load_dataset,
    medmnist_flags,
    read_image,
    scale_to_unit,
)
from monai_sre.data import medmnist as module
from monai_sre.data.npz import read_member

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


def arrays_like(info: DatasetInfo, counts: tuple[int, int, int] = (7, 4, 5)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (info.size,) * info.spatial_dims + ((3,) if info.num_channels == 3 else ())
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        columns, top = (info.num_classes, 2) if info.multi_label else (1, info.num_classes)
        arrays[f"{split}_labels"] = random.integers(0, top, (count, columns), dtype=np.uint8)
        arrays[f"{split}_labels"].flat[0] = top - 1
    return arrays


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
    assert medmnist_flags() == tuple(case[0] for case in PAPER)
    assert dataset_info("breastmnist", size=224).size == 224
    with pytest.raises(ValueError, match=r"size is 128; nodulemnist3d .*\(28, 64\)"):
        dataset_info("nodulemnist3d", size=128)
    with pytest.raises(ValueError, match="did you mean 'breastmnist'"):
        dataset_info("breastmnits")
    with pytest.raises(ValueError, match="split is 'training'"):
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
        (_spoil("test_labels", lambda x: x * 0.5 - 1), "finite whole numbers"),
        (_spoil("test_labels", lambda x: x * np.nan), "finite whole numbers"),
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


def test_own_npz_of_oblong_images_is_padded_as_files_are(tmp_path: Path) -> None:
    arrays = arrays_like(DatasetInfo("mine", 2, 12, "binary-class", 1, 2, ("0", "1")))
    arrays = {key: value[:, :, :7] if "images" in key else value for key, value in arrays.items()}
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_dataset("mine", tmp_path, "train")
    assert data.images.shape[1:] == (1, data.info.size, data.info.size) == (1, 12, 12)
    assert data.images.dtype == torch.uint8
    np.save(tmp_path / "a.npy", arrays["train_images"][1])
    (item,) = FileImages(tmp_path / "a.npy", data.info, lambda x: x)
    assert torch.equal(item["image"], data.images[1])


def test_uncompressed_pixels_are_mapped_and_their_checksum_is_verified(tmp_path: Path) -> None:
    arrays = arrays_like(dataset_info("bloodmnist"))
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    data = load_dataset("mine", tmp_path, "test")
    assert isinstance(module.read_member(path, "test_images"), np.memmap)
    np.testing.assert_array_equal(data.images.movedim(1, -1), arrays["test_images"])
    data.images[:] = 0  # copy on write: the file stays as it is
    np.testing.assert_array_equal(load_dataset("mine", tmp_path, "test").images.movedim(1, -1), arrays["test_images"])
    content = bytearray(path.read_bytes())
    content[content.find(arrays["test_images"].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum of test_images"):
        load_dataset("mine", tmp_path, "test")


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
    fractions = torch.rand(2, 1, 3, 3)
    assert torch.equal(scale_to_unit(fractions), fractions)
    with pytest.raises(ValueError, match="intensity_range"):
        scale_to_unit(fractions, (1, 1))


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
    nibabel.save(nibabel.Nifti1Image(volume[..., :1], affine), tmp_path / "slice.nii")
    assert read_image(tmp_path / "slice.nii").shape == (1, 10, 12)
    nibabel.save(nibabel.Nifti1Image(volume[:1], affine), tmp_path / "slice.nii")
    assert read_image(tmp_path / "slice.nii").shape == (1, 12, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON"),
        ("[1]", "not a datalist"),
        ('{"training": [{"image": "a.png"}]}', r"training\[0\]"),
        ('{"training": [{"image": "a.png", "label": "x"}]}', "whole numbers"),
        (
            '{"training": [{"image": "a.png", "label": 1}], "labels": {"a": 0, "b": 2}}',
            "expected a list of class names",
        ),
        ('{"training": [{"image": "a.png", "label": 1}], "labels": "ab"}', "'labels' is 'ab'; expected a list"),
        ('{"training": [{"image": "a.png", "label": 1}], "labels": null, "test": null}', r"a\.png is missing"),
        ('{"training": [{"image": "a.png", "label": [0, 1]}, {"image": "b.png", "label": [1]}]}', "whole numbers"),
    ],
)
def test_a_wrong_datalist_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_dataset("mine", tmp_path)
    assert "a.png is missing" in str(caught.value) or "mine.json" in str(caught.value)


def numbered(count: int) -> LabelledImages:
    info = DatasetInfo("n", 2, 2, "multi-class", 1, 300, tuple(map(str, range(300))))
    return LabelledImages(
        torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), torch.arange(count), info
    )


@pytest.mark.parametrize("count", [5, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_validation_shards_neither_drop_nor_repeat(count: int, world: int, batch_size: int) -> None:
    data, seen, lengths = numbered(count), [], set()
    for rank in range(world):
        loader = BatchLoader(data, batch_size, rank=rank, world_size=world)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(1 <= len(b["label"]) <= batch_size for b in batches)
        assert all(torch.equal(b["image"][:, 0, 0, 0].long(), b["label"]) for b in batches)
        seen += [label for b in batches for label in b["label"].tolist()]
        lengths.add(len(loader))
    assert sorted(seen) == list(range(count))
    assert batch_size == 1 or len(lengths) == 1  # ranks make the same number of steps


def test_training_shards_and_epochs() -> None:
    data = numbered(17)
    for drop_last, expected in ((False, 3), (True, 2)):  # 9 or 8 samples a rank, in batches of 4
        loaders = [BatchLoader(data, 4, True, drop_last, seed=1, rank=r, world_size=2) for r in range(2)]
        seen = [b["label"].tolist() for loader in loaders for b in loader]
        assert [len(loader) for loader in loaders] == [expected, expected] == [len(seen) // 2] * 2
        labels = sorted(label for batch in seen for label in batch)
        assert len(set(labels)) == (16 if drop_last else 17)
        assert len(labels) == (16 if drop_last else 18)
    loader = BatchLoader(data, 4, shuffle=True, seed=1)
    epochs = [[b["label"].tolist() for b in loader] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = BatchLoader(data, 4, shuffle=True, seed=1)
    resumed.set_epoch(2)
    assert [b["label"].tolist() for b in resumed] == epochs[2]
    assert [b["label"].tolist() for b in BatchLoader(data, 4, shuffle=True, seed=2)] != epochs[0]


def test_loader_follows_a_monai_trainer_and_resumes() -> None:
    from monai.engines import SupervisedTrainer

    from monai_sre.data import BatchAugment2d

    def run(first: int, last: int) -> list[float]:
        loader = BatchLoader(numbered(20), 8, shuffle=True, seed=3, transform=BatchAugment2d(None, seed=5))
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 300))
        sums: list[float] = []
        trainer = SupervisedTrainer(
            torch.device("cpu"), last, loader, network, torch.optim.SGD(network.parameters(), 0.0),
            torch.nn.CrossEntropyLoss(), train_handlers=[loader], decollate=False,
            iteration_update=lambda engine, batch: sums.append(
                float((batch["image"][:, 0, 0, 0] * batch["label"]).sum())
            ),
        )  # fmt: skip
        trainer.state.epoch, trainer.state.iteration = first, first * len(loader)
        trainer.run()
        return sums

    whole = run(0, 4)
    assert len(whole) == 12
    assert len(set(whole)) == 12
    assert run(2, 4) == whole[6:]


def test_items_slices_and_arguments() -> None:
    data = numbered(6)
    assert data[4]["label"].item() == 4
    assert [item["label"].item() for item in data[1:3]] == [1, 2]
    loaded = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert loaded["image"].shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match="6 images and 5 labels"):
        LabelledImages(data.images, data.labels[:5], data.info)
    for bad, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"drop_last": True}, "drop_last"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"rank": 0, "world_size": 7}, "6 samples"),
        ({"batch_size": 7, "drop_last": True, "shuffle": True}, "no batch"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchLoader(data, **bad)
