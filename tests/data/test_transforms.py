"""Transforms of images: intensities, the fit to a square and back, and margins."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd
from PIL import Image
from scipy.spatial.transform import Rotation
from torch.nn import functional

from monai_sre.data import (
    BatchPreprocess,
    FitSquared,
    RandMargind,
    ReadImaged,
    ScaleToUnitd,
    fit_images,
)
from monai_sre.data.reader import own_affine
from monai_sre.symmetry import lattice_symmetries

# Intensities ----------------------------------------------------------------------------------------------------------


def test_8_bit_intensities_stay_and_others_become_0_to_1() -> None:
    values = torch.tensor([[[0.0, 50.0, 200.0]]])
    scale = ScaleToUnitd("image", [0, 100])
    assert scale({"image": MetaTensor(values)})["image"].tolist() == [[[0.0, 0.5, 1.0]]]
    assert scale({"image": MetaTensor(values.byte())})["image"].tolist() == [[[0, 50, 200]]]
    assert ScaleToUnitd("image")({"image": values})["image"].tolist() == [[[0.0, 0.25, 1.0]]]
    with pytest.raises(ValueError, match="intensity_range must be two increasing values, got"):
        ScaleToUnitd("image", [5, 1])
    with pytest.raises(ValueError, match="intensity_range must be two increasing values, got 100"):
        ScaleToUnitd("image", 100)


# Squares --------------------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 64))
def test_margins_are_whole_pixels_and_alike(shape: tuple[int, int, int], size: int) -> None:
    """Ones in a square of zeros tell the sides of the image; each is within one pixel of its exact length."""
    spacing = np.array([0.5, 1.0, 1.7])
    extent = np.array(shape) * spacing
    image = MetaTensor(torch.ones(1, *shape), affine=torch.diag(torch.tensor([*spacing, 1.0])))
    square = FitSquared("image", size)({"image": image})["image"]
    assert square.shape == (1, size, size, size)
    steps = square.affine.diagonal()[:3].numpy()
    inner = extent / steps
    np.testing.assert_allclose(inner, inner.round(), atol=1e-9)
    inner = inner.round().astype(int)
    assert max(inner) == inner[int(extent.argmax())] == size
    for found, exact in zip(inner, size * extent / extent.max(), strict=True):
        assert (size - found) % 2 == 0
        assert abs(found - exact) <= 1 + 1e-9 or found == 2 - size % 2


TILTED = np.eye(4)
TILTED[:3, :3] = Rotation.from_euler("xyz", [80, -35, 50], degrees=True).as_matrix() * [1.1, 2.0, 2.9]
TILTED[:3, 3] = [40.0, -7.0, 12.5]
#: Name, shape, affine; the longest axis has the smallest spacing, so that none shrinks: averages would not be linear.
FILES = {
    "volume": ("a.nii", (20, 9, 10), np.diag([1.0, 2.0, 1.5, 1.0])),
    "turned volume": ("a.nii.gz", (20, 11, 6), np.diag([-1.0, 1.5, -3.0, 1.0])[[2, 0, 1, 3]]),
    "tilted volume": ("a.nii.gz", (20, 8, 5), TILTED),
    "slice": ("a.nii.gz", (20, 13, 1), np.diag([-1.0, 1.5, 4.0, 1.0])),
    "turned slice": ("a.nii.gz", (1, 20, 13), np.diag([-1.0, 1.5, 4.0, 1.0])[:, [2, 0, 1, 3]]),
    "sagittal slice": ("a.nii.gz", (20, 13, 1), np.diag([4.0, -1.0, 1.5, 1.0])[:, [1, 2, 0, 3]]),
    "coronal slice": ("a.nii", (20, 1, 13), np.diag([1.0, 4.0, 1.5, 1.0])),
    "array": ("a.npy", (11, 20), np.eye(4)),
    "picture": ("a.png", (11, 20), np.eye(4)[:, [1, 0, 2, 3]]),
}


def points(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Of all pixels, ``(*shape, 3)``; two axes are followed by one of length 1."""
    indices = np.indices([*shape, 1][:3], dtype=float)
    return np.einsum("ij,j...->...i", affine[:3, :3], indices) + affine[:3, 3]


