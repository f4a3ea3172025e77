"""Memory at hand, and how many volumes may stay in it, so that a training needs no more whatever its volumes' size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from monai_sre.data.loaders import process_place
from monai_sre.data.reader import ReadImaged, is_nifti, millimetres

__all__ = ["free_gib", "volumes_in"]

_GIB = 2**30
#: Of a system that does not say.
_UNKNOWN = 4.0
#: Of control groups of the second version and of the first: where they are; their limit, use, and cached files.
_GROUPS = {
    "": ("/sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
    "memory": ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
}
#: Bytes per voxel of a map of classes, float32, and of the index that the drawing of patches keeps.
_MAP = 4 + 8


def free_gib() -> float:
    """Memory that this process can take, in GiB: what the system has available, or what its control groups leave of that.

    Groups of both versions count, such as a container's or a cluster job's, and those above them. Systems other than Linux do
    not say; there it is 4.

    Example:
        >>> free_gib() > 0
        True
    """
    available = re.search(r"MemAvailable:\s+(\d+)", _text("/proc/meminfo"))
    if available is None:
        return _UNKNOWN
    return max(min([int(available[1]) / 2**20, *_left_by_groups()]), 0.0)


def _left_by_groups() -> Iterator[float]:
    """What each control group above this process leaves, in GiB; cached files can be given up."""
    for line in _text("/proc/self/cgroup").splitlines() or ["0::/"]:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, (most, now, cached) = _GROUPS["memory" if controllers else ""]
        for group in (Path(place), *Path(place).parents):
            folder = f"{root}{group}".rstrip("/")
            limit = _text(f"{folder}/{most}").strip()
            if limit.isdigit():
                files = re.search(rf"^{cached} (\d+)", _text(f"{folder}/memory.stat"), flags=re.MULTILINE)
                used = int(_text(f"{folder}/{now}") or 0) - int(files[1] if files else 0)
                yield (int(limit) - used) / _GIB


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def volumes_in(
    gib: float, pairs: Sequence[Mapping[str, str]], pixdim: Sequence[float] | None, num_channels: int
) -> int:
    """How many of the first pairs fit into memory, preprocessed: the ``cache_num`` of MONAI's ``CacheDataset``.

    Args:
        gib: memory in GiB, shared by all processes of a training.
        pairs: see :func:`monai_sre.data.load_pairs`; of NIfTI files the headers are read alone.
        pixdim: voxel size in mm to which they are resampled, one length per axis; empty: they are not.
        num_channels: of the images.

    Returns:
        A number from 0 to that of the pairs.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.nii"
        >>> nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 16), "u1"), np.diag([1, 1, 4, 1])), path)
        >>> pairs = 100 * [{"image": str(path)}]
        >>> volumes_in(0.1, pairs, [1, 1, 1], 1), volumes_in(0.1, pairs, None, 1)  # 4 MiB or 1 MiB each
        (25, 100)
    """
    left = gib * _GIB / process_place()[1]
    for number, pair in enumerate(pairs):
        left -= _voxels(Path(pair["image"]), pixdim) * (4 * num_channels + _MAP)
        if left < 0:
            return number
    return len(pairs)


def _voxels(path: Path, pixdim: Sequence[float] | None) -> float:
    """Number of voxels of an image, resampled."""
    if is_nifti(path):
        header: Any = nibabel.load(path).header
        shape, zooms = header.get_data_shape()[:3], header.get_zooms()[:3]
        steps = millimetres(header) * np.asarray(zooms, dtype=float)
    else:
        image = ReadImaged("image", spatial_dims=None)({"image": path})["image"]
        shape, steps = image.shape[1:], np.asarray(image.pixdim, dtype=float)
    if not pixdim:
        return float(np.prod(shape))
    # a slice of any direction has an axis of one voxel, whose length does not count
    axes = sorted(range(len(shape)), key=lambda axis: shape[axis] == 1)[: len(pixdim)]
    return float(np.prod([shape[axis] * steps[axis] for axis in axes]) / np.prod(pixdim))
