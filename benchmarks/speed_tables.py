"""Markdown tables and the picture of the speed benchmarks, from their JSON files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.choice import describe, losses
from benchmarks.tables import markdown, read_json
from benchmarks.timing import ratio

Rows = list[dict[str, Any]]


def render(folder: Path) -> None:
    """Write ``speed.md`` and the pictures from all JSON files of a folder."""
    text = [
        "# Speed and memory\n",
        "Made by `benchmarks/speed.py --render` from the JSON files beside it. A dash: the package has no such layer, or "
        "it was not installed.\n",
    ]
    for path in sorted(folder.glob("speed_*.json")):
        data = read_json(path)
        title, table = _TABLES[data["suite"]]
        about, rows = data["machine"], data["rows"]
        text.append(
            f"## {title}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}, {about['clock']} "
            f"(`{path.name}`)\n\n{about['cpu']}, torch {about['torch']}, {about['dtype']}, load average "
            f"{about['load_average'][0]:.1f} at the start.\n"
        )
        text.append(table(rows, about["threads"]))
        if data["suite"] == "growth":
            draw_growth(rows, path.with_suffix(".png"))
            text.append(f"![cost against kernel size]({path.stem}.png)\n")
    (folder / "speed.md").write_text("\n".join(text))


def target_cells(times: dict[str, dict[str, float]], row: dict[str, Any], ours: str) -> list[str]:
    """Times faster than SRE-Conv and than plain kernels of 3, each with its target, and whether both are reached."""
    found = [
        (ratio(times, "SRE-Conv", ours), row["target_official"]),
        (ratio(times, "plain 3", ours), row["target_plain"]),
    ]
    reached = ["-" if value is None else "yes" if value >= target else "no" for value, target in found]
    return [f"{_number(value)} ({target:g})" for value, target in found] + [", ".join(reached)]


def layer_table(rows: Rows, _: int) -> str:
    """The table of targets, and below it the rooflines."""
    others = ("auto", "dense", "SRE-Conv", "GMR-Conv", "escnn", "plain 3")
    head = [
        "shape (N, C, size)",
        "k",
        "ring ms (IQR)",
        "smooth / band (1.2)",
        "spaced / band (1.2)",
        "harmonic / smooth (2)",
    ]
    head += [f"{name} ms" for name in others]
    head += ["x SRE-Conv (target)", "x plain (target)", "reached"]
    lines = []
    for row in rows:
        times = row["times"]
        lines.append(
            [
                _shape(row),
                str(row["kernel"]),
                f"{times['ring']['ms']:.1f} ({times['ring']['iqr_ms']:.1f})",
                _number(ratio(times, "ring gaussian", "ring")),
                _number(ratio(times, "ring spaced", "ring")),
                _number(ratio(times, "harmonic", "ring gaussian")),
                *(_ms(times, name) for name in others),
                *target_cells(times, row, "ring"),
            ]
        )
    return markdown(head, lines) + roofline_table([row for row in rows if "least_ms" in row])


def roofline_table(rows: Rows) -> str:
    """The least time of sums, products and memory on this machine, and the share of it in the measured time."""
    if not rows:
        return ""
    head = ["shape (N, C, size)", "k", "products ms", "sums ms", "memory ms", "bound ms", "ring ms", "share"]
    lines = []
    for row in rows:
        least, taken = row["least_ms"], row["times"]["ring"]["ms"]
        cells = [f"{least[name]:.1f}" for name in ("products", "sums", "memory", "bound")]
        lines.append([_shape(row), str(row["kernel"]), *cells, f"{taken:.1f}", f"{100 * least['bound'] / taken:.0f} %"])
    peaks = rows[0]["peaks"]
    return (
        f"\nRoofline: peaks of the same run are {peaks['mac_per_s'] / 1e9:.0f} G multiply-adds/s (matrix product in cache) "
        f"and {peaks['bytes_per_s'] / 1e9:.1f} GB/s (copy). The bound is the larger of arithmetic and memory.\n\n"
        + markdown(head, lines)
    )


def network_table(rows: Rows, _: int) -> str:
    """Training steps of whole networks."""
    others = ("harmonic", "dense", "SRE-Conv", "GMR-Conv", "plain 3")
    head = ["network", "input", "auto ms (IQR)", *(f"{name} ms (IQR)" for name in others)]
    head += ["x SRE-Conv (target)", "x plain (target)", "reached", "harmonic: x plain (1)"]
    lines = []
    for row in rows:
        times = row["times"]
        spread = [f"{times[n]['ms']:.0f} ({times[n]['iqr_ms']:.0f})" if n in times else "-" for n in ("auto", *others)]
        shape = ", ".join(map(str, row["shape"]))
        harmonic = _number(ratio(times, "plain 3", "harmonic"))
        lines.append([row["network"], shape, *spread, *target_cells(times, row, "auto"), harmonic])
    return markdown(head, lines)


def memory_table(rows: Rows, _: int) -> str:
    """Peak growth of the resident memory."""
    names = ("auto", "ring", "harmonic", "dense", "SRE-Conv", "GMR-Conv", "plain 3")
    head = [
        "network or layer",
        *(f"{name} MiB" for name in names),
        "ours / plain (1)",
        "reached",
        "harmonic / ours (1.3)",
    ]
    lines = []
    for row in rows:
        peaks = row["peaks"]
        ours = "auto" if "auto" in peaks else "ring"
        share, more = ratio(peaks, ours, "plain 3", "mib"), ratio(peaks, "harmonic", ours, "mib")
        cells = [f"{peaks[name]['mib']:.0f}" if name in peaks else "-" for name in names]
        reached = "-" if share is None else "yes" if share <= 1 else "no"
        lines.append([row["name"], *cells, _number(share), reached, _number(more)])
    return markdown(head, lines)


def growth_table(rows: Rows, _: int) -> str:
    """Milliseconds against kernel size, and the growth from the smallest to the largest."""
    names = ("ring", "ring, 4 rings", "dense", "SRE-Conv", "GMR-Conv", "escnn", "plain 3")
    lines = [[_shape(row), str(row["kernel"]), *(_ms(row["times"], name) for name in names)] for row in rows]
    text = markdown(["shape", "k", *names], lines)
    for shape in dict.fromkeys(_shape(row) for row in rows):
        same = [row for row in rows if _shape(row) == shape]
        first, last = same[0], same[-1]
        grown = [last["times"][name]["ms"] / first["times"][name]["ms"] for name in ("ring", "dense")]
        text += (
            f"\nFrom k = {first['kernel']} to {last['kernel']} at {shape}, ring grows {grown[0]:.1f} times (target at most "
            f"2.5), dense {grown[1]:.1f} times.\n"
        )
    return text


def choice_table(rows: Rows, threads: int) -> str:
    """The quartiles of dense / ring, and what ``auto`` loses."""
    values = sorted(row["times"]["dense"]["ms"] / row["times"]["ring"]["ms"] for row in rows)
    marks = [values[round(share * (len(values) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    quartiles = ", ".join(f"{mark:.2f}" for mark in marks)
    return f"Dense / ring from least to most, by quartiles: {quartiles}. {describe(rows, losses(rows, threads))}\n"


def energy_table(rows: Rows, _: int) -> str:
    """Layers of harmonics, and how many times faster the compiled energies make them."""
    lines = []
    for row in rows:
        times = row["times"]
        spread = [f"{times[name]['ms']:.1f} ({times[name]['iqr_ms']:.1f})" for name in ("compiled", "convolutions")]
        lines.append([_shape(row), str(row["kernel"]), *spread, _number(ratio(times, "convolutions", "compiled"))])
    head = ["shape (N, C, size)", "k", "compiled ms (IQR)", "torch's convolutions ms (IQR)", "times faster"]
    return markdown(head, lines)


def audit_table(rows: Rows, _: int) -> str:
    """Counts of a training step in ratio to the plain network's, each with its goal, and the plain network's own."""
    units = {
        "flops": ("GFLOP", 1e9),
        "kept": ("kept MiB", 2**20),
        "operations": ("operations", 1),
        "moved": ("moved MiB", 2**20),
    }
    head = ["network", "input", "computed by", *(f"{name} (goal)" for name in units), "reached"]
    head += [f"plain: {unit}" for unit, _ in units.values()]
    lines = []
    for row in rows:
        plain = row["counts"]["plain 3"]
        amounts = [f"{plain[name] / size:.0f}" for name, (_, size) in units.items()]
        for kind, words in (("ours", "torch"), ("kernels", "kernels")):
            found = [(row["counts"][kind][name] / plain[name], row["goals"][name]) for name in units]
            lines.append([row["network"], _shape(row), words, *_against_goals(found), *amounts])
    return (
        "Counted on torch's meta device, see `benchmarks/audit.py`: in torch's operations, and with the kernels for GPUs, "
        "not yet run on one. Nothing is fused beyond these kernels: what is written out and read again counts as "
        "moved. The plain U-Net is DynUNet, with batch norms as in ours, or with instance norms.\n\n"
    ) + markdown(head, lines)


def export_table(rows: Rows, _: int) -> str:
    """Inference on one image, in ms and in ratio to the plain network in the same form."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    head = ["input", "width", "network", *(cell for form in forms for cell in (f"{form} ms (IQR)", "x plain (goal)"))]
    lines = []
    for shape in dict.fromkeys(_shape(row) for row in rows):
        same = {row["form"]: row for row in rows if _shape(row) == shape}
        first = next(iter(same.values()))
        for name in first["times"]:
            cells = []
            for form in forms:
                times, goals = (same[form][key] if form in same else {} for key in ("times", "goals"))
                goal = f" ({goals[name]:g})" if name in goals else ""
                cells += [_spread(times, name), _number(ratio(times, name, "plain 3")) + goal]
            lines.append([shape, str(first["width"]), name, *cells])
    return (
        "`onnx`: ONNX Runtime after `fold_sre`; `script`: TorchScript after it, frozen; `bundle`: the same of the network as "
        "it is, what MONAI's commands `onnx_export` and `ckpt_export` make. Each beside the plain network in that form.\n\n"
    ) + markdown(head, lines)


