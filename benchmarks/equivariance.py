"""Error under rotation by any angle: profiles against SRE-Conv and GMR-Conv, one layer at a time and whole networks.

    python -m benchmarks.equivariance                     # about 15 minutes on one core
    python -m benchmarks.equivariance --parts converted   # only these cells anew, the others as they are stored
    python -m benchmarks.equivariance --missing           # only cells that are not stored yet
    python -m benchmarks.equivariance --quick             # about 2 minutes, coarser; writes beside the full results

Images are white noise filtered with a Gaussian; weights are random, as each package initialises them. A layer's error is
``|f(gx) - g f(x)| / |g f(x)|`` in the central disc, ``g`` a rotation with splines of order 5. A network's error is that of
its logits, or of its map in the disc of the object, relative to how much they differ between the images of a batch. Writes
JSON, a Markdown table and a picture. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from monai.networks import nets
from torch import Tensor, nn

from benchmarks.peers import peer
from benchmarks.tables import RESULTS, markdown, read_json
from monai_sre import convert_to_sre
from monai_sre.files import write_json
from monai_sre.layers import SREConv2d, SREConv3d, SREHarmonicConv2d, SREHarmonicConv3d
from monai_sre.nets import SREResNet
from monai_sre.ops.isotropy import kernel_error
from monai_sre.symmetry.rotation import disc, rotate

mpl.use("Agg")
WIDTHS = (1.0, 1.5, 2.0, 2.5)
TABLE_ANGLES = (15.0, 30.0, 45.0)
CASES = ((2, 5), (2, 7), (2, 9), (3, 5))
#: What is compared, in the order of the table: label, and how to make a layer ``(spatial_dims, kernel_size)``.
PROFILES = ("band", "linear", "gaussian", "isotropic")
CHANNELS = 4
PARTS = ("layers", "networks", "converted")
#: Networks of MONAI that down-sample in different ways: strided convolutions and a max pool, average pools, strides alone.
ORIGINALS: dict[str, Callable[[], nn.Module]] = {
    "ResNet18": partial(nets.resnet18, spatial_dims=2, n_input_channels=3, num_classes=9, widen_factor=0.125),
    "DenseNet121": partial(nets.DenseNet121, 2, 3, 9, init_features=8, growth_rate=4),
    "BasicUNet": partial(nets.BasicUNet, 2, 3, 2, features=(8, 8, 16, 32, 64, 8)),
    "SegResNet": partial(nets.SegResNet, 2, 8, 3, 2),
}
COLOURS = {
    "SRE-Conv": "#7f7f7f",
    "GMR-Conv": "#b8860b",
    "band": "#9ecae1",
    "linear": "#74c476",
    "gaussian": "#3182bd",
    "isotropic": "#d62728",
    "isotropic, orthonormal": "#e377c2",
}


def noise(shape: tuple[int, ...], sigma: float, seed: int) -> Tensor:
    """White noise filtered with a Gaussian of the given width in pixels, of variance 1, periodic."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis in range(2, len(shape)):
        frequency = torch.fft.fftfreq(shape[axis], dtype=torch.float64)
        response = torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
        response = response.reshape([-1 if dim == axis else 1 for dim in range(len(shape))])
        x = torch.fft.ifft(torch.fft.fft(x, dim=axis) * response, dim=axis).real
    return x / x.std()


