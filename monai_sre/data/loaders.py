"""Loaders whose order and random numbers depend on the seed, the epoch and the rank alone, so that runs can be resumed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset, SmartCacheDataset, set_rnd
from torch.utils.data import Sampler

from monai_sre.data.info import DatasetInfo
from monai_sre.ops.arguments import int_tuple

__all__ = ["BatchLoader", "EpochLoader", "LabelledImages", "mix_seed", "process_place", "training_subset"]


def mix_seed(*parts: int) -> int:
    """Make a 63-bit seed of several non-negative integers, so that neighbouring seeds and epochs are unrelated.

    Example:
        >>> mix_seed(0, 1) == mix_seed(0, 1), mix_seed(0, 1) == mix_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence([int(p) for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def process_place(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank of this process and number of processes: those given, else what ``torch.distributed`` says, else 0 and 1.

    Raises:
        ValueError: the rank is outside of the world.

    Example:
        >>> process_place(), process_place(1, 2)
        ((0, 1), (1, 2))
    """
    distributed = dist.is_available() and dist.is_initialized()
    world_size = world_size if world_size is not None else dist.get_world_size() if distributed else 1
    rank = rank if rank is not None else dist.get_rank() if distributed else 0
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size-1 with world_size={world_size}, got {rank}")
    return rank, world_size


def training_subset(labels: np.ndarray, num_train: int | None, seed: int) -> np.ndarray:
    """Places of so many of the training samples: drawn by the seed, the classes in their shares, each at least once.

    With one seed, a smaller subset is a part of every greater one.

    Args:
        labels: class numbers, ``(N,)``; labels of several per sample, ``(N, L)``, are drawn without regard to them.
        num_train: how many; None: all.
        seed: of the choice.

    Raises:
        ValueError: ``num_train`` is below the number of classes or above that of the samples.

    Example:
        >>> labels = np.array([0] * 8 + [1] * 4)
        >>> labels[training_subset(labels, 6, seed=0)]
        array([0, 0, 0, 0, 1, 1])
    """
    number = len(labels)
    if num_train is None:
        return np.arange(number)
    groups = np.unique(labels if labels.ndim == 1 else np.zeros(number), return_inverse=True)[1]
    sizes = np.bincount(groups)
    if isinstance(num_train, bool) or not isinstance(num_train, int) or not len(sizes) <= num_train <= number:
        what = f"{len(sizes)}, one per class," if len(sizes) > 1 else "1"
        raise ValueError(f"num_train must be None or a whole number from {what} to {number}, got {num_train!r}")
    shuffled = np.random.default_rng(seed).permutation(number)
    places = np.empty(number)
    for group, size in enumerate(sizes):
        places[shuffled[groups[shuffled] == group]] = np.arange(size) / size  # the first of each class comes first
    chosen: np.ndarray = np.sort(np.lexsort((groups, places))[:num_train])
    return chosen


class LabelledImages(Dataset):
    """One split, resident in memory as two tensors; a ``monai.data.Dataset`` of ``{"image", "label"}`` items.

    Args:
        images: ``(N, C, *spatial)``, uint8 in 0..255 or float in 0..1.
        labels: int64 of shape ``(N,)``, or float of shape ``(N, L)`` for a multi-label task.
        info: description of the data set.
        files: path of each image, where each is a file.

    Raises:
        ValueError: the two tensors differ in length or have the wrong number of dimensions.

    Example:
        >>> info = DatasetInfo("toy", 2, 4, "binary-class", 1, 2, ("no", "yes"))
        >>> split = LabelledImages(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1]), info)
        >>> len(split), split[3]["image"].shape, int(split[3]["label"])
        (5, torch.Size([1, 4, 4]), 1)
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo, files: Sequence[str] = ()
    ) -> None:
        if images.ndim != info.spatial_dims + 2:
            raise ValueError(
                f"images must have shape (N, C, *spatial), {info.spatial_dims} spatial axes, got {tuple(images.shape)}"
            )
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images and {len(labels)} labels")
        super().__init__(data=range(len(images)))
        self.images, self.labels, self.info, self.files = images, labels, info, files

    def _transform(self, index: int) -> Any:
        return {"image": self.images[index], "label": self.labels[index]}