def compile_table(rows: Rows, _: int) -> str:
    """Steps, compile times and graphs under ``torch.compile``."""
    head = [
        "network",
        "eager ms (IQR)",
        "x plain",
        "compiled ms (IQR)",
        "x plain compiled (goal)",
        "compile time s (least to most)",
    ]
    head += ["x plain (goal)", "reached", "graphs for batches of 16, 24, 20", "the same, batch marked", "breaks"]
    lines = []
    for row in rows:
        times, seconds, graphs = row["times"], row["compile"], row["graphs"]
        for name in seconds:
            step, longer = ratio(times, f"{name}, compiled", "plain 3, compiled"), ratio(seconds, name, "plain 3", "s")
            goals = row["goals"].get(name) if name != "plain 3" else (1.0, 1.0)
            first, second, reached = _against_goals([(step, goals[0]), (longer, goals[1])])
            spread = (
                f"{seconds[name]['s']:.0f} ({min(seconds[name]['all_s']):.0f} to {max(seconds[name]['all_s']):.0f})"
            )
            eager = [_spread(times, name), _number(ratio(times, name, "plain 3"))]
            made = [", ".join(map(str, graphs[name][kind])) for kind in ("default", "marked")]
            compiled = _spread(times, f"{name}, compiled")
            lines.append([name, *eager, compiled, first, spread, second, reached, *made, str(graphs[name]["breaks"])])
    return markdown(head, lines)


