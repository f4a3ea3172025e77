"""Intervals against closed forms, and against what their definition asks of pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from benchmarks import accuracy, few_data, vessels, volumes
from benchmarks.cells import Study, load_images
from benchmarks.intervals import (
    Figure,
    Images,
    calibration,
    contrast,
    difference,
    interval,
    of_seeds,
    spread_over_angles,
)
from monai_sre.evaluation import area_under_curve

PROTOCOL = "bilinear_background"
UPRIGHT, ROTATED = Figure("ACC", "upright"), Figure("ACC", "mean")


def cell(odds: np.ndarray, labels: np.ndarray) -> Images:
    """A cell of two classes whose log-odds are ``(T, N)``: rotations, and a flip."""
    names = [*(str(90 * index) for index in range(len(odds) - 1)), "flip 0"]
    return {
        "protocols": np.array([PROTOCOL]),
        "transformations": np.array(names),
        "labels": labels.astype(np.uint8),
        "log_odds": odds[None].astype(np.float16),
    }


def noisy(rng: np.random.Generator, labels: np.ndarray, turns: int = 2, gain: float = 1.0) -> np.ndarray:
    return gain * (2 * labels - 1) + rng.normal(0, 1.5, (turns, len(labels)))


def test_accuracy_of_seeds_that_are_alike_is_near_the_normal_interval() -> None:
    """4 standard errors of a share of 0.8 among 400 images, within the noise of 2000 draws."""
    right = np.arange(400) < 320
    found = interval(2 * [cell(np.tile(np.where(right, 1.0, -1.0), (2, 1)), np.ones(400))], UPRIGHT)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((0.8 - error, 0.8 + error), abs=0.005)


def test_images_that_are_all_alike_leave_the_interval_of_student_over_the_seeds() -> None:
    shares = np.array([0.6, 0.7, 0.8, 0.9, 0.95])
    metrics = {"transformations": np.array(["0"]), "protocols": np.array([PROTOCOL]), "metrics": np.array(["Dice"])}
    seeds = [{**metrics, "scores": np.full((1, 1, 10, 1), share)} for share in shares]
    found = interval(seeds, Figure("Dice", "upright"), draws=10)
    expected = stats.t.interval(0.95, 4, shares.mean(), stats.sem(shares))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.high < 1 < interval(seeds[:2], Figure("Dice", "upright")).low + 1.5  # of two seeds wider, and cut at 1


def test_without_images_the_interval_is_that_of_student_and_of_welch() -> None:
    first, second = [0.6, 0.7, 0.8, 0.9], [0.5, 0.55, 0.4]
    found, expected = of_seeds(first), stats.t.interval(0.95, 3, np.mean(first), stats.sem(first))
    assert (found.low, found.high) == pytest.approx(expected)
    found, welch = of_seeds(first, second), stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))
    assert of_seeds(first, second[:1]).word() == ""


def test_values_are_those_of_the_metrics() -> None:
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    one = cell(np.round(noisy(rng, labels, turns=4), 1), labels)  # ties among them
    odds = one["log_odds"][0].astype(float)
    areas = [area_under_curve(np.stack([-row, row], 1), labels, "binary-class") for row in odds[:3]]  # without the flip
    shares = ((odds[:3] > 0) == labels).mean(axis=1)
    for metric, values in (("AUC", areas), ("ACC", shares)):
        for part, expected in (("upright", values[0]), ("mean", np.mean(values)), ("min", np.min(values))):
            assert interval([one], Figure(metric, part), draws=10).value == pytest.approx(expected)
    same = ((odds > 0) == (odds[0] > 0)).all(axis=0).mean()  # the flip too
    assert interval([one], Figure("consistency"), draws=10).value == pytest.approx(same)
    assert spread_over_angles(one) == pytest.approx(expit(odds[:3]).std(axis=0).mean())


def test_a_class_that_an_image_lacks_does_not_count() -> None:
    scores = np.array([0.5, np.nan, 1.0]).reshape(1, 1, 3, 1)
    one = {"transformations": np.array(["0"]), "protocols": np.array([PROTOCOL]), "metrics": np.array(["Dice"])}
    assert interval([{**one, "scores": scores}], Figure("Dice", "upright")).value == 0.75


def test_whole_test_set_upright_where_fewer_are_swept() -> None:
    one = {
        "upright": np.array([[0.5], [0.7]]),
        "upright_metrics": np.array(["Dice of a"]),
        "scores": np.zeros((1, 1, 1, 1)),
    }
    assert interval([one], Figure("Dice of a", "upright", protocol="")).value == pytest.approx(0.6)


@pytest.mark.parametrize("apart", [0.1, 1.0])
def test_about_nineteen_of_twenty_intervals_hold_the_truth(apart: float) -> None:
    """Of accuracies over images and three seeds, both drawn anew, also where seeds differ as a whole."""
    rng, hits, trials = np.random.default_rng(1), np.zeros(2), 300
    for _ in range(trials):
        image = 1.5 * rng.normal(size=100)
        networks = []
        for _ in range(2):
            odds = image + apart * rng.normal(size=(3, 1)) + rng.normal(size=(3, 100))
            networks.append([cell(np.stack([row, row]), np.ones(100)) for row in odds])
        one, pair = interval(networks[0], UPRIGHT, draws=200), difference(*networks, UPRIGHT, draws=200)
        hits += [one.low <= 0.5 <= one.high, pair.low <= 0 <= pair.high]  # the truth by symmetry
    assert 0.88 < hits[0] / trials < 0.98
    assert 0.94 < hits[1] / trials < 0.995


def test_one_seed_has_no_interval() -> None:
    rng, labels = np.random.default_rng(5), np.arange(20) % 2
    one, others = [cell(noisy(rng, labels), labels)], [cell(noisy(rng, labels), labels) for _ in range(3)]
    for found in (interval(one, UPRIGHT), difference(others, one, UPRIGHT)):
        assert (found.word(), found.bracket(), found.text()) == ("", "", f"{found.value:.3f}")


def test_a_difference_is_of_the_transformations_that_both_have() -> None:
    rng, labels = np.random.default_rng(6), np.arange(20) % 2
    many = [cell(noisy(rng, labels, turns=4), labels) for _ in range(2)]
    few = [
        {**seed, "log_odds": seed["log_odds"][:, [0, 2]], "transformations": np.array(["0", "180"])} for seed in many
    ]
    assert difference(few, many, ROTATED).value == 0
    assert difference(few, few, ROTATED) == (0, 0, 0)
    other = [{**seed, "transformations": np.array(["10", "20"])} for seed in few]
    with pytest.raises(ValueError, match="share no transformation of the part 'mean'"):
        difference(other, many, ROTATED)


def test_images_in_another_order_are_refused() -> None:
    rng, labels = np.random.default_rng(7), np.arange(20) % 2
    seeds = [cell(noisy(rng, labels), labels) for _ in range(2)]
    mixed = [{**seed, "log_odds": seed["log_odds"][..., ::-1], "labels": seed["labels"][::-1]} for seed in seeds]
    with pytest.raises(ValueError, match="the images have other labels, or another order"):
        difference(seeds, mixed, UPRIGHT)


def test_a_network_differs_from_itself_by_nothing() -> None:
    rng, labels = np.random.default_rng(2), np.arange(80) % 2
    seeds = [cell(noisy(rng, labels), labels) for _ in range(3)]
    for metric in ("ACC", "AUC"):
        assert difference(seeds, seeds, Figure(metric, "mean")) == (0, 0, 0)
    assert contrast((seeds, ROTATED), (list(seeds), ROTATED)) == (0, 0, 0)


def test_pairs_are_narrower_where_networks_err_on_the_same_images() -> None:
    rng, labels = np.random.default_rng(3), np.arange(150) % 2
    hard = noisy(rng, labels, gain=0.6)
    first, second = ([cell(hard + rng.normal(0, 0.3, hard.shape), labels) for _ in range(3)] for _ in range(2))
    for metric in ("ACC", "AUC"):
        figure = Figure(metric, "upright")
        paired = difference(first, second, figure)
        apart = [interval(seeds, figure) for seeds in (first, second)]
        unpaired = np.linalg.norm([one.high - one.low for one in apart])
        assert paired.high - paired.low < 0.6 * unpaired
        assert paired.value == pytest.approx(apart[0].value - apart[1].value)


def test_networks_on_other_images_have_no_paired_difference() -> None:
    rng = np.random.default_rng(4)
    first, second = (cell(noisy(rng, np.arange(number) % 2), np.arange(number) % 2) for number in (20, 30))
    with pytest.raises(ValueError, match="20 and 30 images: a paired difference needs the same"):
        difference([first], [second], UPRIGHT)


@pytest.mark.parametrize(
    "study", [accuracy.STUDY, few_data.STUDY, vessels.STUDY, volumes.STUDY], ids=lambda study: study.name
)
def test_the_images_of_a_cell_are_those_of_its_scores(study: Study) -> None:
    for path in study.cells.glob("*.npz"):
        cell_content = json.loads(path.with_suffix(".json").read_text())
        images = load_images(path) or {}
        for protocol, sweep in cell_content["sweep"].items():
            for metric in ("ACC", "Dice", "AUC", "consistency"):
                for part in ("upright", "mean", "random mean", ""):
                    name = f"{metric} {part}".strip()
                    if name not in sweep or (metric == "consistency" and "scores" in images):
                        continue
                    found = interval([images], Figure(metric, part, protocol), draws=1).value
                    assert found == pytest.approx(sweep[name], abs=2e-3 if metric == "AUC" else 1e-6), (path, name)


def test_calibration_of_rotations_is_the_mean() -> None:
    """Upright every decision is right at 0.75, turned at 0.9."""
    labels = np.array([0, 1, 0, 1])
    odds = np.stack([np.log(3) * (2 * labels - 1), np.log(9) * (2 * labels - 1), np.zeros(4)])
    one = cell(odds, labels)
    assert calibration(one) == pytest.approx(0.25, abs=1e-3)
    assert calibration(one, "mean") == pytest.approx((0.25 + 0.1) / 2, abs=1e-3)
