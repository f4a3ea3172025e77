"""Intervals of the tables' figures and of their differences, over test images and seeds.

The variance of a mean of seeds has two parts. That of the images is the variance over bootstrap draws, each of which takes
test images with replacement, the same ones for all seeds and for both networks of a difference. That of the seeds is their
sample variance over their number; a bootstrap of three seeds would give two thirds of it, and tails that are too short. The
interval is Student's with the sum of both, and with the degrees of freedom of Welch and Satterthwaite (Biometrics Bulletin
2:110, 1946). Both parts count seeds that err on different images (Owen, Annals of Applied Statistics 1:386, 2007). Simulated
(the test), 95 % intervals of three seeds hold the truth in 90 to 96 % of the cases, those of differences in 95 to 99 %.

A figure of a draw is a weighted mean over images, for AUC over pairs of images: rows of weights times vectors and matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import expit

from monai_sre.evaluation.metrics import calibration_error
from monai_sre.evaluation.transformations import PROTOCOLS, angle_of

#: What a cell's npz holds, see :func:`benchmarks.bundles.images_of`.
Images = dict[str, np.ndarray]

#: Number of draws, seed of their generator, and the probability that an interval holds the truth.
DRAWS, SEED, LEVEL = 2000, 0, 0.95
#: The same in words, once per page.
WORDS = (
    f"In brackets: {LEVEL:.0%} intervals, Student's, of the variance over {DRAWS:,} bootstrap draws of the test images and",
    "of that between the seeds (`benchmarks/intervals.py`); none of a single seed. Those of a difference take the same",
    "images for both networks. Level: the interval holds zero.",
)


class Figure(NamedTuple):
    """A figure of a table.

    Args:
        metric: ``"ACC"``, ``"AUC"`` or ``"consistency"``; of class maps one of the sweep's metrics.
        part: ``"upright"``, ``"mean"`` or ``"min"`` over the rotations, ``"random mean"`` or ``"orientation mean"``; of the
            consistency, which all transformations make, nothing.
        protocol: of the sweep; ``""``: the scores upright of the whole test set, where fewer images were swept.
    """

    metric: str
    part: str = ""
    protocol: str = next(iter(PROTOCOLS))


class Interval(NamedTuple):
    """A figure, and the ends of its interval; NaN where a network has one seed, which says nothing of others."""

    value: float
    low: float
    high: float

    def word(self, least: float = 0.0) -> str:
        """Whether it is at least so much: yes or no; level where the interval holds that; nothing where there is none.

        Example:
            >>> [Interval(0.05, 0.01, 0.09).word(least) for least in (0, 0.01, 0.04, 0.1)]
            ['yes', 'level', 'level', '**no**']
        """
        if math.isnan(self.low):
            return ""
        return "yes" if self.low > least else "**no**" if self.high < least else "level"

    def text(self, form: str = ".3f") -> str:
        """The three numbers, or the one that there is.

        Example:
            >>> Interval(0.0512, 0.01, 0.0999).text("+.3f"), Interval(0.05, math.nan, math.nan).text()
            ('+0.051 [+0.010, +0.100]', '0.050')
        """
        return f"{self.value:{form}}{self.bracket(form)}"

    def bracket(self, form: str = ".3f") -> str:
        """The ends alone, behind a space."""
        return "" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"


def interval(seeds: Sequence[Images], figure: Figure, draws: int = DRAWS) -> Interval:
    """The interval of one network's figure, which lies in 0..1.

    Args:
        seeds: per seed what its cell's npz holds, all of the same images.
        figure: which.
        draws: how many.
    """
    found = _drawn(seeds, figure, None, draws)
    value, low, high = _student(found.mean(axis=0), [found[:, 0]], _number(seeds[0], figure))
    return Interval(value, max(low, 0.0), min(high, 1.0))


def difference(first: Sequence[Images], second: Sequence[Images], figure: Figure, draws: int = DRAWS) -> Interval:
    """The interval of the first network's figure less the second's, over the transformations that both were seen under."""
    return contrast((first, figure), (second, figure), draws)


def contrast(
    first: tuple[Sequence[Images], Figure], second: tuple[Sequence[Images], Figure], draws: int = DRAWS
) -> Interval:
    """Likewise of two figures, of two networks or of one, whose seeds are then pairs.

    Raises:
        ValueError: the two were not evaluated on the same images, or share no transformation.
    """
    numbers = [_number(seeds[0], figure) for seeds, figure in (first, second)]
    if numbers[0] != numbers[1]:
        raise ValueError(f"{numbers[0]} and {numbers[1]} images: a paired difference needs the same")
    labels = [images.get("labels") for seeds, _ in (first, second) for images in seeds]
    if any(known is not None and labels[0] is not None and (known != labels[0]).any() for known in labels):
        raise ValueError("the images have other labels, or another order: a paired difference needs the same")
    shared = None
    if first[1] == second[1] and first[1].protocol:
        shared = [name for name in _names(first[0][0]) if name in _names(second[0][0])]
        if not chosen_places(shared, first[1].part):
            raise ValueError(f"the two share no transformation of the part {first[1].part!r}")
    found, other = (_drawn(seeds, figure, shared, draws) for seeds, figure in (first, second))
    if [id(images) for images in first[0]] == [id(images) for images in second[0]]:
        groups = [found[:, 0] - other[:, 0]]
    else:
        groups = [found[:, 0], other[:, 0]]
    value, low, high = _student(found.mean(axis=0) - other.mean(axis=0), groups, numbers[0])
    return Interval(value, max(low, -1.0), min(high, 1.0))


def of_seeds(first: Sequence[float], second: Sequence[float] = ()) -> Interval:
    """Likewise of what the seeds of one network have, or its difference to another's; too narrow, as it knows no images.

    Example:
        >>> of_seeds([0.6, 0.8]).text(), of_seeds([0.6, 0.8], [0.5]).text()
        ('0.700 [-0.571, 1.971]', '0.200')
    """
    groups = [np.asarray(group, float) for group in (first, second) if len(group)]
    value = float(groups[0].mean() - (groups[1].mean() if len(groups) > 1 else 0))
    return _student(np.array([value]), groups, 0)


def _student(drawn: np.ndarray, groups: Sequence[np.ndarray], number: int) -> Interval:
    """The interval around the first of the draws, which is the figure itself.

    Args:
        drawn: the figure, and its values in all draws of images; without draws, images add nothing.
        groups: what the seeds of each network have, each of which adds a part of the variance.
        number: of images.
    """
    value = float(drawn[0])
    if min(map(len, groups)) < 2:
        return Interval(value, math.nan, math.nan)
    parts = [(float(np.nanvar(drawn[1:], ddof=1)), number - 1)] if len(drawn) > 1 else []
    parts += [(float(group.var(ddof=1)) / len(group), len(group) - 1) for group in groups]
    total = sum(part for part, _ in parts)
    if total == 0:
        return Interval(value, value, value)
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total)
    return Interval(value, value - reach, value + reach)


def _drawn(seeds: Sequence[Images], figure: Figure, shared: Sequence[str] | None, draws: int) -> np.ndarray:
    """The figure of each seed, and its values in all draws of images, ``(seeds, 1 + draws)``."""
    number = _number(seeds[0], figure)
    weights = np.random.default_rng(SEED).multinomial(number, [1 / number] * number, size=draws)
    weights = np.concatenate([np.ones((1, number)), weights])  # the first: all images once
    return np.stack([_values(images, figure, weights, shared) for images in seeds])


def _names(images: Images) -> list[str]:
    found: list[str] = images["transformations"].tolist()
    return found


def _number(images: Images, figure: Figure) -> int:
    """How many images a figure is of."""
    if not figure.protocol:
        return len(images["upright"])
    return int(images["log_odds" if "log_odds" in images else "scores"].shape[2])


def chosen_places(transformations: Sequence[str], part: str) -> list[int]:
    """The places of the transformations that a part is of.

    Example:
        >>> chosen_places(["0", "90", "flip 0", "random 1"], "mean"), chosen_places(["0", "random 1"], "random mean")
        ([0, 1], [1])
    """
    if part == "upright":
        return [0]
    if not part:
        return list(range(len(transformations)))
    kind = part.split()[0]
    if kind in ("random", "orientation"):
        return [place for place, name in enumerate(transformations) if name.startswith(kind)]
    return [place for place, name in enumerate(transformations) if angle_of(name) is not None]


def _places(images: Images, part: str, shared: Sequence[str] | None) -> list[int]:
    """The places of a part's transformations, of those that are shared."""
    names = _names(images)
    return [place for place in chosen_places(names, part) if shared is None or names[place] in shared]


