"""A user's own images listed in a MONAI datalist (JSON)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Orientationd, Transform
from tqdm import tqdm

from monai_sre.data.class_folders import list_class_folders
from monai_sre.data.info import (
    MULTI_LABEL,
    OTHER_NAMES,
    SECTIONS,
    TASKS,
    DatasetInfo,
    check_class_numbers,
    check_splits,
    model_classes,
    whole_numbers,
)
from monai_sre.data.loaders import LabelledImages
from monai_sre.data.reader import ReadImaged
from monai_sre.data.transforms import FitSquared, ScaleToUnitd
from monai_sre.ops.arguments import listed

__all__ = ["class_titles", "datalist_info", "find_file", "load_datalist", "numbered_titles", "open_datalist"]


def find_file(name: str, folder: str | PathLike[str], endings: Sequence[str]) -> Path | None:
    """The file that a data set's name means: here, or in a folder, with an ending of its own or one of those given.

    Args:
        name: name or path of a file, or of a folder that holds a ``dataset.json``.
        folder: where a relative name is looked for after the working directory.
        endings: what is put behind a name, the first that exists is taken; a name that ends in one of them is complete.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "mine.json").touch()
        >>> find_file("mine", folder, (".npz", ".json")) == find_file("mine.json", folder, (".json",))
        True
    """
    complete = name.lower().endswith(tuple(endings))
    for base in (Path(name).expanduser(), Path(folder).expanduser() / name):
        named = [base.with_name(base.name + ending) for ending in endings] if base.name else []
        for path in [base] if complete else [*named, base / "dataset.json"]:
            if path.is_file():
                return path
    return None


def open_datalist(path: Path, sections: Sequence[str] = tuple(SECTIONS.values())) -> dict[str, Any]:
    """A datalist, whose entries in the sections named are images with labels; or that of a folder per class.

    Raises:
        ValueError: it is none, or an entry has no image or label; the message names the file.
    """
    if path.is_dir():
        return list_class_folders(path)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a readable JSON datalist: {error}; write it as UTF-8, with '/' in paths"
        ) from error
    for mistaken, meant in OTHER_NAMES.items() if isinstance(content, dict) else []:
        if mistaken in content and meant not in content:
            raise ValueError(f"{path} has a list {mistaken!r}; the name of that list is {meant!r}")
    if not isinstance(content, dict) or not isinstance(content.get("training", content.get("test")), list):
        raise ValueError(
            f"{path} is not a datalist; expected lists 'training', 'validation', 'test' of image and label"
        )
    places: dict[str, str] = {}
    shared = []
    for section in SECTIONS.values():
        if not isinstance(content.get(section, []), list | None):
            raise ValueError(f"{path}: {section!r} must be a list of images with labels, got {content[section]!r}")
        for number, entry in enumerate(content.get(section) or []):
            if isinstance(entry, dict) and isinstance(entry.get("image"), str) and "label" in entry:
                image = os.path.normpath(path.parent / entry["image"])
                if "\\" in entry["image"] and not os.path.exists(image):
                    raise ValueError(f"{path}: write the path {entry['image']!r} in {section!r} with '/'")
                if places.setdefault(image, section) != section:
                    shared.append(f"{entry['image']} in {places[image]!r} and {section!r}")
            elif section in sections:
                raise ValueError(f"{path}: {section}[{number}] is {entry!r}; expected {{'image': path, 'label': ...}}")
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        warnings.warn(
            f"{path}: the same image is in two lists, {shared[0]}{more}; scores of it mean little", stacklevel=2
        )
    return content


def _labels(path: Path, content: dict[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Class numbers, those of texts from the names, by split."""
    found: dict[str, np.ndarray] = {}
    for split, section in SECTIONS.items():
        given = [entry["label"] for entry in content.get(section) or []]
        for number, label in enumerate(given):
            if not isinstance(label, int | float | list) and label not in names:
                raise ValueError(
                    f"{path}: the label of {section}[{number}] is {label!r}; expected a whole number from 0, a list of 0 and "
                    f"1, or one of the names in 'labels', {list(names)}"
                )
        try:
            values = np.asarray([names.index(label) if isinstance(label, str) else label for label in given])
        except ValueError:
            values = np.asarray("ragged")
        if given and (values.ndim not in (1, 2) or values.size == 0 or values.dtype.kind not in "buif"):
            raise ValueError(
                f"{path}: the labels of {section!r} must be whole numbers from 0, or, multi-label, equally long lists of 0 "
                "and 1"
            )
        if given:
            values = whole_numbers(values, f"{path}: the labels of {section!r}")
            found[split] = values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values
    if not found:
        raise ValueError(f"{path} has no images in {', '.join(SECTIONS.values())}")
    if len({values.shape[1:] for values in found.values()}) != 1:
        raise ValueError(f"{path}: the labels of all sections must be alike, all numbers or lists of one length")
    return found


