"""The ring algorithm and energies on GPUs: what calls the kernels in Triton (:mod:`monai_sre.ops.ring.gpu_kernels`).

Sums over rings are mixed in the kernel that forms them, and formed again for each block of output channels. A training step
keeps the input and the weights alone. Nothing here waits for the device, looks at values, or uses a stream of its own, so
CUDA graphs capture it.

All products of float32 follow the setting of convolutions (``torch.backends.cudnn.allow_tf32``): in TF32 where that is
allowed, else as three such products whose sum is nearly as exact as float32.

Operands that the kernels do not take, devices older than :data:`OLDEST`, a missing Triton and a kernel that does not compile
take :mod:`monai_sre.ops.ring.portable`; the last three say so once in the log.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from monai_sre.ops.arguments import constant_of_graphs
from monai_sre.ops.dispatch import memory_format_of
from monai_sre.ops.ring.portable import joined_stencils, ring_scales, scaled_rings

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
#: Compute capability from which on Triton has all that the kernels use.
OLDEST = (8, 0)
#: Compute capabilities for which ``benchmarks/results`` holds a measurement: there ``algorithm="auto"`` takes these kernels.
MEASURED: frozenset[tuple[int, int]] = frozenset()
#: Positions of a program in each image; those of its output channels at most, in which case sums are formed again for others.
POSITIONS = 32
MOST_OUTPUTS = 64
#: Places of a window that are summed at once: one product of tensor cores.
PLACES = 16
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
    """What a function of this module gives; ``None``, now and from now on, where its kernels do not compile or start.

    Also ``None``, of this call alone, where an operand is on another device, which torch's own operations then say.
    """
    if any(isinstance(part, Tensor) and part.device != first.device for part in tree_leaves(operands)):
        return None
    try:
        with torch.cuda.device_of(first):  # Triton starts kernels on the current device
            return function(first, *operands)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _failed.append(repr(error))
        _log.warning("The kernels in Triton cannot run, and torch's own convolutions do: %r", error)
        return None


class Frame(NamedTuple):
    """Constants of a compiled kernel; axes that an image lacks have size 1.

    Attributes:
        B: number of rings, or of components.
        KERNEL: taps along each axis.
        STRIDE: steps of the input between positions; ``PADDING`` and ``DILATION`` as of a convolution.
        ZOOM: zeros that are read between neighbours of the input, plus 1. A program has positions of one *phase*, each
            ``ZOOM``-th along an axis.
        TILE: positions of a program along each axis, ``BLOCK_P`` in all.
        WINDOW: what all taps of a tile reach of the input along each axis; ``FIRST`` is where it begins, for the first tile.
        BLOCK_I: images of a program, of which it takes ``BLOCK_C`` channels at once, mixed to ``BLOCK_O``.
        BLOCK_K: places of the window that are summed at once, padded to whole blocks.
        PRECISION: how Triton multiplies matrices; ``WIDEN``: those of bfloat16 as float32.
    """

    B: int
    KERNEL: tuple[int, ...]
    STRIDE: tuple[int, ...]
    PADDING: tuple[int, ...]
    DILATION: tuple[int, ...]
    ZOOM: tuple[int, ...]
    TILE: tuple[int, ...]
    WINDOW: tuple[int, ...]
    FIRST: tuple[int, ...]
    BLOCK_I: int
    BLOCK_C: int
    BLOCK_O: int
    BLOCK_P: int
    BLOCK_K: int
    PRECISION: str
    WIDEN: bool

    def tiles(self, images: int, size: Sequence[int]) -> int:
        """Tiles that hold all positions of a batch."""
        along = [_blocks(n, t * z) * z for n, t, z in zip(_triple(size, 1), self.TILE, self.ZOOM, strict=True)]
        return _blocks(images, self.BLOCK_I) * math.prod(along)


def _frame(
    x: Tensor,
    basis: Tensor,
    size: Sequence[int],
    outputs: int,
    stride: Sequence[int] = (),
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] = (),
    zoom: Sequence[int] = (),
    block_c: tuple[int, int] = (16, 64),
    most_rings: int = 6,
) -> Frame:
    """The constants of kernels.

    Args:
        x: what is summed.
        basis: shape ``(b, *kernel_size)``.
        size: that of the positions.
        outputs: channels that sums are mixed to; 0 where they are not, but added up ring by ring.
        stride: with the others as of a convolution; where no padding is given, odd kernels lie around each position.
        block_c: least and most channels of a program.
        most_rings: with more at once, a program takes half as many lines.
    """
    kernel, rings = _triple(basis.shape[1:], 1), basis.shape[0]
    padding = [length // 2 for length in kernel] if padding is None else padding
    geometry = (kernel, _triple(stride, 1), _triple(padding, 0), _triple(dilation, 1), _triple(zoom, 1))
    tiling = _tiling(_triple(size, 1), _triple(x.shape[2:], 1), *geometry)
    positions = math.prod(tiling[0])
    whole = 128 // x.element_size()  # lines of a program whose sums are few enough for its registers
    at_once = rings if outputs else 1
    lines = max(16, whole >> (at_once > min(most_rings, 12 // x.element_size())) >> (at_once > 8))
    channels, outputs = _power(x.shape[1], block_c[0], min(lines, block_c[1])), _power(outputs, 16, MOST_OUTPUTS)
    images = max(1, min(lines // channels, _power(x.shape[0]), 2 * whole**2 // (outputs * positions)))
    interpreted = x.device.type == "cpu"
    precision = "tf32" if _allows_tf32() else "tf32x3"
    return Frame(
        rings,
        *geometry,
        *tiling,
        BLOCK_I=images,
        BLOCK_C=channels,
        BLOCK_O=outputs,
        BLOCK_P=positions,
        BLOCK_K=PLACES,
        PRECISION="ieee" if interpreted else precision,
        WIDEN=interpreted and x.dtype == torch.bfloat16,
    )


def _allows_tf32() -> bool:
    """Whether convolutions may compute in TF32, by torch's newer setting, which the older one sets too where both exist."""
    newer = getattr(torch.backends.cudnn, "conv", None)
    return torch.backends.cudnn.allow_tf32 if newer is None else newer.fp32_precision == "tf32"


