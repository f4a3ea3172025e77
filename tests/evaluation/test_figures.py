"""The pictures, and the numbers below them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet
from PIL import Image
from torch import nn

from monai_sre.evaluation import (
    ClassActivation,
    SweepResult,
    draw_activations,
    draw_contours,
    draw_maps,
    draw_sweep,
    figures,
)
from monai_sre.evaluation.figures import RotatedViews, draw_confusion
from monai_sre.nets import SREResNet
from monai_sre.ops.pool import centred_upsample


def networks(channels: int = 1) -> dict[str, tuple[nn.Module, str, str]]:
    sre = SREResNet(2, channels, 3, width=4, kernel_size=3)
    plain = ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 8], 2, channels, 3, 1, no_max_pool=True, num_classes=3)
    return {"SRE": (sre.eval(), "stages.0", "stages.3"), "plain": (plain.eval(), "layer1", "layer4")}


def test_changes_are_those_of_the_maps_in_the_circle() -> None:
    x = torch.randn(1, 1, 32, 32)
    views = torch.cat([x.rot90(turns, (2, 3)) for turns in range(4)])
    both = networks()
    seen = {title: RotatedViews(*parts, views, (0, 90, 180, 270)) for title, parts in both.items()}
    assert max(seen["SRE"].changes) < 1e-4
    assert min(seen["plain"].changes[1:]) > 1e-3
    plain = both["plain"][0]
    logits = plain(views).detach()
    assert seen["plain"].decided == int(logits[0].argmax())
    maps = ClassActivation(plain, "layer4")(views, logits[:1].argmax(dim=1).expand(4))
    upright, turned = (centred_upsample(maps[index, None, None], 8, [32, 32])[0, 0] for index in (0, 1))
    places = torch.arange(32) - 15.5
    circle = places.square()[:, None] + places.square() <= 16**2
    expected = (turned - upright.rot90())[circle].square().mean().sqrt() / upright[circle].std(correction=0)
    assert seen["plain"].changes[1] == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(seen["plain"].probabilities[1], float(logits.softmax(1)[1, seen["plain"].decided]))


@pytest.mark.parametrize(
    ("scores", "ends"), [([0.93, 0.96], (0.8, 1.0)), ([0.7, 0.9], (0.6, 1.0)), ([3.0, 4.2], (0.0, 4.62))]
)
def test_all_of_a_curve_is_on_its_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], ends: tuple[float, float]
) -> None:
    """Shares end at 1; distances in mm begin at 0. No circle lies at the centre, which has a label of its own."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: drawn.append(figure.axes[0]))
    rows = [{"transformation": str(180 * number), "score": score} for number, score in enumerate(scores)]
    draw_sweep({"network": SweepResult(rows, 1.0)}, tmp_path / "sweep.png", metric="score")
    (axes,) = drawn
    assert axes.get_ylim() == pytest.approx(ends)
    assert min(axes.get_yticks()) > ends[0] + 0.01


