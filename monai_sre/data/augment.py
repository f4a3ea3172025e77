"""Augmentation and preprocessing of whole batches, on the batch's device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from monai_sre.data.geometry import background_value, random_rotations, resize_batch
from monai_sre.data.loaders import mix_seed

__all__ = ["BatchAugment2d", "BatchAugment3d", "BatchPreprocess"]


class BatchPreprocess:
    """Resize and normalise a batch: what validation, test and inference do, and training before it augments.

    Args:
        size: side length of the output, one number or one per spatial axis; None keeps that of the input.
        mean: subtracted after scaling to 0..1; one number or one per channel.
        std: divides; one number or one per channel.

    Raises:
        ValueError: ``std`` holds a value that is not positive.

    Example:
        >>> x = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
        >>> y = BatchPreprocess(size=32)(x)
        >>> y.shape, y.dtype, float(y.mean())
        (torch.Size([2, 1, 32, 32]), torch.float32, 1.0)
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = 32,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        if min([std] if isinstance(std, (int, float)) else std) <= 0:
            raise ValueError(f"std must be positive, got {std}")
        self.size, self.mean, self.std = size, mean, std

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *spatial)`` as float32 in 0..1 (uint8 is divided by 255), resized."""
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return x if self.size is None else resize_batch(x, self.size)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """``(x - mean) / std``."""
        if isinstance(self.mean, (int, float)) and isinstance(self.std, (int, float)):
            return (x - self.mean) / self.std
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device).reshape(shape) for v in (self.mean, self.std))
        return (x - mean) / std

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Preprocess ``(B, C, *spatial)``, uint8 or float in 0..1, to float32."""
        return self.normalise(self.unit(x))


class _BatchAugment(BatchPreprocess):
    """Random numbers that can be repeated, and the last step: sampling, and filling what comes from outside."""

    def __init__(
        self,
        size: int | Sequence[int] | None,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        fill: float | str,
        seed: int | None,
    ) -> None:
        super().__init__(size, mean, std)
        if isinstance(fill, str) and fill not in ("background", "minimum"):
            raise ValueError(f"fill must be a number, 'background' or 'minimum', got {fill!r}")
        self.fill, self.seed = fill, seed
        self._epoch, self._rank = 0, 0
        self._generator: torch.Generator | None = None

    def set_epoch(self, epoch: int, rank: int = 0) -> None:
        """Restart the random numbers of an epoch (and, distributed, of a rank); without a seed, nothing happens."""
        self._epoch, self._rank, self._generator = epoch, rank, None

    def _random(self, *shape: int, like: torch.Tensor) -> torch.Tensor:
        """Uniform numbers in 0..1 on the device of ``like``."""
        if self.seed is None:
            return torch.rand(shape, device=like.device)
        if self._generator is None or self._generator.device != like.device:
            self._generator = torch.Generator(like.device).manual_seed(mix_seed(self.seed, self._epoch, self._rank))
        return torch.rand(shape, device=like.device, generator=self._generator)

    def _between(self, low: float, high: float, *shape: int, like: torch.Tensor) -> torch.Tensor:
        return low + (high - low) * self._random(*shape, like=like)

    def _filled(self, moved: torch.Tensor, inside: torch.Tensor | None, before: torch.Tensor) -> torch.Tensor:
        """Put the fill wherever ``inside``, ``(B, *spatial)``, is false; ``before`` is the unmoved image, in 0..1."""
        if inside is None:
            return moved
        fill: float | torch.Tensor
        if self.fill == "background":
            fill = self.normalise(background_value(before))
        elif self.fill == "minimum":
            fill = self.normalise(before.amin(dim=tuple(range(2, before.ndim)), keepdim=True))
        else:
            fill = float(self.fill)
        return torch.where(inside.unsqueeze(1), moved, fill)


def _within(position: torch.Tensor, side: int) -> torch.Tensor:
    return (position > -0.5) & (position < side - 0.5)


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}")
    return value


