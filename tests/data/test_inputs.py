"""Files for inference: the bad ones say why, the others are as transformed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.transforms import Compose, Flipd

from monai_sre.data import CheckImaged, ReadImaged, TransformedFiles


def test_items_of_good_and_bad_files(tmp_path: Path) -> None:
    arrays = {"a.npy": np.ones((3, 5)), "sub/b.npy": np.ones((2, 2, 2)), "sub/c.npy": np.full((2, 2), np.inf)}
    for name, array in arrays.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array)
    (tmp_path / "sub/d.png").write_text("no picture")
    (tmp_path / "sub/._d.png").write_text("hidden")
    transform = Compose([ReadImaged("image"), CheckImaged("image", 1, 2), Flipd("image", spatial_axis=0)])
    items = list(TransformedFiles(tmp_path, transform, num_channels=1, spatial_dims=2))
    assert [item["name"] for item in items] == ["a.npy", "sub/b.npy", "sub/c.npy", "sub/d.png"]
    assert [item["path"] for item in items] == [str(tmp_path / item["name"]) for item in items]
    assert items[0]["image"].shape == (1, 3, 5)
    assert len(items[0]["image"].applied_operations) == 1
    assert items[0]["error"] == ""
    reasons = ("3 spatial axes", "NaN or infinite", "cannot be read as an image")
    for item, reason in zip(items[1:], reasons, strict=True):
        assert item["error"].startswith(item["path"])
        assert reason in item["error"]
        assert "\n" not in item["error"]
        assert item["image"].shape[0] == 1


def test_other_failures_name_the_file_too(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 5)))
    transform = Compose([ReadImaged("image"), lambda item: 1 / 0])
    (item,) = TransformedFiles(tmp_path / "a.npy", transform, 1, 2)
    assert item["error"] == f"{tmp_path / 'a.npy'} cannot be used: ZeroDivisionError: division by zero"
