"""A page to look at: what an inference run found, one row per image with its picture, in one HTML file without any script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

__all__ = ["Measure", "RunPage", "draw_planes", "outline"]

#: Of the classes behind the background, in turn.
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#ffe119", "#9a6324")
#: Rows from this on have no picture, so that the page of a large run can still be opened.
MAX_PICTURES = 300
#: Longest side in pixels of a picture, and of a plane of a volume.
_PICTURE, _PLANE = 384, 224
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }}
table {{ border-collapse: collapse }}
body > table > tbody > tr > td, body > table > tbody > tr > th {{
  border-top: 1px solid #ccc; padding: .7em 1.2em .7em 0; vertical-align: top; text-align: left }}
td td, td th {{ padding: 0 .9em .1em 0; text-align: left; font-weight: normal; white-space: nowrap }}
img {{ display: block }}
.name {{ font-weight: 600; overflow-wrap: anywhere; min-width: 12em; max-width: 24em }}
.path {{ color: #666; font-size: 85%; overflow-wrap: anywhere; max-width: 28em }}
.warning {{ color: #8a5300 }} .error {{ color: #b00020 }}
.bar {{ background: #e8e8e8; width: 9em }} .bar div {{ background: #4363d8; height: .8em }}
.swatch {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em }}
</style></head><body>
<h1>{title}</h1>
<p>{note}</p>
<table><tbody>
"""


class Measure(NamedTuple):
    """A line of a row: what it is of, its values as text, and a colour to know it by or a share of 1 to draw as a bar."""

    name: str
    values: Sequence[str]
    colour: str | None = None
    bar: float | None = None


class RunPage:
    """The page of a run, written row by row, so that it can be opened whatever stops the run.

    Args:
        path: of the HTML file.
        title: above all.
        note: what the pictures show, one or two sentences.

    Example:
        >>> import tempfile
        >>> page = RunPage(Path(tempfile.mkdtemp()) / "report.html", "Segmentations", "Contours are those of the classes.")
        >>> page.start()
        >>> page.add("a<b>.png", "/data/a<b>.png", [Measure("vessel", ["12 %"], COLOURS[0])], warnings=["nothing found"])
        >>> page.flush()
        >>> "a&lt;b&gt;.png" in page.path.read_text()
        True
    """

    def __init__(self, path: Path, title: str, note: str) -> None:
        self.path, self.title, self.note = path, title, note
        self._rows: list[str] = []
        self._pictures, self._begun = 0, False

    def start(self) -> None:
        """Begin a page, which takes the place of an earlier one when its first rows are written."""
        note = f"{self.note} The first {MAX_PICTURES} images that can be used have a picture."
        self._rows = [_HEAD.format(title=escape(self.title), note=escape(note))]
        self._pictures, self._begun = 0, False

    @property
    def wants_pictures(self) -> bool:
        """Whether the next row will have its picture."""
        return self._pictures < MAX_PICTURES

    def add(
        self,
        name: str,
        path: str,
        measures: Sequence[Measure] = (),
        picture: Image.Image | None = None,
        warnings: Sequence[str] = (),
        error: str = "",
    ) -> None:
        """Add a row: the picture, the name and the path of the image, what was measured, and what to be aware of."""
        shown = ""
        if picture is not None:
            self._pictures += 1
            content = io.BytesIO()
            picture.convert("RGB").save(content, "JPEG", quality=88, subsampling=0)
            data = base64.b64encode(content.getvalue()).decode("ascii")
            shown = (
                f'<img alt="" width="{picture.width}" height="{picture.height}" src="data:image/jpeg;base64,{data}">'
            )
        lines = [f'<p class="error">{escape(error)}</p>'] if error else []
        lines += [f'<p class="warning">{escape(warning)}</p>' for warning in warnings]
        table = "".join(_line(measure) for measure in measures)
        self._rows.append(
            f'<tr><td>{shown}</td><td><div class="name">{escape(name)}</div><div class="path">{escape(path)}</div></td>'
            f"<td><table><tbody>{table}</tbody></table>{''.join(lines)}</td></tr>\n"
        )

    def flush(self) -> None:
        """Write the rows added since the last time.

        Raises:
            OSError: they cannot be written; the message names the page.
        """
        try:
            with self.path.open("a" if self._begun else "w", encoding="utf-8", errors="replace") as file:
                file.writelines(self._rows)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error
        self._rows, self._begun = [], True

    def finish(self, summary: str) -> None:
        """Close the page below its table with a sentence."""
        self._rows.append(f"</tbody></table>\n<p>{escape(summary)}</p>\n</body></html>\n")
        self.flush()


