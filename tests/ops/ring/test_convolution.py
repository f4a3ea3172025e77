"""The ring algorithm against a slow reference that shifts and adds, and against torch's own convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from monai_sre import SREResNet
from monai_sre.layers.conv import RadialNd
from monai_sre.ops import radial_basis, sre_conv
from monai_sre.ops.dispatch import is_eager_cpu_call
from monai_sre.ops.ring import cpu as ring_cpu
from monai_sre.ops.ring.convolution import ring_conv
from tests.ops.ring.rings import (
    BASES,
    DTYPES,
    SETTINGS,
    SIZES,
    cases,
    check,
    dense,
    error,
    fitted,
    gradients,
    random_basis,
    slow_reference,
)


@pytest.mark.parametrize(("basis", "size", "setting"), list(cases()))
def test_values_and_gradients(basis: Tensor, size: tuple[int, ...], setting: tuple[int, int, int, int]) -> None:
    sizes = fitted(basis, size, setting)
    assert sizes is not None
    for dtype in DTYPES:
        check(basis, size, sizes, dtype, (4, 8))


@pytest.mark.parametrize("name", BASES)
def test_eager_values_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_cpu.LIBRARY, "libraries", dict.fromkeys(DTYPES))
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


def test_basis_changed_in_place() -> None:
    basis, sizes = radial_basis((3, 3)).clone(), ((1, 1), (1, 1), (1, 1))
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 2)
    ring_conv(x, weight, basis, None, *sizes)
    basis.data.mul_(3)
    assert error(ring_conv(x, weight, basis, None, *sizes), dense(x, weight, basis.float(), None, *sizes)) < 1e-5


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 3, 2)}, "weight must have shape"),
        ({"weight": torch.zeros(4, 2, 3)}, r"x must have 2 channels .* got shape \(1, 3, 5, 5\)"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"groups": 3}, "x must have 9 channels"),
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


def test_is_eager_cpu_call() -> None:
    x, weight = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2)
    assert is_eager_cpu_call(x, weight)
    assert not is_eager_cpu_call(x.to("meta"), weight)
    assert not is_eager_cpu_call(x.to(torch.complex64), weight)
    assert not is_eager_cpu_call(x.to_sparse(), weight)
    seen = []
    torch.func.vmap(lambda row: seen.append(is_eager_cpu_call(row, weight)) or row)(x)  # type: ignore[func-returns-value]
    with torch.autograd.forward_ad.dual_level():
        seen.append(is_eager_cpu_call(x, weight))
    with FlopCounterMode(display=False):
        seen.append(is_eager_cpu_call(x, weight))
    torch.jit.trace(lambda row: (seen.append(is_eager_cpu_call(row, weight)), row + 1)[1], x, check_trace=False)
    assert seen == [False] * len(seen)
    assert len(seen) >= 4


@pytest.mark.parametrize(
    ("setting", "argument", "estimate", "runs_ring"),
    [
        ("ring", "dense", "dense", True),
        ("dense", "ring", "ring", False),
        ("auto", "ring", "dense", False),
        ("auto", "dense", "ring", True),
    ],
)
def test_environment_variable(
    setting: str, argument: str, estimate: str, runs_ring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It overrides the argument; ``auto`` takes what the cost model says."""
    called = []
    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", lambda *args: called.append(args) or ring_conv(*args))
    monkeypatch.setattr("monai_sre.ops.conv.choose_algorithm", lambda *args: estimate)
    monkeypatch.setenv("MONAI_SRE_ALGORITHM", setting)
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 3)
    sre_conv(x, weight, BASES["band2"].float(), padding=2, algorithm=argument)
    assert bool(called) == runs_ring


@pytest.mark.parametrize(("spatial_dims", "options"), [(2, {}), (3, {"conv": "harmonic", "kernel_size": 3})])
def test_networks_agree(spatial_dims: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all gradients of a network are those of the dense algorithm."""
    network = SREResNet(spatial_dims, 1, 3, width=4, **options).double()
    x = torch.randn(2, 1, *(13, 10, 9)[:spatial_dims], dtype=torch.float64)
    calls: list[Any] = []
    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", lambda *args: calls.append(args) or ring_conv(*args))
    results = []
    for algorithm in ("dense", "ring"):
        monkeypatch.setenv("MONAI_SRE_ALGORITHM", algorithm)
        out = network(x)
        results.append([out, *torch.autograd.grad(out.sin().sum(), tuple(network.parameters()))])
    assert len(calls) == sum(isinstance(module, RadialNd) for module in network.modules())
    for ours, exact in zip(*results, strict=True):
        assert error(ours, exact) < 1e-9
