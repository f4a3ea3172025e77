"""Inference of the three bundles: what files of any kind give, and what the bad ones among them say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from tests.bundles import running
from tests.bundles.inferring import (
    BUNDLES,
    CLASSIFICATION,
    CODES,
    SEGMENTATION,
    VOLUMES,
    classifier,
    infer,
    reoriented,
    segmenter,
)
from tests.bundles.running import causes, rows
from tests.data.dicom_series import save_series

# Classification -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_classification_reports_bad_files_and_does_the_others(tmp_path: Path, dims: int) -> None:
    network, folder = classifier(tmp_path / "model", dims), tmp_path / "images"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, *[12] * dims), dtype=np.uint8)
    np.save(folder / "a.npy", images[0])
    np.savez(folder / "b.npz", image=images[1])
    slab = images[2][..., None] if dims == 2 else images[2]
    nibabel.save(nibabel.Nifti1Image(slab, np.diag([-1, -1, 1, 1])), folder / "c.nii.gz")
    good = {"a.npy": 0, "b.npz": 1, "c.nii.gz": 2}
    if dims == 2:
        Image.fromarray(images[3]).save(folder / "d.png")
        Image.fromarray(images[4]).convert("RGB").save(folder / "e.jpg")
        good |= {"d.png": 3, "e.jpg": 4}
    (folder / "f.png").write_text("not a picture")
    np.save(folder / "g.npy", np.zeros((6,) * (5 - dims), dtype=np.uint8))
    np.save(folder / "h.npy", np.full((4,) * dims, np.nan))
    options = {"ckpt_dir": str(tmp_path / "model"), "batch_size": 4}
    with pytest.raises(SystemExit) as caught:
        infer(CLASSIFICATION[dims], folder, tmp_path / "out", **options, activation_maps="True")
    message = str(caught.value)
    assert message.startswith("3 of")
    assert all(name in message for name in ("f.png", "g.npy", "h.npy"))
    table = {Path(row["file"]).name: row for row in rows(tmp_path / "out/predictions.csv")}
    assert sorted(table) == sorted([*good, "f.png", "g.npy", "h.npy"])
    for name, row in table.items():
        assert bool(row["error"]) == (name not in good)
        assert bool(row["activation"]) == (name in good)
        if name in good:
            assert nibabel.load(row["activation"]).shape == (slab.shape if name == "c.nii.gz" else (12,) * dims)
            x = torch.from_numpy(images[good[name]])[None, None].float() / 127.5 - 1
            with torch.no_grad():
                expected = network(x).softmax(dim=1)[0].tolist()
            tolerance = 0.05 if name == "e.jpg" else 2e-6
            assert [float(row["p(0)"]), float(row["p(1)"])] == pytest.approx(expected, abs=tolerance)
            assert int(row["class"]) == int(np.argmax(expected))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    maps = {Path(table[name]["activation"]).name for name in good}
    assert written == {"predictions.csv", "report.html", ".monai_sre_outputs", *maps}
    assert len(maps) == len(good)
    infer(CLASSIFICATION[dims], folder / "a.npy", tmp_path / "without", **options)
    written = {path.name for path in (tmp_path / "without").iterdir()}
    assert written == {"predictions.csv", "report.html"}  # no maps unless asked for
    infer(CLASSIFICATION[dims], folder / "a.npy", tmp_path / "bare", **options, report=False)
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["predictions.csv"]


def test_inference_sees_what_evaluation_sees(tmp_path: Path) -> None:
    """Files of any kind, shape and range of intensities, listed in a datalist or in a folder."""
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    Image.fromarray(rng.integers(0, 256, (30, 20), dtype=np.uint8)).save(images / "a.png")
    np.save(images / "b.npy", rng.integers(-50, 300, (25, 25), dtype=np.int16))
    for name, shape in (("c.nii.gz", (1, 20, 33)), ("d.nii.gz", (40, 1, 40))):
        affine = np.diag([4.0, 1.0, 1.5, 1.0])
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 900, shape, dtype=np.int16), affine), images / name)
    names = sorted(path.name for path in images.iterdir())
    entries = [{"image": f"images/{name}", "label": index % 2} for index, name in enumerate(names)]
    (tmp_path / "list.json").write_text(json.dumps({"test": entries}))
    options = {"ckpt_dir": str(tmp_path / "model"), "device": "cpu"}
    lists = {"dataset_name": "list.json", "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "evaluation")}
    tables = []
    for window, level in ((None, {}), ([0, 255], {}), (None, {"mean": [0.2], "std": 0.3})):
        classifier(tmp_path / "model", 2, size=12, image_size=14, intensity_range=window, **level)
        running.run(CLASSIFICATION[2], "train", "evaluate", **options, **lists)
        infer(CLASSIFICATION[2], images, tmp_path / "out", **options)
        tables.append([float(row["p(0)"]) for row in rows(tmp_path / "out/predictions.csv")])
        evaluated = [float(row["p(0)"]) for row in rows(tmp_path / "evaluation/predictions.csv")]
        assert tables[-1] == pytest.approx(evaluated, abs=2e-6)
    same = [first == second for first, second, _ in zip(*tables, strict=True)]
    assert same == [True, False, False, False]  # 8-bit files have their range
    assert not set(tables[0]) & set(tables[2])


def test_classes_of_a_model_keep_their_names(tmp_path: Path) -> None:
    classifier(tmp_path / "model", 2, class_names=["benign", "malignant"])
    np.save(tmp_path / "a.npy", np.zeros((12, 12), dtype=np.uint8))
    options = {"ckpt_dir": str(tmp_path / "model"), "class_names": ["malignant", "benign"]}
    with pytest.raises(RuntimeError) as caught:
        infer(CLASSIFICATION[2], tmp_path / "a.npy", tmp_path / "out", **options)
    assert "class_names must be ['benign', 'malignant'], in this order" in causes(caught.value)


def test_options_override_the_description(tmp_path: Path) -> None:
    classifier(tmp_path / "model", 2)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(12, 12)))
    options: dict[str, Any] = {"ckpt_dir": str(tmp_path / "model")}
    infer(CLASSIFICATION[2], tmp_path / "a.npy", tmp_path / "out", **options)
    options |= {"class_names": ["ill", "well"], "intensity_range": [-9, 9]}
    infer(CLASSIFICATION[2], tmp_path / "a.npy", tmp_path / "other", **options)
    (one,), (other,) = rows(tmp_path / "out/predictions.csv"), rows(tmp_path / "other/predictions.csv")
    assert other["name"] in ("ill", "well")
    assert one["p(0)"] != other["p(ill)"]


def test_weights_elsewhere_bring_their_own_description(tmp_path: Path) -> None:
    """Two models of one architecture differ in their classes alone."""
    for name in ("one", "other"):
        classifier(tmp_path / name, 2, class_names=[f"{name} {number}" for number in range(2)])
    np.save(tmp_path / "a.npy", np.zeros((12, 12), dtype=np.uint8))
    options = {"ckpt_dir": str(tmp_path / "one"), "ckpt_path": str(tmp_path / "other/model.pt")}
    infer(CLASSIFICATION[2], tmp_path / "a.npy", tmp_path / "out", **options)
    (row,) = rows(tmp_path / "out/predictions.csv")
    assert row["name"] == f"other {row['class']}"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_weights_and_description_must_fit(tmp_path: Path, bundle: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12, 12)))
    model = tmp_path / "model"
    segmenter(model, 2) if bundle in (SEGMENTATION, VOLUMES) else classifier(model, 2)
    other = json.loads((bundle / "models/model.json").read_text())
    for content, message in (
        (json.dumps(other), "model.pt does not fit the network: "),
        ("{", "model.json is no description of a model"),
        (None, "model.json is missing: training writes it beside model.pt"),
    ):
        if content is None:
            (model / "model.json").unlink()
        else:
            (model / "model.json").write_text(content)
        with pytest.raises(RuntimeError) as caught:
            infer(bundle, tmp_path / "a.npy", tmp_path / "out", ckpt_dir=str(model))
        assert message in causes(caught.value)
        assert not (tmp_path / "out").exists()


# Segmentation of pictures ---------------------------------------------------------------------------------------------


def photograph(size: tuple[int, int]) -> np.ndarray:
    """A bright disc of noise in a dark frame."""
    rows_, columns = np.indices(size)
    disc = np.hypot(rows_ - (size[0] - 1) / 2, columns - (size[1] - 1) / 2) < min(size) / 2 - 1
    noise = np.random.default_rng(0).integers(0, 60, (*size, 3))
    return (noise // 20 + disc[..., None] * (np.array([150, 90, 40]) + noise)).clip(0, 255).astype(np.uint8)


def test_segmentation_is_that_of_the_normalised_photograph(tmp_path: Path) -> None:
    network = segmenter(tmp_path / "model", 2, roi_size=64)
    image = photograph((40, 49))
    Image.fromarray(image).save(tmp_path / "a.png")
    infer(SEGMENTATION, tmp_path / "a.png", tmp_path / "out", ckpt_dir=str(tmp_path / "model"))
    inside = image.max(axis=-1) > 20
    values = image[inside].astype(np.float64)
    x = np.where(inside[..., None], (image - values.mean(axis=0)) / values.std(axis=0), 0)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).float().movedim(-1, 0)[None]).argmax(dim=1)[0].numpy()
    found = np.asarray(Image.open(tmp_path / "out/a_seg.png"))
    assert 0.1 < expected.mean() < 0.9
    assert np.array_equal(found, 255 * expected)
    (row,) = rows(tmp_path / "out/segmentations.csv")
    assert float(row["share of foreground"]) == pytest.approx(expected.mean(), abs=1e-6)


def test_a_turned_photograph_gives_the_turned_map(tmp_path: Path) -> None:
    """Through the whole bundle, for all eight rotations and flips of an image of unequal sides."""
    segmenter(tmp_path / "model", 2, roi_size=32)
    image = photograph((48, 55))
    turned = {f"{k}{f}": lambda x, k=k, f=f: np.rot90(x[:, ::-1] if f else x, k) for k in range(4) for f in (0, 1)}
    (tmp_path / "in").mkdir()
    for name, turn in turned.items():
        Image.fromarray(np.ascontiguousarray(turn(image))).save(tmp_path / f"in/{name}.png")
    infer(SEGMENTATION, tmp_path / "in", tmp_path / "out", ckpt_dir=str(tmp_path / "model"))
    found = {name: np.asarray(Image.open(tmp_path / f"out/{name}_seg.png")) for name in turned}
    for name, turn in turned.items():
        assert (found[name] == turn(found["00"])).mean() > 0.9995  # rounding may decide a pixel at one half


def test_bad_files_do_not_stop_the_others(tmp_path: Path) -> None:
    segmenter(tmp_path / "model", 2)
    source = tmp_path / "in"
    source.mkdir()
    image = Image.fromarray(photograph((40, 40)))
    image.save(source / "a.png")
    image.convert("L").save(source / "grey.png")
    (source / "b.png").write_text("no picture")
    np.save(source / "c.npy", np.full((9, 9), np.nan))
    np.save(source / "d.npy", np.zeros((4, 4, 4)))
    with pytest.raises(SystemExit) as caught:
        infer(SEGMENTATION, source, tmp_path / "out", ckpt_dir=str(tmp_path / "model"))
    assert str(caught.value).startswith("3 of 5 files could not be used")
    table = {Path(row["file"]).name: row for row in rows(tmp_path / "out/segmentations.csv")}
    assert [name for name, row in table.items() if not row["error"]] == ["a.png", "grey.png"]
    assert 0 < float(table["a.png"]["share of foreground"]) < 1


# Segmentation of volumes ----------------------------------------------------------------------------------------------


def volumes(source: Path, target: Path, plain: bool = False, **changes: Any) -> None:
    """Infer with a model of volumes in RAS and cubes of 1 mm, unless it is changed; no overlay is needed."""
    segmenter(target / "model", 3, plain, **{"axcodes": "RAS", "pixdim": [1.0, 1.0, 1.0], **changes})
    infer(SEGMENTATION, source, target, ckpt_dir=str(target / "model"))


@pytest.mark.parametrize(
    ("name", "channels"), [("anatomical.nii", 1), ("someones_anatomy.nii.gz", 1), ("example4d.nii.gz", 2)]
)
def test_maps_of_real_volumes_lie_on_their_grid(data_dir: Path, tmp_path: Path, name: str, channels: int) -> None:
    """Tilted affines and unequal voxels, to cubes of 4 mm and back; the fourth axis is the channels."""
    volumes(data_dir / "nifti" / name, tmp_path, num_channels=channels, pixdim=[4.0, 4.0, 4.0])
    source = nibabel.load(data_dir / "nifti" / name)
    written = nibabel.load(tmp_path / f"{name.split('.')[0]}_seg.nii.gz")
    assert written.shape == source.shape[:3]
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)
    for key in ("descrip", "xyzt_units", "qform_code", "sform_code"):
        assert np.array_equal(written.header[key], source.header[key]), key
    np.testing.assert_allclose(written.header.get_qform(), source.header.get_qform(), atol=1e-6)
    (row,) = rows(tmp_path / "segmentations.csv")
    assert 0.001 < float(row["share of foreground"]) < 0.999


@pytest.mark.parametrize(
    ("changes", "plain", "same"),
    [
        ({}, False, True),
        ({"axcodes": None, "pixdim": None}, False, True),
        ({"axcodes": None, "pixdim": None}, True, False),
    ],
    ids=["as trained", "without reorientation", "plain network without reorientation"],
)
def test_all_48_axis_codes_give_one_segmentation(
    tmp_path: Path, changes: dict[str, Any], plain: bool, same: bool
) -> None:
    """Of the same anatomy; without ``Orientationd`` it is the network that sees each orientation, and commutes."""
    source = tmp_path / "in"
    source.mkdir()
    rng, affine = np.random.default_rng(0), np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = (-20.0, 7.0, 3.5)
    values = rng.normal(size=(21, 18, 25)).astype(np.float32)
    original = nibabel.Nifti1Image(values, affine)
    assert len(set(CODES)) == 48
    for code in CODES:
        nibabel.save(reoriented(original, code), source / f"{code}.nii.gz")
    volumes(source, tmp_path / "out", plain, **changes)
    maps = {code: reoriented(nibabel.load(tmp_path / f"out/{code}_seg.nii.gz"), "RAS") for code in CODES}
    for found in maps.values():
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    classes = {code: np.asarray(found.dataobj) for code, found in maps.items()}
    assert 0.02 < classes["RAS"].mean() < 0.98
    agreement = min((found == classes["RAS"]).mean() for found in classes.values())
    assert (agreement > 0.999) == same


def test_each_bad_volume_has_one_clear_reason(tmp_path: Path) -> None:
    source, affine = tmp_path / "in", np.eye(4)
    source.mkdir()
    good = np.random.default_rng(0).normal(size=(12, 11, 10)).astype(np.float32)
    broken = good.copy()
    broken[3, 4, 5] = np.nan
    arrays = {"good": good, "nan": broken, "channels": good[..., None].repeat(3, -1), "flat": good[..., 0]}
    for name, array in arrays.items():
        nibabel.save(nibabel.Nifti1Image(array, affine), source / f"{name}.nii.gz")
    np.save(source / "empty.npy", good[:0])
    (source / "text.nii.gz").write_text("no volume")
    nibabel.save(nibabel.Nifti1Image(good, affine), source / "singular.nii")
    content = bytearray((source / "singular.nii").read_bytes())
    content[312:328] = bytes(16)  # the last row of the sform
    content[252:256] = bytes([0, 0, 1, 0])  # qform_code 0, sform_code 1
    (source / "singular.nii").write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        volumes(source, tmp_path / "out")
    assert str(caught.value).startswith("6 of 7 files could not be used")
    expected = {
        "good.nii.gz": "",
        "nan.nii.gz": "holds NaN or infinite values",
        "channels.nii.gz": "has 3 channels; the network takes 1",
        "flat.nii.gz": "has 2 spatial axes, shape (12, 11); the network takes images of 3",
        "empty.npy": "is empty",
        "text.nii.gz": "cannot be read as an image",
        "singular.nii": "singular affine",
    }
    table = {Path(row["file"]).name: row["error"] for row in rows(tmp_path / "out/segmentations.csv")}
    assert set(table) == set(expected)
    for name, reason in expected.items():
        assert reason in table[name]
        assert bool(table[name]) == bool(reason)
        assert (name in str(caught.value)) == bool(reason)


# DICOM ----------------------------------------------------------------------------------------------------------------


def test_a_dicom_series_is_segmented_as_its_nifti_on_its_own_grid(tmp_path: Path) -> None:
    """Through orientation and resampling, with a DICOM SEG beside, and a series that says why it cannot be used."""
    pytest.importorskip("highdicom")
    values = np.random.default_rng(0).integers(0, 900, (24, 20, 11)).astype(np.int16)
    # Sagittal, and of numbers that NIfTI keeps exactly: rounding shifts the grid that MONAI resamples a tilted volume to.
    affine = np.array([[0.0, 0.0, 2.5, 40.0], [-1.25, 0.0, 0.0, -7.0], [0.0, -1.5, 0.0, 12.5], [0.0, 0.0, 0.0, 1.0]])
    source = tmp_path / "in"
    save_series(source / "series", values, affine)
    save_series(source / "gap", values, affine, ImagePositionPatient=lambda index: [4 * (index + index // 10), 0, 0])
    nibabel.save(nibabel.Nifti1Image(values, affine), source / "volume.nii.gz")
    segmenter(tmp_path / "model", 3, axcodes="RAS", pixdim=[1.5, 1.5, 1.5])
    with pytest.raises(SystemExit, match=r"^1 of 3 files could not be used"):
        infer(SEGMENTATION, source, tmp_path / "out", ckpt_dir=str(tmp_path / "model"), dicom_seg=True)
    table = {Path(row["file"]).name: row for row in rows(tmp_path / "out/segmentations.csv")}
    assert sorted(table) == ["gap", "series", "volume.nii.gz"]
    assert "1 of its slices is missing" in table["gap"]["error"]
    maps = [reoriented(nibabel.load(table[name]["output"]), "RAS") for name in ("series", "volume.nii.gz")]
    np.testing.assert_allclose(maps[0].affine, maps[1].affine, atol=1e-4)
    found, expected = (np.asarray(each.dataobj) for each in maps)
    assert found.shape == expected.shape
    assert 0.05 < expected.mean() < 0.95
    assert (found == expected).mean() > 0.999
    assert Path(table["series"]["dicom"]).name == "series_seg.dcm"
    assert float(table["series"]["ml of foreground"]) == pytest.approx(
        float(table["volume.nii.gz"]["ml of foreground"]), rel=1e-2
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_dicom_is_classified_as_the_same_values_in_another_file(tmp_path: Path, dims: int) -> None:
    """Of two axes, each file of a series is an image."""
    pytest.importorskip("pydicom")
    values = np.random.default_rng(0).integers(0, 900, (12, 12, 12))
    files = save_series(tmp_path / "in/series", values)
    classifier(tmp_path / "model", dims)
    options = {"ckpt_dir": str(tmp_path / "model"), "batch_size": 2}
    infer(CLASSIFICATION[dims], tmp_path / "in", tmp_path / "out", **options)
    found = rows(tmp_path / "out/predictions.csv")
    assert [row["file"] for row in found] == (
        [str(tmp_path / "in/series")] if dims == 3 else [str(file) for file in files]
    )
    order = np.random.default_rng(0).permutation(12)
    (tmp_path / "same").mkdir()
    for number in range(len(found)):
        part = values if dims == 3 else values[..., order[number], None]
        image = nibabel.Nifti1Image(part.astype(np.int16), np.diag([-1.5, -2.0, 3.0, 1.0]))
        nibabel.save(image, tmp_path / f"same/{number:03d}.nii")
    infer(CLASSIFICATION[dims], tmp_path / "same", tmp_path / "other", **options)
    expected = [float(row["p(0)"]) for row in rows(tmp_path / "other/predictions.csv")]
    assert [float(row["p(0)"]) for row in found] == pytest.approx(expected, abs=2e-5)
