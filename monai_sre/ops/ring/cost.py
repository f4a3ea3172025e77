"""The choice between the dense and the ring algorithm: a small cost model.

**Eager on a CPU.** Both algorithms are costed as counts (calls, vector operations of the sums and of the products, values
moved, weights) times the time that one of each takes. The counts follow from the shapes; the times, :data:`DENSE` and
:data:`RING`, are fitted by ``benchmarks/speed.py --fit`` to the shapes of ``benchmarks/results/speed_choice_cpu.json``, and
``benchmarks/results/speed.md`` says how often they choose wrongly there. Only their ratios matter for the choice, and
these change little between processors of one kind.

**Compiled on a CPU.** The ring algorithm where its C engine is: the model takes it at nearly all shapes that a step's time
goes into, and a graph that held the choice for one batch would be compiled anew for the next.

**Other devices.** Counts of multiply-adds and of values moved, weighed by :data:`DEVICE`: nothing was measured on one yet.

**Exported graphs** (:func:`prefers_rings`). Such counts, weighed by :data:`EXPORTED`, from ONNX Runtime on a CPU.

Where the model errs for a network, ``algorithm=`` of a layer or the environment variable ``MONAI_SRE_ALGORITHM`` (``dense``,
``ring``, ``auto``) overrides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from monai_sre.ops.dispatch import is_eager_cpu_call, under_autocast
from monai_sre.ops.ring.cpu import compiled_for
from monai_sre.ops.ring.plan import Plan, convolution_geometry, plans, spatial_triple

#: Nanoseconds on one thread of: a forward call, a backward call, a multiply-add of vectors, a value read or written, a
#: weight of the kernel.
DENSE = (29_100.0, 259_000.0, 0.084, 2.09, 2.5)
#: Nanoseconds on one thread of: a forward call, a backward call, an addition of vectors, a multiply-add of vectors, a value
#: read or written, a weight of the rings.
RING = (106_000.0, 255_000.0, 0.647, 0.252, 0.96, 3.25)
#: The ring algorithm is chosen where this share of its estimate is below that of the dense one, which is more often too low.
RING_SHARE = 0.8
#: How many times slower the ring algorithm is without a compiler: about the most that it is.
UNCOMPILED = 3.0
#: A multiply-add of the dense algorithm in bfloat16 on a CPU with matrix units for it (AMX), in one of float32. Without
#: them, and in float16, torch is no faster than in float32, and often far slower.
MATRIX_UNITS = 0.25
#: Multiply-adds in the time in which a device reads or writes a value: of a convolution with channels that mix, and of a
#: depthwise one. From the data sheets of GPUs at a third of the peak, for values of 4 bytes; twice that for 2 bytes.
DEVICE = (40.0, 20.0)
#: Values moved that a depthwise tap costs in ONNX Runtime on a CPU: channels in blocks of 8, and others.
EXPORTED = (2.5, 12.0)
_LANES = 16


def choose_algorithm(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> str:
    """``"dense"`` or ``"ring"``, whichever is estimated to be faster for these operands.

    Dense is chosen for kernels of one tap, and for depthwise and grouped convolutions.

    Args:
        x: input of shape ``(N, C, *spatial)`` or ``(C, *spatial)``; only its shape, dtype and device count, and whether
            it needs a gradient.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``.
        stride: one integer per spatial axis; so ``padding`` and ``dilation``.
        groups: number of blocks of channels that do not mix.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, basis = torch.empty(8, 64, 32, 32), radial_basis((1, 1))
        >>> choose_algorithm(x, torch.empty(64, 64, 1), basis, [1, 1], [0, 0], [1, 1], 1)  # one tap: nothing to sum
        'dense'
    """
    ndim = basis.dim() - 1
    if x.dim() not in (ndim + 1, ndim + 2):
        return "dense"  # which says what does not fit
    channels, out_channels = x.shape[-basis.dim()], weight.shape[0]
    taps = math.prod(basis.shape[1:])
    if groups > 1 or taps == 1:
        return "dense"
    dtype = x.dtype
    if under_autocast(x.device.type):
        dtype = dtype if dtype == torch.float64 else torch.get_autocast_dtype(x.device.type)
    if x.device.type != "cpu":
        shrinking = math.prod(stride)
        return "ring" if _device_share(channels, out_channels, basis.shape[0], taps, shrinking, dtype) < 1 else "dense"
    if torch.compiler.is_compiling():
        return "ring" if compiled_for(dtype) else "dense"
    if not is_eager_cpu_call(x, weight):  # the engine would not run, and fake tensors have no values
        return "dense"
    reach = (d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, basis.shape[1:], padding, strict=True))
    if x.numel() == 0 or any(r > n for r, n in zip(reach, x.shape[-ndim:], strict=True)):
        return "dense"  # which also says what does not fit
    batch = x.shape[0] if x.dim() > ndim + 1 else 1
    size = spatial_triple(x.shape[-ndim:], 1)
    training = torch.is_grad_enabled() and (weight.requires_grad, x.requires_grad)
    counts = operation_counts(batch, channels, out_channels, size, basis, stride, padding, dilation, training)
    return _cheaper_on_cpu(counts, dtype, torch.get_num_threads())


def _cheaper_on_cpu(counts: tuple[list[float], list[float]], dtype: torch.dtype, threads: int) -> str:
    dense_costs, ring_costs = DENSE, RING
    if dtype == torch.float16:
        return "ring"
    if dtype == torch.bfloat16:
        products = DENSE[2] * (MATRIX_UNITS if torch.cpu._is_amx_tile_supported() else 1.0)
        dense_costs = (*DENSE[:2], products, *DENSE[3:])
        ring_costs = (*RING[:4], RING[4] + 1.0, *RING[5:])  # values are widened and rounded
    dense, ring = estimate(dense_costs, counts[0], threads), estimate(ring_costs, counts[1], threads)
    ring *= RING_SHARE * (1.0 if compiled_for(dtype) else UNCOMPILED)
    return "ring" if ring < dense else "dense"


def _device_share(channels: int, out_channels: int, rings: int, taps: int, shrinking: int, dtype: torch.dtype) -> float:
    """Estimated time of the ring algorithm in that of the dense one, on a device other than the CPU."""
    width = max(1.0, 4 / dtype.itemsize)
    mixed, summed = (count * width for count in DEVICE)
    ends = channels * shrinking + out_channels
    dense = taps * channels * out_channels / mixed + ends
    return (rings * channels * (out_channels / mixed + taps / summed + 2) + ends) / dense


def prefers_rings(
    channels: int, out_channels: int, stencils: Sequence[Sequence[int]], kernel_size: Sequence[int]
) -> bool:
    """Whether an exported graph is estimated to be faster with sums over rings than with the dense kernel.

    Args:
        channels: of the input.
        out_channels: of the output.
        stencils: the size of each ring's stencil along each axis.
        kernel_size: that of the dense kernel.

    Example:
        >>> prefers_rings(64, 64, [(1, 1), (3, 3), (5, 5)], (5, 5)), prefers_rings(3, 64, [(1, 1), (3, 3), (5, 5)], (5, 5))
        (True, False)
    """
    tap = EXPORTED[0] if channels % 8 == 0 else EXPORTED[1]
    sums = tap * channels * sum(math.prod(size) for size in stencils if math.prod(size) > 1)
    ring = len(stencils) * (channels * out_channels + 8 * (channels + 2 * out_channels)) + sums
    return ring < 0.9 * math.prod(kernel_size) * channels * out_channels


def estimate(costs: Sequence[float], counts: Sequence[float], threads: int) -> float:
    """Nanoseconds: the calls, which come first, and all else shared by the threads.

    Example:
        >>> estimate((10.0, 20.0, 3.0), (1.0, 0.0, 8.0), threads=2)
        22.0
    """
    times = [cost * count for cost, count in zip(costs, counts, strict=True)]
    return sum(times[:2]) + sum(times[2:]) / threads


def operation_counts(
    batch: int,
    channels: int,
    out_channels: int,
    size: Sequence[int],
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    training: bool | tuple[bool, bool],
) -> tuple[list[float], list[float]]:
    """What :data:`DENSE` and :data:`RING` multiply: counts of both algorithms.

    Args:
        size: spatial size of the input along z, y, x.
        training: whether gradients of weight and input are formed, or ``False`` for none.
    """
    by_weight, by_input = training if isinstance(training, tuple) else (False, False)
    sizes = tuple(size), tuple(stride), tuple(padding), tuple(dilation)
    shape = basis.dim() - 1, batch, channels, out_channels
    dense, ring = _counts(plans(basis)[0], *shape, *sizes, by_weight, by_input)
    return list(dense), list(ring)


@lru_cache(maxsize=512)
def _counts(
    plan: Plan,
    ndim: int,
    batch: int,
    channels: int,
    out_channels: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    by_weight: bool,
    by_input: bool,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    geometry = convolution_geometry(size[3 - ndim :] if ndim > 1 else size[1:2], plan.kernel, stride, padding, dilation)
    values_in, values_out = batch * math.prod(size), batch * geometry.positions
    moved = values_in * channels + values_out * out_channels
    products = 1 + by_weight + by_input
    pairs = _padded(channels, _LANES) * _padded(out_channels, _LANES) / _LANES
    calls, weights = (1.0, float(by_weight or by_input)), float(channels * out_channels * products)
    taps = math.prod(plan.kernel)
    dense = (*calls, values_out * taps * pairs * products, moved * products, weights * taps)

    strided = geometry.stride != (1, 1, 1)
    summed = values_out * channels  # positions whose ring sums are formed
    mixed = values_out * channels * plan.maps * _padded(out_channels, 8) / _LANES
    if by_input or (by_weight and not strided and out_channels < channels):
        summed += values_in * out_channels
        mixed += by_input * values_in * out_channels * plan.maps * _padded(channels, 8) / _LANES
        if by_weight and not strided:
            mixed += values_in * out_channels * plan.maps * _padded(channels, _LANES) / _LANES
    if by_weight and (strided or (not by_input and out_channels >= channels)):
        summed += values_out * channels
        mixed += values_out * channels * plan.maps * _padded(out_channels, _LANES) / _LANES
    depth, height, width = geometry.out_size
    row_waste = 1.0 if plan.kernel[2] == 1 else _padded(width, _LANES) / width
    plane_waste = _padded(height * width, _LANES) / (height * width)
    terms = len(plan.columns.tap) * row_waste + len(plan.rows.tap) * plane_waste
    terms += (len(plan.groups.tap) if depth > 1 else 0) * plane_waste
    terms += 0 if plan.mix is None else int((plan.mix != 0).sum()) * plane_waste
    ring = (*calls, summed * terms / _LANES, mixed * plane_waste, moved * products, weights * plan.maps)
    return dense, ring


def _padded(count: int, step: int) -> int:
    return (count + step - 1) // step * step
