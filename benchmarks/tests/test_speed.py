"""The counts of the audit, and quick runs of the suites whose tables README.md rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.audit import Operations, audit
from benchmarks.speed import SUITES
from benchmarks.speed_tables import render
from benchmarks.timing import Effort, machine


def test_bytes_that_operations_move() -> None:
    image, weight = torch.ones(5, 2, 4, 4), torch.ones(2, 2, 3, 3)
    with Operations() as operations:
        maps = torch.nn.functional.conv2d(image, weight, padding=1)  # 160 and 36 values read, 160 written
        maps.relu_()  # in place: 160 read and written
        means = maps.flatten(2).expand(1, 5, 2, 16).squeeze(0).mean(dim=2)  # views cost nothing: 160 read, 10 written
        means + torch.empty(1).expand(10).view(5, 2)  # 10 and the one of the expanded tensor read, 10 written
    assert operations.count == 4
    assert operations.moved == 4 * ((160 + 36 + 160) + 2 * 160 + (160 + 10) + (10 + 1 + 10))


def test_bytes_that_gradients_of_a_convolution_move() -> None:
    grad, image, weight = torch.ones(5, 2, 4, 4), torch.ones(5, 2, 4, 4), torch.ones(2, 2, 3, 3)
    for wanted, values in (
        ((True, False), 160 + 36 + 160),
        ((False, True), 160 + 160 + 36),
        ((True, True), 3 * 160 + 2 * 36),
    ):
        with Operations() as operations:
            torch.ops.aten.convolution_backward(
                grad, image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
            )
        assert operations.moved == 4 * values


def test_an_audit_of_one_convolution() -> None:
    """A batch of 5 images of 4 x 4: 160 values in each map, 10 logits."""
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = audit(network, (5, 2, 4, 4))
    assert found["flops"] == 2 * (2 * 80 * 2 * 2 * 9)  # forward and by the weights; the input needs no gradient
    assert (
        found["kept"] == 160 * 4 + 10 * 4 + 5 * 8 + 4
    )  # the input; of the loss its own output, classes and their weight


def test_what_is_no_operation_of_torch_is_not_passed_over() -> None:
    @torch.library.custom_op("benchmarks_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(lambda x: torch.empty_like(x))

    class Opaque(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(twice(x))

    with pytest.raises(NotImplementedError, match="twice"):
        audit(Opaque(3, 2), (5, 3))


@pytest.mark.parametrize("name", ["audit", "export", "single", pytest.param("compile", marks=pytest.mark.slow)])
def test_a_quick_run_fills_a_table(name: str, tmp_path: Path) -> None:
    if name == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    rows = SUITES[name](Effort(0.0, quick=True, clock="cpu"))
    (tmp_path / f"speed_{name}.json").write_text(json.dumps({"suite": name, "machine": machine("cpu"), "rows": rows}))
    render(tmp_path)
    _, *table = (line for line in (tmp_path / "speed.md").read_text().splitlines() if line.startswith("| "))
    assert len(table) >= 2, table
    assert len({line.count("|") for line in table}) == 1, table
