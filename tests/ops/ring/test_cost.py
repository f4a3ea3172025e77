"""The choice between the algorithms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_sre.layers import SREConv2d
from monai_sre.ops import radial_basis
from monai_sre.ops.ring.cost import choose_algorithm, estimate, operation_counts, prefers_rings
from monai_sre.ops.ring.cpu import compiled_for

#: Times of both algorithms, which the constants of the model were fitted to.
MEASURED = Path(__file__).parents[3] / "benchmarks" / "results" / "speed_choice_cpu.json"


def choose(shape: tuple[int, ...], out_channels: int, kernel: int, **options: Any) -> str:
    ndim = len(shape) - 2
    basis = radial_basis((kernel,) * ndim)
    x = torch.empty(shape, device="meta", dtype=options.pop("dtype", torch.float32))
    x = torch.empty_like(x, device=options.pop("device", "cpu"))
    weight = torch.empty(out_channels, shape[1], len(basis))
    return choose_algorithm(x, weight, basis, (1,) * ndim, (kernel // 2,) * ndim, (1,) * ndim, 1)


@pytest.mark.parametrize("shape", [(31, 24), (9,), (2, 3, 4, 31, 24)], ids=str)
def test_too_few_or_too_many_axes_are_said_by_torch(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"Expected 3D .* or 4D"):
        SREConv2d(3, 8, 9)(torch.zeros(shape))


def test_rows_whose_outcome_is_beyond_doubt() -> None:
    assert choose((32, 64, 32, 32), 64, 9) == "ring"
    assert choose((4, 64, 32, 32, 32), 64, 5) == "ring"
    assert choose((32, 64, 32, 32), 64, 1) == "dense"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_devices_by_counts(dtype: torch.dtype) -> None:
    """9 x 9, 64 channels: 5 rings for 81 taps, 10 values more moved. 3 x 3, 8 channels: 16 sums moved for 576 products."""
    assert choose((32, 64, 32, 32), 64, 9, device="meta", dtype=dtype) == "ring"
    assert choose((32, 8, 32, 32), 8, 3, device="meta", dtype=dtype) == "dense"


def test_half_precision_on_a_cpu() -> None:
    """torch's convolutions are a hundred times slower in float16 than in float32 there; the sums are float32."""
    assert choose((32, 64, 32, 32), 64, 5, dtype=torch.float16) == "ring"
    assert choose((32, 256, 4, 4), 256, 5, dtype=torch.bfloat16) == "ring"
    with torch.autocast("cpu", dtype=torch.float16):
        assert choose((32, 64, 32, 32), 64, 5) == "ring"


@pytest.mark.parametrize(
    ("channels", "kernel", "rings"),
    [((64, 64), 5, True), ((256, 256), 3, True), ((3, 32), 5, False), ((10, 10), 5, False)],
)
def test_exported_graphs(channels: tuple[int, int], kernel: int, rings: bool) -> None:
    """As measured with ONNX Runtime: ring / dense 0.23, 0.33, 1.15 and 1.43."""
    stencils = [(2 * ring + 1,) * 2 for ring in range(kernel // 2 + 1)]
    assert prefers_rings(*channels, stencils, (kernel, kernel)) == rings


def test_counts_of_one_layer() -> None:
    """16 to 16 channels, 3 x 3 band, 8 x 8 positions: 9 taps, 2 rings, 16 lanes."""
    basis = radial_basis((3, 3)).float()
    sizes = (1, 1), (1, 1), (1, 1)
    dense, ring = operation_counts(1, 16, 16, (1, 8, 8), basis, *sizes, False)
    assert dense == [1, 0, 64 * 9 * 16, 2 * 64 * 16, 9 * 16 * 16]
    terms = 3 * 2 + 6  # loads of two column sums, whose rows of 8 fill half a vector, and of two rings from these
    assert ring == [1, 0, 64 * 16 * terms / 16, 64 * 2 * 16, 2 * 64 * 16, 2 * 16 * 16]
    dense, _ = operation_counts(1, 16, 16, (1, 8, 8), basis, *sizes, (True, True))
    assert dense == [1, 1, 3 * 64 * 9 * 16, 3 * 2 * 64 * 16, 3 * 9 * 16 * 16]


def test_threads_share_all_but_the_calls() -> None:
    assert estimate((10.0, 20.0, 3.0), (1.0, 1.0, 8.0), threads=4) == 36.0


@pytest.fixture(scope="module")
def measured() -> Any:
    if not MEASURED.is_file():
        pytest.skip("the measurements are not part of this checkout")
    return json.loads(MEASURED.read_text())


def losses(measured: Any) -> list[tuple[float, float]]:
    """For each measured shape, the ms of the faster algorithm, and how many times more the chosen one takes."""
    found = []
    for row in measured["rows"]:
        ndim = len(row["shape"]) - 2
        basis = radial_basis((row["kernel"],) * ndim, profile=row["profile"]).float()
        training, ones, padding = not row["inference"], [1] * ndim, [row["kernel"] // 2] * ndim
        x = torch.empty(row["shape"]).requires_grad_(training)
        weight = torch.empty(row["out_channels"], row["shape"][1], len(basis)).requires_grad_(training)
        chosen = choose_algorithm(x, weight, basis, ones, padding, ones, 1)
        times = {name: row["times"][name]["ms"] for name in ("dense", "ring")}
        found.append((min(times.values()), times[chosen] / min(times.values())))
    return found


@pytest.mark.skipif(not compiled_for(torch.float32), reason="the measurements are those of the compiled sums")
def test_the_choice_costs_little_on_the_measured_shapes(measured: Any) -> None:
    """At most 10 % on every shape that takes a millisecond or more, and little on the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(measured["machine"]["threads"])
    try:
        lost = losses(measured)
    finally:
        torch.set_num_threads(threads)
    slow = [loss for ms, loss in lost if ms >= 1]
    assert len(slow) > 60
    assert max(slow) <= 1.1
    assert sum(loss > 1.1 for _, loss in lost) <= 0.05 * len(lost)
    assert max(loss for _, loss in lost) < 2
