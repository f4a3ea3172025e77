"""DICOM: where the slices of a series lie, what of them is no volume, and the files that come with pydicom."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from monai_sre.data import ImageFiles, ReadImaged
from monai_sre.data.dicom import Plane, find_cases, place
from monai_sre.data.reader import own_affine
from tests.data.dicom_series import save_series

TILTED = np.eye(4)
TILTED[:3, :3] = Rotation.from_euler("xyz", [80, -35, 50], degrees=True).as_matrix() * [1.1, 2.0, 2.9]
TILTED[:3, 3] = [40.0, -7.0, 12.5]
VALUES = np.random.default_rng(0).integers(-900, 900, (7, 6, 5))


@pytest.fixture(name="shipped")
def _shipped() -> Path:
    return Path(pytest.importorskip("pydicom").__file__).parent / "data/test_files"


def read(paths: Any, spatial_dims: int | None = 3, **options: Any) -> Any:
    return ReadImaged("image", spatial_dims, **options)({"image": paths})["image"]


# Places ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.permutations(range(5)),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.2, 8)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_the_affine_leads_to_where_each_slice_says_that_it_lies(
    shuffled: list[int], angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...]
) -> None:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    planes = [
        Plane(str(index), turn[:, :2].T, np.array(origin) + index * spacing[2] * turn[:, 2], np.array(spacing[:2]))
        for index in shuffled
    ]
    order, affine = place(planes)
    assert [shuffled[index] for index in order] == list(range(5))
    column, row, index = 3, 2, 4
    expected = np.array(origin) + turn @ [column * spacing[1], row * spacing[0], index * spacing[2]]
    np.testing.assert_allclose((affine @ [column, row, index, 1])[:3], expected * [-1, -1, 1], atol=1e-6)


def gaps(*depths: float) -> list[Plane]:
    return [Plane(f"s{z:g}", np.eye(3)[:2], np.array([0.0, 0.0, z]), np.ones(2)) for z in depths]


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        (gaps(0, 2, 4, 8, 10), r"^1 of its slices is missing: between s4 and s8 is a gap of 4 mm, between others 2$"),
        (gaps(0, 2, 4, 10, 12), "^2 of its slices are missing: between s4 and s10"),
        (gaps(0, 2, 4.5, 6), "^its slices lie from 1.5 to 2.5 mm apart; the gaps of a volume are even$"),
        (gaps(0, 0, 2, 2), "^2 of its 4 slices lie where another lies, such as s0 at s0; expected one volume"),
        (gaps(3, 3), "^1 of its 2 slices lie where another lies"),
        (
            [*gaps(0), Plane("b", np.eye(3)[1:], np.ones(3), np.ones(2))],
            "several orientations: those of s0 and b differ",
        ),
        (
            [*gaps(0), gaps(1)[0]._replace(spacing=np.array([1, 2]))],
            r"pixel spacings: s0 has \[1.0, 1.0\] mm, s1 \[1, 2\]",
        ),
        (
            [*gaps(0, 2), gaps(4)[0]._replace(position=np.array([9.0, 0, 4]))],
            "do not lie behind each other on one line",
        ),
    ],
)
def test_slices_that_are_no_volume(planes: list[Plane], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(planes)


def test_rounded_positions_and_a_tilted_gantry_are_a_volume() -> None:
    rounded = [0, 0.62, 1.25, 1.88, 2.5]
    assert place(gaps(*rounded))[1][2, 2] == pytest.approx(0.625)
    for step in (0.33, 0.625, 0.75, 1.25):  # written in tenths of a mm
        tenths = [round(step * index, 1) for index in range(12)]
        assert place(gaps(*tenths))[1][2, 2] == pytest.approx(step, abs=0.1 / 11)
        with pytest.raises(ValueError, match=r"missing|apart"):
            place(gaps(*tenths[:5], *tenths[6:]))
    tilted = [
        plane._replace(position=plane.position + np.array([0, plane.position[2] / 4, 0])) for plane in gaps(0, 2, 4)
    ]
    assert place(tilted)[1][:3, 2].tolist() == [0, -0.5, 2]


# Series ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [np.diag([-1.5, -2.0, 3.0, 1.0]), TILTED], ids=["axial", "tilted"])
def test_a_series_is_the_volume_that_was_written(tmp_path: Path, affine: np.ndarray) -> None:
    """Values, with the slope of each file, and the voxels' places; slices may go either way along their axis."""
    pytest.importorskip("pydicom")
    slopes = {"RescaleSlope": lambda index: 1 + index, "RescaleIntercept": -10}
    for name, changes in {"plain": {}, "scaled": slopes}.items():
        files = save_series(tmp_path / name, VALUES, affine, **changes)
        expected = VALUES * (1 + np.arange(5)) - 10 if changes else VALUES
        for paths in (tmp_path / name, [str(path) for path in files]):
            image = read(paths)
            found = nibabel.Nifti1Image(image[0].numpy(), image.affine.numpy()).as_reoriented([[0, 1], [1, 1], [2, -1]])
            same = [image[0].numpy(), image.affine.numpy()], [found.get_fdata(), found.affine]
            values, place_ = same[0] if np.allclose(image.affine[:3, 2], affine[:3, 2]) else same[1]
            np.testing.assert_allclose(place_, affine, atol=1e-5)
            assert np.array_equal(values, expected)