def _with_validation(
    content: dict[str, Any], labels: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A datalist and its labels by split; one without validation has the last tenth of each class of its training for it."""
    given = labels.get("train")
    if given is None or "val" in labels:
        return content, labels
    classes = given if given.ndim == 1 else np.zeros(len(given))
    held = np.zeros(len(given), dtype=bool)
    for number in np.unique(classes):
        places = np.flatnonzero(classes == number)
        held[places[len(places) - max(1, len(places) // 10) :]] = len(places) > 1
    if not held.any():
        return content, labels
    parts: dict[str, Any] = {"training": [], "validation": []}
    for entry, validates in zip(content["training"], held, strict=True):
        parts["validation" if validates else "training"].append(entry)
    return {**content, **parts}, {**labels, "train": given[~held], "val": given[held]}


def class_titles(path: Path, labels: Any) -> list[str]:
    """The names in a datalist's ``"labels"``, in the order of their numbers, of which none may be left out."""
    return list(numbered_titles(path, labels, gaps=False).values())


def numbered_titles(path: Path, labels: Any, gaps: bool = True) -> dict[int, str]:
    """The names in a datalist's ``"labels"`` by their numbers, in the order of these; the path is for messages."""
    if isinstance(labels, list) and len({str(name) for name in labels}) == len(labels):
        return {number: str(name) for number, name in enumerate(labels)}
    if isinstance(labels, dict):
        turned = all(isinstance(value, int) for value in labels.values())
        try:
            numbers = {int(value if turned else key): key if turned else str(value) for key, value in labels.items()}
        except (TypeError, ValueError):
            numbers = {}
        if sorted(numbers) == list(range(len(labels))) or (
            gaps and len(numbers) == len(labels) and min(numbers, default=-1) >= 0
        ):
            return dict(sorted(numbers.items()))
    raise ValueError(
        f"{path}: 'labels' is {labels!r}; expected a list of class names that differ, or {{'0': name, '1': name, ...}}"
    )


def datalist_info(
    path: str | Path,
    size: int = 28,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] = (),
    num_channels: int | None = None,
) -> DatasetInfo:
    """Describe a MONAI datalist; its first image tells dimensions and channels.

    Without ``"validation"``, of each class the last tenth of ``"training"`` validates, one image at least of two; of images
    with several labels, the last tenth of all. Optional entries of the JSON: ``"labels"``, the class names (a list, MSD's
    ``{"0": name, ...}`` or nnU-Net's ``{name: 0, ...}``), and ``"task"``.

    Args:
        path: the JSON file: lists ``training``, ``validation``, ``test`` of ``{"image": path relative to the JSON,
            "label": class number, class name, or a list of 0 and 1}``; or a folder with a folder per class, see
            :func:`monai_sre.data.class_folders.list_class_folders`.
        size: side length to which the images will be brought.
        task: overrides what the file says or the labels imply.
        class_names: those of a trained model, see :func:`monai_sre.data.load_dataset`.
        splits: see :func:`monai_sre.data.dataset_info`.
        num_channels: those of a trained model, which images are read with; None takes those of the first image.

    Raises:
        ValueError: the file, its labels or its first image are not as described, or it has a class that the model never saw.
        FileNotFoundError: the first image is missing.
    """
    return _described(Path(path), size, task, class_names, splits, num_channels)[2]


