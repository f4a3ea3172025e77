"""Tables of what ``python -m benchmarks.gpu`` measured, and the constants of a cost model, from its JSON files alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.choice import ALLOWED, robust_fit
from benchmarks.networks import PLAIN
from benchmarks.tables import markdown, read_json
from benchmarks.timing import ratio
from monai_sre.ops import radial_basis

#: What :func:`fit` finds the nanoseconds of, for the dense algorithm and for rings.
DENSE_COUNTS = ("forward call", "backward call", "value moved", "multiply-add of products")
RING_COUNTS = (*DENSE_COUNTS, "multiply-add of sums")
Rows = dict[str, dict[str, Any]]


def render(folder: Path) -> None:
    """Write ``gpu.md`` from all files ``gpu_*.json`` of a folder."""
    text = [
        "# Measured on GPUs\n",
        "Made by `python -m benchmarks.gpu --render` from the JSON files beside it. Times are medians in ms with "
        "interquartile ranges, `x` a ratio of medians of the same run; a dash: not measured, or not installed.\n",
    ]
    for path in sorted(folder.glob("gpu_*.json")):
        data = read_json(path)
        own = data["machine"]
        software = ", ".join(f"{name} {own[name]}" for name in ("torch", "triton", "cuda", "cudnn") if own.get(name))
        text.append(f"## {own['gpu']} (`{path.name}`)\n\n{software}; kernels `{own['kernels']}`.\n")
        for part, table in _TABLES.items():
            rows = data["parts"].get(part, {})
            good = {name: row for name, row in rows.items() if "error" not in row}
            if good:
                text += [f"### {part.capitalize()}\n", table(good)]
            text += [f"`{name}` failed: {row['error']}\n" for name, row in rows.items() if "error" in row]
    (folder / "gpu.md").write_text("\n".join(text))


def correctness_table(rows: Rows) -> str:
    """The largest relative error of each kind of value, by dtype."""
    worst: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        kind = next(kind for kind in ("float32", "bfloat16", "float16") if f", {kind}" in name)
        for what, value in row["errors"].items():
            seen = worst.setdefault(what, {})
            seen[kind] = max(value, seen.get(kind, 0.0))
    kinds = ("float32", "bfloat16", "float16")
    lines = [
        [what, *(f"{found[kind]:.1e}" if kind in found else "-" for kind in kinds)] for what, found in worst.items()
    ]
    return f"The largest relative error in {len(rows)} cases.\n\n" + markdown(["", *kinds], lines)


def layer_table(rows: Rows) -> str:
    """Eager times and those of graphs, in ratio to the other candidates."""
    others = (PLAIN, "dense", "portable", "SRE-Conv", "GMR-Conv", "escnn")
    head = ["layer", "Triton ms (IQR)", "captured", *(f"x {name}" for name in others), "captured: x plain 3", "x dense"]
    head += ["energies: x plain 3", "memory: x plain 3"]
    lines = []
    for name, row in rows.items():
        times, peaks = row["times"], row["peak_mib"]
        cells = [_ratio(times, "Triton", other) for other in others]
        cells += [_ratio(times, "Triton, graph", f"{other}, graph") for other in others[:2]]
        cells += [_ratio(times, "energies, Triton", PLAIN), _share(peaks, "Triton", PLAIN)]
        lines.append([name, _spread(times, "Triton"), _spread(times, "Triton, graph"), *cells])
    return markdown(head, lines)


def network_table(rows: Rows) -> str:
    """Every network by every algorithm, in ratio to the plain one of its row."""
    lines = []
    for name, row in rows.items():
        times, peaks = row["times"], row["peak_mib"]
        for label in (label for label in times if label.endswith("training")):
            forward, plain = label.replace("training", "forward"), (f"{PLAIN}, training", f"{PLAIN}, forward")
            cells = [_spread(times, label), _ratio(times, label, plain[0]), _share(peaks, label, plain[0])]
            cells += [_spread(times, forward), _ratio(times, forward, plain[1])]
            lines.append([name, label.removesuffix(", training"), *cells])
    head = ["networks", "network, algorithm", "training step ms (IQR)", "x plain 3", "memory: x plain 3"]
    return markdown([*head, "forward ms (IQR)", "x plain 3"], lines)


def training_table(rows: Rows) -> str:
    """Images per second, and the share of time in which a kernel ran."""
    lines = [
        [name, str(row["batch"]), f"{row['images_per_s']:.0f}", f"{100 * row['busy']:.0f} %" if "busy" in row else "-"]
        for name, row in rows.items()
    ]
    return markdown(["bundle, network, precision", "batch", "images per second", "busy"], lines)


def constants_table(rows: Rows) -> str:
    """What :func:`fit` finds, by precision."""
    lines = []
    for mode, found in fit(rows).items():
        for name, constants in found["ns"].items():
            cells = [f"{constants[count]:.3g}" if count in constants else "-" for count in RING_COUNTS]
            lines.append([mode, name, *cells, f"{found['wrong']} of {found['rows']}"])
    head = [
        "precision",
        "algorithm",
        *(f"ns per {count}" for count in RING_COUNTS),
        f"wrong by more than {ALLOWED - 1:.0%}",
    ]
    return markdown(head, lines)


def show_fit(folder: Path) -> None:
    """Print the constants for each device of a folder."""
    for path in sorted(folder.glob("gpu_*.json")):
        data = read_json(path)
        rows = {name: row for name, row in data["parts"].get("constants", {}).items() if "error" not in row}
        print(path.name, json.dumps(fit(rows), indent=1))


def fit(rows: Rows) -> dict[str, Any]:
    """Nanoseconds of each of :data:`RING_COUNTS` by precision and algorithm, and how often they choose wrongly.

    Times are fitted in least absolute relative error. A wrong choice is one that takes over :data:`benchmarks.choice.ALLOWED`
    times as long as the better algorithm.
    """
    found: dict[str, Any] = {}
    for mode in sorted({row["mode"] for row in rows.values()}):
        own = [row for row in rows.values() if row["mode"] == mode and {"dense", "Triton"} <= row["times"].keys()]
        if not own:
            continue
        estimates, constants = {}, {}
        for name, counts, names in (("dense", dense_counts, DENSE_COUNTS), ("Triton", ring_counts, RING_COUNTS)):
            table = np.array([counts(row) for row in own])
            taken = np.array([row["times"][name]["ms"] * 1e6 for row in own])
            values = robust_fit(table / taken[:, None])
            estimates[name] = table @ values
            constants[name] = dict(zip(names, map(float, values), strict=True))
        wrong = 0
        for index, row in enumerate(own):
            chosen, other = sorted(("dense", "Triton"), key=lambda name: estimates[name][index])
            wrong += row["times"][chosen]["ms"] > ALLOWED * row["times"][other]["ms"]
        found[mode] = {"ns": constants, "rows": len(own), "wrong": int(wrong)}
    return found


def dense_counts(row: dict[str, Any]) -> list[float]:
    """Calls forward and backward, values moved and multiply-adds of the dense kernel; see :data:`DENSE_COUNTS`.

    Example:
        >>> dense_counts({"shape": [1, 4, 10], "out_channels": 2, "kernel": 5, "inference": True})
        [1.0, 0.0, 60.0, 400.0]
    """
    positions, channels, outputs, passes = _sizes(row)
    taps = row["kernel"] ** (len(row["shape"]) - 2)
    moved = positions * (channels + outputs) * passes
    return [1.0, float(passes > 1), float(moved), float(positions * taps * channels * outputs * passes)]


def ring_counts(row: dict[str, Any]) -> list[float]:
    """The same for rings, and multiply-adds of the sums, with rings filled up to a power of two; see :data:`RING_COUNTS`.

    Example:
        >>> row = {"shape": [1, 4, 10], "out_channels": 2, "kernel": 5, "inference": True, "profile": "band"}
        >>> ring_counts(row)  # 3 rings, which take the room of 4
        [1.0, 0.0, 60.0, 240.0, 800.0]
    """
    positions, channels, outputs, passes = _sizes(row)
    ndim = len(row["shape"]) - 2
    rings, taps = len(radial_basis((row["kernel"],) * ndim, profile=row["profile"])), row["kernel"] ** ndim
    summed = channels if passes == 1 else 2 * channels + outputs  # forward, by the weights; by the input
    calls, backward, moved, _ = dense_counts(row)
    products = positions * rings * channels * outputs * passes
    return [calls, backward, moved, float(products), float(positions * summed * taps * (1 << (rings - 1).bit_length()))]


def _sizes(row: dict[str, Any]) -> tuple[int, int, int, int]:
    batch, channels, *size = row["shape"]
    return batch * math.prod(size), channels, row["out_channels"], 1 if row["inference"] else 3


def _spread(times: dict[str, dict[str, float]], name: str) -> str:
    return f"{times[name]['ms']:.3g} ({times[name]['iqr_ms']:.2g})" if name in times else "-"


def _ratio(times: dict[str, dict[str, float]], name: str, other: str) -> str:
    found = ratio(times, name, other)
    return "-" if found is None else f"{found:.2f}"


def _share(peaks: dict[str, float], name: str, other: str) -> str:
    return f"{peaks[name] / peaks[other]:.2f}" if peaks.get(name) is not None and peaks.get(other) else "-"


_TABLES: dict[str, Any] = {
    "correctness": correctness_table,
    "layers": layer_table,
    "networks": network_table,
    "training": training_table,
    "constants": constants_table,
}
