"""Reading files: one convention of axes, and one sentence for each failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from monai_sre.data import ReadImaged


def read(path: Path, spatial_dims: int | None = 2, **options: Any) -> Any:
    return ReadImaged("image", spatial_dims, **options)({"image": str(path)})["image"]


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values)
    elif path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


# Axes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.nii.gz"])
def test_one_convention_of_axes(tmp_path: Path, name: str) -> None:
    """The same oblong values, as a picture, an array and a slice in NIfTI, are the same tensor: first axis first."""
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    save(tmp_path / name, values[..., None] if name == "a.nii.gz" else values)
    found = read(tmp_path / name)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), values[None])
    assert found.meta["filename_or_obj"] == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.nii.gz"])
def test_channels_come_last_in_files_and_first_in_tensors(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    save(tmp_path / name, values[:, :, None] if name == "a.nii.gz" else values)
    assert np.array_equal(read(tmp_path / name, num_channels=3).numpy(), values.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((5, 4, 3), 3, (1, 5, 4, 3)),
        ((5, 4, 3, 2), 3, (2, 5, 4, 3)),
        ((5, 4, 3, 1, 2), 3, (2, 5, 4, 3)),
        ((5, 4, 3, 1), 3, (1, 5, 4, 3)),
        ((1, 4, 3, 2), 3, (2, 1, 4, 3)),  # a volume of one slice stays one
        ((5, 4, 1), 2, (1, 5, 4)),
        ((1, 5, 4), 2, (1, 5, 4)),
        ((5, 1, 4), 2, (1, 5, 4)),
        ((5, 4, 1, 2), 2, (2, 5, 4)),
        ((1, 5, 4, 2), 2, (2, 5, 4)),
        ((5, 4), 2, (1, 5, 4)),
        ((5, 4, 3), None, (1, 5, 4, 3)),
        ((5, 4, 1), None, (1, 5, 4)),
        ((5, 4, 1, 2), None, (2, 5, 4)),
    ],
    ids=str,
)
def test_axes_of_nifti(tmp_path: Path, shape: tuple[int, ...], dims: int | None, expected: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    save(tmp_path / "a.nii.gz", values)
    found = read(tmp_path / "a.nii.gz", dims)
    assert found.shape == expected
    assert np.array_equal(np.moveaxis(found.numpy(), 0, -1).ravel(), values.ravel())


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 4), 2), ((5, 4, 3), 2), ((5, 4, 7), 3), ((5, 4, 7, 3), 3), ((5, 4, 1), 2)], ids=str
)
def test_axes_of_arrays_that_nobody_states(tmp_path: Path, shape: tuple[int, ...], expected: int) -> None:
    save(tmp_path / "a.npy", np.zeros(shape))
    assert read(tmp_path / "a.npy", None).dim() == expected + 1


def test_the_affine_says_where_the_axes_lie(tmp_path: Path) -> None:
    affine = np.array([[0.1, 0.2, -2.9, 40.0], [-1.1, 0.3, 0.2, -7.0], [0.2, -2.0, 0.3, 12.5], [0, 0, 0, 1.0]])
    save(tmp_path / "a.nii", np.zeros((5, 4, 3), np.float32), affine)
    np.testing.assert_allclose(read(tmp_path / "a.nii", 3).affine, affine, atol=1e-6)
    save(tmp_path / "b.nii", np.zeros((5, 1, 3), np.float32), affine)  # the dropped axis is the last
    np.testing.assert_allclose(read(tmp_path / "b.nii").affine, affine[:, [0, 2, 1, 3]], atol=1e-6)
    save(tmp_path / "c.png", np.zeros((5, 4), np.uint8))
    assert (read(tmp_path / "c.png").affine.numpy() @ [3, 1, 0, 1]).tolist() == [1, 3, 0, 1]  # row 3, column 1: x is 1


def test_pictures_are_turned_as_they_are_displayed(tmp_path: Path) -> None:
    pixels = np.zeros((3, 5), dtype=np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be displayed turned clockwise by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(pixels, -1)
    assert expected[0, 2] == 200
    for mask in (False, True):
        assert np.array_equal(read(tmp_path / "a.png", as_classes=mask)[0].numpy(), expected)


# Colours and types ----------------------------------------------------------------------------------------------------


def test_palettes_are_colours_in_images_and_classes_in_masks(tmp_path: Path) -> None:
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indices.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[:, 0, 1].tolist() == [255, 0, 0]
    assert read(tmp_path / "a.png", as_classes=True).tolist() == [[[0, 1], [2, 1]]]


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_palettes_of_greys_are_greys(tmp_path: Path, name: str) -> None:
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:3, 2:5] = 255
    picture = Image.fromarray(mask).convert("RGB").quantize(2)
    assert picture.mode == "P"
    picture.save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name, as_classes=True)[0].numpy(), mask)


def test_a_constant_transparency_is_no_channel_of_a_mask(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    mask.convert("LA").save(tmp_path / "a.png")
    mask.convert("RGBA").save(tmp_path / "b.png")
    assert [len(read(tmp_path / name, as_classes=True)) for name in ("a.png", "b.png")] == [1, 3]


def test_grey_feeds_colour_and_equal_colours_feed_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    save(tmp_path / "a.png", grey)
    assert np.array_equal(read(tmp_path / "a.png", num_channels=3).numpy(), np.stack([grey] * 3))
    save(tmp_path / "b.png", np.stack([grey] * 3, -1))
    assert np.array_equal(read(tmp_path / "b.png", num_channels=1).numpy(), grey[None])


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "f4", "f8", ">f8", "?", np.longdouble])
def test_8_bit_data_stay_and_others_become_float32(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    save(tmp_path / "a.npy", values)
    found = read(tmp_path / "a.npy")
    assert found.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
    assert np.array_equal(found[0].numpy(), values)


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.npy", "a.npz"])
def test_damaged_files_end_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing of the kind")
    with pytest.raises(ValueError, match=f"^{tmp_path / name} cannot be read as an image: [A-Za-z]+: "):
        read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png is missing"):
        read(tmp_path / "missing.png")
    np.save(tmp_path / "b.npy", np.array(["a", "b"]))
    with pytest.raises(ValueError, match=r"b\.npy holds <U1 values; expected numbers"):
        read(tmp_path / "b.npy")


def test_several_images_in_a_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), value, dtype=np.uint8)) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image: .* it holds 3 pages; expected one image"):
        read(tmp_path / "a.tif")
    np.savez(tmp_path / "b.npz", image=np.eye(3), label=np.eye(3))
    with pytest.raises(ValueError, match=r"b\.npz cannot be read .* it holds 2 arrays; expected one image"):
        read(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((4, 4, 4)), {"num_channels": 3}, "has 4 channels; the network takes 3"),
        (np.zeros((4, 4, 4)), {"num_channels": 1}, "has 4 channels; the network takes 1"),
        (np.stack([np.eye(4)] * 2 + [np.ones((4, 4))], -1), {"num_channels": 1}, "has 3 channels; the network takes 1"),
        (np.zeros((4, 4, 4, 4)), {}, r"has 4 spatial axes, shape \(4, 4, 4, 4\); the network takes images of 2"),
        (np.zeros((4, 4)), {"spatial_dims": 3}, "has 2 spatial axes, .* the network takes images of 3"),
        (np.zeros(4), {}, "has 1 spatial axes"),
        (np.zeros(4), {"spatial_dims": None}, r"has shape \(4,\); expected a 2-D image or a 3-D volume"),
        (np.zeros((0, 4)), {}, r"is empty: shape \(0, 4\)"),
        (np.full((4, 4), np.nan), {}, "holds NaN or infinite values"),
        (np.full((4, 4), np.inf), {}, "holds NaN or infinite values"),
        (np.full((4, 4), 1e300), {}, r"holds values up to 1e\+300, beyond those of float32"),
        (np.zeros((4, 4), complex), {}, "holds complex128 values; expected numbers"),
    ],
    ids=lambda value: str(value.shape) if isinstance(value, np.ndarray) else "",
)
def test_images_that_the_network_cannot_take(
    tmp_path: Path, values: np.ndarray, options: dict[str, Any], message: str
) -> None:
    save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'a.npy'} {message}"):
        read(tmp_path / "a.npy", **options)


@pytest.mark.parametrize("last", [0.0, np.nan])
def test_voxels_without_a_place_are_refused(tmp_path: Path, last: float) -> None:
    save(tmp_path / "a.nii", np.zeros((5, 4, 3), np.float32))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[312:328] = np.array([0, 0, last, last], "<f4").tobytes()  # the last row of the sform
    content[252:256] = bytes([0, 0, 1, 0])  # qform_code 0, sform_code 1
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii has a singular affine"):
        read(tmp_path / "a.nii", 3)


def test_a_compressed_file_whose_checksum_is_wrong_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((50, 40, 30)))
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii\.gz cannot be read as an image: BadGzipFile: CRC check failed"):
        read(tmp_path / "a.nii.gz", 3)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="spatial_dims must be 2, 3 or None, got 4"):
        ReadImaged("image", 4)