@lru_cache(maxsize=1024)
def _tiling(
    size: tuple[int, ...],
    length: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    zoom: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Tile, window and first place of the window along each axis: the tile whose windows are least in all.

    An axis that one tile covers has no more window than the input is long.
    """

    def spans(tile: tuple[int, ...]) -> list[tuple[int, int]]:
        found = []
        for n, t, m, k, s, p, d, z in zip(size, tile, length, kernel, stride, padding, dilation, zoom, strict=True):
            first, end = -(p // z), ((t * z - 1) * s - p + (k - 1) * d) // z + 1
            if n <= t * z:
                first = min(max(first, 0), m - 1)
                end = max(min(end, m), first + 1)
            found.append((first, end))
        return found

    def cost(tile: tuple[int, ...]) -> int:
        tiles = math.prod(_blocks(n, t * z) for n, t, z in zip(size, tile, zoom, strict=True))
        return tiles * math.prod(end - first for first, end in spans(tile))

    steps = [_power(_blocks(n, z)) for n, z in zip(size, zoom, strict=True)]
    positions = _power(math.prod(steps), 16, POSITIONS)
    powers = [1 << bit for bit in range(positions.bit_length())]
    tiles = [(a, b, positions // (a * b)) for a in powers for b in powers if a * b <= positions]
    best = min(tiles, key=cost)
    first, end = zip(*spans(best), strict=True)
    return best, tuple(e - f for f, e in zip(first, end, strict=True)), first


def _table(basis: Tensor, frame: Frame, dtype: torch.dtype, mirror: bool = False) -> Tensor:
    """What values of a window are multiplied with, for all rings and phases."""
    pieces, phases = _blocks(math.prod(frame.WINDOW), frame.BLOCK_K), math.prod(frame.ZOOM)
    shape = (phases, pieces * frame.BLOCK_K, frame.B, frame.BLOCK_P)
    out = torch.empty(shape, dtype=dtype, device=basis.device)
    _kernels().tables[(pieces, frame.B, phases)](basis.contiguous(), out, MIRROR=mirror, F=frame)
    return out


def _options(few_warps: bool = False, pipelined: bool = False) -> dict[str, int]:
    """Of compilation; those that each kernel asks for spill no registers (``benchmarks/results/kernel_bounds.md``)."""
    return {"num_warps": 4 if few_warps else 8, "num_stages": 2 if pipelined else 1}


def _triple(values: Sequence[int], missing: int) -> tuple[int, ...]:
    return (missing,) * (3 - len(values)) + tuple(values)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of batch, channels and three axes; axes that are missing have any."""
    return (x.stride(0), x.stride(1), *_triple(x.stride()[2:], 0))


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
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, basis.shape[1:], stride, strict=True)
    ]
    frame = _frame(x, basis, size, weight.shape[0], stride, padding, dilation)
    return _mixed_sums(x, weight, bias, basis, _empty(x, (x.shape[0], weight.shape[0], *size)), frame)


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
    if wanted[0]:
        reach = [(k - 1) * d - p for k, d, p in zip(basis.shape[1:], dilation, padding, strict=True)]
        frame = _frame(grad, basis, x.shape[2:], weight.shape[1], (), reach, dilation, stride)
        by_x = _mixed_sums(grad, weight.transpose(0, 1), None, basis, _empty(x, x.shape), frame, mirror=True)
    if wanted[1]:
        frame = _frame(
            x, basis, grad.shape[2:], MOST_OUTPUTS, stride, padding, dilation, block_c=(16, 32), most_rings=3
        )
        by_weight = _weight_gradient(grad, x, weight, basis, frame)
    if wanted[2]:
        by_bias = grad.sum(dim=[0, *range(2, grad.dim())])
    return by_x, by_weight, by_bias


