"""Sliding-window inference on whole slides and large volumes: time and peak memory, beside plain U-Nets.

    python -m benchmarks.scale fill [--only 2d-2048]    # measure all rows or one
    python -m benchmarks.scale report                   # scale.md from scale.json

A row is one pass of every network over an input of noise, 3 channels in 2-D and 1 in 3-D, to maps of 2 classes. Networks and
inferer (windows, overlap, blending) come from the configs of the bundle for retinal vessels, in 3-D with kernels of 5 and
windows of 96; weights are random. Reading a file, preprocessing and writing the result are not part of it. One thread.

* time: processor time of whole passes, all windows, by all networks in turn; median and interquartile range of 5 rounds
  or more;
* memory: as in :mod:`benchmarks.memory`, the growth of the resident memory at its peak during a whole pass, over what is
  resident once network and input are there and a pass over a tiny input is done, each in a fresh process.
  The output is part of it, the input is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bundles import BANDS, RADIAL, SAME_MAPS, VESSELS, Model, network_of, source_of, windows_of
from benchmarks.memory import in_a_fresh_process, peak_growth
from benchmarks.tables import RESULTS, markdown, read_json
from benchmarks.timing import Effort, interleaved, machine
from monai_sre.evaluation.windows import CentredWindowInferer, window_starts
from monai_sre.files import write_json

CANDIDATES = {
    "harmonic": Model("SREUNet of the bundle, energies of harmonics"),
    "radial": Model("the same, radial kernels alone", (), RADIAL),
    "band": Model("the same, published bands", (), BANDS),
    "DynUNet": Model("plain kernels of 3, the same maps at every level", other=SAME_MAPS),
    "UNet": Model(
        "MONAI's UNet of the same channels, its first at half the size",
        ("plain.json",),
        {"network_def#channels": SAME_MAPS["filters"]},
    ),
    "UNet, double": Model("MONAI's UNet of `plain.json`, twice the channels", ("plain.json",)),
}
PLAIN = "DynUNet"
#: What the bundle for retinal vessels needs to take volumes.
VOLUMES: dict[str, Any] = {
    "spatial_dims": 3,
    "num_channels": 1,
    "class_names": ["background", "foreground"],
    "roi_size": 96,
}


@dataclass(frozen=True)
class Row:
    """An input: a square or a cube."""

    ndim: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.ndim}d-{self.size}"

    def input(self) -> Tensor:
        return torch.randn(1, 3 if self.ndim == 2 else 1, *[self.size] * self.ndim)


ROWS = (Row(2, 1024), Row(2, 2048), Row(3, 128), Row(3, 256))


def build(ndim: int, name: str) -> tuple[nn.Module, CentredWindowInferer]:
    """A candidate's network and the bundle's inferer of windows."""
    model = CANDIDATES[name]
    if ndim == 3:
        kernels = {} if model.overlays else {"network_def#kernel_size": 5}
        model = replace(model, settings={**VOLUMES, **kernels, **model.settings})
    what = source_of(VESSELS), model
    inferer = windows_of(*what)
    assert isinstance(inferer, CentredWindowInferer), inferer
    return network_of(*what).eval(), inferer


def whole_pass(x: Tensor, network: nn.Module, inferer: CentredWindowInferer) -> Callable[[], None]:
    """Inference on an input, window by window."""

    @torch.no_grad()
    def run() -> None:
        output = inferer(x, network)
        assert output.shape == (1, 2, *x.shape[2:]), output.shape

    return run


def peak(row: Row, name: str) -> int:
    """Peak growth of one pass in this process."""
    built = build(row.ndim, name)
    return peak_growth(*(whole_pass(each.input(), *built) for each in (Row(row.ndim, 32), row)))


def measure(row: Row) -> dict[str, Any]:
    """Times and peaks of all networks."""
    about = machine("cpu")
    peaks = {}
    for name in CANDIDATES:
        value = in_a_fresh_process("benchmarks.scale", "peak", row.ndim, row.size, name)
        assert value is not None
        peaks[name] = {"mib": value / 2**20}
        print(row.name, name, peaks[name], flush=True)
    x, built = row.input(), {name: build(row.ndim, name) for name in CANDIDATES}
    steps = {name: whole_pass(x, *pair) for name, pair in built.items()}
    times = interleaved(steps, Effort(seconds=30.0, clock="cpu", rounds=5))
    inferer = built["harmonic"][1]
    window = min(inferer.roi_size[0], row.size)
    result = {
        "machine": about,
        "window": window,
        "overlap": inferer.overlap,
        "windows": len(window_starts(row.size, window, inferer.overlap)) ** row.ndim,
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, (network, _) in built.items()},
        "times": times,
        "peaks": peaks,
    }
    print(row.name, {name: round(value["ms"]) for name, value in times.items()}, flush=True)
    return result


def fill(arguments: argparse.Namespace) -> None:
    """Measure the rows and put them among those of ``scale.json``."""
    path = RESULTS / "scale.json"
    for row in ROWS:
        if arguments.only in (None, row.name):
            measured = measure(row)
            rows = read_json(path, {})
            write_json(path, rows | {row.name: measured})


def report(_: argparse.Namespace) -> None:
    """Write ``scale.md`` from ``scale.json``."""
    found = read_json(RESULTS / "scale.json")
    text = [
        "# Whole slides and large volumes\n",
        "Made by `benchmarks/scale.py report` from `scale.json`. One pass of sliding-window inference with the inferer of "
        "the bundle for retinal vessels (in 3-D with kernels of 5 and windows of 96), noise to 2 classes: processor time of "
        "whole passes, median (interquartile range); peak growth of the resident memory over network and input, each in a "
        "fresh process. Window work is the peak less the output.\n",
    ]
    for ndim, unit in ((2, "Mpixel"), (3, "Mvoxel")):
        rows = [row for row in ROWS if row.ndim == ndim and row.name in found]
        if rows:
            text.append(_table(rows, [found[row.name] for row in rows], unit))
    (RESULTS / "scale.md").write_text("\n".join(text))
    print("\n".join(text))


def _table(rows: list[Row], measured: list[dict[str, Any]], unit: str) -> str:
    """Title, settings and table of the sizes of one number of axes."""
    sizes = [f"{row.size}^{row.ndim}" for row in rows]
    outputs = [2 * 4 * row.size**row.ndim / 2**20 for row in rows]
    lines = [f"## {rows[0].ndim}-D\n"]
    for size, row, output in zip(sizes, measured, outputs, strict=True):
        about = row["machine"]
        lines.append(
            f"* {size}: {row['windows']} windows of {row['window']}^{rows[0].ndim}, overlap {row['overlap']:g} or more; the "
            f"output is {output:.0f} MiB. {about['cpu']}, {about['threads']} thread, torch {about['torch']}, "
            f"{about['dtype']}; load average {about['load_average'][0]:.1f} at the start."
        )
    head = ["network", "parameters", *(f"{size} s" for size in sizes), f"s / {unit}", f"x time of {PLAIN}"]
    head += [
        *(f"{size} peak MiB" for size in sizes),
        *(f"{size} window work MiB" for size in sizes),
        f"x peak of {PLAIN}",
    ]
    table = []
    for name, candidate in CANDIDATES.items():
        times, peaks = [row["times"][name] for row in measured], [row["peaks"][name]["mib"] for row in measured]
        seconds, last = times[-1]["ms"] / 1e3, measured[-1]
        table.append(
            [
                f"{name}: {candidate.title}",
                str(last["parameters"][name]),
                *(f"{time['ms'] / 1e3:.2f} ({time['iqr_ms'] / 1e3:.2f})" for time in times),
                f"{seconds / rows[-1].size ** rows[-1].ndim * 1e6:.2f}",
                f"{times[-1]['ms'] / last['times'][PLAIN]['ms']:.2f}",
                *(f"{value:.0f}" for value in peaks),
                *(f"{value - output:.0f}" for value, output in zip(peaks, outputs, strict=True)),
                f"{peaks[-1] / last['peaks'][PLAIN]['mib']:.2f}",
            ]
        )
    return "\n".join(lines) + "\n\n" + markdown(head, table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    filling = commands.add_parser("fill", help="measure")
    filling.add_argument("--only", choices=[row.name for row in ROWS], help="one row; all by default")
    filling.set_defaults(call=fill)
    commands.add_parser("report", help="the tables").set_defaults(call=report)
    single = commands.add_parser("peak", help="print the peak of one pass in bytes; used by fill")
    single.add_argument("ndim", type=int)
    single.add_argument("size", type=int)
    single.add_argument("name", choices=CANDIDATES)
    single.add_argument("threads", type=int)
    single.set_defaults(call=lambda chosen: print(peak(Row(chosen.ndim, chosen.size), chosen.name)))
    chosen = parser.parse_args()
    torch.set_num_threads(getattr(chosen, "threads", 1))
    torch.manual_seed(0)
    chosen.call(chosen)