def single_table(rows: Rows, _: int) -> str:
    """Microseconds of a call, and in ratio to plain kernels of 3."""
    names = ("auto", "ring", "dense", "energies")
    head = [
        "shape (N, C, size)",
        "k",
        "plain 3 us (IQR)",
        *(cell for name in names for cell in (f"{name} us (IQR)", "x plain")),
    ]
    lines = []
    for row in rows:
        times = row["times"]
        cells = [cell for name in names for cell in (_spread(times, name, 1e3), _number(ratio(times, name, "plain 3")))]
        lines.append([_shape(row), str(row["kernel"]), _spread(times, "plain 3", 1e3), *cells])
    return markdown(head, lines)


def _against_goals(found: list[tuple[float | None, float]]) -> list[str]:
    """Ratios, each with the most that it should be, and whether they are."""
    reached = ["-" if value is None else "yes" if value <= goal else "no" for value, goal in found]
    return [f"{_number(value)} ({goal:g})" for value, goal in found] + [", ".join(reached)]


def draw_growth(rows: Rows, path: Path) -> None:
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


def _shape(row: dict[str, Any]) -> str:
    return ", ".join(map(str, row["shape"])) + (", inference" if row.get("inference") else "")


def _spread(times: dict[str, dict[str, float]], name: str, factor: float = 1.0) -> str:
    if name not in times:
        return "-"
    median, spread = (times[name][key] * factor for key in ("ms", "iqr_ms"))
    digits = 0 if median >= 100 else 1
    return f"{median:.{digits}f} ({spread:.{digits}f})"


def _ms(times: dict[str, dict[str, float]], name: str) -> str:
    return f"{times[name]['ms']:.1f}" if name in times else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


_TABLES: dict[str, tuple[str, Callable[[Rows, int], str]]] = {
    "layers": ("Targets of layers", layer_table),
    "growth": ("Growth with the kernel", growth_table),
    "choice": ("Dense or ring", choice_table),
    "energies": ("Layers of harmonics with compiled energies", energy_table),
    "networks": ("Training steps of whole networks", network_table),
    "memory": ("Peak memory of a training step", memory_table),
    "audit": ("A training step on any device, counted, in ratio to plain kernels of 3", audit_table),
    "export": ("Inference on one image, exported", export_table),
    "compile": ("Training under torch.compile", compile_table),
    "single": ("Inference on one image, layer by layer", single_table),
}
