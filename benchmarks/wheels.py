"""The compiled engine of a wheel, beside the one that is compiled at first use for the processor at hand.

    python -m benchmarks.wheels fill      # measure: wheels.json
    python -m benchmarks.wheels report    # wheels.md from it

A wheel holds a library for each instruction set (:mod:`monai_sre.ops.ring.compiler`); measured are all that this processor
has. Each row is one network or layer, whose training step runs with every library in turn, on one thread; the figure is the
processor time, median and interquartile range.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.networks import resnet, training_step
from benchmarks.single import layer
from benchmarks.tables import RESULTS, markdown, read_json
from benchmarks.timing import Effort, interleaved, machine, ratio
from monai_sre.files import write_json
from monai_sre.ops.ring import compiler, cpu, energy_cpu
from monai_sre.ops.ring.native import instruction_sets

NATIVE = "native"
ENGINES = (cpu.LIBRARY, energy_cpu.LIBRARY)
#: Network or layer, and the shape of its input.
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet18, radial 9, 9, 5, 5, width 32": (lambda: resnet("radial 9, 9, 5, 5", 2, 3, 9, 32), (8, 3, 32, 32)),
    "ResNet18, energies 5, width 32": (lambda: resnet("energies 5", 2, 3, 9, 32), (8, 3, 32, 32)),
    "3-D ResNet18, radial 5, width 16": (lambda: resnet("radial 5", 3, 1, 9, 16), (2, 1, 20, 20, 20)),
    "3-D ResNet18, energies 5, width 16": (lambda: resnet("energies 5", 3, 1, 9, 16), (2, 1, 20, 20, 20)),
    "layer, radial 9, 32 to 32": (lambda: layer("ring", 32, 32, 9), (8, 32, 64, 64)),
    "layer, energies 9, 32 to 32": (lambda: layer("energies", 32, 32, 9), (8, 32, 64, 64)),
}


def libraries(folder: Path) -> dict[str, list[Any]]:
    """The libraries of :data:`ENGINES`: :data:`NATIVE` ones, and those of each instruction set, compiled in ``folder``."""
    found = {NATIVE: [engine.get(torch.float32) for engine in ENGINES]}
    for name, content in compiler.wheel_libraries(cpu.LIBRARY.source.parent, compiler.compilers()[0]).items():
        (folder / name).write_bytes(content)
    for name in instruction_sets():
        paths = [folder / compiler.library_name(engine.source, "float", name) for engine in ENGINES]
        found[name] = [engine.load_file(path) for engine, path in zip(ENGINES, paths, strict=True)]
    return found


def step_with(step: Callable[[], Any], chosen: list[Any]) -> Callable[[], None]:
    """A step for which the engine has the libraries ``chosen``."""

    def run() -> None:
        for engine, library in zip(ENGINES, chosen, strict=True):
            engine.libraries[torch.float32] = library
        step()

    return run


def measure(seconds: float) -> list[dict[str, Any]]:
    """Times of all rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        found = libraries(Path(folder))
    for name, (build, shape) in ROWS.items():
        x = torch.randn(shape)
        network = build()
        maps = network(x).ndim > 2
        step = training_step(network, x, 9, maps=maps)
        times = interleaved(
            {key: step_with(step, chosen) for key, chosen in found.items()}, Effort(seconds, clock="cpu")
        )
        rows.append({"row": name, "input": shape, "times": times})
    return rows


def report(results: Path = RESULTS) -> str:
    """The table."""
    data = read_json(results / "wheels.json")
    about, rows = data["machine"], data["rows"]
    names = [name for name in rows[0]["times"] if name != NATIVE]
    head = ["training step of", "input", "`-march=native` ms", *[f"{name}, ratio" for name in names]]
    cells = []
    for row in rows:
        native = row["times"][NATIVE]
        ratios = [ratio(row["times"], name, NATIVE) for name in names]
        shape = ", ".join(map(str, row["input"]))
        ms = f"{native['ms']:.1f} ({native['iqr_ms']:.1f})"
        cells.append([row["row"], shape, ms, *["-" if value is None else f"{value:.2f}" for value in ratios]])
    return (
        "# The compiled engine of a wheel\n\n"
        "Made by `benchmarks/wheels.py report` from `wheels.json`. The libraries of a wheel, one per instruction set, beside "
        "those that are compiled at first use with `-march=native -mtune=generic`: processor time of a "
        "training step by each in turn, "
        "median (interquartile range), and ratios of medians. A processor loads the first of a wheel's libraries that it "
        "can run.\n\n"
        f"{about['cpu']}, {about['threads']} thread, torch {about['torch']}, float32; load average "
        f"{about['load_average'][0]:.1f} at the start.\n\n" + markdown(head, cells)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("fill", "report"))
    parser.add_argument("--seconds", type=float, default=12.0, help="time for a row")
    options = parser.parse_args()
    if options.action == "fill":
        torch.set_num_threads(1)
        torch.manual_seed(0)
        write_json(RESULTS / "wheels.json", {"machine": machine("cpu"), "rows": measure(options.seconds)})
    (RESULTS / "wheels.md").write_text(report())


if __name__ == "__main__":
    main()
