"""Speed and memory of the ring algorithm, against the dense one, the published packages and plain convolutions.

    python -m benchmarks.speed                  # all suites, about 70 minutes on 2 cores
    python -m benchmarks.speed --quick          # a smoke run of under 4 minutes, written to no file unless --out says so
    python -m benchmarks.speed layers growth    # some suites
    python -m benchmarks.speed --render         # tables and picture from the JSON files, measuring nothing
    python -m benchmarks.speed --fit            # the constants of monai_sre.ops.ring.cost from the results of ``choice``

Each suite writes one JSON file, from which the Markdown tables and the picture are made:

* ``layers``: the table of the project's targets, forward and backward (weights and input), or inference, with rooflines;
* ``growth``: cost against kernel size;
* ``choice``: dense and ring on many shapes, to which :mod:`monai_sre.ops.ring.cost` is fitted;
* ``energies``: layers of harmonics with the compiled energies and without;
* ``networks``: the training step of whole networks;
* ``memory``: the peak memory of a training step of networks and layers, each in a fresh process;
* ``audit``: what a training step asks of any device, counted: operations, bytes kept, bytes moved;
* ``export``: inference on one image, eager, in ONNX Runtime and in TorchScript;
* ``compile``: the training step and the compile time under ``torch.compile``;
* ``single``: inference on one image, layer by layer.

Candidates of one row are run in turn within one process, so that other load on the machine meets all of them alike. A
figure is the median over rounds, with its interquartile range; a ratio is a ratio of medians. On a machine that is busy
with other work, ``--threads 1 --clock cpu`` counts processor time, which waiting for a core does not touch. Peers that are
not installed are left out (``pip install ".[bench]"``; escnn 1.0.11 beside numpy < 2).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks.audit import suite_audit
from benchmarks.choice import fit, suite_choice
from benchmarks.compiled import suite_compile
from benchmarks.energies import suite_energies
from benchmarks.export import suite_export
from benchmarks.layers import suite_growth, suite_layers
from benchmarks.memory import suite_memory
from benchmarks.networks import suite_networks
from benchmarks.single import suite_single
from benchmarks.speed_tables import render
from benchmarks.tables import RESULTS, read_json
from benchmarks.timing import CLOCKS, Effort, machine
from monai_sre.files import write_json

SUITES = {
    "layers": suite_layers,
    "growth": suite_growth,
    "choice": suite_choice,
    "energies": suite_energies,
    "networks": suite_networks,
    "memory": suite_memory,
    "audit": suite_audit,
    "export": suite_export,
    "compile": suite_compile,
    "single": suite_single,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=[], help=f"any of {list(SUITES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    parser.add_argument("--render", action="store_true", help="make tables and picture from the JSON, measure nothing")
    parser.add_argument("--fit", action="store_true", help="print the cost model's constants, measure nothing")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=12.0, help="time for a row")
    parser.add_argument("--out", type=Path, help=f"folder of the results; {RESULTS.name}/ by default")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--label", default="", help="appended to the names of the files")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: threads that wait for each other use processor time")
    folder = options.out or (None if options.quick else RESULTS)
    if options.fit:
        data = read_json((folder or RESULTS) / f"speed_choice{options.label}.json")
        print(fit(data["rows"], data["machine"]["threads"]))
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    effort = Effort(min(options.seconds, 1.0) if options.quick else options.seconds, options.quick, options.clock)
    for name in () if options.render else options.suites or SUITES:
        data = {"suite": name, "machine": machine(options.clock), "rows": SUITES[name](effort)}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"speed_{name}{options.label}.json", data)
    if folder is not None:
        render(folder)


if __name__ == "__main__":
    main()
