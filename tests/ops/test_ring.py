"""The ring algorithm against a slow reference that shifts and adds, and against torch's own convolutions."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from monai_sre.ops import radial_basis, ring_cpu, sre_conv
from monai_sre.ops.cost import choose_algorithm
from monai_sre.ops.ring import ring_available, ring_conv
from monai_sre.ops.ring_plan import convolution_geometry, plans, sum_matrix

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}
CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


@pytest.fixture(params=["compiled", "eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled sums and with the fallback."""
    if request.param == "eager":
        monkeypatch.setattr(ring_cpu, "_libraries", dict.fromkeys(DTYPES))
    elif not ring_cpu.available(torch.float32):
        pytest.skip("no C compiler here")
    return str(request.param)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, Any]:
    """As in a process that has not compiled anything yet."""
    libraries: dict[torch.dtype, Any] = {}
    monkeypatch.setattr(ring_cpu, "_libraries", libraries)
    return libraries


def slow_reference(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """One tap after the other: shift the padded input, weigh, add. No groups, no bias."""
    kernel = torch.einsum("oir,r...->oi...", weight, basis)
    padded = functional.pad(x, [amount for side in reversed(padding) for amount in (side, side)])
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded.shape[2:], dilation, basis.shape[1:], stride, strict=True)
    ]
    y = x.new_zeros(x.shape[0], weight.shape[0], *size)
    for tap in itertools.product(*(range(k) for k in basis.shape[1:])):
        window = padded
        for axis, (t, d, s, n) in enumerate(zip(tap, dilation, stride, size, strict=True)):
            window = window.narrow(axis + 2, t * d, (n - 1) * s + 1)[
                (slice(None),) * (axis + 2) + (slice(None, None, s),)
            ]
        y = y + torch.einsum("oi,ni...->no...", kernel[(..., *tap)], window)
    return y


def dense(x: Tensor, weight: Tensor, basis: Tensor, bias: Tensor | None = None, *sizes: Any) -> Tensor:
    kernel = torch.einsum("oir,r...->oi...", weight, basis)
    return CONVOLUTIONS[basis.dim() - 2](x, kernel, bias, *sizes)


def error(value: Tensor, reference: Tensor) -> float:
    """Relative error in the norm; 0 for two zeros."""
    assert value.shape == reference.shape
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm().clamp(min=1e-30))


def gradients(function: Callable[..., Tensor], grad: Tensor, *operands: Tensor) -> list[Tensor]:
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, grad)]


