"""What the kernels in Triton may reach on GPUs, from compiling them ahead of time; no device is needed.

    python -m benchmarks.kernel_bounds                      # all architectures, about 15 minutes on one core
    python -m benchmarks.kernel_bounds --architectures 90
    python -m benchmarks.kernel_bounds --render             # the page from the JSON file, compiling nothing
    python -m benchmarks.kernel_bounds --blocks             # other blocks and numbers of warps; printed

:mod:`monai_sre.ops.ring.gpu` is called with tensors on torch's meta device, and each launch is compiled for an architecture
with the very constants, and what Triton infers from the very arguments, that it would have there. From the machine code come
registers, spills (stack and local memory) and shared memory, and from these the *occupancy*: warps that a multiprocessor
holds at once, in ratio to what it can hold.

Of each operation three times are stated, each as if it were the only limit:

* *memory*: bytes that must be read or written, each operand of a kernel or of an operation of torch's once;
* *loads*: what the load units deliver to the programs, 4 bytes at once at most: each value of a window one by one, and tables
  and weights in wide loads;
* *products*: multiply-adds of sums (each place of a window times each ring) and of what mixes them, with full blocks, on
  tensor cores. Where TF32 is off, each is three of TF32; torch's own products, and those of a plain layer, are on the float32
  lanes then.

The largest is the bound, and what limits the operation. Launches, synchronisation and latency come on top. The plain layer of
kernel 3, and the dense kernel, have memory and products alone: cuDNN's implicit product of matrices.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.audit import Operations
from benchmarks.tables import RESULTS, markdown, read_json
from monai_sre.ops import harmonic_stencils, radial_basis
from monai_sre.ops.ring import gpu

#: What is computed with: a dtype, and whether products of float32 may take TF32.
MODES = {"bfloat16": (torch.bfloat16, True), "float32, TF32": (torch.float32, True), "float32": (torch.float32, False)}
OPERATIONS = ("forward", "by input", "by weights", "energies", "energies by input")
LIMITS = ("memory", "loads", "products")
ORDERS = (1, 2)
PLAIN = 3


@dataclass(frozen=True)
class Architecture:
    """Peaks of a GPU from its data sheet, and what a multiprocessor holds (CUDA programming guide, compute capabilities).

    Attributes:
        gpu: the one whose peaks these are.
        processors: multiprocessors.
        bytes_per_s: of the memory.
        loads: values of 4 bytes per second that the load units serve, 32 per multiprocessor and clock.
        products: multiply-adds per second of torch's products, dense, in each of :data:`MODES`: of tensor cores, or of the
            float32 lanes.
        shared: bytes of shared memory of a multiprocessor; a block uses 1 KiB on top of its own.
    """

    gpu: str
    processors: int
    bytes_per_s: float
    loads: float
    products: tuple[float, ...]
    shared: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


ARCHITECTURES = {
    80: Architecture("A100 80GB SXM", 108, 2.04e12, 4.87e12, (156e12, 78e12, 9.75e12), 164 << 10),
    90: Architecture("H100 SXM", 132, 3.35e12, 8.37e12, (495e12, 247e12, 33.5e12), 228 << 10),
    100: Architecture("B200", 148, 8e12, 9.37e12, (1125e12, 562e12, 37.5e12), 228 << 10),
}


@dataclass(frozen=True)
class Case:
    """A layer that keeps channels and size."""

    shape: tuple[int, ...]
    kernel: int
    where: str

    @property
    def name(self) -> str:
        return f"{', '.join(map(str, self.shape))}, k={self.kernel}"


CASES = (
    *(Case((128, 1024 // n, n, n), 5, "2-D ResNet18, width 32") for n in (32, 16, 8, 4)),
    *(Case((128, 1024 // n, n, n), 9, "2-D ResNet18, width 32") for n in (32, 16)),
    Case((32, 64, 32, 32), 9, "2-D ResNet18, width 64"),
    *(Case((16, 512 // n, n, n, n), 5, "3-D ResNet18, width 16") for n in (32, 16, 8)),
    *(Case((4, 2048 // n, n, n), 9 if n > 32 else 5, "2-D U-Net") for n in (128, 64, 32)),
    *(Case((2, 1536 // n, n, n, n), 5, "3-D U-Net") for n in (96, 48, 24)),
)


def operation(name: str, case: Case, dtype: torch.dtype) -> Callable[[], Any]:
    """A call of :mod:`monai_sre.ops.ring.gpu` on the meta device; energies are those of a quarter of the maps, mixed."""
    ndim, channels = len(case.shape) - 2, case.shape[1]
    if "energies" in name:
        radial = torch.empty(case.shape, dtype=dtype, device="meta")
        maps = radial.new_empty(case.shape[0], channels // 4, *case.shape[2:])
        stencils = [harmonic_stencils(order, ndim).to("meta") for order in ORDERS]
        mixer = radial.new_empty(channels, len(ORDERS) * maps.shape[1], *[1] * ndim)
        if name == "energies":
            return lambda: gpu.add_energies(radial, maps, stencils, mixer, None, 1, 1e-3)
        return lambda: gpu.add_energies_gradients(radial, maps, mixer, stencils, 1, 1e-3, (True, True, False))
    x = torch.empty(case.shape, dtype=dtype, device="meta")
    basis = radial_basis((case.kernel,) * ndim).float().to("meta")
    weight = torch.empty(channels, channels, len(basis), dtype=dtype, device="meta")
    geometry = ([1] * ndim, [case.kernel // 2] * ndim, [1] * ndim)
    if name == "forward":
        return lambda: gpu.ring_conv(x, weight, None, basis, *geometry)
    wanted = (name == "by input", name == "by weights", False)
    return lambda: gpu.ring_conv_gradients(x, x, weight, basis, *geometry, wanted)


def kernels_name() -> str:
    """What tells one state of the kernels, and of the code that calls them, from another."""
    sources = (Path(gpu.__file__), Path(gpu.__file__).with_name("gpu_kernels.py"))
    return sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


class _Offline:
    """Stands in for Triton's driver: a device that is not there, of one architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # by which Triton keeps apart what it compiled

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)


