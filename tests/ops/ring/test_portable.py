"""The portable form of the ring algorithm: on a CPU without a compiler, on other devices, and in compiled graphs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

from monai_sre.convert import fold_sre
from monai_sre.layers import SREConv2d, SREHarmonicConv2d
from monai_sre.nets import SREResNet
from monai_sre.ops import harmonic_energy, harmonic_stencils, radial_basis
from monai_sre.ops.ring import cpu as ring_cpu
from monai_sre.ops.ring import energy_cpu
from monai_sre.ops.ring.convolution import ring_conv
from monai_sre.ops.ring.portable import (
    exported_ring_conv,
    folding_kernels,
    portable_ring_conv,
    portable_ring_gradients,
    ring_ends,
    ring_sums,
    summed_along_axes,
    tensor_train,
)
from tests.ops.ring.rings import BASES, cases, dense, error, fitted, gradients


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that C does not serve."""
    for library in (ring_cpu.LIBRARY, energy_cpu.LIBRARY):
        monkeypatch.setattr(library, "libraries", dict.fromkeys((torch.float64, torch.float32)))


@pytest.mark.parametrize(("basis", "size", "setting"), list(cases())[::5])
def test_forms_agree(basis: Tensor, size: tuple[int, ...], setting: Any) -> None:
    """All rings in one convolution, as on other devices, and each apart and cropped, as in exported graphs."""
    sizes = fitted(basis, size, setting)
    assert sizes is not None
    stride, padding, dilation, groups = sizes
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    weight, bias = torch.randn(8, 4 // groups, len(basis), dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    wanted = dense(x, weight, basis, bias, *sizes)
    whole = torch.compile(portable_ring_conv, backend="eager", dynamic=False)
    for form in (portable_ring_conv, whole):
        assert error(form(x, weight, basis, bias, stride, padding, dilation, groups), wanted) < 1e-12
    lists = list(stride), list(padding), list(dilation)
    assert error(exported_ring_conv(x, weight, basis, ring_ends(basis), bias, *lists, groups), wanted) < 1e-12


@pytest.mark.parametrize("setting", [(1, -1, 1, 1), (2, 3, 1, 2), (1, 9, 2, 1)], ids=str)
@pytest.mark.parametrize("kernel_size", [(5, 5, 5), (3, 7, 5), (1, 3, 5)], ids=str)
def test_volumes_along_one_axis_after_the_other(kernel_size: tuple[int, ...], setting: Any) -> None:
    """Folded where they are symmetric, whatever their values; and the fewest maps for values that are known."""
    basis = radial_basis(kernel_size, profile="gaussian", orthonormal=True)
    sizes = fitted(basis, (9, 10, 11), setting)
    assert sizes is not None
    stride, padding, dilation = (list(size) for size in sizes[:3])
    x = torch.randn(2, 3, 9, 10, 11, dtype=torch.float64)
    wanted = ring_sums(x, basis, stride, padding, dilation)
    asymmetric = torch.randn(2, *kernel_size, dtype=torch.float64)
    assert error(summed_along_axes(x, folding_kernels(basis), stride, padding, dilation), wanted) < 1e-12
    for rings, exact in ((basis, wanted), (asymmetric, ring_sums(x, asymmetric, stride, padding, dilation))):
        assert error(summed_along_axes(x, tensor_train(rings), stride, padding, dilation), exact) < 1e-6


@pytest.mark.parametrize("setting", [(1, -1, 1, 1), (1, 0, 1, 1), (2, 3, 1, 2), (1, 9, 2, 1)], ids=str)
def test_gradients_of_all_rings_at_once(no_engine: None, setting: Any) -> None:
    """What a compiled graph holds on other devices: the own backward pass, with the sums formed again."""
    basis = BASES["band2-9"]
    sizes = fitted(basis, (20, 17), setting)
    assert sizes is not None
    x, weight = torch.randn(2, 4, 20, 17, dtype=torch.float64), torch.randn(6, 4 // sizes[3], 5, dtype=torch.float64)
    slope = torch.randn_like(dense(x, weight, basis, None, *sizes))
    compiled = torch.compile(lambda a, b: ring_conv(a, b, basis, None, *sizes), backend="aot_eager", fullgraph=True)
    exact = gradients(lambda a, b: dense(a, b, basis, None, *sizes), slope, x, weight)
    for value, wanted in zip(gradients(compiled, slope, x, weight), exact, strict=True):
        assert error(value, wanted) < 1e-12


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
@pytest.mark.parametrize("channels", [(4, 2), (4, 4), (4, 12)], ids=str)
@pytest.mark.parametrize(("basis", "size", "setting"), list(cases())[::37])
def test_both_ways_to_the_gradients(
    basis: Tensor, size: tuple[int, ...], setting: Any, channels: tuple[int, int], wanted: tuple[bool, ...]
) -> None:
    """Sums of the slope or of the input, whichever are fewer; all rings at once, as on other devices, and each apart."""
    sizes = fitted(basis, size, setting)
    assert sizes is not None
    sizes, groups = (*sizes[:3], min(sizes[3], channels[1])), min(sizes[3], channels[1])
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, channels[0], *size), (channels[1], channels[0] // groups, len(basis)), channels[1:])
    )
    slope = torch.randn(dense(x, weight, basis, bias, *sizes).shape, dtype=torch.float64, generator=generator)
    _, *exact = gradients(lambda a, b, c: dense(a, b, basis, c, *sizes), slope, x, weight, bias)
    at_once = torch.compile(portable_ring_gradients, backend="eager", dynamic=False)
    for form in (portable_ring_gradients, at_once):
        torch._dynamo.reset()
        for value, reference, use in zip(form(slope, x, weight, basis, *sizes, wanted), exact, wanted, strict=True):
            assert error(value, reference) < 1e-12 if use else value is None


@pytest.mark.parametrize("channels", [(8, 4), (4, 16)], ids=["sums of the slope", "of the input"])
def test_gradients_in_float16(channels: tuple[int, int]) -> None:
    """Of a slope of 400, whose sums over a ring of 218 taps leave the range, to the accuracy of that dtype."""
    basis = radial_basis((7, 7, 7), circular=False)
    x = torch.full((1, channels[0], 9, 9, 9), 5e-4, dtype=torch.float16)
    weight = torch.full((channels[1], channels[0], len(basis)), 1e-3, dtype=torch.float16)
    slope = torch.full((1, channels[1], 9, 9, 9), 400.0, dtype=torch.float16)
    sizes: Any = ((1, 1, 1), (3, 3, 3), (1, 1, 1), 1)
    _, *exact = gradients(lambda a, b: dense(a, b, basis, None, *sizes), slope.double(), x.double(), weight.double())
    call = torch.compile(portable_ring_gradients, backend="eager", dynamic=False)
    for value, wanted in zip(call(slope, x, weight, basis, *sizes, (True, True, False))[:2], exact, strict=True):
        assert value.dtype == torch.float16
        assert error(value, wanted) < 2e-2  # some processors' convolutions add up in float16


def test_steps_of_400_in_float16() -> None:
    """The largest ring of 9 x 9 has 24 taps: its sum of 400s fits, and that of all 7^3 - 5^3 taps of a cube as well."""
    for size in ((9, 9), (7, 7, 7)):
        basis = radial_basis(size, circular=False)
        x = torch.full((1, 2, *(12,) * len(size)), 400.0, dtype=torch.float16)
        weight = torch.full((1, 2, len(basis)), 1e-3, dtype=torch.float16)
        call = torch.compile(portable_ring_conv, backend="eager", dynamic=False)
        ones, padding = [1] * len(size), [length // 2 for length in size]
        out = call(x, weight, basis, None, ones, padding, ones, 1)
        kernel = (weight.double() @ basis.flatten(1)).unflatten(-1, size)
        wanted = (functional.conv2d if len(size) == 2 else functional.conv3d)(x.double(), kernel, padding=padding)
        assert out.dtype == torch.float16
        assert error(out, wanted) < 2e-3


def kept_bytes(network: torch.nn.Module, x: Tensor) -> int:
    """Of what a forward pass keeps for the backward one, without parameters and buffers."""
    own = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[id(tensor)] = tensor.numel() * tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x)
    out.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize(("layer", "allowed"), [(SREConv2d, 1.01), (SREHarmonicConv2d, 1.27)])
def test_a_training_step_on_another_device_keeps_the_input_alone(layer: Any, allowed: float) -> None:
    """Of energies the quarter of hidden maps on top; no sums, no components, no squares."""
    module = layer(32, 32, 5, padding=2, device="meta")
    x = torch.empty(4, 32, 32, 32, device="meta", requires_grad=True)
    assert kept_bytes(module, x) <= allowed * x.numel() * 4
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_trains_on_another_device(dtype: torch.dtype) -> None:
    network = SREResNet(2, 1, 3, width=16, conv="harmonic").to("meta", dtype)
    out = network(torch.empty(2, 1, 28, 28, device="meta", dtype=dtype))
    out.sum().backward()
    assert out.dtype == dtype
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())