def random_basis(rings: int, kernel: tuple[int, ...]) -> Tensor:
    """No symmetry, no repetition: what nothing in the plan may rely on."""
    return torch.randn(rings, *kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


BASES = {
    "band2": radial_basis((5, 5)),
    "band2-9": radial_basis((9, 9)),
    "gaussian2": radial_basis((7, 7), profile="gaussian"),
    "linear-unequal": radial_basis((3, 7), profile="linear", spacing=(2.0, 1.0)),
    "orthonormal2": radial_basis((5, 5), orthonormal=True),
    "orthonormal-gaussian2": radial_basis((5, 5), profile="gaussian", orthonormal=True),
    "band1": radial_basis((5,)),
    "band3": radial_basis((3, 3, 3)),
    "gaussian3": radial_basis((3, 5, 5), profile="gaussian", spacing=(2.0, 1.0, 1.0)),
    "axes3": radial_basis((3, 3, 3), axes=(1, 2)),
    "flat3": radial_basis((1, 5, 5)),
    "random1": random_basis(2, (3,)),
    "random2": random_basis(2, (3, 4)),
    "random3": random_basis(3, (2, 3, 2)),
    "zero2": torch.zeros(2, 3, 3, dtype=torch.float64),
}
SIZES = {
    1: [(1,), (13,), (40,)],
    2: [(1, 1), (2, 5), (4, 4), (9, 20), (33, 17)],
    3: [(1, 2, 3), (5, 4, 7), (6, 18, 17)],
}
# stride, padding (-1: same), dilation, groups
SETTINGS = [(1, -1, 1, 1), (1, 0, 1, 1), (1, 3, 2, 2), (2, -1, 1, 1), (3, 7, 2, 1), (1, 9, 1, 4)]


def fitted(basis: Tensor, size: tuple[int, ...], setting: tuple[int, int, int, int]) -> tuple[Any, ...] | None:
    """Stride, padding and dilation of every axis and the groups, or None where the kernel does not fit."""
    stride, padding, dilation, groups = setting
    kernel = basis.shape[1:]
    pads = tuple(dilation * (k - 1) // 2 if padding < 0 else padding for k in kernel)
    if any(n + 2 * p < dilation * (k - 1) + 1 for n, p, k in zip(size, pads, kernel, strict=True)):
        return None
    return (stride,) * len(size), pads, (dilation,) * len(size), groups


def cases() -> Iterator[Any]:
    for name, basis in BASES.items():
        for size in SIZES[basis.dim() - 1]:
            for setting in SETTINGS:
                if fitted(basis, size, setting) is None:
                    continue
                yield pytest.param(basis, size, setting, id=f"{name}-{'x'.join(map(str, size))}-{setting}")


def check(
    basis: Tensor, size: tuple[int, ...], sizes: tuple[Any, ...], dtype: torch.dtype, channels: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels[0], *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels[1], channels[0] // sizes[3], len(basis), dtype=torch.float64, generator=generator)
    bias = torch.randn(channels[1], dtype=torch.float64, generator=generator)
    grad = torch.randn(dense(x, weight, basis, bias, *sizes).shape, dtype=torch.float64, generator=generator)
    exact = gradients(lambda *leaves: dense(leaves[0], leaves[1], basis, leaves[2], *sizes), grad, x, weight, bias)
    operands = [operand.to(dtype) for operand in (x, weight, bias)]
    ours = gradients(
        lambda *leaves: ring_conv(leaves[0], leaves[1], basis, leaves[2], *sizes), grad.to(dtype), *operands
    )
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == dtype
        assert error(value, reference) < DTYPES[dtype]


@pytest.mark.parametrize(("basis", "size", "setting"), list(cases()))
def test_values_and_gradients(basis: Tensor, size: tuple[int, ...], setting: tuple[int, int, int, int]) -> None:
    sizes = fitted(basis, size, setting)
    assert sizes is not None
    for dtype in DTYPES:
        check(basis, size, sizes, dtype, (4, 8))


@pytest.mark.parametrize("name", BASES)
def test_eager_values_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_cpu, "_libraries", dict.fromkeys(DTYPES))
    basis = BASES[name]
    for setting in SETTINGS:
        size = SIZES[basis.dim() - 1][-1]
        sizes = fitted(basis, size, setting)
        if sizes is not None:
            check(basis, size, sizes, torch.float32, (4, 8))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["band2", "gaussian2", "band3", "random2", "band1"])
def test_slow_reference(name: str, stride: int, backend: str) -> None:
    basis = BASES[name]
    ndim = basis.dim() - 1
    sizes = (stride,) * ndim, tuple(range(2, 2 + ndim)), (1, 2, 1)[:ndim]
    x = torch.randn(2, 3, *(9, 8, 7)[:ndim], dtype=torch.float64)
    weight = torch.randn(5, 3, len(basis), dtype=torch.float64)
    assert error(ring_conv(x, weight, basis, None, *sizes), slow_reference(x, weight, basis, *sizes)) < 1e-13


@given(
    ndim=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    data=st.data(),
)
def test_any_shape(ndim: int, channels: tuple[int, int], data: st.DataObject) -> None:
    def draw(low: int, high: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(low, high)] * ndim))

    kernel, stride, padding, dilation = draw(1, 5), draw(1, 3), draw(0, 4), draw(1, 3)
    extra = draw(0, (40, 20, 9)[ndim - 1])
    size = tuple(
        max(1, d * (k - 1) + 1 - 2 * p) + e for d, k, p, e in zip(dilation, kernel, padding, extra, strict=True)
    )
    check(random_basis(2, kernel), size, (stride, padding, dilation, 1), torch.float32, channels)


