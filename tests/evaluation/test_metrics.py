"""Scores equal those of medmnist, MONAI, ignite and scikit-learn, and closed forms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy
from monai.handlers import ROCAUC, IgniteMetricHandler, MeanDice, from_engine
from monai.metrics import DiceMetric, get_confusion_matrix
from monai.transforms import Activationsd, AsDiscreted, Compose, CopyItemsd
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from monai_sre.evaluation import (
    ClassificationScore,
    SegmentationScore,
    accuracy,
    area_under_curve,
    calibration_error,
    class_scores,
    map_scores,
    probabilities,
)

KINDS = {
    "binary-class": 2,
    "multi-class": 5,
    "ordinal-regression": 4,
    "multi-label, binary-class": 3,
}


def case(task: str) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(60, KINDS[task])))
    if task.startswith("multi-label"):
        return logits, rng.integers(0, 2, (60, KINDS[task]))
    return logits, rng.integers(0, KINDS[task], 60)


@pytest.mark.parametrize("task", KINDS)
def test_scores_equal_medmnist(task: str) -> None:
    from medmnist.evaluator import getACC, getAUC

    logits, labels = case(task)
    scores = probabilities(logits, task).numpy()
    stored = labels if labels.ndim == 2 else labels[:, None]  # the layout of MedMNIST's files
    assert accuracy(scores, labels, task) == pytest.approx(getACC(stored, scores, task), abs=1e-9)
    assert area_under_curve(scores, labels, task) == pytest.approx(getAUC(stored, scores, task), abs=1e-9)


def scored(output: dict[str, Tensor], task: str) -> tuple[Tensor, Tensor]:
    """What MONAI's ROCAUC needs: probabilities and one-hot labels."""
    if task.startswith("multi-label"):
        return output["pred"].sigmoid(), output["label"]
    return output["pred"].softmax(dim=1), functional.one_hot(output["label"], output["pred"].shape[1])


def decided(output: dict[str, Tensor], task: str) -> tuple[Tensor, Tensor]:
    """What ignite's Accuracy needs: logits, or the decision on each label, which it counts one by one."""
    return ((output["pred"] > 0).long() if task.startswith("multi-label") else output["pred"]), output["label"]


@pytest.mark.parametrize("task", KINDS)
def test_scores_equal_those_of_monai_and_ignite_in_the_engine(task: str) -> None:
    logits, labels = case(task)
    batches = [{"pred": logits[i : i + 7], "label": torch.from_numpy(labels[i : i + 7])} for i in range(0, 60, 7)]
    engine = Engine(lambda _, batch: batch)
    ROCAUC(output_transform=lambda output: scored(output, task)).attach(engine, "AUC")
    Accuracy(output_transform=lambda output: decided(output, task)).attach(engine, "ACC")
    found, scores = engine.run(batches).metrics, probabilities(logits, task).numpy()
    assert found["AUC"] == pytest.approx(area_under_curve(scores, labels, task), abs=1e-12)
    assert found["ACC"] == pytest.approx(accuracy(scores, labels, task), abs=1e-12)


@pytest.mark.parametrize("task", [name for name in KINDS if not name.startswith("multi-label")])
def test_scores_equal_those_after_monais_postprocessing(task: str) -> None:
    """As a config writes it for whole batches: probabilities and one-hot labels as items of their own."""
    logits, labels = case(task)
    number = logits.shape[1]
    after = Compose(
        [
            CopyItemsd(["pred", "label"], names=["score", "one_hot"]),
            Activationsd("score", softmax=True, dim=1),
            AsDiscreted("one_hot", to_onehot=number, dim=1),
        ]
    )
    engine = Engine(lambda _, batch: after(batch))
    ROCAUC(output_transform=from_engine(["score", "one_hot"])).attach(engine, "AUC")
    Accuracy(output_transform=from_engine(["score", "label"])).attach(engine, "ACC")
    found = engine.run([{"pred": logits, "label": torch.from_numpy(labels)}]).metrics
    scores = probabilities(logits, task).numpy()
    assert found["AUC"] == pytest.approx(area_under_curve(scores, labels, task), abs=1e-12)
    assert found["ACC"] == pytest.approx(accuracy(scores, labels, task), abs=1e-12)


