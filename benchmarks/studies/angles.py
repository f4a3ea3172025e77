"""Where errors under rotation by odd angles come from, in the bundles' trained networks: layer by layer, and cause by cause.

    python -m benchmarks.studies.angles measure --dataset_dir DIR   # all data sets, or --dataset NAME
    python -m benchmarks.studies.angles report

Layers: :func:`monai_sre.symmetry.layer_errors` of the shipped weights on test images, and how far each map is from itself
after a rotation and its inverse (what splines cannot turn is no error of a layer). Causes: the images or the network are
changed in one way at a time, without training, and the error of the decision is taken again. Nonlinear functions of maps are
computed on a grid twice as fine, and frequencies outside the disc that a grid holds at every angle are left out; before a
stride those of the coarser grid. Writes ``results/angles.json`` and ``results/angles.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bundles import source_of
from benchmarks.timing import markdown
from monai_sre.data import BatchPreprocess, load_dataset
from monai_sre.data.geometry import background_value
from monai_sre.description import load_description, load_network
from monai_sre.evaluation.metrics import area_under_curve
from monai_sre.evaluation.sweep import Transformation
from monai_sre.layers.harmonic import HarmonicConv
from monai_sre.nets import SREResNet
from monai_sre.nets.blocks import ResidualBlock
from monai_sre.ops.energy import harmonic_energy, split_groups
from monai_sre.symmetry import layer_errors
from monai_sre.symmetry.rotation import disc, rotate

RESULTS = Path(__file__).with_name("results")
#: Test images of each data set, of those for the layers, and the rotations: a quarter turn stands for all, as it is exact.
DATASETS = {"breastmnist": (156, 32), "adrenalmnist3d": (48, 8)}
ANGLES = {2: (15.0, 30.0, 45.0, 60.0, 75.0), 3: (15.0, 30.0, 45.0)}
LAYER_ANGLES = (15.0, 30.0, 45.0)
#: Width in pixels of the edge of a disc, and the share of frequencies that are kept of smooth images.
EDGE, SMOOTH = 2.0, 0.6


@cache
def _cosines(length: int) -> Tensor:
    """The orthonormal cosine transform, shape (frequency, position)."""
    return torch.from_numpy(dct(np.eye(length), axis=0, norm="ortho")).float()


def resampled(x: Tensor, size: Sequence[int], limit: float = math.inf) -> Tensor:
    """On a centred grid of another size, without frequencies beyond a disc (ball).

    Args:
        x: maps ``(N, C, *spatial)``.
        size: of the new grid.
        limit: radius of the disc as a share of what the coarser of both grids holds along its axes.

    Example:
        >>> x = torch.rand(1, 1, 5, 8)
        >>> torch.allclose(resampled(resampled(x, (10, 16)), (5, 8)), x, atol=1e-5)
        True
        >>> resampled(x, (5, 8), limit=0.1).std() < 1e-5  # the mean alone
        tensor(True)
    """
    old = x.shape[2:]
    kept = [min(pair) for pair in zip(old, size, strict=True)]
    for axis, (length, count) in enumerate(zip(old, kept, strict=True), 2):
        x = (x.movedim(axis, -1) @ _cosines(length)[:count].T).movedim(-1, axis)
    squares = sum(
        (torch.arange(count) / count).square().reshape(-1, *[1] * (len(kept) - axis - 1))
        for axis, count in enumerate(kept)
    )
    x = x * (squares < limit**2) * math.sqrt(math.prod(size) / math.prod(old))
    for axis, (length, count) in enumerate(zip(size, kept, strict=True), 2):
        x = (x.movedim(axis, -1) @ _cosines(length)[:count]).movedim(-1, axis)
    return x


class Finer(nn.Module):
    """A function of single pixels, computed on a grid twice as fine.

    Args:
        function: module of maps.
    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return resampled(self.function(resampled(x, [2 * length for length in size])), size, 1.0)


