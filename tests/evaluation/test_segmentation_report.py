"""What an evaluation of class maps leaves behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from monai_sre.evaluation import LearningCurves, SegmentationReport, draw_maps, map_scores


def batch(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    score = torch.rand(2, 2, 8, 9, generator=generator)
    label = torch.randint(-1, 2, (2, 1, 8, 9), generator=generator).float()
    names = [f"image {number} {index}.png" for index in range(2)]
    images = [MetaTensor(torch.rand(3, 8, 9), meta={"filename_or_obj": name}) for name in names]
    return {"image": images, "label": label, "score": score}  # type: ignore[dict-item]


def test_table_means_and_picture(tmp_path: Path) -> None:
    engine = Engine(lambda _, item: item)
    SegmentationReport(tmp_path, num_pictures=3).attach(engine)
    batches = [batch(0), batch(1)]
    for _ in range(2):  # a second run starts anew
        engine.run(batches, max_epochs=1)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"image {a} {b}.png" for a in (0, 1) for b in (0, 1)]
    expected = [
        map_scores(item["score"][index].numpy(), item["label"][index, 0].long().numpy())
        for item in batches
        for index in range(2)
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 4
    for name in expected[0]:
        assert [float(row[name]) for row in rows] == pytest.approx([item[name] for item in expected])
        assert metrics[name] == pytest.approx(np.mean([item[name] for item in expected]))
    with Image.open(tmp_path / "segmentations.png") as picture:
        assert picture.width > 500
        assert picture.height > picture.width * 0.9  # three rows of three


@pytest.mark.parametrize("handler", [SegmentationReport, LearningCurves])
def test_a_folder_that_takes_no_files_is_found_out_before_the_work(tmp_path: Path, handler: Any) -> None:
    (tmp_path / "out").write_text("a file")
    seen = []
    engine = Engine(lambda _, item: seen.append(item))
    handler(tmp_path / "out").attach(engine)
    with pytest.raises(OSError, match=r"output_dir='.*out' is no folder that can be written to: "):
        engine.run([batch(0)], max_epochs=1)
    assert not seen


def test_errors_in_colour(tmp_path: Path) -> None:
    """One column of found, one of excess, one of missed pixels, and one that does not count."""
    truth = np.array([[1], [0], [1], [-1]]).repeat(8, axis=1)
    found = np.array([[1], [1], [0], [1]]).repeat(8, axis=1)
    draw_maps([(np.zeros((1, 4, 8)), truth, found)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    shown = {tuple(map(int, colour)): int(count) for colour, count in zip(colours, counts, strict=True)}
    assert shown[255, 0, 0] > 500
    assert shown[0, 0, 255] == pytest.approx(shown[255, 0, 0], rel=0.05)


def test_middle_slice_of_a_volume(tmp_path: Path) -> None:
    volume = np.zeros((1, 6, 5, 7))
    draw_maps([(volume, volume[0], volume[0], volume[0])], tmp_path / "a.png", titles=("a", "b", "c", "d"))
    assert (tmp_path / "a.png").is_file()


def test_titles_stand_above_the_columns(tmp_path: Path) -> None:
    """Above the first row of black pictures are a few dark pixels, those of letters."""
    row = (np.zeros((1, 8, 8)), np.zeros((8, 8)), np.zeros((8, 8)))
    draw_maps([row, row], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        dark = (np.asarray(picture.convert("L")) < 128)[:20].mean()
    assert 0.002 < dark < 0.1
