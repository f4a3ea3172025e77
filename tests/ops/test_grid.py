"""Sizes and margins of centred grids, and padding beyond the size of a map."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from monai_sre.ops.grid import centred_margin, extend_ends


@pytest.mark.parametrize(
    ("mode", "size", "amount"), [("reflect", 3, 7), ("reflect", 2, 5), ("circular", 3, 8), ("circular", 1, 4)]
)
def test_extensions_go_on_with_their_period(mode: str, size: int, amount: int) -> None:
    x = torch.arange(float(size)).reshape(1, 1, size)
    places = np.arange(-amount, size + amount)
    period = 2 * (size - 1) if mode == "reflect" else size
    places = places % period
    if mode == "reflect":
        places = np.minimum(places, period - places)
    assert extend_ends(x, [amount], mode).flatten().tolist() == places.tolist()


def test_margins_centre_the_grid_of_torch() -> None:
    """As many windows as torch's pools have; the first tap of the first is as far from one end as the last from the other."""
    for size, taps, stride, padding, ceil_mode in product(
        range(1, 10), range(1, 6), range(1, 5), range(3), (False, True)
    ):
        if size + 2 * padding < taps or 2 * padding > taps:
            continue
        count = functional.avg_pool1d(torch.zeros(1, 1, size), taps, stride, padding, ceil_mode).shape[-1]
        amount, between = centred_margin(size, taps, stride, 2 * padding, ceil_mode)
        assert size + 2 * amount - between == (count - 1) * stride + taps, (size, taps, stride, padding, ceil_mode)


@pytest.mark.parametrize(("size", "reach", "padding"), [(2, 5, 0), (1, 4, 2), (4, 5, 0)])
def test_no_window_fits(size: int, reach: int, padding: int) -> None:
    message = f"size {size} with padding {padding} is too small for a window of {reach} pixels"
    with pytest.raises(ValueError, match=message):
        centred_margin(size, reach, 1, padding)
