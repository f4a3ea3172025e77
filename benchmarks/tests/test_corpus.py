"""The tables of networks that people use, and of what a pretrained one is worth."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import corpus, pretrained
from benchmarks.corpus import Network, alone, reasons
from benchmarks.tables import RESULTS


def test_the_tables_are_those_of_the_rows() -> None:
    content = json.loads((RESULTS / "corpus.json").read_text())
    assert corpus.table(content) == (RESULTS / "corpus.md").read_text()
    for row in content["rows"]:
        assert row["state"] == ("exact" if row.get("error", 1.0) <= corpus.EXACT else row["state"])
        assert row["state"] == "exact" or row["why"]


@pytest.mark.parametrize(
    ("layers", "state"),
    [
        ([nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)], "exact"),
        ([nn.Conv2d(1, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)], "refused"),
        ([nn.Conv2d(1, 4, 3), nn.Linear(5, 2)], "refused"),
    ],
    ids=["exact", "flattened", "no size"],
)
def test_a_network_is_examined_in_a_process_of_its_own(layers: list[nn.Module], state: str) -> None:
    row = alone(Network("MONAI nothing", lambda: nn.Sequential(*layers)))
    assert row["state"] == state
    assert ("error" in row) == (state == "exact")
    assert state == "exact" or len(row["why"]) == 1


def test_a_process_that_ends_by_itself_is_a_failure() -> None:
    def build() -> nn.Module:
        raise SystemExit(3)

    assert "SystemExit: 3" in alone(Network("MONAI nothing", build))["why"][0]


def test_reasons_are_cut_short() -> None:
    message = (
        "cannot:\n  a (Conv): why (/x/lib/python3.11/site-packages/timm/layers/pool.py:7)\nThe network is as it was."
    )
    assert reasons(message) == ["a (Conv): why (timm/layers/pool.py:7)"]
    assert reasons("one line") == ["one line"]


def test_arms_have_one_architecture_and_start_as_they_say() -> None:
    torch.manual_seed(0)
    plain = pretrained.plain_network()
    made = {name: pretrained.make(arm, plain, 0) for name, arm in pretrained.ARMS.items()}
    shapes = {name: [tuple(p.shape) for p in network.parameters()] for name, network in made.items()}
    alike = [name for name in made if name not in ("plain", "converted-radial")]
    assert all(shapes[name] == shapes["converted"] for name in alike)
    first = {name: dict(network.named_parameters()) for name, network in made.items()}
    weight, mix = "conv1.radial.weight", "conv1.mix.weight"
    assert torch.equal(first["converted"][weight][:12], first["converted-unseeing"][weight][:12])
    assert not torch.equal(first["converted"][weight], first["converted-unseeing"][weight])
    assert not first["converted"][mix].any()
    assert bool(first["scratch"][mix].any())
    x = torch.randn(2, 1, 28, 28)
    turned = pretrained.teacher_of(plain)(x.rot90(1, (2, 3)))
    torch.testing.assert_close(turned, pretrained.teacher_of(plain)(x))


def test_the_table_of_pretrained_networks_is_that_of_its_cells() -> None:
    cells = json.loads((RESULTS / "pretrained.json").read_text())["cells"]
    assert pretrained.table(cells) == (RESULTS / "pretrained.md").read_text()
    assert {key.split()[0] for key in cells} == pretrained.ARMS.keys()
