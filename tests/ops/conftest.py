"""Fixtures of the tests of compiled code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_sre.ops.ring import cpu as ring_cpu


@pytest.fixture(params=["compiled", "eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled sums and with the fallback."""
    if request.param == "eager":
        monkeypatch.setattr(ring_cpu.LIBRARY, "libraries", dict.fromkeys((torch.float64, torch.float32)))
    elif not ring_cpu.compiled_for(torch.float32):
        pytest.skip("no C compiler here")
    return str(request.param)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, Any]:
    """As in a process that has not compiled anything yet."""
    libraries: dict[torch.dtype, Any] = {}
    monkeypatch.setattr(ring_cpu.LIBRARY, "libraries", libraries)
    return libraries


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes the compiler take one more option and keep what it makes in a new folder, which is returned."""

    def use(option: str) -> Path:
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
        if compiler is None:
            pytest.skip("no C compiler here")
        script, cache = tmp_path / "cc", tmp_path / "cache"
        script.write_text(f'#!/bin/sh\nexec {compiler} "$@" {option}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
        monkeypatch.setenv("MONAI_SRE_CACHE", str(cache))
        return cache

    return use
