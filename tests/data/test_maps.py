"""Transforms of images and class maps: reading, checking, and the field of view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from monai_sre.data import CheckImaged, ClassMapd, FieldOfViewd, IgnoreOutsided, NormalizeFieldd, ReadImaged, read_image

# Reading --------------------------------------------------------------------------------------------------------------


def read(path: Path, **options: Any) -> Any:
    return ReadImaged("image", **options)({"image": str(path)})["image"]


def test_pictures_arrays_and_volumes(tmp_path: Path) -> None:
    """Columns by rows for pictures, channels first; the fourth axis of NIfTI is the channels."""
    picture = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert np.array_equal(found.numpy(), picture.transpose(2, 1, 0))
    assert found.meta["filename_or_obj"] == str(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", picture[..., 0])
    assert np.array_equal(read(tmp_path / "b.npy")[0].numpy(), picture[..., 0])
    affine = np.diag([2.0, -3.0, 4.0, 1.0])
    for shape, channels in (((5, 4, 3), 1), ((5, 4, 3, 2), 2)):
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), affine), tmp_path / "c.nii.gz")
        volume = read(tmp_path / "c.nii.gz")
        assert volume.shape == (channels, 5, 4, 3)
        assert np.array_equal(volume.affine.numpy(), affine)


def test_palettes_are_colours_in_images_and_classes_in_masks(tmp_path: Path) -> None:
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indices.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[:, 1, 0].tolist() == [255, 0, 0]
    assert read(tmp_path / "a.png", as_classes=True).tolist() == [[[0, 2], [1, 1]]]


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_palettes_of_greys_are_greys(tmp_path: Path, name: str) -> None:
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:3, 2:5] = 255
    picture = Image.fromarray(mask).convert("RGB").quantize(2)
    assert picture.mode == "P"
    picture.save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name, as_classes=True)[0].numpy().T, mask)


def test_a_constant_transparency_is_no_channel_of_a_mask(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    mask.convert("LA").save(tmp_path / "a.png")
    mask.convert("RGBA").save(tmp_path / "b.png")
    assert [len(read(tmp_path / name, as_classes=True)) for name in ("a.png", "b.png")] == [1, 3]


def test_several_images_in_a_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), value, dtype=np.uint8)) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for reader in (read, read_image):
        with pytest.raises(
            ValueError, match=r"a\.tif cannot be read as an image: .* it holds 3 pages; expected one image"
        ):
            reader(tmp_path / "a.tif")
    np.savez(tmp_path / "b.npz", image=np.eye(3), label=np.eye(3))
    with pytest.raises(ValueError, match=r"b\.npz cannot be read .* it holds 2 arrays; expected one image"):
        read(tmp_path / "b.npz")


def test_levels_of_grey_are_no_two_classes(tmp_path: Path) -> None:
    mask = np.array([[0, 127, 255]], dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    data = {"image": torch.zeros(1, 3, 1), "label": read(tmp_path / "a.png", as_classes=True)}
    with pytest.raises(ValueError, match=r"a\.png holds 3 values \(0, 127, 255\); a mask of two classes holds two"):
        ClassMapd("label", "image", 2)(data)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1)])
def test_pairs_of_slices(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    shifted = affine.copy()
    shifted[1, 3] = 5.0
    for name, where in {"image": affine, "label": affine, "away": shifted}.items():
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.int16), where), tmp_path / f"{name}.nii.gz")
    items = {name: read(tmp_path / f"{name}.nii.gz") for name in ("image", "label", "away")}
    items = CheckImaged("image", 1, 2)(items)
    assert ClassMapd("label", "image", 2)(items)["label"].shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"away\.nii\.gz lies elsewhere in space"):
        ClassMapd("away", "image", 2)(items)


def test_pictures_are_turned_as_they_are_displayed(tmp_path: Path) -> None:
    pixels = np.zeros((3, 5), dtype=np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be displayed turned clockwise by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(pixels, -1)
    assert expected[0, 2] == 200
    for mask in (False, True):
        assert np.array_equal(read(tmp_path / "a.png", as_classes=mask)[0].numpy().T, expected)
    assert np.array_equal(read_image(tmp_path / "a.png")[0].numpy(), expected)


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


# Checking -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 4, 4), "the item 'image' has 3 spatial axes; the network takes images of 2"),
        (torch.zeros(3, 0, 4), r"the item 'image' is empty: shape \(3, 0, 4\)"),
        (torch.zeros(4, 4, 4), "the item 'image' has 4 channels; the network takes 3"),
        (torch.full((3, 4, 4), float("nan")), "the item 'image' holds NaN or infinite values"),
        (torch.full((3, 4, 4), float("inf")), "the item 'image' holds NaN or infinite values"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else "",
)
def test_images_that_the_network_cannot_take(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckImaged("image", num_channels=3, spatial_dims=2)({"image": image})


def test_the_file_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match=f"^{tmp_path / 'a.npy'} has 3 spatial axes"):
        CheckImaged("image", 1, 2)({"image": read(tmp_path / "a.npy")})


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        ([[0, 255], [255, 0]], [[0, 1], [1, 0]]),
        ([[3, 250], [250, 9]], [[0, 1], [1, 0]]),  # a JPEG's
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]]),
        ([[255, 255], [255, 255]], [[1, 1], [1, 1]]),
        ([[0, 2], [2, 0]], [[0, 1], [1, 0]]),
    ],
    ids=str,
)
def test_two_classes_in_any_coding(mask: list, expected: list) -> None:
    for channels in (1, 3):
        data = {"image": torch.zeros(3, 2, 2), "label": torch.tensor(mask).float().repeat(channels, 1, 1)}
        assert ClassMapd("label", "image", 2)(data)["label"].tolist() == [expected]


def test_class_numbers_stay() -> None:
    data = {"image": torch.zeros(1, 1, 3), "label": torch.tensor([[[0.0, 2.0, 1.0]]])}
    assert ClassMapd("label", "image", 3)(data)["label"].tolist() == [[[0.0, 2.0, 1.0]]]


@pytest.mark.parametrize(
    ("mask", "classes", "message"),
    [
        (torch.zeros(1, 2, 3), 2, r"has shape \(2, 3\) and its image \(3, 2\); they must be alike"),
        (torch.rand(3, 3, 2), 2, "has 3 channels that differ; expected one map of classes"),
        (torch.full((1, 3, 2), 3.0), 3, "holds values that are no class number from 0 to 2"),
        (torch.full((1, 3, 2), 0.5), 3, "holds values that are no class number from 0 to 2"),
        (torch.tensor([[[0.0, 1], [2, 0], [1, 0]]]), 2, r"holds 3 values \(0, 1, 2\); a mask of two classes holds two"),
        (torch.tensor([[[1.0, 2], [2, 1], [1, 2]]]), 2, "holds 1 and 2; the background of a mask of two classes is 0"),
        (torch.full((1, 3, 2), 2.0), 2, "holds 2; the background of a mask of two classes is 0"),
        (torch.full((1, 3, 2), float("nan")), 2, "holds NaN or infinite values; expected class numbers"),
    ],
    ids=["shape", "channels", "large", "fraction", "three classes", "no background", "one other value", "nan"],
)
def test_masks_that_cannot_be_used(mask: torch.Tensor, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassMapd("label", "image", classes)({"image": torch.zeros(3, 3, 2), "label": mask})


def volume_pair(folder: Path, mask: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """An image of voxels of 1 x 1 x 2 mm, patient's left and front first, and a mask with an affine of its own."""
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(mask.shape, np.int16), np.diag([-1.0, -1, 2, 1])), folder / "image.nii.gz"
    )
    nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "mask.nii.gz")
    files = {"image": str(folder / "image.nii.gz"), "label": str(folder / "mask.nii.gz")}
    return ClassMapd("label", "image", 2)(ReadImaged(["image", "label"])(files))


