"""Augmentation and preprocessing of whole batches."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_sre.data import (
    BatchAugment2d,
    BatchAugment3d,
    BatchPreprocess,
    flip_batch,
    rotate_batch,
)
from tests.testers import Unwanted


def test_preprocess_scales_and_normalises() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    y = BatchPreprocess(None, mean=(0.0, 0.1, 0.5), std=(1.0, 0.1, 0.25))(x)
    assert y[0, :, 0, 0].tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-5)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        BatchPreprocess(32, std=0)


def _plain_2d(**changes: object) -> BatchAugment2d:
    """No augmentation at all but for what is asked."""
    settings: dict = {"size": None, "mean": 0.0, "std": 1.0, "scale": None, "translation": 0.0, "seed": 0}
    settings.update({"jitter_probability": 0.0, **changes})
    return BatchAugment2d(**settings)


def test_without_randomness_augmenting_is_preprocessing() -> None:
    x = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    off = {"mean": 0.5, "std": 0.5, "size": 32}
    torch.testing.assert_close(_plain_2d(**off)(x), BatchPreprocess(32)(x))
    full = _plain_2d(**off, scale=(1.0, 1.0), ratio=(1.0, 1.0))(x)  # the crop is the whole image
    torch.testing.assert_close(full, BatchPreprocess(32)(x), atol=1e-5, rtol=0)
    volume = torch.randint(0, 256, (2, 1, 12, 12, 12), dtype=torch.uint8)
    still = BatchAugment3d(16, scale=0.0, shift=0.0, blur_sigma=0.0)
    torch.testing.assert_close(still(volume), BatchPreprocess(16)(volume))


def test_translation_is_by_whole_pixels_up_to_a_tenth() -> None:
    image = torch.rand(1, 1, 30, 30) * 0.5 + 0.5
    moved = _plain_2d(translation=0.1, fill=-2.0)(image.expand(64, -1, -1, -1))
    seen = set()
    for sample in moved[:, 0]:
        rows, columns = np.nonzero((sample != -2.0).numpy())
        top, left = int(rows.min()), int(columns.min())
        dy, dx = top or int(rows.max()) - 29, left or int(columns.max()) - 29
        seen.add((dy, dx))
        shifted = np.full((30, 30), -2.0, np.float32)
        source = image[0, 0, max(0, -dy) : 30 - max(0, dy), max(0, -dx) : 30 - max(0, dx)].numpy()
        shifted[max(0, dy) : 30 + min(0, dy), max(0, dx) : 30 + min(0, dx)] = source
        np.testing.assert_allclose(sample.numpy(), shifted, atol=1e-5)
    assert {abs(value) for pair in seen for value in pair} == {0, 1, 2, 3}


def test_crops_follow_the_recipe() -> None:
    """A picture of its own coordinates shows which part of it a crop holds."""
    side, count = 32, 2000
    ramp = (torch.arange(side) / 64.0).expand(side, side)
    picture = torch.stack([ramp, ramp.T])[None].expand(count, -1, -1, -1)
    cropped = _plain_2d(scale=(0.5, 1.0))(picture).double() * 64
    # Far from the clamped ends, neighbouring columns of the output are width / 32 of the picture's columns apart.
    width = (cropped[:, 0, 16, 20] - cropped[:, 0, 16, 12]) * 4
    height = (cropped[:, 1, 20, 16] - cropped[:, 1, 12, 16]) * 4
    assert torch.allclose(width, width.round(), atol=1e-2)
    assert torch.allclose(height, height.round(), atol=1e-2)
    share = width * height / side**2
    # Rounding each side to whole pixels changes area and aspect by up to about 1 / 16.
    assert 0.47 < share.min() < 0.55
    assert 0.95 < share.max() <= 1.0
    assert (width / height).min() > 0.70
    assert (width / height).max() < 1.43
    assert (width / height).min() < 0.80
    assert (width / height).max() > 1.25
    left = cropped[:, 0, 16, 16] - (16.5 * width / side - 0.5)
    free = side - width
    assert left.min() > -0.01
    assert (left - free).max() < 0.01
    assert (left / free.clamp_min(1)).mean().item() == pytest.approx(0.5, abs=0.04)


def test_jitter_acts_on_half_of_the_samples() -> None:
    grey = torch.full((1000, 1, 2, 2), 0.5)
    factor = _plain_2d(jitter_probability=0.5)(grey)[:, 0, 0, 0] / 0.5
    changed = factor != 1
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert 0.9 <= factor.min() < 0.92
    assert 1.08 < factor.max() <= 1.1
    colour = torch.tensor([0.8, 0.4, 0.2]).reshape(1, 3, 1, 1).expand(500, 3, 2, 2)
    saturated = _plain_2d(jitter_probability=1.0, brightness=0.0)(colour)[:, :, 0, 0]
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(saturated @ luma, colour[:, :, 0, 0] @ luma)  # saturation keeps the grey value
    ratio = (saturated - (saturated @ luma)[:, None]) / (colour[:, :, 0, 0] - (colour[:, :, 0, 0] @ luma)[:, None])
    assert ratio.std(1).max() < 1e-4
    assert 0.9 <= ratio.min() < 0.92
    assert 1.08 < ratio.max() <= 1.1001


def test_contrast_keeps_the_mean_and_hue_is_that_of_colorsys() -> None:
    x = torch.rand(8, 1, 6, 6) * 0.4 + 0.3
    y = _plain_2d(jitter_probability=1.0, brightness=0.0, contrast=0.2)(x)
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)))
    spread = y.std((1, 2, 3)) / x.std((1, 2, 3))
    assert spread.std() > 0.02
    assert spread.min() >= 0.8
    assert spread.max() <= 1.2
    colours = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(5))
    turned = _plain_2d(jitter_probability=1.0, brightness=0.0, saturation=0.0, hue=0.4)(colours)
    for before, after in zip(colours, turned, strict=True):
        first = colorsys.rgb_to_hsv(*before[:, 0, 0].tolist())
        turn = colorsys.rgb_to_hsv(*after[:, 0, 0].tolist())[0] - first[0]
        assert 0.001 < abs((turn + 0.5) % 1 - 0.5) <= 0.4001
        for i in range(5):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*before[:, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
                assert after[:, i, j].tolist() == pytest.approx(expected, abs=1e-4)


def test_seeds_and_epochs_repeat() -> None:
    x = torch.rand(4, 1, 16, 16)
    augment = BatchAugment2d(None, seed=3)
    augment.set_epoch(5)
    first, second = augment(x), augment(x)
    assert not torch.equal(first, second)
    again = BatchAugment2d(None, seed=3)
    again.set_epoch(5)
    assert torch.equal(again(x), first)
    assert torch.equal(again(x), second)
    again.set_epoch(6)
    assert not torch.equal(again(x), first)
    again.set_epoch(5, rank=1)
    assert not torch.equal(again(x), first)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment(x)
    assert torch.equal(state, torch.get_rng_state())  # an own generator leaves PyTorch's alone


def test_rotation_and_flips_are_options() -> None:
    disc = torch.tensor([[math.hypot(i - 15.5, j - 15.5) for j in range(32)] for i in range(32)])
    radial = torch.exp(-((disc / 6) ** 2))[None, None].expand(16, -1, -1, -1)
    turned = _plain_2d(rotation=180.0, flip_probability=0.5)(radial)
    assert (turned - radial).abs().max() < 0.02  # a radial picture stays as it is
    ramp = (torch.arange(32.0) / 31).expand(200, 1, 32, 32)
    flipped = _plain_2d(flip_probability=0.5)(ramp)
    assert (flipped[:, 0, 0, 0] > 0.5).float().mean().item() == pytest.approx(0.5, abs=0.12)
    corner = _plain_2d(rotation=180.0, fill=-3.0)(ramp)
    assert 0.05 < (corner == -3.0).float().mean() < 0.20  # on average 4 cut corners: at most 17 % of a square


def test_affine_3d_scales_and_shifts_within_the_recipe() -> None:
    coordinates = torch.stack(torch.meshgrid(*[torch.arange(17.0)] * 3, indexing="ij"))[None] / 17
    augment = BatchAugment3d(None, mean=0.0, std=1.0, blur_sigma=0.0, fill=-1.0, seed=1)
    moved = augment(coordinates.expand(300, -1, -1, -1, -1)) * 17
    steps, centres = [], []
    for axis in range(3):
        line = moved[:, axis].movedim(axis + 1, 1)[:, :, 8, 8]
        steps.append(line[:, 9] - line[:, 8])
        centres.append(line[:, 8] - 8)
    step, centre = torch.stack(steps), torch.stack(centres)
    assert 1 / 1.2 - 1e-4 <= step.min() < 0.85
    assert 1.2 < step.max() <= 1 / 0.8 + 1e-4
    assert 3.2 < centre.abs().max() <= 3 / 0.8 + 1e-3  # up to 3 voxels, divided by the scale
    assert (step[0] != step[1]).all()  # own scale for each axis


def test_rotation_3d_is_the_rotation_drawn() -> None:
    blob = torch.zeros(40, 1, 21, 21, 21)
    blob[:, :, 13:16, 9:12, 9:12] = 1.0  # four voxels from the centre along the first axis
    augment = BatchAugment3d(None, 0.0, 1.0, scale=0.0, shift=0.0, blur_sigma=0.0, rotation=True, fill=0.0, seed=0)
    turned = augment(blob)[:, 0]
    grid = torch.stack(torch.meshgrid(*[torch.arange(-10.0, 11)] * 3, indexing="ij"))
    centre = (turned[:, None] * grid).sum((2, 3, 4)) / turned.sum((1, 2, 3))[:, None]
    torch.testing.assert_close(centre.norm(dim=1), torch.full((40,), 4.0), atol=0.1, rtol=0)
    assert centre.std(0).min() > 1.5  # in all directions: 4 / sqrt(3) = 2.3
    assert turned.sum((1, 2, 3)).sub(27).abs().max() < 2


def test_blur_3d_is_scipys_gaussian() -> None:
    x = torch.rand(3, 2, 9, 10, 11, dtype=torch.float32)
    augment = BatchAugment3d(None, 0.0, 1.0, scale=0.0, shift=0.0, blur_sigma=0.8, seed=4)
    blurred = augment(x)
    draws = torch.Generator().manual_seed(augment._generator.initial_seed())  # type: ignore[union-attr]
    torch.rand(3, 1, generator=draws)
    sigma = 0.8 * torch.rand(3, 3, generator=draws)
    for n in range(3):
        for c in range(2):
            expected = ndimage.gaussian_filter(x[n, c].numpy(), sigma[n].tolist(), mode="nearest", radius=3)
            np.testing.assert_allclose(blurred[n, c], expected, atol=1e-5)
    kept = BatchAugment3d(None, 0.0, 1.0, scale=0.0, shift=0.0, blur_probability=0.5, seed=0)(x.repeat(40, 1, 1, 1, 1))
    same = (kept - x.repeat(40, 1, 1, 1, 1)).abs().amax((1, 2, 3, 4)) < 1e-6
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"hue": 0.6},
        {"jitter_probability": 2},
        {"fill": "mean"},
        {"std": 0},
    ],
)
def test_augment_arguments_are_checked(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)) if "hue" not in bad else "hue"):
        BatchAugment2d(**bad)
    with pytest.raises(ValueError, match="scale"):
        BatchAugment3d(scale=1.0)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (BatchPreprocess(mean=[0.5, 0.4, 0.3], std=0.2), (2, 3, 28, 26)),
        (BatchAugment2d(contrast=0.1, hue=0.1, rotation=180, flip_probability=0.5, fill="background"), (2, 3, 28, 26)),
        (BatchAugment2d(fill="minimum"), (2, 1, 28, 26)),
        (BatchAugment3d(rotation=True, flip_probability=0.5, fill="background"), (2, 1, 8, 7, 6)),
        (lambda x: rotate_batch(x, 30.0, mode="bilinear", fill="background"), (2, 1, 28, 26)),
        (lambda x: rotate_batch(x, 30.0, axis=1, mode="bilinear", fill="background"), (2, 1, 8, 7, 6)),
        (lambda x: rotate_batch(x, 30.0), (2, 1, 28, 26)),
        (lambda x: flip_batch(x, 0), (2, 1, 28, 26)),
    ],
)
def test_batches_stay_on_their_device(function, shape):
    """On another device (``meta``: shapes alone) nothing touches the CPU or depends on values: a GPU would wait for it."""
    x = torch.empty(shape, dtype=torch.uint8, device="meta")
    with Unwanted() as used:
        assert function(x).device.type == "meta"
    assert not used.operators