class Launches:
    """Stands in for the module of kernels: notes each launch, and compiles it where an architecture is given.

    Args:
        architecture: compute capability, 80 for 8.0, or ``None``.
        changes: constants and options in place of those that the calling code chose.
    """

    def __init__(self, architecture: int | None, **changes: Any) -> None:
        self.architecture, self.changes = architecture, changes
        self.found: list[dict[str, Any]] = []
        self.resources: dict[str, dict[str, int]] = {}  # of what was compiled before, by its hash

    def __getattr__(self, name: str) -> Any:
        from monai_sre.ops.ring import gpu_kernels

        return _Launcher(getattr(gpu_kernels, name), self)

    def of(self, call: Callable[[], Any], tf32: bool) -> list[dict[str, Any]]:
        """The launches of a call, with products in TF32 allowed or not."""
        with ExitStack() as stack:
            stack.enter_context(torch.backends.cudnn.flags(allow_tf32=tf32))
            stack.enter_context(patch.object(gpu, "_kernels", lambda: self))
            if self.architecture is not None:
                from triton.runtime import driver

                processors = ARCHITECTURES[self.architecture].processors
                stack.enter_context(patch.object(gpu, "_processors", lambda _: processors))
                stack.enter_context(patch.object(driver, "_active", _Offline(self.architecture)))
            call()
        found, self.found = self.found, []
        return found


