"""DICOM SEG: the same voxels as the NIfTI beside it, each frame on the slice of the series that it refers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from monai_sre.evaluation.dicom_seg import save_dicom_seg
from tests.data.dicom_series import save_series
from tests.data.test_dicom import TILTED
from tests.evaluation.test_writers import segment, table

pytest.importorskip("highdicom")
CLASSES = np.random.default_rng(0).integers(0, 3, (7, 6, 5)) * (np.arange(5) != 2)  # nothing in the middle slice


def places(path: Path, number: int) -> np.ndarray:
    """Where the voxels of a segment of a SEG lie, by its own elements, in NIfTI's coordinates."""
    from pydicom import dcmread

    seg = dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    rows, columns = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found = []
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            found += [corner + across * columns * x + down * rows * y for y, x in np.argwhere(frame)]
    return np.array(found) * [-1, -1, 1]


def ordered(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 3).T)]


def run(source: Path, target: Path) -> dict[str, str]:
    segment(source, target, 3, classes=3, writing={"dicom_seg": True})
    (row,) = table(target)
    assert row["error"] == ""
    return row


@pytest.mark.parametrize("affine", [np.diag([-1.5, -2.0, 3.0, 1.0]), np.diag([1.5, 2.0, -3.0, 1.0]), TILTED])
def test_the_segments_lie_where_the_nifti_says(tmp_path: Path, affine: np.ndarray) -> None:
    from pydicom import dcmread

    files = save_series(tmp_path / "series.1", CLASSES, affine)
    row = run(tmp_path / "series.1", tmp_path / "out")
    assert row["output"] == str(tmp_path / "out/series.1_seg.nii.gz")
    nifti, seg = nibabel.load(row["output"]), dcmread(row["dicom"])
    assert np.asarray(nifti.dataobj).shape == CLASSES.shape
    assert nifti.header.get_xyzt_units()[0] == "mm"
    for number in (1, 2):
        voxels = np.argwhere(np.asarray(nifti.dataobj) == number)
        assert len(voxels) == np.equal(CLASSES, number).sum()
        expected = nibabel.affines.apply_affine(nifti.affine, voxels)
        np.testing.assert_allclose(ordered(places(Path(row["dicom"]), number)), ordered(expected), atol=1e-3)
        written = nibabel.affines.apply_affine(affine, np.argwhere(np.equal(CLASSES, number)))
        np.testing.assert_allclose(ordered(expected), ordered(written), atol=1e-3)
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["class 1", "class 2"]
    sources = {dataset.SOPInstanceUID: dataset for dataset in map(dcmread, files)}
    some = next(iter(sources.values()))
    assert seg.StudyInstanceUID == some.StudyInstanceUID
    assert seg.FrameOfReferenceUID == some.FrameOfReferenceUID
    assert seg.SeriesInstanceUID != some.SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == some.SeriesInstanceUID
    assert seg.NumberOfFrames == 8  # two classes in four slices
    for group in seg.PerFrameFunctionalGroupsSequence:
        referred = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        written = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(written, sources[referred].ImagePositionPatient, atol=1e-6)


def test_names_in_any_writing_come_back(tmp_path: Path) -> None:
    """Those of the classes, and the patient's, which the series may write in Latin-1."""
    from pydicom import dcmread

    names = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jérôme"}
    files = save_series(tmp_path / "series", CLASSES, **names)
    save_dicom_seg(CLASSES, files, ["background", "Läsion", "腫瘍"], tmp_path / "seg.dcm")
    seg = dcmread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["Läsion", "腫瘍"]
    assert str(seg.PatientName) == "Müller^Jérôme"


def test_of_one_image(tmp_path: Path) -> None:
    """Of two axes, rows by columns, as it is displayed."""
    (file,) = save_series(tmp_path / "in", CLASSES[..., :1], TILTED)
    segment(file, tmp_path / "out", 2, classes=3, writing={"dicom_seg": True})
    (row,) = table(tmp_path / "out")
    nifti = nibabel.load(row["output"])
    assert np.array_equal(np.asarray(nifti.dataobj), CLASSES[..., 0].T)
    for number in (1, 2):
        voxels = np.pad(np.argwhere(np.asarray(nifti.dataobj) == number), [(0, 0), (0, 1)])
        found = nibabel.affines.apply_affine(nifti.affine, voxels)
        expected = nibabel.affines.apply_affine(TILTED, np.argwhere(CLASSES[..., :1] == number))
        np.testing.assert_allclose(ordered(found), ordered(expected), atol=1e-3)
        np.testing.assert_allclose(ordered(places(Path(row["dicom"]), number)), ordered(expected), atol=1e-3)


