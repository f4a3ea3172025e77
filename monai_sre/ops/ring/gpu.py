"""The ring algorithm and energies on GPUs: what calls the kernels in Triton (:mod:`monai_sre.ops.ring.gpu_kernels`).

Sums over rings are mixed in the kernel that forms them where all output channels fit into one block; else they are written
out for a piece of the batch, and cuBLAS mixes them. A training step keeps the input and the weights alone. Nothing here waits
for the device, looks at values, or uses a stream of its own, so CUDA graphs capture it.

Operands that the kernels do not take, devices older than :data:`OLDEST`, a missing Triton and a kernel that does not compile
take :mod:`monai_sre.ops.ring.portable`; the last three say so once in the log.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_sre.ops.arguments import constant_of_graphs
from monai_sre.ops.ring.portable import joined_stencils, ring_scales

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
#: Compute capability from which on Triton has all that the kernels use.
OLDEST = (8, 0)
#: Compute capabilities for which ``benchmarks/results`` holds a measurement: there ``algorithm="auto"`` takes these kernels.
MEASURED: frozenset[tuple[int, int]] = frozenset()
#: Output channels of a program at most; where there are more, sums are formed again for the others, or written out.
MOST_OUTPUTS = 128
#: Multiply-adds of a program's lanes in the time in which the device writes and reads a value; from data sheets.
WRITING = 40
#: Values of sums that are written out at once.
MOST_SUMS = 1 << 27
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_failed: list[str] = []


@constant_of_graphs
def _serves(device: torch.device, asked: bool) -> bool:
    capability = torch.cuda.get_device_capability(device)
    return (asked or capability in MEASURED) and _is_new_enough(capability) and _has_triton()


@cache
def _is_new_enough(capability: tuple[int, int]) -> bool:
    if capability < OLDEST:
        found, needed = (".".join(map(str, numbers)) for numbers in (capability, OLDEST))
        _log.warning(
            "A GPU of compute capability %s is older than %s: torch's own convolutions form sums over rings",
            found,
            needed,
        )
    return capability >= OLDEST


@cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        _log.warning("Triton is not installed: on GPUs, torch's own convolutions form sums over rings")
    return found


def usable(x: Tensor, asked: bool) -> bool:
    """Whether the kernels may compute with ``x``.

    Args:
        x: an operand on any device.
        asked: whether a user asked for them (``algorithm="ring"``), also where nothing was measured.

    Example:
        >>> usable(torch.zeros(1, 1, 4), asked=True)  # not on a CPU
        False
    """
    own = x.device.type == "cuda" and torch.version.hip is None and x.dtype in _DTYPES and not _failed
    return own and _fits(x) and _serves(x.device, asked)


def _fits(x: Tensor) -> bool:
    """Whether positions and offsets within an image are numbers of 32 bits, and there is something to compute."""
    return x.numel() > 0 and x[0].numel() < 2**31 and x.shape[0] * math.prod(x.shape[2:]) < 2**30


def attempt(function: Callable[..., _Result], first: Tensor, *operands: Any) -> _Result | None:
    """What a function of this module gives; ``None``, now and from now on, where its kernels do not compile or start."""
    try:
        with torch.cuda.device_of(first):  # Triton starts kernels on the current device
            return function(first, *operands)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _failed.append(repr(error))
        _log.warning("The kernels in Triton cannot run, and torch's own convolutions do: %r", error)
        return None


def _writes(outputs: int, basis: Tensor) -> bool:
    """Whether it is cheaper to write sums out than to form them for each block of output channels."""
    return (_blocks(outputs, MOST_OUTPUTS) - 1) * math.prod(basis.shape[1:]) > WRITING


class _Images:
    """Sizes and strides of a batch of images as the kernels take them: axes that are missing have size 1."""

    def __init__(self, x: Tensor) -> None:
        self.size = _triple(x.shape[2:], 1)
        self.strides = (x.stride(0), x.stride(1), *_triple(x.stride()[2:], 0))
        self.positions = x.shape[0] * math.prod(self.size)


def _triple(values: Sequence[int], missing: int) -> tuple[int, ...]:
    return (missing,) * (3 - len(values)) + tuple(values)


def ring_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Values of :func:`monai_sre.ops.ring.convolution.ring_conv`, without groups; in the memory order of ``x``."""
    weight = weight.contiguous()
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, basis.shape[1:], stride, strict=True)
    ]
    geometry = {"STRIDE": stride, "PADDING": padding, "DILATION": dilation, "ZOOM": (1, 1, 1), "MIRROR": False}
    return _mixed_sums(x, weight, bias, basis, size, geometry)


