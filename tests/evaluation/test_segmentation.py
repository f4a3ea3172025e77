"""Scores of class maps, against MONAI, scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.metrics import DiceMetric, get_confusion_matrix
from sklearn.metrics import roc_auc_score

from monai_sre.evaluation import SegmentationScore, map_scores


def maps(classes: int = 2, size: tuple[int, ...] = (12, 9)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.dirichlet(np.ones(classes), size).astype(np.float32)
    return np.moveaxis(score, -1, 0), rng.integers(0, classes, size)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [(12, 9), (6, 5, 4)])
def test_equal_to_monai(classes: int, size: tuple[int, ...]) -> None:
    score, label = maps(classes, size)
    one_hot = [torch.from_numpy(np.moveaxis(np.eye(classes)[x], -1, 0))[None] for x in (score.argmax(0), label)]
    found = map_scores(score, label)
    assert found["Dice"] == pytest.approx(float(DiceMetric(include_background=False)(*one_hot).mean()))
    tp, fp, tn, fn = get_confusion_matrix(*one_hot, include_background=False)[0].T
    assert found["sensitivity"] == pytest.approx(float((tp / (tp + fn)).mean()))
    assert found["specificity"] == pytest.approx(float((tn / (tn + fp)).mean()))
    areas = [roc_auc_score(label.ravel() == index, score[index].ravel()) for index in range(1, classes)]
    assert found["AUC"] == pytest.approx(np.mean(areas))


def test_what_does_not_count_changes_nothing() -> None:
    score, label = maps()
    wide_label = np.pad(label, 3, constant_values=-1)
    wide_score = np.pad(score, ((0, 0), (3, 3), (3, 3)), constant_values=0.7)
    wide_score[1, :3] = 0.9  # found as foreground
    inside = map_scores(score, label, metrics=("Dice", "AUC", "sensitivity", "specificity"))
    assert map_scores(wide_score, wide_label, metrics=tuple(inside)) == pytest.approx(inside)


def test_centreline_dice_of_a_line() -> None:
    """A straight vessel 3 pixels wide and 40 long, found over its first half as one 1 pixel wide.

    The found centreline lies wholly in the truth; of the true one (which is up to 2 pixels shorter at each end), half lies
    in what is found: 2 * 1 * 0.5 / 1.5.
    """
    label = np.zeros((9, 50), dtype=int)
    label[3:6, 5:45] = 1
    score = np.zeros((2, 9, 50))
    score[0] = 0.5
    score[1, 4, 5:25] = 1.0
    assert map_scores(score, label)["clDice"] == pytest.approx(2 / 3, abs=0.02)
    assert map_scores(np.stack([1 - label, label]).astype(float), label)["clDice"] == 1.0
    assert map_scores(np.stack([np.ones_like(label), 0 * label]).astype(float), label)["clDice"] == 0.0


def test_no_foreground_no_score() -> None:
    score, label = maps()
    found = map_scores(score, 0 * label)
    assert all(math.isnan(found[name]) for name in ("Dice", "AUC", "sensitivity", "clDice"))
    assert found["specificity"] == pytest.approx((score[0] >= score[1]).mean())
    assert math.isnan(map_scores(score, 0 * label + 1)["specificity"])


@pytest.mark.parametrize("metric", ["Dice", "AUC"])
def test_mean_over_images_in_the_engine(metric: str) -> None:
    """Over batches; an image without foreground is left out."""
    images = [maps(), maps(size=(5, 5)), maps(size=(5, 5))]
    images[1] = (images[1][0], 0 * images[1][1])
    engine = Engine(lambda _, item: tuple(torch.from_numpy(part).unsqueeze(0) for part in (item[0], item[1][None])))
    SegmentationScore(metric).attach(engine, "score")
    found = engine.run(images).metrics["score"]
    assert found == pytest.approx(np.mean([map_scores(*images[index])[metric] for index in (0, 2)]))


def test_errors() -> None:
    score, label = maps()
    with pytest.raises(ValueError, match=r"metrics must be some of .*got \['IoU'\]"):
        map_scores(score, label, metrics=("IoU",))
    with pytest.raises(ValueError, match=r"score \(2, 12, 9\) must be .* label \(11, 9\)"):
        map_scores(score, label[1:])
    with pytest.raises(ValueError, match=r"metric must be one of .*got 'IoU'"):
        SegmentationScore("IoU")
