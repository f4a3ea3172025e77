"""What trainings and evaluations leave behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from PIL import Image

from monai_sre.evaluation import ClassificationReport, LearningCurves, SegmentationReport, map_scores


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


TABLE = "epoch,train_loss,val_auc\n1,0.9,\n2,0.5,0.8\n3,0.4,0.7\n"
DAMAGED = {
    "empty": (b"", r"its epochs are \[\]"),
    "not text": (b"\xff\xfe\x00\x89PNG", "UnicodeDecodeError"),
    "NUL": (TABLE.replace("0.9", "\0").encode(), "Error"),
    "header alone": (TABLE[:25].encode(), r"its epochs are \[\]"),
    "no header": (TABLE[25:].encode(), "epoch"),
    "epoch x": (TABLE.replace("\n2,", "\nx,").encode(), "could not convert string to float: 'x'"),
    "epoch 2.5": (TABLE.replace("\n2,", "\n2.5,").encode(), "2.5"),
    "a row is missing": (TABLE.replace("2,0.5,0.8\n", "").encode(), r"its epochs are \[1, 3\]"),
    "cut between rows": (TABLE[:-10].encode(), r"its epochs are \[1, 2\], and the training is at epoch 3"),
    "cut within a row": (TABLE[:-5].encode(), "could not convert string to float: 'no value'"),
    "a value that is no number": (TABLE.replace("0.7", "high").encode(), "could not convert string to float: 'high'"),
    "a value too many": (TABLE.replace("0.7", "0.7,1").encode(), "TypeError"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_is_named_before_a_training_goes_on(tmp_path: Path, content: bytes, message: str) -> None:
    path, seen = tmp_path / "metrics.csv", []
    path.write_bytes(content)
    engine = Engine(lambda _, item: seen.append(item))
    engine.state.max_epochs, engine.state.epoch_length, engine.state.epoch = 5, 1, 3
    LearningCurves(tmp_path).attach(engine)
    with pytest.raises(ValueError, match=rf"metrics\.csv is no table of the epochs so far \(.*{message}.*\); move it"):
        engine.run([0])
    assert not seen
    assert path.read_bytes() == content


@pytest.mark.parametrize("rows", [TABLE, TABLE.replace("1,0.9,\n", ""), TABLE + "4,0.3,0.9\n"])
def test_a_table_may_begin_late_and_end_late(tmp_path: Path, rows: str) -> None:
    """Its first epochs were moved away, or its last is trained again."""
    (tmp_path / "metrics.csv").write_text(rows)
    engine = Engine(lambda _, __: {"loss": torch.tensor(0.25)})
    engine.state.max_epochs, engine.state.epoch_length, engine.state.epoch = 4, 1, 3
    LearningCurves(tmp_path).attach(engine)
    engine.run([0])
    before = [line.rstrip(",") for line in rows.split("\n4,")[0].splitlines()]
    after = [line.rstrip(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert after == [*before, "4,0.25"]


def test_a_complete_training_gets_its_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(TABLE)
    engine = Engine(lambda *_: None)
    LearningCurves(tmp_path).attach(engine)

    def end(engine: Engine) -> None:
        engine.state.epoch = 3
        engine.terminate()

    engine.add_event_handler(Events.STARTED, end)
    engine.run([0])
    assert (tmp_path / "learning_curves.png").is_file()
    assert (tmp_path / "metrics.csv").read_text() == TABLE


def test_several_classes_have_a_dice_each(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    score, label = torch.rand(2, 3, 6, 5, generator=generator), torch.randint(0, 3, (2, 1, 6, 5), generator=generator)
    label[1][label[1] == 2] = 0  # a class that one image lacks
    engine = Engine(lambda _, item: item)
    SegmentationReport(tmp_path, ["background", "vein", "artery"], num_pictures=0).attach(engine)
    engine.run([{"image": torch.zeros(2, 1, 6, 5), "label": label.float(), "score": score}])
    expected = DiceMetric(include_background=False, num_classes=3)(score.argmax(dim=1, keepdim=True), label)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["Dice of vein"] == pytest.approx(float(expected[:, 0].mean()))
    assert metrics["Dice of artery"] == pytest.approx(float(expected[0, 1]))
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["Dice of vein"]) for row in rows] == pytest.approx(expected[:, 0].tolist())
    assert rows[1]["Dice of artery"] == "nan"


def test_an_image_that_the_network_fails_on_is_named(tmp_path: Path) -> None:
    engine = Engine(lambda _, item: item)
    SegmentationReport(tmp_path, num_pictures=0).attach(engine)
    score = torch.rand(2, 2, 6, 5)
    score[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^1: the network gives NaN or infinite values"):  # no file: its place
        engine.run([{"image": torch.zeros(2, 1, 6, 5), "label": torch.ones(2, 1, 6, 5), "score": score}])


def classified(tmp_path: Path, task: str, score: torch.Tensor, label: torch.Tensor) -> Any:
    engine = Engine(lambda _, item: item)
    names = [f"kind {index}" for index in range(score.shape[1])]
    ClassificationReport(tmp_path, task, names, "toys").attach(engine)
    engine.run([{"score": score[:3], "label": label[:3]}, {"score": score[3:], "label": label[3:]}])
    with (tmp_path / "confusion_matrix.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((tmp_path / "metrics.json").read_text())


def test_classification_leaves_predictions_metrics_and_confusion(tmp_path: Path) -> None:
    score = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]], dtype=torch.float64)
    matrix, metrics = classified(tmp_path, "binary-class", score, torch.tensor([0, 1, 0, 0]))
    assert [list(row.values()) for row in matrix] == [["kind 0", "2", "1"], ["kind 1", "0", "1"]]
    assert metrics.pop("ECE") == pytest.approx((0.4 + 0.2 + 0.7 + 0.1) / 4)  # each decision in a bin of its own
    assert metrics == {"dataset": "toys", "task": "binary-class", "num_images": 4, "ACC": 0.75, "AUC": 1.0}
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"index": "1", "label": "1", "p(kind 0)": "0.2", "p(kind 1)": "0.8"}
    assert (tmp_path / "confusion_matrix.png").is_file()


def test_names_of_classes_may_be_numbers(tmp_path: Path) -> None:
    """A command line makes numbers of ``--class_names "[0,1]"``."""
    engine = Engine(lambda _, item: item)
    ClassificationReport(tmp_path, "binary-class", [0, 1]).attach(engine)  # type: ignore[list-item]
    engine.run([{"score": torch.eye(2), "label": torch.tensor([0, 1])}])
    assert (tmp_path / "confusion_matrix.png").is_file()


def test_labels_are_counted_one_by_one(tmp_path: Path) -> None:
    score = torch.tensor([[0.9, 0.2], [0.6, 0.6], [0.1, 0.3], [0.4, 0.8]])
    label = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]])
    table, metrics = classified(tmp_path, "multi-label, binary-class", score, label)
    assert [list(row.values()) for row in table] == [["kind 0", *"1111"], ["kind 1", *"1111"]]
    assert (metrics["ACC"], metrics["AUC"]) == (0.5, 0.5)


def test_the_first_process_writes_all_items_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three images the second process has the middle one, and writes nothing itself."""
    whole = {key: torch.cat([batch(0)[key], batch(1)[key]])[:3] for key in ("label", "score")}
    whole["image"] = torch.zeros(3, 1, 8, 9)
    rows: list[Any] = [[], []]
    for rank, own in ((1, [1]), (0, [0, 2])):

        def gathered(mine: Any, rank: int = rank) -> Any:
            rows[rank] = mine
            return rows

        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("ignite.distributed.all_gather", gathered)
        engine = Engine(lambda _, item: item)
        SegmentationReport(tmp_path / str(rank)).attach(engine)
        engine.run([{key: value[own] for key, value in whole.items()}])
    assert not (tmp_path / "1").exists()
    with (tmp_path / "0/scores.csv").open(newline="") as file:
        found = [float(row["Dice"]) for row in csv.DictReader(file)]
    pairs = zip(whole["score"].numpy(), whole["label"][:, 0].long().numpy(), strict=True)
    assert found == pytest.approx([map_scores(*pair)["Dice"] for pair in pairs])