def _described(
    path: Path,
    size: int,
    task: str | None,
    class_names: Sequence[str] | None,
    splits: Sequence[str],
    num_channels: int | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray], DatasetInfo]:
    """The datalist, its labels by split, and its description."""
    content = open_datalist(path)
    own = class_titles(path, content.get("labels") or [])
    if class_names is not None and set(own) <= set(class_names) and _by_name(content):
        own = list(class_names)
    content, labels = _with_validation(content, _labels(path, content, own))
    multi = next(iter(labels.values())).ndim == 2
    largest = max(int(values.max()) for values in labels.values())
    columns = next(iter(labels.values())).shape[1] if multi else 0
    top = columns - 1 if multi else largest
    if (multi and largest > 1) or (own and len(own) <= top):
        raise ValueError(
            f"{path}: labels reach {largest}, with {columns or top + 1} classes and {len(own)} names in 'labels'"
        )
    if not (multi or own or class_names):
        check_class_numbers(path, labels)
    names = model_classes(path, own, top, class_names)
    if multi and len(names) != columns:
        raise ValueError(f"{path}: each image has {columns} labels, for {len(names)} class names")
    check_splits(path, labels, splits, names)
    inferred = MULTI_LABEL if multi else "binary-class" if len(names) == 2 else "multi-class"
    task = task or content.get("task") or inferred
    if (task == MULTI_LABEL) != multi or task not in TASKS:
        raise ValueError(f"task is {task!r}, but the labels of {path} are those of a {inferred} task")
    first = next(content[section][0]["image"] for section in SECTIONS.values() if content.get(section))
    image = ReadImaged("image", spatial_dims=None)({"image": path.parent / first})["image"]
    name = path.name if path.is_dir() else path.stem
    channels = num_channels or image.shape[0]
    return content, labels, DatasetInfo(name, image.dim() - 1, size, task, channels, len(names), names)


def _by_name(content: dict[str, Any]) -> bool:
    """Whether all labels are names of classes."""
    return all(isinstance(entry["label"], str) for section in SECTIONS.values() for entry in content.get(section) or [])


def load_datalist(
    path: str | Path,
    split: str = "train",
    size: int = 28,
    task: str | None = None,
    intensity_range: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    num_channels: int | None = None,
) -> LabelledImages:
    """Load one section of a MONAI datalist, every image brought to ``size``.

    The images are read by :class:`ReadImaged`, volumes turned to the closest RAS axes, intensities scaled by
    :class:`ScaleToUnitd` and sides by :class:`FitSquared`, as the bundles' inference does.

    Args:
        path: see :func:`datalist_info`.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: side length.
        task: see :func:`datalist_info`.
        intensity_range: see :func:`scale_to_unit`.
        class_names: see :func:`datalist_info`.
        progress: show a progress bar.
        num_channels: see :func:`datalist_info`; grey pictures that are stored in colour are one channel where one is wanted,
            and grey ones are repeated where three are.

    Raises:
        ValueError: as :func:`datalist_info`; or the section is absent; or images cannot be read, or have other
            dimensions, or colours where the first has none: one error that lists them.
    """
    path = Path(path)
    content, labels, info = _described(path, size, task, class_names, (), num_channels)
    if split not in labels:
        raise ValueError(f"{path} has no images in {SECTIONS[split]!r}, which split={split!r} needs")
    entries = content[SECTIONS[split]]
    chain: list[Transform] = [ReadImaged("image", info.spatial_dims, info.num_channels)]
    if info.spatial_dims == 3:
        chain.append(Orientationd("image", "RAS", labels=None))
    chain += [ScaleToUnitd("image", intensity_range), FitSquared("image", size)]
    images, problems = [], []
    for entry in tqdm(entries, desc=f"reading {split} images", disable=not progress, leave=False):
        item: Any = {"image": path.parent / entry["image"]}
        try:
            for step in chain:
                item = step(item)
            images.append(item["image"].as_tensor())
        except Exception as error:  # each reader and transform has its own
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"{path}: {len(problems)} of {len(entries)} images of {split!r} cannot be used: {listed(problems)}"
        )
    if any(image.dtype != torch.uint8 for image in images):
        images = [image / 255 if image.dtype == torch.uint8 else image for image in images]
    values = torch.from_numpy(labels[split])
    files = [str(path.parent / entry["image"]) for entry in entries]
    return LabelledImages(torch.stack(images), values.float() if info.multi_label else values.long(), info, files)