@pytest.mark.parametrize("name", ["$5^$", ""])
def test_names_are_no_formulas(tmp_path: Path, name: str) -> None:
    result = SweepResult([{"transformation": str(angle), "ACC": 0.5} for angle in range(0, 360, 90)], 1.0)
    draw_confusion(np.eye(2, dtype=int), [name, "other"], tmp_path / "confusion.png")
    draw_sweep({name: result}, tmp_path / "sweep.png", title=name)
    shown = (np.zeros((1, 4, 4)), np.zeros((4, 4)), np.ones((4, 4)))
    draw_maps([shown], tmp_path / "maps.png", [name] * 3)
    draw_activations(networks(), torch.rand(1, 12, 12), tmp_path / "views.png", (0, 30), (name, "b", "c"))
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_drawn_and_the_networks_stay_as_they_were(tmp_path: Path, channels: int) -> None:
    both = networks(channels)
    draw_activations(both, torch.rand(channels, 28, 28), tmp_path / "views.png", (0, 30), ("a", "b", "c"))
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.width > picture.height > 300
        assert np.asarray(picture.convert("RGB")).std() > 20
    assert not any(module._forward_hooks for network, *_ in both.values() for module in network.modules())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": torch.rand(1, 1, 8, 8)}, r"image must have shape \(C, H, W\), got \(1, 1, 8, 8\)"),
        ({"angles": ()}, "must not be empty"),
        ({"networks": {}}, "must not be empty"),
        ({"networks": {"a": (nn.Conv2d(1, 1, 1), "stages.0", "stages.3")}}, "'stages.0' is no module of Conv2d"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    arguments = {"networks": networks(), "image": torch.rand(1, 8, 8), "path": tmp_path / "a.png", "angles": (0, 90)}
    with pytest.raises(ValueError, match=message):
        draw_activations(**{**arguments, **changed})


def coloured(path: Path, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Number of pixels of a colour, and height and width of the box that holds them."""
    with Image.open(path) as picture:
        rows, columns = np.nonzero((np.asarray(picture.convert("RGB")) == colour).all(axis=-1))
    return len(rows), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_errors_in_colour(tmp_path: Path) -> None:
    """One row of found, one of excess, one of missed pixels, and one that does not count."""
    truth = np.array([[1], [0], [1], [-1]]).repeat(8, axis=1)
    found = np.array([[1], [1], [0], [1]]).repeat(8, axis=1)
    draw_maps([(np.zeros((1, 4, 8)), truth, found)], tmp_path / "a.png")
    (red, *box), (blue, *_) = coloured(tmp_path / "a.png", RED), coloured(tmp_path / "a.png", BLUE)
    assert red > 500
    assert blue == pytest.approx(red, rel=0.05)
    assert box[1] == pytest.approx(8 * box[0], rel=0.1)  # a row lies across, as the image is displayed


def test_another_class_is_no_error_of_the_foreground(tmp_path: Path) -> None:
    truth = np.array([[1], [2], [0], [0]]).repeat(8, axis=1)
    found = np.array([[1], [1], [0], [0]]).repeat(8, axis=1)
    draw_maps([(np.zeros((1, 4, 8)), truth, found)], tmp_path / "a.png")
    yellow, *box = coloured(tmp_path / "a.png", (255, 255, 0))
    assert yellow > 500
    assert box[1] == pytest.approx(8 * box[0], rel=0.1)  # the second row


def test_middle_slice_of_a_volume(tmp_path: Path) -> None:
    """Pixels in a row along the first axis of the middle slice alone lie across."""
    found = np.zeros((6, 5, 7))
    found[:, 1, 3] = 1
    found[:, 2, 4] = 1
    draw_maps([(np.zeros((1, 6, 5, 7)), np.zeros((6, 5, 7)), found)], tmp_path / "a.png")
    count, height, width = coloured(tmp_path / "a.png", RED)
    assert count > 500
    assert width == pytest.approx(6 * height, rel=0.1)


def test_titles_stand_above_the_columns(tmp_path: Path) -> None:
    """Above the first row of black pictures are a few dark pixels, those of letters."""
    row = (np.zeros((1, 8, 8)), np.zeros((8, 8)), np.zeros((8, 8)))
    draw_maps([row, row], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        dark = (np.asarray(picture.convert("L")) < 128)[:20].mean()
    assert 0.002 < dark < 0.1


def test_a_curve_has_the_colour_of_its_name(tmp_path: Path) -> None:
    rows = [{"transformation": str(angle), "ACC": 0.8} for angle in range(0, 360, 30)]
    curves = {"other": SweepResult(rows, 1.0), "red one": SweepResult(rows, 1.0)}
    for name, colours in {"a": {"red one": "red"}, "b": None}.items():
        draw_sweep(curves, tmp_path / f"{name}.png", colours=colours)
    reds = {}
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as picture:
            reds[name] = (np.asarray(picture.convert("RGB")) == (255, 0, 0)).all(axis=-1).sum()
    assert reds["a"] > 500
    assert reds["b"] == 0


def test_without_matplotlib_there_is_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_maps([(np.zeros((1, 8, 8)), np.zeros((8, 8)), np.zeros((8, 8)))], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert 'pip install "monai_sre[plot]"' in caplog.text


def test_contours_show_truth_and_maps_in_their_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth = np.random.default_rng(0).normal(size=(20, 24, 16)), np.zeros((20, 24, 16), dtype=int)
    truth[5:12, 6:18, 4:12] = 1
    truth[12:15, 6:18, 4:12] = 2
    views = {"upright": (image, {"truth": truth, "plain": np.roll(truth, 3, 1)})}
    draw_contours(views, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red, cyan = ((pixels - colour).__abs__().sum(-1) < 40 for colour in ((214, 39, 40), (23, 190, 207)))
    assert red.sum() > 100
    assert cyan.sum() > 50
    with pytest.raises(ValueError, match="views must hold at least one view with the truth and another map"):
        draw_contours({"upright": (image, {"truth": truth})}, tmp_path / "b.png")
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_save", lambda figure, *_: drawn.append(figure))
    draw_contours({**views, "turned": views["upright"]}, tmp_path / "c.png")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["", "plain (white: truth)", "", "", "", ""]
    assert [axes.get_ylabel() for axes in drawn[0].axes][::3] == ["upright", "turned"]
