"""Padding beyond the size of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_sre.ops.grid import extend_ends


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