@pytest.mark.parametrize(("stored", "size"), [(20, None), (20, 37), (26, None)])
@pytest.mark.parametrize(("name", "shape", "affine"), FILES.values(), ids=FILES)
def test_the_square_of_a_file_lies_where_its_affine_says(
    tmp_path: Path, name: str, shape: tuple[int, ...], affine: np.ndarray, stored: int, size: int | None
) -> None:
    """Of an image that is a linear function of space the pixels tell where they are, in the square and back in the file."""
    middle = points(shape, affine).reshape(-1, 3).mean(axis=0)

    def linear(places: np.ndarray) -> np.ndarray:
        return (places - middle) @ [0.008, -0.006, 0.004] + 0.5

    values = linear(points(shape, affine)).reshape(shape)
    assert 0 < values.min() < values.max() < 1  # so that intensities are left as they are
    tolerance = 1 / 255 if name == "a.png" else 1e-5
    if name == "a.png":
        Image.fromarray((values * 255).round().astype(np.uint8)).save(tmp_path / name)
    elif name == "a.npy":
        np.save(tmp_path / name, values)
    else:
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / name)
    dims = 2 if 1 in shape else len(shape)
    orient = [Orientationd("image", "RAS", labels=None)] if dims == 3 else []
    fit = FitSquared("image", stored, size or stored)
    chain = Compose([ReadImaged("image", dims, 1), *orient, ScaleToUnitd("image"), fit])
    seen = chain({"image": tmp_path / name})["image"]
    original = ReadImaged("image", dims)({"image": tmp_path / name})["image"]
    # slices of any direction are read as axial ones
    turned = original.affine.numpy() @ np.linalg.inv(own_affine(original))
    places = points(seen.shape[1:], np.linalg.inv(turned) @ seen.affine.numpy())
    inverse = np.linalg.inv(affine)
    indices = places @ inverse[:3, :3].T + inverse[:3, 3]
    longest = np.array([*shape, 1][:3])
    margin = np.where(longest > 1, 1.0, -1.0)  # interpolation at the edge reaches what is beyond
    core = ((indices > margin) & (indices < longest - 1 - margin)).all(axis=-1)
    assert core.sum() > 50
    np.testing.assert_allclose(seen.numpy().reshape(core.shape)[core], linear(places)[core], atol=tolerance)

    exact = MetaTensor(torch.from_numpy(linear(places).astype(np.float32)).reshape(seen.shape))
    back = Invertd("map", chain, orig_keys="image", nearest_interp=False)({"image": seen, "map": exact})["map"]
    assert back.shape[1:] == tuple(length for length in shape if length > 1)
    np.testing.assert_allclose(back.numpy().reshape(shape), values, atol=1e-5)
    np.testing.assert_allclose(back.affine, original.affine, atol=1e-6)


@pytest.mark.parametrize(("degrees", "refused"), [(0.0, False), (0.5, False), (6.0, True), (20.0, True)])
def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path, degrees: float, refused: bool) -> None:
    affine = np.diag([0.5, 0.5, 3.0, 1.0])
    affine[1, 2] = 3 * np.tan(np.deg2rad(degrees))  # each slice lies further to the front
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 6, 4), np.float32), affine), tmp_path / "a.nii")
    image, fit = ReadImaged("image", 3)({"image": tmp_path / "a.nii"}), FitSquared("image", 8)
    if not refused:
        assert fit(image)["image"].shape == (1, 8, 8, 8)
        return
    with pytest.raises(ValueError, match=rf"a\.nii has axes that stand {degrees:.1f} degrees from right angles"):
        fit(image)
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 1, 4), np.float32), affine), tmp_path / "a.nii")
    slice_ = ReadImaged("image", 2)({"image": tmp_path / "a.nii"})
    assert fit(slice_)["image"].shape == (1, 8, 8)  # the other two axes are at right angles