def test_a_mask_must_lie_where_its_image_does(tmp_path: Path) -> None:
    mask = np.eye(4, dtype=np.uint8)[..., None].repeat(3, axis=2)
    affine = np.diag([-1.0, -1, 2, 1])
    affine[0, 3] = 0.05  # rounding
    assert volume_pair(tmp_path, mask, affine)["label"].sum() == 12
    for elsewhere in (np.eye(4), np.diag([-1.0, -1, 2.2, 1])):
        with pytest.raises(ValueError, match=r"mask\.nii\.gz lies elsewhere in space than its image .*image\.nii"):
            volume_pair(tmp_path, mask, elsewhere)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz holds 3 values \(0, 100, 200\)"):
        volume_pair(tmp_path, (100 * (mask + mask[::-1, :, :] * 2)).clip(0, 200).astype(np.uint8), affine)


# Field of view --------------------------------------------------------------------------------------------------------


def test_the_field_is_the_disc() -> None:
    """A bright disc with dark holes, noise in the frame and a bright speck there: the disc and nothing else."""
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")
    disc = (rows - 30).square() + (columns - 33).square() < 25**2
    image = 3 * torch.rand(3, 60, 70) + disc * torch.tensor([120.0, 40.0, 5.0]).reshape(3, 1, 1)
    image[:, 25:28, 30:36] = 0
    image[:, 2:4, 2:4] = 200
    found = FieldOfViewd("image", "field")({"image": image})["field"]
    assert torch.equal(found[0] > 0, disc)


