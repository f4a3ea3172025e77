"""The benchmark of scale takes networks and windows from the bundle's configs, which may change under it."""

from __future__ import annotations

import pytest

from benchmarks.scale import CANDIDATES, ROWS, Row, build, whole_pass
from monai_sre.evaluation.windows import CentredWindowInferer


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_runs_in_the_windows_of_the_bundle(name: str, ndim: int) -> None:
    network, inferer = build(ndim, name)
    assert isinstance(inferer, CentredWindowInferer)
    assert max(row.size for row in ROWS if row.ndim == ndim) > 2 * inferer.roi_size[0]
    whole_pass(Row(ndim, 16).input(), network, inferer)()
