"""Volumes through the segmentation bundle: any orientation and spacing in, a map on the same grid out."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import create_test_image_3d

BUNDLE = Path(__file__).parents[2] / "bundles/retinal_vessel_segmentation"
SMALL = {"network_def#channels": [4, 8], "network_def#kernel_size": 3, "network_def#conv": "radial", "roi_size": 16}
PLAIN = {"network_def#channels": [4, 8], "network_def#strides": [2], "roi_size": 16}
CODES = ["".join(code) for order in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*order)]


def configs(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / f"{name}.json") for name in (*names, "volumes")]


def run(*names: str, **options: Any) -> None:
    monai.bundle.run(
        config_file=configs(*names),
        meta_file=str(BUNDLE / "configs/metadata.json"),
        logging_file=str(BUNDLE / "configs/logging.conf"),
        bundle_root=str(BUNDLE),
        device="cpu",
        **options,
    )


def infer(source: Path, target: Path, plain: bool = False, **options: Any) -> None:
    """With the network of the config and random weights, balanced so that noise is decided for either class alike."""
    names = ("inference", "plain") if plain else ("inference",)
    options = {**(PLAIN if plain else SMALL), **options}
    parser = ConfigParser()
    parser.read_config(configs(*names))
    parser.update(options)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    bias = [parameter for parameter in network.parameters() if parameter.shape == (2,)][-1]
    with torch.no_grad():
        logits = network(torch.randn(1, options.get("num_channels", 1), 16, 16, 16))
        bias[0] += (logits[:, 1] - logits[:, 0]).median()
    target.mkdir(exist_ok=True)
    torch.save(network.state_dict(), target / "model.pt")
    run(*names, input=str(source), output_dir=str(target), ckpt_dir=str(target), **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def reoriented(image: Any, code: str) -> Any:
    """The same anatomy with its axes in another order and direction."""
    now, then = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    return image.as_reoriented(nibabel.orientations.ornt_transform(now, then))


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"), [("anatomical.nii", 1), ("someones_anatomy.nii.gz", 1), ("example4d.nii.gz", 2)]
)
def test_maps_of_real_volumes_lie_on_their_grid(data_dir: Path, tmp_path: Path, name: str, channels: int) -> None:
    """Tilted affines and unequal voxels, to cubes of 4 mm and back; the fourth axis is the channels."""
    infer(data_dir / "nifti" / name, tmp_path, num_channels=channels, pixdim=[4.0, 4.0, 4.0])
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
    ("options", "plain", "same"),
    [
        ({}, False, True),
        ({"axcodes": "", "pixdim": []}, False, True),
        ({"axcodes": "", "pixdim": []}, True, False),
    ],
    ids=["as configured", "without reorientation", "plain network without reorientation"],
)
def test_all_48_axis_codes_give_one_segmentation(
    tmp_path: Path, options: dict[str, Any], plain: bool, same: bool
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
    infer(source, tmp_path / "out", plain, **options)
    maps = {code: reoriented(nibabel.load(tmp_path / f"out/{code}_seg.nii.gz"), "RAS") for code in CODES}
    for found in maps.values():
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    classes = {code: np.asarray(found.dataobj) for code, found in maps.items()}
    assert 0.02 < classes["RAS"].mean() < 0.98
    agreement = min((found == classes["RAS"]).mean() for found in classes.values())
    assert (agreement > 0.999) == same


# Bad input ------------------------------------------------------------------------------------------------------------


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
        infer(source, tmp_path / "out")
    assert str(caught.value).startswith("6 of 7 files could not be used")
    expected = {
        "good.nii.gz": "",
        "nan.nii.gz": "holds NaN or infinite values",
        "channels.nii.gz": "has 3 channels; the network takes 1",
        "flat.nii.gz": "has 2 spatial axes; the network takes images of 3",
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


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slabs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balls in noise, of which every fourth slice was taken: voxels of 1 x 1 x 4."""
    folder = tmp_path_factory.mktemp("slabs")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    for number in range(10):
        random = np.random.RandomState(number)
        image, label = create_test_image_3d(
            40, 40, 48, num_objs=6, rad_max=9, rad_min=5, noise_max=0.6, num_seg_classes=1, random_state=random
        )
        for name, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label.astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array[..., ::4], affine), folder / f"{name}/{number}.nii.gz")
    return folder


def train(folder: Path, target: Path, **options: Any) -> float:
    """Best validation Dice."""
    common = {"dataset_dir": str(folder), "num_val": 3, "num_test": 2, "patch_size": [24, 24, 12], "batch_size": 2}
    common |= {"patches_per_image": 2, "val_interval": 1, "progress": False, "roi_size": 40, "pixdim": []}
    run("train", **{**common, **options}, output_dir=str(target))
    return max(float(row["val_dice"]) for row in rows(target / "metrics.csv"))


@pytest.mark.parametrize("rotation", [False, True])
def test_patches_of_thin_volumes_are_padded(slabs: Path, tmp_path: Path, rotation: bool) -> None:
    parser = ConfigParser()
    parser.read_config(configs("train"))
    options = {"dataset_dir": str(slabs), "num_val": 3, "num_test": 2, "patch_size": 16, "rotation": rotation}
    parser.update({**options, "pixdim": [], "patches_per_image": 1, "batch_size": 5})
    for batch in parser.get_parsed_content("train#dataloader"):
        assert batch["image"].shape == batch["label"].shape == (5, 1, 16, 16, 16)  # of 12 slices


def test_spacing_helps_on_slabs(slabs: Path, tmp_path: Path) -> None:
    """Kernels that are round in millimetres find round balls sooner than the same network without ``spacing``."""
    network = {
        "network_def#channels": [8, 16],
        "network_def#kernel_size": [[7, 7, 3], [5, 5, 3]],
        "network_def#strides": [[2, 2, 1]],
        "network_def#conv": "radial",
    }
    options = {**network, "max_epochs": 8, "learning_rate": 0.01}
    aware = train(slabs, tmp_path / "aware", **options, **{"network_def#spacing": [1.0, 1.0, 4.0]})
    assert aware > 0.9
    assert aware > train(slabs, tmp_path / "unaware", **options)
