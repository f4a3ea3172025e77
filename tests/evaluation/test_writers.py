"""The files that inference leaves: tables with one row per file, class maps and class-activation maps on the files' grids."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.transforms import Compose, NormalizeIntensityd, Orientationd, Spacingd
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import nn

from monai_sre.data import FitSquared, ImageFiles, ReadImaged, ScaleToUnitd
from monai_sre.evaluation import CentredWindowInferer, FileInferer, PredictionWriter, SegmentationWriter, probabilities
from monai_sre.nets import SREResNet
from tests.data.dicom_series import save_series
from tests.evaluation.test_page import Page
from tests.test_files import full_disk

# Segmentations --------------------------------------------------------------------------------------------------------


def segment(
    source: Path,
    target: Path,
    dims: int,
    transforms: Any = (),
    classes: int = 2,
    network: Any = None,
    writing: dict[str, Any] | None = None,
    **loading: Any,
) -> SegmentationWriter:
    """Decide for the classes 0, 1, 2, ... by thresholds at 1/2, 3/2, ... of what the transforms give, or by a network."""
    chain = Compose([ReadImaged("image", dims, 1), *transforms])
    inferer = FileInferer(CentredWindowInferer(64 if network else 40000))
    writer = SegmentationWriter(target, chain, [f"class {index}" for index in range(classes)], inferer, **writing or {})

    def thresholds(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([-(values.float() - index).square() for index in range(classes)], dim=1)

    def step(_: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        return {"pred": inferer(batch["image"], network or thresholds)}

    def process(engine: Engine, batch: Any) -> Any:
        engine.state.batch = batch
        return step(engine, batch)

    engine = Engine(process)
    writer.attach(engine)
    engine.run(DataLoader(ImageFiles(source, chain, 1, dims), batch_size=1, **loading))
    return writer


def table(folder: Path, name: str = "segmentations") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_and_arrays(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    mask = np.random.default_rng(0).integers(0, 2, (7, 5), dtype=np.uint8)
    Image.fromarray(mask).save(source / "sub/a.png")
    np.save(source / "b.npy", mask)
    segment(source, target, 2)
    assert np.array_equal(np.asarray(Image.open(target / "sub/a_seg.png")), 255 * mask)
    assert np.array_equal(np.load(target / "b_seg.npy"), mask)
    rows = {Path(row["file"]).name: row for row in table(target)}
    assert float(rows["a.png"]["share of class 1"]) == pytest.approx(mask.mean(), abs=1e-6)
    assert rows["a.png"]["output"] == str(target / "sub/a_seg.png")


def test_maps_have_the_values_of_those_that_the_network_learned_from(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "b.png")
    for label_values, kind in (([0, 7, 3], np.uint8), ([0, -1, 400], np.int32)):
        found = segment(tmp_path, tmp_path / "out", 2, classes=3, writing={"label_values": label_values})
        written = np.load(tmp_path / "out/a_seg.npy")
        np.testing.assert_array_equal(written, np.array(label_values)[values.astype(int)])
        assert written.dtype == kind
        assert found.rows[0]["share of class 1"] == found.rows[0]["share of class 2"] == "0.333333"
        if kind == np.uint8:
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/b_seg.png")), written)
    assert "a picture holds values from 0 to 255, and label_values are [0, -1, 400]" in found.rows[1]["error"]
    with pytest.raises(ValueError, match=r"label_values must be 3 whole numbers that differ, got \[0, 1\]"):
        segment(tmp_path, tmp_path / "out", 2, classes=3, writing={"label_values": [0, 1]})


AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "tilted PIL": np.array([[0.1, 0.2, -2.9, 40.0], [-1.1, 0.3, 0.2, -7.0], [0.2, -2.0, 0.3, 12.5], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("channels", [(), (1,)])
def test_class_maps_keep_grid_affine_and_header(tmp_path: Path, affine: np.ndarray, channels: tuple[int, ...]) -> None:
    """Through orientation and resampling to cubes and back; smooth balls of three classes come back as they were."""
    size = (24, 20, 22)
    offsets = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in size], indexing="ij"), axis=-1)
    distance = np.linalg.norm(offsets @ affine[:3, :3].T, axis=-1)
    values = np.digitize(-distance, [-18, -9]).astype(np.int16)
    image = nibabel.Nifti1Image(values.reshape(*size, *channels), affine)
    image.header["descrip"] = b"of the scanner"
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    nibabel.save(image, tmp_path / "a.nii.gz")
    geometry = [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0), mode="bilinear")]
    segment(tmp_path / "a.nii.gz", tmp_path / "out", 3, geometry, classes=3)
    source, written = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "out/a_seg.nii.gz")
    assert written.shape == size
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    for key in ("descrip", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"):
        assert np.array_equal(written.header[key], source.header[key]), key
    np.testing.assert_allclose(written.header.get_qform(), source.header.get_qform(), atol=1e-6)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms()[:3], atol=1e-6)
    found = np.asarray(written.dataobj)
    assert found.dtype == np.uint8
    assert (found == values).mean() > 0.97  # what differs are voxels at the surfaces
    for index in (1, 2):
        overlap = 2 * ((found == index) & (values == index)).sum() / ((found == index).sum() + (values == index).sum())
        assert overlap > 0.95


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_maps_come_back_to_their_grid_from_any_worker_process(tmp_path: Path, context: str) -> None:
    """Of transforms of which two are of one kind; in a process that was not forked, all are other objects."""
    values = np.random.default_rng(0).integers(0, 2, (9, 12, 7)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, AFFINES["RAS"]), tmp_path / "a.nii.gz")
    geometry = [Orientationd("image", "LAS", labels=None), Orientationd("image", "PIR", labels=None)]
    geometry += [Spacingd("image", (1.0, 1.0, 1.0), mode="nearest")]
    for name, workers in {"alone": {}, "workers": {"num_workers": 1, "multiprocessing_context": context}}.items():
        segment(tmp_path / "a.nii.gz", tmp_path / name, 3, geometry, **workers)
        assert [row["error"] for row in table(tmp_path / name)] == [""]
    alone, workers = (
        np.asarray(nibabel.load(tmp_path / name / "a_seg.nii.gz").dataobj) for name in ("alone", "workers")
    )
    assert np.array_equal(alone, workers)
    assert np.array_equal(workers, values)


def test_a_full_disk_ends_in_the_row_of_the_file_and_leaves_no_part_of_a_map(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 2, (90, 90)))
    with full_disk(2000):
        segment(tmp_path / "a.npy", tmp_path / "out", 2)
    (row,) = table(tmp_path / "out")
    assert "its map cannot be written: " in row["error"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["segmentations.csv"]


def test_a_map_that_cannot_be_listed_as_an_output_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be an input of the next inference."""
    np.save(tmp_path / "a.npy", np.zeros((4, 4), dtype=np.int64))

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("monai_sre.evaluation.writers.note_output", full)
    segment(tmp_path / "a.npy", tmp_path / "out", 2)
    (row,) = table(tmp_path / "out")
    assert row["error"].endswith("a.npy: its map cannot be written: OSError: No space left on device")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["segmentations.csv"]


