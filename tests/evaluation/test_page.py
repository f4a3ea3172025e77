"""The page of a run: planes as radiologists see them, outlines where the classes lie, and HTML that loads nothing."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_sre.evaluation.page import COLOURS, MAX_PICTURES, Measure, RunPage, draw_planes
from tests.bundles.inferring import reoriented
from tests.bundles.test_inference import CODES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RED = tuple(int(COLOURS[0][start : start + 2], 16) for start in (1, 3, 5))


class Page(HTMLParser):
    """What a browser would find in a page: tags that are closed in order, pictures, texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[Image.Image] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                self.links.append(str(value))
        if tag == "img":
            kind, _, data = str(dict(attrs)["src"]).partition(",")
            assert kind == "data:image/jpeg;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_a_page_loads_nothing_and_shows_names_as_they_are(tmp_path: Path) -> None:
    page = RunPage(tmp_path / "report.html", "Runs & <b>", "note")
    page.start()
    picture = Image.new("RGB", (40, 30), (10, 200, 30))
    names = ["<script>alert(1)</script>.png", 'a" onload="b.png', "\udcff.png"]
    for name in names:
        page.add(name, f"/in/{name}", [Measure("a<b", ["1 %"], COLOURS[0], 0.5)], picture, ["look"], "error & more")
        page.flush()
    page.finish("the end")
    found = Page(page.path)
    assert found.stack == []
    assert "script" not in found.tags
    assert all(link.startswith("data:") for link in found.links)
    assert [each.size for each in found.pictures] == [(40, 30)] * 3
    np.testing.assert_allclose(np.asarray(found.pictures[0]).mean(axis=(0, 1)), [10, 200, 30], atol=3)
    for text in ("Runs & <b>", *names[:2], "?.png", "a<b", "1 %", "look", "error & more", "the end"):
        assert text in found.texts


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_the_picture_and_refuses_nothing(tmp_path: Path) -> None:
    """The picture has its size and colour, and nothing breaks the page's own policy."""
    page = RunPage(tmp_path / "report.html", "Runs", "note")
    page.start()
    page.add("case", "/in/case.nii", [Measure("liver", ["1 ml"], COLOURS[0], 0.5)], Image.new("RGB", (120, 90), "lime"))
    page.finish("the end")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"]
    command += ["--window-size=800,600", page.path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    rows, columns = np.nonzero((shot[..., 1] > 230) & (shot[..., [0, 2]].max(axis=-1) < 40))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (90, 120)
    assert len(rows) == 90 * 120
    assert (shot == [0x43, 0x63, 0xD8]).all(axis=-1).any()  # the bar of the share


def test_a_large_run_has_so_many_pictures_and_all_rows(tmp_path: Path) -> None:
    page = RunPage(tmp_path / "report.html", "many", "")
    page.start()
    for number in range(MAX_PICTURES + 5):
        picture = Image.new("L", (2, 2)) if page.wants_pictures else None
        page.add(f"name {number}", "", picture=picture)
    page.finish("")
    found = Page(page.path)
    assert len(found.pictures) == MAX_PICTURES
    assert f"name {MAX_PICTURES + 4}" in found.texts


def test_planes_are_those_of_radiologists() -> None:
    """Of a body in RAS: what lies right, in front and above is at the left, the top of the first, the top of the others."""
    values = np.zeros((1, 20, 30, 40), dtype=np.uint8)
    values[0, 14:, 20:, 30:] = 255  # towards R, A, S
    classes = np.zeros(values.shape[1:], dtype=np.uint8)
    classes[18, 25, 35] = 1  # chooses the planes
    picture = np.asarray(draw_planes(values, np.diag([2.0, 1.0, 1.0, 1.0]), classes, sides=False))[..., 1] > 128
    scale = 224 / 40  # 40 x 30 x 40 mm
    axial, coronal, sagittal = np.split(picture, [226, 454], axis=1)
    for plane, width, height, right, low in (
        (axial, 40, 30, 12, 10),
        (coronal, 40, 40, 12, 10),
        (sagittal, 30, 40, 10, 10),
    ):
        rows, columns = np.nonzero(plane)
        top = (224 - height * scale) / 2
        left = 0 if plane is axial else 2
        assert (columns.min() - left, rows.min() - top) == pytest.approx((0, 0), abs=1.5)
        assert (columns.max() + 1 - left) == pytest.approx(right * scale, abs=1.5)
        assert (rows.max() + 1 - top) == pytest.approx(low * scale, abs=1.5)
        assert plane.shape[1] == pytest.approx(width * scale, abs=4)


def test_all_48_axis_codes_give_one_picture() -> None:
    rng = np.random.default_rng(0)
    original = nibabel.Nifti1Image(rng.normal(size=(9, 7, 8)).astype(np.float32), np.diag([1.0, 2.0, 1.5, 1.0]))
    classes = np.zeros((9, 7, 8), dtype=np.uint8)
    classes[2:5, 1:4, 5:7] = 2
    classes[3, 2, 5] = 1
    pictures = []
    for code in CODES:
        image, map_ = reoriented(original, code), reoriented(nibabel.Nifti1Image(classes, original.affine), code)
        arrays = image.get_fdata()[None], image.affine, np.asarray(map_.dataobj)
        pictures.append(np.asarray(draw_planes(*arrays)))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert len(np.unique(pictures[0])) > 50


def test_outlines_and_heat_of_a_picture() -> None:
    image = np.full((3, 40, 40), 90, dtype=np.uint8)
    classes = np.zeros((40, 40), dtype=np.uint8)
    classes[10:20, 5:25] = 1
    scale = 4  # 40 pixels, of at most 384, enlarged to less than half of them
    found = np.asarray(draw_planes(image, np.eye(4), classes))
    assert found.shape == (40 * scale, 40 * scale, 3)
    red = (found == RED).all(axis=-1)
    expected = np.zeros_like(red)
    expected[10 * scale : 20 * scale, 5 * scale : 25 * scale] = True
    expected[10 * scale + 1 : 20 * scale - 1, 5 * scale + 1 : 25 * scale - 1] = False
    assert np.array_equal(red, expected)
    assert (found[~red] == 90).all()
    heat = np.zeros((40, 40), dtype=np.float32)
    heat[:, :20], heat[:, 20:] = 1, -1
    found = np.asarray(draw_planes(image, np.eye(4), heat=heat)).astype(int)
    assert (found[:, : 40 * scale] == 90).all()
    warm, cold = found[0, 40 * scale + 4 + 5], found[0, -5]
    assert warm[0] > warm[2] + 100
    assert cold[2] > cold[0] + 100


def test_values_of_any_range_are_shown_from_dark_to_light() -> None:
    values = np.linspace(-1e6, 3e6, 50 * 50, dtype=np.float32).reshape(1, 50, 50)
    found = np.asarray(draw_planes(values, np.eye(4)))
    assert (found.min(), found.max()) == (0, 255)
    assert np.asarray(draw_planes(np.full((1, 50, 50), 7.0), np.eye(4))).max() == 0