@pytest.mark.parametrize(
    "shape", [(1, 32, 70, 65), (5, 64, 33, 31), (1, 40, 24, 20, 21), (2, 130, 16, 16), (40, 24, 4, 4)]
)
@pytest.mark.parametrize("profile", ["band", "gaussian"])
def test_several_tiles(shape: tuple[int, ...], profile: str, backend: str) -> None:
    """Sizes at which images, planes and rows are split into several tiles and products into several parts."""
    basis = radial_basis((5,) * (len(shape) - 2), profile=profile)
    ndim = basis.dim() - 1
    x, weight = torch.randn(shape), torch.randn(20, shape[1], len(basis))
    sizes = (1,) * ndim, (2,) * ndim, (1,) * ndim
    grad = torch.randn(shape[0], 20, *shape[2:])
    ours = gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), grad, x, weight)
    exact = gradients(lambda a, b: dense(a, b, basis, None, *sizes), *(t.double() for t in (grad, x, weight)))
    for value, reference in zip(ours, exact, strict=True):
        assert error(value, reference) < 1e-5


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("channels", [(3, 16), (16, 3)])
def test_one_gradient_only(wanted: tuple[bool, bool], channels: tuple[int, int], backend: str) -> None:
    basis, sizes = BASES["band2"], ((1, 1), (2, 2), (1, 1))
    x, weight = torch.randn(4, channels[0], 11, 9), torch.randn(channels[1], channels[0], 3)
    x.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    leaf = x if wanted[0] else weight
    grad = torch.randn(4, channels[1], 11, 9)
    (ours,) = torch.autograd.grad(ring_conv(x, weight, basis, None, *sizes), leaf, grad)
    (exact,) = torch.autograd.grad(dense(x, weight, basis.float(), None, *sizes), leaf, grad)
    assert error(ours, exact) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["band2", "gaussian3", "random2", "band1"])
def test_gradcheck(name: str, stride: int) -> None:
    basis = BASES[name]
    ndim = basis.dim() - 1
    sizes = (stride,) * ndim, (2,) * ndim, (1,) * ndim
    x = torch.randn(2, 2, *(4, 3, 5)[:ndim], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, len(basis), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ring_conv(x, weight, basis, bias, *sizes)

    assert torch.autograd.gradcheck(function, (x, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded", "unbatched"])
def test_memory_layouts(layout: str, backend: str) -> None:
    basis, sizes = BASES["gaussian2"], ((1, 1), (3, 3), (1, 1))
    x, weight = torch.randn(2, 6, 12, 10), torch.randn(5, 6, len(basis))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(2, 3)
    elif layout == "sliced":
        x, weight = torch.randn(2, 12, 24, 10)[:, ::2, 1::2], torch.randn(5, 12, 9)[:, ::2, 2 : 2 + len(basis)]
    elif layout == "expanded":
        x = torch.randn(2, 1, 12, 10).expand(2, 6, 12, 10)
    else:
        x = x[0]
    y = ring_conv(x, weight, basis, None, *sizes)
    assert error(y, dense(x, weight, basis.float(), None, *sizes)) < 1e-5
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    expanded = torch.ones(()).expand(y.shape)  # what y.sum().backward() sends
    ours = gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), expanded, x, weight)
    exact = gradients(lambda a, b: dense(a, b, basis.float(), None, *sizes), expanded, x, weight)
    assert error(ours[1], exact[1]) < 1e-5
    assert error(ours[2], exact[2]) < 1e-5


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(count: int, backend: str) -> None:
    basis, sizes = BASES["band2"], ((1, 1), (2, 2), (1, 1))
    x, weight, bias = torch.randn(count, 3, 7, 6), torch.randn(4, 3, 3), torch.randn(4)
    grad = torch.randn(count, 4, 7, 6)
    ours = gradients(lambda a, b, c: ring_conv(a, b, basis, c, *sizes), grad, x, weight, bias)
    exact = gradients(lambda a, b, c: dense(a, b, basis.float(), c, *sizes), grad, x, weight, bias)
    for value, reference in zip(ours, exact, strict=True):
        assert error(value, reference) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, backend: str) -> None:
    """Sums and products are float32: what remains is one rounding of each operand and of the result."""
    basis, sizes = BASES["gaussian2"], ((1, 1), (3, 3), (1, 1))
    x, weight, grad = torch.randn(2, 8, 12, 10).to(dtype), torch.randn(5, 8, 4).to(dtype), torch.randn(2, 5, 12, 10)
    ours = gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), grad.to(dtype), x, weight)
    exact = gradients(
        lambda a, b: dense(a, b, basis, None, *sizes), grad.to(dtype).double(), x.double(), weight.double()
    )
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == dtype
        assert error(value, reference) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    basis, sizes = BASES["band2"], ((1, 1), (2, 2), (1, 1))
    x, weight = torch.randn(2, 8, 12, 10, requires_grad=True), torch.randn(5, 8, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = ring_conv(x, weight, basis, None, *sizes)
        assert y.dtype == functional.conv2d(x, torch.zeros(5, 8, 5, 5)).dtype == dtype
        assert ring_conv(x.double(), weight.double(), basis, None, *sizes).dtype == torch.float64
    y.float().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    assert error(y, dense(x, weight, basis.float(), None, *sizes)) < 3 * torch.finfo(dtype).eps


def test_repeated_runs_agree_bitwise(backend: str) -> None:
    basis, sizes = BASES["gaussian2"], ((1, 1), (3, 3), (1, 1))
    x, weight, grad = torch.randn(7, 33, 19, 21), torch.randn(20, 33, 4), torch.randn(7, 20, 19, 21)
    first = gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), grad, x, weight)
    for _ in range(3):
        again = gradients(lambda a, b: ring_conv(a, b, basis, None, *sizes), grad, x, weight)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


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


