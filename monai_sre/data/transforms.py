"""Transforms of images and class maps: intensities, fit to a square, class numbers of masks, a field of view, margins."""

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
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple
from PIL import ExifTags, Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from monai_sre.data.geometry import background_value, resize_batch
from monai_sre.data.reader import is_nifti

__all__ = [
    "ClassMapd",
    "FieldOfViewd",
    "FitSquared",
    "IgnoreOutsided",
    "NormalizeFieldd",
    "RandMargind",
    "ScaleToUnitd",
    "check_intensity_range",
    "fit_images",
    "scale_to_unit",
]

_LOGGER = logging.getLogger(__name__)
#: Share of the foreground that may lie outside of a field of view.
_OUTSIDE = 0.05
#: Endings of pictures that keep their pixels as they are, and of those that blur them.
_EXACT, _BLURRED = (".png", ".gif", ".bmp", ".tif", ".tiff"), (".jpg", ".jpeg", ".webp")
#: Values of a mask that is all foreground.
_FOREGROUND = (1, 255, 65535)
#: Endings of files that hold numbers, which nobody blurs.
_NUMBERS = (".nii", ".gz", ".npy", ".npz")


# Intensities ----------------------------------------------------------------------------------------------------------


def check_intensity_range(intensity_range: Sequence[float]) -> tuple[float, float]:
    """The values that become 0 and 1.

    Raises:
        ValueError: they are not two increasing numbers.

    Example:
        >>> check_intensity_range([-100, 300])
        (-100.0, 300.0)
    """
    try:
        low, high = map(float, intensity_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        raise ValueError(f"intensity_range must be two increasing values, got {intensity_range!r}")
    return low, high


def scale_to_unit(images: Tensor, intensity_range: Sequence[float] | None = None) -> Tensor:
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
        low, high = check_intensity_range(intensity_range)
        return ((values - low) / (high - low)).clamp(0, 1)
    if images.is_floating_point() and float(values.min()) >= 0 and float(values.max()) <= 1:
        return values
    axes = tuple(range(1, images.ndim))
    low_, high_ = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    return (values - low_) / torch.where(high_ > low_, high_ - low_, torch.ones_like(low_))


class ScaleToUnitd(MapTransform):
    """Intensities as float32 in 0..1, see :func:`scale_to_unit`; 8-bit images, whose scale is known, stay as they are.

    Args:
        keys: of the images, shape ``(C, *spatial)``.
        intensity_range: the values that become 0 and 1; None: see :func:`scale_to_unit`.

    Raises:
        ValueError: ``intensity_range`` is not increasing.

    Example:
        >>> ScaleToUnitd("image", (0, 50))({"image": torch.tensor([[10.0, 60.0]])})["image"]
        tensor([[0.2000, 1.0000]])
    """

    def __init__(self, keys: KeysCollection, intensity_range: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.intensity_range = intensity_range
        if intensity_range is not None:
            check_intensity_range(intensity_range)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if d[key].dtype != torch.uint8:
                d[key] = _like(scale_to_unit(convert_to_tensor(d[key])[None], self.intensity_range)[0], d[key])
        return d


# Squares --------------------------------------------------------------------------------------------------------------


def fit_images(images: Tensor, size: int, spacing: Sequence[float] | None = None) -> Tensor:
    """Bring the longest side of images that are alike to ``size`` and pad the others equally with each one's background.

    Args:
        images: ``(N, C, *spatial)``, uint8 or floating.
        size: side length of the squares, or cubes.
        spacing: distance of the pixels along each axis; None: 1.

    Returns:
        ``(N, C, size, ...)`` in the dtype of ``images``.

    Example:
        >>> fit_images(torch.tensor([[[[7, 7, 9, 9]]]], dtype=torch.uint8), 2)[0, 0].tolist()
        [[7, 9], [7, 9]]
    """
    inner = _inscribed(images.shape[2:], spacing, size)
    x = resize_batch(images.float(), inner)
    if any(side != size for side in inner):
        fill = background_value(x)
        x = functional.pad(x - fill, [(size - side) // 2 for side in reversed(inner) for _ in range(2)]) + fill
    if images.is_floating_point():
        return x
    # The halves that interpolation makes must not be rounded by the last bit of a float, or a turned image differs.
    return (x + 1e-3).round().clamp(0, 255).to(images.dtype)


def _inscribed(shape: Sequence[int], spacing: Sequence[float] | None, size: int) -> list[int]:
    """Sides of an image in a square of ``size`` pixels that its longest side fills, its proportions kept.

    Rounded so that what is left along each axis can be shared equally between both ends.
    """
    extent = np.array(shape) * (np.ones(len(shape)) if spacing is None else np.asarray(spacing))
    margins = (1 - extent / extent.max()) * size / 2
    return [max(2 - size % 2, size - 2 * round(float(margin))) for margin in margins]


class FitSquared(MapTransform, InvertibleTransform):
    """Images as squares (volumes as cubes), as a classification network sees them: the longest side is brought to ``size``.

    The others are padded equally at both ends with the image's background, the median of its border. Distances are those in
    space, so the voxels of a volume become cubes. The affine is that of the new pixels. The inverse interpolates linearly
    from the square onto the pixels of the file, and repeats the outermost.

    Args:
        keys: of the images, shape ``(C, *spatial)``, uint8 or float in 0..1.
        size: side of the square; 8-bit images are rounded to whole numbers at this size.
        image_size: side to which the square is then brought for the network, as float32 in 0..1, 8-bit images divided by
            255; None: the square stays as it is, in its dtype.

    Raises:
        ValueError: a size is below 1, or the axes of an image stand askew in space; the message names the file.

    Example:
        >>> fit = FitSquared("image", size=4)
        >>> image = fit({"image": MetaTensor(torch.ones(1, 4, 2))})["image"]
        >>> image.shape, image.affine[:2, 3].tolist()  # the square begins one pixel beside the image
        (torch.Size([1, 4, 4]), [0.0, -1.0])
        >>> fit.inverse({"image": image})["image"].shape
        torch.Size([1, 4, 2])
    """

    def __init__(self, keys: KeysCollection, size: int, image_size: int | None = None) -> None:
        super().__init__(keys)
        if size < 1 or (image_size is not None and image_size < 1):
            raise ValueError(f"size and image_size must be at least 1, got {size} and {image_size}")
        self.size, self.image_size = size, image_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, dims = convert_to_tensor(d[key]), d[key].dim() - 1
            affine = d[key].affine if isinstance(d[key], MetaTensor) else torch.eye(dims + 1, dtype=torch.float64)
            spacing = affine[:-1, :dims].norm(dim=0).numpy()
            _check_angles(affine[:-1, :dims] / affine[:-1, :dims].norm(dim=0), _name(d[key], key))
            shape, inner = image.shape[1:], _inscribed(image.shape[1:], spacing, self.size)
            square = fit_images(image[None], self.size, spacing)
            if self.image_size is not None:
                square = square.float() / 255 if square.dtype == torch.uint8 else square
                square = resize_batch(square, self.image_size)
            side = self.image_size or self.size
            # Pixels of the result per pixel of the file; both grids have the same centre.
            scale = [new * side / (old * self.size) for new, old in zip(inner, shape, strict=True)]
            change = torch.eye(dims + 1, dtype=torch.float64)
            for axis, (old, factor) in enumerate(zip(shape, scale, strict=True)):
                change[axis, axis] = 1 / factor
                change[axis, -1] = (old - 1) / 2 - (side - 1) / 2 / factor
            d[key] = _like(square[0], d[key])
            if isinstance(d[key], MetaTensor):
                extra = {"scale": scale, "affine": affine.tolist()}
                d[key] = self.push_transform(d[key], orig_size=tuple(shape), affine=change, extra_info=extra)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Values of the square, shape ``(C, *square)``, at the pixels of the file."""
        d = dict(data)
        for key in self.key_iterator(d):
            done = self.pop_transform(d[key])
            values, extra = convert_to_tensor(d[key]), done[TraceKeys.EXTRA_INFO]
            sides = zip(done[TraceKeys.ORIG_SIZE], extra["scale"], strict=True)
            for axis, (length, scale) in enumerate(sides, start=1):
                values = _interpolated(values, axis, int(length), scale)
            d[key] = _like(values, d[key])
            d[key].affine = torch.tensor(extra["affine"], dtype=torch.float64)
        return d


def _check_angles(axes: Tensor, name: str) -> None:
    """Refuse axes, unit vectors as columns, that stand more than a degree from right angles."""
    cosine = float((axes.T @ axes).tril(-1).abs().max())
    if cosine > math.sin(math.radians(1)):
        raise ValueError(
            f"{name} has axes that stand {math.degrees(math.asin(min(cosine, 1.0))):.1f} degrees from right angles, as of a "
            "tilted gantry; resample it straight, as MONAI's Spacing does"
        )


def _interpolated(x: Tensor, axis: int, length: int, scale: float) -> Tensor:
    """Linear interpolation at ``length`` points, ``scale`` apart, around the centre of an axis."""
    last = x.shape[axis] - 1
    points = ((torch.arange(length, dtype=torch.float64) - (length - 1) / 2) * scale + last / 2).clamp(0, last)
    low = points.floor().long().to(x.device)
    part = (points - points.floor()).to(x.device, x.dtype).reshape([-1 if a == axis else 1 for a in range(x.dim())])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last)), part)


# Class maps -----------------------------------------------------------------------------------------------------------


class ClassMapd(MapTransform):
    """Masks as files hold them to class numbers, shape ``(1, *spatial)``, float32.

    With two classes the background is 0 and the foreground any other value (1, 255, grey or RGB). A picture whose edges are
    blurred, as JPEG leaves them, is split at half of its largest value. With more classes, the values are the class numbers,
    unless ``values`` says which value each class has. What is within 0.001 of a whole number is rounded, as writers that
    scale what they store leave it. A picture and its mask that are turned by different EXIF orientations are
    logged as a warning.

    Args:
        keys: of the masks, shape ``(C, *spatial)``.
        image_key: of the image that a mask must cover.
        num_classes: number of classes, the background included; None: any whole numbers from 0 are taken, and stay.
        values: those of the classes in the masks, the background's first, such as ``(0, 1, 3)``; None: as above.

    Raises:
        ValueError: there is not one value per class, each another; a mask differs from its image in shape or, as NIfTI, in
            its place in space, has channels that differ, values that are no class, or, of two classes, another background
            than 0; the message names the file.

    Example:
        >>> mask = torch.tensor([[[0.0, 255.0, 255.0]]])
        >>> ClassMapd("label", "image", 2)({"image": torch.zeros(3, 1, 3), "label": mask})["label"].tolist()
        [[[0.0, 1.0, 1.0]]]
    """

    def __init__(
        self, keys: KeysCollection, image_key: str, num_classes: int | None, values: Sequence[int] | None = None
    ) -> None:
        super().__init__(keys)
        if values is not None and (len(values) != num_classes or len(set(values)) < len(values)):
            raise ValueError(f"values (label_values of a bundle) must be {num_classes} that differ, got {values!r}")
        self.image_key, self.num_classes, self.values = image_key, num_classes, values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        for key in self.key_iterator(d):
            mask, name = d[key], _name(d[key], key)
            if not bool(mask.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinite values; expected class numbers")
            if not bool((mask == mask[:1]).all()):
                raise ValueError(
                    f"{name} has {mask.shape[0]} channels that differ; expected one map of class numbers (of one-hot "
                    "channels, save the number of the largest)"
                )
            turned = _turned_apart(_name(image, self.image_key), name)
            if mask.shape[1:] != image.shape[1:]:
                shapes = f"shape {tuple(mask.shape[1:])} and its image {tuple(image.shape[1:])}"
                raise ValueError(f"{name} has {shapes}; they must be alike{turned}")
            if turned:
                _LOGGER.warning(
                    "%s%s; if it was not drawn on the picture as displayed, remove the orientation", name, turned
                )
            _check_place(image, mask, name)
            mask = mask[:1].float()
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
    values, ending = torch.unique(mask), Path(name).suffix.lower()
    classes = float(values[-1]) < 128 or ending in _NUMBERS or (len(values) <= 4 and ending in _EXACT)
    if len(values) == 1 and float(values) in _FOREGROUND:
        return torch.ones_like(mask)
    if len(values) <= 2 and float(values[0]) != 0 and ending not in _BLURRED:
        shown = " and ".join(f"{value:g}" for value in values.tolist())
        raise ValueError(f"{name} holds {shown}; the background of a mask of two classes is 0")
    if len(values) > 2 and classes:
        shown = ", ".join(f"{value:g}" for value in values[:5].tolist()) + (", ..." if len(values) > 5 else "")
        raise ValueError(f"{name} holds {len(values)} values ({shown}); a mask of two classes holds two")
    middle = values.mean() if len(values) == 2 else values[-1] / 2
    return (mask > middle).float()


def _check_place(image: Tensor, mask: Tensor, name: str) -> None:
    """Refuse a NIfTI mask whose corners lie elsewhere than those of its image by more than a tenth of a voxel."""
    files = [_name(item, "") for item in (image, mask)]
    if not all(isinstance(item, MetaTensor) for item in (image, mask)) or not all(is_nifti(Path(f)) for f in files):
        return
    ours, theirs = (convert_to_tensor(item.affine).double() for item in (image, mask))  # type: ignore[attr-defined]
    ends = [(0.0, float(length - 1)) for length in image.shape[1:]]
    flat = [0.0] * (len(ours) - 1 - len(ends))  # images lie in the first plane of their space
    corners = torch.tensor([[*corner, *flat, 1.0] for corner in itertools.product(*ends)], dtype=torch.float64)
    away = ((theirs - ours) @ corners.T)[:-1].norm(dim=0).max()
    if away > 0.1 * ours[:-1, :-1].norm(dim=0).min():
        raise ValueError(
            f"{name} lies elsewhere in space than its image {files[0]}: affines {theirs.tolist()} and {ours.tolist()}; "
            "save the mask with the affine of its image"
        )


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
            d[self.output_key] = _like(field[None], d[key])
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
                    f"{_name(d[key], key)}: {outside / total:.0%} of its foreground lies outside of the field of view found "
                    "in its image; field_threshold=0 takes the whole of images that are no photographs of a bright disc"
                )
            d[key] = torch.where(d[self.field_key] > 0, d[key], torch.full_like(d[key], -1.0))
        return d


# Margins --------------------------------------------------------------------------------------------------------------


class RandMargind(RandomizableTransform, MapTransform):
    """Move images and class maps within their frame at random, by up to half of it along each axis.

    What enters has the image's background (:func:`monai_sre.data.background_value`) and, in class maps, class 0: so a network
    learns what lies around an image that was turned, or in a window that reaches beyond it.

    Args:
        keys: of images and class maps of one size, shape ``(C, *spatial)``.
        prob: probability of a move.
        label_keys: those of ``keys`` that are class maps.

    Raises:
        ValueError: ``prob`` is not between 0 and 1.

    Example:
        >>> data = {"image": torch.arange(1.0, 5.0)[None], "label": torch.ones(1, 4)}
        >>> moved = RandMargind(["image", "label"], prob=1.0).set_random_state(1)(data)
        >>> moved["image"].tolist(), moved["label"].tolist()
        ([[1.0, 1.0, 1.0, 2.0]], [[0.0, 0.0, 1.0, 1.0]])
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.5, label_keys: KeysCollection = ("label",)) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be between 0 and 1, got {prob}")
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_keys = ensure_tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        size = d[self.first_key(d)].shape[1:]
        steps = [int(self.R.randint(-(length // 2), length // 2 + 1)) for length in size]
        pads = [pad for step in reversed(steps) for pad in (step, -step)]
        for key in self.key_iterator(d):
            fill = 0.0 if key in self.label_keys else background_value(d[key][None])[0]
            d[key] = functional.pad(d[key] - fill, pads) + fill
        return d


def _like(values: Tensor, image: Tensor) -> Tensor:
    """New values with the metadata of an image."""
    return MetaTensor(values).copy_meta_from(image) if isinstance(image, MetaTensor) else values


def _name(image: Tensor, key: Hashable) -> str:
    """The file of a ``MetaTensor``, or the key of a plain tensor."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", f"the item {key!r}"))
