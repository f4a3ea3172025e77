"""The table of converted networks."""

from __future__ import annotations

import json

from benchmarks.conversion import table
from benchmarks.tables import RESULTS
from tests.nets.networks import ARCHITECTURES


def test_the_table_holds_every_network_that_the_converter_is_tested_on() -> None:
    rows = json.loads((RESULTS / "conversion.json").read_text())["rows"]
    measured = {(row["network"], row["spatial_dims"]): row["sizes"] for row in rows}
    assert measured == {(each.name, d): [*map(list, each.sizes[d])] for each in ARCHITECTURES for d in each.sizes}
    assert table(rows) == (RESULTS / "conversion.md").read_text()
