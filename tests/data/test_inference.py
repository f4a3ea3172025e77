"""Files for inference: the bad ones say why, the others are as transformed."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.data import DataLoader, decollate_batch
from monai.transforms import Compose, Flipd
from PIL import Image

from monai_sre.data import FitSquared, ImageFiles, ReadImaged, find_images
from monai_sre.data.inference import OUTPUTS, earlier_outputs, note_output


def test_items_of_good_and_bad_files(tmp_path: Path) -> None:
    arrays = {"a.npy": np.ones((3, 5)), "sub/b.npy": np.ones((2, 2, 2)), "sub/c.npy": np.full((2, 2), np.inf)}
    for name, array in arrays.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array)
    (tmp_path / "sub/d.png").write_text("no picture")
    (tmp_path / "sub/._d.png").write_text("hidden")
    transform = Compose([ReadImaged("image", 2, 1), Flipd("image", spatial_axis=0)])
    items = list(ImageFiles(tmp_path, transform, num_channels=1, spatial_dims=2))
    assert [item["name"] for item in items] == ["a.npy", "sub/b.npy", "sub/c.npy", "sub/d.png"]
    assert [item["path"] for item in items] == [str(tmp_path / item["name"]) for item in items]
    assert items[0]["image"].shape == (1, 3, 5)
    assert len(items[0]["image"].applied_operations) == 1
    assert items[0]["error"] == ""
    reasons = ("has 2 channels; the network takes 1", "NaN or infinite", "cannot be read as an image")
    for item, reason in zip(items[1:], reasons, strict=True):
        assert item["error"].startswith(item["path"])
        assert reason in item["error"]
        assert "\n" not in item["error"]
        assert item["image"].shape[0] == 1


def test_other_failures_name_the_file_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 5)))
    transform = Compose([ReadImaged("image", 2), lambda item: 1 / 0])
    (item,) = ImageFiles(tmp_path / "a.npy", transform, 1, 2)
    assert item["error"] == f"{tmp_path / 'a.npy'} cannot be used: ZeroDivisionError: division by zero"


def test_files_that_cannot_be_used_fit_into_a_batch(tmp_path: Path) -> None:
    """Of several files, each of its own kind; what was done to each stays known."""
    np.save(tmp_path / "a.npy", np.ones((3, 5)))
    Image.fromarray(np.zeros((9, 4), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no picture")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 6, 1), np.float32), np.diag([2.0, 3, 4, 1])), tmp_path / "d.nii")
    transform = Compose([ReadImaged("image", 2, 1), FitSquared("image", 6, 12)])
    (batch,) = DataLoader(ImageFiles(tmp_path, transform, 1, 2, size=12), batch_size=4)
    assert [bool(error) for error in batch["error"]] == [False, False, True, False]
    assert batch["image"].shape == (4, 1, 12, 12)
    sizes = [
        item.applied_operations[0]["orig_size"] for item in decollate_batch(batch["image"]) if item.applied_operations
    ]
    assert [tuple(size) for size in sizes] == [(3, 5), (9, 4), (4, 6)]


def test_names_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is neither a file nor a folder of images"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no image in .*: files must end in \.nii, \.nii\.gz, \.npy"):
        find_images(tmp_path)
    for name in ("a.PPM", "b.gif", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path])] == ["a.PPM", "b.gif", "c.webp"]


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Medical images of other kinds are not: each is a file that cannot be used."""
    for name in ("a.png", "b.txt", "c.TXT", "d", ".hidden.txt", "sub/e.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/IM1").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "sub/link.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe")  # would wait for ever
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "IM1", "e.mha", "link.png"]
    (record,) = caplog.records
    expected = f"left out 3 files in ['{tmp_path}'], which are no images by their endings: .txt (2), no ending (1)"
    assert (record.levelname, record.getMessage()) == ("WARNING", expected)
    (tmp_path / "a.png").unlink()
    (tmp_path / "sub").rename(tmp_path / ".sub")
    with pytest.raises(FileNotFoundError, match=r"files must end in .*; there are \.txt \(2\), no ending \(1\)$"):
        find_images(tmp_path)


def test_linked_folders_are_entered_once_and_links_back_up_are_not(tmp_path: Path) -> None:
    for name in ("store/site2/b.png", "store/site2/deep/c.png", "in/site1/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/site2").symlink_to(tmp_path / "store/site2")
    (tmp_path / "in/site1/up").symlink_to(tmp_path / "in")
    (tmp_path / "store/site2/deep/across").symlink_to(tmp_path / "in/site2")
    names = [str(path.relative_to(tmp_path / "in")) for path in find_images(tmp_path / "in")]
    assert names == ["site1/a.png", "site2/b.png", "site2/deep/c.png"]


def test_outputs_noted_above_a_folder_are_none_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "out/sub").mkdir(parents=True)
    for name in ("a.png", "a_seg.png"):
        (tmp_path / "out/sub" / name).touch()
    note_output(tmp_path / "out/sub/a_seg.png", tmp_path / "out")
    for folder in (tmp_path, tmp_path / "out", tmp_path / "out/sub"):
        assert [path.name for path in find_images(folder)] == ["a.png"]


def test_a_damaged_list_of_outputs_loses_its_bad_lines_alone(tmp_path: Path) -> None:
    for name in ("a.png", "b\x1c.png"):
        (tmp_path / name).touch()
        note_output(tmp_path / name, tmp_path)
    with (tmp_path / OUTPUTS).open("a") as file:
        file.write(f"1-2 c\0.png\n\n \n1-2\n1-2 {'x' * 999}\n")
    assert earlier_outputs(tmp_path) == {tmp_path / "a.png", tmp_path / "b\x1c.png"}
