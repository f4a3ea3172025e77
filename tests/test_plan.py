"""The plan for a user's own volumes: what is found in them, what is proposed, and a training on it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from monai_sre import SREUNet, plan
from monai_sre.plan import choose_classes, choose_geometry, choose_spacing, look_at
from tests.bundles import running
from tests.bundles.running import rows

BUNDLE = running.BUNDLES / "hippocampus_segmentation"


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> str:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), path)
    return str(path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six scans in Hounsfield units, slices of 4 mm first, a bright ball in each; maps hold 0 and 1.9999996."""
    rng, affine = np.random.default_rng(0), np.diag([4.0, 1.0, 1.0, 1.0])
    for number in range(6):
        places = np.moveaxis(np.indices((8, 24, 24)), 0, -1) - rng.uniform([3, 9, 9], [5, 14, 14])
        ball = ((places * [4, 1, 1]) ** 2).sum(-1) < 60
        scan = np.where(ball, 80.0, -1000.0) + rng.normal(0, 10, ball.shape)
        save(tmp_path / f"scans/{number}_ct.nii", scan, affine)
        save(tmp_path / f"maps/{number}_ball.nii", 2 * ball * 0.9999998, affine)
    return tmp_path


def planned(folder: Path, *options: str) -> dict[str, Any]:
    path = folder / "plan.json"
    plan.main([str(folder), "--output", str(path), "--memory", "0.5", *options])
    content: dict[str, Any] = json.loads(path.read_text())
    return content


PATTERNS = ("--images", "scans/*_ct.nii", "--labels", "maps/*_ball.nii")


# The whole way ---------------------------------------------------------------------------------------------------------