@given(st.integers(1, 12), st.integers(1, 12))
def test_back_from_a_square_is_torchs_interpolation(old: int, new: int) -> None:
    fit = FitSquared("image", new)
    seen = fit({"image": MetaTensor(torch.zeros(1, old, old))})["image"]
    values = torch.randn(2, new, new)
    back = Invertd("map", Compose([fit]), orig_keys="image")({"image": seen, "map": MetaTensor(values)})["map"]
    expected = functional.interpolate(values[None], (old, old), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(back.as_tensor(), expected, atol=1e-5, rtol=1e-5)


def test_8_bit_squares_are_rounded_and_then_preprocessed_as_batches_are() -> None:
    image = torch.randint(0, 256, (3, 21, 30), dtype=torch.uint8)
    square = FitSquared("image", 16)({"image": image})["image"]
    assert square.dtype == torch.uint8
    assert torch.equal(square, fit_images(image[None], 16)[0])
    seen = FitSquared("image", 16, 20)({"image": image})["image"]
    torch.testing.assert_close(seen, BatchPreprocess(20, mean=0, std=1)(square[None])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(28, 21), (17, 30), (9, 10), (14, 9, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_images_that_are_not_square_commute_with_turns_and_flips(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    image = (255 * torch.rand(1, 1, *shape)).to(dtype)
    fit = FitSquared("image", max(shape), 24)
    upright = fit({"image": image[0]})["image"]
    for symmetry in lattice_symmetries(len(shape)).values():
        found = fit({"image": symmetry(image)[0]})["image"]
        torch.testing.assert_close(found, symmetry(upright[None])[0], atol=2e-5 * float(upright.max()), rtol=0)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="size and image_size must be at least 1, got 0 and None"):
        FitSquared("image", 0)


# Margins --------------------------------------------------------------------------------------------------------------


def test_images_and_class_maps_move_alike_and_what_enters_is_background() -> None:
    """Of two channels each has its own background; a move reaches half of an axis at most, and all moves come up."""
    image = torch.stack([torch.full((6, 4), 2.0), torch.full((6, 4), -3.0)])
    image[:, 1:5, 1:3] = 9.0
    label = (image[:1] == 9.0).float()
    move, seen = RandMargind(["image", "label"], prob=1.0).set_random_state(0), set()
    for _ in range(200):
        moved = move({"image": image, "label": label})
        assert torch.equal(moved["label"], (moved["image"][:1] == 9.0).float())
        assert set(moved["image"][0].unique().tolist()) <= {2.0, 9.0}
        assert set(moved["image"][1].unique().tolist()) <= {-3.0, 9.0}
        inside = moved["label"][0].nonzero()
        seen |= {tuple((inside.amin(dim=0) - 1).tolist()) if len(inside) == 8 else None}
    assert {(0, 0), (1, 0), (-1, 1)} & seen
    assert all(step is None or (abs(step[0]) <= 3 and abs(step[1]) <= 2) for step in seen)


def test_without_a_move_the_sample_is_the_same_and_prob_is_checked() -> None:
    data = {"image": torch.rand(1, 4, 4), "label": torch.zeros(1, 4, 4)}
    assert RandMargind(["image", "label"], prob=0.0)(data)["image"] is data["image"]
    with pytest.raises(ValueError, match="prob must be between 0 and 1, got 2"):
        RandMargind("image", prob=2)


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_of_0_and_1_is_black_and_white_in_any_dtype(tmp_path: Path, dtype: type) -> None:
    """As 0 and 255 of 8 bits are; 8-bit images that are dark, or black, keep their scale."""
    mask = np.zeros((6, 4, 4), dtype=dtype)
    mask[2:4, 1:3, 1:3] = 1
    seen = []
    for name, values in (
        ("mask", mask),
        ("white", (mask * 255).astype(np.uint8)),
        ("dark", (mask * 2).astype(np.uint8)),
    ):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
        chain = Compose([ReadImaged("image", 3, 1), ScaleToUnitd("image"), FitSquared("image", 6, 6)])
        seen.append(chain({"image": tmp_path / f"{name}.nii"})["image"].as_tensor())
    assert torch.equal(seen[0], seen[1])
    assert seen[0].max() == 1
    assert torch.equal(seen[2], seen[1] * 2 / 255)
    black = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert ScaleToUnitd("image")({"image": black})["image"].dtype == torch.uint8
