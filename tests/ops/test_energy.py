"""Energies of stencils, compiled and as convolutions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops import add_energies, harmonic_energy, harmonic_stencils
from monai_sre.ops.ring.energy_cpu import LIBRARY, compiled_for, form_of
from monai_sre.ops.ring.energy_portable import cat_groups, exported_energies
from tests.testers import relative_error

SHAPES = [
    (3, 4, 7),
    (1, 1, 1),
    (2, 3, 7, 5),
    (1, 1, 1, 2),
    (2, 70, 4, 4),
    (1, 3, 40, 37),
    (2, 3, 3, 5, 4),
    (1, 2, 17, 9, 11),
]


@pytest.fixture(params=["compiled", "convolutions"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "convolutions":
        monkeypatch.setattr(LIBRARY, "libraries", dict.fromkeys((torch.float32, torch.float64)))
    elif not compiled_for(torch.float32):
        pytest.skip("no C compiler here")
    return str(request.param)


def reference(x: Tensor, stencils: Tensor, eps: float) -> Tensor:
    """One tap at a time, in float64."""
    reach = [length // 2 for length in stencils.shape[1:]]
    padded = functional.pad(x.double(), [amount for length in reversed(reach) for amount in (length, length)])
    total = torch.full_like(x, eps, dtype=torch.float64)
    for stencil in stencils.double():
        part = torch.zeros_like(total)
        for tap in (stencil != 0).nonzero().tolist():
            window = [slice(start, start + size) for start, size in zip(tap, x.shape[2:], strict=True)]
            part = part + stencil[tuple(tap)] * padded[(slice(None), slice(None), *window)]
        total = total + part.square()
    return total.sqrt()


def behind_zeros(x: Tensor, count: int) -> Tensor:
    """The maps ``x`` behind ``count`` others that are zero."""
    return torch.cat([x.new_zeros(len(x), count, *x.shape[2:]), x], dim=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_values_and_gradients(backend: str, shape: tuple[int, ...], dtype: torch.dtype, order: int) -> None:
    ndim = len(shape) - 2
    stencils = harmonic_stencils(1 if ndim == 1 else order, ndim, taps=5 if order == 3 else 3)
    channels = torch.randn(shape[0], shape[1] + 3, *shape[2:], dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = channels[:, 1 : 1 + shape[1]].detach().requires_grad_()  # a slice of channels, as the layer takes it
    grad = torch.randn(shape, dtype=dtype)
    out = harmonic_energy(x, stencils, 1e-2)
    wanted = reference(x, stencils, 1e-2)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert out.dtype == dtype
    assert relative_error(out, wanted) < tolerance
    found = torch.autograd.grad(out, x, grad)
    assert relative_error(found, torch.autograd.grad(wanted, x, grad.double())) < tolerance


@pytest.mark.parametrize(("kernel", "served"), [((3, 5), True), ((3, 3, 3), True), ((5, 5, 5), False)], ids=str)
def test_any_stencils(kernel: tuple[int, ...], served: bool) -> None:
    """Stencils without symmetry are sums of products of filters too; of too many, convolutions take over."""
    generator = torch.Generator().manual_seed(0)
    stencils = [torch.randn(count, *kernel, dtype=torch.float64, generator=generator) for count in (2, 3)]
    assert (form_of(stencils) is not None) == served
    x = torch.randn(2, 4, *(9, 8, 7)[: len(kernel)], dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.eye(8, dtype=torch.float64).reshape(8, 8, *(1,) * len(kernel))
    out = add_energies(behind_zeros(x, 8), stencils, weight, eps=1e-2)
    wanted = torch.cat([reference(x, stencil, 1e-2) for stencil in stencils], dim=1)
    assert relative_error(out, wanted) < 1e-12
    slope = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    assert relative_error(torch.autograd.grad(out, x, slope), torch.autograd.grad(wanted, x, slope)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("option", ["-mno-avx512f", "-mno-avx"])
def test_other_vector_units(option: str, compile_with: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds for processors without AVX-512, and without AVX."""
    cache = compile_with(option)
    monkeypatch.setattr(LIBRARY, "libraries", {})
    for dtype in (torch.float32, torch.float64):
        for shape in SHAPES:
            test_values_and_gradients("compiled", shape, dtype, 1)
    assert len(list(cache.iterdir())) == 2


