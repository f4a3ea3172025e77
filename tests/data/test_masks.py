"""Masks: class numbers of files' values in every coding, what cannot be used, and the field of view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Orientation
from PIL import ExifTags, Image

from monai_sre.data import ClassMapd, FieldOfViewd, IgnoreOutsided, NormalizeFieldd, ReadImaged
from tests.data.dicom_series import save_series


def read(path: Path, **options: Any) -> Any:
    return ReadImaged("image", 2, **options)({"image": str(path)})["image"]


# Class maps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "pgm", "ppm", "jp2", "npy", "dicom"])
def test_levels_of_grey_are_no_two_classes(tmp_path: Path, ending: str) -> None:
    mask, path = np.array([[0, 127, 255]], dtype=np.uint8), tmp_path / f"a.{ending}"
    if ending == "npy":
        np.save(path, mask)
    elif ending == "dicom":
        pytest.importorskip("pydicom")
        path = save_series(tmp_path, mask.T[..., None])[0]
    else:
        Image.fromarray(mask).convert("RGB" if ending == "ppm" else "L").save(path)
    data = {"image": torch.zeros(1, 1, 3), "label": read(path, as_classes=True)}
    with pytest.raises(
        ValueError, match=rf"{path.name} holds 3 values \(0, 127, 255\); a mask of two classes holds two"
    ):
        ClassMapd("label", "image", 2)(data)


def test_smoothed_edges_are_split_and_objects_of_a_value_each_refused(tmp_path: Path) -> None:
    disc = np.hypot(*np.mgrid[-20:20, -20:20])
    smooth = (255 * np.clip((15 - disc) / 3 + 0.5, 0, 1)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    data = {"image": torch.zeros(1, 40, 40), "label": read(tmp_path / "smooth.png", as_classes=True)}
    assert bool((ClassMapd("label", "image", 2)(data)["label"][0] == torch.from_numpy(smooth > 127)).all())
    nuclei = np.kron(np.arange(9).reshape(3, 3) * 30, np.ones((8, 8), int))
    nuclei[18:] = 240  # the last is the largest
    for name, kind in (("a.png", np.uint8), ("a.tif", np.uint16)):
        Image.fromarray(nuclei.astype(kind)).save(tmp_path / name)
        data = {"image": torch.zeros(1, 24, 24), "label": read(tmp_path / name, as_classes=True)}
        with pytest.raises(
            ValueError, match=r"holds 9 values \(0, 30, 60, 90, 120, ...\); .* 0 and one for all objects"
        ):
            ClassMapd("label", "image", 2)(data)


@pytest.mark.parametrize(
    ("orientation", "size", "message"),
    [
        (1, (6, 6), ""),
        (3, (6, 4), "mask.png: the EXIF orientation of the image is 3, that of the mask 1"),
        (6, (6, 6), "mask.png: the EXIF orientation of the image is 6, that of the mask 1"),
        (6, (6, 4), "they must be alike: the EXIF orientation of the image is 6, that of the mask 1"),
    ],
)
def test_a_picture_that_is_turned_without_its_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int, size: tuple[int, int], message: str
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size).save(tmp_path / "image.jpg", exif=exif)
    Image.new("L", size).save(tmp_path / "mask.png")
    data = {"image": read(tmp_path / "image.jpg"), "label": read(tmp_path / "mask.png", as_classes=True)}
    if "alike" in message:
        with pytest.raises(ValueError, match=message):
            ClassMapd("label", "image", 2)(data)
    else:
        ClassMapd("label", "image", 2)(data)
        assert message in caplog.text
        assert bool(caplog.records) == bool(message)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1)])
def test_pairs_of_slices(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    shifted = affine.copy()
    shifted[1, 3] = 5.0
    for name, where in {"image": affine, "label": affine, "away": shifted}.items():
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.int16), where), tmp_path / f"{name}.nii.gz")
    items = {name: read(tmp_path / f"{name}.nii.gz") for name in ("image", "label", "away")}
    assert ClassMapd("label", "image", 2)(items)["label"].shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"away\.nii\.gz lies elsewhere in space"):
        ClassMapd("away", "image", 2)(items)


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
    for two in (2.0, 2.0000305, 1.9999695):  # as they come back from a file that scales what it stores
        data = {"image": torch.zeros(1, 1, 3), "label": torch.tensor([[[0.0, two, 1.0]]])}
        assert ClassMapd("label", "image", 3)(data)["label"].tolist() == [[[0.0, 2.0, 1.0]]]
    data["label"] = torch.tensor([[[0.0, 0.99998, 1.0000153]]])
    assert ClassMapd("label", "image", 2)(data)["label"].tolist() == [[[0.0, 1.0, 1.0]]]


def test_values_that_skip_numbers_become_classes() -> None:
    data = {"image": torch.zeros(1, 1, 4), "label": torch.tensor([[[3.0, 1.0, 2.9999997, 7.0]]])}
    assert ClassMapd("label", "image", 3, values=[1, 3, 7])(data)["label"].tolist() == [[[1.0, 0.0, 1.0, 2.0]]]
    assert ClassMapd("label", "image", None)(data)["label"].tolist() == [[[3.0, 1.0, 3.0, 7.0]]]
    with pytest.raises(ValueError, match=r"the item 'label' holds 7, which is none of label_values=\[1, 3\]"):
        ClassMapd("label", "image", 2, values=[1, 3])(data)
    for values in ([0, 1], [0, 1, 1]):
        with pytest.raises(ValueError, match=r"label_values must be 3 whole numbers that differ, got \[0, 1"):
            ClassMapd("label", "image", 3, values=values)


@pytest.mark.parametrize(
    ("mask", "classes", "message"),
    [
        (torch.zeros(1, 2, 3), 2, r"has shape \(2, 3\) and its image \(3, 2\); they must be alike"),
        (torch.rand(3, 3, 2), 2, "has 3 channels that differ; expected one map of class numbers"),
        (torch.rand(3, 2, 4), 2, "has 3 channels that differ; .*of one-hot channels, save the number of the largest"),
        (torch.full((1, 3, 2), 3.0), 3, "holds 3, which is no class number from 0 to 2"),
        (torch.full((1, 3, 2), 1.0011), 3, "holds 1.0010999.*, which is no class number from 0 to 2"),
        (torch.full((1, 3, 2), 0.5), 3, "holds 0.5, which is no class number from 0 to 2"),
        (torch.tensor([[[0.0, 1], [2, 0], [1, 0]]]), 2, r"holds 3 values \(0, 1, 2\); a mask of two classes holds two"),
        (torch.tensor([[[1.0, 2], [2, 1], [1, 2]]]), 2, "holds 1 and 2; the background of a mask of two classes is 0"),
        (torch.full((1, 3, 2), 2.0), 2, "holds 2; the background of a mask of two classes is 0"),
        (torch.full((1, 3, 2), float("nan")), 2, "holds NaN or infinite values; expected class numbers"),
    ],
    ids=[
        "shape",
        "channels",
        "channels first",
        "large",
        "nearly",
        "fraction",
        "three classes",
        "no background",
        "one other value",
        "nan",
    ],
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
    return ClassMapd("label", "image", 2)(ReadImaged(["image", "label"], 3)(files))


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


@pytest.mark.parametrize("kinds", [("nifti", "array"), ("array", "nifti"), ("dicom", "array"), ("dicom", "nifti")])
def test_a_mask_of_another_kind_turns_with_its_image(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """From the patient's left and back on: both are turned to RAS, or neither where the image has no place."""
    values, affine = np.zeros((6, 5, 4), np.int16), np.diag([-1.0, -1, 2, 1])
    values[:2, 1:3, :3] = 7
    files: dict[str, Any] = {}
    for key, kind in zip(("image", "label"), kinds, strict=True):
        files[key] = tmp_path / f"{key}.{'npy' if kind == 'array' else 'nii.gz'}"
        if kind == "array":
            np.save(files[key], values)
        elif kind == "nifti":
            nibabel.save(nibabel.Nifti1Image(values, affine), files[key])
        else:
            pytest.importorskip("pydicom")
            files[key] = save_series(tmp_path / "series", values, affine)
    read_both = ReadImaged(["image", "label"], 3, as_classes=[False, True])
    pair = ClassMapd("label", "image", 2)(read_both(files))
    image, label = (Orientation("RAS", labels=None)(pair[key]).as_tensor() for key in ("image", "label"))
    assert torch.equal(image > 0, label > 0)
    turned = torch.from_numpy(values > 0) if kinds[0] == "array" else torch.from_numpy(values > 0).flip(0, 1)
    assert torch.equal(label[0] > 0, turned)
    if kinds == ("dicom", "nifti"):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), files["label"])
        with pytest.raises(ValueError, match=r"label\.nii\.gz lies elsewhere in space than its image .*IM00"):
            ClassMapd("label", "image", 2)(read_both(files))


