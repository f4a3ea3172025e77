"""The pictures: learning curves, confusion matrices, class maps, rotation sweeps, class activations under rotation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.utils import optional_import
from monai.visualize import ModelWithHooks
from torch import Tensor, nn

from monai_sre.data.geometry import rotate_batch
from monai_sre.evaluation.activation import ClassActivation
from monai_sre.files import write_whole
from monai_sre.symmetry.rotation import disc, rotate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from monai_sre.evaluation.sweep import SweepResult

_LOGGER = logging.getLogger(__name__)
#: Around a number that lies on a curve.
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def new_figure(width: float, height: float) -> Figure | None:
    """A matplotlib figure without any window, or ``None`` (said in the log) where matplotlib is not installed."""
    figure, found = optional_import("matplotlib.figure", name="Figure")
    if not found:
        _LOGGER.warning('matplotlib is not installed, so no picture is drawn: pip install "monai_sre[plot]"')
        return None
    return figure(figsize=(width, height), layout="constrained")


def _powers(axis: Any) -> list[Any]:
    if axis.get_scale() != "log":
        return []
    return [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]


def _save(figure: Figure, path: str | Path, dpi: int) -> None:
    """As a picture in which names are shown as they are: a dollar sign starts no formula, but for the powers at ticks."""
    ticks = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _powers(axis)}
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math") and id(artist) not in ticks):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    write_whole({Path(path): partial(figure.savefig, dpi=dpi)})


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses on the left, metrics on the right, against the epoch.

    Args:
        rows: one per epoch, as ``metrics.csv`` holds them.
        path: of the PNG file.
    """
    figure = new_figure(9, 3.5)
    if figure is None:
        return
    left, right = figure.subplots(1, 2)
    columns = {name for row in rows for name, value in row.items() if value not in ("", None)}
    for name in sorted(columns - {"epoch", "learning_rate"}):
        points = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name) not in ("", None)]
        axes = left if "loss" in name else right
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
    left.set_yscale("log")
    for axes, label in ((left, "loss"), (right, "metric")):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    _save(figure, path, 120)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Picture of a confusion matrix: counts, shaded by the share of each true class."""
    side = 2.5 + 0.5 * len(names)
    figure = new_figure(side + 1, side)
    if figure is None:
        return
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            colour = "white" if share[row, column] > 0.6 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    short = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _save(figure, path, 120)


def draw_sweep(
    results: Mapping[str, SweepResult],
    path: Path,
    metric: str | None = None,
    title: str = "",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Polar picture of a metric against the angle of rotation; in 3-D, the mean over the axes at each angle.

    Args:
        results: a curve per name.
        path: of the PNG file.
        metric: one of the results'; ``None`` is the leading one, ACC or Dice.
        title: above the picture.
        colours: of curves by name, in matplotlib's notation; the others get those of its cycle.
    """
    figure = new_figure(6.4, 6.8)
    if figure is None:
        return
    metric = metric or next(iter(results.values())).metrics[0]
    axes: Any = figure.add_subplot(projection="polar")  # whose methods no other axes have
    lowest, highest = 1.0, 1.0
    for name, result in results.items():
        angles = result.by_angle(metric)
        degrees = sorted(angles)
        values = [float(np.mean(angles[angle])) for angle in degrees]
        lowest, highest = min(lowest, *values), max(highest, *values)
        colour = (colours or {}).get(name)
        turned = np.radians([*degrees, 360.0])
        axes.plot(turned, [*values, values[0]], "o-", label=name, linewidth=2, markersize=4, color=colour)
    centre = max(0.0, np.floor(lowest * 10 - 0.5) / 10) if highest <= 1 else 0.0  # mm and ml are no shares
    top = 1 if highest <= 1 else 1.1 * highest
    axes.set_ylim(centre, top)
    # the centre has a label of its own
    axes.set_yticks([tick for tick in axes.get_yticks() if centre + 1e-6 < tick < top + 1e-6])
    axes.text(0, centre, f"{centre:.1f}", ha="center", va="center", fontsize=9, bbox=_LABEL)
    axes.set_theta_zero_location("N")
    axes.set_rlabel_position(45)
    axes.set_axisbelow(False)
    axes.tick_params(axis="y", labelsize=9)
    for label in axes.get_yticklabels():
        label.set_bbox(_LABEL)
    axes.set_title(f"{metric} against rotation\n{title}" if title else f"{metric} against rotation", fontsize=11)
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    _save(figure, path, 120)