def test_threads_give_the_same(backend: str) -> None:
    """Two threads inside a call, and two calls at once."""
    x, stencils = torch.randn(5, 3, 9, 8), harmonic_stencils(1, 2)
    alone = harmonic_energy(x, stencils)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(harmonic_energy(x, stencils), alone)
        with ThreadPoolExecutor(2) as pool:
            for out in pool.map(lambda _: harmonic_energy(x, stencils), range(20)):
                assert torch.equal(out, alone)
    finally:
        torch.set_num_threads(threads)


def test_layouts(backend: str) -> None:
    x, stencils = torch.randn(2, 4, 6, 7), harmonic_stencils(2, 2)
    expected = harmonic_energy(x, stencils)
    for same in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(harmonic_energy(same, stencils), expected)
    assert harmonic_energy(x[:0], stencils).shape == (0, 4, 6, 7)


def test_derivatives(backend: str) -> None:
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    stencils = harmonic_stencils(1, 2, taps=3)
    assert torch.autograd.gradcheck(lambda x: harmonic_energy(x, stencils), x)
    assert torch.autograd.gradgradcheck(lambda x: harmonic_energy(x, stencils), x)


def test_finite_where_nothing_varies(backend: str) -> None:
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    out = harmonic_energy(x, harmonic_stencils(1, 2), eps=1e-3)
    torch.testing.assert_close(out, torch.full_like(out, 1e-3**0.5))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_autocast_computes_in_float32(backend: str) -> None:
    """The square of this step overflows in float16."""
    x, stencils = torch.where(torch.arange(16) > 7, 1000.0, 0.0).expand(1, 1, 16, 16), harmonic_stencils(1, 2)
    expected = harmonic_energy(x, stencils)

    def exported(x: Tensor, stencils: Tensor) -> Tensor:
        return exported_energies(x, [stencils], eps=1e-3)[0]

    for call in (harmonic_energy, exported, torch.compile(harmonic_energy, backend="eager")):
        with torch.autocast("cpu", torch.float16):
            out = call(x, stencils)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 4, 6, 5), (1, 4, 3, 4, 5)], ids=str)
