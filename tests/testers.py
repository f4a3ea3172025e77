"""The checks that every layer and every network must pass.

List the modules as :class:`Case` objects and inherit from :class:`LayerTester` or :class:`NetTester`; ``tests/conftest.py``
runs every check on every case::

    class TestSREConv(LayerTester):
        cases = (Case("2d", lambda: SREConv2d(2, 3, 5, padding=2), (2, 2, 7, 6)),)

Modules are built under a fixed seed. What starts at zero or one (biases, norms and their statistics) then gets random values,
so that no check passes because a term vanishes.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_sre.ops.ring.convolution import ring_conv
from monai_sre.symmetry.error import commutation_error, is_map

Transform = Callable[[Tensor], Tensor]
SLOW_CHECKS = ("test_compile", "test_onnx_dynamo")


def lattice_symmetries(ndim: int, axes: Sequence[int] | None = None, swaps: bool = True) -> list[Transform]:
    """The symmetries of the grid as functions on the last ``ndim`` axes: 2, 8 or 48 for ``ndim`` 1, 2 or 3.

    Args:
        ndim: number of spatial axes.
        axes: the spatial axes that may move; ``None`` is all.
        swaps: whether axes may change places; otherwise only flips are listed.
    """

    def symmetry(order: tuple[int, ...], flips: tuple[int, ...]) -> Transform:
        def apply(x: Tensor) -> Tensor:
            lead = x.dim() - ndim
            x = x.permute(*range(lead), *[lead + axis for axis in order])
            return x.flip([lead + axis for axis in flips])

        return apply

    moving = tuple(range(ndim)) if axes is None else tuple(axes)
    found = []
    for order in permutations(range(ndim)) if swaps else [tuple(range(ndim))]:
        if any(order[axis] != axis for axis in range(ndim) if axis not in moving):
            continue
        for signs in product((False, True), repeat=len(moving)):
            found.append(symmetry(order, tuple(axis for axis, sign in zip(moving, signs, strict=True) if sign)))
    return found


def relative_error(actual: Any, expected: Any) -> float:
    """Largest ``max|a - e| / max|e|`` over the tensors of two outputs of one structure, in float64."""
    pairs = [(a.detach(), e.detach()) for a, e in zip(tree_leaves(actual), tree_leaves(expected), strict=True)]
    for a, e in pairs:
        assert a.shape == e.shape, f"shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        assert bool(a.isfinite().all()), "the output is not finite"
    return max(float((a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-30)) for a, e in pairs)


@dataclass(frozen=True)
class Case:
    """One module under test.

    Attributes:
        name: shown as the test's id.
        build: makes the module; called anew for each check.
        shape: shape of one input, ``(N, C, *spatial)``; keep it small.
        output: ``"map"`` when outputs (a tensor, or any nest of tensors) turn with the input, ``"vector"`` when they stay.
        sizes: spatial sizes at which symmetry is checked besides that of ``shape``: odd, even and unequal.
        symmetries: what the module commutes with; ``None`` is all lattice symmetries, ``()`` none.
        bfloat16: relative error that bfloat16 and autocast may have.
        onnx: whether the module must pass the ONNX exporters.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    output: Literal["map", "vector"] = "map"
    sizes: tuple[tuple[int, ...], ...] = ()
    symmetries: Sequence[Transform] | None = None
    bfloat16: float = 0.05
    onnx: bool = True

    def module(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A module in eval mode, without zeros and ones."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.build()
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.numel() == 1 or bool((parameter == parameter.flatten()[0]).all()):
                        parameter.add_(0.1 * torch.randn_like(parameter))
                for norm in module.modules():
                    if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                        norm.running_mean.normal_(0, 0.1)
                        norm.running_var.uniform_(0.5, 1.5)
        return module.eval().to(dtype)

    def input(self, size: Sequence[int] | None = None, dtype: torch.dtype = torch.float32, batch: int = 0) -> Tensor:
        """A random input, the same at every call."""
        shape = (batch or self.shape[0], self.shape[1], *(size or self.shape[2:]))
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


class _Tester:
    """The checks that layers and nets share."""

    cases: ClassVar[tuple[Case, ...]]
    #: Names of the cases on which the checks of a second each run (``SLOW_CHECKS``): one for each way that forward takes.
    slow_cases: ClassVar[Collection[str] | None] = None

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
    )
    def test_symmetry(self, case: Case, dtype: torch.dtype, tolerance: float) -> None:
        module = case.module(dtype=dtype)
        for size in dict.fromkeys((case.shape[2:], *case.sizes)):
            x = case.input(size, dtype)
            with torch.no_grad():
                assert_symmetric(module, x, case.output, tolerance, case.symmetries)

    def test_dtypes(self, case: Case) -> None:
        with torch.no_grad():
            exact = case.module(dtype=torch.float64)(case.input(dtype=torch.float64))
            for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, case.bfloat16)):
                out = case.module(dtype=dtype)(case.input(dtype=dtype))
                assert {leaf.dtype for leaf in tree_leaves(out)} == {dtype}
                assert relative_error(out, exact) < tolerance

    def test_autocast(self, case: Case) -> None:
        module, x = case.module().train(), case.input().requires_grad_()
        # On processors with AVX512_BF16, oneDNN leaves weights' gradients of torch's own small 3-D convolutions unwritten.
        with torch.backends.mkldnn.flags(enabled=False):
            with torch.autocast("cpu", torch.bfloat16):
                out = module(x)
            loss(out).backward()
        for tensor in (x, *module.parameters()):
            assert tensor.grad is not None
            assert tensor.grad.dtype == torch.float32
            assert bool(tensor.grad.isfinite().all())
        module = case.module()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert relative_error(module(case.input()), case.module()(case.input())) < case.bfloat16

    def test_input_is_not_modified(self, case: Case) -> None:
        x = case.input()
        case.module().train()(x)
        assert torch.equal(x, case.input())

    def test_copies(self, case: Case) -> None:
        """deepcopy, pickle and torch.save keep the outputs, after calls in either mode; copies share no memory."""
        module, x = case.module(), case.input()
        expected = loss(module(x))
        copies = [copy.deepcopy(module), saved(module)]
        if "<locals>" not in type(module).__qualname__:
            copies.append(pickle.loads(pickle.dumps(module)))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
        for twin in copies:
            assert torch.equal(loss(twin(x)), expected)

    def test_state_dict(self, case: Case) -> None:
        """It holds what is learned and nothing else, and loading it in eval mode takes effect at once."""
        module, other, x = case.module(0), case.module(1), case.input()
        learned = {name for name, _ in module.named_parameters()}
        for prefix, norm in module.named_modules():
            if isinstance(norm, _BatchNorm):
                learned |= {f"{prefix}.{name}" for name, _ in norm.named_buffers()}
        assert set(module.state_dict()) == learned
        before = loss(module(x))
        module.load_state_dict(saved(other.state_dict()))
        assert torch.equal(loss(module(x)), loss(other(x)))
        assert bool(learned) != torch.equal(loss(module(x)), before)

    def test_placed_anew(self, case: Case) -> None:
        """Rounded and widened, or built without memory: with the same state dict, the same outputs."""
        module, x = case.module(), case.input()
        expected, state = loss(module(x)), saved(module.state_dict())
        for twin in (case.module().bfloat16().float(), case.module().to("meta").to_empty(device="cpu")):
            twin.load_state_dict(state)
            assert torch.equal(loss(twin(x)), expected)

    def test_meta_tensor(self, case: Case) -> None:
        """MONAI's tensors keep their metadata and change no value."""
        module, affine = case.module(), torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
        outs = tree_leaves(module(MetaTensor(case.input(), affine=affine)))
        for out, plain in zip(outs, tree_leaves(module(case.input())), strict=True):
            assert isinstance(out, MetaTensor)
            assert torch.equal(out.affine, affine.double())
            assert torch.equal(out.as_tensor(), plain)

    def test_functional_call(self, case: Case) -> None:
        module, other, x = case.module(0), case.module(1), case.input()
        tensors = {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}
        given = [tensors[name].requires_grad_() for name, _ in other.named_parameters()]
        module(x)
        out = loss(torch.func.functional_call(module, tensors, (x,)))
        assert torch.equal(out, loss(other(x)))
        if given:
            out.backward()
            assert all(parameter.grad is None for parameter in module.parameters())
            assert any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in given)

    def test_script(self, case: Case) -> None:
        """Scripted, saved and loaded: the same outputs at another batch and size, in eval and in training mode."""
        module = case.module(dtype=torch.float64)
        scripted = script_saved(torch.jit.script(module))
        for size in (case.shape[2:], *case.sizes[:2]):
            x = case.input(size, torch.float64, batch=2)
            assert relative_error(scripted(x), module(x)) < 1e-10
        x = case.input(dtype=torch.float64)
        assert relative_error(scripted.train()(x), module.train()(x)) < 1e-10

    def test_trace(self, case: Case) -> None:
        """A trace serves another batch and all sizes."""
        module = case.module(dtype=torch.float64)
        traced = script_saved(torch.jit.trace(module, case.input(dtype=torch.float64)))
        for size in (case.shape[2:], *case.sizes):
            x = case.input(size, torch.float64, batch=3) + 1
            assert relative_error(traced(x), module(x)) < 1e-10

    def test_export(self, case: Case) -> None:
        """``torch.export`` with free sizes: the program serves another batch and larger maps, even, odd and unequal.

        Not smaller ones: where a map on the way has one pixel, torch makes another program.
        """
        module, least = case.module(dtype=torch.float64), [2 * length for length in case.shape[2:]]
        x = case.input(least, torch.float64, batch=2)
        free = {axis: torch.export.Dim.AUTO for axis in range(x.dim()) if axis != 1}
        exported = torch.export.export(module, (x,), dynamic_shapes=(free,), strict=False).module()
        for steps in ((0, 0, 0), (1, 1, 1), (2, 5, 4), (3, 2, 1)):
            size = [length + step for length, step in zip(least, steps, strict=False)]
            x = case.input(size, torch.float64, batch=3) + 1
            assert relative_error(exported(x), module(x)) < 1e-10

    def test_onnx(self, case: Case) -> None:
        """By TorchScript's exporter."""
        self._check_onnx(case, dynamo=False)

    def test_onnx_dynamo(self, case: Case) -> None:
        """By the exporter of ``torch.export``."""
        pytest.importorskip("onnxscript")
        self._check_onnx(case, dynamo=True)

    def _check_onnx(self, case: Case, dynamo: bool) -> None:
        if not case.onnx:
            pytest.skip("this case is not meant for ONNX")
        onnxruntime = pytest.importorskip("onnxruntime")
        module, x = case.module(), case.input()
        buffer = io.BytesIO()
        torch.onnx.export(module, (x,), buffer, dynamo=dynamo, verbose=False)
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        x = x.flip(0) + 1
        out = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert relative_error([torch.from_numpy(np.array(item)) for item in out], tree_leaves(module(x))) < 1e-5

    def test_compile(self, case: Case) -> None:
        """``torch.compile(fullgraph=True)``: outputs and gradients."""
        check_compiled(case, "aot_eager")

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_device(self, case: Case, training: bool) -> None:
        """On another device (``meta``: shapes alone), forward and backward use no :class:`Unwanted` operator."""
        module = case.module().train(training).to("meta")
        x = case.input().to("meta").requires_grad_()
        with Unwanted() as used:
            sum(leaf.sum() for leaf in tree_leaves(module(x))).backward()
        assert not used.operators

    @pytest.mark.gpu
    def test_cuda(self, case: Case) -> None:
        module, x = case.module(dtype=torch.float64), case.input(dtype=torch.float64)
        moved = copy.deepcopy(module).cuda()
        out = moved(x.cuda())
        assert all(leaf.is_cuda for leaf in tree_leaves(out))
        assert relative_error([leaf.cpu() for leaf in tree_leaves(out)], tree_leaves(module(x))) < 1e-10