def test_class_numbers_that_float32_would_round_are_refused(tmp_path: Path) -> None:
    """Of 312782574 and 312782578 it makes one. Images are rounded, as fractions are."""
    np.save(tmp_path / "a.npy", np.array([[0, 16777216, 312782578]], dtype=np.int32))
    with pytest.raises(ValueError, match=r"a\.npy holds 312782578, which float32 would round; renumber its classes"):
        read(tmp_path / "a.npy", as_classes=True)
    assert read(tmp_path / "a.npy").tolist() == [[[0.0, 16777216.0, 312782592.0]]]
    np.save(tmp_path / "a.npy", np.array([[0, -(2**63), 2**62]]))
    assert read(tmp_path / "a.npy", as_classes=True).tolist() == [[[0.0, -(2.0**63), 2.0**62]]]
    np.save(tmp_path / "a.npy", np.array([[0, 2**64 - 1]], dtype=np.uint64))
    with pytest.raises(ValueError, match="holds 18446744073709551615, which float32 would round"):
        read(tmp_path / "a.npy", as_classes=True)


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
        field = (
            FieldOfViewd("image", "field")({"image": ReadImaged("image", 2)({"image": path})["image"]})["field"][0] > 0
        )
        rows, columns = (torch.nonzero(field.any(dim=axis)).flatten() for axis in (1, 0))
        spans = [int(found[-1] - found[0]) + 1 for found in (rows, columns)]
        circle = np.pi * spans[0] * spans[1] / 4
        assert 0.97 < int(field.sum()) / circle < 1.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_normalisation_inside_of_the_field(dtype: torch.dtype) -> None:
    image, field = (100 * torch.rand(3, 20, 20) + 50).to(dtype), torch.zeros(1, 20, 20)
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