def draw_maps(shown: Sequence[tuple[np.ndarray, ...]], path: Path, titles: Sequence[str] = ()) -> None:
    """Picture with a row per image: the image, the truth, and each decided map with its errors in colour.

    White is foreground that is found, red what is found in excess, blue what is missed, yellow another class. Images are rows
    by columns; of a volume, the middle slice across the last axis is shown, its first axis from left to right.

    Args:
        shown: of each image ``(image (C, *spatial), truth (*spatial), decided map (*spatial), ...)``.
        path: of the PNG file.
        titles: one for each column; ``()`` names the first three.
    """
    several = any(_slice(values).max() > 1 for _, *maps in shown for values in maps)
    colours = "red: excess, blue: missed" + (", yellow: another class" if several else "")
    titles = titles or ("image", "truth", f"found ({colours})")
    figure = new_figure(3.6 * len(titles), 3.6 * len(shown))
    if figure is None or not shown:
        return
    grid = figure.subplots(len(shown), len(titles), squeeze=False)
    for index, (image, truth, *maps) in enumerate(shown):
        pictures = [_picture(image), _slice(truth) > 0]
        pictures += [_errors(_slice(found), _slice(truth)) for found in maps]
        for axes, picture, title in zip(grid[index], pictures, titles, strict=True):
            axes.imshow(picture, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
            axes.set_title("" if index else title, fontsize=10)
    _save(figure, path, 110)


def draw_contours(
    views: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], path: Path, truth: str = "truth"
) -> None:
    """Picture of a volume with a row per view: three orthogonal planes for each map beside the truth, with contours.

    White lines are the truth's contours, coloured ones those of the map, a colour per class. The planes are those in which
    the truth has most foreground; axes go right, forward and up, as in RAS.

    Args:
        views: by title, the image ``(*spatial)`` and the maps by title, ``(*spatial)`` each; the same maps in each view.
        path: of the PNG file.
        truth: title of the true map.

    Raises:
        ValueError: there is no view, or no map beside the truth.
    """
    titles = [title for title in next(iter(views.values()), (None, {}))[1] if title != truth]
    if not titles:
        raise ValueError("views must hold at least one view with the truth and another map")
    figure = new_figure(1.9 * 3 * len(titles) + 0.6, 2.0 * len(views) + 0.6)
    if figure is None:
        return
    grid = figure.subplots(len(views), 3 * len(titles), squeeze=False)
    for row, (name, (image, maps)) in zip(grid, views.items(), strict=True):
        low, high = np.percentile(image, [1, 99])
        for column, axes in enumerate(row):
            axis, title = 2 - column % 3, titles[column // 3]
            others = tuple(each for each in range(3) if each != axis)
            index = int((maps[truth] > 0).sum(axis=others).argmax())
            axes.imshow(np.take(image, index, axis).T, cmap="gray", vmin=low, vmax=high, origin="lower")
            for classes, colours in ((maps[truth], ("white",)), (maps[title], ("tab:red", "tab:cyan", "tab:orange"))):
                plane = np.take(classes, index, axis).T
                for value in range(1, int(plane.max()) + 1):
                    colour = colours[(value - 1) % len(colours)]
                    axes.contour(plane == value, levels=[0.5], colors=colour, linewidths=1.1)
            axes.set(xticks=[], yticks=[])
            if name == next(iter(views)) and column % 3 == 1:
                axes.set_title(f"{title} (white: {truth})", fontsize=10)
        row[0].set_ylabel(name)
    _save(figure, path, 110)


def draw_errors(
    errors: Mapping[str, Mapping[str, float]],
    layers: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str = "",
) -> None:
    """Picture of relative errors on a logarithmic axis: of a network on the left, of its layers by themselves on the right.

    Args:
        errors: of the network by kind of transformation and name, such as ``{"grid": {"flip(0)": 0.1}}``.
        layers: of each layer by name, in the order of the picture; the 40 with the largest errors are drawn.
        path: of the PNG file.
        title: above the picture.
    """
    rows = {name: row for kind in errors.values() for name, row in kind.items() if name != "identity"}
    largest = sorted(layers, key=lambda name: max(layers[name].values()))[-40:]
    kept = {name: row for name, row in layers.items() if name in largest}
    figure = new_figure(11 if kept else 6, 1.6 + 0.2 * max(len(rows), len(kept)))
    if figure is None:
        return
    left, *right = figure.subplots(1, 2 if kept else 1, squeeze=False)[0]
    _dots(left, {name: {"network": error} for name, error in rows.items()})
    left.set_title("the network")
    for axes in right:
        _dots(axes, kept)
        axes.set_title("each layer by itself")
        axes.legend(title="worst of", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle(title)
    _save(figure, path, 110)


def _dots(axes: Any, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A row of marks per name, from top to bottom; what is exact or infinite stands at the edge."""
    for number, column in enumerate(dict.fromkeys(column for row in rows.values() for column in row)):
        points = [(row[column], index) for index, row in enumerate(rows.values()) if column in row]
        values, indices = zip(*points, strict=True)
        mark = "os^Dv<>p"[number % 8]
        axes.plot(np.clip(values, 1e-9, 10), indices, mark, label=column, markersize=5, clip_on=False)
    axes.set(xscale="log", xlim=(1e-9, 10), ylim=(len(rows) - 0.5, -0.5), xlabel="relative error")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.grid(alpha=0.3)


def _slice(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 2 else values[..., values.shape[-1] // 2].T


def _picture(image: np.ndarray) -> np.ndarray:
    planes = np.stack([_slice(channel) for channel in image], axis=-1)
    low, high = planes.min(axis=(0, 1)), planes.max(axis=(0, 1))
    planes = (planes - low) / np.maximum(high - low, 1e-6)
    return planes if planes.shape[-1] == 3 else planes.mean(axis=-1)


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    right, counts, marked = truth > 0, truth >= 0, found > 0
    return np.stack([marked & counts, marked & right, right & ((found == truth) | ~marked)], axis=-1).astype(float)


def draw_activations(
    networks: Mapping[str, tuple[nn.Module, str, str]],
    image: Tensor,
    path: str | Path,
    angles: Sequence[float] = (0, 45, 90),
    class_names: Sequence[str] = (),
) -> None:
    """Draw a row per angle: the rotated image, and of each network a feature map and the class activation.

    The class is the one that a network decides for in the first row, the feature map the channel that varies most there; its
    greys are the same in all rows. Class activations have one colour scale: less the mean of the network's map in the first
    row, in its standard deviations, both inside the circle that the image fills at every angle. Below each stands the softmax
    probability of the class and how far the map is from that of the first row, rotated: the root mean square difference on
    that scale, inside the circle. Without matplotlib, nothing is drawn.

    Args:
        networks: by title: network, name of the module whose feature map is shown, and ``target_layer`` of
            :class:`ClassActivation`.
        image: ``(C, H, W)``, as the networks take it.
        path: of the PNG file.
        angles: in degrees, anticlockwise.
        class_names: one per class; ``()`` numbers them.

    Raises:
        ValueError: the image has another shape, a network has no such module, or there is no network or no angle.

    Example:
        >>> import tempfile
        >>> from monai_sre.nets import SREResNet
        >>> path = Path(tempfile.mkdtemp()) / "views.png"
        >>> network = SREResNet(2, in_channels=1, num_classes=2, width=4).eval()
        >>> draw_activations({"SRE": (network, "stages.0", "stages.3")}, torch.rand(1, 28, 28), path)
        >>> path.is_file()
        True
    """
    if image.dim() != 3:
        raise ValueError(f"image must have shape (C, H, W), got {tuple(image.shape)}")
    if not networks or not angles:
        raise ValueError(f"networks and angles must not be empty, got {tuple(networks)} and {tuple(angles)}")
    figure = new_figure(2.2 * (1 + 2 * len(networks)) + 0.8, 2.4 * len(angles) + 0.8)
    if figure is None:
        return
    views = torch.cat([rotate_batch(image[None], angle, mode="bilinear", fill="background") for angle in angles])
    seen = {title: RotatedViews(*parts, views, angles) for title, parts in networks.items()}
    limit = max(float(np.abs(found.activations).max()) for found in seen.values())
    grid = figure.subplots(len(angles), 1 + 2 * len(seen), squeeze=False)
    for row, angle in enumerate(angles):
        grid[row, 0].imshow(_grey(image, views[row]), cmap="gray", vmin=0, vmax=1)
        grid[row, 0].set_ylabel(f"{angle:g}°", rotation=0, labelpad=14)
        for index, found in enumerate(seen.values()):
            left, right = grid[row, 1 + 2 * index : 3 + 2 * index]
            left.imshow(found.features[row], cmap="gray", vmin=found.features.min(), vmax=found.features.max())
            colours = right.imshow(found.activations[row], cmap="RdBu_r", vmin=-limit, vmax=limit)
            change = f", off by {found.changes[row]:.2f}" if row else ""
            right.set_xlabel(f"p = {found.probabilities[row]:.3f}{change}")
    grid[0, 0].set_title("image")
    for index, (title, found) in enumerate(seen.items()):
        name = class_names[found.decided] if class_names else f"class {found.decided}"
        grid[0, 1 + 2 * index].set_title(f"{title}\nfeature map")
        grid[0, 2 + 2 * index].set_title(f"{title}\nactivation of {name!r}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    label = "class activation: difference from the mean of the map in the first row, in its standard deviations"
    figure.colorbar(colours, ax=grid, shrink=0.9, label=label)
    figure.supxlabel(
        "off by: root mean square difference, on that scale, from the map of the first row, rotated", size=9
    )
    _save(figure, path, 110)


class RotatedViews:
    """What a network sees in an image and its rotated copies: what :func:`draw_activations` shows of it.

    ``decided`` is the class, ``probabilities`` and ``changes`` have a value per angle, ``features`` and ``activations`` the
    shape ``(angles, *spatial)``.

    Args:
        network: from images to logits.
        feature_layer: name of the module whose feature map is shown.
        target_layer: see :class:`ClassActivation`.
        views: the rotated copies, ``(angles, C, H, W)``.
        angles: in degrees.

    Raises:
        ValueError: the network has no such module.
    """

    def __init__(
        self, network: nn.Module, feature_layer: str, target_layer: str, views: Tensor, angles: Sequence[float]
    ) -> None:
        if feature_layer not in dict(network.named_modules()):
            raise ValueError(f"{feature_layer!r} is no module of {type(network).__name__}, so it has no feature map")
        network = copy.deepcopy(network)  # MONAI's hooks stay in it
        activation = ClassActivation(network, target_layer)
        with torch.no_grad():
            logits, (features,), _ = ModelWithHooks(network, feature_layer, register_forward=True)(views)
        self.decided = int(logits[0].argmax())
        self.probabilities = logits.softmax(dim=1)[:, self.decided].tolist()
        self.features = features[:, int(features[0].flatten(1).std(dim=1).argmax())].cpu().numpy()
        height, width = views.shape[2:]
        maps = activation(views, torch.tensor([self.decided] * len(views)))
        logit_maps = activation.resample(maps.float(), (height, width)).cpu().numpy()
        inside = (disc((height, width), min(height, width) / 2) > 0).numpy()
        first = logit_maps[0, inside]
        self.activations = (logit_maps - first.mean()) / max(float(first.std()), 1e-6)
        turned = [rotate(torch.from_numpy(self.activations[0]), angle - angles[0]).numpy() for angle in angles]
        self.changes = np.sqrt(np.square(self.activations - turned)[:, inside].mean(axis=1)).tolist()


def _grey(reference: Tensor, image: Tensor) -> np.ndarray:
    low, high = reference.min(), reference.max()
    picture = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).movedim(0, -1).cpu().numpy()
    return picture if picture.shape[-1] == 3 else picture.mean(axis=-1)
