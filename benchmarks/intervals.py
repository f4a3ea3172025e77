"""Intervals of the tables' figures and of their differences, by a bootstrap over test images and seeds.

Each draw takes test images with replacement, the same ones for all seeds and for both networks of a difference, and of each
network as many seeds as there are, with replacement. (``scipy.stats.bootstrap`` resamples one level; these are two that
cross.) Such intervals are wide rather than narrow where seeds err on different images, which both levels count (Owen, Annals
of Applied Statistics 1:386, 2007), and narrow where few seeds differ as a whole. A figure of a draw is a weighted mean over
images, or for AUC over pairs of images: rows of weights times vectors and matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from monai_sre.evaluation.metrics import calibration_error
from monai_sre.evaluation.transformations import PROTOCOLS, angle_of

#: What a cell's npz holds, see :func:`benchmarks.bundles.images_of`.
Images = dict[str, np.ndarray]

#: Number of draws, seed of their generator, and the share of them inside an interval.
DRAWS, SEED, LEVEL = 2000, 0, 0.95
#: The same in words, once per page.
WORDS = (
    f"In brackets: {LEVEL:.0%} intervals of {DRAWS:,} bootstrap draws of test images and seeds (`benchmarks/intervals.py`);",
    "those of a difference take the same images for both networks. Level: the interval holds zero.",
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
    """A figure, and the ends of its interval."""

    value: float
    low: float
    high: float

    def word(self, least: float = 0.0) -> str:
        """Whether it is at least so much: yes or no, or level where the interval holds that.

        Example:
            >>> [Interval(0.05, 0.01, 0.09).word(least) for least in (0, 0.04, 0.1)]
            ['yes', 'level', '**no**']
        """
        return "yes" if self.low >= least else "**no**" if self.high < least else "level"

    def text(self, form: str = ".3f") -> str:
        """The three numbers.

        Example:
            >>> Interval(0.0512, 0.01, 0.0999).text("+.3f")
            '+0.051 [+0.010, +0.100]'
        """
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def interval(seeds: Sequence[Images], figure: Figure, draws: int = DRAWS) -> Interval:
    """The interval of one network's figure.

    Args:
        seeds: per seed what its cell's npz holds, all of the same images.
        figure: which.
        draws: how many.
    """
    return _ends(*_drawn(seeds, figure, draws, network=0))


def difference(first: Sequence[Images], second: Sequence[Images], figure: Figure, draws: int = DRAWS) -> Interval:
    """The interval of the first network's figure less the second's: the same images in both, seeds drawn apart."""
    return contrast((first, figure), (second, figure), draws)


def contrast(
    first: tuple[Sequence[Images], Figure], second: tuple[Sequence[Images], Figure], draws: int = DRAWS
) -> Interval:
    """Likewise of two figures, of two networks or of one, whose seeds are then drawn once.

    Raises:
        ValueError: the two were not evaluated on the same images.
    """
    numbers = [_number(seeds[0], figure) for seeds, figure in (first, second)]
    if numbers[0] != numbers[1]:
        raise ValueError(f"{numbers[0]} and {numbers[1]} images: a paired difference needs the same")
    one_network = [id(images) for images in first[0]] == [id(images) for images in second[0]]
    (value, drawn), (other, others) = (
        _drawn(*one, draws, network=0 if one_network else place) for place, one in enumerate((first, second))
    )
    return _ends(value - other, drawn - others)


def _ends(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _drawn(seeds: Sequence[Images], figure: Figure, draws: int, network: int) -> tuple[float, np.ndarray]:
    """The figure, and its values in all draws, of which the images depend on their number alone."""
    number = _number(seeds[0], figure)
    weights = np.random.default_rng(SEED).multinomial(number, [1 / number] * number, size=draws)
    weights = np.concatenate([np.ones((1, number)), weights])  # the first: all images once
    found = np.stack([_values(images, figure, weights) for images in seeds])
    taken = np.random.default_rng([SEED, network]).integers(len(seeds), size=(len(seeds), draws))
    return float(found[:, 0].mean()), np.take_along_axis(found[:, 1:], taken, axis=0).mean(axis=0)


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


def _values(images: Images, figure: Figure, weights: np.ndarray) -> np.ndarray:
    """A figure of one seed for each row of weights of the images."""
    least = figure.part.endswith("min")
    if "log_odds" not in images:
        if figure.protocol:
            places = chosen_places(images["transformations"].tolist(), figure.part)
            values = images["scores"][images["protocols"].tolist().index(figure.protocol), places]
            values = values[..., images["metrics"].tolist().index(figure.metric)]
        else:
            values = images["upright"][None, :, images["upright_metrics"].tolist().index(figure.metric)]
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):  # a draw of images without a value
            found = weights @ np.where(known, values, 0).T.astype(float) / (weights @ known.T)
        return found.min(axis=1) if least else found.mean(axis=1)
    odds, labels = _odds(images, figure.part, figure.protocol), images["labels"] == 1
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


def _odds(images: Images, part: str, protocol: str) -> np.ndarray:
    """Log-odds ``(transformations of the part, N)``."""
    places = chosen_places(images["transformations"].tolist(), part)
    found: np.ndarray = images["log_odds"][images["protocols"].tolist().index(protocol), places].astype(float)
    return found
