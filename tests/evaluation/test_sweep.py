"""The rotation sweep: its list, its scores, its summary, and the files that the handler leaves."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from monai_sre.evaluation import (
    RotationSweep,
    SegmentationScore,
    SweepResult,
    Transformation,
    rotation_sweep,
    sweep_transformations,
)
from monai_sre.nets import SREUNet


class CornerNet(torch.nn.Module):
    """Class 1 where the upper left pixel is brighter than the lower right one: as sensitive to rotation as can be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = x[:, 0, 0, 0] - x[:, 0, -1, -1]
        return torch.stack([-difference, difference], dim=1)


def batch() -> dict[str, torch.Tensor]:
    images = torch.zeros(4, 1, 5, 5)
    images[:2, 0, 0, 0] = 1.0  # bright upper left: class 1
    images[2:, 0, -1, -1] = 1.0  # bright lower right: class 0
    return {"image": images, "label": torch.tensor([1, 1, 0, 0])}


def test_a_class_without_a_curve_is_called_by_its_name() -> None:
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 3))
    with pytest.warns(UserWarning, match="no ROC curve of class cyst: it holds all samples, or none"):
        rotation_sweep(
            network,
            [batch()],
            sweep_transformations(2, step=360, flips=False),
            "multi-class",
            class_names=["a", "b", "cyst"],
        )


def test_scores_of_a_net_that_looks_at_a_corner() -> None:
    result = rotation_sweep(CornerNet(), [batch()], sweep_transformations(2, step=180), "binary-class")
    scores = {row["transformation"]: row["ACC"] for row in result.rows}
    assert scores == {"0": 1.0, "180": 0.0, "flip 0": 0.5, "flip 1": 0.5}
    assert result.consistency == 0.0
    summary = result.summary()
    assert summary["ACC upright"] == 1.0
    assert summary["ACC mean"] == 0.5  # of the two rotations; flips apart
    assert summary["ACC std"] == 0.5
    assert summary["ACC min"] == 0.0


def test_consistency_counts_images() -> None:
    images = torch.zeros(4, 1, 4, 4)
    images[0, 0, 0, 0] = 1.0
    batches = [{"image": images, "label": torch.tensor([1, 0, 0, 1])}]
    result = rotation_sweep(CornerNet(), batches, sweep_transformations(2, step=180, flips=False), "binary-class")
    assert result.consistency == 0.75


def test_mode_is_restored() -> None:
    net = CornerNet().train()
    rotation_sweep(net, [batch()], sweep_transformations(2, step=180), "binary-class")
    assert net.training


def test_handler_leaves_table_json_and_picture(tmp_path: Path) -> None:
    engine = Engine(lambda _, batch: batch)
    RotationSweep(tmp_path, CornerNet(), [batch()], "binary-class", 2, step=90).attach(engine)
    engine.run([0])
    for protocol in ("bilinear_background", "nearest_zero"):
        with (tmp_path / f"sweep_{protocol}.csv").open() as file:
            table = list(csv.DictReader(file))
        content = json.loads((tmp_path / f"sweep_{protocol}.json").read_text())
        assert content["protocol"] == protocol
        assert [float(row["ACC"]) for row in table] == [row["ACC"] for row in content["rows"]]
        swept = [row["ACC"] for row in content["rows"] if not row["transformation"].startswith("flip")]
        assert content["ACC mean"] == pytest.approx(np.mean(swept))
        with Image.open(tmp_path / f"sweep_{protocol}.png") as picture:
            assert picture.width > 400
        with np.load(tmp_path / f"sweep_{protocol}.npz") as images:
            assert images["transformations"].tolist() == [row["transformation"] for row in content["rows"]]
            decided = images["scores"][..., 1] > 0.5  # (transformations, images)
            assert (decided == images["labels"]).mean(axis=1).tolist() == [row["ACC"] for row in content["rows"]]
            assert (decided == decided[0]).all(axis=0).mean() == content["consistency"]


def test_a_handler_that_is_off_does_nothing(tmp_path: Path) -> None:
    engine = Engine(lambda _, batch: batch)
    RotationSweep(tmp_path / "out", CornerNet(), [batch()], "binary-class", 2, enabled="false").attach(engine)
    engine.run([0])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="sweep must be true or false, got 'maybe'"):
        RotationSweep(tmp_path, CornerNet(), [batch()], "binary-class", 2, enabled="maybe")


