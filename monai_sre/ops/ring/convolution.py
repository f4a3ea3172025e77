r"""The ring algorithm: convolution with radial kernels at ``b`` multiply-adds per channel pair instead of one per tap.

**The idea.** A kernel ``weight @ basis`` makes the convolution a sum over rings,

.. math:: y[n, o] = \sum_{i, r} weight[o, i, r] \; S_r(x[n, i]), \qquad S_r(x)[p] = \sum_t basis[r, t] \; x[p + t],

so it suffices to sum the input over each ring once (additions only, ``b`` maps per channel) and then to mix the ``C b``
maps into the output channels with one matrix product. At 9 x 9 that is 5 multiply-adds per channel pair and not 81, at
5 x 5 x 5 it is 3 and not 125. Nothing below needs the basis to be radial: it serves sums over any fixed basis.

**Few additions.** Taps whose coefficients agree are summed once: first along x (``u_a = x[p - a] + x[p + a]``), then
these sums along y, then along z. A 9 x 9 band kernel takes about 45 additions, whatever the number of output
channels. Profiles that are not 0 or 1 sum over the sets of taps of equal radius and mix those few maps
(:mod:`monai_sre.ops.ring.plan`).

**Little memory.** The ``C b`` maps of a whole batch would be ``b`` times the input, and reading them from memory
would cost more than the product. So they exist only in tiles: a few images, some planes of a volume, or some rows of
a plane. Each thread sums a tile, multiplies it while it lies in its own cache, and uses the memory again for the
next.

**Two passes for a training step.** Transposing ``S_r`` mirrors the basis, so the ring sums of the output gradient,
``R = S^T(g)``, give both gradients:

.. math:: \partial x[n, i] = \sum_{o, r} weight[o, i, r] \; R_r(g[n, o]), \qquad
          \partial weight[o, i, r] = \sum_n \langle R_r(g[n, o]), x[n, i] \rangle.

Only ``x`` and ``weight`` are kept between forward and backward, as for any convolution. With a stride, ``R`` would
live on the finer grid, so the weights' gradient uses ``S(x)`` instead, and so it does where the input needs no
gradient and has fewer channels.

**Small maps.** For the smallest maps, the sums of all positions are one product with a constant matrix.

Both passes are one operation, ``contract``: take the sums ``S`` of an image tile by tile, and form ``weight . S`` or
``S . other^T`` or both. On a CPU :mod:`monai_sre.ops.ring.cpu` (compiled C) does it, and is one operator of the graph under
``torch.compile``. On a GPU :mod:`monai_sre.ops.ring.gpu` (Triton) does the same, tile by tile in registers. Without a
compiler, and on every other device, :mod:`monai_sre.ops.ring.portable` forms the sums with torch's own convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_sre.ops.dispatch import (
    is_at_hand,
    is_eager_cpu_call,
    keep_subclass,
    memory_format_of,
    needs_gradient,
    under_autocast,
    under_transform,
    without_autocast,
)
from monai_sre.ops.ring import cpu as ring_cpu
from monai_sre.ops.ring import gpu
from monai_sre.ops.ring.plan import Geometry, Plan, Triple, convolution_geometry, plans, spatial_triple
from monai_sre.ops.ring.portable import portable_ring_conv, portable_ring_gradients


@keep_subclass
def ring_conv(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
    asked: bool = True,
) -> Tensor:
    """Convolution with the kernel ``weight @ basis`` by the ring algorithm; zero padding.

    Args:
        x: input of shape ``(N, C, *spatial)`` or ``(C, *spatial)``, 1 to 3 spatial axes, any strides.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``; no gradient flows to it.
        bias: shape ``(out_channels,)``, or ``None``.
        stride: one integer per spatial axis; so ``padding`` and ``dilation``.
        groups: number of blocks of channels that do not mix.
        asked: whether a user asked for this algorithm, so that its kernels run on GPUs where nothing was measured, too.

    Returns:
        What ``torch.nn.functional.conv*d`` gives for the dense kernel: same dtype, also under autocast, and
        channels-last where the input is. Half precision is summed and mixed in float32. Gradients of any order;
        those of second and higher order take the dense algorithm.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.tensor([[[1.0, 10.0]]])
        >>> basis = torch.tensor([[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]])
        >>> ring_conv(x, weight, basis, padding=(1, 1), stride=(1, 1), dilation=(1, 1))
        tensor([[[[21., 31., 21.],
                  [31., 41., 31.],
                  [21., 31., 21.]]]])
    """
    if x.dim() == basis.dim():
        return ring_conv(x.unsqueeze(0), weight, basis, bias, stride, padding, dilation, groups, asked).squeeze(0)
    device = x.device.type
    if under_autocast(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    _check_operands(x, weight, basis, bias, (stride, padding, dilation), groups)
    compiled = torch.compiler.is_compiling() and device == "cpu" and ring_cpu.compiled_for(x.dtype)
    if compiled or (groups == 1 and not is_at_hand(x) and gpu.usable(x, asked)):
        return _ring_operator(x, weight, bias, basis, list(stride), list(padding), list(dilation), groups, asked)
    if not needs_gradient(x, weight, bias):
        return _values(x, weight, bias, basis, stride, padding, dilation, groups, asked)
    return _RingConv.apply(x, weight, bias, basis, tuple(stride), tuple(padding), tuple(dilation), groups, asked)


def _check_operands(
    x: Tensor, weight: Tensor, basis: Tensor, bias: Tensor | None, sizes: tuple[Sequence[int], ...], groups: int
) -> None:
    ndim = basis.dim() - 1
    if not 1 <= ndim <= 3 or x.dim() != ndim + 2 or any(len(size) != ndim for size in sizes):
        raise ValueError(
            "stride, padding and dilation must have one integer, and x one axis, for each of the 1 to 3 spatial axes "
            f"of basis, got {sizes}, x of shape {tuple(x.shape)} and basis of shape {tuple(basis.shape)}"
        )
    if weight.dim() == 3 and weight.shape[2] == basis.shape[0] and weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"x must have {weight.shape[1] * groups} channels for weight of shape {tuple(weight.shape)} and "
            f"groups={groups}, got shape {tuple(x.shape)}"
        )
    if weight.dim() != 3 or weight.shape[2] != basis.shape[0]:
        raise ValueError(
            f"weight must have shape (out_channels, {x.shape[1]} / {groups}, {basis.shape[0]}), "
            f"got {tuple(weight.shape)}"
        )
    if weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"out_channels must be divisible by groups={groups} and bias must have that shape, got weight of shape "
            f"{tuple(weight.shape)} and bias of shape {None if bias is None else tuple(bias.shape)}"
        )
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        dtypes = [None if operand is None else operand.dtype for operand in (x, weight, bias)]
        raise ValueError(f"x, weight and bias must have one dtype, got {dtypes}")


def _uses_engine(x: Tensor) -> bool:
    """Whether the C engine computes with an operand that is at hand."""
    return is_eager_cpu_call(x, x) and ring_cpu.compiled_for(x.dtype)


class _RingConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        basis: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        asked: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, basis)
        ctx.sizes = (stride, padding, dilation, groups)
        ctx.has_bias, ctx.asked = bias is not None, asked
        return _values(x, weight, bias, basis, stride, padding, dilation, groups, asked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, basis = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.sizes
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2])
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or under_transform(grad)):
            with without_autocast(x.device.type):  # create_graph: what torch can differentiate again
                grads = _dense_backward(grad, x, weight, basis, stride, padding, dilation, groups, wanted)
        else:
            grads = _gradients(grad, x, weight, basis, stride, padding, dilation, groups, ctx.asked, wanted)
        return (*grads, *[None] * 6)


def _values(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    asked: bool,
) -> Tensor:
    with without_autocast(x.device.type):
        if _uses_engine(x):
            return _forward(x, weight, bias, _problem(x, basis, stride, padding, dilation, groups))
        if groups == 1 and gpu.usable(x, asked):
            found = gpu.attempt(gpu.ring_conv, x, weight, bias, basis, stride, padding, dilation)
            if found is not None:
                return found
        image, mixer, offset = (_computable(operand) for operand in (x, weight, bias))
        assert image is not None
        assert mixer is not None
        out = portable_ring_conv(image, mixer, basis, offset, stride, padding, dilation, groups)
        return _in_layout_of(out, x)


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    asked: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, those that are wanted."""
    with without_autocast(x.device.type):
        if _uses_engine(x):
            problem = _problem(x, basis, stride, padding, dilation, groups)
            return _backward(grad, x, weight, problem, (wanted[0], wanted[1], wanted[2]))
        if groups == 1 and gpu.usable(x, asked):
            found = gpu.attempt(gpu.ring_conv_gradients, grad, x, weight, basis, stride, padding, dilation, wanted)
            if found is not None:
                return found
        slope, image, mixer = (_computable(operand) for operand in (grad, x, weight))
        assert slope is not None
        assert image is not None
        assert mixer is not None
        by_x, by_weight, by_bias = portable_ring_gradients(
            slope, image, mixer, basis, stride, padding, dilation, groups, list(wanted)
        )
        return (
            None if by_x is None else _in_layout_of(by_x, x),
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(weight.dtype),
        )


