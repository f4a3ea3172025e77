"""Transforms of images: intensities, the fit to a square and back, and margins, of class maps too."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TraceKeys, convert_to_tensor, ensure_tuple
from torch import Tensor
from torch.nn import functional

from monai_sre.data.geometry import background_value, check_cubes, resize_batch, voxel_size

__all__ = [
    "CubicVoxelsd",
    "FitSquared",
    "RandMargind",
    "ScaleToUnitd",
    "check_intensity_range",
    "fit_images",
    "scale_to_unit",
]


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
        intensity_range: the values that become 0 and 1; beyond them is clipped. None keeps each image of floats that all
            lie in 0..1 and maps each other one from its own minimum and maximum (a constant image becomes 0), whatever
            images lie beside it.

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
    axes = tuple(range(1, images.ndim))
    low_, high_ = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    if images.is_floating_point():
        stay = (low_ >= 0) & (high_ <= 1)
        low_, high_ = low_.masked_fill(stay, 0.0), high_.masked_fill(stay, 1.0)
    return (values - low_) / torch.where(high_ > low_, high_ - low_, torch.ones_like(low_))


def unscaled_mask(images: Tensor) -> Tensor:
    """8-bit images of zeros and ones, as masks are, as float32, whose scale ends at 1; all others as they are.

    Example:
        >>> unscaled_mask(torch.tensor([[0, 1]], dtype=torch.uint8)), unscaled_mask(torch.tensor([[0, 2]], dtype=torch.uint8))
        (tensor([[0., 1.]]), tensor([[0, 2]], dtype=torch.uint8))
    """
    if images.dtype != torch.uint8 or images.numel() == 0 or images[0].max() > 1:  # others are not read to the end
        return images
    return images.float() if (int(images.min()), int(images.max())) == (0, 1) else images


class ScaleToUnitd(MapTransform):
    """Intensities as float32 in 0..1, see :func:`scale_to_unit`; 8-bit images, whose scale is known, stay as they are.

    An 8-bit image of zeros and ones is a mask, black and white.

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
            image = convert_to_tensor(d[key])
            if image.dtype != torch.uint8:
                d[key] = keep_meta(scale_to_unit(image[None], self.intensity_range)[0], d[key])
            else:
                d[key] = keep_meta(unscaled_mask(image), d[key])
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
            _check_angles(affine[:-1, :dims] / affine[:-1, :dims].norm(dim=0), file_of(d[key], key))
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
            d[key] = keep_meta(square[0], d[key])
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
            d[key] = keep_meta(values, d[key])
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


# Voxels ---------------------------------------------------------------------------------------------------------------


class CubicVoxelsd(MapTransform):
    """Refuse images whose voxels are no cubes, before a transform that rotates their grid.

    Args:
        keys: of the images, shape ``(C, *spatial)``, whose affine says the size of a voxel.

    Raises:
        ValueError: the sides of a voxel differ by more than a hundredth; the message names the file.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0])))
        >>> CubicVoxelsd("image")({"image": image})
        Traceback (most recent call last):
        ValueError: the item 'image': rotation=True rotates the grid of voxels, which must be cubes; these are 1 x 1 x 4 mm
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            check_cubes(voxel_size(data[key]), f"{file_of(data[key], key)}: rotation=True")
        return dict(data)


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


def keep_meta(values: Tensor, image: Tensor) -> Tensor:
    """New values with the metadata of an image."""
    return MetaTensor(values).copy_meta_from(image) if isinstance(image, MetaTensor) else values


def file_of(image: Tensor, key: Hashable) -> str:
    """The file of a ``MetaTensor``, or the key of a plain tensor."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", f"the item {key!r}"))
