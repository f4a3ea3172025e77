"""Whole batches of tensors, and MONAI's loader in an order of epochs."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, SmartCacheDataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandScaleIntensity

from monai_sre.data import BatchAugment2d, BatchLoader, DatasetInfo, EpochLoader, LabelledImages
from monai_sre.data.loaders import training_subset
from monai_sre.training import EpochSeed

# Parts of a training set ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_nested_and_keep_the_shares_of_classes(seed: int) -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 2])[np.random.default_rng(5).permutation(92)]
    parts = [set(training_subset(labels, count, seed).tolist()) for count in range(3, 93)]
    assert [len(part) for part in parts] == list(range(3, 93))
    assert all(small < large for small, large in itertools.pairwise(parts))
    for part in parts:
        counts = np.bincount(labels[list(part)], minlength=3)
        assert (np.abs(counts - len(part) * np.array([60, 30, 2]) / 92) < 2).all()
        assert counts.min() >= 1
    assert parts[-1] == set(training_subset(labels, None, seed))


def test_parts_by_seed_and_of_several_labels() -> None:
    labels = np.arange(40) % 2
    assert not np.array_equal(training_subset(labels, 10, 0), training_subset(labels, 10, 1))
    several = np.eye(40)  # each sample its own set of labels
    assert len(training_subset(several, 7, 0)) == 7


@pytest.mark.parametrize("number", [1, 41, 2.5, True])
def test_parts_that_cannot_be(number: object) -> None:
    with pytest.raises(ValueError, match=r"num_train must be None or a whole number from 2, one per class, to 40, got"):
        training_subset(np.arange(40) % 2, number, 0)


# Whole batches --------------------------------------------------------------------------------------------------------


def numbered(count: int) -> LabelledImages:
    info = DatasetInfo("n", 2, 2, "multi-class", 1, 300, tuple(map(str, range(300))))
    return LabelledImages(
        torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), torch.arange(count), info
    )


@pytest.mark.parametrize("count", [5, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_validation_shards_neither_drop_nor_repeat(count: int, world: int, batch_size: int) -> None:
    data, seen, lengths = numbered(count), [], set()
    for rank in range(world):
        loader = BatchLoader(data, batch_size, rank=rank, world_size=world)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(1 <= len(b["label"]) <= batch_size for b in batches)
        assert all(torch.equal(b["image"][:, 0, 0, 0].long(), b["label"]) for b in batches)
        seen += [label for b in batches for label in b["label"].tolist()]
        lengths.add(len(loader))
    assert sorted(seen) == list(range(count))
    assert batch_size == 1 or len(lengths) == 1  # ranks make the same number of steps


def test_training_shards_and_epochs() -> None:
    data = numbered(17)
    for drop_last, expected in ((False, 3), (True, 2)):  # 9 or 8 samples a rank, in batches of 4
        loaders = [BatchLoader(data, 4, True, drop_last, seed=1, rank=r, world_size=2) for r in range(2)]
        seen = [b["label"].tolist() for loader in loaders for b in loader]
        assert [len(loader) for loader in loaders] == [expected, expected] == [len(seen) // 2] * 2
        labels = sorted(label for batch in seen for label in batch)
        assert len(set(labels)) == (16 if drop_last else 17)
        assert len(labels) == (16 if drop_last else 18)
    loader = BatchLoader(data, 4, shuffle=True, seed=1)
    epochs = [[b["label"].tolist() for b in loader] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = BatchLoader(data, 4, shuffle=True, seed=1)
    resumed.set_epoch(2)
    assert [b["label"].tolist() for b in resumed] == epochs[2]
    assert [b["label"].tolist() for b in BatchLoader(data, 4, shuffle=True, seed=2)] != epochs[0]


def test_loader_follows_a_monai_trainer_and_resumes() -> None:
    def run(first: int, last: int) -> list[float]:
        loader = BatchLoader(numbered(20), 8, shuffle=True, seed=3, transform=BatchAugment2d(None, seed=5))
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 300))
        sums: list[float] = []
        trainer = SupervisedTrainer(
            torch.device("cpu"), last, loader, network, torch.optim.SGD(network.parameters(), 0.0),
            torch.nn.CrossEntropyLoss(), train_handlers=[EpochSeed(0, loader=loader)], decollate=False,
            iteration_update=lambda engine, batch: sums.append(
                float((batch["image"][:, 0, 0, 0] * batch["label"]).sum())
            ),
        )  # fmt: skip
        trainer.state.epoch, trainer.state.iteration = first, first * len(loader)
        trainer.run()
        return sums

    whole = run(0, 4)
    assert len(whole) == 12
    assert len(set(whole)) == 12
    assert run(2, 4) == whole[6:]


def test_items_slices_and_arguments() -> None:
    data = numbered(6)
    assert data[4]["label"].item() == 4
    assert [item["label"].item() for item in data[1:3]] == [1, 2]
    loaded = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert loaded["image"].shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match="6 images and 5 labels"):
        LabelledImages(data.images, data.labels[:5], data.info)
    for bad, message in (
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"drop_last": True}, "drop_last"),
        ({"rank": 2, "world_size": 2}, "rank must be in .* got 2"),
        ({"rank": 0, "world_size": 7}, "6 samples"),
        ({"batch_size": 7, "drop_last": True, "shuffle": True}, "no batch"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchLoader(data, **bad)
    with pytest.raises(TypeError, match="batch_size must be an integer >= 1, got 'two'"):
        BatchLoader(data, batch_size="two")


# MONAI's loader -------------------------------------------------------------------------------------------------------


def from_the_process(x: torch.Tensor) -> torch.Tensor:
    """A transform that draws from the generators of its process."""
    return x * (1 + torch.rand(1) / 999 + np.random.random() / 999 + random.random() / 999)  # noqa: NPY002


def dataset(kind: type = Dataset) -> Dataset:
    """Items 1 to 6, each times a random factor."""
    data = [np.full((1, 2), float(value), dtype=np.float32) for value in range(1, 7)]
    return kind(data, Compose([RandScaleIntensity(factors=0.1, prob=1.0), from_the_process]))


def epoch(loader: EpochLoader, number: int) -> torch.Tensor:
    loader.set_epoch(number)
    return torch.cat(list(loader))[:, 0, 0]


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (Dataset, {"num_workers": 1}),
        (CacheDataset, {"num_workers": 2, "persistent_workers": True}),
        (CacheDataset, {"num_workers": 2, "multiprocessing_context": "forkserver"}),
        (Dataset, {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}),
    ],
    ids=["one", "that live on", "from a server", "spawned"],
)
def test_an_epoch_is_the_same_whatever_went_before_and_whoever_loads_it(kind: type, workers: dict[str, Any]) -> None:
    """As in a run that is resumed, with workers and without, under any seed of the process."""
    first, second = (EpochLoader(dataset(kind), 2, repeats=2, seed=5, **options) for options in (workers, {}))
    torch.manual_seed(7)
    epochs = [epoch(first, 1), epoch(first, 2)]
    torch.manual_seed(8)
    assert torch.equal(epoch(second, 2), epochs[1])
    assert torch.equal(epoch(second, 1), epochs[0])


def test_loading_leaves_the_numbers_of_the_training_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    loader = EpochLoader(dataset(), 2)
    epoch(loader, 1)
    assert torch.equal(torch.rand(1), expected)


def test_without_an_epoch_each_iteration_is_one() -> None:
    loader = EpochLoader(dataset(), 2)
    drawn = [torch.cat(list(loader))[:, 0, 0] for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(epoch(loader, 0), drawn[0])


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


def test_a_data_set_that_replaces_its_items_cannot_be_resumed() -> None:
    data = SmartCacheDataset([{"image": 1.0}], cache_num=1, progress=False)
    with pytest.raises(ValueError, match="dataset is a SmartCacheDataset, which replaces its items between epochs"):
        EpochLoader(data, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 7},
            r"6 images with repeats=1 \(patches_per_image of a bundle\) do not fill one batch of batch_size=7",
        ),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2, "repeats": 0}, "repeats must be an integer >= 1, got 0"),
    ],
)
def test_epochs_that_do_not_fill_a_batch_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochLoader(dataset(), **options)
