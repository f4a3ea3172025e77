"""Scores equal medmnist's own, for its kinds of task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_sre.evaluation import ClassificationScore, accuracy, area_under_curve, probabilities

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
    with pytest.warns(UserWarning, match=r"classes \[2\]"):
        assert area_under_curve(scores, np.array([0, 1, 0, 1]), "multi-class") == 1.0


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