def test_of_a_file_of_several_frames(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    from pydicom import dcmread

    sources = [
        dcmread(file) for file in save_series(tmp_path / "in", CLASSES, TILTED, ImageType=["ORIGINAL", "PRIMARY"])
    ]
    for source in sources:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(source, keyword, None)
        source.ContentDate, source.ContentTime, source.BurnedInAnnotation = "20200101", "120000", "NO"
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(sources, highdicom.UID(), 9, highdicom.UID(), 1)
    for shuffled in (False, True):
        if shuffled:
            mixed = np.random.default_rng(1).permutation(5)
            whole.PixelData = whole.pixel_array[mixed].astype("<i2").tobytes()
            groups = whole.PerFrameFunctionalGroupsSequence
            whole.PerFrameFunctionalGroupsSequence = [groups[index] for index in mixed]
        whole.save_as(tmp_path / "a.dcm")
        row = run(tmp_path / "a.dcm", tmp_path / "out")
        nifti = nibabel.load(row["output"])
        for number in (1, 2):
            expected = nibabel.affines.apply_affine(TILTED, np.argwhere(np.equal(CLASSES, number)))
            voxels = np.argwhere(np.asarray(nifti.dataobj) == number)
            found = nibabel.affines.apply_affine(nifti.affine, voxels)
            np.testing.assert_allclose(ordered(found), ordered(expected), atol=1e-3)
            np.testing.assert_allclose(ordered(places(Path(row["dicom"]), number)), ordered(expected), atol=1e-3)


def test_nothing_found_and_inputs_of_other_kinds(tmp_path: Path) -> None:
    """A SEG of nothing is one; what is no DICOM gets none; and a source without a place gets the reason."""
    from pydicom import dcmread

    save_series(tmp_path / "in/empty", np.zeros_like(CLASSES))
    save_series(tmp_path / "in/lost", CLASSES, FrameOfReferenceUID=None)
    np.save(tmp_path / "in/x.npy", CLASSES)
    segment(tmp_path / "in", tmp_path / "out", 3, classes=3, writing={"dicom_seg": "true"})
    rows = {Path(row["file"]).name: row for row in table(tmp_path / "out")}
    assert not dcmread(rows["empty"]["dicom"]).pixel_array.any()
    assert rows["x.npy"]["dicom"] == rows["x.npy"]["error"] == ""
    assert "lost: its DICOM SEG cannot be written: ValueError: it has no FrameOfReferenceUID" in rows["lost"]["error"]
    assert rows["lost"]["output"] == str(tmp_path / "out/lost_seg.nii.gz")
    segment(tmp_path, tmp_path / "out", 3, classes=3)  # what was written is no input
    assert len(table(tmp_path / "out")) == 3


def test_without_highdicom_it_is_refused_before_any_inference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> bool:
        return name != "highdicom"

    monkeypatch.setattr("monai_sre.extras.is_installed", installed)
    np.save(tmp_path / "x.npy", CLASSES)
    options: dict[str, Any] = {"dicom_seg": True}
    with pytest.raises(ImportError, match=r'dicom_seg=True needs highdicom: pip install "monai_sre\[dicom\]"'):
        segment(tmp_path / "x.npy", tmp_path / "out", 3, writing=options)
    assert not (tmp_path / "out").exists()


def test_files_without_a_dicom_seg_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_series(tmp_path / "in/series", CLASSES, TILTED)
    np.save(tmp_path / "in/a.npy", CLASSES.astype(np.float32))
    segment(tmp_path / "in", tmp_path / "out", 3, classes=3, writing={"dicom_seg": True}).finish()
    assert f"1 files are no DICOM, so they have no DICOM SEG: {tmp_path / 'in/a.npy'}" in caplog.text
