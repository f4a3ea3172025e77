"""The pictures of `docs/gallery.md`: kernels, feature maps and segmentations, on images and on their rotated copies.

    python -m benchmarks.gallery --data DIR [--plain PATH]

``DIR`` holds CHASE_DB1 (``chase_db1``) and Task04 of the Medical Segmentation Decathlon (``msd_hippocampus``). The plain
network of volumes is that of :mod:`benchmarks.volumes`; it is trained first, for ten epochs, unless ``--plain`` names the
weights of such a training. Ours is that of the bundle.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.visualize import ModelWithHooks
from PIL import Image
from torch import Tensor, nn

from benchmarks.bundles import HIPPOCAMPUS, first_test_image, network_of, source_of, train, windows_of
from benchmarks.tables import RESULTS
from benchmarks.volumes import MODELS
from monai_sre.data import background_value, rotate_batch
from monai_sre.description import load_weights
from monai_sre.evaluation import map_scores
from monai_sre.evaluation.figures import new_figure
from monai_sre.evaluation.sweep import as_cube
from monai_sre.evaluation.transformations import Transformation
from monai_sre.files import write_whole
from monai_sre.layers import HarmonicEnergy, SREConv2d
from monai_sre.symmetry.rotation import disc, rotate

FOLDER = RESULTS / "gallery"
EPOCHS, LEARNING_RATE = 10, 0.003
#: Okabe and Ito's orange and sky blue: apart for every kind of colour vision.
COLOURS = ("#E69F00", "#56B4E9")


def kernels(photograph: Path) -> None:
    """What a plain kernel, a radial kernel and two energies see of the vessels in a photograph of a retina."""
    green = torch.from_numpy(np.array(Image.open(photograph), dtype=np.float32)[..., 1] / 255)
    rows, columns = (slice(length // 2 - 320, length // 2 + 320) for length in green.shape)
    image = nn.functional.avg_pool2d(green[None, None, rows, columns], 4)
    plain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    plain.weight.data = torch.tensor([[[[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]]]]) / 4
    radial, smooth = (SREConv2d(1, 1, 7, padding=3, bias=False, profile="isotropic") for _ in range(2))
    sums = radial.basis.sum(dim=(1, 2)).tolist()
    radial.weight.data = torch.tensor([[[-1.0, 0.0, sums[0] / sums[2], 0.0]]])  # dark spots and streaks, and no level
    smooth.weight.data = torch.tensor([[[0.3, 0.1, 0.02, 0.0]]])
    layers = {
        "image": nn.Identity(),
        "plain kernel": plain,
        "radial kernel": radial,
        "energy, order 1": nn.Sequential(smooth, HarmonicEnergy(2, 1, eps=1e-6)),
        "energy, order 2": nn.Sequential(smooth, HarmonicEnergy(2, 2, eps=1e-6)),
    }
    angle = 40.0
    with torch.no_grad():
        maps = {name: [layer(x)[0] for x in (image, rotate(image, angle))] for name, layer in layers.items()}
    note = "n = 1 photograph of CHASE_DB1, green channel, 160 by 160 pixels"
    draw_views(maps, [0.0, angle], FOLDER / "kernels.png", note)


def features(networks: Mapping[str, tuple[nn.Module, Sequence[str]]], volume: Tensor, index: int) -> None:
    """Maps inside two networks, of a volume and of its copies rotated about the first axis."""
    angles = [0.0, 90.0, 45.0]
    views = [rotate_batch(volume, angle, axis=0, mode="bilinear", fill="background") for angle in angles]
    columns = {"image": [(view - volume.min())[0, :, index] for view in views]}
    for title, (network, names) in networks.items():
        for view in views:
            with torch.no_grad():
                maps = ModelWithHooks(network, names, register_forward=True)(view)[1]
            for level, values in enumerate(maps, 1):
                place = index * values.shape[2] // volume.shape[2]
                columns.setdefault(f"{title}\nlevel {level}", []).append(values[0, :, place])
    columns = {name: [values.mT.flip(1) for values in maps] for name, maps in columns.items()}  # up is up
    note = "n = 1 test volume of MSD hippocampus, sagittal slice, voxels of 1 mm"
    draw_views(columns, angles, FOLDER / "features.png", note)


def draw_views(columns: Mapping[str, Sequence[Tensor]], angles: Sequence[float], path: Path, note: str) -> None:
    """A column per stack of maps ``(C, H, W)``: upright, and for each further angle the rotated image's and how it differs.

    Of a stack, the map that varies most is shown, on a scale up to the 99.5th percentile of its sizes upright. Below each
    difference stands its norm over the whole stack. What is near the border is neither shown nor counted.
    """
    figure = new_figure(1.45 * len(columns) + 0.9, 1.55 * (2 * len(angles) - 1) + 1.2)
    assert figure is not None
    grid = figure.subplots(2 * len(angles) - 1, len(columns), squeeze=False)
    names = ["0°", *(name for angle in angles[1:] for name in (f"{angle:g}°", "difference"))]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=12)
    for column, (title, (first, *others)) in zip(grid.T, columns.items(), strict=True):
        side = first.shape[-1]
        inside = disc((side, side), 0.44 * side)
        channel = int((first * inside).flatten(1).std(dim=1).argmax())
        shown, below = [first], [""]
        for angle, turned in zip(angles[1:], others, strict=True):
            difference = turned - rotate(first, angle)
            shown += [turned, difference]
            below += ["", f"{float((difference * inside).norm() / (turned * inside).norm()):.2f}"]
        limit = float(torch.quantile((first[channel] * inside).abs(), 0.995))
        signed = bool((first[channel] * inside).min() < -0.05 * limit)
        for axes, name, maps, text in zip(column, names, shown, below, strict=True):
            low, colours = (-limit, "RdBu_r") if signed or name == "difference" else (0.0, "gray")
            picture = np.ma.masked_array(maps[channel].numpy(), inside.numpy() == 0)
            axes.imshow(picture, cmap=colours, vmin=low, vmax=limit)
            axes.set(xticks=[], yticks=[], xlim=(0.05 * side, 0.95 * side), ylim=(0.95 * side, 0.05 * side))
            axes.set_xlabel(text, fontsize=13)
            axes.spines[:].set_visible(False)
        column[0].set_title(title, fontsize=12)
    figure.supxlabel(f"below a difference: its norm, as a share of that of the maps at this angle\n{note}", fontsize=11)
    save(figure.savefig, path)


def segmentations(
    networks: Mapping[str, tuple[nn.Module, Callable[..., Tensor]]], volume: Tensor, truth: Tensor
) -> None:
    """Contours of two networks in one slice, at seven angles about its normal, with the Dice of the whole volume.

    As in a sweep, a volume is turned whole by multiples of 90 degrees, and padded to a cube for other angles.
    """
    angles, fill = range(0, 91, 15), background_value(volume)
    index = int((as_cube(truth, 0.0) > 0).sum(dim=(0, 1, 3, 4)).argmax())
    low, high = np.percentile(volume, [1, 99])
    figure = new_figure(1.4 * len(angles) + 0.6, 1.6 * len(networks) + 1.1)
    assert figure is not None
    grid = figure.subplots(len(networks), len(angles), squeeze=False)
    for column, angle in zip(grid.T, angles, strict=True):
        image, label = (volume, truth) if angle % 90 == 0 else (as_cube(volume, fill), as_cube(truth, 0.0))
        turn = Transformation(float(angle), axis=0)
        image, label = turn(image), turn.on_classes(label).clamp(min=0)
        for axes, (title, (network, windows)) in zip(column, networks.items(), strict=True):
            with torch.no_grad():
                score = windows(image, network).softmax(dim=1)
            found = as_cube(score.argmax(dim=1, keepdim=True).float(), 0.0)
            true, seen = as_cube(label, 0.0), as_cube(image, fill)
            axes.imshow(seen[0, 0, index].T, cmap="gray", vmin=low, vmax=high, origin="lower")
            for classes, colours in ((true, ("white", "white")), (found, COLOURS)):
                for value, colour in enumerate(colours, 1):
                    plane = (classes[0, 0, index] == value).T
                    if plane.any():
                        axes.contour(plane, levels=[0.5], colors=colour, linewidths=1.6)
            dice = map_scores(score[0].numpy(), label[0, 0].numpy(), ("Dice",))["Dice"]
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"Dice {dice:.2f}", fontsize=13)
            if angle == 0:
                axes.set_ylabel(title, fontsize=13)
        column[0].set_title(f"{angle}°", fontsize=13)
    figure.supxlabel(
        "white: truth; orange: anterior, blue: posterior hippocampus; Dice: mean of both, whole volume\n"
        "n = 1 test volume of MSD hippocampus, sagittal slice, voxels of 1 mm",
        fontsize=11,
    )
    save(figure.savefig, FOLDER / "segmentations.png")


def save(write: Callable[..., object], path: Path) -> None:
    """As a PNG with a palette, which takes a third of the place."""
    path.parent.mkdir(exist_ok=True)
    write_whole({path: lambda draft: write(draft, dpi=130)})
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    write_whole({path: lambda draft: small.save(draft, optimize=True)})


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with chase_db1 and msd_hippocampus")
    parser.add_argument("--plain", type=Path, help="weights of the plain network, models/model.pt of its training")
    options = parser.parse_args()
    kernels(min((options.data / "chase_db1" / "images").iterdir()))
    source = source_of(HIPPOCAMPUS, str(options.data / "msd_hippocampus"))
    with tempfile.TemporaryDirectory() as folder:
        if options.plain is None:
            settings = {"max_epochs": EPOCHS, "learning_rate": LEARNING_RATE}
            train(source, MODELS["plain"], settings, Path(folder))
        weights = {"plain": options.plain or Path(folder) / "models" / "model.pt"}
        weights["margins"] = source.bundle / "models" / "model.pt"
        nets = {name: load_weights(network_of(source, MODELS[name]), path).eval() for name, path in weights.items()}
    case = first_test_image(source, MODELS["margins"])
    volume, truth = (case[key][None].as_subclass(Tensor) for key in ("image", "label"))
    titles = {"plain": "plain", "margins": "ours"}
    levels = {"plain": ("input_block", "downsamples.0", "bottleneck"), "margins": ("down.0", "down.1", "down.2")}
    cube, index = as_cube(volume, background_value(volume)), max(volume.shape) // 2
    features({title: (nets[name], levels[name]) for name, title in titles.items()}, cube, index)
    windows = {name: windows_of(source, MODELS[name]) for name in nets}
    segmentations({title: (nets[name], windows[name]) for name, title in titles.items()}, volume, truth)


if __name__ == "__main__":
    main()
