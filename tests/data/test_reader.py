"""Reading files: one convention of axes, and one sentence for each failure."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd
from PIL import ExifTags, Image
from scipy.spatial.transform import Rotation

from monai_sre.data import ReadImaged
from monai_sre.data.reader import own_affine
from tests.data.dicom_series import save_series


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


@pytest.mark.parametrize(
    ("channel_dim", "dims"),
    [("no_channel", 3), (float("nan"), 3), (-1, 3), (0, 3), (None, 3), (-1, 2), (None, 2)],
)
def test_images_that_an_application_has_read(channel_dim: Any, dims: int) -> None:
    """MONAI's readers say in the metadata where the channels are; where nothing does, an image is an array."""
    values = torch.arange(2.0 * 3 * 4).reshape(2, 3, 4)
    values = values if dims == 3 else values.movedim(0, -1)
    stored = {0: values[None], -1: values[..., None] if dims == 3 else values}.get(channel_dim, values)
    meta = {} if channel_dim is None else {"original_channel_dim": channel_dim}
    image = MetaTensor(stored, affine=torch.diag(torch.tensor([2.0, 2, 3, 1])), meta=meta)
    found = ReadImaged("image", dims, 1 if dims == 3 else 2)({"image": image})["image"]
    torch.testing.assert_close(found.as_tensor(), values[None] if dims == 3 else values.movedim(-1, 0), rtol=0, atol=0)
    assert found.pixdim.tolist() == [2, 2, 3][:dims]
    assert list(found.meta["spatial_shape"]) == list(found.shape[1:])


def test_images_that_an_application_has_read_are_checked() -> None:
    with pytest.raises(ValueError, match="the image 'image' has 4 channels; the network takes 3"):
        ReadImaged("image", 2, 3)({"image": torch.zeros(5, 6, 4)})
    with pytest.raises(ValueError, match="the image 'image' holds NaN or infinite values"):
        ReadImaged("image", 2)({"image": torch.full((5, 6), torch.nan)})


def test_the_affine_says_where_the_axes_lie(tmp_path: Path) -> None:
    affine = np.array([[0.1, 0.2, -2.9, 40.0], [-1.1, 0.3, 0.2, -7.0], [0.2, -2.0, 0.3, 12.5], [0, 0, 0, 1.0]])
    save(tmp_path / "a.nii", np.zeros((5, 4, 3), np.float32), affine)
    np.testing.assert_allclose(read(tmp_path / "a.nii", 3).affine, affine, atol=1e-6)
    save(tmp_path / "b.nii", np.zeros((5, 1, 3), np.float32), affine)  # the dropped axis is the last
    slice_ = read(tmp_path / "b.nii")
    np.testing.assert_allclose(own_affine(slice_), affine[:, [0, 2, 1, 3]], atol=1e-6)
    save(tmp_path / "c.png", np.zeros((5, 4), np.uint8))
    assert (read(tmp_path / "c.png").affine.numpy() @ [3, 1, 0, 1]).tolist() == [1, 3, 0, 1]  # row 3, column 1: x is 1


