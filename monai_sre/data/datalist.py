"""A user's own images: read a file with MONAI's readers, bring it to one size, load a MONAI datalist (JSON)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import NibabelReader, PILReader
from PIL import Image, ImageOps

from monai_sre.data.dataset import DatasetInfo, LabelledImages
from monai_sre.data.geometry import background_value, resize_batch
from monai_sre.data.grids import Grid

__all__ = ["datalist_info", "load_datalist", "read_image", "scale_to_unit"]

_SECTIONS = {"train": "training", "val": "validation", "test": "test"}
_NIFTI = (".nii", ".nii.gz")
_MODES = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}


def scale_to_unit(images: torch.Tensor, intensity_range: tuple[float, float] | None = None) -> torch.Tensor:
    """Intensities of any scale as float32 in 0..1.

    Args:
        images: ``(N, C, *spatial)``.
        intensity_range: the values that become 0 and 1; beyond them is clipped. None keeps floats that all lie in 0..1
            and maps each other image from its own minimum and maximum (a constant image becomes 0).

    Raises:
        ValueError: ``intensity_range`` is not increasing.

    Example:
        >>> scale_to_unit(torch.tensor([[[-1000.0, 0.0, 1000.0]]]), (-100, 100)).tolist()
        [[[0.0, 0.5, 1.0]]]
    """
    values = images.float()
    if intensity_range is not None:
        low, high = intensity_range
        if not low < high:
            raise ValueError(f"intensity_range is {intensity_range}; the first value must be below the second")
        return ((values - low) / (high - low)).clamp(0, 1)
    if images.is_floating_point() and float(values.min()) >= 0 and float(values.max()) <= 1:
        return values
    axes = tuple(range(1, images.ndim))
    low_, high_ = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    return (values - low_) / torch.where(high_ > low_, high_ - low_, torch.ones_like(low_))


def read_image(
    path: str | Path, size: int | None = None, intensity_range: tuple[float, float] | None = None
) -> torch.Tensor:
    """Read a PNG, JPEG (or other picture), NIfTI, npy or npz file (of one array) as a network's input.

    NIfTI volumes are turned to the closest RAS axes and resampled to cubic voxels, so that a rotation is a rotation in
    millimetres; axes of one voxel are dropped, so a slice of any direction becomes an image. Pictures keep rows and columns
    as displayed, turned as their EXIF orientation says; palettes and transparency become RGB.

    Args:
        path: the file.
        size: bring the longest side to this many pixels and pad the others equally on both sides with the image's
            background (median of the border). None keeps the size.
        intensity_range: see :func:`scale_to_unit`; applied to all but 8-bit data.

    Returns:
        ``(C, H, W)`` or ``(C, D, H, W)``: uint8 for 8-bit files, else float32 in 0..1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, is not an image or a volume, or holds NaN or infinite values; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a PNG, JPEG, NIfTI, npy or npz image")
    try:
        array, affine = read_array(path)
    except Exception as error:  # each reader has its own exceptions for a damaged file
        raise ValueError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from error
    if array.dtype.kind not in "buif" or array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{path} is {array.dtype} of shape {array.shape[1:]}; expected a 2-D image or a 3-D volume")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{path} holds NaN or infinite values; every pixel must be finite")
    eight_bit = array.dtype == np.uint8
    image = torch.from_numpy(np.array(array, dtype=np.uint8 if eight_bit else np.float32, order="C"))
    if not eight_bit:
        image = scale_to_unit(image[None], intensity_range)[0]
    if size is None:
        return image
    return fit_images(image[None], size, affine)[0]


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(_NIFTI)


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The array ``(C, *spatial)`` of an image file, and the affine ``(4, 4)`` of its spatial axes.

    Pictures have the columns as their first axis in space, arrays an identity affine.
    """
    if is_nifti(path):
        reader = NibabelReader(as_closest_canonical=True)
        array, meta = reader.get_data(reader.read(path))
        affine = np.asarray(meta["affine"])
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        for axis in [axis for axis in reversed(range(array.ndim)) if array.shape[axis] == 1]:
            if array.ndim > 2:
                array, affine = array.squeeze(axis), np.insert(np.delete(affine, axis, 1), 2, affine[:, axis], 1)
        return array[None], affine
    affine = np.eye(4)
    if path.suffix.lower() == ".npy":
        array = np.load(path, allow_pickle=False)
    elif path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise ValueError(f"it holds {len(archive.files)} arrays; expected one image")
            array = archive[archive.files[0]]
    else:
        picture = PILReader(converter=as_displayed, reverse_indexing=False)
        array = picture.get_data(picture.read(path))[0]
        affine = affine[:, [1, 0, 2, 3]]
    if array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4):
        return np.moveaxis(array, -1, 0), affine
    return array[None], affine


def as_displayed(picture: Image.Image, palette: bool = False) -> Image.Image:
    """A picture turned as its EXIF orientation says; palettes and transparency become RGB.

    Args:
        picture: as it was opened.
        palette: keep the entries of a palette, unless all its colours are grey, and drop a transparency that is the same
            everywhere: what masks need.

    Raises:
        ValueError: it has several pages.
    """
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format in ("TIFF", "GIF", "WEBP", "PNG"):  # the others' are previews of the first
        raise ValueError(f"it holds {pages} pages; expected one image (save volumes as NIfTI)")
    picture = ImageOps.exif_transpose(picture)
    if not palette:
        return picture.convert(_MODES[picture.mode]) if picture.mode in _MODES else picture
    if picture.mode == "P":
        red, green, blue = (np.asarray(channel) for channel in picture.convert("RGB").split())
        return picture.convert("L") if np.array_equal(red, green) and np.array_equal(red, blue) else picture
    if picture.mode in ("LA", "RGBA") and len(set(picture.getchannel("A").getextrema())) == 1:
        return picture.convert(picture.mode[:-1])
    return picture


def fit_images(images: torch.Tensor, size: int, affine: np.ndarray | None = None) -> torch.Tensor:
    """Bring the longest side of images that are alike to ``size`` and pad the others equally with each one's background.

    Args:
        images: ``(N, C, *spatial)``, uint8 or floating.
        size: side length of the squares, or cubes.
        affine: ``(4, 4)``, of their pixels, see :class:`Grid`; None is the identity.

    Returns:
        ``(N, C, size, ...)`` in the dtype of ``images``.

    Example:
        >>> fit_images(torch.tensor([[[[7, 7, 9, 9]]]], dtype=torch.uint8), 2)[0, 0].tolist()
        [[7, 9], [7, 9]]
    """
    inner = Grid(tuple(images.shape[2:]), np.eye(4) if affine is None else affine).inscribed(size)
    x = resize_batch(images.float(), inner)
    if any(side != size for side in inner):
        fill = background_value(x)
        x = F.pad(x - fill, [(size - side) // 2 for side in reversed(inner) for _ in range(2)]) + fill
    if images.is_floating_point():
        return x
    # The halves that interpolation makes must not be rounded by the last bit of a float, or a turned image differs.
    return (x + 1e-3).round().clamp(0, 255).to(images.dtype)


def _open(path: Path, sections: Sequence[str] = tuple(_SECTIONS.values())) -> dict[str, Any]:
    """A datalist, whose entries in the sections named are images with labels."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable JSON datalist: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("training", content.get("test")), list):
        raise ValueError(
            f"{path} is not a datalist; expected lists 'training', 'validation', 'test' of image and label"
        )
    for section in sections:
        for number, entry in enumerate(content.get(section) or []):
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or "label" not in entry:
                raise ValueError(f"{path}: {section}[{number}] is {entry!r}; expected {{'image': path, 'label': ...}}")
    return content


