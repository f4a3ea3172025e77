"""A loader whose order and random transforms depend on the seed, the epoch and the rank alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.data import DataLoader, Dataset, set_rnd
from torch.utils.data import Sampler

from monai_sre.data.dataset import mix_seed

__all__ = ["EpochLoader"]


class EpochLoader(DataLoader):
    """MONAI's ``DataLoader`` in a random order, reproducible from any epoch on: a resumed run sees what a whole one does.

    :class:`monai_sre.training.EpochSeed` tells it the epoch.

    Args:
        dataset: a MONAI data set with a ``transform``.
        batch_size: items a batch; a last, smaller batch is left out.
        repeats: times that each item is drawn in an epoch, each time through the random transforms anew.
        seed: of order and transforms.
        rank: of this process, which draws numbers of its own.
        options: the other arguments of MONAI's ``DataLoader``.

    Raises:
        ValueError: the items of an epoch do not fill one batch.

    Example:
        >>> loader = EpochLoader(Dataset(range(4), float), batch_size=2, repeats=3)
        >>> loader.set_epoch(1)
        >>> drawn = torch.cat(list(loader)).int()
        >>> len(loader), drawn.bincount().tolist()
        (6, [3, 3, 3, 3])
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, repeats: int = 1, seed: int = 0, rank: int = 0, **options: Any
    ) -> None:
        if batch_size < 1 or repeats < 1 or len(dataset) * repeats < batch_size:
            raise ValueError(
                f"{len(dataset)} items with repeats={repeats} do not fill one batch of batch_size={batch_size}"
            )
        self._seed, self._rank = seed, rank
        order = _EpochOrder(len(dataset), repeats, seed)
        super().__init__(dataset, batch_size=batch_size, sampler=order, drop_last=True, **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and random numbers the next iteration uses."""
        self.sampler.epoch = epoch  # type: ignore[attr-defined]
        set_rnd(self.dataset.transform, mix_seed(self._seed, epoch, self._rank) % 2**32)  # type: ignore[attr-defined]


class _EpochOrder(Sampler[int]):
    def __init__(self, size: int, repeats: int, seed: int) -> None:
        self.size, self.repeats, self.seed, self.epoch = size, repeats, seed, 0

    def __len__(self) -> int:
        return self.size * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        for _ in range(self.repeats):
            yield from torch.randperm(self.size, generator=generator).tolist()
