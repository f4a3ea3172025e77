"""Grids in space: interpolation between them, and where the pixels that a network sees lie on those of their file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import LoadImage
from PIL import Image
from torch.nn import functional

from monai_sre.data import BatchPreprocess, DatasetInfo, FileImages, Grid, file_grids, read_image

SIZES = st.tuples(*[st.integers(1, 12)] * 2)


@given(SIZES, SIZES)
def test_resampling_to_another_size_is_that_of_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    values = torch.randn(old)
    grid = Grid(old, np.array([[0.0, -2.0, 0.3, 5.0], [1.5, 0.2, 0.0, 0.0], [0.0, 0.1, 1.0, -3.0], [0, 0, 0, 1]]))
    found = grid.resample(values.numpy(), grid.around(new))
    expected = functional.interpolate(values[None, None], new, mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 64))
def test_the_margins_of_an_inscribed_image_are_whole_pixels(shape: tuple[int, int, int], size: int) -> None:
    spacing = np.array([0.5, 1.0, 1.7])
    inner = Grid(shape, np.diag([*spacing, 1.0])).inscribed(size)
    extent = np.array(shape) * spacing
    assert max(inner) == inner[int(extent.argmax())] == size
    for found, exact in zip(inner, size * extent / extent.max(), strict=True):
        assert (size - found) % 2 == 0
        assert abs(found - exact) <= 1 + 1e-9 or found == 2 - size % 2


def points(grid: Grid) -> np.ndarray:
    """Of all pixels, ``(*shape, 3)``; two axes are followed by one of length 1."""
    indices = np.indices([*grid.shape, 1][:3], dtype=float)
    return np.einsum("ij,j...->...i", grid.affine[:3, :3], indices) + grid.affine[:3, 3]


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Values in 0..1; of pictures, the first axis is that of the columns."""
    if path.name == "a.png":
        Image.fromarray((values * 255).round().astype(np.uint8).T).save(path)
    elif path.name == "a.npy":
        np.save(path, values)
    else:
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), path)


TILTED = np.array([[0.1, 0.2, -2.9, 40.0], [-1.1, 0.3, 0.2, -7.0], [0.2, -2.0, 0.3, 12.5], [0, 0, 0, 1.0]])
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
    "picture": ("a.png", (11, 20), np.eye(4)),
}


@pytest.mark.parametrize(("stored", "size"), [(20, None), (20, 37), (26, None)])
@pytest.mark.parametrize(("name", "shape", "affine"), FILES.values(), ids=FILES)
def test_the_square_of_a_file_lies_where_file_grids_says(
    tmp_path: Path, name: str, shape: tuple[int, ...], affine: np.ndarray, stored: int, size: int | None
) -> None:
    """Of an image that is a linear function of space the pixels tell where they are."""
    own = Grid(shape, affine)
    middle = points(own).reshape(-1, 3).mean(axis=0)

    def linear(places: np.ndarray) -> np.ndarray:
        return (places - middle) @ [0.008, -0.006, 0.004] + 0.5

    values = linear(points(own)).reshape(shape)
    assert 0 < values.min() < values.max() < 1  # so that intensities are left as they are
    save(tmp_path / name, values, affine)
    dims = 2 if 1 in shape else len(shape)
    info = DatasetInfo("toy", dims, stored, "binary-class", 1, 2, ("no", "yes"))
    (item,) = FileImages(tmp_path, info, BatchPreprocess(size, mean=0, std=1))
    assert item["error"] == ""
    found, square = file_grids(tmp_path / name, stored)
    assert found.shape == shape
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    seen = square.around(item["image"].shape[1:])
    inverse = np.linalg.inv(affine)
    indices = points(seen) @ inverse[:3, :3].T + inverse[:3, 3]
    longest = np.array([*shape, 1][:3])
    margin = np.where(longest > 1, 1.0, -1.0)  # interpolation at the edge reaches what is beyond
    core = ((indices > margin) & (indices < longest - 1 - margin)).all(axis=-1)
    assert core.sum() > 50
    image = item["image"][0].numpy().reshape(core.shape)
    np.testing.assert_allclose(image[core], linear(points(seen))[core], atol=1 / 255 if name == "a.png" else 1e-5)


def test_pictures_and_arrays_have_the_grid_that_monai_reads(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 12, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", values)
    for name, shape in (("a.png", (12, 7)), ("a.npy", (7, 12))):
        read, own = LoadImage()(str(tmp_path / name)), file_grids(tmp_path / name)[0]
        assert own.shape == shape == read.shape[:2]
        assert np.array_equal(own.affine[:2, :2], read.affine[:2, :2])


@pytest.mark.parametrize("shape", [(28, 21), (17, 30), (9, 10)])
def test_reading_a_picture_that_is_not_square_commutes_with_turns_and_flips(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).random(shape)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", np.rot90(values))
    np.save(tmp_path / "c.npy", values[::-1])
    upright, turned, flipped = (read_image(tmp_path / f"{name}.npy", max(shape)) for name in "abc")
    torch.testing.assert_close(turned, upright.rot90(1, (1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(flipped, upright.flip(1), atol=1e-5, rtol=0)