def layer_makers(spatial_dims: int, size: int) -> dict[str, Callable[[], nn.Module]]:
    ours = SREConv2d if spatial_dims == 2 else SREConv3d
    makers: dict[str, Callable[[], nn.Module]] = {}
    for label, package, module, name in (
        ("SRE-Conv", "SRE_Conv", "sre_conv", "SRE_Conv"),
        ("GMR-Conv", "GMR_Conv", "gmr_conv", "GMR_Conv"),
    ):
        file = peer(package, module)
        if file is not None:
            kind = getattr(file, f"{name}{spatial_dims}d")
            makers[label] = partial(kind, CHANNELS, CHANNELS, size, padding=size // 2, bias=False)
    for profile in PROFILES:
        makers[profile] = partial(ours, CHANNELS, CHANNELS, size, padding=size // 2, bias=False, profile=profile)
    makers["isotropic, orthonormal"] = partial(makers["isotropic"], orthonormal=True)
    harmonic = SREHarmonicConv2d if spatial_dims == 2 else SREHarmonicConv3d
    makers["gaussian, ReLU"] = lambda: nn.Sequential(makers["gaussian"](), nn.ReLU())
    makers["harmonic (gaussian)"] = partial(harmonic, CHANNELS, CHANNELS, size, padding=size // 2, bias=False)
    return makers


def layer_errors(
    make: Callable[[], nn.Module], spatial_dims: int, angles: tuple[float, ...], side: int, seeds: int
) -> dict[str, Any]:
    """Mean relative error by angle and by the noise's width, and the closed form."""
    errors: dict[tuple[float, float], list[float]] = {(angle, sigma): [] for angle in angles for sigma in WIDTHS}
    closed: list[float] = []
    inner = (slice(None),) * 2 if spatial_dims == 2 else (slice(None), slice(None), slice(side // 4, -(side // 4)))
    for seed in range(seeds):
        torch.manual_seed(seed)
        layer = make().double()
        with torch.no_grad():
            if not isinstance(layer, (nn.Sequential, SREHarmonicConv2d, SREHarmonicConv3d)):  # linear: it has a kernel
                impulse = torch.zeros((CHANNELS, CHANNELS) + (13,) * spatial_dims, dtype=torch.float64)
                impulse[(range(CHANNELS), range(CHANNELS)) + (6,) * spatial_dims] = 1
                closed.append(float(kernel_error(layer(impulse), WIDTHS, spacing=(1.0,) * spatial_dims).mean()))
            for sigma in WIDTHS:
                x = noise((1, CHANNELS) + (side,) * spatial_dims, sigma, seed)
                y = layer(x)
                region = disc((side, side), 0.3 * side)
                for angle in angles:
                    wanted, found = rotate(y, angle)[inner], layer(rotate(x, angle))[inner]
                    error = float(((found - wanted) * region).norm() / (wanted * region).norm())
                    errors[angle, sigma].append(error)
    mean = statistics.fmean
    return {
        "by_angle": {f"{angle:g}": mean([mean(errors[angle, sigma]) for sigma in WIDTHS]) for angle in angles},
        "by_width": {f"{sigma:g}": mean([mean(errors[angle, sigma]) for angle in TABLE_ANGLES]) for sigma in WIDTHS},
        "mean": mean([mean(errors[angle, sigma]) for angle in TABLE_ANGLES for sigma in WIDTHS]),
        "closed_form_all_angles": mean(closed) if closed else None,
    }


def as_official(network: nn.Module) -> nn.Module:
    """Give our network the weights' distribution of the official one: normal, variance 2 / (fan-out of the dense kernel)."""
    for layer in network.modules():
        if isinstance(layer, SREConv2d):
            std = math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size)))
            nn.init.normal_(layer.weight, 0, std)
    return network


def network_makers(width: int) -> dict[str, Callable[[], nn.Module]]:
    def ours(
        profile: str, antialias: bool, official: bool = False, act: Any = "relu", conv: str = "radial"
    ) -> nn.Module:
        network = SREResNet(2, 3, 9, width=width, profile=profile, antialias=antialias, act=act, conv=conv)
        return as_official(network) if official else network

    makers: dict[str, Callable[[], nn.Module]] = {}
    options = {"num_classes": 9, "inplanes": width, "skip_first_maxpool": True}
    for label, package, module, name in (
        ("SRE-Conv", "SRE_Conv", "sre_resnet", "sre"),
        ("GMR-Conv", "GMR_Conv", "gmr_resnet", "gmr"),
    ):
        file = peer(package, module)
        if file is not None:
            makers[label] = partial(getattr(file, f"{name}_resnet18"), **options, **{f"{name}_conv_size": [9, 9, 5, 5]})
    for profile in ("band", "gaussian", "isotropic"):
        for antialias in (False, True):
            for official in (False, True):
                label = (
                    profile + (", antialiased" if antialias else "") + (", their initial weights" if official else "")
                )
                makers[label] = partial(ours, profile, antialias, official)
            label = profile + (", antialiased" if antialias else "") + ", swish"
            makers[label] = partial(ours, profile, antialias, act="memswish")
    makers["harmonic (gaussian)"] = partial(ours, "gaussian", False, conv="harmonic")
    makers["harmonic (gaussian), antialiased, swish"] = partial(ours, "gaussian", True, act="memswish", conv="harmonic")
    return makers


def converted_makers(original: Callable[[], nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    """A network of MONAI as it is, and converted: its kernels projected, with and without antialiasing."""
    makers = {"original": original}
    for profile in ("band", "isotropic"):
        for label, antialias in (("", False), (", antialiased", True), (", antialiased by 0.8", 0.8)):
            options = {"profile": profile, "antialias": antialias, "verify": False}
            makers[profile + label] = lambda options=options: convert_to_sre(original(), **options)
    return makers


def network_error(make: Callable[[], nn.Module], side: int, radius: int, seeds: int) -> dict[str, Any]:
    """Error for smooth objects in the middle of an empty frame, batch statistics fixed by the upright batch.

    Logits are to stay, maps are to turn.
    """
    errors: dict[float, list[float]] = {angle: [] for angle in TABLE_ANGLES}
    window = disc((side, side), 0.6 * radius, soft=0.4 * radius).float()
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = make().train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        x = noise((6, 3, side, side), 2.0, seed).float() * window
        with torch.no_grad():
            network(x)
            network.eval()
            y = network(x)
            region = 1 if y.dim() == 2 else disc((side, side), radius).float()
            for angle in TABLE_ANGLES:
                wanted = y if y.dim() == 2 else rotate(y, angle)
                change, spread = network(rotate(x, angle)) - wanted, wanted - wanted.mean(dim=0)
                errors[angle].append(float((change * region).norm() / (spread * region).norm()))
    by_angle = {f"{angle:g}": statistics.fmean(values) for angle, values in errors.items()}
    return {"by_angle": by_angle, "mean": statistics.fmean(by_angle.values())}


def measure_layers(quick: bool, result: dict[str, Any]) -> dict[str, Any]:
    angles = TABLE_ANGLES if quick else tuple(float(angle) for angle in range(0, 91, 5))
    for spatial_dims, size in CASES:
        case = result.setdefault(f"{spatial_dims}-D, k = {size}", {})
        few = angles if spatial_dims == 2 else TABLE_ANGLES
        side, seeds = (96, 3) if spatial_dims == 2 else (36, 1)
        for label, make in layer_makers(spatial_dims, size).items():
            if label in case:
                continue
            case[label] = layer_errors(make, spatial_dims, few, side, 1 if quick else seeds)
            case[label]["parameters"] = sum(p.numel() for p in make().parameters())
            print(f"{spatial_dims}-D k={size} {label}: {case[label]['mean']:.5f}", flush=True)
    return result


def measure_networks(quick: bool, result: dict[str, Any]) -> dict[str, Any]:
    for side, radius, seeds in ((96, 24, 1),) if quick else ((96, 24, 3), (160, 24, 2)):
        case = result.setdefault(f"{side} pixels, objects of radius {radius}", {})
        for label, make in network_makers(8).items():
            if label in case:
                continue
            case[label] = network_error(make, side, radius, seeds)
            print(f"network {side} {label}: {case[label]['mean']:.4f}", flush=True)
    return result


def measure_converted(quick: bool, result: dict[str, Any]) -> dict[str, Any]:
    for name, original in ORIGINALS.items():
        case = result.setdefault(name, {})
        for label, make in converted_makers(original).items():
            if label in case:
                continue
            case[label] = row = network_error(make, 96, 24, 1 if quick else 3)
            print(f"{name} {label}: {row['mean']:.4f}", flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    lines = ["# Error under rotation", ""]
    lines += [
        f"Made by `python -m benchmarks.equivariance{' --quick' if result['quick'] else ''}`: see its first lines for what is"
        " measured.",
        "",
        "## One layer",
        "",
        "Mean relative error over 15, 30 and 45 degrees and over noise of width 1, 1.5, 2 and 2.5 pixels; by which factors it"
        " is below SRE-Conv's and GMR-Conv's; the closed form over all angles; parameters.",
        "",
    ]
    for case, rows in result["layers"].items():
        lines_of_layers = []
        for label, row in rows.items():
            ratios = [
                f"{rows[other]['mean'] / row['mean']:.1f}" if other in rows else ""
                for other in ("SRE-Conv", "GMR-Conv")
            ]
            cells = [f"{row['by_angle'][f'{angle:g}']:.5f}" for angle in TABLE_ANGLES]
            closed = row["closed_form_all_angles"]
            cells += [f"{row['mean']:.5f}", *ratios, "" if closed is None else f"{closed:.5f}"]
            cells += [str(row["parameters"])]
            lines_of_layers.append([label, *cells])
        head = ("layer", "15°", "30°", "45°", "mean", "SRE-Conv /", "GMR-Conv /", "closed form", "par.")
        lines += [f"### {case}", "", markdown(head, lines_of_layers, rule="---:")]
    lines += [
        "## A whole random ResNet18, kernels 9, 9, 5, 5",
        "",
        "Untrained, width 8. Error of the logits for noise of width 2 within a disc, against how much logits differ between",
        "images.",
        "",
    ]
    for case, rows in result["networks"].items():
        lines += network_table(case, rows, ("SRE-Conv", "GMR-Conv"))
    lines += [
        "## Networks of MONAI, converted",
        "",
        "The same, 96 pixels, objects of radius 24; for BasicUNet and SegResNet the error of the map within that radius.",
        "",
    ]
    for case, rows in result["converted"].items():
        lines += network_table(case, rows, ("original", "band"))
    return "\n".join(lines)


def network_table(case: str, rows: dict[str, Any], references: tuple[str, str]) -> list[str]:
    """One table in Markdown, with the factors by which each network errs less than the references."""
    head = ["network", "15°", "30°", "45°", "mean", *(f"{reference} /" for reference in references)]
    lines_of_networks = []
    for label, row in rows.items():
        cells = [f"{value:.4f}" for value in [*row["by_angle"].values(), row["mean"]]]
        cells += [f"{rows[other]['mean'] / row['mean']:.1f}" if other in rows else "" for other in references]
        lines_of_networks.append([label, *cells])
    return [f"### {case}", "", markdown(head, lines_of_networks, rule="---:")]


def draw(result: dict[str, Any], path: Path) -> None:
    """Error against angle, one panel per kernel size, one line per profile."""
    from matplotlib import pyplot

    cases = {name: rows for name, rows in result["layers"].items() if name.startswith("2-D")}
    figure, panels = pyplot.subplots(1, len(cases), figsize=(4.2 * len(cases), 4.2), sharey=True, squeeze=False)
    for panel, (name, rows) in zip(panels[0], cases.items(), strict=True):
        for label, row in rows.items():
            if label not in COLOURS:  # not linear
                continue
            points = [(float(angle), max(error, 1e-6)) for angle, error in row["by_angle"].items()]
            points = [point for point in points if point[0] % 90]
            peer_line = label.endswith("-Conv")
            panel.plot(
                *zip(*points, strict=True),
                color=COLOURS[label],
                label=label,
                linestyle="--" if peer_line else "-",
                linewidth=1.6 if peer_line else 2.0,
            )
        panel.set(title=name, xlabel="rotation (degrees)", yscale="log", xlim=(0, 90))
        panel.set_xticks(range(0, 91, 15))
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("relative error of one layer")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer angles and images")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure anew; none only draws"
    )
    parser.add_argument("--missing", action="store_true", help="measure only what is not stored yet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stem = RESULTS / ("equivariance_quick" if arguments.quick else "equivariance")
    stored = stem.with_suffix(".json")
    anew = set(arguments.parts) == set(PARTS) and not arguments.missing
    result = {"quick": arguments.quick} if anew else read_json(stored)
    for part, measure in zip(PARTS, (measure_layers, measure_networks, measure_converted), strict=True):
        if part in arguments.parts:
            result[part] = measure(arguments.quick, result.get(part, {}) if arguments.missing else {})
            result["machine"] = {
                "platform": platform.platform(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
            write_json(stored, result)
    stem.with_suffix(".md").write_text(table(result))
    draw(result, stem.with_suffix(".png"))
    print(f"wrote {stem.with_suffix('.json').name}, .md and .png to {stem.parent}")


if __name__ == "__main__":
    main()
