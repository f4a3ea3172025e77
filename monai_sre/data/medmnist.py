"""MedMNIST v2: the table of its data sets, and finding, downloading and verifying their files."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from monai.apps.utils import download_url

from monai_sre.data.info import DatasetInfo

__all__ = ["MEDMNIST_SIZES", "medmnist_flags", "obtain", "official_info", "official_path"]

#: Side lengths in which MedMNIST publishes its 2-D and 3-D sets.
MEDMNIST_SIZES = {2: (28, 64, 128, 224), 3: (28, 64)}
_FLAGS = (
    "pathmnist chestmnist dermamnist octmnist pneumoniamnist retinamnist breastmnist bloodmnist tissuemnist organamnist "
    "organcmnist organsmnist organmnist3d nodulemnist3d adrenalmnist3d fracturemnist3d vesselmnist3d synapsemnist3d"
)


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

    Example:
        >>> flags = medmnist_flags()
        >>> len(flags), sum(flag.endswith("3d") for flag in flags), flags[0]
        (18, 6, 'pathmnist')
    """
    return tuple(_FLAGS.split())


def _suffix(size: int) -> str:
    return "" if size == 28 else f"_{size}"


def official_path(flag: str, folder: str | os.PathLike[str], size: int) -> Path:
    """Where the file of a flag lies, or is downloaded to."""
    return Path(folder).expanduser() / f"{flag}{_suffix(size)}.npz"


def official_info(flag: str, size: int) -> DatasetInfo:
    """Describe the data set of a flag.

    Raises:
        ImportError: the package medmnist is not installed.
        ValueError: the size is none that is published.
    """
    entry = _medmnist_table()[flag]
    dims = 3 if flag.endswith("3d") else 2
    if size not in MEDMNIST_SIZES[dims]:
        raise ValueError(f"size of {flag} must be one of {MEDMNIST_SIZES[dims]}, got {size}")
    names = tuple(entry["label"][str(i)] for i in range(len(entry["label"])))
    return DatasetInfo(flag, dims, size, entry["task"], entry["n_channels"], len(names), names)


def obtain(flag: str, size: int, path: Path, download: bool, check_md5: bool, progress: bool) -> None:
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