@pytest.mark.parametrize("layer", [SREConv2d, SREHarmonicConv2d])
@pytest.mark.parametrize("engine", [True, False], ids=["operator", "portable"])
def test_compiled_graphs(layer: Any, engine: bool, request: pytest.FixtureRequest) -> None:
    """No graph break, no recompilation for a new batch size, and the same values and gradients."""
    if not engine:
        request.getfixturevalue("no_engine")
    elif not ring_cpu.compiled_for(torch.float64):
        pytest.skip("no C compiler here")
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = layer(3, 8, 5, padding=2).double()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for batch in (2, 3, 5, 7):
        x = torch.randn(batch, 3, 9, 8, dtype=torch.float64, requires_grad=True)
        slope = torch.randn(batch, 8, 9, 8, dtype=torch.float64)
        operands = (x, *module.parameters())
        wanted = torch.autograd.grad(module(x), operands, slope)
        out = compiled(x)
        torch.testing.assert_close(out, module(x))
        torch.testing.assert_close(torch.autograd.grad(out, operands, slope), wanted)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # the first batch size, and any


@pytest.mark.skipif(not ring_cpu.compiled_for(torch.float64), reason="needs a C compiler")
def test_operators_are_sound() -> None:
    """torch's own checks of schema, fake tensors and gradients."""
    basis = BASES["band2"]
    x, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 7, 6), (4, 3, 3), (4,))
    )
    operators = torch.ops.monai_sre
    torch.library.opcheck(operators.ring_conv, (x, weight, bias, basis, [1, 2], [2, 2], [1, 1], 1, True))
    torch.library.opcheck(operators.ring_conv, (x, weight, None, basis, [1, 1], [0, 2], [1, 1], 1, False))
    stencil = torch.randn(2, 3, 3, dtype=torch.float64)
    torch.library.opcheck(operators.energy, (x, stencil, 1e-2, True))
    mixer = torch.randn(4, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 7, 7, 6, dtype=torch.float64, requires_grad=True)
    kept = y.detach()[:, 4:].clone()
    torch.library.opcheck(operators.add_energies, (y, kept, mixer, bias, [stencil, stencil], 1, 1e-2, False))