def _labels(path: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for split, section in _SECTIONS.items():
        if content.get(section):
            try:
                values = np.asarray([entry["label"] for entry in content[section]])
            except ValueError:
                values = np.asarray("ragged")
            if values.dtype.kind not in "ui" or values.ndim not in (1, 2) or values.min() < 0:
                raise ValueError(
                    f"{path}: the labels of {section!r} must be whole numbers from 0, or, multi-label, equally long"
                    " lists of 0 and 1"
                )
            found[split] = values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values
    if len({values.shape[1:] for values in found.values()}) != 1:
        raise ValueError(f"{path}: the labels of all sections must be alike, all numbers or lists of one length")
    return found


def _class_names(path: Path, labels: Any) -> list[str]:
    if isinstance(labels, list):
        return [str(name) for name in labels]
    if isinstance(labels, dict):
        turned = all(isinstance(value, int) for value in labels.values())
        try:
            numbers = {int(value if turned else key): key if turned else str(value) for key, value in labels.items()}
        except ValueError:
            numbers = {}
        if sorted(numbers) == list(range(len(labels))):
            return [numbers[number] for number in range(len(labels))]
    raise ValueError(
        f"{path}: 'labels' is {labels!r}; expected a list of class names, or {{'0': name, '1': name, ...}}"
    )


def datalist_info(path: str | Path, size: int = 28, task: str | None = None) -> DatasetInfo:
    """Describe a MONAI datalist; its first image tells dimensions and channels.

    Optional entries of the JSON: ``"labels"``, the class names (a list, MSD's ``{"0": name, ...}`` or nnU-Net's ``{name: 0,
    ...}``), and ``"task"``.

    Args:
        path: the JSON file: lists ``training``, ``validation``, ``test`` of ``{"image": path relative to the JSON,
            "label": class number, or a list of 0 and 1}``.
        size: side length to which the images will be brought.
        task: overrides what the file says or the labels imply.

    Raises:
        ValueError: the file, its labels or its first image are not as described.
        FileNotFoundError: the first image is missing.
    """
    path = Path(path)
    content = _open(path)
    labels = _labels(path, content)
    multi = next(iter(labels.values())).ndim == 2
    names = _class_names(path, content.get("labels") or [])
    top = max(int(values.max()) for values in labels.values())
    classes = next(iter(labels.values())).shape[1] if multi else max(top + 1, len(names), 2)
    if (multi and top > 1) or (names and len(names) != classes):
        raise ValueError(f"{path}: labels reach {top}, with {classes} classes and {len(names)} names in 'labels'")
    inferred = "multi-label, binary-class" if multi else "binary-class" if classes == 2 else "multi-class"
    task = task or content.get("task") or inferred
    if (task == inferred == "multi-label, binary-class") != multi or (not multi and task.startswith("multi-label")):
        raise ValueError(f"task is {task!r}, but the labels of {path} are those of a {inferred} task")
    first = next(content[section][0]["image"] for section in _SECTIONS.values() if content.get(section))
    image = read_image(path.parent / first)
    return DatasetInfo(
        path.stem, image.ndim - 1, size, task, image.shape[0], classes, tuple(names or map(str, range(classes)))
    )


def load_datalist(
    path: str | Path,
    split: str = "train",
    size: int = 28,
    task: str | None = None,
    intensity_range: tuple[float, float] | None = None,
    transform: Callable | None = None,
    progress: bool = True,
) -> LabelledImages:
    """Load one section of a MONAI datalist, every image brought to ``size`` (see :func:`read_image`).

    Args:
        path: see :func:`datalist_info`.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: side length.
        task: see :func:`datalist_info`.
        intensity_range: see :func:`scale_to_unit`.
        transform: see :class:`LabelledImages`.
        progress: show a progress bar.

    Raises:
        ValueError: as :func:`datalist_info`; or the section is absent; or images cannot be read or differ in
            dimensions or channels: one error that lists them.
    """
    path = Path(path)
    content, info = _open(path), datalist_info(path, size, task)
    entries = content.get(_SECTIONS[split])
    if not entries:
        raise ValueError(f"{path} has no images in {_SECTIONS[split]!r}, which split={split!r} needs")
    images, problems = [], []
    for entry in _progress(entries, split, progress):
        try:
            image = read_image(path.parent / entry["image"], size, intensity_range)
            if image.ndim - 1 != info.spatial_dims or image.shape[0] != info.num_channels:
                raise ValueError(f"{entry['image']} has shape {tuple(image.shape)}, unlike the first image")
            images.append(image)
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path}: {len(problems)} of {len(entries)} images of {split!r} cannot be used: {listed}")
    if any(image.dtype != torch.uint8 for image in images):
        images = [image / 255 if image.dtype == torch.uint8 else image for image in images]
    values = torch.from_numpy(_labels(path, content)[split])
    return LabelledImages(torch.stack(images), values.float() if info.multi_label else values.long(), info, transform)


def _progress(entries: list, split: str, show: bool) -> Any:
    from tqdm import tqdm

    return tqdm(entries, desc=f"reading {split} images", disable=not show, leave=False)