#: Operators in no training step, as they are not deterministic on CUDA.
NOT_DETERMINISTIC = ("aten.avg_pool3d_backward.default",)


class Unwanted(TorchDispatchMode):
    """Lists the operators that read or make a tensor of the CPU or in float64, which some devices lack."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if str(func) in NOT_DETERMINISTIC or any(
            tensor.device.type == "cpu" or tensor.dtype == torch.float64 for tensor in tensors
        ):
            self.operators.add(str(func))
        return out


class LayerTester(_Tester):
    """All checks for a layer: small enough for the Jacobian by finite differences."""

    def test_gradients(self, case: Case) -> None:
        """First and second derivatives by input and parameters equal finite differences."""
        module = case.module(dtype=torch.float64)
        names = [name for name, _ in module.named_parameters()]
        tensors = [tensor.detach().clone().requires_grad_() for tensor in module.parameters()]
        x = case.input(dtype=torch.float64).requires_grad_()

        def call(x: Tensor, *values: Tensor) -> Any:
            out = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
            return tuple(tree_leaves(out))

        assert torch.autograd.gradcheck(call, (x, *tensors), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x, *tensors), fast_mode=True)


class NetTester(_Tester):
    """All checks for a network: derivatives along random directions."""

    def test_gradients(self, case: Case) -> None:
        """First and second derivatives along a random direction equal finite differences; every parameter gets a gradient."""
        module = case.module(dtype=torch.float64)
        x = case.input(dtype=torch.float64).requires_grad_()
        tensors = [x, *module.parameters()]
        generator = torch.Generator().manual_seed(2)
        step = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in tensors]
        step = [move * tensor.detach().abs().mean() for move, tensor in zip(step, tensors, strict=True)]

        def slope() -> tuple[Tensor, Tensor, list[Tensor]]:
            value = loss(module(x))
            gradients = torch.autograd.grad(value, tensors, create_graph=True)
            along = sum((gradient * move).sum() for gradient, move in zip(gradients, step, strict=True))
            return value, torch.as_tensor(along), list(gradients)

        _, first, gradients = slope()
        assert all(bool(gradient.any()) for gradient in gradients)
        curvature = torch.autograd.grad(first, tensors, allow_unused=True)
        second = sum((c * move).sum() for c, move in zip(curvature, step, strict=True) if c is not None)
        width, at = 1e-7, []
        for sign in (1, -2):
            with torch.no_grad():
                for tensor, move in zip(tensors, step, strict=True):
                    tensor.add_(sign * width * move)
            value, along, _ = slope()
            at.append((value.item(), along.item()))
        (value_up, slope_up), (value_down, slope_down) = at
        assert (value_up - value_down) / (2 * width) == pytest.approx(first.item(), rel=1e-4)
        assert (slope_up - slope_down) / (2 * width) == pytest.approx(float(second), rel=1e-3)

    def test_training_symmetry(self, case: Case) -> None:
        """In training mode, too, where norms use the statistics of the batch."""
        module = case.module(dtype=torch.float64).train()
        assert_symmetric(module, case.input(dtype=torch.float64), case.output, 1e-11, case.symmetries)


def assert_symmetric(
    module: Callable[[Tensor], Any],
    x: Tensor,
    output: Literal["map", "vector"],
    tolerance: float,
    symmetries: Sequence[Transform] | None = None,
) -> None:
    """Assert that ``module`` commutes with the symmetries (``"map"``) or is invariant to them (``"vector"``)."""
    expected, ndim = module(x), x.dim() - 2
    assert all(is_map(leaf, ndim) == (output == "map") for leaf in tree_leaves(expected))
    for index, transform in enumerate(lattice_symmetries(ndim) if symmetries is None else symmetries):
        error = commutation_error(expected, module(transform(x).contiguous()), transform, ndim)
        assert error <= tolerance, f"symmetry {index} at {tuple(x.shape)}: relative error {error:.1e}"


def check_algorithms(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that a radial layer has the same outputs and gradients by the dense and by the ring algorithm."""
    calls: list[Any] = []
    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", lambda *args: calls.append(args) or ring_conv(*args))
    module, results = case.module(dtype=torch.float64), []
    for algorithm in ("dense", "ring"):
        monkeypatch.setenv("MONAI_SRE_ALGORITHM", algorithm)
        for size in (case.shape[2:], *case.sizes):
            x = case.input(size, torch.float64).requires_grad_()
            out = module(x)
            results.append([out, *torch.autograd.grad(loss(out), [x, *module.parameters()])])
    assert len(calls) == len(results) // 2
    assert relative_error(results[len(calls) :], results[: len(calls)]) < 1e-12


def check_compiled(case: Case, backend: str) -> None:
    """Assert that the compiled module has the outputs and the gradients of the module itself."""
    torch._dynamo.reset()
    module, twin, x = case.module(), case.module(), case.input()
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert relative_error(compiled(x), module(x)) < 1e-5
    results = []
    for call, owner in ((compiled, twin), (module, module)):
        inputs = [x.clone().requires_grad_(), *owner.parameters()]
        results.append(torch.autograd.grad(loss(call(inputs[0])), inputs))
    assert relative_error(*results) < 1e-4


def loss(out: Any) -> Tensor:
    """A smooth scalar of all outputs, with all its derivatives."""
    return torch.stack(
        [(leaf.float() if leaf.dtype == torch.bfloat16 else leaf).sin().sum() for leaf in tree_leaves(out)]
    ).sum()


def saved(thing: Any) -> Any:
    """``thing`` through ``torch.save`` and ``torch.load``; state dicts as strictly as MONAI loads them."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=not isinstance(thing, nn.Module))


def script_saved(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A TorchScript module through its file format."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)