def test_an_image_without_a_frame_is_its_own_field() -> None:
    for image in (50 + torch.rand(3, 9, 8), torch.zeros(3, 9, 8)):
        assert FieldOfViewd("image", "field")({"image": image})["field"].shape == (1, 9, 8)
        assert bool(FieldOfViewd("image", "field")({"image": image})["field"].all())
    dark = torch.zeros(1, 9, 8)
    dark[0, :4] = 1.0
    assert bool(FieldOfViewd("image", "field", threshold=0)({"image": dark})["field"].all())


def test_fields_of_real_images(data_dir: Path) -> None:
    """Discs that span the frame's height: their area is that of a circle to a percent or two, cut a little at the rims."""
    for path in sorted((data_dir / "chase_db1/images").glob("*L.jpg"))[::5]:
        field = FieldOfViewd("image", "field")({"image": read(path)})["field"][0] > 0
        columns, rows = (torch.nonzero(field.any(dim=axis)).flatten() for axis in (1, 0))
        spans = [int(found[-1] - found[0]) + 1 for found in (columns, rows)]
        circle = np.pi * spans[0] * spans[1] / 4
        assert 0.97 < int(field.sum()) / circle < 1.03


def test_normalisation_inside_of_the_field() -> None:
    image, field = 100 * torch.rand(3, 20, 20) + 50, torch.zeros(1, 20, 20)
    field[:, 4:15, 3:18] = 1
    found = NormalizeFieldd("image", "field")({"image": image, "field": field})["image"]
    inside = found[:, field[0] > 0]
    torch.testing.assert_close(inside.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.square().mean(dim=1), torch.ones(3))
    assert not bool(found[:, field[0] == 0].any())
    flat = NormalizeFieldd("image", "field")({"image": torch.ones(1, 20, 20), "field": field})["image"]
    assert not bool(flat.any())


def test_ignored_outside_of_the_field() -> None:
    label, field = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    data = IgnoreOutsided("label", "field")({"label": label, "field": field})
    assert data["label"].tolist() == [[[1.0, -1.0]]]


def test_a_field_that_holds_not_the_foreground_is_refused() -> None:
    label, field = torch.zeros(1, 4, 10), torch.ones(1, 4, 10)
    label[..., 5:], field[0, 0, 9] = 1.0, 0.0  # 1 of 20
    assert IgnoreOutsided("label", "field")({"label": label, "field": field})["label"].sum() == 18
    field[0, 1, 9] = 0.0
    with pytest.raises(ValueError, match=r"the item 'label': 10% of its foreground .* field_threshold=0 takes"):
        IgnoreOutsided("label", "field")({"label": label, "field": field})


def test_images_with_negative_values_are_all_field() -> None:
    image = torch.full((1, 6, 6), -1000.0)
    image[0, 2:4, 2:4] = 40.0
    assert FieldOfViewd("image", "fov")({"image": image})["fov"].sum() == 36