class BatchAugment2d(_BatchAugment):
    """The 2-D recipe of the SRE-Conv experiments, for a whole batch at once; no rotation and no flip by default.

    In order: resize; random resized crop (torchvision's distribution of crops: up to ten draws of area and aspect
    ratio, then the central crop; linear interpolation within the crop); colour jitter of a random part of the
    samples; normalise; optionally flip and rotate; shift by whole pixels. What enters from outside is ``fill``, after
    normalisation. Crop, flip, rotation and shift are composed, so an image is interpolated once.

    The official code jitters brightness and saturation by 0.1 and leaves contrast and hue alone; so do the defaults.
    Jitter is done in the order brightness, contrast, saturation, hue (torchvision shuffles it).

    Args:
        size: side length of the output, one number or (rows, columns); None keeps that of the input.
        mean, std: see :class:`BatchPreprocess`.
        scale: range of the crop's share of the area; None does not crop.
        ratio: range of the crop's width / height.
        brightness, contrast, saturation: factors are drawn from ``1 - value`` to ``1 + value``.
        hue: shift in turns of the colour circle, from ``-hue`` to ``hue``, at most 0.5.
        jitter_probability: share of the samples to jitter. Saturation and hue act on 3 channels only.
        translation: largest shift, as a share of each side.
        rotation: turn every image by an angle drawn from ``-rotation`` to ``rotation`` degrees (180 is uniform).
        flip_probability: of a flip, independently for rows and columns.
        fill: a number, ``"background"`` (median of the border) or ``"minimum"``.
        seed: of an own random generator; None uses PyTorch's. See :meth:`set_epoch`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> augment = BatchAugment2d(size=32, seed=0)
        >>> augment(torch.zeros(4, 3, 28, 28, dtype=torch.uint8)).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = 32,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        scale: Sequence[float] | None = (0.5, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        brightness: float = 0.1,
        contrast: float = 0.0,
        saturation: float = 0.1,
        hue: float = 0.0,
        jitter_probability: float = 0.5,
        translation: float = 0.1,
        rotation: float = 0.0,
        flip_probability: float = 0.0,
        fill: float | str = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(size, mean, std, fill, seed)
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two increasing shares of the area in 0..1, or None, got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two increasing positive numbers, got {ratio}")
        if min(brightness, contrast, saturation, hue, rotation) < 0 or hue > 0.5 or not 0 <= translation <= 1:
            raise ValueError(
                "brightness, contrast, saturation, rotation must be >= 0, hue in 0..0.5, translation in 0..1"
            )
        self.scale, self.ratio, self.translation, self.rotation = scale, ratio, translation, rotation
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.jitter_probability = _probability("jitter_probability", jitter_probability)
        self.flip_probability = _probability("flip_probability", flip_probability)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Augment ``(B, C, H, W)``, uint8 or float in 0..1, to float32."""
        x = self.unit(x)
        moved, inside = self._move(x)
        moved = self._jitter(moved)
        return self._filled(self.normalise(moved), inside, x)

    def _crops(self, x: torch.Tensor) -> torch.Tensor:
        """First row, first column, height and width of a crop for each sample: ``(4, B)``, whole numbers."""
        batch, (rows, columns) = len(x), x.shape[2:]
        assert self.scale is not None
        area = rows * columns * self._between(self.scale[0], self.scale[1], batch, 10, like=x)
        ratio = self._between(math.log(self.ratio[0]), math.log(self.ratio[1]), batch, 10, like=x).exp()
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths >= 1) & (widths <= columns) & (heights >= 1) & (heights <= rows)
        first = fits.int().argmax(1, keepdim=True)  # the first draw that fits
        width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
        corner = self._random(2, batch, like=x)
        top, left = (corner[0] * (rows - height + 1)).floor(), (corner[1] * (columns - width + 1)).floor()
        # Where no draw fits: the largest central crop whose aspect ratio is allowed.
        w, h = min(columns, round(rows * self.ratio[1])), min(rows, round(columns / self.ratio[0]))
        central = x.new_tensor([(rows - h) // 2, (columns - w) // 2, h, w])[:, None]
        return torch.where(fits.any(1), torch.stack([top, left, height, width]), central)

    def _move(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Shift, rotate, flip and crop by one interpolation; and which pixels show the image."""
        batch, (rows, columns) = len(x), x.shape[2:]
        row = torch.arange(rows, dtype=x.dtype, device=x.device)[None, :, None]
        column = torch.arange(columns, dtype=x.dtype, device=x.device)[None, None, :]
        inside = None
        if self.translation > 0:
            shift = 2 * self._random(2, batch, 1, 1, like=x) - 1
            row = row - (shift[0] * self.translation * rows).round()
            column = column - (shift[1] * self.translation * columns).round()
            inside = _within(row, rows) & _within(column, columns)
        if self.rotation > 0:
            angle = self._between(-self.rotation, self.rotation, batch, 1, 1, like=x).deg2rad()
            cos, sin, y, z = angle.cos(), angle.sin(), row - (rows - 1) / 2, column - (columns - 1) / 2
            row, column = (cos * y + sin * z) + (rows - 1) / 2, (cos * z - sin * y) + (columns - 1) / 2
            turned = _within(row, rows) & _within(column, columns)
            inside = turned if inside is None else inside & turned
        if self.flip_probability > 0:
            flip = self._random(2, batch, 1, 1, like=x) < self.flip_probability
            row = torch.where(flip[0], rows - 1 - row, row)
            column = torch.where(flip[1], columns - 1 - column, column)
        if self.scale is not None:
            top, left, height, width = self._crops(x)[:, :, None, None]
            row = top + ((row + 0.5) * height / rows - 0.5).clamp(min=0).minimum(height - 1)
            column = left + ((column + 0.5) * width / columns - 0.5).clamp(min=0).minimum(width - 1)
        elif inside is None and self.flip_probability == 0:
            return x, None
        y, z = (2 * row + 1) / rows - 1, (2 * column + 1) / columns - 1
        grid = torch.stack([z.expand(batch, rows, columns), y.expand(batch, rows, columns)], -1)
        moved = functional.grid_sample(x, grid, "bilinear", "border", align_corners=False)
        return moved, inside if inside is None else inside.expand(batch, rows, columns)

    def _jitter(self, x: torch.Tensor) -> torch.Tensor:
        """Colour jitter of values in 0..1; each step clips to 0..1, as for pictures."""
        colour = x.shape[1] == 3
        steps = (self.brightness, self.contrast, self.saturation * colour, self.hue * colour)
        if self.jitter_probability == 0 or not any(steps):
            return x
        chosen = self._random(len(x), 1, 1, 1, like=x) < self.jitter_probability
        drawn = (2 * self._random(4, len(x), 1, 1, 1, like=x) - 1) * chosen
        if steps[0]:
            x = (x * (1 + steps[0] * drawn[0])).clamp(0, 1)
        if steps[1]:
            mean = (_grey(x) if colour else x).mean((1, 2, 3), keepdim=True)
            x = (mean + (x - mean) * (1 + steps[1] * drawn[1])).clamp(0, 1)
        if steps[2]:
            grey = _grey(x)
            x = (grey + (x - grey) * (1 + steps[2] * drawn[2])).clamp(0, 1)
        return torch.where(drawn[3] != 0, _turn_hue(x, steps[3] * drawn[3]), x) if steps[3] else x


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Luma of RGB (ITU-R 601)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)


def _turn_hue(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue of RGB in 0..1, value and saturation (HSV) kept.

    With H the hue in sixths of a turn, V the largest and C the difference of largest and smallest channel, channel n in
    (5, 3, 1) of the result is ``V - C * clamp(min(k, 4 - k), 0, 1)``, ``k = (n + H) mod 6`` (Smith 1978).
    """
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(value == red, (green - blue) / safe, 2 + (blue - red) / safe)
    hue = torch.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / safe, hue)
    k = (x.new_tensor([5.0, 3.0, 1.0]).reshape(1, 3, 1, 1) + (hue.unsqueeze(1) + 6 * turns)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


class BatchAugment3d(_BatchAugment):
    """The 3-D recipe of the SRE-Conv experiments, for a whole batch at once; no rotation and no flip by default.

    In order: resize; one affine sampling (own scale and shift for each axis, optional flips and rotation, linear
    interpolation); normalise, with ``fill`` outside; Gaussian blur. ``fill`` is in normalised units, as in 2-D; the
    default ``"minimum"``, the darkest voxel of each image, is torchio's. The official ``RandomBlur(0.5)`` blurs every
    sample, with a standard deviation drawn from 0 to 0.5 voxels on each axis (0.5 is not a probability); so do the
    defaults here.

    Args:
        size: side length of the output, one number or one per axis; None keeps that of the input.
        mean, std: see :class:`BatchPreprocess`.
        scale: each axis is scaled by a factor from ``1 - scale`` to ``1 + scale``.
        shift: each axis is shifted by ``-shift`` to ``shift`` voxels (of the resized volume).
        blur_sigma: largest standard deviation of the blur, in voxels.
        blur_probability: share of the samples to blur.
        rotation: turn each volume by a rotation drawn uniformly from SO(3).
        flip_probability: of a flip, independently for each axis.
        fill: a number, ``"background"`` (median of the faces) or ``"minimum"``.
        seed: of an own random generator; None uses PyTorch's. See :meth:`set_epoch`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> augment = BatchAugment3d(size=32, seed=0)
        >>> augment(torch.zeros(2, 1, 28, 28, 28, dtype=torch.uint8)).shape
        torch.Size([2, 1, 32, 32, 32])
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = 32,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        scale: float = 0.2,
        shift: float = 3.0,
        blur_sigma: float = 0.5,
        blur_probability: float = 1.0,
        rotation: bool = False,
        flip_probability: float = 0.0,
        fill: float | str = "minimum",
        seed: int | None = None,
    ) -> None:
        super().__init__(size, mean, std, fill, seed)
        if not 0 <= scale < 1 or shift < 0 or blur_sigma < 0:
            raise ValueError(f"scale must be in 0..1, shift and blur_sigma >= 0, got {scale, shift, blur_sigma}")
        self.scale, self.shift, self.blur_sigma, self.rotation = scale, shift, blur_sigma, rotation
        self.blur_probability = _probability("blur_probability", blur_probability)
        self.flip_probability = _probability("flip_probability", flip_probability)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Augment ``(B, C, D, H, W)``, uint8 or float in 0..1, to float32."""
        return self._blur(self._move(self.unit(x)))

    def _move(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.scale or self.shift or self.rotation or self.flip_probability):
            return self.normalise(x)
        batch = len(x)
        # Positions are measured from the centre in half sides, in the order of grid_sample: columns, rows, depth.
        half = x.new_tensor(x.shape[:1:-1]) / 2
        matrix = torch.diag_embed(1 / self._between(1 - self.scale, 1 + self.scale, batch, 3, like=x))
        if self.flip_probability:
            sign = 1 - 2 * (self._random(batch, 3, like=x) < self.flip_probability).to(x.dtype)
            matrix = matrix * sign[:, None, :]
        if self.rotation:
            matrix = matrix @ random_rotations(batch, self._random(3, batch, like=x))
        move = self._between(-self.shift, self.shift, batch, 3, like=x)
        offset = -(matrix @ move[:, :, None])
        theta = torch.cat([matrix * half / half[:, None], offset / half[:, None]], 2)
        grid = functional.affine_grid(theta, [batch, 1, *x.shape[2:]], align_corners=False)
        moved = functional.grid_sample(x, grid, "bilinear", "border", align_corners=False)
        return self._filled(self.normalise(moved), (grid.abs() < 1).all(-1), x)

    def _blur(self, x: torch.Tensor) -> torch.Tensor:
        """Separable Gaussian with its own width for each sample and axis, cut at four standard deviations."""
        radius = int(4 * self.blur_sigma + 0.5)
        if radius == 0 or self.blur_probability == 0:
            return x
        chosen = self._random(len(x), 1, like=x) < self.blur_probability
        sigma = self.blur_sigma * self._random(len(x), 3, like=x) * chosen
        taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-0.5 * (taps / sigma.clamp_min(1e-3)[..., None]) ** 2)
        weights = weights / weights.sum(-1, keepdim=True)
        batch, channels, *sides = x.shape
        for axis in range(3):
            pads = [0, 0, 0, 0, 0, 0]
            pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = radius
            shape = [1, 1, 1]
            shape[axis] = 2 * radius + 1
            kernel = weights[:, axis].repeat_interleave(channels, 0).reshape(-1, 1, *shape)
            padded = functional.pad(x, pads, mode="replicate").reshape(
                1, batch * channels, *[side + 2 * radius * (a == axis) for a, side in enumerate(sides)]
            )
            x = functional.conv3d(padded, kernel, groups=batch * channels).reshape(batch, channels, *sides)
        return x