def test_where_the_metrics_of_monai_and_ignite_differ() -> None:
    """A class without samples, and NaN: MONAI's AUC is NaN in both, ours and MedMNIST's mean leaves such a class out."""
    logits = torch.randn(12, 3)
    output = {"pred": logits, "label": torch.tensor([0, 1] * 6)}
    engine = Engine(lambda _, batch: batch)
    ROCAUC(output_transform=lambda output: scored(output, "multi-class")).attach(engine, "AUC")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(engine.run([output]).metrics["AUC"])
        ours = area_under_curve(probabilities(logits, "multi-class").numpy(), output["label"].numpy(), "multi-class")
    areas = [roc_auc_score(output["label"] == index, logits.softmax(dim=1)[:, index]) for index in (0, 1)]
    assert ours == pytest.approx(np.mean(areas))


def test_area_with_ties_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    score, truth = rng.integers(0, 5, 200) / 4, rng.integers(0, 2, 200)
    both = np.stack([1 - score, score], axis=1)
    assert area_under_curve(both, truth, "binary-class") == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


@pytest.mark.parametrize("task", KINDS)
def test_the_scores_of_monais_transforms_in_the_configs_are_ours(task: str) -> None:
    """But for the precision: MONAI's stay in that of the logits."""
    how = "sigmoid" if task.startswith("multi-label") else "softmax"
    theirs = Compose([CopyItemsd("pred", names="score"), Activationsd("score", **{how: True}, dim=1)])
    output = {"pred": case(task)[0].float(), "label": torch.zeros(60)}
    found = probabilities(output["pred"], task)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), torch.as_tensor(theirs(output)["score"]))


@pytest.mark.parametrize("metric", ["ACC", "AUC"])
def test_metric_sees_all_batches_and_forgets_the_last_run(metric: str) -> None:
    logits, labels = case("multi-class")
    scores = probabilities(logits, "multi-class")
    batches = [(scores[i : i + 7], torch.from_numpy(labels[i : i + 7])) for i in range(0, 60, 7)]
    engine = Engine(lambda _, batch: batch)
    ClassificationScore(metric, "multi-class").attach(engine, "score")
    expected = (accuracy if metric == "ACC" else area_under_curve)(scores.numpy(), labels, "multi-class")
    assert engine.run(batches).metrics["score"] == pytest.approx(expected, abs=1e-12)
    assert engine.run(batches, max_epochs=2).metrics["score"] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_samples_is_left_out_of_the_auc_with_a_warning() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    labels = np.array([0, 1, 0, 1])
    for names, shown in (((), "2"), (("a", "b", "platelet"), "platelet")):
        with pytest.warns(UserWarning, match=f"^no ROC curve of class {shown}: it holds all samples, or none$"):
            assert area_under_curve(scores, labels, "multi-class", names) == 1.0
    metric, engine = ClassificationScore("AUC", "multi-class", class_names=["a", "b", "platelet"]), Engine(lambda *_: 0)
    metric.attach(engine, "auc")
    metric.update((torch.from_numpy(scores), torch.from_numpy(labels)))
    with pytest.warns(UserWarning, match="class platelet"):
        metric.compute()


def test_probabilities_are_a_softmax_or_sigmoids() -> None:
    logits = torch.tensor([[0.0, float(np.log(3))]])
    assert probabilities(logits, "multi-class")[0].tolist() == pytest.approx([0.25, 0.75])
    assert probabilities(logits, "multi-label, binary-class")[0].tolist() == pytest.approx([0.5, 0.75])


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric must be one of .* got .F1."):
        ClassificationScore("F1", "multi-class")


@pytest.mark.parametrize("task", [name for name in KINDS if not name.startswith("multi-label")])
def test_labels_of_one_column_are_class_numbers(task: str) -> None:
    scores, labels = (np.asarray(part) for part in case(task))
    for metric in (accuracy, area_under_curve):
        assert metric(scores, labels.reshape(-1, 1), task) == metric(scores, labels.reshape(-1), task)


@pytest.mark.parametrize(
    ("scores", "labels", "task", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "multi-class", r"labels of task .* shape \(4,\) .* got \(4, 2\)"),
        (np.zeros((4, 3)), np.zeros(4), "multi-label, binary-class", r"shape \(4, 3\) .* got \(4,\)"),
        (np.zeros((4, 1)), np.zeros(4), "binary-class", r"scores of task 'binary-class' .* got \(4, 1\)"),
        (np.zeros((4, 3)), np.zeros(4), "multiclass", r"task must be one of .* got 'multiclass'"),
    ],
)
def test_what_does_not_fit_is_refused(scores: np.ndarray, labels: np.ndarray, task: str, message: str) -> None:
    for metric in (accuracy, area_under_curve):
        with pytest.raises(ValueError, match=message):
            metric(scores, labels, task)


