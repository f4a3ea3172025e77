"""The kernels for GPUs: in Triton's interpreter on the CPU, and on a device where there is one."""

from __future__ import annotations

import importlib.util
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_sre.layers import SREConv2d, SREHarmonicConv2d, SREHarmonicConv3d
from monai_sre.nets import SREResNet, SREUNet
from monai_sre.ops import add_energies, harmonic_energy, harmonic_stencils, radial_basis
from monai_sre.ops.ring import convolution, gpu
from monai_sre.ops.ring.convolution import ring_conv
from monai_sre.ops.ring.energy_portable import cat_groups
from monai_sre.ops.ring.portable import ring_scales, scaled_rings
from tests.layers.test_conv import CASES
from tests.ops.ring.rings import BASES, dense, error, gradients
from tests.testers import Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels serve the device at hand, a CPU too; a failure is an error. Gives the names of the kernels that ran."""
    ran: list[str] = []

    def attempt(function: Any, *operands: Any) -> Any:
        ran.append(function.__name__)
        return function(*operands)

    def usable(x: Tensor, asked: bool) -> bool:
        return asked and x.dtype in TOLERANCES and gpu._fits(x)

    monkeypatch.setattr(gpu, "usable", usable)
    monkeypatch.setattr(gpu, "attempt", attempt)
    monkeypatch.setattr(convolution, "is_eager_cpu_call", lambda *_: False)
    monkeypatch.setattr("monai_sre.ops.energy.is_eager_cpu_call", lambda *_: False)
    monkeypatch.setenv("MONAI_SRE_ALGORITHM", "ring")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return ran


def random_call(seed: int) -> tuple[Any, ...]:
    """Operands in a random dtype and memory order, and a basis, sizes and block sizes, for one seed."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    basis = BASES[draw.choice([name for name in BASES if name != "zero2"])]
    ndim, kernel = basis.dim() - 1, basis.shape[1:]
    stride, dilation = ([draw.choice((1, 1, 2)) for _ in range(ndim)] for _ in range(2))
    if ndim == 3:  # eight phases take as long as eight calls
        stride[1:] = [1, 1]
        draw.shuffle(stride)
    padding = [draw.choice((0, length // 2, length)) for length in kernel]
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    large = kernel.numel() > 27  # an interpreted tap takes a millisecond
    size = [length + draw.randint(0, 1 if large or ndim == 3 else 5) for length in smallest]
    batch, outputs = draw.randint(1, 3), draw.choice((1, 4, 20))
    channels = draw.choice((1, 3) if large else (1, 3, 17))
    dtype = draw.choice(list(TOLERANCES))
    shapes = ((batch, channels, *size), (outputs, channels, len(basis)), (outputs,))
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(ndim) if draw.random() < 0.5 else None
    if layout is not None:
        operands[0] = operands[0].contiguous(memory_format=layout)
    return operands, basis, (stride, padding, dilation), draw.random() < 0.5


@needs_triton
@pytest.mark.parametrize("block", range(20))
def test_values_and_gradients(block: int, kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten random calls each, of which some take several blocks of outputs, against the dense kernel in float64."""
    monkeypatch.setattr(gpu, "PLACES", 64)  # fewer steps, each of which takes as long in the interpreter
    for seed in range(10 * block, 10 * block + 10):
        operands, basis, sizes, with_bias = random_call(seed)
        monkeypatch.setattr(gpu, "MOST_OUTPUTS", 16)
        chosen = operands if with_bias else operands[:2]
        doubles = [operand.double() for operand in chosen]
        flat, _ = scaled_rings(basis, operands[1])  # as tables hold it
        flat = flat.double()
        if operands[0].dtype == torch.float16:
            flat *= ring_scales(basis).double().reshape(-1, *[1] * (basis.dim() - 1))
        wanted_shape = dense(doubles[0], doubles[1], flat, None, *sizes)
        slope = torch.randn(wanted_shape.shape, dtype=torch.float64).to(operands[0].dtype)

        def exact(
            x: Tensor, weight: Tensor, bias: Tensor | None = None, flat: Any = flat, sizes: Any = sizes
        ) -> Tensor:
            return dense(x, weight, flat, bias, *sizes)

        def ours(
            x: Tensor, weight: Tensor, bias: Tensor | None = None, basis: Any = basis, sizes: Any = sizes
        ) -> Tensor:
            return ring_conv(x, weight, basis.to(x.device), bias, *sizes)

        found = gradients(ours, slope.to(DEVICE), *[operand.to(DEVICE) for operand in chosen])
        for value, wanted in zip(found, gradients(exact, slope.double(), *doubles), strict=True):
            assert value.dtype == operands[0].dtype
            assert error(value.cpu(), wanted) < TOLERANCES[value.dtype], f"seed {seed}"
    assert set(kernels) == {"ring_conv", "ring_conv_gradients"}


@needs_triton
@pytest.mark.parametrize("case", [case for case in CASES if "transposed" not in case.name], ids=lambda case: case.name)
def test_layers(case: Case, kernels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer that convolves, with the algorithm asked for, is what its twin in float64 is."""
    monkeypatch.setattr(gpu, "PLACES", 64)
    wanted = _step(case.module(dtype=torch.float64), case.input(dtype=torch.float64))
    found = _step(case.module().to(DEVICE), case.input().to(DEVICE))
    for value, reference in zip(found, wanted, strict=True):
        assert error(value.cpu(), reference) < 1e-5
    assert ("ring_conv" in kernels) == ("groups" not in case.name)


def _step(module: nn.Module, x: Tensor) -> list[Tensor]:
    x.requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])]


@needs_triton
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_energies(ndim: int, groups: int, dtype: torch.dtype, kernels: list[str]) -> None:
    """Values and gradients of mixed energies, in 2-D of stencils of two sizes, and of one order's energies alone."""
    orders = {1: [(1, 3)], 2: [(1, 3), (2, 5)], 3: [(1, 3), (2, 3)]}[ndim]
    stencils = [harmonic_stencils(order, ndim, taps=taps) for order, taps in orders]
    size, eps = (7, 4, 3)[-ndim:], 1e-2
    shapes = ((2, 4, *size), (2, 6, *size), (4, 6 * len(stencils) // groups, *[1] * ndim), (4,))
    operands = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    slope = torch.randn(shapes[0], dtype=torch.float64).to(dtype)

    def mixed(radial: Tensor, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = [
            stencil.to(maps.device, weight.dtype if weight.dtype == torch.float64 else torch.float32)
            for stencil in stencils
        ]
        return add_energies(cat_groups([radial, maps], groups), own, weight, bias, groups, eps)

    wanted = gradients(mixed, slope.double(), *[operand.double() for operand in operands])
    assert not kernels  # float64 is not theirs
    found = gradients(mixed, slope.to(DEVICE), *[operand.to(DEVICE) for operand in operands])
    assert kernels == ["add_energies", "add_energies_gradients"]
    slope = torch.randn(shapes[1], dtype=torch.float64).to(dtype)
    for maps, values in ((operands[1].double(), wanted), (operands[1].to(DEVICE), found)):
        own = stencils[0].to(maps.device, torch.float64 if values is wanted else torch.float32)
        values += gradients(lambda x, own=own: harmonic_energy(x, own, eps), slope.to(maps), maps)
    assert kernels[2:] == ["energies"] * 2
    for value, reference in zip(found, wanted, strict=True):
        assert error(value.cpu(), reference) < TOLERANCES[dtype]


@needs_triton
@pytest.mark.parametrize("layer", [SREHarmonicConv2d, SREHarmonicConv3d])
def test_layers_with_energies(layer: Any, kernels: list[str]) -> None:
    case = Case("", lambda: layer(2, 4, 3, padding=1), (2, 2, 5, 4, 3)[: 2 + layer.spatial_dims])
    wanted = _step(case.module(dtype=torch.float64), case.input(dtype=torch.float64))
    for value, reference in zip(_step(case.module().to(DEVICE), case.input().to(DEVICE)), wanted, strict=True):
        assert error(value.cpu(), reference) < 1e-5
    assert sorted(set(kernels)) == ["add_energies", "add_energies_gradients", "ring_conv", "ring_conv_gradients"]


class _Watch(TorchDispatchMode):
    """The names of all operations, and every tensor that leaves the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        for part in tree_leaves(out):
            if isinstance(part, Tensor) and part.device.type != "meta" and part.dim() > 0:
                self.elsewhere.append(func.name())
        return out


@pytest.mark.parametrize("conv", ["radial", "harmonic"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("network", [SREResNet, SREUNet])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_step_stays_on_the_device(
    conv: str, half: bool, network: Any, ndim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step on tensors without values: nothing waits for a value, nothing is computed elsewhere."""
    monkeypatch.setattr(gpu, "usable", lambda x, asked: asked and x.device.type == "meta")
    small = {"width": 4} if network is SREResNet else {"channels": (4, 8)}
    net = network(ndim, 1, 2, kernel_size=5, conv=conv, algorithm="ring", **small).to("meta")
    if half:
        net = net.bfloat16()
    x = torch.empty(2, 1, *(16,) * ndim, device="meta", dtype=torch.bfloat16 if half else torch.float32)
    with _Watch() as watch:
        net(x).square().sum().backward()
    waiting = ("_local_scalar_dense", "aten::item", "nonzero", "aten::equal", "is_nonzero", "masked_select", "unique")
    assert not [name for name in watch.names if any(part in name for part in waiting)]
    assert not watch.elsewhere
    layers = sum(type(module).__name__.startswith(("SREConv", "CentredConv")) for module in net.modules())
    assert sum(name == "monai_sre::ring_conv" for name in watch.names) == layers
    energies = sum(type(module).__name__.startswith("SREHarmonicConv") for module in net.modules())
    assert (
        sum(name == "monai_sre::add_energies" for name in watch.names)
        == energies
        == (layers if conv == "harmonic" else 0)
    )


@pytest.mark.parametrize(
    ("older", "newer", "wanted"), [(True, None, "tf32"), (False, None, "tf32x3"), (True, "ieee", "tf32x3")]
)
def test_float32_is_multiplied_as_convolutions_are(older: bool, newer: str | None, wanted: str) -> None:
    """By either of torch's settings: the older one cannot be read once the newer one differs."""
    with torch.backends.cudnn.flags(allow_tf32=older):
        if newer is not None:
            torch.backends.cudnn.conv.fp32_precision = newer
        try:
            found = gpu._frame(torch.empty(1, 2, 8, device="meta"), torch.empty(2, 3, device="meta"), [8], 4).PRECISION
        finally:
            torch.backends.cudnn.conv.fp32_precision = "tf32" if older else "none"
    assert found == wanted


def test_a_kernel_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The portable form answers, in values and gradients, and nothing tries again."""
    calls: list[int] = []

    def broken(*_: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(gpu, "_failed", [])
    monkeypatch.setattr(gpu, "ring_conv", broken)
    monkeypatch.setattr(gpu, "usable", lambda *_: not gpu._failed)
    monkeypatch.setattr(convolution, "is_eager_cpu_call", lambda *_: False)
    basis = radial_basis((5, 5))
    x, weight = torch.randn(1, 2, 7, 6, dtype=torch.float64), torch.randn(3, 2, 3, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = ring_conv(x, weight, basis, None, (1, 1), (2, 2), (1, 1))
            assert error(found, dense(x, weight, basis, None, (1, 1), (2, 2), (1, 1))) < 1e-12
    assert len(calls) == 1
    assert [record.message for record in caplog.records if "Triton" in record.message] == [
        "The kernels in Triton cannot run, and torch's own convolutions do: RuntimeError('no such instruction')"
    ]


def test_kernels_start_on_the_device_of_their_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the current one, where the memory of a second GPU is out of reach."""
    inside: list[Tensor] = []

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        inside.append(x)
        yield
        inside.clear()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x = torch.zeros(1)
    assert gpu.attempt(lambda first, more: inside[0] is first and more == 2, x, 2)
    assert not inside


def test_an_operand_on_another_device_turns_no_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_failed", [])
    stray = torch.zeros(1, device="meta")
    for operands in ((stray,), ([stray],), (1, None, torch.zeros(1), stray)):
        assert gpu.attempt(lambda *_: 1, torch.zeros(1), *operands) is None
    assert not gpu._failed
    assert gpu.attempt(lambda *_: 1, torch.zeros(1), [torch.zeros(1)]) == 1


def test_memory_that_is_used_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu, "_failed", [])
    with pytest.raises(torch.OutOfMemoryError):
        gpu.attempt(full, torch.zeros(1))
    assert not gpu._failed


@pytest.mark.parametrize(
    ("capability", "asked", "triton", "served"),
    [
        ((9, 0), True, True, True),
        ((9, 0), False, True, False),
        ((8, 6), False, True, True),
        ((7, 5), True, True, False),
        ((9, 0), True, False, False),
    ],
)
def test_devices_that_are_served(
    capability: tuple[int, int], asked: bool, triton: bool, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for: from 8.0 on. By itself: where it was measured. Never without Triton."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(gpu, "MEASURED", frozenset({(8, 6)}))
    monkeypatch.setattr(gpu, "_has_triton", lambda: triton)
    assert gpu._serves(torch.device("cuda"), asked) == served


def test_an_old_device_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    gpu._is_new_enough.cache_clear()
    with caplog.at_level(logging.WARNING):
        for asked in (False, True, True):
            assert not gpu._serves(torch.device("cuda"), asked)
    assert [record.message for record in caplog.records] == [
        "A GPU of compute capability 7.0 is older than 8.0: torch's own convolutions form sums over rings"
    ]


def test_a_missing_triton_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    gpu._has_triton.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not gpu._has_triton()
            assert not gpu._has_triton()
    finally:
        gpu._has_triton.cache_clear()
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: on GPUs, torch's own convolutions form sums over rings"
    ]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("layer", [SREConv2d, SREHarmonicConv2d])
def test_on_a_device(layer: Any) -> None:
    """Eager, compiled, and captured in a CUDA graph, against float64 on the CPU."""
    module = layer(16, 32, 5, padding=2, algorithm="ring")
    x = torch.randn(4, 16, 20, 23)
    wanted = module.double()(x.double())
    module = module.float().cuda()
    x = x.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False), torch.no_grad():
        assert error(module(x).cpu(), wanted) < 1e-5
        assert error(torch.compile(module, fullgraph=True)(x).cpu(), wanted) < 1e-5
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(x)
        graph.replay()
        assert error(out.cpu(), wanted) < 1e-5
    assert not gpu._failed