def _line(measure: Measure) -> str:
    swatch = f'<span class="swatch" style="background:{measure.colour}"></span>' if measure.colour else ""
    bar = ""
    if measure.bar is not None:
        width = 100 * min(max(measure.bar, 0.0), 1.0)
        bar = f'<td><div class="bar"><div style="width:{width:.1f}%"></div></div></td>'
    values = "".join(f"<td>{escape(value)}</td>" for value in measure.values)
    return f"<tr><th>{swatch}{escape(measure.name)}</th>{bar}{values}</tr>"


def outline(classes: np.ndarray) -> np.ndarray:
    """The pixels of each class that touch another class or the edge, as the class, on zeros.

    Example:
        >>> outline(np.pad(np.ones((3, 3), dtype=np.uint8), 1))[2]
        array([0, 1, 0, 1, 0], dtype=uint8)
    """
    inner = np.zeros(classes.shape, dtype=bool)
    for value in np.unique(classes[classes > 0]):
        inner |= binary_erosion(classes == value)
    return np.where(inner, 0, classes)


def draw_planes(
    image: np.ndarray,
    affine: np.ndarray,
    classes: np.ndarray | None = None,
    heat: np.ndarray | None = None,
    sides: bool = True,
) -> Image.Image:
    """A picture of an image of two axes, or three planes of a volume: axial, coronal and sagittal, as radiologists see them.

    The planes are those in which most of the classes lies, else those of the largest heat, else the middle ones. They are
    turned to the nearest axes of the body and have the proportions of the voxels. Right is on the left.

    Args:
        image: ``(C, *spatial)``; three channels of a picture are colours, of others the first is shown. 8-bit values are
            shown as they are, others from their 1st to their 99th percentile.
        affine: ``(4, 4)``, of its axes.
        classes: ``(*spatial)``, whose outlines are drawn.
        heat: ``(*spatial)``, laid over a second copy: red where it is above zero, blue below.
        sides: whether to write R, A and the like at the planes: the affine is known to be that of a body.

    Example:
        >>> draw_planes(np.zeros((1, 20, 10, 40), dtype=np.uint8), np.diag([1.0, 2.0, 1.0, 1.0])).size  # 20 x 20 x 40 mm
        (344, 224)
    """
    grey = _as_bytes(image)
    if image.ndim == 3:
        whole = _fitted(grey.shape[1:], _PICTURE)
        return _beside([_compose(grey, whole, classes, layer) for layer in _copies(heat)], 0)
    turn = nibabel.io_orientation(affine)
    grey = np.stack([nibabel.apply_orientation(channel, turn) for channel in grey])
    classes, heat = (None if part is None else nibabel.apply_orientation(part, turn) for part in (classes, heat))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    scale = _PLANE / max(np.array(grey.shape[1:]) * spacing)
    rows = []
    for layer in _copies(heat):
        planes = []
        for axis, letters in ((2, "RA"), (1, "RS"), (0, "AS")):
            index = _fullest(classes, heat, axis, grey.shape[1 + axis])
            size = [max(1, round(grey.shape[1 + each] * spacing[each] * scale)) for each in range(3) if each != axis]
            parts = [None if part is None else _cut(part, index, axis) for part in (classes, layer)]
            plane = _compose(np.stack([_cut(channel, index, axis) for channel in grey]), size, *parts)
            if sides:
                _label(plane, *letters)
            planes.append(plane)
        rows.append(_beside(planes, 0))
    return _beside(rows, 1)


