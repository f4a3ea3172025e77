"""Fixtures of the ring algorithm's tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_sre.ops.ring import cpu as ring_cpu


@pytest.fixture(params=["compiled", "eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled sums and with the fallback."""
    if request.param == "eager":
        monkeypatch.setattr(ring_cpu.LIBRARY, "libraries", dict.fromkeys((torch.float64, torch.float32)))
    elif not ring_cpu.available(torch.float32):
        pytest.skip("no C compiler here")
    return str(request.param)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, Any]:
    """As in a process that has not compiled anything yet."""
    libraries: dict[torch.dtype, Any] = {}
    monkeypatch.setattr(ring_cpu.LIBRARY, "libraries", libraries)
    return libraries