@pytest.mark.parametrize("task", KINDS)
def test_nan_scores_have_nan_metrics(task: str) -> None:
    scores, labels = (np.asarray(part).astype(float) for part in case(task))
    scores[1, 0] = np.nan
    assert np.isnan(accuracy(scores, labels, task))
    assert np.isnan(area_under_curve(scores, labels, task))
    assert np.isnan(calibration_error(scores, labels, task))


@pytest.mark.parametrize("task", KINDS)
def test_calibration_error_is_that_of_the_definition(task: str) -> None:
    logits, labels = case(task)
    scores = probabilities(3 * logits, task).numpy()
    if task.startswith("multi-label"):
        decisions = [(max(p, 1 - p), (p > 0.5) == y) for p, y in zip(scores.ravel(), labels.ravel(), strict=True)]
    else:
        decisions = [(max(row), int(np.argmax(row)) == y) for row, y in zip(scores, labels, strict=True)]
    expected = 0.0
    for index in range(15):
        inside = [one for one in decisions if index / 15 <= one[0] < (index + 1) / 15]
        if inside:
            confidence, right = (np.mean([one[place] for one in inside]) for place in (0, 1))
            expected += len(inside) / len(decisions) * abs(confidence - right)
    assert calibration_error(scores, labels, task) == pytest.approx(expected, abs=1e-6)


# Class maps -----------------------------------------------------------------------------------------------------------


def maps(classes: int = 2, size: tuple[int, ...] = (12, 9)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.dirichlet(np.ones(classes), size).astype(np.float32)
    return np.moveaxis(score, -1, 0), rng.integers(0, classes, size)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [(12, 9), (6, 5, 4)])
def test_map_scores_equal_those_of_monai_and_scikit_learn(classes: int, size: tuple[int, ...]) -> None:
    score, label = maps(classes, size)
    one_hot = [torch.from_numpy(np.moveaxis(np.eye(classes)[x], -1, 0))[None] for x in (score.argmax(0), label)]
    found = map_scores(score, label)
    assert found["Dice"] == pytest.approx(float(DiceMetric(include_background=False)(*one_hot).mean()))
    tp, fp, tn, fn = get_confusion_matrix(*one_hot, include_background=False)[0].T
    assert found["sensitivity"] == pytest.approx(float((tp / (tp + fn)).mean()))
    assert found["specificity"] == pytest.approx(float((tn / (tn + fp)).mean()))
    areas = [roc_auc_score(label.ravel() == index, score[index].ravel()) for index in range(1, classes)]
    assert found["AUC"] == pytest.approx(np.mean(areas))


def test_each_class_has_scores_of_its_own() -> None:
    score, label = maps(4)
    rows = class_scores(score, label, ("Dice", "AUC"))
    one_hot = [torch.from_numpy(np.moveaxis(np.eye(4)[x], -1, 0))[None] for x in (score.argmax(0), label)]
    assert [row["Dice"] for row in rows] == pytest.approx(DiceMetric(include_background=False)(*one_hot)[0].tolist())
    expected = [roc_auc_score(label.ravel() == index, score[index].ravel()) for index in (1, 2, 3)]
    assert [row["AUC"] for row in rows] == pytest.approx(expected)
    for broken in (np.nan, np.inf):  # no NaN, which a mean over images would leave out
        score[2, 0, 0] = broken
        with pytest.raises(ValueError, match="the network gives NaN or infinite values"):
            class_scores(score, label, ("Dice",))


