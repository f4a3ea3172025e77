"""The benchmark for GPUs, run to its end without one, and the bounds of compiled kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import Results, wrong
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_tables import RING_COUNTS, dense_counts, fit, render, ring_counts
from benchmarks.kernel_bounds import CASES, MODES, OPERATIONS, bounds
from benchmarks.kernel_bounds import render as render_bounds
from benchmarks.tables import RESULTS
from monai_sre.ops.ring import gpu

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str, interpret: str = "0") -> None:
    """A command in a process of its own: Triton reads whether it interprets as it is imported."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": interpret}, check=True)


@needs_triton
def test_a_tiny_run_measures_every_part(tmp_path: Path) -> None:
    run("-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path))
    data = json.loads((tmp_path / "gpu_tiny.json").read_text())
    assert list(data["parts"]) == list(PARTS)
    for part, rows in data["parts"].items():
        assert rows, part
        failed = {name: row for name, row in rows.items() if "error" in row or "failed" in row}
        assert not failed, failed
    assert wrong(data["parts"]["correctness"]) == []
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("### ") == len(PARTS)
    for table in page.split("### ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("| ")]
        assert len(lines) >= 3, table
        assert len({line.count("|") for line in lines}) == 1, table


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, about = tmp_path / "gpu_some.json", {"gpu": "some", "torch": "2", "triton": "3", "kernels": "a"}
    first = Results(path, about, again=False)
    first.row("layers", "good", lambda: {"ms": 1.0})
    first.row("layers", "bad", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert json.loads(path.read_text())["parts"]["layers"]["bad"] == {
        "error": "ZeroDivisionError: integer division or modulo by zero"
    }
    again = Results(path, about, again=False)
    assert again.row("layers", "good", lambda: {"ms": 2.0}) == {"ms": 1.0}
    assert again.row("layers", "bad", lambda: {"ms": 3.0}) == {"ms": 3.0}
    with pytest.raises(SystemExit, match="another kernels"):
        Results(path, about | {"kernels": "b"}, again=False)
    assert Results(path, about | {"kernels": "b"}, again=True).data["parts"] == {}


def test_what_is_not_right_is_named() -> None:
    rows = {
        "1, 3, float32, stride 1": {"errors": {"values": float("nan"), "by input": 9e-6}},
        "1, 3, bfloat16, energies": {"errors": {"values": 1e-2}},
        "logits, 2-D, float32": {"error": "RuntimeError: no"},
    }
    assert wrong(rows) == ["1, 3, float32, stride 1: values differs by nan", "logits, 2-D, float32: RuntimeError: no"]


def test_auto_takes_the_kernels_where_they_were_measured() -> None:
    """The capabilities that the package lists are those of the committed files whose kernels are right."""
    measured = set()
    for path in RESULTS.glob("gpu_*.json"):
        data = json.loads(path.read_text())
        if data["parts"].get("layers") and not wrong(data["parts"].get("correctness", {})):
            measured.add(tuple(data["machine"]["capability"]))
    assert set(gpu.MEASURED) == measured


def test_constants_that_times_were_made_of_are_found() -> None:
    """Times that are sums of counts times constants give these constants back."""
    dense, ring = (3e4, 5e4, 0.02, 0.001), (2e4, 6e4, 0.02, 0.002, 0.004)
    rows: dict[str, Any] = {}
    for batch in (1, 8, 64):
        for channels in (4, 32, 128):
            for kernel in (3, 5, 9):
                for inference in (False, True):
                    row: dict[str, Any] = {"shape": [batch, channels, 16, 16], "out_channels": 2 * channels}
                    row |= {"kernel": kernel, "profile": "band", "inference": inference, "mode": "float32"}
                    times = {
                        name: {"ms": sum(a * b for a, b in zip(counts(row), constants, strict=True)) / 1e6}
                        for name, counts, constants in (("dense", dense_counts, dense), ("Triton", ring_counts, ring))
                    }
                    rows[str(len(rows))] = row | {"times": times}
    found = fit(rows)["float32"]
    assert (found["rows"], found["wrong"]) == (len(rows), 0)
    for name, constants in (("dense", dense), ("Triton", ring)):
        for count, constant in zip(RING_COUNTS, constants, strict=False):
            assert found["ns"][name][count] == pytest.approx(constant, rel=0.02), (name, count)


@needs_triton
def test_a_kernel_is_compiled_without_a_device(tmp_path: Path) -> None:
    """One launch for an H100: its resources are within those of a block there, and its bounds those of its sizes."""
    place = next(index for index, case in enumerate(CASES) if case.shape == (128, 64, 16, 16) and case.kernel == 5)
    code = f"""
import json
from benchmarks.kernel_bounds import CASES, Launches, bound_of
print(json.dumps(bound_of(CASES[{place}], "bfloat16", "by input", Launches(90))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    row = json.loads(done.stdout.splitlines()[-1])
    table, launch = row["launches"]
    assert (table["kernel"], launch["kernel"]) == ("tables", "ring_conv")
    assert 16 <= launch["registers"] <= 255
    assert launch["shared"] <= 227 << 10
    assert 0 < launch["occupancy"] <= 1
    values, places, positions = (
        128 * 64 * 16 * 16,
        6 * 16,
        2 * 16,
    )  # 32 positions of a tile that is as wide as the image
    assert launch["constants"]["WINDOW"] == [1, 6, 16]
    assert row["us"]["products"] == pytest.approx(values * 3 * (places + 64) / 495e12 * 1e6)
    wide = 3 * places * positions + 3 * 64 * 64  # a table and weights, two values of bfloat16 at once
    loads = values / (64 * positions) * (64 * places + wide / 2) + 3 * places * positions
    assert row["us"]["loads"] == pytest.approx(loads / 8.37e12 * 1e6)
    least = 2 * 2 * values / 3.35e12 * 1e6
    assert least < row["us"]["memory"] < 1.1 * least
    assert row["plain_us"]["products"] == pytest.approx(values * 64 * 9 / 495e12 * 1e6)
    (tmp_path / "kernel_bounds.json").write_text(json.dumps({"triton": "3", "kernels": "a", "rows": {"90": [row]}}))
    render_bounds(tmp_path / "kernel_bounds.json")
    assert "by input" in (tmp_path / "kernel_bounds.md").read_text()


def test_the_committed_bounds_are_whole() -> None:
    """Every case, precision and operation of an architecture in the file; no kernel spills registers."""
    path = RESULTS / "kernel_bounds.json"
    data = json.loads(path.read_text())
    for sm, rows in data["rows"].items():
        found = {(tuple(row["shape"]), row["kernel"], row["mode"], row["operation"]) for row in rows}
        assert len(found) == len(rows), sm
        shapes = {(shape, kernel) for shape, kernel, _, _ in found}
        assert shapes <= {(case.shape, case.kernel) for case in CASES}, sm
        assert found == {(*shape, mode, name) for shape in shapes for mode in MODES for name in OPERATIONS}, sm
        assert not any(launch["spilled"] for row in rows for launch in row["launches"]), sm


def test_products_without_tf32_are_three_of_tf32_or_on_the_lanes() -> None:
    from benchmarks.kernel_bounds import ARCHITECTURES

    counts = {"bytes": 0.0, "loads": 0.0, "products": 24.7e6, "torch": 33.5e6}
    assert bounds(ARCHITECTURES[90], "float32", counts)["products"] == pytest.approx(0.3 + 1)
    assert bounds(ARCHITECTURES[90], "float32, TF32", counts)["products"] == pytest.approx(0.1 + 33.5 / 247)
    assert bounds(ARCHITECTURES[90], "bfloat16", counts)["products"] == pytest.approx((24.7 + 33.5) / 495)


def test_a_page_is_made_of_what_is_there(tmp_path: Path) -> None:
    machine = {"gpu": "some GPU", "kernels": "a", "torch": "2"}
    rows = {"a, bfloat16": {"times": {"Triton": {"ms": 2.0, "iqr_ms": 0.1}, "plain 3": {"ms": 4.0, "iqr_ms": 0.1}}}}
    parts = {"layers": {name: row | {"peak_mib": {}} for name, row in rows.items()} | {"b": {"error": "no"}}}
    (tmp_path / "gpu_some.json").write_text(json.dumps({"machine": machine, "parts": parts}))
    render(tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    assert "| a, bfloat16 | 2 (0.1) | - | 0.50 |" in page
    assert "`b` failed: no" in page