class BatchLoader:
    """Yields whole batches by indexing two tensors: no worker processes, no Python per sample.

    A batch is ``{"image": (B, C, *spatial), "label": (B,) int64 or (B, L) float}``. MONAI's trainers and evaluators
    take the loader as ``train_data_loader`` / ``val_data_loader``.

    Reproducibility: the order of an epoch depends on ``(seed, epoch)`` alone, and the random numbers of ``transform``
    on its own seed, the epoch and the rank. :class:`monai_sre.training.EpochSeed` tells it the epoch of a trainer, so a
    resumed run sees what an uninterrupted one would. Without that, each iteration counts as one epoch, from 0.

    Distributed: a shuffled loader gives each rank the same number of samples (at most ``world_size - 1`` of them
    repeated; with ``drop_last`` none). An unshuffled loader gives each sample to exactly one rank, rank ``r`` taking
    ``r, r + world_size, ...``, in the same number of batches on all ranks (for ``batch_size`` of 2 or more).

    Args:
        dataset: the split to load.
        batch_size: samples per batch and rank.
        shuffle: new order in each epoch.
        drop_last: leave out a last, smaller batch (only with ``shuffle``).
        seed: of the order.
        transform: applied to the image tensor of each batch, on ``device``. If it has a method
            ``set_epoch(epoch, rank)``, it is called at the start of each epoch.
        device: where the whole split is kept and the batches are made; None leaves the tensors where they are.
        rank: of this process; None asks ``torch.distributed`` (0 where it is not initialised).
        world_size: number of processes; None asks ``torch.distributed`` (1 where it is not initialised).

    Raises:
        TypeError: ``batch_size`` is no integer.
        ValueError: ``batch_size`` below 1, ``drop_last`` without ``shuffle``, a rank outside of the world, or fewer
            samples than processes or (with ``drop_last``) than a batch.

    Example:
        >>> info = DatasetInfo("toy", 2, 4, "binary-class", 1, 2, ("no", "yes"))
        >>> split = LabelledImages(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1]), info)
        >>> [batch["label"].tolist() for batch in BatchLoader(split, batch_size=2)]
        [[0, 1], [0, 1], [1]]
    """

    def __init__(
        self,
        dataset: LabelledImages,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: torch.device | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank, self.world_size = process_place(rank, world_size)
        (self.batch_size,) = int_tuple("batch_size", batch_size, 1, minimum=1)
        if drop_last and not shuffle:
            raise ValueError("drop_last=True would lose samples of an unshuffled loader; it needs shuffle=True")
        if len(dataset) < self.world_size:
            raise ValueError(f"{len(dataset)} samples cannot be shared among world_size={self.world_size} processes")
        self.dataset, self.shuffle, self.drop_last = dataset, shuffle, drop_last
        self.seed, self.transform, self.epoch = int(seed), transform, 0
        self.images = dataset.images if device is None else dataset.images.to(device)
        self.labels = dataset.labels if device is None else dataset.labels.to(device)
        if len(self) == 0:
            raise ValueError(f"drop_last=True leaves no batch: {len(dataset)} samples, batch_size {batch_size}")

    def _share(self) -> int:
        """Count the samples of this rank."""
        total = len(self.dataset)
        if not self.shuffle:
            return len(range(self.rank, total, self.world_size))
        return total // self.world_size if self.drop_last else math.ceil(total / self.world_size)

    def __len__(self) -> int:
        share = self._share()
        if self.drop_last:
            return share // self.batch_size
        if not self.shuffle and self.batch_size > 1:
            share = math.ceil(len(self.dataset) / self.world_size)
        return math.ceil(share / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and random numbers the next iteration uses."""
        self.epoch = int(epoch)

    def indices(self, epoch: int) -> torch.Tensor:
        """List the samples of this rank in the given epoch, in order: int64, on the CPU."""
        total = len(self.dataset)
        if not self.shuffle:
            return torch.arange(self.rank, total, self.world_size)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(mix_seed(self.seed, epoch)))
        share = self._share()
        if share * self.world_size > total:
            order = torch.cat([order, order[: share * self.world_size - total]])
        return order[self.rank : share * self.world_size : self.world_size]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        if hasattr(self.transform, "set_epoch"):
            self.transform.set_epoch(epoch, self.rank)  # type: ignore[union-attr]
        order, batches = self.indices(epoch), len(self)
        order = order.to(self.images.device, non_blocking=True)
        # Ranks differ by at most one sample; a start held back keeps the last batch from being empty on one of them.
        starts = [min(b * self.batch_size, len(order) - (batches - b)) for b in range(batches)]
        stops = [*starts[1:], min(len(order), batches * self.batch_size)]
        for start, stop in zip(starts, stops, strict=True):
            chosen = order[start:stop]
            images = self.images.index_select(0, chosen)
            labels = self.labels.index_select(0, chosen.to(self.labels.device))
            yield {"image": images if self.transform is None else self.transform(images), "label": labels}


class EpochLoader(DataLoader):
    """MONAI's ``DataLoader`` in a random order, reproducible from any epoch on: a resumed run sees what a whole one does.

    Each item is drawn with a seed of its own, made of ``seed``, the epoch, the rank and the item's place in the epoch: with
    any number of worker processes, however they are started and however long they live, the batches are the same.
    :class:`monai_sre.training.EpochSeed` tells it the epoch; without that, each iteration counts as one epoch, from 0.

    Args:
        dataset: a MONAI data set with a ``transform``.
        batch_size: items per batch; a last, smaller batch is left out.
        repeats: times that each item is drawn in an epoch, each time through the random transforms anew.
        seed: of order and transforms.
        rank: of this process, which draws numbers of its own; None asks ``torch.distributed``.
        options: the other arguments of MONAI's ``DataLoader``.

    Raises:
        ValueError: the items of an epoch do not fill one batch, or the data set replaces its items between epochs.

    Example:
        >>> loader = EpochLoader(Dataset(range(4), float), batch_size=2, repeats=3)
        >>> loader.set_epoch(1)
        >>> drawn = torch.cat(list(loader)).int()
        >>> len(loader), drawn.bincount().tolist()
        (6, [3, 3, 3, 3])
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        repeats: int = 1,
        seed: int = 0,
        rank: int | None = None,
        **options: Any,
    ) -> None:
        (batch_size,), (repeats,) = (
            int_tuple(name, value, 1, minimum=1) for name, value in (("batch_size", batch_size), ("repeats", repeats))
        )
        if isinstance(dataset, SmartCacheDataset):
            raise ValueError(
                "dataset is a SmartCacheDataset, which replaces its items between epochs, so that a resumed training would "
                "see others; CacheDataset with cache_num, or PersistentDataset, bounds the memory too"
            )
        if len(dataset) * repeats < batch_size:
            raise ValueError(
                f"{len(dataset)} images with repeats={repeats} (patches_per_image of a bundle) do not fill one batch of "
                f"batch_size={batch_size}"
            )
        order = _EpochOrder(len(dataset), repeats, seed, process_place()[0] if rank is None else rank)
        # A generator of its own, as the seed of the workers is drawn from it and not from the numbers of the training.
        options = {"generator": torch.Generator().manual_seed(seed), **options}
        super().__init__(_SeededItems(dataset), batch_size=batch_size, sampler=order, drop_last=True, **options)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and random numbers the next iteration uses."""
        self.sampler.epoch = int(epoch)  # type: ignore[attr-defined]


class _EpochOrder(Sampler[tuple[int, int]]):
    """Index and seed of each item of an epoch."""

    def __init__(self, size: int, repeats: int, seed: int, rank: int) -> None:
        self.size, self.repeats, self.seed, self.rank, self.epoch = size, repeats, seed, rank, 0

    def __len__(self) -> int:
        return self.size * self.repeats

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.cat([torch.randperm(self.size, generator=generator) for _ in range(self.repeats)])
        for place, index in enumerate(order.tolist()):
            yield index, mix_seed(self.seed, epoch, self.rank, place) % 2**32


class _SeededItems(Dataset):
    """Items of another data set, each drawn with a seed for its transforms and for the generators of the process."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.data, dataset.transform)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, chosen: Any) -> Any:
        index, seed = chosen
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            set_rnd(self.transform, seed)
            return self.dataset[index]
        finally:  # the training's own numbers go on as if nothing had been drawn
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
