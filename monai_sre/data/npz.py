"""Open and check npz files in MedMNIST's layout: headers first, pixels last, mapped where they can be."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch

from monai_sre.data.info import (
    MULTI_LABEL,
    SPLITS,
    DatasetInfo,
    check_class_numbers,
    check_splits,
    model_classes,
    whole_numbers,
)

__all__ = ["inspect_npz", "read_member", "to_images", "to_labels"]

_KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


def _damaged(path: Path, what: object) -> ValueError:
    return ValueError(
        f"{path} cannot be read as an npz file ({what}): it is truncated, damaged or of another kind. Expected a zip"
        f" archive of {', '.join(_KEYS)}; copy, download or write it again"
    )


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every required member, without reading the data."""
    found = {}
    try:
        with ZipFile(path) as archive:
            missing = [key for key in _KEYS if f"{key}.npy" not in archive.namelist()]
            if missing:
                raise BadZipFile(f"it lacks {', '.join(missing)}")
            sums: dict[int, str] = {}
            for key in _KEYS:
                entry = archive.getinfo(f"{key}.npy")
                with archive.open(entry) as member:
                    shape, dtype, _ = _header(member)
                    size = member.tell() + math.prod(shape) * dtype.itemsize
                if size != entry.file_size and not dtype.hasobject:
                    raise BadZipFile(f"{key} holds {entry.file_size} bytes, and {shape} of {dtype} are {size}")
                found[key] = (shape, dtype)
                other = sums.setdefault(entry.CRC, key)
                if other != key and key.endswith("images"):
                    warnings.warn(f"{path}: {other} and {key} are the same; scores of them mean little", stacklevel=2)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; expected an npz file in MedMNIST's layout") from None
    except Exception as error:  # zipfile, zlib, numpy and the tokenizer of its headers each have their own
        raise _damaged(path, error) from error
    return found


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, dtype, fortran


def read_member(path: Path, key: str) -> np.ndarray:
    """One array: mapped from the file where it is uncompressed uint8 (its checksum is verified), else read once."""
    try:
        with ZipFile(path) as archive:
            entry = archive.getinfo(f"{key}.npy")
            with archive.open(entry) as member:
                shape, dtype, fortran = _header(member)
                header_bytes = member.tell()
            if entry.compress_type != ZIP_STORED or fortran or dtype != np.uint8 or 0 in shape:
                with archive.open(entry) as member:
                    return np.lib.format.read_array(member, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(entry.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2")
            start = entry.header_offset + 30 + int(name) + int(extra)
            file.seek(start)
            crc = zlib.crc32(file.read(header_bytes))
        # Copy-on-write: a tensor may be writable while the file stays as it is.
        array = np.memmap(path, np.uint8, "c", start + header_bytes, shape)
        if zlib.crc32(array.reshape(-1).data, crc) != entry.CRC:
            raise BadZipFile(f"bad checksum of {key}")
        return array
    except MemoryError:
        raise
    except Exception as error:  # see above
        raise _damaged(path, error) from error


def inspect_npz(
    path: Path,
    official: DatasetInfo | None,
    task: str | None,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] = (),
) -> tuple[DatasetInfo, dict[str, np.ndarray]]:
    """Check the whole file but for the pixels; describe it and return the labels of the three splits."""
    headers = _headers(path)
    labels = {split: read_member(path, f"{split}_labels") for split in SPLITS}
    shape = headers["train_images"][0]
    for split in SPLITS:
        images, dtype = headers[f"{split}_images"]
        if dtype.kind not in "uif" or len(images) not in (3, 4, 5):
            raise ValueError(
                f"{path}: {split}_images is {dtype} of shape {images}; expected numbers (uint8 in MedMNIST) of shape"
                " (N, H, W), (N, H, W, C), (N, D, H, W) or (N, D, H, W, C)"
            )
        if images[1:] != shape[1:]:
            raise ValueError(f"{path}: {split}_images has shape {images}, train_images {shape}; images must be alike")
        if 0 in images:
            raise ValueError(f"{path}: {split}_images is empty, of shape {images}")
        values = labels[split]
        if values.ndim not in (1, 2) or len(values) != images[0] or values.shape[1:] != labels["train"].shape[1:]:
            raise ValueError(
                f"{path}: {split}_labels has shape {values.shape} for {images[0]} images; expected ({images[0]}, 1),"
                f" ({images[0]},) or, multi-label, ({images[0]}, L), alike in all splits"
            )
        labels[split] = whole_numbers(values, f"{path}: {split}_labels")
    columns = labels["train"].shape[1] if labels["train"].ndim == 2 else 1
    info = official or _own_info(path, shape, labels, columns, task, class_names)
    side = (info.size,) * info.spatial_dims
    wanted = side if info.num_channels == 1 else (*side, info.num_channels)
    if official and shape[1:] != wanted:
        raise ValueError(
            f"{path}: images have shape {shape[1:]}, expected {wanted} for {info.name} at size {info.size}"
        )
    if columns != (info.num_classes if info.multi_label else 1):
        raise ValueError(
            f"{path}: labels have {columns} columns, which does not fit {info.num_classes} classes ({info.task})"
        )
    top = 1 if info.multi_label else info.num_classes - 1
    for split, values in labels.items():
        if values.max() > top:
            raise ValueError(
                f"{path}: {split}_labels holds values from {values.min()} to {values.max()}, expected 0 to {top}"
            )
    check_splits(path, labels, splits, info.class_names)
    return info, labels


def _own_info(
    path: Path,
    shape: tuple[int, ...],
    labels: dict[str, np.ndarray],
    columns: int,
    task: str | None,
    class_names: Sequence[str] | None,
) -> DatasetInfo:
    has_channels = len(shape) == 5 or (len(shape) == 4 and shape[-1] in (1, 3, 4))
    spatial = shape[1:-1] if has_channels else shape[1:]
    top = columns - 1 if columns > 1 else int(max(values.max() for values in labels.values()))
    if columns == 1 and top < 1 and class_names is None:
        raise ValueError(f"{path}: all labels are 0; expected at least two classes")
    if columns == 1 and class_names is None:
        check_class_numbers(path, labels)
    names = model_classes(path, (), top, class_names)
    inferred = MULTI_LABEL if columns > 1 else "binary-class" if len(names) == 2 else "multi-class"
    if task is not None and (task == MULTI_LABEL) != (columns > 1):
        raise ValueError(f"task is {task!r}, but the labels of {path} have {columns} column(s)")
    channels = shape[-1] if has_channels else 1
    return DatasetInfo(path.stem, len(spatial), max(spatial), task or inferred, channels, len(names), names)


def to_images(array: np.ndarray, info: DatasetInfo) -> torch.Tensor:
    """``(N, *spatial)`` or ``(N, *spatial, C)`` as ``(N, C, *spatial)``, a view where PyTorch has the type: else float."""
    if array.dtype != np.uint8:
        array = array.astype(
            np.float64 if array.dtype.itemsize > 4 and array.dtype.kind == "f" else np.float32, copy=False
        )
    images = torch.from_numpy(np.asarray(array))
    return images.unsqueeze(1) if images.ndim == info.spatial_dims + 1 else images.movedim(-1, 1)


def to_labels(array: np.ndarray, info: DatasetInfo) -> torch.Tensor:
    """Labels as int64 of shape ``(N,)``, of multi-label tasks as float32 of shape ``(N, L)``."""
    if info.multi_label:
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.reshape(len(array)).astype(np.int64))
