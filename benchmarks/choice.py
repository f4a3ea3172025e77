"""Dense or ring on random shapes, and the fit of :mod:`monai_sre.ops.ring.cost` to what was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.layers import radial_layer, timed_layers
from benchmarks.timing import Effort
from monai_sre.ops import radial_basis
from monai_sre.ops.ring import cost
from monai_sre.ops.ring.plan import spatial_triple

#: Loss by a wrong choice that the project allows.
ALLOWED = 1.1
_CHANNELS = ((1, 16), (3, 64), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (64, 128), (128, 64), (128, 128), (256, 256),
             (64, 3), (16, 1))  # fmt: skip
_WIDTHS = ((32, 128, 1024), (4, 7, 8, 14, 16, 28, 32, 64), (4, 8, 12, 16, 32))


def suite_choice(effort: Effort) -> list[dict[str, Any]]:
    """Dense and ring on random shapes, forward and backward or inference."""
    rows: list[dict[str, Any]] = []
    effort = Effort(effort.seconds / 6, effort.quick, effort.clock)
    for drawn in islice(random_layers(), 6 if effort.quick else 120):
        basis = radial_basis((drawn["kernel"],) * (len(drawn["shape"]) - 2), profile=drawn["profile"])
        layers = {
            name: radial_layer(drawn["shape"][1], drawn["out_channels"], basis, name) for name in ("dense", "ring")
        }
        times = timed_layers(layers, drawn["shape"], drawn["out_channels"], drawn["inference"], effort)
        rows.append({**drawn, "shape": list(drawn["shape"]), "times": times})
    return rows


def random_layers(most: float = 2e9) -> Iterator[dict[str, Any]]:
    """Layers that keep the size, of ``most`` multiply-adds at most, always the same ones.

    Example:
        >>> list(next(random_layers()))
        ['shape', 'out_channels', 'kernel', 'profile', 'inference']
    """
    draw = random.Random(0)
    while True:
        ndim = draw.choice((1, 2, 2, 2, 3, 3))
        kernel = draw.choice((3, 5, 7, 9)[: 3 if ndim == 3 else 4])
        width, batch = draw.choice(_WIDTHS[ndim - 1]), draw.choice((1, 2, 8, 32))
        channels = draw.choice(_CHANNELS)
        profile, inference = draw.choice(("band", "gaussian")), draw.random() < 0.3
        if not 1e4 < batch * width**ndim * channels[0] * channels[1] * kernel**ndim < most:
            continue
        yield {"shape": (batch, channels[0], *(width,) * ndim), "out_channels": channels[1], "kernel": kernel,
               "profile": profile, "inference": inference}  # fmt: skip


def losses(rows: list[dict[str, Any]], threads: int) -> list[float]:
    """How many times more than the faster algorithm takes the one that the present cost model chooses, row by row."""
    estimates = [
        [
            cost.estimate(costs, counts, threads)
            for costs, counts in zip((cost.DENSE, cost.RING), _counts(row), strict=True)
        ]
        for row in rows
    ]
    return _losses(rows, np.array(estimates), cost.RING_SHARE)


def fit(rows: list[dict[str, Any]], threads: int) -> str:
    """The constants of :mod:`monai_sre.ops.ring.cost` for measured rows, as Python to put in its place.

    Times are fitted in least absolute relative error, which shapes that one algorithm serves badly do not sway.
    """
    text, estimates = "", []
    for index, name in enumerate(("DENSE", "RING")):
        counts = np.array([_counts(row)[index] for row in rows])
        counts[:, 2:] /= threads
        nanoseconds = np.array([row["times"][name.lower()]["ms"] * 1e6 for row in rows])
        constants = robust_fit(counts / nanoseconds[:, None])
        estimates.append(counts @ constants)
        text += f"{name} = ({', '.join(f'{value:.3g}' for value in constants)})\n"
    both = np.stack(estimates, axis=1)

    def wrong_and_mean(share: float) -> tuple[int, float]:
        lost = np.array(_losses(rows, both, share))
        return int((lost > ALLOWED).sum()), float(np.log(lost).mean())

    share = min((1.0, 0.9, 0.8, 0.7), key=wrong_and_mean)
    return f"{text}RING_SHARE = {share}\n# {describe(rows, _losses(rows, both, share))}"


def describe(rows: list[dict[str, Any]], lost: list[float]) -> str:
    """One sentence about the choices."""
    wrong = [index for index, value in enumerate(lost) if value > ALLOWED]
    text = f"Of {len(rows)} shapes, the choice costs more than 10 % on {len(wrong)}"
    if wrong:
        slowest = max(min(time["ms"] for time in rows[index]["times"].values()) for index in wrong)
        text += f" (at worst {max(lost):.2f} times), where the faster algorithm takes {slowest:.1f} ms at most"
    return f"{text}; in the geometric mean it costs {100 * (math.exp(float(np.log(lost).mean())) - 1):.1f} %."


def _losses(rows: list[dict[str, Any]], estimates: np.ndarray, share: float) -> list[float]:
    result = []
    for row, (dense, ring) in zip(rows, estimates, strict=True):
        chosen = "ring" if ring * share < dense else "dense"
        result.append(row["times"][chosen]["ms"] / min(time["ms"] for time in row["times"].values()))
    return result


def _counts(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    ndim, kernel = len(row["shape"]) - 2, row["kernel"]
    basis = radial_basis((kernel,) * ndim, profile=row["profile"]).float()
    size = spatial_triple(row["shape"][2:], 1)
    training = False if row["inference"] else (True, True)
    (batch, channels), ones = row["shape"][:2], [1] * ndim
    padding = [kernel // 2] * ndim
    return cost.operation_counts(batch, channels, row["out_channels"], size, basis, ones, padding, ones, training)


def robust_fit(shares: np.ndarray) -> np.ndarray:
    """Constants, none negative, whose products with each row of ``shares`` are near 1: reweighted least squares."""
    weights = np.ones(len(shares))
    for _ in range(30):
        constants, _residual = nnls(shares * weights[:, None], weights)
        error = np.abs(np.log(np.maximum(shares @ constants, 1e-6)))
        weights = 1 / np.sqrt(error + 0.05)
    return constants
