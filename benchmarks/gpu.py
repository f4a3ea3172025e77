"""The kernels in Triton on a GPU: right, and how fast beside plain kernels, the dense algorithm and published packages.

    python -m benchmarks.gpu                       # all parts, at most 8 minutes; what is there is not measured again
    python -m benchmarks.gpu correctness layers    # some parts
    python -m benchmarks.gpu --render              # the tables from the JSON files, measuring nothing
    python -m benchmarks.gpu --fit                 # the constants of a cost model for each device, measuring nothing
    python -m benchmarks.gpu --tiny --out DIR      # all parts on a CPU with tiny sizes: kernels in Triton's interpreter

All rows of a device are in ``benchmarks/results/gpu_<device>.json``, which is written anew after each row, so that a run may
be stopped at any time and taken up by the same command. A row that failed holds the error and is tried again. Nothing is
timed where the kernels are not right.

* ``correctness``: values and gradients of layers and energies in each dtype and memory order against the dense kernel in
  float64, and logits of networks with the ring algorithm against the dense one;
* ``layers``: forward and training step (gradients by input and weights) of single layers, eager and as a captured CUDA graph;
* ``networks``: forward and training step of whole networks, eager and compiled;
* ``training``: images per second and share of busy time of the bundles' own training loops, on random images;
* ``constants``: dense and ring on random shapes, to which the constants of a cost model are fitted.

Precision is float32 with TF32 off and on, and bfloat16 under autocast. Candidates of a row run in turn within one process;
times are medians between events of the device, with interquartile range; memory is the growth of what torch allocates, at its
highest. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu_parts import PARTS, Bench
from benchmarks.gpu_tables import render, show_fit
from benchmarks.kernel_bounds import kernels_name
from benchmarks.tables import RESULTS, read_json
from benchmarks.timing import machine
from monai_sre.files import write_json
from monai_sre.ops import energy
from monai_sre.ops.ring import convolution, gpu

INTERPRET = "TRITON_INTERPRET"
#: Relative errors that are allowed against float64, and of logits between algorithms.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3, "logits": 1e-4}
#: Minutes after which a part begins no further row, in all 8.
SHARES = {"correctness": 1.2, "layers": 3.2, "networks": 6.0, "training": 7.0, "constants": 8.0}


class Results:
    """Rows of one device, in a file that is written anew after each.

    Args:
        path: of the JSON file.
        about: what the figures depend on; a file that was made with other software, or other kernels, is refused.
        again: whether such a file is begun anew.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     results = Results(Path(folder) / "gpu_any.json", {"torch": "2"}, again=False)
        ...     made = results.row("layers", "a layer", lambda: {"ms": 1.0})
        ...     kept = Results(results.path, {"torch": "2"}, again=False).row("layers", "a layer", lambda: {"ms": 2.0})
        layers a layer {'ms': 1.0}
        >>> made, kept
        ({'ms': 1.0}, {'ms': 1.0})
    """

    def __init__(self, path: Path, about: dict[str, Any], again: bool) -> None:
        self.path, self.data = path, {"machine": about, "parts": {}}
        if path.is_file() and not again:
            self.data = read_json(path)
            before = self.data["machine"]
            changed = [key for key in ("gpu", "torch", "triton", "kernels") if before.get(key) != about.get(key)]
            if changed:
                raise SystemExit(
                    f"{path} was measured with another {', '.join(changed)}; --again measures all rows anew"
                )

    def row(self, part: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a name, made unless it is there; where that fails, the error in its place."""
        rows = self.data["parts"].setdefault(part, {})
        if name not in rows or "error" in rows[name]:
            try:
                rows[name] = make()
            except Exception as error:  # a peer's or one shape's failure must not end the run
                rows[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(part, name, short(rows[name]), flush=True)
            write_json(self.path, self.data)
        return dict(rows[name])


def short(row: dict[str, Any]) -> Any:
    """What of a row is printed."""
    times = row.get("times")
    return {name: round(value["ms"], 3) for name, value in times.items()} if times else row


def wrong(rows: dict[str, Any]) -> list[str]:
    """What of the part ``correctness`` failed or is further off than :data:`TOLERANCES`.

    Example:
        >>> wrong({"a, float32": {"errors": {"values": 1e-7}}, "b, bfloat16": {"errors": {"by input": 0.5}}})
        ['b, bfloat16: by input differs by 0.5']
    """
    found = []
    for name, row in rows.items():
        kind = "logits" if name.startswith("logits") else next(kind for kind in TOLERANCES if f", {kind}" in name)
        found += [f"{name}: {row['error']}"] if "error" in row else []
        found += [
            f"{name}: {what} differs by {value:.2g}"
            for what, value in row.get("errors", {}).items()
            if not value <= TOLERANCES[kind]
        ]
    return found


def about(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: the device, the software, and the kernels by their content."""
    found = machine("device") | {"kernels": kernels_name()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if device.type != "cuda":
        return found | {"gpu": "none: Triton's interpreter on a CPU"}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "gpu": properties.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def slug(name: str) -> str:
    """A device's name as part of a file's.

    Example:
        >>> slug("NVIDIA H100 80GB HBM3")
        'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@contextmanager
def interpreted() -> Iterator[None]:
    """Let the kernels serve operands on a CPU, in Triton's interpreter, in place of the compiled C."""
    served = {torch.float32, torch.bfloat16, torch.float16}
    with ExitStack() as stack:
        stack.enter_context(patch.object(gpu, "usable", lambda x, asked: asked and x.dtype in served and x.numel() > 0))
        for module in (convolution, energy):
            stack.enter_context(patch.object(module, "is_eager_cpu_call", lambda *_: False))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {list(PARTS)}; all by default")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--again", action="store_true", help="measure all rows anew")
    parser.add_argument("--render", action="store_true", help="make the tables from the JSON files, measure nothing")
    parser.add_argument("--fit", action="store_true", help="print the constants of a cost model, measure nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further row is begun")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts {unknown}; there are {list(PARTS)}")
    if options.render or options.fit:
        (render if options.render else show_fit)(options.out)
        return
    if options.tiny and options.out == RESULTS:
        parser.error("--tiny needs --out: what runs on a CPU is no result")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --tiny --out DIR runs all parts on the CPU with tiny sizes")
    if options.tiny and os.environ.get(INTERPRET) != "1":  # which Triton reads as it is imported
        command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {INTERPRET: "1"})
    bench = Bench(torch.device("cpu" if options.tiny else "cuda"), options.tiny)
    options.out.mkdir(parents=True, exist_ok=True)
    described = about(bench.device)
    results = Results(
        options.out / f"gpu_{'tiny' if options.tiny else slug(described['gpu'])}.json", described, options.again
    )
    measure(bench, options.parts or list(PARTS), results, options.minutes)
    render(options.out)


def measure(bench: Bench, parts: Sequence[str], results: Results, minutes: float) -> None:
    """The rows of parts that are not there yet, as long as there is time."""
    begun, skipped = time.perf_counter(), 0
    for part in parts:
        limit = minutes * 60 * (SHARES[part] / SHARES["constants"] if len(parts) > 1 else 1)
        late: list[str] = []

        def rows(
            name: str, make: Callable[[], dict[str, Any]], part: str = part, limit: float = limit, late: Any = late
        ) -> None:
            if time.perf_counter() - begun > limit:
                late.append(name)
                return
            torch.manual_seed(0)
            results.row(part, name, make)

        with interpreted() if bench.tiny and part != "training" else nullcontext():
            PARTS[part](bench, rows)
        missing = [name for name in late if name not in results.data["parts"].get(part, {})]
        skipped += len(missing)
        if part == "correctness":
            found = wrong(results.data["parts"][part])
            if gpu._failed:
                found.append(f"the kernels could not run: {gpu._failed}")
            if found:
                raise SystemExit("nothing is timed, as the kernels are not right:\n" + "\n".join(found))
    if skipped:
        print(f"{skipped} rows are left for want of time: the same command goes on with them", file=sys.stderr)


if __name__ == "__main__":
    main()
