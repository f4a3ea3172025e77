"""MedMNIST v2 files and a user's own data: find, download, verify, open; `load_dataset` is the one entry point."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.apps.utils import download_url

from monai_sre.data.datalist import datalist_info, fit_images, load_datalist, scale_to_unit
from monai_sre.data.dataset import DatasetInfo, LabelledImages
from monai_sre.data.demo import DEMO_NAMES, demo_arrays, demo_info
from monai_sre.data.npz import SPLITS, inspect_npz, read_member, to_images, to_labels

__all__ = ["MEDMNIST_SIZES", "SPLITS", "dataset_info", "load_dataset", "medmnist_flags"]

#: Side lengths in which MedMNIST publishes its 2-D and 3-D sets.
MEDMNIST_SIZES = {2: (28, 64, 128, 224), 3: (28, 64)}
PathLike = str | os.PathLike


def _medmnist_table() -> dict[str, dict[str, Any]]:
    try:
        from medmnist.info import INFO
    except ImportError as error:
        raise ImportError(
            "MedMNIST's table of data sets is not installed: run `pip install --no-deps medmnist==3.0.2`"
            " (--no-deps: torchvision, which it declares, is not needed here)"
        ) from error
    return INFO


def medmnist_flags() -> tuple[str, ...]:
    """List the names of the 18 MedMNIST v2 data sets; those that end in ``3d`` are volumes.

    Raises:
        ImportError: the package medmnist is not installed.

    Example:
        >>> flags = medmnist_flags()
        >>> len(flags), sum(flag.endswith("3d") for flag in flags), flags[0]
        (18, 6, 'pathmnist')
    """
    return tuple(_medmnist_table())


def dataset_info(
    dataset_name: str, dataset_dir: PathLike = ".", size: int = 28, *, task: str | None = None
) -> DatasetInfo:
    """Describe any data set that :func:`load_dataset` takes: channels, classes, task.

    A MedMNIST flag or a demo needs no file for this; a user's own data are opened (headers and labels only).

    Args:
        dataset_name: see :func:`load_dataset`.
        dataset_dir: folder of the data.
        size: side length asked for.
        task: task of a user's own data, where the labels do not tell it; see :func:`load_dataset`.

    Raises:
        ValueError: unknown name, size or task, or a damaged or wrongly shaped file.
        FileNotFoundError: the named file is missing.

    Example:
        >>> info = dataset_info("bloodmnist", size=64)
        >>> info.task, info.num_channels, info.num_classes, info.class_names[:2]
        ('multi-class', 3, 8, ('basophil', 'eosinophil'))
    """
    kind, path = _resolve(dataset_name, dataset_dir, size)
    if kind == "medmnist":
        return _official_info(dataset_name, size)
    if kind == "demo":
        return demo_info(dataset_name, size)
    assert path is not None
    return datalist_info(path, size, task) if kind == "json" else inspect_npz(path, None, task)[0]


def load_dataset(
    dataset_name: str,
    dataset_dir: PathLike = ".",
    split: str = "train",
    size: int = 28,
    download: bool = True,
    *,
    check_md5: bool = True,
    task: str | None = None,
    intensity_range: tuple[float, float] | None = None,
    transform: Callable | None = None,
    progress: bool = True,
) -> LabelledImages:
    """Open one split of a data set as tensors, checked before any training time is spent.

    Args:
        dataset_name: one of

            * a MedMNIST v2 flag such as ``"breastmnist"``: ``{flag}.npz`` (28) or ``{flag}_{size}.npz`` is looked for
              in ``dataset_dir``, else downloaded to it;
            * the name or path of an npz file in MedMNIST's layout: ``{train,val,test}_images`` of shape
              ``(N, *spatial)`` or ``(N, *spatial, C)`` with C of 1, 3 or 4, and ``{train,val,test}_labels`` of shape
              ``(N,)``, ``(N, 1)`` or, multi-label, ``(N, L)``;
            * the name or path of a MONAI datalist (JSON), or of a folder that holds a ``dataset.json``;
            * ``"demo_2d"`` or ``"demo_3d"``: real image patches that need no download.
        dataset_dir: folder of the data; a relative file name is looked for here after the working directory.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: side length: of the MedMNIST edition, of the demo patches, or to which the images of a datalist are
            brought. A user's npz keeps its own size; images that are not square are padded to squares with their background.
        download: fetch a missing MedMNIST file (with a progress bar; only on rank 0 of a distributed run).
        check_md5: refuse a file under an official name whose MD5 is not the official one. False accepts a modified
            file, which must still have the right layout. Hashing costs about 2 s per GB, once per process.
        task: task of a user's own data; None infers it from the labels, which tell all but ``"ordinal-regression"``.
        intensity_range: for a user's own data that are not uint8: the values that become 0 and 1 (clipped beyond).
            None keeps floats that lie in 0..1 and maps other images each from its own minimum and maximum.
        transform: applied per item when the data set is indexed; batches from ``BatchLoader`` have their own.
        progress: show progress bars.

    Returns:
        Images of shape ``(N, C, *spatial)``, uint8 (or float32 in 0..1 for data that were not uint8), and labels, int64
        of shape ``(N,)`` or float32 of shape ``(N, L)``. Uncompressed uint8 members of an npz are mapped, not read.

    Raises:
        ValueError: unknown name, split, size or task; a damaged (truncated, bad zip, bad MD5) or wrongly shaped file.
        FileNotFoundError: the file is missing and is not to be, or cannot be, downloaded.
        RuntimeError: the download failed.
        ImportError: a MedMNIST flag is asked for and medmnist is not installed.

    Example:
        >>> data = load_dataset("demo_2d", split="val")
        >>> data.images.shape[1:], data.images.dtype, data.info.num_classes
        (torch.Size([1, 28, 28]), torch.uint8, 6)
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    kind, path = _resolve(dataset_name, dataset_dir, size)
    if kind == "demo":
        arrays, info = demo_arrays(dataset_name, size), demo_info(dataset_name, size)
        return LabelledImages(
            to_images(arrays[f"{split}_images"], info), to_labels(arrays[f"{split}_labels"], info), info, transform
        )
    assert path is not None
    if kind == "json":
        return load_datalist(path, split, size, task, intensity_range, transform, progress)
    official = None
    if kind == "medmnist":
        official = _official_info(dataset_name, size)
        _obtain(dataset_name, size, path, download, check_md5, progress)
    info, labels = inspect_npz(path, official, task)
    array = read_member(path, f"{split}_images")
    images = to_images(array, info)
    if images.dtype != torch.uint8:
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"{path}: {split}_images holds NaN or infinite values; every pixel must be finite")
        images = scale_to_unit(images, intensity_range)
    if len(set(images.shape[2:])) > 1:
        images = torch.cat([fit_images(part, info.size) for part in images.split(256)])
    return LabelledImages(images, to_labels(labels[split], info), info, transform)


