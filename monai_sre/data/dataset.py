"""What a data set is here: its description, one split held as two tensors, and a loader of whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.data import Dataset

__all__ = ["BatchLoader", "DatasetInfo", "LabelledImages", "mix_seed"]

#: The kinds of task, in MedMNIST's own words (``medmnist.Evaluator`` takes the same strings).
TASKS = ("binary-class", "multi-class", "multi-label, binary-class", "ordinal-regression")


@dataclass(frozen=True)
class DatasetInfo:
    """What a network, a loss and a metric need to know of a data set.

    Args:
        name: name of the data set.
        spatial_dims: 2 for images, 3 for volumes.
        size: longest side of the stored images, in pixels or voxels.
        task: one of ``"binary-class"``, ``"multi-class"``, ``"multi-label, binary-class"``, ``"ordinal-regression"``.
        num_channels: channels of an image: 1 for grey, 3 for RGB.
        num_classes: number of network outputs: classes, or labels of a multi-label task.
        class_names: one name per class.

    Raises:
        ValueError: an argument is out of range, or there is not one name per class.

    Example:
        >>> info = DatasetInfo("toy", 2, 28, "multi-class", 1, 3, ("a", "b", "c"))
        >>> info.num_classes, info.multi_label
        (3, False)
    """

    name: str
    spatial_dims: int
    size: int
    task: str
    num_channels: int
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task of data set {self.name!r} is {self.task!r}; it must be one of {TASKS}")
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims of data set {self.name!r} is {self.spatial_dims}; it must be 2 or 3")
        if self.num_channels < 1 or self.num_classes < 1 or self.size < 1:
            raise ValueError(f"size, num_channels and num_classes of data set {self.name!r} must be at least 1")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"data set {self.name!r} has {self.num_classes} classes and {len(self.class_names)} class_names"
            )

    @property
    def multi_label(self) -> bool:
        """Whether an image can carry several labels at once (targets are then floats of shape ``(N, num_classes)``)."""
        return self.task == "multi-label, binary-class"


class LabelledImages(Dataset):
    """One split, resident in memory as two tensors; a ``monai.data.Dataset`` of ``{"image", "label"}`` items.

    Args:
        images: ``(N, C, *spatial)``, uint8 in 0..255 or float in 0..1.
        labels: int64 of shape ``(N,)``, or float of shape ``(N, L)`` for a multi-label task.
        info: description of the data set.
        transform: applied to each item (a dictionary), for MONAI's own ``DataLoader``; :class:`BatchLoader` does not
            use it.

    Raises:
        ValueError: the two tensors differ in length or have the wrong number of dimensions.

    Example:
        >>> info = DatasetInfo("toy", 2, 4, "binary-class", 1, 2, ("no", "yes"))
        >>> split = LabelledImages(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1]), info)
        >>> len(split), split[3]["image"].shape, int(split[3]["label"])
        (5, torch.Size([1, 4, 4]), 1)
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo, transform: Callable | None = None
    ) -> None:
        if images.ndim != info.spatial_dims + 2:
            raise ValueError(
                f"images must have shape (N, C, *spatial), {info.spatial_dims} spatial axes, got {tuple(images.shape)}"
            )
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images and {len(labels)} labels")
        super().__init__(data=range(len(images)), transform=transform)
        self.images, self.labels, self.info = images, labels, info

    def _transform(self, index: int) -> Any:
        item = {"image": self.images[index], "label": self.labels[index]}
        return item if self.transform is None else self.transform(item)


def mix_seed(*parts: int) -> int:
    """Make a 63-bit seed of several non-negative integers, so that neighbouring seeds and epochs are unrelated.

    Example:
        >>> mix_seed(0, 1) == mix_seed(0, 1), mix_seed(0, 1) == mix_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence([int(p) for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchLoader:
    """Yields whole batches by indexing two tensors: no worker processes, no Python per sample.

    A batch is ``{"image": (B, C, *spatial), "label": (B,) int64 or (B, L) float}``. MONAI's trainers and evaluators
    take the loader as ``train_data_loader`` / ``val_data_loader``.

    Reproducibility: the order of an epoch depends on ``(seed, epoch)`` alone, and the random numbers of ``transform``
    on its own seed, the epoch and the rank. List the loader among the handlers of a trainer (:meth:`attach`) and it
    follows the engine's epoch, so a resumed run sees what an uninterrupted one would. Without that, each iteration
    counts as one epoch, from 0.

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
        distributed = dist.is_available() and dist.is_initialized()
        self.world_size = world_size if world_size is not None else dist.get_world_size() if distributed else 1
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; with world_size {self.world_size} it must be in 0..world_size-1")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if drop_last and not shuffle:
            raise ValueError("drop_last=True would lose samples of an unshuffled loader; it needs shuffle=True")
        if len(dataset) < self.world_size:
            raise ValueError(f"{len(dataset)} samples cannot be shared among world_size={self.world_size} processes")
        self.dataset, self.batch_size, self.shuffle, self.drop_last = dataset, int(batch_size), shuffle, drop_last
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

    def attach(self, engine: Any) -> None:
        """Follow the epochs of an Ignite engine; so the loader can stand in a trainer's list of handlers."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.set_epoch(e.state.epoch))

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