def masked(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Class numbers, the background where the label does not count."""
    return output["pred"].argmax(dim=1, keepdim=True) * (output["label"] >= 0), output["label"]


@pytest.mark.parametrize("classes", [2, 3])
def test_dice_equals_monais_in_the_engine(classes: int) -> None:
    """With pixels that do not count, and an image without the last class: by a mask before, or by ``ignore_index``."""
    batches = []
    for seed in range(3):
        torch.manual_seed(seed)
        label = torch.randint(-1, classes, (2, 1, 7, 6))
        label[label == classes - 1] *= int(seed > 0)
        batches.append({"pred": torch.randn(2, classes, 7, 6), "label": label})
    engine = Engine(lambda _, batch: batch)
    SegmentationScore("Dice", lambda output: (output["pred"], output["label"])).attach(engine, "ours")
    MeanDice(include_background=False, num_classes=classes, output_transform=masked).attach(engine, "masked")
    metric = DiceMetric(include_background=False, num_classes=classes, ignore_index=-1)
    IgniteMetricHandler(
        metric, output_transform=lambda output: (output["pred"].argmax(dim=1, keepdim=True), output["label"])
    ).attach(engine, "ignored")
    found = engine.run(batches).metrics
    assert found["masked"] == pytest.approx(found["ours"], abs=1e-6)
    assert found["ignored"] == pytest.approx(found["ours"], abs=1e-6)


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


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_centreline_dice_of_tubes(width: int) -> None:
    """All of a tube that is found has 1; the first half of it, beside a tube that is found whole: 3 of 4 parts."""
    label = np.zeros((12, 12, 26), dtype=int)
    label[1 : 1 + width, 1 : 1 + width, 1:25] = label[7 : 7 + width, 7 : 7 + width, 1:25] = 1
    found = label.copy()
    assert map_scores(np.stack([1 - found, found]).astype(float), label, metrics=["clDice"]) == {"clDice": 1.0}
    found[7:, :, 13:] = 0
    half = map_scores(np.stack([1 - found, found]).astype(float), label, metrics=["clDice"])
    assert half["clDice"] == pytest.approx(2 * 0.75 / 1.75, abs=0.03)


def test_surface_distance_and_volume_error_of_boxes() -> None:
    """A slab of 4 x 4 x 8 voxels of 1 x 2 x 0.5 mm, found 3 voxels along the second axis, and 2 voxels longer."""
    label, found = np.zeros((12, 12, 12), dtype=int), np.zeros((12, 12, 12), dtype=int)
    label[2:6, 2:6, 2:10] = 1
    found[2:6, 5:9, 2:10] = 1
    score = np.stack([found == 0, found == 1]).astype(float)
    (row,) = class_scores(score, label, ("HD95 mm", "volume error ml"), spacing=(1.0, 2.0, 0.5))
    assert row == {"HD95 mm": pytest.approx(6.0), "volume error ml": 0.0}
    found[2:6, 2:6, 10:12] = 1
    score = np.stack([found == 0, found == 1]).astype(float)
    (row,) = class_scores(score, label, ("volume error ml",), spacing=(1.0, 2.0, 0.5))
    assert row["volume error ml"] == pytest.approx(4 * 4 * 2 * 1.0 / 1000)
    (row,) = class_scores(np.stack([score[0] * 0 + 1, score[1] * 0]), label, ("HD95 mm",), spacing=(3.0, 4.0, 0.0))
    assert row["HD95 mm"] == pytest.approx(60.0)  # nothing found: the diagonal of 36 x 48 x 0 mm
    assert math.isnan(class_scores(score, np.zeros_like(label), ("HD95 mm",))[0]["HD95 mm"])


def test_scores_of_each_class_have_its_name() -> None:
    label = np.array([[[0, 1, 2, 2]]])
    score = np.moveaxis(np.eye(3)[np.array([[[0, 1, 2, 1]]])], -1, 0)
    found = map_scores(score, label, ("Dice", "sensitivity", "volume error ml"), class_names=("air", "head", "tail"))
    assert found == {
        "Dice": pytest.approx(2 / 3), "sensitivity": 0.75, "volume error ml": pytest.approx(1e-3),
        "Dice of head": pytest.approx(2 / 3), "Dice of tail": pytest.approx(2 / 3),
        "volume error ml of head": 1e-3, "volume error ml of tail": 1e-3,
    }  # fmt: skip
    (area, _) = class_scores(score[:, 0], label[0], ("volume error ml",))
    assert math.isnan(area["volume error ml"])  # of an image of two axes
    assert list(map_scores(score, label, ("Dice",), class_names=())) == ["Dice", "Dice of class 1", "Dice of class 2"]


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


def test_what_map_scores_refuse() -> None:
    score, label = maps()
    with pytest.raises(ValueError, match=r"metrics must be some of .*got \['IoU'\]"):
        map_scores(score, label, metrics=("IoU",))
    with pytest.raises(ValueError, match=r"score \(2, 12, 9\) must be .* label \(11, 9\)"):
        map_scores(score, label[1:])
    with pytest.raises(ValueError, match=r"metric must be one of .*got 'IoU'"):
        SegmentationScore("IoU")