SCALED = {"RescaleSlope": lambda index: 1 + index, "RescaleIntercept": 5}
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}


@pytest.mark.parametrize("slices", [5, 1])
@pytest.mark.parametrize(
    "changes", [{}, SCALED, INVERTED, SCALED | INVERTED], ids=["plain", "scaled", "inverted", "scaled and inverted"]
)
def test_an_enhanced_file_is_the_series_that_it_was_made_of(
    tmp_path: Path, changes: dict[str, Any], slices: int
) -> None:
    """What is inverted is turned round before each slice is scaled by its own slope."""
    highdicom = pytest.importorskip("highdicom")
    from pydicom import dcmread

    values, inverted = VALUES[..., :slices], "PhotometricInterpretation" in changes
    files = save_series(tmp_path / "series", values, TILTED, ImageType=["ORIGINAL", "PRIMARY"], **changes)
    sources = [dcmread(file) for file in files]
    for source in sources:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(source, keyword, None)
        source.ContentDate, source.ContentTime, source.BurnedInAnnotation = "20200101", "120000", "NO"
        source.PhotometricInterpretation = "MONOCHROME2"  # highdicom makes no others
    (tmp_path / "frames").mkdir()
    for name, several in {"a": sources, **{f"frames/{number}": [one] for number, one in enumerate(sources)}}.items():
        whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(several, "1.2.3", 9, highdicom.UID(), 1)
        whole.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        whole.save_as(tmp_path / f"{name}.dcm")
    expected = -1 - values if inverted else values
    expected = expected * (1 + np.arange(slices)) + 5 if "RescaleSlope" in changes else expected
    expected = expected[..., 0].T if slices == 1 else expected
    series = read(tmp_path / "series", 3 if slices > 1 else 2)
    stored = series[0].numpy()
    assert np.array_equal(stored, expected) or np.array_equal(stored, expected[..., ::-1])
    for name in ("a.dcm", "frames"):
        image = read(tmp_path / name, 3 if slices > 1 else 2)
        assert np.array_equal(image.numpy(), series.numpy())
        np.testing.assert_allclose(own_affine(image), own_affine(series), atol=1e-9)


def test_an_empty_slope_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    save_series(tmp_path / "a", VALUES, RescaleSlope=None, RescaleIntercept=None)
    save_series(tmp_path / "b", VALUES)
    assert np.array_equal(read(tmp_path / "a"), read(tmp_path / "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ImagePositionPatient": lambda index: [0, 0, 3 * (index + (index > 2))]},
            "1 of its slices is missing: between IM.* and IM.* is a gap of 6 mm",
        ),
        ({"ImagePositionPatient": lambda index: [0, 0, index**2]}, "from 1 to 7 mm apart"),
        (
            {"ImageOrientationPatient": lambda index: [1, 0, 0, 0, 1, 0] if index else [0, 1, 0, 0, 0, -1]},
            "several orientations",
        ),
        ({"SeriesInstanceUID": lambda index: f"1.2.{index % 2}"}, r"holds 2 series, 1\.2\.0 \(3 files\), 1\.2\.1 \(2 "),
        (
            {"Rows": lambda index: 6 if index else 3},
            r"of several sizes: IM0001 has . x 7 x 1 pixels, IM000\d . x 7 x 1",
        ),
        ({"PixelSpacing": lambda index: [2, 1 + index % 2]}, "several pixel spacings"),
        ({"ImagePositionPatient": None}, "IM0001 and 4 other files do not say where they lie"),
        ({"Modality": "SEG"}, r"IM0001 holds no image \(modality SEG\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "IM0001 has colours of a palette"),
    ],
)
def test_series_that_are_no_volume_name_their_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("pydicom")
    save_series(tmp_path, VALUES, **changes)
    with pytest.raises(ValueError, match=f"^{tmp_path}/IM0001 cannot be read as an image: ValueError: .*{message}"):
        read(tmp_path)