@dataclass(frozen=True)
class _Launcher:
    kernel: Any
    launches: Launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*operands: Any, **constants: Any) -> None:
            own = self.launches
            options = {name: own.changes.get(name, value) for name, value in constants.items()}
            options["F"] = frame = options["F"]._replace(
                **{name: value for name, value in own.changes.items() if name in options["F"]._fields}
            )
            arguments = dict(zip(self.kernel.arg_names, operands, strict=False)) | options
            tensors = {id(value): value for value in operands if isinstance(value, Tensor)}
            found = {
                "kernel": self.kernel.fn.__name__,
                "constants": frame._asdict(),
                "warps": options.get("num_warps", 4),
                **work(self.kernel.fn.__name__, grid, arguments),
                "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            }
            if own.architecture is not None:
                compiled = self.kernel.run(*operands, grid=grid, warmup=True, **options)
                if compiled.hash not in own.resources:
                    own.resources[compiled.hash] = resources(compiled.asm["cubin"], compiled.metadata.shared)
                found |= own.resources[compiled.hash]
            own.found.append(found)

        return launch


def work(kernel: str, grid: Sequence[int], arguments: dict[str, Any]) -> dict[str, float]:
    """Values of 4 bytes loaded, and multiply-adds of products, that the programs of a launch run through.

    Example:
        >>> x, frame = torch.ones(1, 20, 8, 8), gpu.Frame(3, *[(1, 1, 1)] * 5, (1, 4, 8), (1, 8, 12), (0, 0, 0), 2, 16)
        >>> sizes = {"image": x, "F": frame._replace(BLOCK_O=16, BLOCK_P=32, BLOCK_K=32), "channels": 20}
        >>> work("ring_conv", (10, 1), sizes)  # 10 programs, each 2 blocks of channels
        {'loads': 261120, 'products': 6881280}
    """
    frame, programs = arguments["F"], math.prod(grid)
    if kernel == "tables":
        return {"loads": programs * frame.BLOCK_K * frame.BLOCK_P, "products": 0}
    if kernel == "ring_weight_gradient":
        programs = grid[0] * grid[1] * arguments["tiles"]
    if kernel in ("ring_conv", "add_energies"):
        programs *= -(-arguments["channels"] // frame.BLOCK_C)
    places = -(-math.prod(frame.WINDOW) // frame.BLOCK_K) * frame.BLOCK_K
    lines, mixed = frame.BLOCK_I * frame.BLOCK_C, len(arguments["STARTS"]) - 1 if "STARTS" in arguments else frame.B
    outputs = 0 if kernel == "energy_gradient" else frame.BLOCK_O
    if kernel == "energies":  # of gradients, all output channels in turn
        outputs *= -(-arguments["out_channels"] // outputs)
    wide = next(value for value in arguments.values() if isinstance(value, Tensor)).element_size() / 4
    values = lines * places * (frame.B if kernel == "energy_gradient" else 1)
    tables = (places * frame.B * frame.BLOCK_P + mixed * outputs * frame.BLOCK_C) * wide
    products = lines * frame.BLOCK_P * (places * frame.B + mixed * outputs)
    return {"loads": programs * (values + tables), "products": programs * products}


def resources(cubin: bytes, shared: int) -> dict[str, int]:
    """Registers of a thread, its stack and local memory in bytes, and the shared memory of a block."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"]), "shared": shared}


def occupancy(registers: int, shared: int, warps: int, architecture: Architecture) -> float:
    """Share of a multiprocessor's warps that it holds at once.

    Registers are given to warps by 256, and by 4 warps at once, one to each of its parts.

    Example:
        >>> occupancy(registers=128, shared=0, warps=4, architecture=ARCHITECTURES[90])  # 16 warps have 65536 registers
        0.25
        >>> occupancy(registers=32, shared=100_000, warps=4, architecture=ARCHITECTURES[90])  # 2 blocks in 228 KiB
        0.125
    """
    by_warp = -(-registers * 32 // 256) * 256
    room = architecture.registers // by_warp // 4 * 4
    blocks = min(
        architecture.blocks, room // warps, architecture.warps // warps, architecture.shared // (shared + 1024)
    )
    return blocks * warps / architecture.warps


def bounds(architecture: Architecture, mode: str, counts: dict[str, float]) -> dict[str, float]:
    """Microseconds that memory, loads and products take, each alone; ``torch`` counts those products that are torch's."""
    halves, tf32, lanes = architecture.products
    own, torchs = {"bfloat16": (halves, halves), "float32, TF32": (tf32, tf32), "float32": (tf32 / 3, lanes)}[mode]
    seconds = (
        counts["bytes"] / architecture.bytes_per_s,
        counts["loads"] / architecture.loads,
        counts["products"] / own + counts["torch"] / torchs,
    )
    return {name: value * 1e6 for name, value in zip(LIMITS, seconds, strict=True)}


def dense_bounds(case: Case, kernel: int, mode: str, architecture: Architecture) -> dict[str, float]:
    """Those of one pass (forward, by input or by weights: all have the same) of a plain layer.

    Example:
        >>> case = Case((1, 16, 4, 4), 5, "an example")
        >>> dense_bounds(case, 3, "bfloat16", ARCHITECTURES[90])["products"] * 495e6 == 16 * 16 * 16 * 9
        True
    """
    values, channels = math.prod(case.shape), case.shape[1]
    weights = kernel ** (len(case.shape) - 2) * channels**2
    moved = (2 * values + weights) * MODES[mode][0].itemsize
    products = values // channels * weights
    return bounds(architecture, mode, {"bytes": moved, "loads": 0, "products": 0, "torch": products})


def bound_of(case: Case, mode: str, name: str, launches: Launches) -> dict[str, Any]:
    """One row: the launches of an operation with their resources, its bounds, and those of the plain layer."""
    assert launches.architecture is not None
    architecture = ARCHITECTURES[launches.architecture]
    dtype, tf32 = MODES[mode]
    call = operation(name, case, dtype)
    with FlopCounterMode(display=False) as flops, Operations() as operations:
        found = launches.of(call, tf32)
    counts = {key: sum(launch[key] for launch in found) for key in ("bytes", "loads", "products")}
    counts["bytes"] += operations.moved
    counts["torch"] = flops.get_total_flops() / 2
    for launch in found:
        launch["occupancy"] = occupancy(launch["registers"], launch["shared"], launch["warps"], architecture)
    return {
        "shape": list(case.shape),
        "kernel": case.kernel,
        "where": case.where,
        "mode": mode,
        "operation": name,
        "launches": found,
        "us": bounds(architecture, mode, counts),
        "plain_us": dense_bounds(case, PLAIN, mode, architecture),
        "dense_us": dense_bounds(case, case.kernel, mode, architecture),
    }


def compile_all(architectures: Sequence[int], cases: Sequence[Case], path: Path) -> None:
    """Rows of all cases, written architecture by architecture; those of others stay."""
    import triton

    data = read_json(path, {"rows": {}})
    data |= {"triton": triton.__version__, "kernels": kernels_name()}
    for sm in architectures:
        rows, launches = [], Launches(sm)
        for case in cases:
            for mode in MODES:
                rows += [bound_of(case, mode, name, launches) for name in OPERATIONS]
                print(
                    f"sm_{sm}",
                    case.name,
                    mode,
                    {row["operation"]: limit_of(row["us"]) for row in rows[-5:]},
                    flush=True,
                )
        data["rows"] = dict(sorted({**data["rows"], str(sm): rows}.items(), key=lambda item: int(item[0])))
        path.write_text(json.dumps(data) + "\n")


def limit_of(microseconds: dict[str, float]) -> str:
    """What takes longest.

    Example:
        >>> limit_of({"memory": 2.0, "loads": 3.0})
        'loads'
    """
    return max(microseconds, key=lambda name: microseconds[name])


def bound_table(rows: Sequence[dict[str, Any]]) -> str:
    """Bounds of all operations, in microseconds and in ratio to a plain layer of kernel 3."""
    head = ["layer", "shape (N, C, size), kernel", "mode", "operation", *(f"{name} us" for name in LIMITS), "limit"]
    head += ["plain 3 us", "x plain", "dense us", "launches"]
    lines = []
    for row in rows:
        own, plain, dense = (max(row[key].values()) for key in ("us", "plain_us", "dense_us"))
        case = Case(tuple(row["shape"]), row["kernel"], row["where"])
        radial = "energies" not in row["operation"]
        lines.append([row["where"], case.name if radial else case.name.split(", k=")[0], row["mode"], row["operation"]])
        lines[-1] += [f"{row['us'][name]:.1f}" for name in LIMITS] + [limit_of(row["us"]), f"{plain:.1f}"]
        lines[-1] += [
            f"{own / plain:.1f}",
            f"{dense:.1f}" if radial else "-",
            ", ".join(launch["kernel"] for launch in row["launches"]),
        ]
    return markdown(head, lines)


def resource_table(rows: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Every compiled kernel once: registers, spills, shared memory and occupancy on each architecture."""
    kernels: dict[tuple[str, ...], dict[str, set[tuple[Any, ...]]]] = {}
    for sm, found in rows.items():
        for row in found:
            for launch in row["launches"]:
                kernels.setdefault(_named(launch, row["mode"]), {}).setdefault(sm, set()).add(
                    tuple(launch[key] for key in ("registers", "spilled", "shared", "occupancy"))
                )
    head = ["kernel", "mode", "taps", "rings", "window", "block (images, channels, outputs, positions)", "warps"]
    head += [f"sm_{sm}: registers, bytes spilled, KiB shared, occupancy" for sm in rows]
    lines = []
    for name, own in sorted(kernels.items()):
        worst = [min(own[sm], key=lambda found: found[-1]) if sm in own else None for sm in rows]
        cells = ["-" if f is None else f"{f[0]}, {f[1]}, {f[2] / 1024:.0f}, {100 * f[3]:.0f} %" for f in worst]
        lines.append([*name, *cells])
    return markdown(head, lines)


def _named(launch: dict[str, Any], mode: str) -> tuple[str, ...]:
    own = launch["constants"]
    block = ", ".join(str(own[name]) for name in ("BLOCK_I", "BLOCK_C", "BLOCK_O", "BLOCK_P"))
    taps, window = (" x ".join(str(n) for n in own[name] if n > 1) for name in ("KERNEL", "WINDOW"))
    return (
        launch["kernel"],
        mode,
        taps,
        str(own["B"]),
        window,
        block,
        str(launch["warps"]),
    )


def summary(sm: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the tables of one architecture say, as sentences made from their rows."""
    launches = [launch for row in rows for launch in row["launches"]]
    spilled = [launch["spilled"] for launch in launches if launch["spilled"]]
    lines = [
        f"* sm_{sm}: spills in {len(spilled)} of {len(launches)} launches, of {max(spilled, default=0)} bytes at most."
    ]
    radial_rows = [row for row in rows if "energies" not in row["operation"]]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        kinds = {(len(row["shape"]) - 2, row["kernel"]) for row in radial_rows if row["mode"] == mode}
        for ndim, kernel in sorted(kinds):
            radial = [
                row
                for row in radial_rows
                if (row["mode"], len(row["shape"]) - 2, row["kernel"]) == (mode, ndim, kernel)
            ]
            ratios, dense = (
                sorted(max(row["us"].values()) / max(row[key].values()) for row in radial)
                for key in ("plain_us", "dense_us")
            )
            limits = [limit_of(row["us"]) for row in radial]
            most = max(set(limits), key=limits.count)
            lines.append(
                f"* sm_{sm}, {mode}, {ndim}-D, kernel {kernel}: {ratios[0]:.1f} to {ratios[-1]:.1f} times the bound of a "
                f"plain layer of kernel 3, {dense[0]:.1f} to {dense[-1]:.1f} times that of the dense kernel; "
                f"limited by {most} in {limits.count(most)} of {len(limits)} operations."
            )
    return lines


def render(path: Path) -> None:
    """Write the page beside the JSON file."""
    data = read_json(path)
    text = ["# What the kernels in Triton may reach on GPUs\n", *(__doc__ or "").split("\n\n")[2:]]
    text = [part.strip() + "\n" for part in text]
    text[1] = (
        f"Made by `python -m benchmarks.kernel_bounds` with Triton {data['triton']} for kernels "
        f"`{data['kernels']}`; nothing here was measured.\n\n" + text[1]
    )
    peaks = [
        [
            f"sm_{sm}",
            own.gpu,
            f"{own.bytes_per_s / 1e12:.2f}",
            *(f"{2 * value / 1e12:.0f}" for value in own.products),
            f"{own.loads / 1e12:.1f}",
            f"{own.registers}, {own.warps}, {own.blocks}, {own.shared >> 10} KiB",
        ]
        for sm, own in ARCHITECTURES.items()
    ]
    head = ["", "GPU", "TB/s", "bfloat16 TFLOPS", "TF32 TFLOPS", "float32 TFLOPS", "10^12 loads/s"]
    text += ["## Peaks\n", markdown([*head, "multiprocessor: registers, warps, blocks, shared memory"], peaks)]
    text += [
        "## What to expect\n",
        "\n".join(line for sm, rows in data["rows"].items() for line in summary(sm, rows)) + "\n",
    ]
    text += ["## Compiled kernels\n", "Where a kernel was compiled for several images, the lowest occupancy.\n"]
    text += [resource_table(data["rows"])]
    for sm, rows in data["rows"].items():
        text += [f"## Bounds on sm_{sm} ({ARCHITECTURES[int(sm)].gpu})\n", bound_table(rows)]
    path.with_suffix(".md").write_text("\n".join(text))


#: Constants and options in place of those chosen, that ``--blocks`` tries.
BLOCKS = tuple({"BLOCK_K": places, "num_warps": warps} for places in (16, 32, 64) for warps in (4, 8))


def try_blocks(sm: int, case: Case, mode: str, name: str) -> None:
    """Print what each of :data:`BLOCKS` needs."""
    for changes in ({}, *BLOCKS):
        launches = Launches(sm, **changes).of(operation(name, case, MODES[mode][0]), MODES[mode][1])
        for launch in launches:
            found = [launch[key] for key in ("registers", "spilled", "shared")]
            share = occupancy(found[0], found[2], launch["warps"], ARCHITECTURES[sm])
            print(
                f"sm_{sm}",
                case.name,
                mode,
                name,
                launch["kernel"],
                changes or "as chosen",
                *found,
                f"{share:.0%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=tuple(ARCHITECTURES), default=list(ARCHITECTURES)
    )
    parser.add_argument("--cases", nargs="+", type=int, choices=range(len(CASES)), help="some of the shapes, by place")
    parser.add_argument("--blocks", action="store_true", help="print what other blocks need, write nothing")
    parser.add_argument("--render", action="store_true", help="make the page from the JSON file, compile nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernel_bounds.json")
    options = parser.parse_args()
    cases = CASES if options.cases is None else [CASES[place] for place in options.cases]
    if options.blocks:
        for sm in options.architectures:
            for case in cases:
                for mode in MODES:
                    for name in OPERATIONS:
                        try_blocks(sm, case, mode, name)
        return
    if not options.render:
        compile_all(options.architectures, cases, options.out)
    render(options.out)


if __name__ == "__main__":
    main()