@pytest.mark.skipif(not ring_cpu.compiled_for(torch.float32), reason="needs a C compiler")
@pytest.mark.parametrize("layer", [SREConv2d, SREHarmonicConv2d])
def test_compiled_layers_take_inputs_of_any_layout(layer: Any) -> None:
    torch._dynamo.reset()
    module = layer(4, 8, 5, padding=2)
    compiled = torch.compile(module, backend="inductor" if layer is SREConv2d else "aot_eager")
    base = torch.randn(2, 4, 10, 9)
    for turn in (lambda x: x.rot90(1, (2, 3)), lambda x: x.transpose(2, 3), lambda x: x):
        found, wanted = (
            torch.autograd.grad(call(turn(leaf)).square().sum(), leaf)[0]
            for call, leaf in ((compiled, base.clone().requires_grad_()), (module, base.clone().requires_grad_()))
        )
        assert error(found, wanted) < 1e-5


def test_exported_forms_in_half_precision() -> None:
    """Sums that leave the range of float16 although the result does not; bfloat16, which numpy does not know."""
    layer = SREConv2d(32, 32, 9, padding=4)
    with torch.no_grad():
        layer.weight.mul_(0.05)
    x = 4000 * torch.rand(1, 32, 20, 20)
    wanted = layer(x)
    for dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(layer).to(dtype)
        for form in (
            torch.jit.script(module),
            fold_sre(copy.deepcopy(module)),
            fold_sre(copy.deepcopy(module), "rings"),
        ):
            assert error(form(x.to(dtype)), wanted) < 10 * torch.finfo(dtype).eps


def test_one_image_without_a_batch() -> None:
    module, x = SREConv2d(16, 16, 7, padding=3), torch.randn(16, 20, 20)
    assert module.ends[0][0] >= 0
    forms = [torch.jit.script(module), torch.jit.trace(module, x), torch.export.export(module, (x,)).module()]
    for form in forms:
        assert error(form(x), module(x)) < 1e-5


def test_fake_tensors_have_no_values() -> None:
    module = SREConv2d(32, 32, 9, padding=4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert module(torch.randn(8, 32, 64, 64)).shape == (8, 32, 64, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stencils_of_another_precision(dtype: torch.dtype) -> None:
    x, stencils = torch.randn(1, 2, 8, 8), harmonic_stencils(1, 2)
    assert (
        error(harmonic_energy(x, stencils.to(dtype)), harmonic_energy(x, stencils)) < 10 * torch.finfo(dtype).eps + 1e-6
    )


def test_hooks_inside_a_layer_stay() -> None:
    module, calls = SREHarmonicConv2d(16, 16, 5, padding=2), []
    module.radial.register_forward_hook(lambda *_: calls.append(1))
    fold_sre(module)(torch.randn(1, 16, 8, 8))
    assert calls == [1]


@pytest.mark.parametrize("layer", [SREConv2d, SREHarmonicConv2d])
def test_transforms(layer: Any) -> None:
    """Gradients per image and forward-mode derivatives equal those of one image at a time."""
    module = layer(2, 4, 3, padding=1).double()
    parameters = dict(module.named_parameters())
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(module, values, (image.unsqueeze(0),)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index, image in enumerate(x):
        exact = torch.autograd.grad(loss(parameters, image), tuple(parameters.values()))
        for value, wanted in zip(found.values(), exact, strict=True):
            assert error(value[index], wanted) < 1e-10
    tangent = torch.randn_like(x)
    _, slope = jvp(module, (x,), (tangent,))
    step = 1e-5
    assert error(slope, (module(x + step * tangent) - module(x - step * tangent)) / (2 * step)) < 1e-6