def _resolve(name: str, folder: PathLike, size: int) -> tuple[str, Path | None]:
    """Which kind of data set a name means (``"demo"``, ``"medmnist"``, ``"npz"``, ``"json"``), and its file."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"dataset_name is {name!r}; it must be a non-empty string")
    if name in DEMO_NAMES:
        return "demo", None
    user_file = name.endswith((".npz", ".json"))
    flags = () if user_file else medmnist_flags()
    if name in flags:
        return "medmnist", Path(folder).expanduser() / f"{name}{_suffix(size)}.npz"
    for base in (Path(name).expanduser(), Path(folder).expanduser() / name):
        named = [base.with_name(base.name + ending) for ending in (f"_{size}.npz", ".npz", ".json")]
        for path in [base] if user_file else [*named, base / "dataset.json"]:
            if path.is_file():
                return path.suffix[1:], path
    if user_file:
        raise FileNotFoundError(f"dataset_name is {name!r}, and there is no such file here or in {Path(folder)}")
    known = (*DEMO_NAMES, *flags)
    close = difflib.get_close_matches(name, known, 1)
    raise ValueError(
        f"dataset_name is {name!r}{f' (did you mean {close[0]!r}?)' if close else ''}; it must be one of"
        f" {', '.join(known)}, or an npz file or JSON datalist, here or in {Path(folder)}"
    )


def _suffix(size: int) -> str:
    return "" if size == 28 else f"_{size}"


def _official_info(flag: str, size: int) -> DatasetInfo:
    entry = _medmnist_table()[flag]
    dims = 3 if flag.endswith("3d") else 2
    if size not in MEDMNIST_SIZES[dims]:
        raise ValueError(f"size is {size}; {flag} is published in sizes {MEDMNIST_SIZES[dims]}")
    names = tuple(entry["label"][str(i)] for i in range(len(entry["label"])))
    return DatasetInfo(flag, dims, size, entry["task"], entry["n_channels"], len(names), names)


# --- finding and downloading ---------------------------------------------------------------------------------------


def _obtain(flag: str, size: int, path: Path, download: bool, check_md5: bool, progress: bool) -> None:
    """See to it that an official file is there and is the official one."""
    entry = _medmnist_table()[flag]
    url, md5 = entry[f"url{_suffix(size)}"], entry[f"MD5{_suffix(size)}"]
    advice = f"download {url} (MD5 {md5}) elsewhere and save it as {path}"
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and download:
        outcome: list[Exception | None] = [None]
        if dist.get_rank() == 0 and not path.is_file():
            try:
                _download(url, md5, path, advice, progress)
            except RuntimeError as error:
                outcome[0] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[0] is not None:
            raise outcome[0]
    if not path.is_file():
        if not download:
            raise FileNotFoundError(f"{path} is missing and download=False: set download=True, or {advice}")
        _download(url, md5, path, advice, progress)
    if check_md5:
        stat = path.stat()
        found = _md5(str(path), stat.st_size, stat.st_mtime_ns)
        if found != md5:
            raise ValueError(
                f"{path} is damaged or not the official file: its MD5 is {found}, expected {md5}. Delete it and run"
                f" again to download it, or {advice}; check_md5=False accepts a file that you changed on purpose"
            )


def _download(url: str, md5: str, path: Path, advice: str, progress: bool) -> None:
    # Beside the target, then renamed: an interrupted download never leaves a file under the final name.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, part, hash_val=md5, hash_type="md5", progress=progress)
        os.replace(part, path)
    except Exception as error:
        raise RuntimeError(
            f"could not download {path.name}: {type(error).__name__}: {error}. Without a network, {advice}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def _md5(path: str, size: int, modified: int) -> str:
    """MD5 of a file; size and time of change are part of the cache's key, so a replaced file is read again."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