def _computable(operand: Tensor | None) -> Tensor | None:
    """On a CPU in float32 in place of half precision, whose convolutions are slow there and round the sums."""
    if operand is None or operand.device.type != "cpu":
        return operand
    return operand.to(ring_cpu.computed_in(operand.dtype))


@torch.library.custom_op("monai_sre::ring_conv", mutates_args=(), device_types=("cpu", "cuda"))
def _ring_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    asked: bool,
) -> Tensor:
    """The operator that stands for our own code where values are not at hand, as in a graph of ``torch.compile``."""
    return _values(x, weight, bias, basis, stride, padding, dilation, groups, asked)


@_ring_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, basis: Tensor, *settings: Any) -> Tensor:
    stride, padding, dilation, *_ = settings
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, basis.shape[1:], stride, strict=True)
    ]
    return _in_layout_of(x.new_empty(x.shape[0], weight.shape[0], *size), x)


@torch.library.custom_op("monai_sre::ring_conv_gradients", mutates_args=(), device_types=("cpu", "cuda"))
def _ring_gradients_operator(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    asked: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    grads = _gradients(grad, x, weight, basis, stride, padding, dilation, groups, asked, wanted)
    return [item for item in grads if item is not None]


@_ring_gradients_operator.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> list[Tensor]:
    likes = (_in_layout_of(x.new_empty(x.shape), x), torch.empty_like(weight, memory_format=torch.contiguous_format))
    return [item for item, use in zip((*likes, weight.new_empty(len(weight))), settings[-1], strict=True) if use]


def _keep_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, basis, *ctx.sizes = inputs
    ctx.save_for_backward(x, weight, basis)
    ctx.has_bias = bias is not None


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    found = iter(_ring_gradients_operator(grad, *ctx.saved_tensors, *ctx.sizes, wanted))
    return (*[next(found) if use else None for use in wanted], *[None] * 6)


_ring_operator.register_autograd(_operator_gradients, setup_context=_keep_for_gradients)


def _dense_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    flat = basis.detach().to(weight.dtype).flatten(1)
    kernel = (weight @ flat).unflatten(-1, basis.shape[1:])
    zeros = [0] * len(stride)
    grad_x, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
        grad, x, kernel, [weight.shape[0]], stride, padding, dilation, False, zeros, groups, wanted
    )
    # reshape, not flatten, which batches of gradients do not know
    grad_weight = grad_kernel.reshape(*grad_kernel.shape[:2], -1) @ flat.T if wanted[1] else None
    return grad_x if wanted[0] else None, grad_weight, grad_bias if wanted[2] else None