def ring_conv_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`ring_conv` by input, weight and bias, those that are wanted."""
    by_x = by_weight = by_bias = None
    weight = weight.contiguous()
    if wanted[0]:
        reach = [(k - 1) * d - p for k, d, p in zip(basis.shape[1:], dilation, padding, strict=True)]
        geometry = {"STRIDE": (1, 1, 1), "PADDING": reach, "DILATION": dilation, "ZOOM": stride, "MIRROR": True}
        by_x = _mixed_sums(grad, weight.transpose(0, 1), None, basis, x.shape[2:], geometry, like=x)
    if wanted[1]:
        by_weight = _weight_gradient(grad, x, weight, basis, stride, padding, dilation)
    if wanted[2]:
        by_bias = grad.sum(dim=[0, *range(2, grad.dim())])
    return by_x, by_weight, by_bias


def _mixed_sums(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    basis: Tensor,
    size: Sequence[int],
    geometry: dict[str, Any],
    like: Tensor | None = None,
) -> Tensor:
    """Sums of ``x`` over rings, mixed by ``weight`` of shape ``(outputs, channels, b)``."""
    outputs, channels, rings = weight.shape
    out = _empty(x if like is None else like, (x.shape[0], outputs, *size))
    if out.numel() == 0:
        return out
    constants = _constants(basis, geometry)
    if _writes(outputs, basis):
        mixer = (weight * ring_scales(basis).to(weight.dtype) if weight.dtype == torch.float16 else weight).flatten(1)
        piece = max(1, MOST_SUMS // (channels * rings * math.prod(size)))
        for images, target in zip(x.split(piece), out.split(piece), strict=True):
            mixed = torch.matmul(mixer, _written_sums(images, basis, size, constants)).reshape(target.shape)
            target.copy_(mixed if bias is None else mixed + bias.reshape(-1, *[1] * len(size)))
        return out
    source, target = _Images(x), _Images(out)
    block_o = _power(outputs, 16, MOST_OUTPUTS)
    block_c = max(1, 32 // constants["RINGS"])
    block_p = _power(target.positions, 16, 64)
    grid = (_blocks(target.positions, block_p), _blocks(outputs, block_o))
    _kernels().ring_conv[grid](
        x,
        weight,
        basis.contiguous(),
        x if bias is None else bias,
        out,
        target.positions,
        channels,
        outputs,
        *source.size,
        *target.size,
        *source.strides,
        *target.strides,
        weight.stride(0),
        weight.stride(1),
        **constants,
        BLOCK_C=block_c,
        BLOCK_O=block_o,
        BLOCK_P=block_p,
        HAS_BIAS=bias is not None,
        **_products(x),
        num_warps=4 if block_o <= 64 else 8,
    )
    return out


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    outputs, channels, rings = weight.shape
    if grad.numel() == 0:
        return torch.zeros_like(weight)
    geometry = {"STRIDE": stride, "PADDING": padding, "DILATION": dilation, "ZOOM": (1, 1, 1), "MIRROR": False}
    constants = _constants(basis, geometry)
    if _writes(outputs, basis):
        size, total = grad.shape[2:], weight.new_zeros(outputs, channels * rings, dtype=torch.float32)
        piece = max(1, MOST_SUMS // (channels * rings * math.prod(size)))
        for slopes, images in zip(grad.split(piece), x.split(piece), strict=True):
            sums = _written_sums(images, basis, size, constants)
            total += torch.matmul(slopes.flatten(2), sums.mT).sum(dim=0, dtype=torch.float32)
        found = total.reshape(weight.shape)
        return (found * ring_scales(basis) if x.dtype == torch.float16 else found).to(weight.dtype)
    source, target = _Images(x), _Images(grad)
    block_o, block_p = _power(outputs, 16, MOST_OUTPUTS), _power(target.positions, 16, 64)
    block_c = max(1, 32 // constants["RINGS"])
    columns = _blocks(channels, block_c)
    splits = max(1, min(_blocks(target.positions, block_p), 4 * _processors(x) // columns))
    parts = torch.empty(splits, *weight.shape, dtype=torch.float32, device=x.device)
    constants = {name: value for name, value in constants.items() if name not in ("ZOOM", "MIRROR")}
    _kernels().ring_weight_gradient[(columns, _blocks(outputs, block_o), splits)](
        grad,
        x,
        basis.contiguous(),
        parts,
        target.positions,
        channels,
        outputs,
        *source.size,
        *target.size,
        *source.strides,
        *target.strides,
        **constants,
        BLOCK_C=block_c,
        BLOCK_O=block_o,
        BLOCK_P=block_p,
        **_products(x),
        num_warps=4 if block_o <= 64 else 8,
    )
    return parts.sum(dim=0).to(weight.dtype)


def _written_sums(x: Tensor, basis: Tensor, size: Sequence[int], constants: dict[str, Any]) -> Tensor:
    """Sums over rings, shape ``(N, channels * b, positions)``."""
    channels, rings = x.shape[1], basis.shape[0]
    out = torch.empty(x.shape[0], channels * rings, math.prod(size), dtype=x.dtype, device=x.device)
    source, positions = _Images(x), x.shape[0] * math.prod(size)
    block_c, block_p = max(1, 16 // constants["RINGS"]), _power(positions, 16, 128)
    _kernels().ring_sums[(_blocks(positions, block_p), _blocks(channels, block_c))](
        x,
        basis.contiguous(),
        out,
        positions,
        channels,
        *source.size,
        *_triple(size, 1),
        *source.strides,
        **constants,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
    return out


def add_energies(
    radial: Tensor,
    maps: Tensor,
    stencils: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    eps: float,
) -> Tensor:
    """Values of :func:`monai_sre.ops.energy.add_energies`, in the memory order of ``radial``."""
    packed, starts = _packed(stencils)
    blocks, images = _energy_blocks(maps, packed), _Images(maps)
    outputs, channels = weight.shape[0], maps.shape[1]
    block_o, out = _power(outputs, 16, MOST_OUTPUTS), _empty(radial, radial.shape)
    _kernels().add_energies[(_blocks(images.positions, blocks["BLOCK_P"]), _blocks(outputs, block_o))](
        radial,
        maps,
        packed,
        weight.contiguous(),
        radial if bias is None else bias,
        out,
        images.positions,
        channels,
        outputs,
        channels // groups,
        eps,
        *images.size,
        *images.strides,
        *_Images(radial).strides,
        *_Images(out).strides,
        **blocks,
        BLOCK_O=block_o,
        STARTS=starts,
        HAS_BIAS=bias is not None,
        **_products(maps),
        num_warps=4 if block_o <= 64 else 8,
    )
    return out


def add_energies_gradients(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`add_energies` by maps, weight and bias, those that are wanted."""
    values, by_maps = energies(maps, stencils, groups, eps, grad if wanted[0] else None, weight)
    by_weight = None
    if wanted[1]:
        slopes, blocks = grad.unflatten(1, (groups, -1)).flatten(3), values.unflatten(1, (groups, -1)).flatten(3)
        by_weight = torch.matmul(slopes, blocks.mT).sum(dim=0).reshape(weight.shape)
    return by_maps, by_weight, grad.sum(dim=[0, *range(2, grad.dim())]) if wanted[2] else None


