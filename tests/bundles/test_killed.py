"""Trainings that are killed at any time, again and again, and resumed: in the end they are those that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bundles.inferring import CLASSIFICATION, SEGMENTATION
from tests.bundles.running import run

#: Trainings per bundle, and kills of each at most.
TRAININGS, KILLS = 5, 4


def classification(folder: Path) -> dict[str, Any]:
    """Noise in two classes."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 24), ("val", 8), ("test", 2)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(folder / "noise.npz", **arrays)
    return {"dataset_name": "noise", "batch_size": 8, "network_def#width": 4}


def segmentation(folder: Path) -> dict[str, Any]:
    """Noise and masks of noise."""
    rng = np.random.default_rng(0)
    for number in range(6):
        for name, shape in ((f"images/{number}.jpg", (32, 32, 3)), (f"labels1/{number}_1stHO.png", (32, 32))):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8) * 255).save(folder / name)
    network = {"network_def#channels": [4, 8], "network_def#kernel_size": 3, "network_def#conv": "radial"}
    patches = {"patch_size": 16, "patches_per_image": 2, "roi_size": 32, "batch_size": 4, "rotation": True}
    return {**network, **patches, "num_val": 2, "num_test": 1, "val_interval": 1, "field_threshold": 0}


def start(bundle: Path, options: dict[str, Any], folder: Path) -> Any:
    resume = (folder / "models/last.pt").is_file()
    options = {**options, "max_epochs": 5, "device": "cpu", "output_dir": str(folder), "resume": resume}
    process = multiprocessing.get_context("fork").Process(target=run, args=(bundle, "train"), kwargs=options)
    process.start()
    return process


def tensors(folder: Path) -> list[Any]:
    return [torch.load(folder / "models" / name, weights_only=True) for name in ("model.pt", "last.pt")]


def files(folder: Path) -> list[Any]:
    names = sorted(path.name for path in (folder / "models").iterdir())
    return [names, *((folder / name).read_bytes() for name in ("metrics.csv", "models/model.json"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "data"),
    [(CLASSIFICATION[2], classification), (SEGMENTATION, segmentation)],
    ids=["classification", "segmentation"],
)
def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, bundle: Path, data: Any) -> None:
    options = {**data(tmp_path), "dataset_dir": str(tmp_path)}
    began = time.monotonic()
    whole = start(bundle, options, tmp_path / "whole")
    whole.join()
    duration = time.monotonic() - began
    assert whole.exitcode == 0
    moments, killed = random.Random(0), 0
    for number in range(TRAININGS):
        folder = tmp_path / str(number)
        for _ in range(KILLS):
            process = start(bundle, options, folder)
            process.join(moments.uniform(0.1, 1) * duration)
            killed += process.exitcode is None
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
        last = start(bundle, options, folder)
        last.join()
        assert last.exitcode == 0
        torch.testing.assert_close(tensors(folder), tensors(tmp_path / "whole"), rtol=0, atol=0)
        assert files(folder) == files(tmp_path / "whole")
        assert (folder / "learning_curves.png").is_file()
    assert killed >= TRAININGS, killed