def _mixed_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, basis: Tensor, out: Tensor, frame: Frame, mirror: bool = False
) -> Tensor:
    """Sums of ``x`` over rings, mixed by ``weight`` of shape ``(outputs, channels, b)`` into ``out``."""
    if out.numel() == 0:
        return out
    basis, weight = scaled_rings(basis, weight)
    images, outputs, *size = out.shape
    half = x.element_size() == 2
    _kernels().ring_conv[(frame.tiles(images, size), _blocks(outputs, frame.BLOCK_O))](
        x,
        weight.permute(2, 0, 1).contiguous(),
        _table(basis, frame, x.dtype, mirror),
        x if bias is None else bias,
        out,
        images,
        x.shape[1],
        outputs,
        _triple(x.shape[2:], 1),
        _triple(size, 1),
        _strides(x),
        _strides(out),
        HAS_BIAS=bias is not None,
        F=frame,
        **_options(not half and frame.B > 3 and frame.BLOCK_O < MOST_OUTPUTS, half),
    )
    return out


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, basis: Tensor, frame: Frame) -> Tensor:
    outputs, channels, rings = weight.shape
    if grad.numel() == 0:
        return torch.zeros_like(weight)
    scaled, _ = scaled_rings(basis, weight)
    tiles = frame.tiles(x.shape[0], grad.shape[2:])
    blocks = (_blocks(channels, frame.BLOCK_C), _blocks(outputs, frame.BLOCK_O))
    splits = max(1, min(tiles // 2, _processors(x) // math.prod(blocks)))
    grid, half = (*blocks, splits), x.element_size() == 2
    parts = torch.empty(splits, rings, outputs, channels, dtype=torch.float32, device=x.device)
    _kernels().ring_weight_gradient[grid](
        grad,
        x,
        _table(scaled, frame, x.dtype),
        parts,
        x.shape[0],
        channels,
        outputs,
        tiles,
        _triple(x.shape[2:], 1),
        _triple(grad.shape[2:], 1),
        _strides(x),
        _strides(grad),
        F=frame,
        **_options(not half, half),
    )
    found = parts.sum(dim=0).permute(1, 2, 0)
    return (found * ring_scales(basis) if x.dtype == torch.float16 else found).to(weight.dtype).contiguous()


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
    (images, channels, *size), outputs = maps.shape, weight.shape[0]
    frame, out = _frame(maps, packed, size, outputs), _empty(radial, radial.shape)
    half, few = maps.element_size() == 2, frame.B <= 4
    _kernels().add_energies[(frame.tiles(images, size), _blocks(outputs, frame.BLOCK_O))](
        radial,
        maps,
        _table(packed, frame, maps.dtype),
        weight.contiguous(),
        radial if bias is None else bias,
        out,
        images,
        channels,
        outputs,
        channels // groups,
        eps,
        _triple(size, 1),
        _strides(maps),
        _strides(radial),
        _strides(out),
        STARTS=starts,
        HAS_BIAS=bias is not None,
        F=frame,
        **_options(half and few, half or few),
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
    by_weight, ones, zeros = None, [1] * (grad.dim() - 2), [0] * (grad.dim() - 2)
    if wanted[1]:
        _, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, values, weight, None, ones, zeros, ones, False, zeros, groups, [False, True, False]
        )
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
    images, channels, *size = x.shape
    frame = _frame(x, packed, size, 16 if weight is None else min(weight.shape[0], 32))
    grid = (frame.tiles(images, size), _blocks(channels, frame.BLOCK_C))
    values = x.new_empty(images, len(stencils) * channels, *size)
    slopes = x.new_empty(images, channels, 1 if grad is None else frame.B, *size)
    _kernels().energies[grid](
        x,
        _table(packed, frame, x.dtype),
        values if grad is None else grad,
        x if weight is None else weight.contiguous(),
        values,
        slopes,
        images,
        channels,
        0 if weight is None else weight.shape[0],
        channels // groups,
        eps,
        _triple(size, 1),
        _strides(x),
        _strides(values if grad is None else grad),
        _strides(values),
        _strides(slopes[:, :, 0]),
        STARTS=starts,
        WITH_SLOPES=grad is not None,
        MIXED=weight is not None,
        F=frame,
        **_options(),
    )
    if grad is None:
        return values, None
    by_x, frame = _empty(x, x.shape), _frame(slopes[:, :, 0], packed, size, 0, block_c=(_power(16 // images or 1), 64))
    grid = (frame.tiles(images, size), _blocks(channels, frame.BLOCK_C))
    _kernels().energy_gradient[grid](
        slopes,
        _table(packed, frame, x.dtype, mirror=True),
        by_x,
        images,
        channels,
        _triple(size, 1),
        _strides(slopes[:, :, 0]),
        _strides(by_x),
        F=frame,
        **_options(),
    )
    return values, by_x


def _packed(stencils: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """Stencils of all orders as one contiguous tensor, and where the components of each begin."""
    packed = joined_stencils(list(stencils), torch.float32).contiguous()
    return packed, (0, *accumulate(len(stencil) for stencil in stencils))


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a tensor, with channels last where ``like`` has them so."""
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format_of(like))


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
