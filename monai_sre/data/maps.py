"""Transforms of images and class maps (masks): reading and checking with clear errors, and a field of view."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor, NibabelReader, NumpyReader, PILReader
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.utils import convert_to_tensor
from scipy import ndimage
from torch import Tensor

from monai_sre.data.datalist import as_displayed, is_nifti

__all__ = ["CheckImaged", "ClassMapd", "FieldOfViewd", "IgnoreOutsided", "NormalizeFieldd", "ReadImaged"]


#: Share of the foreground that may lie outside of a field of view.
_OUTSIDE = 0.05
#: Endings of pictures that keep their pixels as they are, and of those that blur them.
_EXACT, _BLURRED = (".png", ".gif", ".bmp", ".tif", ".tiff"), (".jpg", ".jpeg", ".webp")
#: Values of a mask that is all foreground.
_FOREGROUND = (1, 255, 65535)
#: Endings of files that hold numbers, which nobody blurs.
_NUMBERS = (".nii", ".gz", ".npy", ".npz")


class ReadImaged(MapTransform):
    """Read pictures, NIfTI, npy and npz files as ``MetaTensor`` of shape ``(C, *spatial)``, float32, by their endings.

    What MONAI's ``LoadImaged`` gives, with one sentence where it cannot: it would try all its readers, and list what each
    of them says. The fourth axis of NIfTI becomes the channels; arrays have none. Pictures are columns by rows, as always in
    MONAI, turned as their EXIF orientation says.

    Args:
        keys: of the paths.
        as_classes: keep the entries of a palette, which are class numbers in masks, unless all its colours are grey;
            otherwise palettes, and transparency, become RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read; the message names the file.
    """

    def __init__(self, keys: KeysCollection, as_classes: bool = False) -> None:
        super().__init__(keys)
        self.as_classes = as_classes
        self.first = EnsureChannelFirst()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._read(Path(d[key]))
        return d

    def _read(self, path: Path) -> Tensor:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        reader = self._reader(path.name.lower())
        try:
            opened = reader.read(path)
            if isinstance(opened, list):
                raise ValueError(f"it holds {len(opened)} arrays; expected one image")
            array, meta = reader.get_data(opened)
        except Exception as error:  # each reader has its own exceptions for a damaged file
            raise ValueError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from error
        if array.dtype.kind not in "buif":
            raise ValueError(f"{path} holds {array.dtype} values; expected numbers")
        meta["filename_or_obj"] = str(path)
        image: Tensor = self.first(MetaTensor.ensure_torch_and_prune_meta(array.astype(np.float32), meta))
        return image

    def _reader(self, name: str) -> ImageReader:
        if name.endswith((".nii", ".nii.gz")):
            return NibabelReader()
        if name.endswith((".npy", ".npz")):
            return NumpyReader()
        return PILReader(converter=partial(as_displayed, palette=self.as_classes))


class CheckImaged(MapTransform):
    """Refuse an image that the network cannot take; a grey image feeds a network of several channels.

    Further axes at the end of one pixel each are dropped, such as the third of a slice in NIfTI.

    Args:
        keys: of the images, shape ``(C, *spatial)``.
        num_channels: channels of the network's input.
        spatial_dims: number of its spatial axes.

    Raises:
        ValueError: the number of axes or channels is another, an axis is empty, a value is NaN or infinite, or the affine
            is singular; the message names the file.

    Example:
        >>> CheckImaged("image", num_channels=3, spatial_dims=2)({"image": torch.zeros(1, 5, 4)})["image"].shape
        torch.Size([3, 5, 4])
    """

    def __init__(self, keys: KeysCollection, num_channels: int, spatial_dims: int) -> None:
        super().__init__(keys)
        self.num_channels, self.spatial_dims = num_channels, spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, name = _without_ends(d[key], self.spatial_dims), _name(d[key], key)
            if image.dim() - 1 != self.spatial_dims:
                raise ValueError(
                    f"{name} has {image.dim() - 1} spatial axes; the network takes images of {self.spatial_dims}"
                )
            if image.numel() == 0:
                raise ValueError(f"{name} is empty: shape {tuple(image.shape)}")
            if image.shape[0] not in (1, self.num_channels):
                raise ValueError(f"{name} has {image.shape[0]} channels; the network takes {self.num_channels}")
            if not bool(torch.isfinite(image).all()):
                raise ValueError(f"{name} holds NaN or infinite values; every pixel must be finite")
            affine = getattr(image, "affine", torch.eye(1))
            if not bool(affine.isfinite().all()) or int(torch.linalg.matrix_rank(affine)) < len(affine):
                raise ValueError(f"{name} has a singular affine, {affine.tolist()}, so that its voxels have no place")
            d[key] = image.repeat(self.num_channels // image.shape[0], *[1] * self.spatial_dims)
        return d


class ClassMapd(MapTransform):
    """Masks as files hold them to class numbers, shape ``(1, *spatial)``, float32.

    With two classes the background is 0 and the foreground any other value (1, 255, grey or RGB). A picture whose edges are
    blurred, as JPEG leaves them, is split at half of its largest value. With more classes, the values are the class numbers.

    Args:
        keys: of the masks, shape ``(C, *spatial)``.
        image_key: of the image that a mask must cover.
        num_classes: number of classes, the background included.

    Raises:
        ValueError: a mask differs from its image in shape or, as NIfTI, in its place in space, has channels that differ,
            values that are no class numbers, or, of two classes, another background than 0; the message names the file.

    Example:
        >>> mask = torch.tensor([[[0.0, 255.0, 255.0]]])
        >>> ClassMapd("label", "image", 2)({"image": torch.zeros(3, 1, 3), "label": mask})["label"].tolist()
        [[[0.0, 1.0, 1.0]]]
    """

    def __init__(self, keys: KeysCollection, image_key: str, num_classes: int) -> None:
        super().__init__(keys)
        self.image_key, self.num_classes = image_key, num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        for key in self.key_iterator(d):
            mask, name = _without_ends(d[key], image.dim() - 1), _name(d[key], key)
            if mask.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape[1:])} and its image {tuple(image.shape[1:])}; they must be alike"
                )
            _check_place(image, mask, name)
            if not bool(mask.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinite values; expected class numbers")
            if not bool((mask == mask[:1]).all()):
                raise ValueError(f"{name} has {mask.shape[0]} channels that differ; expected one map of classes")
            mask = mask[:1].float()
            if self.num_classes == 2:
                mask = _two_classes(mask, name)
            elif not bool(((mask == mask.round()) & (mask >= 0) & (mask < self.num_classes)).all()):
                raise ValueError(f"{name} holds values that are no class number from 0 to {self.num_classes - 1}")
            d[key] = mask
        return d


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
            d[self.output_key] = d[key][:1] * 0 + torch.from_numpy(self._field(brightest)).to(d[key])
        return d

    def _field(self, brightest: np.ndarray) -> np.ndarray:
        if self.threshold <= 0 or brightest.min() < 0:
            return np.ones_like(brightest)
        regions, count = ndimage.label(brightest > self.threshold * np.percentile(brightest, 99))
        if count == 0:
            return np.ones_like(brightest)
        largest = np.bincount(regions.ravel())[1:].argmax() + 1
        return ndimage.binary_fill_holes(regions == largest).astype(brightest.dtype)


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
            d[key] = (d[key] - mean.to(d[key])) / std.clamp(min=1e-6).to(d[key]) * inside
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


def _without_ends(image: Tensor, spatial_dims: int) -> Tensor:
    """Without axes of one pixel at the end, as far as there are more than so many spatial ones."""
    while image.dim() - 1 > spatial_dims and image.shape[-1] == 1:
        image = image[..., 0]
    return image


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


def _name(image: Tensor, key: Hashable) -> str:
    """The file of a ``MetaTensor``, or the key of a plain tensor."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", f"the item {key!r}"))
