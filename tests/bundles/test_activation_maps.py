"""Class-activation maps by the shipped weights of both MedMNIST bundles: they turn with the image of their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tests.bundles.inferring import CLASSIFICATION, infer, reoriented


def activation_maps(dims: int, source: Path, target: Path) -> dict[str, Any]:
    """Of the classes that the shipped weights decide for, by the stems of the files."""
    infer(CLASSIFICATION[dims], source, target, activation_maps=True)
    return {path.name.split("_")[0]: nibabel.load(path) for path in target.glob("*_activation.nii.gz")}


def smooth(*size: int) -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(0).random(size), 1.5)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def test_activation_maps_of_turned_pictures_are_the_turned_maps(tmp_path: Path) -> None:
    """Pictures that are not square: 21 x 30 becomes 22 x 30 in 30 x 30, and that 32 x 32."""
    source, picture = tmp_path / "in", (255 * smooth(21, 30)).astype(np.uint8)
    source.mkdir()
    turns = {
        "upright": lambda values: values,
        "turned": np.rot90,
        "flipped": np.flipud,
        "both": np.transpose,
    }
    for name, turn in turns.items():
        Image.fromarray(turn(picture)).save(source / f"{name}.png")
    maps = activation_maps(2, source, tmp_path / "out")
    upright = maps["upright"].get_fdata()
    assert upright.shape == (21, 30)  # rows and columns, as displayed
    assert np.ptp(upright) > 0.5
    for name, turn in turns.items():
        assert np.array_equal(maps[name].affine, np.eye(4)[[1, 0, 2, 3]])  # in space, columns come first
        np.testing.assert_allclose(maps[name].get_fdata(), turn(upright), atol=1e-4)


def test_volumes_stored_along_other_axes_have_the_same_map_in_space(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [5, -3, 10], degrees=True).as_matrix() * [1.1, 1.2, 3.3]
    affine[:3, 3] = [40.0, -7.0, 12.5]
    original = nibabel.Nifti1Image(smooth(21, 18, 9), affine)
    for code in ("RAS", "LPI", "SRA", "PIR"):
        nibabel.save(reoriented(original, code), source / f"{code}.nii.gz")
    maps = activation_maps(3, source, tmp_path / "out")
    expected = maps["RAS"].get_fdata()
    assert expected.shape == original.shape
    assert np.ptp(expected) > 0.1
    for code, found in maps.items():
        image = nibabel.load(source / f"{code}.nii.gz")
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-6)
        np.testing.assert_allclose(found.header.get_zooms(), image.header.get_zooms(), atol=1e-6)
        np.testing.assert_allclose(reoriented(found, "RAS").get_fdata(), expected, atol=1e-4)


def test_activation_maps_of_turned_volumes_are_the_turned_maps(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    turns = {
        "upright": lambda values: values,
        "turned": lambda values: np.rot90(values, 1, (2, 0)),
        "flipped": np.flipud,
    }
    for name, turn in turns.items():
        nibabel.save(nibabel.Nifti1Image(turn(smooth(21, 18, 16)), np.eye(4)), source / f"{name}.nii")
    maps = activation_maps(3, source, tmp_path / "out")
    upright = maps["upright"].get_fdata()
    assert np.ptp(upright) > 0.1
    for name, turn in turns.items():
        np.testing.assert_allclose(maps[name].get_fdata(), turn(upright), atol=1e-4)