@pytest.mark.parametrize(("old", "new"), [("paper", "nearest_zero"), ("clean", "bilinear_background")])
def test_earlier_names_of_protocols(tmp_path: Path, old: str, new: str) -> None:
    """They mean the same, with a warning that names the new one and the release that refuses the old one."""
    images = torch.rand(2, 1, 9, 9)
    ours = sweep_transformations(2, new, step=45)["45"](images)
    named = pytest.warns(
        FutureWarning, match=f"'{old}' is named '{new}' since 0.2.0; '{old}' will be refused from 0.3.0"
    )
    with named:
        assert torch.equal(sweep_transformations(2, old, step=45)["45"](images), ours)
    with named:
        assert torch.equal(Transformation(45.0, protocol=old)(images), ours)
    with named:
        assert list(RotationSweep(tmp_path, CornerNet(), [batch()], "binary-class", 2, [old]).sweeps) == [new]


def test_each_process_brings_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes gather is what one with all batches has."""
    turns = sweep_transformations(2, step=180)
    halves = [{key: value[part] for key, value in batch().items()} for part in (slice(0, 3), slice(3, 4))]
    whole = rotation_sweep(CornerNet(), halves, turns, "binary-class")
    shares: list[object] = []
    monkeypatch.setattr("ignite.distributed.all_gather", lambda share: shares.append(share) or list(shares))
    with pytest.warns(UserWarning, match="no ROC curve"):
        rotation_sweep(CornerNet(), halves[1:], turns, "binary-class")
    found = rotation_sweep(CornerNet(), halves[:1], turns, "binary-class")
    assert (found.rows, found.consistency) == (whole.rows, whole.consistency)
    order = [3, 0, 1, 2]  # image i is that of process i % 2, and the other process was the first
    assert np.array_equal(found.images["scores"], whole.images["scores"][:, order])
    assert np.array_equal(found.images["labels"], whole.images["labels"][order])


def test_summary_takes_flips_apart() -> None:
    rows = [
        {"transformation": name, "ACC": value, "AUC": value}
        for name, value in (("0", 1.0), ("90", 0.5), ("flip 0", 0.0))
    ]
    assert SweepResult(rows, 0.5).summary()["ACC mean"] == 0.75


# Class maps -----------------------------------------------------------------------------------------------------------


class Threshold(torch.nn.Module):
    """Foreground where the image is bright: commutes with anything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1)