@dataclass(frozen=True)
class _Problem:
    """One convolution, prepared: plans and geometries of the pass forward and of its transpose."""

    basis: Tensor
    groups: int
    plan: Plan
    mirrored: Plan
    geometry: Geometry
    adjoint: Geometry


def _problem(
    x: Tensor, basis: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> _Problem:
    dtype = ring_cpu.computed_in(x.dtype)
    basis = basis.detach().to(dtype)
    plan, mirrored = plans(basis)
    geometry = convolution_geometry(x.shape[2:], plan.kernel, stride, padding, dilation)
    return _Problem(basis, groups, plan, mirrored, geometry, geometry.adjoint(plan.kernel))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: _Problem) -> Tensor:
    """``y = weight . S(x) + bias``."""
    image, out_size = _as_volumes(x), problem.geometry.out_size
    out = image.new_empty(x.shape[0], weight.shape[0], *_spatial_size(out_size, x.dim() - 2))
    mixer = _map_weights(weight.to(image.dtype), problem.plan).unflatten(0, (problem.groups, -1))
    offset = None if bias is None else bias.detach().to(image.dtype).contiguous()
    _contract(image, problem.plan, problem.geometry, problem.groups, mixer, offset, _as_volumes(out))
    return _in_layout_of(out, x)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, problem: _Problem, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, those that are wanted."""
    grad_x = grad_bias = out = mixer = None
    groups, slope, image = problem.groups, _as_volumes(grad), _as_volumes(x)
    strided = problem.geometry.stride != (1, 1, 1)
    from_input = wanted[1] and (strided or (not wanted[0] and x.shape[1] <= weight.shape[0]))
    from_slope = wanted[1] and not from_input
    plan = problem.plan if from_input else problem.mirrored
    by_maps = slope.new_empty(*weight.shape[:2], plan.maps) if wanted[1] else None
    total = None if by_maps is None else by_maps.unflatten(0, (groups, -1))  # (groups, O / groups, I / groups, maps)
    if wanted[0]:
        grad_x = slope.new_empty(x.shape)
        mixer = _map_weights(weight.to(slope.dtype), problem.mirrored).unflatten(0, (groups, -1)).transpose(1, 2)
        out = _as_volumes(grad_x)
    if wanted[0] or from_slope:  # R = S^T(grad)
        pair = (image, total) if from_slope else (None, None)
        _contract(slope, problem.mirrored, problem.adjoint, groups, mixer, None, out, *pair)
    if from_input and total is not None:
        _contract(image, plan, problem.geometry, groups, other=slope, total=total.transpose(1, 2))
    if wanted[2]:
        grad_bias = slope.sum(dim=(0, 2, 3, 4)).to(grad.dtype)
    grad_x = None if grad_x is None else _in_layout_of(grad_x, x)
    return grad_x, None if by_maps is None else _ring_gradient(by_maps, plan).to(weight.dtype), grad_bias


def _contract(
    x: Tensor,
    plan: Plan,
    geometry: Geometry,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    other: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """``contract`` of the C engine, also for empty batches; see :func:`monai_sre.ops.ring.cpu.contract`."""
    if x.numel():
        ring_cpu.contract(x, plan, geometry, groups, weight, bias, out, other, total)
        return
    if out is not None:
        out.copy_(out.new_zeros(1) if bias is None else bias.reshape(1, -1, 1, 1, 1))
    if total is not None:
        total.zero_()


def _map_weights(weight: Tensor, plan: Plan) -> Tensor:
    """The weights of the plan's maps, shape ``(O, I, maps)``."""
    weight = weight.detach()
    return weight if plan.fold is None else weight @ torch.from_numpy(plan.fold).to(weight.dtype)


def _ring_gradient(grad: Tensor, plan: Plan) -> Tensor:
    return grad if plan.fold is None else grad @ torch.from_numpy(plan.fold).to(grad.dtype).T


def _as_volumes(x: Tensor) -> Tensor:
    """``x`` as contiguous ``(N, C, D, H, W)`` in the dtype of computation."""
    values = x.detach().to(ring_cpu.computed_in(x.dtype)).contiguous()
    return values.reshape(*x.shape[:2], *spatial_triple(x.shape[2:], 1))


def _spatial_size(size: Triple, ndim: int) -> tuple[int, ...]:
    """The spatial axes of an image of ``ndim`` axes: the inverse of ``spatial_triple``."""
    return (size[1],) if ndim == 1 else size[3 - ndim :]


def _in_layout_of(out: Tensor, x: Tensor) -> Tensor:
    """``out`` in the dtype and memory order of ``x``."""
    out, layout = out.to(x.dtype), memory_format_of(x)
    return out if layout is torch.contiguous_format else out.contiguous(memory_format=layout)