#: Directions of the axes of a slice, and its pixels with their first axis to the right, or else to the front, and so on.
PLANES: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "axial": (np.eye(3), lambda values: values),
    "feet first": (np.diag([-1.0, 1, -1]), np.flipud),
    "coronal": (np.eye(3)[:, [0, 2, 1]], lambda values: values),
    "sagittal": (np.eye(3)[:, [1, 2, 0]] * [-1, 1, 1], np.flipud),
    "sagittal, head first": (np.eye(3)[:, [2, 1, 0]], np.transpose),
    "tilted by 60 degrees": (Rotation.from_euler("x", 60, degrees=True).as_matrix(), lambda values: values),
    "oblique": (Rotation.from_euler("xyz", [25, -40, 15], degrees=True).as_matrix(), lambda values: values),
}


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize(("sides", "to_right_and_front"), PLANES.values(), ids=PLANES)
def test_slices_of_any_direction_have_the_sides_and_the_size_of_their_pixels(
    tmp_path: Path, sides: np.ndarray, to_right_and_front: Callable[[np.ndarray], np.ndarray], kind: str
) -> None:
    """MONAI's transforms of images of two axes read the first two rows and columns of the affine alone."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = sides * [0.5, 1.5, 7.0], [30.0, -4.0, 11.0]
    values = np.random.default_rng(0).integers(0, 99, (40, 20)).astype(np.int16)
    if kind == "nifti":
        save(tmp_path / "a.nii", values[:, :, None], affine)
        image = read(tmp_path / "a.nii", 2)
        axes = affine[:3, [0, 1, 3]]
    else:
        pytest.importorskip("pydicom")
        image = read(*save_series(tmp_path / "series", values[:, :, None], affine), 2)
        axes = affine[:3, [1, 0, 3]]
    np.testing.assert_allclose(own_affine(image)[:3, [0, 1, 3]], axes, atol=1e-5)
    lengths = image.affine[:2, :2].numpy()
    np.testing.assert_allclose(lengths.T @ lengths, axes[:, :2].T @ axes[:, :2], atol=1e-5)  # and angles

    upright = Orientationd("image", "RA", labels=None)({"image": image})["image"]
    assert np.array_equal(upright[0], to_right_and_front(values))
    chain = Compose([Orientationd("image", "RA", labels=None), Spacingd("image", [0.5, 0.5])])
    found = chain({"image": image})
    assert list(found["image"].shape[1:]) == [{40: 40, 20: 58}[length] for length in upright.shape[1:]]
    back = chain.inverse(found)["image"]
    np.testing.assert_allclose(back[0, 1:-1, 1:-1], image[0, 1:-1, 1:-1], atol=1e-3)  # MONAI rounds where a grid begins


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


# Bit depth ------------------------------------------------------------------------------------------------------------

#: Numbers of 12 bits in four channels.
DEEP = np.random.default_rng(0).integers(256, 4096, (4, 6, 4)).astype(np.uint16)
GREY, COLOUR = DEEP[..., 0], DEEP[..., :3]
LOW, TWO = DEEP.astype(np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}
RGB = {"photometric": "rgb"}


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        (COLOUR, RGB, COLOUR),
        (COLOUR, RGB | {"compression": "zlib", "predictor": True, "tile": (16, 16)}, COLOUR),
        (COLOUR, RGB | {"bigtiff": True, "byteorder": ">"}, COLOUR),
        (np.moveaxis(COLOUR, -1, 0).copy(), RGB | {"planarconfig": "separate"}, COLOUR),
        (DEEP, RGB | {"extrasamples": ["unassalpha"]}, COLOUR),
        (DEEP.astype(np.uint8), RGB | {"extrasamples": ["unspecified"]}, DEEP.astype(np.uint8)),
        (
            DEEP[..., :2].astype(np.uint8),
            {"photometric": "minisblack", "planarconfig": "contig"},
            DEEP[..., :2].astype(np.uint8),
        ),
        (DEEP[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, DEEP[..., :2]),
        (GREY.astype(np.uint32) << 20, {}, GREY.astype(np.uint32) << 20),
        (GREY.astype(np.int16) - 2000, {}, GREY.astype(np.int16) - 2000),
        (GREY.astype(np.int8), {}, GREY.astype(np.int8)),
        (GREY / 7, {}, GREY / 7),
        (GREY.astype(np.float16), {}, GREY.astype(np.float16)),
        (GREY, {"photometric": "miniswhite"}, 65535 - GREY),
        (LOW[..., 0], {"photometric": "miniswhite"}, 255 - LOW[..., 0]),
        (GREY, {"byteorder": ">"}, GREY),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else None,
)
def test_tiffs_are_read_whole(tmp_path: Path, stored: np.ndarray, options: dict, expected: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    found = read(tmp_path / "a.tif")
    assert found.dtype == (torch.uint8 if expected.dtype == np.uint8 else torch.float32)
    assert np.array_equal(np.moveaxis(found.numpy(), 0, -1), np.atleast_3d(expected).astype(found.numpy().dtype))


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        (COLOUR.astype(np.uint8), {"photometric": "cielab"}, "its colours are LAB; save it as RGB"),
        (COLOUR, {"photometric": "cielab"}, "it holds uint16 as CIELAB"),
        (DEEP, {"photometric": "separated"}, "it holds uint16 as SEPARATED"),
        (COLOUR, RGB | {"extratags": [(274, 3, 1, 6, True)]}, ".* orientation 6; save it upright"),
        (np.stack([COLOUR] * 2), RGB, "it holds 2 pages"),
        (np.stack([GREY] * 3), {"imagej": True}, "it holds 3 pages"),
    ],
    ids=["LAB", "LAB 16", "CMYK 16", "turned", "pages", "ImageJ"],
)
def test_tiffs_that_are_refused_by_name(tmp_path: Path, stored: np.ndarray, options: dict, message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with pytest.raises(ValueError, match=rf"a\.tif cannot be read as an image: ValueError: {message}"):
        read(tmp_path / "a.tif")


def deep_png(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits, which Pillow does not write, of colours 2 (RGB), 4 (grey and alpha) or 6 (RGB and alpha)."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_other_pictures_of_more_than_8_bits_are_whole_or_refused(tmp_path: Path) -> None:
    ppm, grey_ppm = (b"P%d 6 4 4095\n" % kind for kind in (6, 5))
    (tmp_path / "a.ppm").write_bytes(ppm + COLOUR.astype(">u2").tobytes())
    (tmp_path / "a.pgm").write_bytes(grey_ppm + GREY.astype(">u2").tobytes())
    for name, channels, kind in (("rgb", 3, 2), ("grey and alpha", 2, 4), ("rgba", 4, 6)):
        (tmp_path / f"{name}.png").write_bytes(deep_png(DEEP[..., :channels], kind))
    Image.fromarray(COLOUR.astype(np.uint8)).save(tmp_path / "a.jp2", irreversible=False)
    assert np.array_equal(read(tmp_path / "a.jp2").numpy(), np.moveaxis(COLOUR.astype(np.uint8), -1, 0))
    content = bytearray((tmp_path / "a.jp2").read_bytes())
    for channel in range(3):
        content[content.find(b"\xff\x4f\xff\x51") + 42 + 3 * channel] = 11  # depths, less one
    (tmp_path / "a.jp2").write_bytes(content)
    for name, bits in (("a.ppm", 12), ("a.jp2", 12), ("rgb.png", 16), ("grey and alpha.png", 16), ("rgba.png", 16)):
        with pytest.raises(ValueError, match=rf"{name} .* it has colours of {bits} bits, of which 8 would be read"):
            read(tmp_path / name)
    assert np.array_equal(read(tmp_path / "a.pgm")[0].numpy(), GREY)  # Pillow scales these
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[0].numpy(), GREY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_an_option_takes_larger_pictures_than_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)  # it refuses more than twice as many
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype))
    with pytest.raises(
        ValueError, match=r"a\.tif: .*24 pixels.* MONAI_SRE_MAX_PIXELS=N in the environment allows N pixels"
    ):
        read(tmp_path / "a.tif")
    monkeypatch.setenv("MONAI_SRE_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="MONAI_SRE_MAX_PIXELS must be a number of pixels, got 'many'"):
        read(tmp_path / "a.tif")
    monkeypatch.setenv("MONAI_SRE_MAX_PIXELS", "24")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert np.array_equal(read(tmp_path / "a.tif")[0].numpy(), GREY.astype(dtype))


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


def test_kinds_of_medical_images_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a.MHA", "a.nrrd", "a.img"):
        (tmp_path / name).touch()
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} is MetaImage, .* which are not read; convert it to NIfTI"):
            read(path)


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
