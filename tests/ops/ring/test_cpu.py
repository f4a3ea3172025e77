"""The compiled backend: vector units, threads, and what runs without a compiler."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monai_sre.ops import radial_basis, sre_conv
from monai_sre.ops.ring import cpu as ring_cpu
from monai_sre.ops.ring.convolution import ring_conv
from tests.ops.ring.rings import BASES, DTYPES, SETTINGS, SIZES, check, dense, error, fitted, gradients


def test_no_compiler(
    unloaded: dict[torch.dtype, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    x, weight, basis = torch.randn(1, 2, 9, 9), torch.randn(2, 2, 3), BASES["band2"]
    with caplog.at_level(logging.WARNING, logger="monai_sre"):
        for _ in range(3):
            y = ring_conv(x, weight, basis, None, (1, 1), (2, 2), (1, 1))
    assert error(y, dense(x, weight, basis.float(), None, 1, 2)) < 1e-5
    assert [record.message for record in caplog.records if "no C compiler" in record.message] == [
        "ring sums run uncompiled, several times slower: no C compiler (CC, cc, gcc or clang) was found"
    ]


@pytest.mark.skipif(not ring_cpu.compiled_for(torch.float32), reason="needs a C compiler")
def test_long_stride() -> None:
    """A tile of a million input rows: their addresses would not fit on the stack."""
    x, weight, basis = torch.randn(1, 1, 2**20), torch.randn(3, 1, 2), radial_basis((3,))
    y = ring_conv(x, weight, basis, None, (16,), (1,), (1,))
    assert error(y, dense(x, weight, basis.float(), None, 16, 1)) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not ring_cpu.compiled_for(torch.float32), reason="needs a C compiler for x86-64"
)
@pytest.mark.parametrize(("option", "vector_bytes"), [("-mno-avx512f", 32), ("-mno-avx", 16)])
def test_other_vector_units(
    option: str, vector_bytes: int, unloaded: dict[torch.dtype, Any], compile_with: Callable[[str], Path]
) -> None:
    """Values and gradients of the builds for processors without AVX-512, and without AVX."""
    compile_with(option)
    for dtype in DTYPES:
        library = ring_cpu.LIBRARY.get(dtype)
        assert library is not None
        assert library.ring_lanes() * dtype.itemsize == vector_bytes
        for basis in BASES.values():
            size = SIZES[basis.dim() - 1][-1]
            for sizes in filter(None, (fitted(basis, size, setting) for setting in SETTINGS)):
                check(basis, size, sizes, dtype, (4, 8))
        for profile in ("band", "gaussian"):  # wider than the registers that a product holds
            check(radial_basis((5, 5), profile=profile), (16, 16), ((1, 1), (2, 2), (1, 1), 1), dtype, (40, 130))


def test_threads_do_not_disturb_each_other(backend: str) -> None:
    """Four threads with other sizes each: scratch memory belongs to a thread."""
    problems = []
    for index in range(4):
        basis = radial_basis((5, 5) if index % 2 else (3, 3, 3), profile="gaussian")
        ndim = basis.dim() - 1
        sizes = (1,) * ndim, (2,) * ndim, (1,) * ndim
        x, weight = torch.randn(2, 3 + index, *(9 + index,) * ndim), torch.randn(6, 3 + index, len(basis))
        problems.append((x, weight, basis, sizes, dense(x, weight, basis.float(), None, *sizes)))
    errors = []

    def work(x: Tensor, weight: Tensor, basis: Tensor, sizes: tuple[Any, ...], exact: Tensor) -> None:
        for _ in range(30):
            errors.append(error(ring_conv(x, weight, basis, None, *sizes), exact))

    threads = [threading.Thread(target=work, args=problem) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 120
    assert max(errors) < 1e-5


def test_inference_mode_leaves_no_traces() -> None:
    """Reused memory that was first made under inference mode must serve training afterwards."""
    basis, sizes = radial_basis((7, 7)), ((1, 1), (3, 3), (1, 1))
    x, weight = torch.randn(1, 3, 40, 40), torch.randn(2, 3, 4)

    def work() -> None:
        with torch.inference_mode():
            ring_conv(x, weight, basis, None, *sizes)
        results.append(
            gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), torch.ones(1, 2, 40, 40), x, weight)
        )

    results: list[list[Tensor]] = []
    thread = threading.Thread(target=work)  # a new thread has no memory yet
    thread.start()
    thread.join()
    assert error(results[0][0], dense(x, weight, basis.float(), None, *sizes)) < 1e-5


@pytest.mark.parametrize("size", [(4, 5), (3, 3), (2, 2, 2)])
def test_a_small_map_with_more_threads_than_images(size: tuple[int, ...]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x, basis = torch.randn(1, 8, *size), radial_basis((3,) * len(size)).float()
        weight = torch.randn(8, 8, 2)
        dense, ring = (sre_conv(x, weight, basis, padding=1, algorithm=name) for name in ("dense", "ring"))
        torch.testing.assert_close(ring, dense, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)