def test_basis_changed_in_place() -> None:
    basis, sizes = radial_basis((3, 3)).clone(), ((1, 1), (1, 1), (1, 1))
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 2)
    ring_conv(x, weight, basis, None, *sizes)
    basis.data.mul_(3)
    assert error(ring_conv(x, weight, basis, None, *sizes), dense(x, weight, basis.float(), None, *sizes)) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 3, 2)}, "weight must have shape"),
        ({"weight": torch.zeros(4, 2, 3)}, "weight must have shape"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"groups": 3}, "weight must have shape"),
        ({"stride": (1,)}, "stride"),
        ({"x": torch.zeros(1, 3, 5, 5, 5)}, "spatial axes"),
        ({"x": torch.zeros(1, 3, 5, 5, dtype=torch.float64)}, "dtype"),
        ({"basis": torch.zeros(3)}, "spatial axes"),
        ({"x": torch.zeros(1, 3, 2, 9), "padding": (1, 1)}, "does not fit"),
    ],
)
def test_operands_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    operands = {
        "x": torch.zeros(1, 3, 5, 5),
        "weight": torch.zeros(4, 3, 3),
        "basis": BASES["band2"],
        "bias": None,
        "stride": (1, 1),
        "padding": (2, 2),
        "dilation": (1, 1),
        "groups": 1,
    }
    with pytest.raises(ValueError, match=message):
        ring_conv(**{**operands, **change})


def test_plan_of_a_band_kernel_adds_little() -> None:
    plan, mirrored = plans(radial_basis((9, 9)))
    additions = len(plan.columns.tap) + len(plan.rows.tap)
    assert additions <= 48  # 69 taps
    assert plan.maps == mirrored.maps == 5
    assert plan.mix is plan.fold is None


@pytest.mark.parametrize("name", BASES)
def test_plan_is_the_basis(name: str) -> None:
    """A plan's sums, written out as kernels, are the basis; mirrored plans, its mirror image."""
    basis = BASES[name]
    for plan, exact in zip(plans(basis), (basis, basis.flip(tuple(range(1, basis.dim())))), strict=True):
        kernels = torch.from_numpy(plan.kernels()).flatten(1)
        if plan.fold is not None:
            kernels = torch.from_numpy(plan.fold) @ kernels
        assert error(kernels, exact.flatten(1)) < 1e-12


def test_sum_matrix_of_the_transpose() -> None:
    basis = random_basis(2, (3, 3))
    plan, mirrored = plans(basis)
    geometry = convolution_geometry((5, 4), plan.kernel, (2, 1), (1, 2), (1, 1))
    there = sum_matrix(plan, geometry, torch.float64)
    back = sum_matrix(mirrored, geometry.adjoint(plan.kernel), torch.float64)
    assert torch.equal(there, back.permute(2, 1, 0))