def test_a_disk_that_is_full_for_the_table_names_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4), dtype=np.int64))
    with full_disk(200), pytest.raises(OSError, match=r"segmentations\.csv cannot be written: "):
        segment(tmp_path / "a.npy", tmp_path / "out" / (150 * "x"), 2)


def test_bad_files_are_listed_and_the_others_done(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, array in {"a.npy": np.eye(3), "b.npy": np.ones((2, 2, 2)), "c.npy": np.eye(4)}.items():
        np.save(source / name, array)
    np.savez(source / "c.npz", np.eye(4))  # whose map would have the name of another
    writer = segment(source, target, 2)
    rows = {Path(row["file"]).name: row for row in table(target)}
    assert "has 2 channels; the network takes 1" in rows["b.npy"]["error"]
    assert rows["b.npy"]["share of class 1"] == rows["b.npy"]["output"] == ""
    assert [rows[name]["error"] for name in ("a.npy", "c.npy", "c.npz")] == ["", "", ""]
    assert [Path(rows[name]["output"]).name for name in ("c.npy", "c.npz")] == ["c_seg.npy", "c.npz_seg.npy"]
    with pytest.raises(SystemExit, match=r"^1 of 4 files could not be used"):
        writer.finish()


def test_a_run_that_fails_at_once_leaves_the_table_and_the_page_of_the_one_before(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    segment(tmp_path / "a.npy", tmp_path / "out", 2, writing={"report": True})
    files = [tmp_path / "out" / name for name in ("segmentations.csv", "report.html")]
    before = [path.read_text() for path in files]

    def broken(_: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 3, 3, 3)

    with pytest.raises(ValueError, match="class_names must be 3 names"):
        segment(tmp_path / "a.npy", tmp_path / "out", 2, network=broken, writing={"report": True})
    assert [path.read_text() for path in files] == before


def test_what_the_network_cannot_take_is_listed_too(tmp_path: Path) -> None:
    for name, size in {"a": 6, "b": 9, "c": 6}.items():
        np.save(tmp_path / f"{name}.npy", np.eye(size))
    network = lambda x: torch.cat([x, x], dim=1) if x.shape[2] < 8 else x[:, :, 0]  # noqa: E731
    segment(tmp_path, tmp_path / "out", 2, network=network)
    rows = {Path(row["file"]).name: row for row in table(tmp_path / "out")}
    assert "b.npy: the network cannot take it: ValueError: the network gives maps of" in rows["b.npy"]["error"]
    assert rows["b.npy"]["output"] == ""
    assert [rows[name]["error"] for name in ("a.npy", "c.npy")] == ["", ""]


def test_whatever_stops_a_run_leaves_the_table_so_far(tmp_path: Path) -> None:
    for name, size in {"a": 3, "b": 4}.items():
        np.save(tmp_path / f"{name}.npy", np.eye(size))

    def transform(data: dict[str, Any]) -> dict[str, Any]:
        if data["image"].shape[1] == 4:
            raise KeyboardInterrupt
        return data

    with pytest.raises(KeyboardInterrupt):
        segment(tmp_path, tmp_path / "out", 2, [transform])
    (row,) = table(tmp_path / "out")
    assert row["output"] == str(tmp_path / "out/a_seg.npy")


def test_what_lies_beside_the_inputs_is_not_replaced(tmp_path: Path) -> None:
    """Unless an earlier run has written it."""
    np.save(tmp_path / "a.npy", np.eye(3))
    segment(tmp_path / "a.npy", tmp_path, 2)
    segment(tmp_path / "a.npy", tmp_path, 2)
    assert table(tmp_path)[0]["error"] == ""
    np.save(tmp_path / "a_seg.npy", np.zeros(2))  # somebody's ground truth
    for _ in range(2):  # of a folder, it is an input too
        segment(tmp_path, tmp_path, 2)
        errors = {Path(row["file"]).name: row["error"] for row in table(tmp_path)}
        assert "a_seg.npy is there, and no inference wrote it, or it was changed since" in errors["a.npy"]
        assert np.load(tmp_path / "a_seg.npy").shape == (2,)


def test_a_map_that_was_corrected_by_hand_is_not_replaced(tmp_path: Path) -> None:
    """Wherever outputs lie; what nobody has changed is renewed. A name may hold the ends of lines."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a", "b\nc\rd"):
        np.save(source / f"{name}.npy", np.eye(3))
    segment(source, out, 2)
    np.save(out / "a_seg.npy", np.full((3, 3), 7))
    segment(source, out, 2)
    errors = {Path(row["file"]).name: row["error"] for row in table(out)}
    assert "it was changed since; move it, or take another output_dir" in errors["a.npy"]
    assert errors["b\nc\rd.npy"] == ""
    assert np.load(out / "a_seg.npy").tolist() == np.full((3, 3), 7).tolist()


def test_outputs_among_the_inputs_are_renewed_and_are_no_inputs(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.eye(3))
    for source in (tmp_path, tmp_path / "a.npy", tmp_path):  # a shorter run in between
        segment(source, tmp_path, 2)
        assert [row["error"] for row in table(tmp_path)] == [""] * len(table(tmp_path))
    assert {Path(row["file"]).name for row in table(tmp_path)} == {"a.npy", "b.npy", "c.npy"}
    for _ in range(2):
        segment(tmp_path, tmp_path / "maps", 2)
        assert len(table(tmp_path / "maps")) == 3


def test_outputs_are_known_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    segment(tmp_path, tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    segment(Path("a.npy"), Path(), 2)
    assert table(tmp_path)[0]["error"] == ""


def test_names_that_are_no_text(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    odd = tmp_path / os.fsdecode(b"b_\xe9.npy")
    try:
        odd.write_bytes((tmp_path / "a.npy").read_bytes())
    except OSError:
        pytest.skip("this file system has names of text only")
    np.save(tmp_path / "c.npy", np.eye(3))
    for _ in range(2):
        segment(tmp_path, tmp_path, 2)
        with (tmp_path / "segmentations.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert [row["error"] for row in csv.DictReader(file)] == ["", "", ""]


def test_a_network_of_nan_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(6))
    segment(tmp_path, tmp_path / "out", 2, network=lambda x: torch.cat([x, x], dim=1) * float("nan"))
    (row,) = table(tmp_path / "out")
    assert row["error"].endswith("a.npy: the network gives NaN")
    assert row["output"] == ""


def test_a_slice_stays_one(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    for name, shape in {"a": (5, 4, 1), "b": (5, 4)}.items():
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.int16), affine), tmp_path / f"{name}.nii.gz")
        segment(tmp_path / f"{name}.nii.gz", tmp_path / "out", 2)
        assert table(tmp_path / "out")[0]["error"] == ""
        found = nibabel.load(tmp_path / f"out/{name}_seg.nii.gz")
        assert found.shape == shape
        assert np.array_equal(found.affine, affine)
        assert (found.get_fdata() == 1).all()


@pytest.mark.parametrize("plane", [[0, 2, 1], [2, 0, 1]], ids=["coronal", "sagittal"])
def test_the_map_of_a_slice_of_any_direction_lies_where_its_file_does(tmp_path: Path, plane: list[int]) -> None:
    """With pixels resampled to half their size and back."""
    pytest.importorskip("pydicom")
    affine = np.diag([2.0, 3, 4, 1])[:, [*plane, 3]]
    affine[:3, 3] = [5, -6, 7]
    values = np.zeros((7, 5, 1), np.int16)
    values[2:5, 1:4] = 1
    save_series(tmp_path / "in/dicom", values, affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "in/nifti.nii.gz")
    sides = [Orientationd("image", "RA", labels=None), Spacingd("image", [1.0, 1.0])]
    segment(tmp_path / "in", tmp_path / "out", 2, sides)
    assert [row["error"] for row in table(tmp_path / "out")] == ["", ""]
    found = nibabel.load(tmp_path / "out/nifti_seg.nii.gz")
    assert np.array_equal(found.affine, affine)
    assert np.array_equal(found.get_fdata(), values)
    found = nibabel.load(tmp_path / "out/dicom/IM0001_seg.nii.gz")  # a picture: its rows come first
    np.testing.assert_allclose(found.affine[:3, [1, 0, 3]], affine[:3, [0, 1, 3]], atol=1e-6)
    assert np.array_equal(found.get_fdata().squeeze().T, values[..., 0])


def test_large_nifti_stays_of_its_kind(tmp_path: Path) -> None:
    """NIfTI-1 has no room for more than 32767 voxels along an axis."""
    nibabel.save(nibabel.Nifti2Image(np.ones((32770, 1, 2), np.int16), np.diag([2.0, 3, 4, 1])), tmp_path / "a.nii")
    segment(tmp_path / "a.nii", tmp_path / "out", 3)
    found = nibabel.load(tmp_path / "out/a_seg.nii.gz")
    assert isinstance(found, nibabel.Nifti2Image)
    assert found.shape == (32770, 1, 2)
    assert found.affine.diagonal().tolist() == [2, 3, 4, 1]


def test_links_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "store/x1.npy", np.eye(3))
    for name in ("a.npy", "b.npy"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "store/x1.npy")
    segment(tmp_path / "in", tmp_path / "out", 2)
    assert [row["output"] for row in table(tmp_path / "out")] == [str(tmp_path / f"out/{n}_seg.npy") for n in "ab"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3))
    (tmp_path / "out").write_text("a file, no folder")
    with pytest.raises(OSError, match="out"):
        segment(tmp_path / "a.npy", tmp_path / "out", 2)


def test_the_page_shows_each_file_with_its_volumes_and_warnings(tmp_path: Path) -> None:
    classes = np.zeros((9, 8, 7), dtype=np.int16)
    classes[2:5, 3:6, 1:6] = 1  # 45 voxels of 24 mm^3
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(classes, AFFINES["RAS"] * [2, 2, 1, 1]), tmp_path / "in/a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.pad(classes, 1, mode="edge")[6:], np.eye(4)), tmp_path / "in/b.nii.gz")
    np.save(tmp_path / "in/c.npy", classes)
    np.save(tmp_path / "in/d.npy", np.zeros((2, 2)))
    nibabel.save(nibabel.Nifti1Image(classes + 1, np.eye(4)), tmp_path / "in/e.nii.gz")
    segment(tmp_path / "in", tmp_path / "out", 3, classes=3, writing={"report": "true"})
    rows = {Path(row["file"]).name: row for row in table(tmp_path / "out")}
    assert [row["ml of class 1"] for row in rows.values()] == ["1.0800", "0.0000", "", "", "0.4590"]
    page = Page(tmp_path / "out/report.html")
    assert len(page.pictures) == 4
    assert page.stack == []
    for text in (
        "1.080 ml",
        "8.93 %",
        "no class 2 was found",
        "class 1 reaches the edge of the image",
        rows["d.npy"]["error"],
    ):
        assert text in page.texts
    assert page.texts[-1] == "4 of 5 images could be used. The table of all is segmentations.csv."
    segment(tmp_path / "in", tmp_path / "none", 3, classes=3)
    assert not (tmp_path / "none/report.html").exists()


@pytest.mark.parametrize(("unit", "length"), [("meter", 0.002), ("micron", 2000.0), ("mm", 2.0), ("unknown", 2.0)])
def test_volumes_are_in_ml_whatever_the_unit_of_the_file(tmp_path: Path, unit: str, length: float) -> None:
    image = nibabel.Nifti1Image(np.ones((5, 5, 5), dtype=np.uint8), np.diag([length, length, length, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    segment(tmp_path / "a.nii.gz", tmp_path / "out", 3)
    assert table(tmp_path / "out")[0]["ml of class 1"] == "1.0000"
    written = nibabel.load(tmp_path / "out/a_seg.nii.gz")
    assert np.allclose(written.affine, image.affine)
    assert written.header.get_xyzt_units()[0] == unit


def test_sides_are_named_where_the_file_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr("monai_sre.evaluation.writers.draw_planes", lambda *_, sides, **__: told.append(sides))
    for name, codes in {"a": (0, 0), "b": (1, 0), "c": (0, 1)}.items():
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.uint8), None)
        image.set_sform(np.eye(4), codes[0])
        image.set_qform(np.eye(4), codes[1])
        nibabel.save(image, tmp_path / f"{name}.nii")
    segment(tmp_path, tmp_path / "out", 3, writing={"report": True})
    assert told == [False, True, True]


def test_a_picture_that_cannot_be_drawn_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr("monai_sre.evaluation.writers.draw_planes", failing)
    np.save(tmp_path / "a.npy", np.eye(4))
    segment(tmp_path / "a.npy", tmp_path / "out", 2, writing={"report": True})
    assert table(tmp_path / "out")[0]["error"] == ""
    assert "no picture: MemoryError: too large" in Page(tmp_path / "out/report.html").texts


# Predictions ----------------------------------------------------------------------------------------------------------


def network(dims: int) -> SREResNet:
    return SREResNet(dims, 1, 3, width=4, kernel_size=3, conv="harmonic").eval()


def predict(
    source: Path, target: Path, net: SREResNet, maps: bool = True, task: str = "multi-class", report: bool = False
) -> PredictionWriter:
    dims = net.spatial_dims
    orient = [Orientationd("image", "RAS", labels=None)] if dims == 3 else []
    fit, normalize = FitSquared("image", 16, 16), NormalizeIntensityd("image", subtrahend=0.5, divisor=0.5)
    chain = Compose([ReadImaged("image", dims, 1), *orient, ScaleToUnitd("image"), fit, normalize])
    writer = PredictionWriter(target, task, ("a", "b", "c"), maps, net, preprocessing=chain, report=report)

    def process(engine: Engine, batch: Any) -> Any:
        engine.state.batch = batch
        with torch.no_grad():
            return {"image": batch["image"], "score": probabilities(net(batch["image"]), task)}

    engine = Engine(process)
    writer.attach(engine)
    engine.run(DataLoader(ImageFiles(source, chain, 1, dims, size=16), batch_size=2))
    return writer


def test_each_file_that_can_be_read_has_its_map_and_predictions_stay(tmp_path: Path) -> None:
    source, rng, net = tmp_path / "in", np.random.default_rng(0), network(2)
    (source / "sub").mkdir(parents=True)
    arrays = {name: rng.random((16, 12)) for name in ("a.npy", "sub/a.npy", "d.npy")}
    for name, array in {**arrays, "b.npy": np.full((16, 16), np.nan), "sub/c.npy": rng.random((16,) * 3)}.items():
        np.save(source / name, array)
    np.savez(source / "d.npz", arrays["d.npy"])  # whose map would have the name of another
    arrays["d.npz"] = arrays["d.npy"]
    writer = predict(source, tmp_path / "maps", net)
    predict(source, tmp_path / "none", net, maps=False)
    assert [path.name for path in (tmp_path / "none").rglob("*")] == ["predictions.csv"]
    written = {str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.nii.gz")}
    maps = ("a", "sub/a", "d", "d.npz")
    assert written == {f"{name}_activation.nii.gz" for name in maps}
    for row, other in zip(
        table(tmp_path / "maps", "predictions"), table(tmp_path / "none", "predictions"), strict=True
    ):
        assert {key: row[key] for key in other if key != "error"} == {
            key: other[key] for key in other if key != "error"
        }
        name = str(Path(row["file"]).relative_to(source))
        assert row["error"] == other["error"]
        assert bool(row["activation"]) == (name in arrays)
        if name in arrays:
            image = nibabel.load(row["activation"])
            assert np.array_equal(image.affine, np.eye(4))
            assert image.get_data_dtype() == np.float32
            x = torch.from_numpy(arrays[name]).float()[None, None]
            border = torch.cat([x[0, 0, 0], x[0, 0, -1], x[0, 0, 1:-1, 0], x[0, 0, 1:-1, -1]]).median()
            x = (nn.functional.pad(x - border, [2, 2]) + border) * 2 - 1  # to a square of 16
            (features,) = net.forward_features(x)[-1]
            own = int(row["class"])
            weights, biases = (
                1.5 * part[own] - part.sum(dim=0) / 2 for part in (net.fc.weight, net.fc.bias)
            )  # less the mean of the two others
            values = torch.einsum("c...,c->...", features, weights)
            # Two pixels of a map 8 pixels apart, in a square of 16: from the centre, 4 pixels to either side.
            weight = np.clip((np.arange(16) - 3.5) / 8, 0, 1)
            weight = np.stack([1 - weight, weight])
            expected = weight.T @ (values + biases).detach().numpy() @ weight[:, 2:14]
            assert expected.mean() > 0  # the class that it is decided for
            np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=1e-5)
    with pytest.raises(SystemExit, match=r"^2 of 6 files could not be used"):
        writer.finish()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_page_shows_probabilities_and_maps(tmp_path: Path, dims: int) -> None:
    net = network(dims)
    nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.log(torch.tensor([0.5, 0.45, 0.05]))
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", np.random.default_rng(0).random((16,) * dims))
    np.save(tmp_path / "in/b.npy", np.full((16,) * dims, np.nan))
    sizes = {}
    for name, maps in {"maps": True, "none": False}.items():
        predict(tmp_path / "in", tmp_path / name, net, maps=maps, report=True)
        page = Page(tmp_path / name / "report.html")
        (picture,) = page.pictures
        sizes[name] = picture.width * picture.height
        for text in ("0.500", "0.450", "0.050", "the two most probable classes are within 0.1 of each other"):
            assert text in page.texts
        assert any("NaN or infinite" in text for text in page.texts)
    assert sizes["maps"] > 1.9 * sizes["none"]


def test_of_many_labels_the_map_is_that_of_the_most_probable(tmp_path: Path) -> None:
    net = network(2)
    nn.init.zeros_(net.fc.weight)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((16, 16)))
    for bias, decided in (([-3.0, -1.0, -2.0], ""), ([1.0, 3.0, 2.0], "0 1 2")):
        net.fc.bias.data = torch.tensor(bias)
        predict(tmp_path / "a.npy", tmp_path, net, task="multi-label, binary-class")
        (row,) = table(tmp_path, "predictions")
        assert row["class"] == decided
        np.testing.assert_allclose(nibabel.load(row["activation"]).dataobj, np.full((16, 16), bias[1]), atol=1e-6)


@pytest.mark.parametrize("channels", [(), (1,)])
def test_activation_maps_keep_grid_affine_and_header(tmp_path: Path, channels: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [80, -35, 50], degrees=True).as_matrix() * [1.1, 2.0, 2.9]
    affine[:3, 3] = [40.0, -7.0, 12.5]
    values = np.random.default_rng(0).integers(0, 900, (16, 9, 7, *channels), dtype=np.int16)
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"of the scanner"
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    nibabel.save(image, tmp_path / "a.nii.gz")
    predict(tmp_path / "a.nii.gz", tmp_path / "out", network(3))
    source, written = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "out/a_activation.nii.gz")
    assert written.shape == (16, 9, 7)
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    for key in ("descrip", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"):
        assert np.array_equal(written.header[key], source.header[key]), key
    np.testing.assert_allclose(written.header.get_qform(), source.header.get_qform(), atol=1e-6)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms()[:3], atol=1e-6)
    assert written.get_data_dtype() == np.float32
    assert np.isfinite(np.asarray(written.dataobj)).all()


def test_a_failure_of_any_kind_is_the_row_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an inverse that does not work out for one of them."""
    for name, size in {"a": 8, "b": 9, "c": 10}.items():
        np.save(tmp_path / f"{name}.npy", np.eye(size))
    inverse = FitSquared.inverse

    def failing(self: FitSquared, data: Any) -> Any:
        if data["image"].applied_operations[-1]["orig_size"][0] == 9:
            raise np.linalg.LinAlgError("Singular matrix")
        return inverse(self, data)

    monkeypatch.setattr(FitSquared, "inverse", failing)
    predict(tmp_path, tmp_path / "out", network(2))
    errors = {Path(row["file"]).name: row["error"] for row in table(tmp_path / "out", "predictions")}
    assert errors.pop("b.npy").endswith("b.npy: its activation map cannot be written: LinAlgError: Singular matrix")
    assert errors == {"a.npy": "", "c.npy": ""}


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_maps must be true or false, got 'maybe'"):
        PredictionWriter(tmp_path, "multi-class", "abc", "maybe", network(2))
    with pytest.raises(ValueError, match="activation_maps needs the network"):
        PredictionWriter(tmp_path, "multi-class", "abc", "true")
    with pytest.raises(ValueError, match="got 'layer4'; its modules are conv1"):
        PredictionWriter(tmp_path, "multi-class", "abc", True, network(2), "layer4")


def test_class_names_must_be_those_of_the_network(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(6))
    writer = PredictionWriter(tmp_path / "out", "multi-class", ["a", "b"])
    engine = Engine(lambda _, batch: {**batch, "score": torch.eye(3)[:1]})
    writer.attach(engine)
    with pytest.raises(ValueError, match=r"class_names must be 3 names, as the network says, got \['a', 'b'\]"):
        engine.run(DataLoader(ImageFiles(tmp_path, ReadImaged("image", 2, 1), 1, 2), batch_size=1))


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_names_as_the_network_has_classes(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))
    network = lambda x: torch.cat([x, -x], dim=1)  # noqa: E731
    with pytest.raises(ValueError, match=r"class_names must be 2 names, as the network says, got \['class 0'"):
        segment(tmp_path / "a.npy", tmp_path / "out", 2, classes=count, network=network)


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task must be one of .*'multi-class'.*, got 'regression'"):
        PredictionWriter(tmp_path, "regression", ["a", "b"])
