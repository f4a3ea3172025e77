"""EpochLoader: order and random transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandScaleIntensity

from monai_sre.data import EpochLoader


def dataset(kind: type = Dataset) -> Dataset:
    """Items 1 to 6, each times a random factor."""
    data = [np.full((1, 2), float(value), dtype=np.float32) for value in range(1, 7)]
    return kind(data, Compose([RandScaleIntensity(factors=0.1, prob=1.0)]))


def epoch(loader: EpochLoader, number: int) -> torch.Tensor:
    loader.set_epoch(number)
    return torch.cat(list(loader))[:, 0, 0]


@pytest.mark.parametrize("kind", [Dataset, CacheDataset])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_the_same_whatever_went_before(kind: type, workers: int) -> None:
    """As in a run that is resumed; under the global seed that EpochSeed sets where there are worker processes."""
    first, second = (EpochLoader(dataset(kind), 2, repeats=2, seed=5, num_workers=workers) for _ in range(2))
    torch.manual_seed(7)
    epoch(first, 1)
    torch.manual_seed(8)
    expected = epoch(first, 2)
    torch.manual_seed(8)
    assert torch.equal(epoch(second, 2), expected)


def test_epochs_seeds_and_ranks_differ() -> None:
    base = EpochLoader(dataset(), 2, seed=5)
    drawn = [epoch(base, 1), epoch(base, 2), epoch(EpochLoader(dataset(), 2, seed=6), 1)]
    drawn.append(epoch(EpochLoader(dataset(), 2, seed=5, rank=1), 1))
    for index, one in enumerate(drawn):
        assert all(not torch.equal(one, other) for other in drawn[:index])


def test_each_item_is_drawn_anew_in_each_repeat() -> None:
    drawn = epoch(EpochLoader(dataset(), 4, repeats=2), 1)
    assert drawn.round().int().bincount().tolist() == [0, 2, 2, 2, 2, 2, 2]
    assert len(drawn.unique()) == 12


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 0}, {"batch_size": 2, "repeats": 0}])
def test_errors(options: dict) -> None:
    with pytest.raises(ValueError, match="do not fill one batch"):
        EpochLoader(dataset(), **options)