def _copies(heat: np.ndarray | None) -> list[np.ndarray | None]:
    """What is laid over each copy of an image."""
    return [None] if heat is None else [None, heat]


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """One channel, or three of colours, from 0 to 255."""
    shown = image if image.shape[0] == 3 and image.ndim == 3 else image[:1]
    if image.dtype == np.uint8:
        return shown
    few = shown.reshape(-1)[:: max(1, shown.size // 200_000)]
    low, high = np.percentile(few, [1, 99])
    if low == high:
        low, high = shown.min(), shown.max()
    return (255 * ((shown - low) / max(float(high - low), 1e-12)).clip(0, 1)).astype(np.uint8)


def _fitted(shape: Sequence[int], side: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is at most as given; a small one is enlarged by a whole number."""
    scale = side / max(shape)
    scale = max(1, int(scale / 2)) if scale > 1 else scale
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _fullest(classes: np.ndarray | None, heat: np.ndarray | None, axis: int, length: int) -> int:
    others = tuple(each for each in range(3) if each != axis)
    if classes is not None and classes.any():
        return int((classes > 0).sum(axis=others).argmax())
    if heat is not None:
        return int(heat.max(axis=others).argmax())
    return length // 2


def _cut(values: np.ndarray, index: int, axis: int) -> np.ndarray:
    """A plane as rows from the top and columns from the left, of a volume whose axes go right, forward and up."""
    return np.take(values, index, axis).T[::-1, ::-1]


def _compose(
    grey: np.ndarray, size: Sequence[int], classes: np.ndarray | None = None, heat: np.ndarray | None = None
) -> Image.Image:
    """A plane ``(C, rows, columns)`` at a size (width, height), with outlines and heat."""
    width, height = size
    small = grey.shape[2] < width
    picture = Image.fromarray(np.ascontiguousarray(grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1)))
    picture = picture.convert("RGB").resize(
        (width, height), Image.Resampling.NEAREST if small else Image.Resampling.BOX
    )
    values = np.asarray(picture, dtype=np.float64)
    if heat is not None:
        warm = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
        share = warm / max(float(np.abs(warm).max()), 1e-12)
        colour = np.where(share[..., None] > 0, [255.0, 40.0, 20.0], [40.0, 80.0, 255.0])
        opaque = 0.65 * np.abs(share)[..., None]
        values = values * (1 - opaque) + colour * opaque
    if classes is not None:
        sized = Image.fromarray(np.ascontiguousarray(classes.astype(np.uint8))).resize(
            (width, height), Image.Resampling.NEAREST
        )
        edges = outline(np.asarray(sized))
        for value in np.unique(edges[edges > 0]):
            code = COLOURS[(int(value) - 1) % len(COLOURS)]
            values[edges == value] = [int(code[start : start + 2], 16) for start in (1, 3, 5)]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _label(plane: Image.Image, left: str, top: str) -> None:
    draw = ImageDraw.Draw(plane)
    for place, letter in (((3, plane.height // 2 - 5), left), ((plane.width // 2 - 3, 1), top)):
        draw.text(place, letter, fill=(255, 220, 0), stroke_width=1, stroke_fill=(0, 0, 0))


def _beside(parts: Sequence[Image.Image], axis: int) -> Image.Image:
    """Pictures from left to right (axis 0) or from top to bottom (axis 1), centred, 4 pixels apart."""
    gap = 4
    along = sum(part.size[axis] for part in parts) + gap * (len(parts) - 1)
    across = max(part.size[1 - axis] for part in parts)
    whole = Image.new("RGB", (along, across) if axis == 0 else (across, along))
    start = 0
    for part in parts:
        other = (across - part.size[1 - axis]) // 2
        whole.paste(part, (start, other) if axis == 0 else (other, start))
        start += part.size[axis] + gap
    return whole
