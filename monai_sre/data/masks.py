"""Masks: values of files to class numbers, and the field of view of a fundus camera."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from PIL import ExifTags, Image
from scipy import ndimage
from torch import Tensor

from monai_sre.data.dicom import is_dicom
from monai_sre.data.reader import PICTURE_ENDINGS, is_array, is_nifti, own_affine
from monai_sre.data.transforms import file_of, keep_meta

__all__ = ["ClassMapd", "FieldOfViewd", "IgnoreOutsided", "NormalizeFieldd"]

_LOGGER = logging.getLogger(__name__)
#: Share of the foreground that may lie outside of a field of view.
_OUTSIDE = 0.05
#: Endings of pictures that blur their pixels; others keep them as they are.
_BLURRED = (".jpg", ".jpeg", ".webp")
#: How many times as many pixels have the value inside of a smoothed mask as any between that and 0; else they are classes.
_SOLID = 4
#: Values of a mask that is all foreground.
_FOREGROUND = (1, 255, 65535)


# Class maps -----------------------------------------------------------------------------------------------------------


def check_label_values(values: Sequence[int], num_classes: int | None) -> tuple[int, ...]:
    """The value of each class in class maps as files hold them, the background's first.

    Raises:
        ValueError: there is not one whole number per class, each another.

    Example:
        >>> check_label_values([0, 1, 3], 3)
        (0, 1, 3)
    """
    whole = isinstance(values, Sequence) and all(isinstance(value, (int, float)) and value % 1 == 0 for value in values)
    if not whole or len(values) != num_classes or len(set(values)) < len(values):
        raise ValueError(f"label_values must be {num_classes} whole numbers that differ, got {values!r}")
    return tuple(int(value) for value in values)


class ClassMapd(MapTransform):
    """Masks as files hold them to class numbers, shape ``(1, *spatial)``, float32.

    With two classes the background is 0 and the foreground any other value (1, 255, grey or RGB). A picture whose edges are
    smoothed, as JPEG leaves them, is split at half of its largest value; one of many objects with a value each is refused.
    With more classes, the values are the class numbers, unless ``values`` says which value each class has. What is within
    0.001 of a whole number is rounded, as writers that scale what they store leave it. The mask has the affine of its image:
    where a file has no place in space, as an array has none, its voxels are those of the other. A picture and its mask that
    are turned by different EXIF orientations are logged as a warning.

    Args:
        keys: of the masks, shape ``(C, *spatial)``.
        image_key: of the image that a mask must cover.
        num_classes: number of classes, the background included; None: any whole numbers from 0 are taken, and stay.
        values: those of the classes in the masks, the background's first, such as ``(0, 1, 3)``; None: as above.

    Raises:
        ValueError: there is not one whole number per class, each another; a mask differs from its image in shape or, where
            both are NIfTI or DICOM, in its place in space, has channels that differ, values that are no class, or, of two
            classes, another background than 0; the message names the file.

    Example:
        >>> mask = torch.tensor([[[0.0, 255.0, 255.0]]])
        >>> ClassMapd("label", "image", 2)({"image": torch.zeros(3, 1, 3), "label": mask})["label"].tolist()
        [[[0.0, 1.0, 1.0]]]
    """

    def __init__(
        self, keys: KeysCollection, image_key: str, num_classes: int | None, values: Sequence[int] | None = None
    ) -> None:
        super().__init__(keys)
        self.image_key, self.num_classes = image_key, num_classes
        self.values = None if values is None else check_label_values(values, num_classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        for key in self.key_iterator(d):
            mask, name = d[key], file_of(d[key], key)
            if not bool(mask.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinite values; expected class numbers")
            if not bool((mask == mask[:1]).all()):
                raise ValueError(
                    f"{name} has {mask.shape[0]} channels that differ; expected one map of class numbers (of one-hot "
                    "channels, save the number of the largest)"
                )
            turned = _turned_apart(file_of(image, self.image_key), name)
            if mask.shape[1:] != image.shape[1:]:
                shapes = f"shape {tuple(mask.shape[1:])} and its image {tuple(image.shape[1:])}"
                raise ValueError(f"{name} has {shapes}; they must be alike{turned}")
            if turned:
                _LOGGER.warning(
                    "%s%s; if it was not drawn on the picture as displayed, remove the orientation", name, turned
                )
            mask = _in_place(image, mask[:1].float(), name)
            if bool(((mask - mask.round()).abs() <= 1e-3).all()):  # as a writer that scales what it stores leaves them
                mask = mask.round()
            if self.values is not None:
                mask = _numbered(mask, self.values, name)
            elif self.num_classes == 2:
                mask = _two_classes(mask, name)
            top = math.inf if self.num_classes is None else self.num_classes - 1
            wrong = mask[(mask != mask.round()) | (mask < 0) | (mask > top)]
            if len(wrong):
                last = "" if self.num_classes is None else f" to {top}"
                raise ValueError(f"{name} holds {float(wrong[0]):.9g}, which is no class number from 0{last}")
            d[key] = mask
        return d


def _turned_apart(image: str, mask: str) -> str:
    """What to add to a message where an image and its mask are turned by different EXIF orientations."""
    found = []
    for name in (image, mask):
        try:
            with Image.open(name) as picture:
                found.append(picture.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # no picture, or none that Pillow opens
            found.append(1)
    if found[0] == found[1]:
        return ""
    return f": the EXIF orientation of the image is {found[0]}, that of the mask {found[1]}"


def _numbered(mask: Tensor, values: Sequence[int], name: str) -> Tensor:
    """The place of each value among those of the classes."""
    numbers = torch.full_like(mask, -1)
    for number, value in enumerate(values):
        numbers[mask == value] = number
    wrong = mask[numbers < 0]
    if len(wrong):
        raise ValueError(f"{name} holds {float(wrong[0]):.9g}, which is none of label_values={list(values)}")
    return numbers


def _two_classes(mask: Tensor, name: str) -> Tensor:
    values, counts = torch.unique(mask, return_counts=True)
    blurred = name.lower().endswith(_BLURRED)
    exact = name.lower().endswith(PICTURE_ENDINGS) and not blurred
    numbers = is_array(name) or _has_place(name)  # nobody smooths them
    classes = float(values[-1]) < 128 or numbers or (len(values) <= 4 and exact)
    if not blurred and len(values) > 4:  # edges that are smoothed have many values of few pixels each
        classes |= bool(counts[-1] < _SOLID * counts[1:-1].max())
    if len(values) == 1 and float(values) in _FOREGROUND:
        return torch.ones_like(mask)
    if len(values) <= 2 and float(values[0]) != 0 and not blurred:
        shown = " and ".join(f"{value:g}" for value in values.tolist())
        raise ValueError(f"{name} holds {shown}; the background of a mask of two classes is 0")
    if len(values) > 2 and classes:
        shown = ", ".join(f"{value:g}" for value in values[:5].tolist()) + (", ..." if len(values) > 5 else "")
        raise ValueError(
            f"{name} holds {len(values)} values ({shown}); a mask of two classes holds two: 0 and one for all objects"
        )
    middle = values.mean() if len(values) == 2 else values[-1] / 2
    return (mask > middle).float()


def _has_place(name: str) -> bool:
    """Whether a file says where its voxels lie in space."""
    return is_nifti(name) or is_dicom(Path(name))


def _in_place(image: Tensor, mask: Tensor, name: str) -> Tensor:
    """The mask with the affine of its image; refused where both files have a place, and its corners lie elsewhere.

    They may be off by a tenth of a voxel. Of two files without a common place, an array and a NIfTI, the voxels are the same.
    """
    if not (isinstance(image, MetaTensor) and isinstance(mask, MetaTensor)):
        return mask
    source = file_of(image, "")
    ours, theirs = (torch.from_numpy(own_affine(item)) for item in (image, mask))
    if _has_place(source) and _has_place(name):
        ends = [(0.0, float(length - 1)) for length in image.shape[1:]]
        flat = [0.0] * (len(ours) - 1 - len(ends))  # images lie in the first plane of their space
        corners = torch.tensor([[*corner, *flat, 1.0] for corner in itertools.product(*ends)], dtype=torch.float64)
        away = ((theirs - ours) @ corners.T)[:-1].norm(dim=0).max()
        if away > 0.1 * ours[:-1, :-1].norm(dim=0).min():
            raise ValueError(
                f"{name} lies elsewhere in space than its image {source}: affines {theirs.tolist()} and {ours.tolist()}; "
                "save the mask with the affine of its image"
            )
    mask.affine, mask.meta["original_affine"] = image.affine, ours.numpy()
    return mask


# Field of view --------------------------------------------------------------------------------------------------------


class FieldOfViewd(MapTransform):
    """Add the field of view of a fundus camera, the bright disc in a dark frame, as a mask of 0 and 1, ``(1, *spatial)``.

    It is the largest connected region, holes filled, where the brightest channel exceeds ``threshold`` times the 99th
    percentile of its values. An image with negative values is no photograph: all of it counts.

    Args:
        keys: of the images, shape ``(C, *spatial)``.
        output_key: of the mask.
        threshold: brightness at the edge of the field; 0 takes the whole image.

    Example:
        >>> image = torch.zeros(3, 6, 6)
        >>> image[:, 1:5, 2:5] = 200.0
        >>> image[:, 3, 3] = 0.0
        >>> int(FieldOfViewd("image", "fov")({"image": image})["fov"].sum())
        12
    """

    def __init__(self, keys: KeysCollection, output_key: str = "fov", threshold: float = 0.05) -> None:
        super().__init__(keys)
        self.output_key, self.threshold = output_key, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            brightest = torch.as_tensor(d[key]).amax(dim=0).cpu().numpy()
            field = torch.from_numpy(self._field(brightest).astype(np.float32)).to(d[key].device)
            d[self.output_key] = keep_meta(field[None], d[key])
        return d

    def _field(self, brightest: np.ndarray) -> np.ndarray:
        if self.threshold <= 0 or brightest.min() < 0:
            return np.ones_like(brightest)
        regions, count = ndimage.label(brightest > self.threshold * np.percentile(brightest, 99))
        if count == 0:
            return np.ones_like(brightest)
        largest = np.bincount(regions.ravel())[1:].argmax() + 1
        return ndimage.binary_fill_holes(regions == largest)


class _FieldTransform(MapTransform):
    """A transform that reads a field of view."""

    def __init__(self, keys: KeysCollection, field_key: str = "fov") -> None:
        super().__init__(keys)
        self.field_key = field_key


class NormalizeFieldd(_FieldTransform):
    """Zero mean and unit variance of each channel inside a field of view; 0, the mean, outside.

    Args:
        keys: of the images, shape ``(C, *spatial)``.
        field_key: of the field's mask, see :class:`FieldOfViewd`.

    Example:
        >>> data = {"image": torch.tensor([[[2.0, 4.0, 9.0]]]), "fov": torch.tensor([[[1.0, 1.0, 0.0]]])}
        >>> NormalizeFieldd("image", "fov")(data)["image"].tolist()
        [[[-1.0, 1.0, 0.0]]]
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            inside = convert_to_tensor(d[self.field_key])[0] > 0
            values = convert_to_tensor(d[key])[:, inside].double()
            shape = (-1, *[1] * inside.dim())
            mean, std = values.mean(dim=1).reshape(shape), values.std(dim=1, unbiased=False).reshape(shape)
            image = d[key].float()
            d[key] = (image - mean.to(image)) / std.clamp(min=1e-6).to(image) * inside
        return d


class IgnoreOutsided(_FieldTransform):
    """Set a class map to -1, which scores leave out, outside of a field of view.

    Args:
        keys: of the class maps, shape ``(1, *spatial)``.
        field_key: of the field's mask, see :class:`FieldOfViewd`.

    Raises:
        ValueError: more than a twentieth of the foreground lies outside, so that the field is none; the message names the
            file.

    Example:
        >>> data = {"label": torch.tensor([[[1.0, 0.0, 0.0]]]), "fov": torch.tensor([[[1.0, 1.0, 0.0]]])}
        >>> IgnoreOutsided("label", "fov")(data)["label"].tolist()
        [[[1.0, 0.0, -1.0]]]
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            foreground, inside = d[key] > 0, d[self.field_key] > 0
            total, outside = int(foreground.sum()), int((foreground & ~inside).sum())
            if outside > _OUTSIDE * total:
                raise ValueError(
                    f"{file_of(d[key], key)}: {outside / total:.0%} of its foreground lies outside of the field of view "
                    "found in its image; field_threshold=0 takes the whole of images that are no photographs of a bright disc"
                )
            d[key] = torch.where(d[self.field_key] > 0, d[key], torch.full_like(d[key], -1.0))
        return d