def _values(images: Images, figure: Figure, weights: np.ndarray, shared: Sequence[str] | None = None) -> np.ndarray:
    """A figure of one seed for each row of weights of the images."""
    least = figure.part.endswith("min")
    if "log_odds" not in images:
        if figure.protocol:
            places = _places(images, figure.part, shared)
            values = images["scores"][images["protocols"].tolist().index(figure.protocol), places]
            values = values[..., images["metrics"].tolist().index(figure.metric)]
        else:
            values = images["upright"][None, :, images["upright_metrics"].tolist().index(figure.metric)]
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):  # a draw of images without a value
            found = weights @ np.where(known, values, 0).T.astype(float) / (weights @ known.T)
        return found.min(axis=1) if least else found.mean(axis=1)
    odds, labels = _odds(images, figure.part, figure.protocol, shared), images["labels"] == 1
    if figure.metric == "consistency":
        same = ((odds > 0) == (odds[0] > 0)).all(axis=0)
        return weights @ same / weights.sum(axis=1)
    if figure.metric == "ACC":
        right = ((odds > 0) == labels).astype(float)
        found = weights @ (right.T if least else right.mean(axis=0)[:, None]) / weights.sum(axis=1, keepdims=True)
        return found.min(axis=1)
    if figure.metric != "AUC":
        raise ValueError(f"metric must be 'ACC', 'AUC' or 'consistency', got {figure.metric!r}")
    ones, others = odds[:, labels, None], odds[:, None, ~labels]  # of each pair of a positive and a negative
    ranks = (ones > others) + (ones == others) / 2
    positives, negatives = weights[:, labels], weights[:, ~labels]
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a draw without one of the classes has no AUC
        found = np.stack(
            [
                ((positives @ each) * negatives).sum(axis=1) / pairs
                for each in (ranks if least else [ranks.mean(axis=0)])
            ]
        )
    return found.min(axis=0)


def calibration(images: Images, part: str = "upright", protocol: str = next(iter(PROTOCOLS))) -> float:
    """Expected calibration error of one seed, the mean over the transformations of a part."""
    odds = _odds(images, part, protocol)
    return float(
        np.mean(
            [
                calibration_error(np.stack([expit(-row), expit(row)], 1), images["labels"], "binary-class")
                for row in odds
            ]
        )
    )


def spread_over_angles(images: Images, protocol: str = next(iter(PROTOCOLS))) -> float:
    """Standard deviation of an image's probability over the rotations of one seed, the mean over the images."""
    return float(expit(_odds(images, "mean", protocol)).std(axis=0).mean())


def _odds(images: Images, part: str, protocol: str, shared: Sequence[str] | None = None) -> np.ndarray:
    """Log-odds ``(transformations of the part, N)``."""
    places = _places(images, part, shared)
    found: np.ndarray = images["log_odds"][images["protocols"].tolist().index(protocol), places].astype(float)
    if np.isnan(found).any():
        raise ValueError("log_odds hold NaN: the network gave none")
    return found