def test_mixed(backend: str, shape: tuple[int, ...], groups: int) -> None:
    """Against energies one by one and a convolution; first and second derivatives."""
    ndim = len(shape) - 2
    stencils = [harmonic_stencils(order, ndim, taps=3) for order in ((1,) if ndim == 1 else (1, 2))]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, len(stencils) * 4 // groups, *(1,) * ndim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    outputs = []
    for block, (w, b) in enumerate(zip(weight.chunk(groups), bias.chunk(groups), strict=True)):
        part = x.chunk(groups, dim=1)[block]
        energies = torch.cat([reference(part, stencil, 1e-3) for stencil in stencils], dim=1)
        outputs.append(torch.einsum("oi,ni...->no...", w.flatten(1), energies) + b.reshape(-1, *(1,) * ndim))
    wanted = torch.cat(outputs, dim=1)
    radial = torch.randn(wanted.shape, dtype=torch.float64, requires_grad=True)
    operands = (radial, x, weight, bias)

    def call(radial: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return add_energies(cat_groups([radial, x], groups), stencils, weight, bias, groups)

    out = call(*operands)
    wanted = radial + wanted
    torch.testing.assert_close(out, wanted)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(wanted, operands, grad)
    torch.testing.assert_close(torch.autograd.grad(out, operands, grad), expected)
    assert torch.autograd.gradgradcheck(call, operands, fast_mode=True)
    again = torch.autograd.grad(call(*operands), operands, grad, create_graph=True)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stencils_of_unequal_size(backend: str, dtype: torch.dtype) -> None:
    """One convolution for all orders; gradients by all operands, also of an empty batch, and in half precision."""
    stencils = [harmonic_stencils(order, 2, taps=taps) for order, taps in ((1, 3), (2, 5))]
    stencils[0] = stencils[0][:, :, 1:2]  # along one axis alone: as many components, of another shape
    x, weight = torch.randn(2, 4, 7, 6), torch.randn(3, 8, 1, 1)
    operands = [operand.to(dtype).requires_grad_() for operand in (x, weight)]
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    energies = torch.cat([reference(exact[0], stencil, 1e-3) for stencil in stencils], dim=1)
    wanted = torch.einsum("oi,ni...->no...", exact[1].flatten(1), energies)
    out = add_energies(behind_zeros(operands[0], 3), stencils, operands[1])
    slope = torch.randn_like(wanted)
    expected = [wanted, *torch.autograd.grad(wanted, exact, slope)]
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for found, value in zip([out, *torch.autograd.grad(out, operands, slope.to(dtype))], expected, strict=True):
        assert found.dtype == dtype
        assert relative_error(found, value) < tolerance
    empty = x[:0].detach().clone().requires_grad_()
    add_energies(behind_zeros(empty, 3), stencils, weight).sum().backward()
    assert empty.grad is not None


def test_mixed_with_parts_frozen(backend: str) -> None:
    stencils = [harmonic_stencils(1, 2)]
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 1, 1)
    for frozen in (0, 1):
        operands = [tensor.clone().requires_grad_(index != frozen) for index, tensor in enumerate((x, weight))]
        out = add_energies(behind_zeros(operands[0], 3), stencils, operands[1])
        (grad,) = torch.autograd.grad(out.sum(), operands[1 - frozen])
        assert bool(grad.any())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="stencils must have shape"):
        harmonic_energy(torch.zeros(1, 1, 5, 5), harmonic_stencils(1, 3))
    with pytest.raises(ValueError, match="odd sizes"):
        harmonic_energy(torch.zeros(1, 1, 5, 5), torch.zeros(2, 4, 4))
    # stencils in the dtype of integers would be zeros
    with pytest.raises(ValueError, match=r"x must be floating-point, got torch\.int64"):
        harmonic_energy(torch.ones(1, 1, 5, 5, dtype=torch.long), harmonic_stencils(1, 2))


@pytest.mark.parametrize(
    ("y", "weight", "groups", "message"),
    [
        ((2, 8, 8, 8), (5, 4, 1, 1), 1, r"weight must have shape .*, got \[5, 4, 1, 1\], 2 orders, groups=1"),
        ((2, 8, 8, 8), (5, 6, 1, 1), 2, "weight must have shape"),
        ((2, 8, 8, 8), (5, 6, 3, 3), 1, "weight must have shape"),
        ((2, 8, 8, 8), (5, 6), 1, "weight must have shape"),
        ((2, 8, 8, 8), (5, 6, 1, 1), 0, "weight must have shape"),
        ((2, 261, 8, 8), (5, 2, 1, 1), 1, "weight must have shape"),
        ((2, 8, 8, 8, 8), (5, 6, 1, 1, 1), 1, "stencils must have shape"),
    ],
    ids=str,
)
def test_operands_that_do_not_fit_reach_no_memory(
    y: tuple[int, ...], weight: tuple[int, ...], groups: int, message: str
) -> None:
    stencils = [harmonic_stencils(order, 2) for order in (1, 2)]
    with pytest.raises(ValueError, match=message):
        add_energies(torch.zeros(y), stencils, torch.zeros(weight), groups=groups)
    with pytest.raises(ValueError, match=r"bias must have shape \[5\], got \[4\]"):
        add_energies(torch.zeros(2, 8, 8, 8), stencils, torch.zeros(5, 6, 1, 1), torch.zeros(4))


def test_stencils_that_are_learned_have_gradients() -> None:
    x, stencils = torch.randn(1, 2, 6, 7, dtype=torch.float64), harmonic_stencils(1, 2).double().requires_grad_()
    weight = torch.randn(3, 2, 1, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda taps: harmonic_energy(x, taps), (stencils,))
    y = behind_zeros(x, 3)
    assert torch.autograd.gradcheck(lambda taps: add_energies(y, [taps], weight), (stencils,))