def test_a_slice_that_is_missing_among_the_files(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom import dcmread

    files = save_series(tmp_path, VALUES)
    middle = next(file for file in files if dcmread(file).ImagePositionPatient[2] == 6)
    middle.unlink()
    with pytest.raises(ValueError, match=r"1 of its slices is missing: .* is a gap of 6 mm, between others 3$"):
        read(tmp_path)


# Cases ----------------------------------------------------------------------------------------------------------------


def test_each_series_of_a_folder_is_a_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pydicom")
    save_series(tmp_path / "in/one.2", VALUES)
    for number, name in enumerate(("a", "b", "c")):
        description = "same" if number else "T1 / sag"
        for path in save_series(tmp_path / name, VALUES, SeriesDescription=description):
            (tmp_path / "in/many").mkdir(exist_ok=True)
            path.rename(tmp_path / f"in/many/{name}{path.name}")
    save_series(tmp_path / "in/plan", VALUES[..., :1], Modality="SEG")
    np.save(tmp_path / "in/x.npy", VALUES)
    with caplog.at_level(logging.WARNING):
        items = list(ImageFiles(tmp_path / "in", ReadImaged("image", 3, 1), 1, 3))
    names = [item["name"] for item in items]
    assert names[:2] == ["many/series-4-T1-sag", "many/series-4-same"]
    assert names[2].startswith("many/series-4-same-")
    assert names[3:] == ["one.2", "x.npy"]
    paths = [Path(item["path"]).relative_to(tmp_path / "in") for item in items]
    assert [str(path) for path in paths] == ["many/aIM0001", "many/bIM0001", "many/cIM0001", "one.2", "x.npy"]
    assert [item["error"] for item in items] == [""] * 5
    assert [tuple(item["image"].shape) for item in items] == [(1, 7, 6, 5)] * 5
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "left out 1 DICOM files, which are no images: SEG (1)" in text
    assert "many holds several series; 5 files are the case series-4-T1-sag" in text
    flat = find_cases(sorted((tmp_path / "in/one.2").iterdir()), series=False)
    assert [len(case.files) for case in flat] == [1] * 5
    with pytest.raises(FileNotFoundError, match=r"no image in .*plan: the DICOM files are of other kinds, SEG \(1\)"):
        ImageFiles(tmp_path / "in/plan", ReadImaged("image", 3, 1), 1, 3)


def test_a_series_in_two_folders_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pydicom")
    files = save_series(tmp_path / "a", VALUES)
    (tmp_path / "b").mkdir()
    moved = [path.rename(tmp_path / "b" / path.name) for path in files[:2]]
    cases = find_cases([*files[2:], *moved], series=True)
    assert [(case.named.name, len(case.files)) for case in cases] == [("a", 3), ("b", 2)]
    assert "lies in 2 folders, of which each is taken for a volume; put its files into one: " in caplog.text


def test_without_pydicom_each_file_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_sre.data.dicom.is_installed", lambda _: False)
    monkeypatch.setattr("monai_sre.extras.is_installed", lambda _: False)
    for name in ("a.dcm", "b.IMA"):
        (tmp_path / name).touch()
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    items = list(ImageFiles(tmp_path, ReadImaged("image", 3, 1), 1, 3))
    assert [item["name"] for item in items] == ["IM0001", "a.dcm", "b.IMA"]
    for item in items:
        expected = f'{item["path"]}, which is DICOM, needs pydicom: pip install "monai_sre[dicom]"'
        assert item["error"] == expected


# What comes with pydicom ----------------------------------------------------------------------------------------------


def test_the_series_that_comes_with_pydicom(shipped: Path) -> None:
    import pydicom

    folder = shipped / "dicomdirtests/98892001/CT5N"
    image = read(folder)
    slices = sorted(
        (pydicom.dcmread(path) for path in folder.iterdir()), key=lambda each: float(each.ImagePositionPatient[2])
    )
    assert image.shape == (1, 16, 16, 5)
    for index, each in enumerate(slices):
        expected = each.pixel_array * float(each.RescaleSlope) + float(each.RescaleIntercept)
        assert np.array_equal(image[0, :, :, index].T.numpy(), expected)
        left, back, up = (float(value) for value in each.ImagePositionPatient)
        corner = image.affine.numpy() @ [0, 0, index, 1]
        np.testing.assert_allclose(corner[:3], [-left, -back, up], atol=0.05 * 7)


@pytest.mark.parametrize("name", ["RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless"])
def test_all_transfer_syntaxes_give_one_picture(shipped: Path, name: str) -> None:
    pytest.importorskip("jpeg_ls")
    expected = read(shipped / "MR_small.dcm", 2)
    found = read(shipped / f"MR_small_{name}.dcm", 2)
    assert expected.shape == (1, 64, 64)
    assert np.array_equal(found.numpy(), expected.numpy())
    assert np.array_equal(found.affine.numpy(), expected.affine.numpy())


@pytest.mark.parametrize(
    ("name", "dims", "message"),
    [
        (
            "SC_rgb_jpeg_gdcm.dcm",
            2,
            "is compressed as JPEG Lossless, .*, for which no decoder is installed: pip install ",
        ),
        ("JPEG-lossy.dcm", 2, "the pixels of JPEG-lossy.dcm cannot be decoded from JPEG Extended"),
        ("MR_truncated.dcm", 2, "the pixels of MR_truncated.dcm cannot be decoded: ValueError"),
        ("rtplan.dcm", 2, r"rtplan.dcm holds no image \(modality RTPLAN\)"),
        ("liver_1frame.dcm", 2, r"liver_1frame.dcm holds no image \(modality SEG\)"),
        ("rtstruct.dcm", 2, "rtstruct.dcm is no DICOM file that can be read: InvalidDicomError"),
        ("examples_ybr_color.dcm", 3, "its 30 frames do not say where they lie, so they are no volume"),
        ("examples_palette.dcm", 2, "examples_palette.dcm has colours of a palette; save it in grey or RGB"),
        ("dicomdirtests/98892001/CT2N", 3, "its slices have several orientations: those of 6293 and 6924 differ"),
        (
            "dicomdirtests/77654033/CT2",
            3,
            "161 of its slices are missing: between 17106 and 17136 is a gap of 202.5 mm, between others 1.25",
        ),
    ],
)
def test_files_that_are_no_image_say_why(shipped: Path, name: str, dims: int, message: str) -> None:
    if name == "SC_rgb_jpeg_gdcm.dcm":
        from pydicom.pixels import get_decoder
        from pydicom.uid import JPEGLosslessSV1

        if get_decoder(JPEGLosslessSV1).is_available:
            pytest.skip("a decoder is installed")
    with pytest.raises(ValueError, match=f"^{shipped / name}.* cannot be read as an image: ValueError: .*{message}"):
        read(shipped / name, dims)


def test_pictures_keep_their_colours_and_inverted_ones_are_turned_round(shipped: Path, tmp_path: Path) -> None:
    import pydicom

    colours = read(shipped / "examples_rgb_color.dcm", 2, num_channels=3)
    assert np.array_equal(
        colours.numpy(), np.moveaxis(pydicom.dcmread(shipped / "examples_rgb_color.dcm").pixel_array, -1, 0)
    )
    assert colours.numpy().dtype == np.uint8
    dataset = pydicom.dcmread(shipped / "MR_small.dcm")
    plain = read(shipped / "MR_small.dcm", 2).numpy()
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "a.dcm")
    low, high = (
        (-(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1)
        if dataset.PixelRepresentation
        else (0, 2**dataset.BitsStored - 1)
    )
    assert np.array_equal(read(tmp_path / "a.dcm", 2).numpy(), low + high - plain)


def test_a_slope_of_one_changes_no_pixel_and_no_type(tmp_path: Path) -> None:
    """Pixels of 8 bits stay as they are, and are not stretched to their own range."""
    values = np.random.default_rng(0).integers(0, 200, (4, 5, 1))
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    bits["PixelData"] = values[..., 0].T.astype(np.uint8).tobytes()
    plain, scaled, twice = (
        save_series(tmp_path / name, values, **bits, **changes)[0]
        for name, changes in (
            ("a", {}),
            ("b", {"RescaleSlope": 1, "RescaleIntercept": 0}),
            ("c", {"RescaleSlope": 2, "RescaleIntercept": 0}),
        )
    )
    images = [ReadImaged("image", 2)({"image": path})["image"].numpy() for path in (plain, scaled, twice)]
    assert [image.dtype for image in images] == [np.uint8, np.uint8, np.float32]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(2.0 * images[0], images[2])
