"""Data sets by name: MedMNIST flags, a user's own npz files and datalists, and the embedded demo."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from monai_sre.data.datalist import datalist_info, find_file, load_datalist
from monai_sre.data.demo import DEMO_NAMES, demo_arrays, demo_info
from monai_sre.data.info import SPLITS, DatasetInfo, model_classes
from monai_sre.data.loaders import LabelledImages, training_subset
from monai_sre.data.medmnist import medmnist_flags, obtain, official_info, official_path
from monai_sre.data.npz import inspect_npz, read_member, to_images, to_labels
from monai_sre.data.transforms import check_intensity_range, fit_images, scale_to_unit, unscaled_mask

__all__ = ["dataset_info", "load_dataset"]

PathLike = str | os.PathLike[str]


def dataset_info(
    dataset_name: str,
    dataset_dir: PathLike = ".",
    size: int = 28,
    *,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] = (),
    spatial_dims: int | None = None,
    num_channels: int | None = None,
) -> DatasetInfo:
    """Describe any data set that :func:`load_dataset` takes: channels, classes, task.

    A MedMNIST flag or a demo needs no file for this; a user's own data are opened (headers and labels only).

    Args:
        dataset_name: see :func:`load_dataset`.
        dataset_dir: folder of the data.
        size: side length asked for.
        task: task of a user's own data, where the labels do not tell it; see :func:`load_dataset`.
        class_names: those of a trained model, see :func:`load_dataset`.
        splits: those that will be needed of a user's own data, such as ``("train", "val")``; before a training, each must
            hold images of two classes at least.
        spatial_dims: 2 or 3: data of other axes are refused; None takes both.
        num_channels: those of a trained model, see :func:`load_dataset`.

    Raises:
        ValueError: unknown name, size or task, a damaged or wrongly shaped file, a class that the model never saw, other axes
            or channels than asked for, or a split that is absent or cannot be trained on.
        FileNotFoundError: the named file is missing.

    Example:
        >>> info = dataset_info("bloodmnist", size=64)
        >>> info.task, info.num_channels, info.num_classes, info.class_names[:2]
        ('multi-class', 3, 8, ('basophil', 'eosinophil'))
    """
    kind, path = _resolve(dataset_name, dataset_dir, size)
    if path is None or kind == "medmnist":
        info = demo_info(dataset_name, size) if path is None else official_info(dataset_name, size)
        names = model_classes(dataset_name, info.class_names, -1, class_names)
        info = replace(info, num_classes=len(names), class_names=names)
    elif kind == "json":
        info = datalist_info(path, size, task, class_names, splits, num_channels)
    else:
        info = inspect_npz(path, None, task, class_names, splits)[0]
    if spatial_dims not in (None, info.spatial_dims):
        held, wanted = ("volumes", "images") if info.spatial_dims == 3 else ("images", "volumes")
        other = "" if held == "volumes" else ", or save each series of DICOM as a NIfTI file"
        raise ValueError(
            f"dataset_name={dataset_name!r} holds {held}, where {wanted} are wanted: take the bundle for {held}{other}"
        )
    _check_channels(info, num_channels)
    return info


def _check_channels(info: DatasetInfo, num_channels: int | None) -> None:
    if num_channels not in (None, info.num_channels):
        raise ValueError(
            f"images of data set {info.name!r} have {info.num_channels} channels, and the model takes {num_channels}"
        )


def load_dataset(
    dataset_name: str,
    dataset_dir: PathLike = ".",
    split: str = "train",
    size: int = 28,
    download: bool = True,
    *,
    check_md5: bool = True,
    task: str | None = None,
    intensity_range: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    num_train: int | None = None,
    seed: int = 0,
    num_channels: int | None = None,
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
            * the name or path of a folder with a folder per class: ``CLASS/image``, of which the last fifth in the order of
              names tests and the tenth before it validates, or ``train/CLASS/image`` and likewise ``val``, ``test``;
            * ``"demo_2d"`` or ``"demo_3d"``: real image patches that need no download.
        dataset_dir: folder of the data; a relative file name is looked for here after the working directory.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: side length: of the MedMNIST edition, of the demo patches, or to which the images of a datalist are
            brought. A user's npz keeps its own size; images that are not square are padded to squares with their background.
        download: fetch a missing MedMNIST file (with a progress bar; only on rank 0 of a distributed run).
        check_md5: refuse a file under an official name whose MD5 is not the official one. False accepts a modified
            file, which must still have the right layout. It is read for that once per process.
        task: task of a user's own data; None infers it from the labels, which tell all but ``"ordinal-regression"``.
        intensity_range: for a user's own data that are not uint8: the values that become 0 and 1 (clipped beyond).
            None keeps floats that lie in 0..1 and maps other images each from its own minimum and maximum.
        class_names: those of a trained model that is to be evaluated; None takes them from the data. Data that lack some
            of its classes are taken, those with a class that it never saw, or with its classes in another order, refused.
        progress: show progress bars.
        num_train: take so many images of the training set alone, the classes in their shares and each at least once; of two
            numbers the smaller one's images are among the greater one's. None takes all.
        seed: of that choice.
        num_channels: those of a trained model that is to be evaluated; None takes them from the data. Grey pictures that are
            stored in colour are read as one channel, and the reverse; other data must have as many.

    Returns:
        Images of shape ``(N, C, *spatial)``, uint8 (or float32 in 0..1 for data that were not uint8), and labels, int64
        of shape ``(N,)`` or float32 of shape ``(N, L)``. Uncompressed uint8 members of an npz are mapped, not read.

    Raises:
        ValueError: unknown name, split, size, task or range; a damaged (truncated, bad zip, bad MD5) or wrongly shaped
            file; a class that the model never saw, or other channels than it takes.
        FileNotFoundError: the file is missing and is not to be, or cannot be, downloaded.
        RuntimeError: the download failed.
        MemoryError: the images do not fit into memory; the message names the file.
        ImportError: a MedMNIST flag is asked for and medmnist is not installed.

    Example:
        >>> data = load_dataset("demo_2d", split="val")
        >>> data.images.shape[1:], data.images.dtype, data.info.num_classes
        (torch.Size([1, 28, 28]), torch.uint8, 6)
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if intensity_range is not None:
        check_intensity_range(intensity_range)
    kind, path = _resolve(dataset_name, dataset_dir, size)
    if kind == "json":
        assert path is not None
        found = load_datalist(path, split, size, task, intensity_range, class_names, progress, num_channels)
    else:
        if kind == "npz":
            assert path is not None
            info, labels = inspect_npz(path, None, task, class_names)
        else:
            info = dataset_info(dataset_name, dataset_dir, size, class_names=class_names)
        _check_channels(info, num_channels)
        if path is None:
            arrays = demo_arrays(dataset_name, size)
            images, labels = to_images(arrays[f"{split}_images"], info), {split: arrays[f"{split}_labels"]}
        else:
            if kind == "medmnist":
                obtain(dataset_name, size, path, download, check_md5, progress)
                labels = inspect_npz(path, info, task)[1]
            images = _read_images(path, split, info, intensity_range)
        found = LabelledImages(images, to_labels(labels[split], info), info)
    if split != "train" or num_train is None:
        return found
    chosen = torch.from_numpy(training_subset(found.labels.numpy(), num_train, seed))
    files = [found.files[number] for number in chosen] if found.files else ()
    return LabelledImages(found.images[chosen], found.labels[chosen], found.info, files)


def _read_images(path: Path, split: str, info: DatasetInfo, intensity_range: Sequence[float] | None) -> torch.Tensor:
    """The images of an npz file, scaled to 0..1 where they were not uint8, and cubes or squares."""
    try:
        images = to_images(read_member(path, f"{split}_images"), info)
    except MemoryError as error:
        raise MemoryError(f"{path}: {split}_images do not fit into memory: {error}") from error
    if images.dtype != torch.uint8:
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"{path}: {split}_images holds NaN or infinite values; every pixel must be finite")
        if not bool(torch.isfinite(images.float()).all()):
            raise ValueError(f"{path}: {split}_images holds values beyond those of float32")
        images = scale_to_unit(images, intensity_range)
    else:
        images = unscaled_mask(images)
    if len(set(images.shape[2:])) > 1:
        images = torch.cat([fit_images(part, info.size) for part in images.split(256)])
    return images


def _resolve(name: str, folder: PathLike, size: int) -> tuple[str, Path | None]:
    """Which kind of data set a name means (``"demo"``, ``"medmnist"``, ``"npz"``, ``"json"``), and its file."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"dataset_name must be a non-empty string, got {name!r}")
    if name in DEMO_NAMES:
        return "demo", None
    flags = medmnist_flags()
    if name in flags:
        return "medmnist", official_path(name, folder, size)
    path = find_file(name, folder, (f"_{size}.npz", ".npz", ".json"))
    if path is not None:
        return path.suffix[1:].lower(), path
    for base in (Path(name).expanduser(), Path(folder).expanduser() / name):
        if base.is_dir():
            return "json", base
    if name.lower().endswith((".npz", ".json")):
        raise FileNotFoundError(f"dataset_name is {name!r}, and there is no such file here or in {Path(folder)}")
    known = (*DEMO_NAMES, *flags)
    close = difflib.get_close_matches(name, known, 1)
    raise ValueError(
        f"dataset_name is {name!r}{f' (did you mean {close[0]!r}?)' if close else ''}; it must be one of"
        f" {', '.join(known)}, or an npz file, JSON datalist or folder of classes, here or in {Path(folder)}"
    )