class FinerEnergies(nn.Module):
    """A convolution with energies, these computed on a grid twice as fine by stencils of the same extent.

    Args:
        layer: the convolution, with one group.
    """

    def __init__(self, layer: HarmonicConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, size = self.layer, x.shape[2:]
        radial, maps = split_groups(layer.radial(x), layer.mix.weight.size(0), 1)
        fine, parts = resampled(maps, [2 * length for length in size]), []
        for energy in layer.energies:
            stencils = energy.get_buffer("stencils")
            spread = stencils.new_zeros(len(stencils), *[2 * length - 1 for length in stencils.shape[1:]])
            spread[(slice(None), *[slice(None, None, 2)] * len(size))] = stencils
            parts.append(resampled(harmonic_energy(fine, spread, layer.eps), size, 1.0))
        out: Tensor = radial + layer.mix(torch.cat(parts, 1))
        return out


class Smoothed(nn.Module):
    """A pooling of stride 2 behind an ideal filter."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(resampled(x, x.shape[2:], 0.5))
        return out


class Framed(nn.Module):
    """The network on an image within a frame of its background, whose maps are cropped before their mean.

    Args:
        network: the network.
    """

    def __init__(self, network: SREResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        network, background = self.network, background_value(x)
        ends = [length // 2 for length in x.shape[:1:-1] for _ in (0, 1)]
        maps = network.forward_features(functional.pad(x - background, ends) + background)[-1]
        for axis in range(2, x.dim()):
            length = -(-x.shape[axis] // network.reduction)
            maps = maps.narrow(axis, (maps.shape[axis] - length) // 2, length)
        out: Tensor = network.fc(maps.flatten(2).mean(dim=2))
        return out


#: What is changed in a network, by name.
CHANGES: dict[str, tuple[type[nn.Module] | tuple[type[nn.Module], ...], type[nn.Module]]] = {
    "ReLU": (nn.ReLU, Finer),
    "energies": (HarmonicConv, FinerEnergies),
}
ALL = ("ReLU", "energies", "strides")


def changed(network: nn.Module, causes: Sequence[str], stages: Sequence[int] | None = None) -> nn.Module:
    """A copy of a network without some causes of errors, in all places or in some stages (-1: the stem)."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        parts = name.split(".")
        stage = int(parts[1]) if parts[0] == "stages" and len(parts) > 1 else -1
        if stages is not None and stage not in stages:
            continue
        for key, child in list(module.named_children()):
            if (
                "strides" in causes
                and isinstance(module, ResidualBlock)
                and key == "pool"
                and not isinstance(child, nn.Identity)
            ):
                setattr(module, key, Smoothed(child))
            for cause, (kind, replacement) in CHANGES.items():
                if cause in causes and isinstance(child, kind) and (stages is None or name or stages == [-1]):
                    setattr(module, key, replacement(child))
    return network


def in_a_disc(x: Tensor) -> Tensor:
    """Images whose corners are their background: in 3-D, what lies outside the ball."""
    background, radius = background_value(x), min(x.shape[2:]) / 2 - EDGE
    axes = [torch.arange(length) - (length - 1) / 2 for length in x.shape[2:]]
    distance = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
    inside = 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / EDGE).clamp(0, 1))
    return background + (x - background) * inside


def protocol(x: Tensor, degrees: float, axis: int | None) -> Tensor:
    """Rotated as the sweep does."""
    return Transformation(degrees, axis)(x)


def there_and_back(x: Tensor, degrees: float, axis: int | None) -> Tensor:
    """Interpolated twice, and upright."""
    return Transformation(-degrees, axis)(Transformation(degrees, axis)(x))


def splines(x: Tensor, degrees: float, axis: int | None) -> Tensor:
    """Rotated by splines of order 5."""
    background = background_value(x)
    plane = [place for place in range(2, x.dim()) if place - 2 != axis]
    return background + rotate(x - background, degrees, (plane[0], plane[1]))


def smooth(x: Tensor) -> Tensor:
    return resampled(in_a_disc(x), x.shape[2:], SMOOTH)


#: Title, what is done to all images, how they are rotated, whether within a frame, causes taken out of the network, stages.
Variant = tuple[
    str,
    Callable[[Tensor], Tensor],
    Callable[[Tensor, float, int | None], Tensor],
    bool,
    Sequence[str],
    Sequence[int] | None,
]


def variants(stages: bool) -> Iterator[Variant]:
    """What is measured, in the order of the table."""
    same: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    yield "as the sweep rotates", same, protocol, False, (), None
    yield "rotated and back: interpolated twice, no angle", same, there_and_back, False, (), None
    yield "finer ReLU, energies and filtered strides", same, protocol, False, ALL, None
    yield "corners cut off", in_a_disc, protocol, False, (), None
    yield "corners cut off, rotated by splines", in_a_disc, splines, False, (), None
    yield "- frame of background", in_a_disc, splines, True, (), None
    for cause in ALL:
        yield f"- {'filtered' if cause == 'strides' else 'finer'} {cause}", in_a_disc, splines, False, (cause,), None
    yield "- all three", in_a_disc, splines, False, ALL, None
    for stage in range(-1, 4) if stages else ():
        yield (
            f"- all three in {f'stage {stage + 1}' if stage >= 0 else 'the stem'}",
            in_a_disc,
            splines,
            False,
            ALL,
            [stage],
        )
    yield "- all three and the frame", in_a_disc, splines, True, ALL, None
    yield "smooth images, corners cut off, rotated by splines", smooth, splines, False, (), None
    yield "- all three and the frame ", smooth, splines, True, ALL, None


def margins(network: nn.Module, x: Tensor, batch: int = 16) -> Tensor:
    """The logit of the second class over that of the first."""
    with torch.no_grad():
        logits = torch.cat([network(part) for part in x.split(batch)])
    return (logits[:, 1] - logits[:, 0]).double()