def test_available() -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2)
    assert ring_available(x, weight)
    assert not ring_available(x.to("meta"), weight)
    assert not ring_available(x.to(torch.complex64), weight)
    assert not ring_available(x.to_sparse(), weight)
    seen = []
    torch.func.vmap(lambda row: seen.append(ring_available(row, weight)) or row)(x)  # type: ignore[func-returns-value]
    with torch.autograd.forward_ad.dual_level():
        seen.append(ring_available(x, weight))
    with FlopCounterMode(display=False):
        seen.append(ring_available(x, weight))
    torch.jit.trace(lambda row: (seen.append(ring_available(row, weight)), row + 1)[1], x, check_trace=False)
    assert seen == [False] * len(seen)
    assert len(seen) >= 4


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", lambda *args: called.append(args) or ring_conv(*args))
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 3)
    for setting, argument, expected in (("ring", "dense", 1), ("dense", "ring", 0), ("auto", "ring", None)):
        monkeypatch.setenv("MONAI_SRE_ALGORITHM", setting)
        called.clear()
        sre_conv(x, weight, BASES["band2"].float(), padding=2, algorithm=argument)
        assert expected is None or len(called) == expected


def test_choice() -> None:
    """Rows of the committed measurements whose outcome is beyond doubt."""

    def choose(shape: tuple[int, ...], out_channels: int, kernel: int, **options: Any) -> str:
        ndim = len(shape) - 2
        basis = radial_basis((kernel,) * ndim)
        x = torch.empty(shape, device="meta", dtype=options.pop("dtype", torch.float32))
        x = torch.empty_like(x, device=options.pop("device", "cpu"))
        weight = torch.empty(out_channels, shape[1], len(basis), device="meta")
        return choose_algorithm(x, weight, basis, (1,) * ndim, (kernel // 2,) * ndim, (1,) * ndim, 1)

    assert choose((32, 64, 32, 32), 64, 9) == "ring"
    assert choose((4, 64, 32, 32, 32), 64, 5) == "ring"
    assert choose((32, 64, 32, 32), 64, 1) == "dense"
    assert choose((1, 64, 8, 8), 64, 3, device="meta") == "dense"


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


def test_compiler_that_fails(
    unloaded: dict[torch.dtype, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\nif [ $1 = --version ]; then exit 0; fi\necho cannot compile today >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("MONAI_SRE_CACHE", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING, logger="monai_sre"):
        assert not ring_cpu.available(torch.float32)
    assert "cannot compile today" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.skipif(not ring_cpu.available(torch.float32), reason="no C compiler here")
class TestCache:
    """Where the compiled library goes."""

    def test_kept_for_the_next_process(
        self, unloaded: dict[torch.dtype, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("MONAI_SRE_CACHE", str(tmp_path))
        assert ring_cpu.available(torch.float32)
        (library,) = tmp_path.iterdir()
        made = library.stat().st_mtime_ns
        unloaded.clear()
        assert ring_cpu.available(torch.float32)
        assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [made]

    def test_folder_that_cannot_be_written(
        self, unloaded: dict[torch.dtype, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        obstacle = tmp_path / "file"
        obstacle.write_text("not a folder")
        monkeypatch.setenv("MONAI_SRE_CACHE", str(obstacle))
        assert ring_cpu.available(torch.float32)
        assert obstacle.read_text() == "not a folder"

    def test_two_processes_at_once(self, tmp_path: Path) -> None:
        code = "import torch; from monai_sre.ops import ring_cpu; assert ring_cpu.available(torch.float32)"
        environment = {**os.environ, "MONAI_SRE_CACHE": str(tmp_path)}
        root = Path(__file__).parents[2]
        processes = [subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment) for _ in range(2)]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("algorithm", ["dense", "ring"])
def test_the_output_may_be_changed_in_place(algorithm: str) -> None:
    """As residual blocks of MONAI do."""
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    weight, basis = torch.randn(4, 4, 2), radial_basis((3, 3)).float()
    y = sre_conv(x, weight, basis, padding=1, algorithm=algorithm)
    y += x
    (found,) = torch.autograd.grad(y.sum(), x)
    z = sre_conv(x, weight, basis, padding=1, algorithm="dense") + x
    torch.testing.assert_close(found, torch.autograd.grad(z.sum(), x)[0], rtol=1e-5, atol=1e-5)


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