class UpperHalf(torch.nn.Module):
    """Foreground in the upper half of the frame, whatever the image shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = torch.where(torch.arange(x.shape[2]) < x.shape[2] // 2, 1.0, -1.0).reshape(1, 1, -1, 1).expand_as(x)
        return torch.cat([-up, up], dim=1)


def maps(*size: int) -> dict[str, torch.Tensor]:
    """An upper half that is bright, and is the truth; the outermost pixels do not count."""
    label = torch.zeros(2, 1, *size)
    label[:, :, : size[0] // 2] = 1.0
    image = label.clone()
    inner = torch.zeros(size)
    inner[1:-1, 1:-1] = 1.0
    return {"image": image, "label": torch.where(inner > 0, label, torch.full_like(label, -1.0))}


def sweep_maps(network: torch.nn.Module, batch: dict[str, torch.Tensor], step: float, **options: object) -> SweepResult:
    transformations = sweep_transformations(2, "nearest_zero", step=step)
    return rotation_sweep(network, [batch], transformations, "segmentation", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (6, 9)])
def test_truth_turns_with_the_image(size: tuple[int, int]) -> None:
    """A network that only looks at brightness is right under every rotation, of unequal frames too."""
    result = sweep_maps(Threshold(), maps(*size), step=90)
    assert len(result.rows) == 6
    for row in result.rows:
        assert [row[name] for name in ("Dice", "AUC", "sensitivity", "specificity")] == [1.0] * 4
    assert result.consistency == 1.0


@pytest.mark.parametrize("size", [(9, 6), (6, 5, 8)])
def test_upright_scores_are_those_of_an_evaluation(size: tuple[int, ...]) -> None:
    """Unequal sides, a border that is not background, and a network that sees it: no padding changes the scores."""
    network = SREUNet(len(size), 1, 3, (4, 4), kernel_size=3, norm="instance").eval()
    images = torch.rand(2, 1, *size) + 1
    labels = torch.randint(-1, 3, (2, 1, *size)).float()
    turns = sweep_transformations(len(size), step=45)
    result = rotation_sweep(network, [{"image": images, "label": labels}], turns, "segmentation")
    for metric in ("Dice", "AUC", "sensitivity", "specificity"):
        engine = Engine(lambda _, batch: (network(batch[0]).softmax(1).detach(), batch[1]))
        SegmentationScore(metric).attach(engine, metric)
        expected = engine.run([(images, labels)]).metrics[metric]
        assert result.rows[0][metric] == pytest.approx(expected, abs=1e-9)
        for row in result.rows:
            if "flip" in row["transformation"] or int(row["transformation"].split()[0]) % 90 == 0:
                assert row[metric] == pytest.approx(expected, abs=1e-6)


def test_scores_of_a_net_that_does_not_turn() -> None:
    """By hand: upside down nothing is right, at 90 degrees half of it; flips likewise."""
    result = sweep_maps(UpperHalf(), maps(8, 8), step=90)
    assert {row["transformation"]: row["Dice"] for row in result.rows} == {
        "0": 1.0, "90": 0.5, "180": 0.0, "270": 0.5, "flip 0": 0.0, "flip 1": 1.0,
    }  # fmt: skip
    assert result.summary()["Dice mean"] == 0.5
    assert result.consistency == pytest.approx((0.5 + 0 + 0.5 + 0 + 1) / 5)


def test_a_network_of_brightness_keeps_its_scores_at_any_orientation() -> None:
    """What is lost at random rotations is what the truth loses, turned and back; each class has its own column."""
    label = torch.zeros(1, 1, 15, 16, 14)
    label[..., 4:12, 5:9, 3:10] = 1
    label[..., 4:12, 9:12, 3:10] = 2
    image = MetaTensor(label.clone(), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))

    class Bright(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x.abs(), -(x - 1).abs(), -(x - 2).abs()], dim=1)

    turns = sweep_transformations(3, step=360, flips=False, orientations=True, random_rotations=3)
    options = {"metrics": ("Dice", "HD95 mm"), "class_names": ("none", "one", "two"), "resampling": True}
    result = rotation_sweep(Bright(), [{"image": image, "label": label}], turns, "segmentation", **options)
    each = [f"{metric} of {name}" for metric in ("Dice", "HD95 mm") for name in ("one", "two")]
    assert result.metrics == ["Dice", "HD95 mm", *each, "Dice of the truth, turned and back"]
    for row in result.rows:
        exact = not row["transformation"].startswith("random")
        assert (row["Dice"], row["HD95 mm"]) == (1.0, 0.0) if exact else row["Dice"] > 0.7
        assert (row["Dice of the truth, turned and back"] == 1.0) == exact
        assert row["Dice of the truth, turned and back"] > 0.85
        assert row["HD95 mm"] % 2 == 0 or not exact  # voxels of 2 mm
    summary = result.summary()
    assert summary["Dice orientation min"] == 1.0
    assert summary["Dice random mean"] == pytest.approx(np.mean([row["Dice"] for row in result.rows[-3:]]))
    assert "Dice random min" not in result.summary(["HD95 mm"])


@pytest.mark.parametrize(
    ("dims", "message"), [(3, "cubes; these are 1 x 1 x 4 mm"), (2, "squares; these are 1 x 4 mm")]
)
def test_voxels_must_be_cubes(dims: int, message: str) -> None:
    label = torch.ones(2, 1, *[4] * dims)
    long = torch.diag(torch.tensor([1.0, *[1] * (dims - 2), 4.0, *[1] * (4 - dims)]))
    for affine, refused in ((torch.eye(4), ""), (long, message), (torch.stack([torch.eye(4), long]), message)):
        batch = {"image": MetaTensor(label.clone(), affine=affine), "label": label}
        with pytest.raises(ValueError, match=refused) if refused else nullcontext():
            rotation_sweep(Threshold(), [batch], sweep_transformations(dims, step=180), "segmentation")


def test_each_volume_of_a_batch_is_measured_by_its_own_voxels() -> None:
    """A cube of 4 voxels a side is found 2 voxels too long: 2 and 6 mm away, of volumes of 1 and 3 mm."""
    label = torch.zeros(2, 1, 8, 8, 8)
    label[..., 2:6, 2:6, 2:4] = 1
    image = label.clone()
    image[..., 2:6, 2:6, 4:6] = 1
    affines = torch.stack([torch.eye(4), torch.diag(torch.tensor([3.0, 3, 3, 1]))])
    for order in ([0, 1], [1, 0]):
        batch = {"image": MetaTensor(image, affine=affines[order]), "label": label}
        turns = sweep_transformations(3, step=180)
        result = rotation_sweep(Threshold(), [batch], turns, "segmentation", metrics=["HD95 mm"])
        assert result.rows[0]["HD95 mm"] == 4


def test_a_sweep_that_cannot_be_is_refused_before_the_evaluation(tmp_path: Path) -> None:
    batch = {"image": MetaTensor(torch.ones(1, 1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 1, 4, 1])))}
    evaluated: list[int] = []
    engine = Engine(lambda *_: evaluated.append(1))
    RotationSweep(tmp_path, Threshold(), [batch], "segmentation", 3).attach(engine)
    with pytest.raises(ValueError, match="must be cubes; these are 1 x 1 x 4 mm"):
        engine.run([0])
    assert not evaluated


def test_the_sweep_of_an_earlier_evaluation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sweep_nearest_zero.json").write_text("{}")
    caplog.set_level("WARNING")
    for enabled in (False, True):
        sweep = RotationSweep(tmp_path, torch.nn.Identity(), [], "binary-class", 2, enabled=enabled)
        sweep.attach(Engine(lambda *_: None))
    assert caplog.text.count("sweep_nearest_zero.json is of an earlier evaluation; this one sweeps nothing") == 1


def test_pixels_from_outside_do_not_count() -> None:
    """At 45 degrees zeros enter at the corners: a network that is wrong there alone keeps its scores."""

    class Dark(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(1 - x)

    image = torch.ones(1, 1, 9, 9)
    assert sweep_transformations(2, "nearest_zero", step=45)["45"](image)[0, 0, 0, 0] == 0
    missed = sweep_maps(Threshold(), {"image": image, "label": torch.ones_like(image)}, step=45)
    excess = sweep_maps(Dark(), {"image": image, "label": torch.zeros_like(image)}, step=45)
    assert len(missed.rows) == len(excess.rows) == 10
    assert all(row["sensitivity"] == 1.0 for row in missed.rows)
    assert all(row["specificity"] == 1.0 for row in excess.rows)


def test_inferer_and_handler_on_maps(tmp_path: Path) -> None:
    calls = []

    def inferer(x: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        calls.append(x.shape)
        return network(x)

    engine = Engine(lambda _, batch: batch)
    network = Threshold()
    RotationSweep(
        tmp_path,
        network,
        [maps(8, 8)],
        "segmentation",
        2,
        ["bilinear_background"],
        step=90,
        inferer=inferer,
        device="cpu",
    ).attach(engine)
    engine.run([0])
    assert len(calls) == 6
    content = json.loads((tmp_path / "sweep_bilinear_background.json").read_text())
    assert content["Dice mean"] == 1.0
    assert (tmp_path / "sweep_bilinear_background.png").is_file()
    with np.load(tmp_path / "sweep_bilinear_background.npz") as images:
        assert images["scores"].shape == (6, 2, 5)  # transformations, images, metrics
        assert images["metrics"].tolist() == ["Dice", "AUC", "sensitivity", "specificity", "consistency"]
        assert (images["scores"][..., 0] == 1).all()
        assert np.isnan(images["scores"][0, :, -1]).all()  # the identity with itself
        assert (images["scores"][1:, :, -1] == 1).all()


def test_the_network_is_left_as_it_was() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(1), CornerNet())
    net.train()
    net[0].eval()  # a frozen normalisation
    turns = sweep_transformations(2, step=180)
    rotation_sweep(net, [batch()], turns, "binary-class")
    assert (net.training, net[0].training) == (True, False)
    with pytest.raises(ValueError, match="labels of task"):
        rotation_sweep(net, [{**batch(), "label": torch.zeros(4, 2)}], turns, "binary-class")
    with pytest.raises(RuntimeError):
        rotation_sweep(net, [{**batch(), "image": torch.zeros(4, 3, 5, 5)}], turns, "binary-class")
    assert (net.training, net[0].training) == (True, False)


def test_maps_of_a_bfloat16_network() -> None:
    class Narrow(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    upright = sweep_transformations(2, step=180)
    expected = rotation_sweep(Threshold(), [maps(8, 8)], upright, "segmentation").summary()
    assert rotation_sweep(Narrow(), [maps(8, 8)], upright, "segmentation").summary() == pytest.approx(
        expected, abs=1e-2
    )


@pytest.mark.parametrize(
    ("batches", "names", "task", "message"),
    [
        ([], ["0", "180"], "binary-class", "at least one image"),
        ([{"image": torch.zeros(0, 1, 5, 5), "label": torch.zeros(0, 1)}], ["0"], "binary-class", "at least one image"),
        ([batch()], ["180"], "binary-class", r"must begin with the identity, '0', got \['180'\]"),
        ([batch()], ["0", "180"], "segmantation", "task must be one of .* got 'segmantation'"),
        ([batch()], ["0", "180"], "segmentation", r"maps \(N, num_classes, \*spatial\), got shape \(4, 2\)"),
    ],
)
def test_what_a_sweep_cannot_do(
    batches: list[dict[str, torch.Tensor]], names: list[str], task: str, message: str
) -> None:
    known = sweep_transformations(2, step=180)
    if task == "segmentation":
        batches = [{**each, "label": each["image"]} for each in batches]
    with pytest.raises(ValueError, match=message):
        rotation_sweep(CornerNet(), batches, {name: known[name] for name in names}, task)