def decision_errors(network: nn.Module, x: Tensor, labels: Tensor, variant: Variant) -> dict[str, float]:
    """Error of the logits' difference, as a share of its spread over images, and what it does to decisions."""
    _, prepare, turn, framed, causes, stages = variant
    network = changed(network, causes, stages)
    network, dims = Framed(network) if framed else network, x.dim() - 2
    x = prepare(x)
    upright = margins(network, x)
    turned = torch.stack(
        [margins(network, turn(x, angle, None if dims == 2 else index % 3)) for index, angle in enumerate(ANGLES[dims])]
    )
    scores = [torch.stack([-each, each], 1).softmax(1).numpy() for each in (upright, *turned)]
    areas = [area_under_curve(each, labels.numpy(), "binary-class") for each in scores]
    decisions = torch.cat([upright[None], turned]) > 0
    return {
        "error": float((turned - upright).square().mean().sqrt() / upright.std()),
        "consistency": float((decisions == decisions[0]).all(dim=0).double().mean()),
        "AUC upright": areas[0],
        "AUC rotated": statistics.fmean(areas[1:]),
    }


def kind_of(name: str, module: nn.Module) -> str:
    """What a module is in the table; empty for what holds others."""
    if ".radial" in name:
        return "radial part"
    if ".energies." in name:
        return f"energy of order {int(name.split('.')[-1]) + 1}"
    if isinstance(module, HarmonicConv):
        return "convolution with energies"
    if isinstance(module, nn.ReLU):
        return "ReLU"
    return "stride" if name.endswith("pool") and not isinstance(module, nn.Identity) else ""


def errors_of_layers(network: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """By place and kind: the mean error, and the largest of what a rotation and its inverse leave of its output."""
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    for module in modules.values():
        if isinstance(module, HarmonicConv):
            module._mixes_at_once = False  # each energy is a call of its own
        if isinstance(module, nn.ReLU):
            module.inplace = False
    left: dict[str, list[float]] = {}

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            region = disc((out.shape[-2], out.shape[-1]), 0.75 * out.shape[-1] / 2)
            for angle in LAYER_ANGLES:
                back = rotate(rotate(out, angle), -angle)
                left.setdefault(name, []).append(float(((back - out) * region).norm() / (out * region).norm()))

        return hook

    handles = [module.register_forward_hook(after(name)) for name, module in modules.items() if kind_of(name, module)]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    found = layer_errors(network, x, LAYER_ANGLES)
    cells: dict[str, dict[str, list[float]]] = {}
    for name, row in found.items():
        kind = kind_of(name, modules[name])
        if kind:
            parts = name.split(".")
            place = f"stage {int(parts[1]) + 1}" if parts[0] == "stages" else "stem"
            cell = cells.setdefault(f"{place}, {kind}", {"error": [], "interpolation": []})
            cell["error"] += row.values()
            cell["interpolation"] += left[name]
    return {place: {key: statistics.fmean(values) for key, values in cell.items()} for place, cell in cells.items()}


def measure(dataset: str, dataset_dir: str) -> None:
    """Write what is found for one data set."""
    path = RESULTS / "angles.json"
    bundle = source_of(dataset, dataset_dir).bundle
    network = load_network(bundle / "models" / "model.pt").eval()
    size = load_description(bundle / "models" / "model.pt")["image_size"]
    count, few = DATASETS[dataset]
    data = load_dataset(dataset, dataset_dir, "test")
    x, labels = BatchPreprocess(size)(data.images[:count]), data.labels[:count]
    found: dict[str, Any] = {"images": len(x), "layers": errors_of_layers(network, x[:few]), "causes": {}}
    print(json.dumps(found["layers"], indent=1), flush=True)
    for variant in variants(stages=x.dim() == 4):
        row = decision_errors(network, x, labels, variant)
        found["causes"][variant[0]] = row
        print(variant[0], {key: round(value, 4) for key, value in row.items()}, flush=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {dataset: found}, indent=1) + "\n")


def report() -> None:
    """Write the page."""
    found = json.loads((RESULTS / "angles.json").read_text())
    lines = [
        "# Errors under rotation by odd angles",
        "",
        "Made by `benchmarks/studies/angles.py`: see its first lines.",
        "",
        READING,
    ]
    for dataset, content in found.items():
        lines += [f"## {dataset}, {content['images']} test images", "", "### Cause by cause", ""]
        head, keys = (
            ["", "error", "consistency", "AUC upright", "AUC rotated"],
            ["error", "consistency", "AUC upright", "AUC rotated"],
        )
        rows = [[title, *(f"{row[key]:.3f}" for key in keys)] for title, row in content["causes"].items()]
        lines += [markdown(head, rows), "### Layer by layer", ""]
        lines.append(
            markdown(
                ["place", "error", "left by a rotation and its inverse"],
                [
                    [place, f"{row['error']:.3f}", f"{row['interpolation']:.3f}"]
                    for place, row in content["layers"].items()
                ],
            )
        )
    (RESULTS / "angles.md").write_text("\n".join(lines))


READING = ""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "report"))
    parser.add_argument("--dataset_dir")
    parser.add_argument("--dataset", choices=DATASETS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "report":
        report()
    else:
        for dataset in [chosen.dataset] if chosen.dataset else DATASETS:
            measure(dataset, chosen.dataset_dir)
