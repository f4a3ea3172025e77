"""Speed of single layers: the ring algorithm against the dense one, the published packages and plain convolutions.

Run ``python benchmarks/speed.py`` for all tables (about 15 minutes on 2 cores) or ``--quick`` for a smoke run (under 2
minutes, written to no file unless ``--out`` says so). Each suite writes one JSON file, ``--render`` makes the Markdown
tables and the picture from the JSON alone. Suites:

* ``layers``: the table of the project's targets, forward and backward (weights and input), or inference;
* ``growth``: cost against kernel size;
* ``choice``: dense and ring on many shapes, to which :mod:`monai_sre.ops.cost` is fitted.

Candidates of one row are run in turn within one process, so that other load on the machine meets all of them alike. A
figure is the median over rounds, with its interquartile range; a ratio is a ratio of medians. On a machine that is busy
with other work, ``--threads 1 --clock cpu`` counts processor time, which waiting for a core does not touch. Every
candidate of ours is checked against the dense algorithm in float64 first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_sre.ops import expand_kernel, radial_basis, sre_conv
from monai_sre.ops.ring_cpu import available

RESULTS = Path(__file__).with_name("results")
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
#: Batch, channels, size, kernel, whether it is inference, targets: times faster than SRE-Conv and than plain kernel 3.
LAYERS: list[tuple[int, int, tuple[int, ...], int, bool, float, float]] = [
    (32, 64, (32, 32), 9, False, 5.0, 1.0),
    (32, 128, (16, 16), 9, False, 6.0, 1.0),
    (32, 256, (8, 8), 5, False, 4.0, 1.5),
    (32, 512, (4, 4), 5, False, 4.0, 1.2),
    (4, 64, (32, 32, 32), 5, False, 12.0, 3.0),
    (4, 128, (16, 16, 16), 5, False, 12.0, 3.0),
    (2, 32, (32, 32, 32), 7, False, 10.0, 1.5),
    (1, 32, (96, 96, 96), 5, True, 10.0, 2.0),
]
Layer = Callable[[Tensor], Tensor]
#: What a step is timed with: the wall, or (``--clock cpu``, one thread) the processor time that it used.
CLOCK: Callable[[], float] = time.perf_counter


def official(package: str, name: str, *args: Any, **options: Any) -> nn.Module | None:
    """A layer of a published package, from its one file that needs no torchio, or ``None`` where it is missing."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / f"{package.lower()}.py"
    spec = importlib.util.spec_from_file_location(f"official_{package}", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as missing:
        print(f"{package} is left out: {missing}", file=sys.stderr)
        return None
    layer: nn.Module = getattr(module, name)(*args, **options)
    return layer


def candidates(
    channels: int, kernel: int, ndim: int, names: Sequence[str], rings: int | None = None
) -> dict[str, tuple[Layer, list[Tensor]]]:
    """Layers by name, each as a function with the parameters it learns."""
    found: dict[str, tuple[Layer, list[Tensor]]] = {}
    for name in names:
        if name == "plain 3":
            weight = torch.randn(channels, channels, *(3,) * ndim).mul_(0.02).requires_grad_()
            found[name] = (lambda x, w=weight: CONVOLUTIONS[ndim - 1](x, w, padding=1), [weight])  # type: ignore[misc]
        elif name in ("SRE-Conv", "GMR-Conv"):
            package = name.replace("-", "_")
            layer = official(package, f"{package}{ndim}d", channels, channels, kernel, padding=kernel // 2, bias=False)
            if layer is not None:
                found[name] = (layer, [p for p in layer.parameters() if p.requires_grad])
        else:
            algorithm, profile = name.split(" ") if " " in name else (name, "band")
            basis = radial_basis((kernel,) * ndim, rings, profile).float()
            weight = torch.randn(channels, channels, len(basis)).mul_(0.02).requires_grad_()

            def run(x: Tensor, w: Tensor = weight, b: Tensor = basis, a: str = algorithm) -> Tensor:
                return sre_conv(x, w, b, padding=kernel // 2, algorithm=a)

            found[name] = (run, [weight])
            if algorithm != "dense":
                x = torch.randn(2, channels, *(12,) * ndim)
                dense = expand_kernel(weight.detach().double(), basis)
                exact = CONVOLUTIONS[ndim - 1](x.double(), dense, padding=kernel // 2)
                error = float((run(x).detach().double() - exact).norm() / exact.norm())
                assert error < 1e-5, f"{name} differs from the dense algorithm by {error}"
    return found


def interleaved(
    steps: dict[str, Callable[[], Any]], seconds: float, least: int = 4, most: int = 60
) -> dict[str, dict[str, float]]:
    """Median and interquartile range of each step in ms, over rounds that run every step once in turn."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    begun, order = time.perf_counter(), list(steps)
    while len(times[order[0]]) < least or (time.perf_counter() - begun < seconds and len(times[order[0]]) < most):
        random.shuffle(order)
        for name in order:
            start = CLOCK()
            steps[name]()
            times[name].append((CLOCK() - start) * 1e3)
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        result[name] = {"ms": median, "iqr_ms": high - low, "best_ms": min(values), "rounds": len(values)}
    return result


def timed_row(
    layers: dict[str, tuple[Layer, list[Tensor]]], shape: tuple[int, ...], inference: bool, seconds: float
) -> dict[str, dict[str, float]]:
    """Times of one row: a step is the layer, and unless ``inference`` its backward by input and weights."""
    x = torch.randn(shape).requires_grad_(not inference)

    def step(layer: Layer, parameters: list[Tensor]) -> Callable[[], None]:
        with torch.no_grad():
            grad = torch.randn_like(layer(x))

        def run() -> None:
            if inference:
                with torch.no_grad():
                    layer(x)
            else:
                torch.autograd.grad(layer(x), [x, *parameters], grad)

        return run

    return interleaved({name: step(*layer) for name, layer in layers.items()}, seconds)


def suite_layers(seconds: float, quick: bool) -> list[dict[str, Any]]:
    """The table of targets."""
    rows = []
    for batch, channels, size, kernel, inference, than_official, than_plain in LAYERS[2:4] if quick else LAYERS:
        names = ["ring", "ring gaussian", "auto", "dense", "SRE-Conv", "plain 3"] + (
            ["GMR-Conv"] if len(size) == 2 else []
        )
        layers = candidates(channels, kernel, len(size), names)
        times = timed_row(layers, (batch, channels, *size), inference, seconds)
        rows.append({"shape": [batch, channels, *size], "kernel": kernel, "inference": inference, "times": times,
                     "target_official": than_official, "target_plain": than_plain})  # fmt: skip
        print(rows[-1]["shape"], kernel, {name: round(value["ms"], 2) for name, value in times.items()}, flush=True)
    return rows


def suite_growth(seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Cost against kernel size, with one ring a unit of radius and with the number of rings held at 4."""
    rows = []
    for shape, kernels in (((16, 64, 32, 32), (3, 5, 7, 9, 11, 13, 15)), ((1, 32, 32, 32, 32), (3, 5, 7, 9))):
        for kernel in kernels[::3] if quick else kernels:
            ndim = len(shape) - 2
            names = ["ring", "dense", "plain 3", "SRE-Conv"] + (["GMR-Conv"] if ndim == 2 else [])
            layers = candidates(shape[1], kernel, ndim, names)
            if kernel > 6:
                layers["ring, 4 rings"] = candidates(shape[1], kernel, ndim, ["ring"], rings=4)["ring"]
            times = timed_row(layers, shape, False, seconds)
            rows.append({"shape": list(shape), "kernel": kernel, "times": times})
            print(shape, kernel, {name: round(value["ms"], 2) for name, value in times.items()}, flush=True)
    return rows


def suite_choice(seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Dense and ring on random shapes, forward and backward."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < (6 if quick else 120):
        ndim = draw.choice((1, 2, 2, 2, 3, 3))
        kernel = draw.choice((3, 5, 7, 9)[: 3 if ndim == 3 else 4])
        width = draw.choice(((32, 128, 1024), (4, 7, 8, 14, 16, 28, 32, 64), (4, 8, 12, 16, 32))[ndim - 1])
        batch = draw.choice((1, 2, 8, 32))
        channels = draw.choice(((1, 16), (3, 64), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (64, 128), (128, 64),
                                (128, 128), (256, 256), (64, 3), (16, 1)))  # fmt: skip
        profile, inference = draw.choice(("band", "gaussian")), draw.random() < 0.3
        macs = batch * width**ndim * channels[0] * channels[1] * kernel**ndim
        if not 1e4 < macs < 2e9:
            continue
        basis = radial_basis((kernel,) * ndim, profile=profile).float()
        weight = torch.randn(channels[1], channels[0], len(basis)).mul_(0.02).requires_grad_()
        layers: dict[str, tuple[Layer, list[Tensor]]] = {}
        for name in ("dense", "ring"):

            def run(x: Tensor, w: Tensor = weight, b: Tensor = basis, k: int = kernel, a: str = name) -> Tensor:
                return sre_conv(x, w, b, padding=k // 2, algorithm=a)

            layers[name] = (run, [weight])
        shape = (batch, channels[0], *(width,) * ndim)
        times = timed_row(layers, shape, inference, seconds)
        rows.append({"shape": list(shape), "out_channels": channels[1], "kernel": kernel, "profile": profile,
                     "inference": inference, "times": times})  # fmt: skip
    return rows


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "clock": "processor time" if CLOCK is time.process_time else "wall",
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiled_ring_sums": available(torch.float32),
        "dtype": "float32",
    }


def render(folder: Path) -> None:
    """Markdown tables and the picture, from the JSON files of a folder."""
    text = ["# Speed of single layers\n", "Made by `benchmarks/speed.py --render` from the JSON files beside it.\n"]
    tables = {
        "layers": ("Targets", layer_table),
        "growth": ("Growth with the kernel", growth_table),
        "choice": ("Dense or ring", choice_table),
    }
    for path in sorted(folder.glob("speed_*.json")):
        data = json.loads(path.read_text())
        title, table = tables[data["suite"]]
        about = data["machine"]
        text.append(
            f"## {title}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}, {about['clock']} "
            f"(`{path.name}`)\n\n{about['cpu']}, torch {about['torch']}, {about['dtype']}, load average "
            f"{about['load_average'][0]:.1f} at the start.\n"
        )
        text += table(data["rows"])
        if data["suite"] == "growth":
            draw_growth(data["rows"], path.with_suffix(".png"))
            text.append(f"![cost against kernel size]({path.stem}.png)\n")
    (folder / "speed.md").write_text("\n".join(text))


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str) -> str:
    """How many times faster ``fast`` is, or a dash."""
    return f"{times[slow]['ms'] / times[fast]['ms']:.2f}" if slow in times and fast in times else "-"


def layer_table(rows: list[dict[str, Any]]) -> list[str]:
    """The table of targets: ms, then times faster, each with its target."""
    head = ("shape (N, C, size)", "k", "ring ms (IQR)", "smooth / band", "auto ms", "dense ms", "SRE-Conv ms",
            "GMR-Conv ms",
            "plain 3 ms", "x SRE-Conv (target)", "x plain (target)", "reached")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        times = row["times"]
        shown = [
            f"{times[name]['ms']:.1f}" if name in times else "-"
            for name in ("auto", "dense", "SRE-Conv", "GMR-Conv", "plain 3")
        ]
        against = [ratio(times, "SRE-Conv", "ring"), ratio(times, "plain 3", "ring")]
        targets = [row["target_official"], row["target_plain"]]
        reached = [
            "-" if value == "-" else "yes" if float(value) >= target else "no"
            for value, target in zip(against, targets, strict=True)
        ]
        goals = [f"{value} ({target:g})" for value, target in zip(against, targets, strict=True)]
        cells = [
            ", ".join(map(str, row["shape"])) + (", inference" if row["inference"] else ""),
            str(row["kernel"]),
            f"{times['ring']['ms']:.1f} ({times['ring']['iqr_ms']:.1f})",
            ratio(times, "ring gaussian", "ring"),
            *shown,
            *goals,
            ", ".join(reached),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def growth_table(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds against kernel size."""
    names = ["ring", "ring, 4 rings", "dense", "SRE-Conv", "GMR-Conv", "plain 3"]
    lines = [f"| shape | k | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 2)}"]
    for row in rows:
        cells = [f"{row['times'][name]['ms']:.1f}" if name in row["times"] else "-" for name in names]
        lines.append(f"| {', '.join(map(str, row['shape']))} | {row['kernel']} | {' | '.join(cells)} |")
    return [*lines, ""]


def choice_table(rows: list[dict[str, Any]]) -> list[str]:
    """The extremes and the quartiles of dense / ring."""
    values = sorted(row["times"]["dense"]["ms"] / row["times"]["ring"]["ms"] for row in rows)
    marks = [values[round(share * (len(values) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    return [
        f"{len(rows)} shapes; dense / ring from least to most, by quartiles: {', '.join(f'{m:.2f}' for m in marks)}.\n"
    ]


def draw_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost against kernel size on a logarithmic scale, 2-D and 3-D side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(5 * len(shapes), 4), squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        chosen = [row for row in rows if tuple(row["shape"]) == shape]
        for name in dict.fromkeys(name for row in chosen for name in row["times"]):
            points = [(row["kernel"], row["times"][name]["ms"]) for row in chosen if name in row["times"]]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(yscale="log", xlabel="kernel size", ylabel="forward + backward, ms", title=str(shape))
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    suites = {"layers": suite_layers, "growth": suite_growth, "choice": suite_choice}
    parser.add_argument("suites", nargs="*", default=[], help=f"any of {list(suites)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    parser.add_argument("--render", action="store_true", help="make tables and picture from the JSON, measure nothing")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=12.0, help="time for a row")
    parser.add_argument("--out", type=Path, help=f"folder of the results; {RESULTS.name}/ by default")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--label", default="", help="appended to the names of the files")
    options = parser.parse_args()
    if options.clock == "cpu":
        if options.threads != 1:
            parser.error("--clock cpu needs --threads 1: threads that wait for each other use processor time")
        CLOCK = time.process_time
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    folder = options.out or (None if options.quick else RESULTS)
    for name in () if options.render else options.suites or suites:
        seconds = min(options.seconds, 1.0) if options.quick else options.seconds / (6 if name == "choice" else 1)
        data = {"suite": name, "machine": machine(), "rows": suites[name](seconds, options.quick)}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"speed_{name}{options.label}.json").write_text(json.dumps(data, indent=1) + "\n")
    if folder is not None:
        render(folder)


if __name__ == "__main__":
    main()
