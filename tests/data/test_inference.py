"""Files for inference: the bad ones say why, the others are as transformed."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.data import DataLoader, decollate_batch
from monai.transforms import Compose, Flipd
from PIL import Image

from monai_sre.data import FitSquared, ImageFiles, ReadImaged, find_images


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


@pytest.mark.parametrize("line", ["12-34 a\0b.png", "12-34 " + 999 * "a"])
def test_a_damaged_list_of_outputs_is_named(tmp_path: Path, line: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / ".monai_sre_outputs").write_text(line)
    with pytest.raises(ValueError, match=r"\.monai_sre_outputs is damaged \(.*\); remove it"):
        find_images(tmp_path)