def energies(
    x: Tensor,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    grad: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Energies of all orders and, where a gradient is given, that by ``x``.

    Args:
        x: shape ``(N, C, *spatial)``.
        stencils: those of each order, of odd sizes.
        groups: the orders stand one after the other in each group of channels.
        eps: added to the sum of squares.
        grad: by the energies, shape ``(N, len(stencils) * C, *spatial)``; or with ``weight`` by what it mixes them to.
        weight: shape ``(out_channels, len(stencils) * C / groups, 1, ...)``.
    """
    packed, starts = _packed(stencils)
    channels, images, blocks = x.shape[1], _Images(x), _energy_blocks(x, packed)
    grid = (_blocks(images.positions, blocks["BLOCK_P"]), _blocks(channels, blocks["BLOCK_C"]))
    values = x.new_empty(x.shape[0], len(stencils) * channels, *x.shape[2:])
    slopes = values if grad is None else x.new_empty(x.shape[0], channels * packed.shape[0], *x.shape[2:])
    outputs = 0 if weight is None else weight.shape[0]
    _kernels().energies[grid](
        x,
        packed,
        values if grad is None else grad,
        x if weight is None else weight.contiguous(),
        values,
        slopes,
        images.positions,
        channels,
        outputs,
        channels // groups,
        eps,
        *images.size,
        *images.strides,
        *_Images(values if grad is None else grad).strides,
        **blocks,
        BLOCK_O=_power(outputs, 16, 64) if outputs else 16,
        STARTS=starts,
        WITH_SLOPES=grad is not None,
        MIXED=weight is not None,
        **_products(x),
    )
    if grad is None:
        return values, None
    by_x = _empty(x, x.shape)
    _kernels().energy_gradient[grid](
        slopes, packed, by_x, images.positions, channels, *images.size, *_Images(by_x).strides, **blocks
    )
    return values, by_x


def _energy_blocks(x: Tensor, packed: Tensor) -> dict[str, Any]:
    """Constants of the kernels for energies: 16 channels, as many as a product needs, and few enough values in registers."""
    constants = _constants(packed, {})
    positions = x.shape[0] * math.prod(x.shape[2:])
    return {"BLOCK_C": 16, "BLOCK_P": _power(positions, 16, max(16, 128 // constants["RINGS"])), **constants}


def _packed(stencils: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """Stencils of all orders as one contiguous tensor, and where the components of each begin."""
    packed = joined_stencils(stencils, torch.float32).contiguous()
    return packed, (0, *accumulate(len(stencil) for stencil in stencils))


def _constants(basis: Tensor, geometry: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "B": basis.shape[0],
        "RINGS": _power(basis.shape[0]),
        "KERNEL": _triple(basis.shape[1:], 1),
    }
    for name, value in geometry.items():
        found[name] = value if isinstance(value, bool) else _triple(value, 0 if name == "PADDING" else 1)
    return found


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a tensor, with channels last where ``like`` has them so."""
    out = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim())
    if layout is not None and like.is_contiguous(memory_format=layout) and not like.is_contiguous():
        out = torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout)
    return out


def _products(x: Tensor) -> dict[str, Any]:
    """How matrices are multiplied: float32 as torch's convolutions are allowed to."""
    interpreted = x.device.type == "cpu"
    precision = "ieee" if interpreted or not torch.backends.cudnn.allow_tf32 else "tf32"
    return {"PRECISION": precision, "WIDEN": interpreted and x.dtype == torch.bfloat16}


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.device.type == "cuda" else 1


def _power(count: int, least: int = 1, most: int = 1 << 30) -> int:
    """The power of two from ``count`` up, within limits."""
    return min(most, max(least, 1 << (count - 1).bit_length()))


def _blocks(count: int, block: int) -> int:
    return -(-count // block)


def _kernels() -> Any:
    from monai_sre.ops.ring import gpu_kernels

    return gpu_kernels