def test_from_a_folder_to_a_segmentation(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, evaluate and infer on the plan as it is, but for a smaller network and a shorter epoch."""
    found = planned(scans, *PATTERNS)
    assert "values 0, 2 of the maps are the classes 0, 1" in capsys.readouterr().out
    assert (found["label_values"], found["class_names"]) == ([0, 2], ["background", "class 2"])
    assert found["pixdim"] == found["network_def#spacing"] == [4.0, 1.0, 1.0]
    assert found["network_def#kernel_size"][0] == [1, 5, 5]
    low, high = found["intensity_range"]
    assert 50 < low < 60 < 100 < high < 110  # 2.58 standard deviations of 10 around 80
    toy = {"network_def#channels": [8, 8], "network_def#kernel_size": 3, "network_def#conv": "radial"}
    configs = [str(BUNDLE / "configs/train.json"), str(scans / "plan.json")]
    options = {"bundle_root": str(scans), "device": "cpu", "patches_per_image": 24}
    short = {"learning_rate": 0.1, "max_epochs": 1}
    running.monai.bundle.run(config_file=configs, **options, **toy, **short)
    assert float(rows(scans / "output/metrics.csv")[-1]["val_dice"]) > 0.8
    models = str(scans / "output/models")
    configs.append(str(BUNDLE / "configs/evaluate.json"))
    running.monai.bundle.run(config_file=configs, **options, ckpt_dir=models)
    assert json.loads((scans / "output/evaluation/metrics.json").read_text())["Dice"] > 0.8
    running.run(BUNDLE, "inference", input=str(scans / "scans"), ckpt_dir=models, output_dir=str(scans / "maps"))
    for number in range(6):
        truth, result = (
            np.asarray(nibabel.load(scans / f"maps/{number}_{name}").dataobj).round()
            for name in ("ball.nii", "ct_seg.nii.gz")
        )
        assert set(np.unique(result)) == {0, 2}  # the values of the maps that the network has learned from
        assert 2 * (result * truth > 0).sum() / ((result > 0).sum() + (truth > 0).sum()) > 0.8


def test_the_hippocampus_gets_the_recipe_of_its_bundle(data_dir: Path, tmp_path: Path) -> None:
    """What the published training sets by hand; every fifth of its volumes."""
    folder = data_dir / "msd_hippocampus"
    content = json.loads((folder / "dataset.json").read_text())
    content["training"] = [
        {key: str(folder / entry[key]) for key in ("image", "label")} for entry in content["training"][::5]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found, stated = planned(tmp_path), json.loads((BUNDLE / "configs/train.json").read_text())
    for name in ("pixdim", "batch_size", "num_channels", "intensity_range", "num_workers"):
        assert found[name] == stated[name], name
    assert np.abs(np.subtract(found["patch_size"], stated["patch_size"])).max() <= 4  # the median of all is that
    assert found["class_names"] == ["background", "Anterior", "Posterior"]
    assert found["network_def#channels"] == stated["network_def"]["channels"]
    assert {*found["network_def#kernel_size"]} == {stated["network_def"]["kernel_size"]}


def test_the_folder_of_nnunet_says_its_classes_and_modality(scans: Path) -> None:
    (scans / "scans").rename(scans / "imagesTr")
    (scans / "maps").rename(scans / "labelsTr")
    for path in sorted((scans / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace("_ct", "_0000")))
    for path in sorted((scans / "labelsTr").iterdir()):
        path.rename(path.with_name(path.name.replace("_ball", "")))
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "ball": 2}, "file_ending": ".nii"}
    (scans / "dataset.json").write_text(json.dumps(about))
    found = planned(scans)
    assert (found["dataset_name"], found["images"]) == ("", "imagesTr/*_0000.nii")
    assert (found["class_names"], found["label_values"]) == (["background", "ball"], [0, 2])
    assert found["intensity_range"] is None  # no CT, though it reaches below -500


def test_what_the_user_has_edited_is_not_replaced(scans: Path) -> None:
    (scans / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"FileExistsError: .*plan\.json is there already; --overwrite replaces it"):
        planned(scans, *PATTERNS)
    with pytest.raises(SystemExit, match=r"ValueError: memory must be None or GiB above 0, got 0\.0"):
        planned(scans, *PATTERNS, "--overwrite", "--memory", "0")
    assert planned(scans, *PATTERNS, "--overwrite")["num_channels"] == 1


@pytest.mark.parametrize("name", ["lesion #1", "$__import__('os').getcwd()", "@seed", "%plan.json"])
def test_names_that_a_config_would_read_as_something_else_are_refused(scans: Path, name: str) -> None:
    """Before any volume is read: a name could be changed silently, or be executed."""
    pairs = [{"image": f"scans/{number}_ct.nii", "label": f"maps/{number}_ball.nii"} for number in range(6)]
    content = {"labels": {"0": "background", "2": name}, "training": pairs}
    (scans / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=f"labels must hold no '#', nor begin with .*, got {re.escape(repr(name))}"):
        planned(scans)
    with pytest.raises(SystemExit, match=r"labels must hold no '#', .*got 'x/\*#\.nii'"):
        planned(scans, *PATTERNS[:3], "x/*#.nii")


def test_a_place_that_cannot_be_written_is_said_before_volumes_are_read(scans: Path) -> None:
    (scans / "file").touch()
    with pytest.raises(SystemExit, match=r"OSError: --output='.*/file' is no folder that can be written to"):
        plan.main([str(scans), *PATTERNS, "--output", str(scans / "file/plan.json")])


def test_the_command_ends_in_one_sentence(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "none is no folder and no JSON"), (tmp_path, "has no dataset.json")):
        with pytest.raises(SystemExit, match=f"FileNotFoundError: .*{message}"):
            plan.main([str(folder), "--output", str(tmp_path / "plan.json")])
    assert not (tmp_path / "plan.json").exists()


# What is found ---------------------------------------------------------------------------------------------------------


def test_volumes_are_measured_as_they_lie_in_space(tmp_path: Path) -> None:
    """Axes stored in another order; two channels, last."""
    image, label = np.zeros((4, 9, 7, 2)), np.zeros((4, 9, 7))
    label[0, 0, :2] = 1, 2.0000001
    image[..., 0], image[0, 0, :2, 1], image[3, 3, 3, 0] = 5, (7, 9), -3
    affine = np.array([[0, 0, -2.0, 0], [0.5, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    pair = {"image": save(tmp_path / "a.nii", image, affine), "label": save(tmp_path / "b.nii", label, affine)}
    seen = look_at([pair])
    assert (seen.spacings.tolist(), seen.shapes.tolist()) == ([[2.0, 0.5, 3.0]], [[7, 4, 9]])
    assert (seen.num_channels, seen.values, seen.lowest.tolist()) == (2, {0: 1, 1: 1, 2: 1}, [-3])
    assert sorted(seen.foreground.tolist()) == [5, 5, 7, 9]


def test_volumes_that_cannot_be_planned_on_are_named(tmp_path: Path) -> None:
    def pair(name: str, image: np.ndarray, label: np.ndarray) -> dict[str, str]:
        paths = {"image": tmp_path / f"{name}_image.nii", "label": tmp_path / f"{name}_label.nii"}
        return {key: save(paths[key], values, np.eye(4)) for key, values in (("image", image), ("label", label))}

    plain, onehot = np.zeros((4, 5, 6)), np.eye(3)[np.random.default_rng(0).integers(0, 3, (4, 5, 6))]
    for other, message in (
        (pair("b", plain, onehot), r"b_label.nii has 3 channels that differ; .*of one-hot channels, save the number"),
        (pair("c", plain, np.moveaxis(onehot, -1, 0)), r"c_label.nii has 6 channels that differ"),
        (pair("d", np.zeros((4, 5, 6, 2)), plain), r"d_image.nii has 2 channels, and .*a_image.nii has 1"),
        (pair("e", plain, plain + 0.5), r"e_label.nii holds 0.5, which is no class number from 0"),
        (pair("f", plain, plain - 1), r"f_label.nii holds -1, which is no class number from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            look_at([pair("a", plain, plain), other])
    with pytest.raises(ValueError, match=r"no map has any foreground: .*a_label\.nii and all others hold 0 alone"):
        look_at([pair("a", plain, plain), pair("b", plain, plain)])


@pytest.mark.parametrize(
    ("found", "names", "values", "titles", "note"),
    [
        ((0, 1), None, [0, 1], ["background", "class 1"], ""),
        ((1, 2), None, [1, 2], ["background", "class 2"], "no map holds 0, so 1 is taken for the background"),
        ((0, 1), {1: "liver"}, [0, 1], ["background", "liver"], ""),
        ((1, 3), {1: "a", 3: "b"}, [0, 1, 3], ["background", "a", "b"], "values 0, 1, 3 of the maps are the classes 0, 1, 2"),
        ((0, 1), {0: "x", 1: "a", 2: "b"}, [0, 1, 2], ["x", "a", "b"], "no map holds 2 ('b')"),
    ],
)  # fmt: skip
def test_classes(
    found: tuple[int, ...], names: dict[int, str] | None, values: list[int], titles: list[str], note: str
) -> None:
    chosen = choose_classes(dict.fromkeys(found, 1), names)
    assert chosen[:2] == (values, titles)
    assert any(text.startswith(note) for text in chosen[2]) if note else not chosen[2]


def test_maps_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps hold 1 values \(0\); expected 2 to 256 classes"):
        choose_classes({0: 3})
    with pytest.raises(ValueError, match=r"maps hold 5, which 'labels' does not name: \{1: 'a'\}"):
        choose_classes({0: 3, 1: 3, 5: 1}, {1: "a"})


@pytest.mark.parametrize(
    ("lowest", "modality", "listed_as", "ct"),
    [
        (-1024, None, None, True),
        (-3024, None, None, True),
        (-30, None, None, False),
        (-1e6, None, None, False),
        (0, None, {"0": "CT"}, True),
        (-1024, None, {"0": "MRI"}, False),
        (-1024, None, {"0": "CT", "1": "PET"}, False),
        (0, "CT", {"0": "MRI"}, True),
    ],
)
def test_modality(lowest: float, modality: str | None, listed_as: dict[str, str] | None, ct: bool) -> None:
    one = np.ones((1, 3))
    seen = plan.Fingerprint(one, one, 1, {}, np.array([lowest]), one)
    assert plan._is_ct(seen, modality, listed_as)[0] is ct


# What is chosen --------------------------------------------------------------------------------------------------------


def test_spacing_is_that_of_nnunet() -> None:
    """``determine_fullres_target_spacing`` of nnU-Net 2: anisotropic by more than 3 in voxel size and in their number."""
    thick = np.array([[0.8, 0.8, step] for step in (3.0, 4.0, 5.0, 6.0, 7.0)])
    assert choose_spacing(thick, np.full((5, 3), (300, 300, 40))) == [0.8, 0.8, 3.4]
    assert choose_spacing(thick, np.full((5, 3), (300, 300, 150))) == [0.8, 0.8, 5.0]  # as many slices: the median
    assert choose_spacing(thick[:, ::-1] / [1, 1, 3], np.full((5, 3), (40, 300, 300)))[0] == 3.4
    assert choose_spacing(np.array([[1.0, 1.005, 1.0]]), np.full((1, 3), 90)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 0.5, 0.5), (1.0, 2.0, 4.0)])
@pytest.mark.parametrize("shape", [(512, 512, 100), (40, 40, 40), (9, 200, 30), (3, 5, 7)])
def test_networks_and_patches_fit(spacing: tuple[float, ...], shape: tuple[int, ...]) -> None:
    found = choose_geometry(spacing, shape, 75_000)
    patch = found.pop("patch_size")
    assert math.prod(patch) <= 1.25 * 75_000  # whole axes are rounded up
    strides = [np.broadcast_to(step, 3) for step in found["strides"]]
    assert not (np.array(patch) % np.prod(strides, axis=0)).any()
    side = max(length * step for length, step in zip(patch, spacing, strict=True))
    for length, step, whole in zip(patch, spacing, shape, strict=True):  # as long in mm as the others, or all there is
        assert length >= whole or length * step > 0.6 * side
    voxels = np.array(spacing)
    for kernel, stride in zip(found["kernel_size"], [*strides, np.ones(3, int)], strict=True):
        reach = voxels * (np.broadcast_to(kernel, 3) // 2)
        assert (abs(reach - 2 * voxels.min()) <= voxels / 2).all()  # two of the shortest, to the nearest voxel
        voxels = voxels * stride
    network = SREUNet(3, 1, 2, **found, conv="harmonic", norm="instance").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 8, 9, 10)).shape == (1, 2, 8, 9, 10)
