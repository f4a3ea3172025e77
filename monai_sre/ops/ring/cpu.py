"""The compiled CPU backend of the ring engine: the library of ``ring_cpu.c``, and the call of it.

A wheel holds the library; otherwise the C source is compiled at first use (:mod:`monai_sre.ops.ring.native`), once for
float32 and once for float64. It serves every size, so nothing is ever compiled again: on a new machine without a wheel the
first step takes seconds longer than the next ones, in every later process only as long as the plans of the kernels take.
Without either :mod:`monai_sre.ops.ring.portable` takes over.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.arguments import constant_of_graphs
from monai_sre.ops.ring.native import NativeLibrary, workspace
from monai_sre.ops.ring.plan import SMALL_MAP, Geometry, Plan, even_part, sum_matrix

#: Size of the ring sums of one tile: they are read again from the second- or third-level cache.
TILE_BYTES = 2**20
#: Size of the padded rows that a tile reads: more than the sums themselves where strides are long and channels few.
ROW_BYTES = 2**23


def _declare(library: ctypes.CDLL) -> None:
    for function in (library.ring_scratch, library.ring_weights, library.ring_lanes, library.ring_mixed):
        function.restype = ctypes.c_int64
    library.ring_run.argtypes = [ctypes.c_void_p] * 12


LIBRARY = NativeLibrary(Path(__file__).with_name("ring_cpu.c"), "ring sums", _declare)


class _Call(ctypes.Structure):
    """The struct ``Call`` of ``ring_cpu.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "out_channels", "other_channels", "blocks")),
        *(
            (name, ctypes.c_int64 * 3)
            for name in ("in_size", "out_size", "stride", "padding", "dilation", "zoom", "kernel", "tile")
        ),
        *((name, ctypes.c_int64) for name in ("columns", "rows", "groups", "maps")),
        *((name, ctypes.c_int64 * 4) for name in ("weight_step", "total_step")),
        *((name, ctypes.c_int64) for name in ("threads", "scratch_step")),
    )


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and products: half precision is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@constant_of_graphs
def compiled_for(dtype: torch.dtype) -> bool:
    """Whether compiled sums serve a dtype, half precision by float32; compiles them if need be. A constant of graphs."""
    return LIBRARY.get(computed_in(dtype)) is not None


def contract(
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
    """One pass over the sums of an image, tile by tile; every tensor is float32 or float64 on the CPU.

    Args:
        x: shape ``(N, C, D, H, W)``, contiguous; so ``out`` and ``other``.
        plan: the sums of each channel, ``plan.maps`` of them.
        geometry: where they are taken.
        groups: number of blocks of channels that do not mix.
        weight: shape ``(groups, O / groups, C / groups, plan.maps)``, of any strides.
        bias: ``(O,)``, contiguous, or ``None``.
        out: ``(N, O, *out_size)``, receives ``weight . sums + bias``.
        other: ``(N, J, *out_size)``, to be multiplied with the sums.
        total: shape ``(groups, C / groups, J / groups, plan.maps)``, of any strides, receives the products ``sums . other^T``
            over images and positions.
    """
    library = LIBRARY.get(x.dtype)
    if library is None:
        raise RuntimeError("the compiled ring sums are not available")
    call = _Call()
    call.images, call.channels, call.blocks, call.maps = x.shape[0], x.shape[1], groups, plan.maps
    call.out_channels = 0 if out is None else out.shape[1]
    call.other_channels = 0 if other is None else other.shape[1]
    call.in_size[:], call.out_size[:], call.stride[:] = geometry.in_size, geometry.out_size, geometry.stride
    call.padding[:], call.dilation[:], call.zoom[:] = geometry.padding, geometry.dilation, geometry.zoom
    call.kernel[:] = plan.kernel
    call.columns, call.rows, call.groups = len(plan.columns), len(plan.rows), len(plan.groups)
    if weight is not None:
        call.weight_step[:] = weight.stride()
    if total is not None:
        call.total_step[:] = total.stride()
    small = geometry.positions <= SMALL_MAP and math.prod(geometry.in_size) <= SMALL_MAP
    tile, call.threads = _tile(x, plan, geometry, whole=small)
    call.tile[:] = tile
    call.scratch_step = library.ring_scratch(ctypes.byref(call))
    scratch = workspace("scratch", call.scratch_step * call.threads, x.dtype)
    packed = None if out is None else workspace("weights", library.ring_weights(ctypes.byref(call)), x.dtype)
    matrix = _padded_matrix(plan, geometry, x.dtype, library.ring_lanes()) if small else None
    arrays = _arrays(plan, x.dtype, library.ring_mixed())
    pointers = [None if t is None else t.data_ptr() for t in (x, weight, bias, out, other, total, scratch, packed)]
    weights = None if arrays.weights is None else arrays.weights.ctypes.data
    constants = (arrays.table, weights, None if matrix is None else matrix.data_ptr())
    if library.ring_run(ctypes.byref(call), *pointers, *constants):
        raise MemoryError("no memory for the ring sums")


def _tile(x: Tensor, plan: Plan, geometry: Geometry, whole: bool) -> tuple[tuple[int, int, int], int]:
    """Images, planes and rows of a tile, and the number of threads: even work, sums of about ``TILE_BYTES``.

    A map that is summed by a constant matrix stays ``whole``: the matrix gives all its positions at once.
    """
    count, maps = x.shape[0], x.shape[1] * plan.maps
    depth, height, width = geometry.out_size
    threads = torch.get_num_threads()
    budget = max(1, TILE_BYTES // (maps * x.element_size()))  # positions
    padded = max(width * geometry.stride[2] * x.element_size(), 128)  # bytes of a row, at least
    most = max(1, ROW_BYTES // (padded * geometry.stride[1]))  # rows
    if whole or (geometry.positions <= budget and height <= most):
        images = even_part(count, budget // geometry.positions, threads)
        tile = (images, depth, height)
    else:
        reach = [(k - 1) * d // s for k, d, s in zip(plan.kernel, geometry.dilation, geometry.stride, strict=True)]
        planes = min(depth, max(1, budget // (height * width)))
        rows = height
        if planes < min(depth, 2 * reach[0]) or height * width > budget:  # neighbours would sum the same planes again
            planes = min(depth, max(1, 2 * reach[0]))
            rows = min(height, max(budget // (width * planes), 2 * reach[1], 4))
        rows = min(rows, most)
        tile = (1, even_part(depth, planes), even_part(height, rows))
    tiles = math.ceil(count / tile[0]) * math.ceil(depth / tile[1]) * math.ceil(height / tile[2])
    if tiles < threads and tile[0] == 1 and not whole:  # few large images: split them, some sums are taken twice
        if depth > 1:
            tile = (1, even_part(tile[1], math.ceil(tile[1] / threads)), tile[2])
        else:
            tile = (1, 1, even_part(tile[2], math.ceil(tile[2] / threads)))
        tiles = math.ceil(count / tile[0]) * math.ceil(depth / tile[1]) * math.ceil(height / tile[2])
    return tile, max(1, min(threads, tiles))


class _Arrays:
    """A plan's arrays as ``ring_run`` takes them, and what keeps them alive; it mixes ``mixed`` rings at a time."""

    def __init__(self, plan: Plan, dtype: torch.dtype, mixed: int) -> None:
        stages = [plan.columns.start, plan.columns.tap]
        for stage in (plan.rows, plan.groups):
            stages += [stage.start, stage.tap, stage.source]
        self.weights: np.ndarray | None = None
        if plan.mix is not None:
            rings = np.pad(plan.mix, ((0, -plan.maps % mixed), (0, 0))).reshape(-1, mixed, len(plan.groups))
            block, group = np.nonzero(rings.any(axis=1))
            stages += [np.searchsorted(block, np.arange(len(rings) + 1)), group]
            self.weights = rings[block, :, group].astype(np.float32 if dtype == torch.float32 else np.float64)
        self.stages = [np.ascontiguousarray(array, dtype=np.int32) for array in stages]
        self.table = (ctypes.c_void_p * 10)(*(array.ctypes.data for array in self.stages))


@lru_cache(maxsize=512)
def _arrays(plan: Plan, dtype: torch.dtype, mixed: int) -> _Arrays:
    return _Arrays(plan, dtype, mixed)


@lru_cache(maxsize=256)
def _padded_matrix(plan: Plan, geometry: Geometry, dtype: torch.dtype, lanes: int) -> Tensor:
    matrix = sum_matrix(plan, geometry, dtype)
    with torch.inference_mode(False), torch.no_grad():
        return functional.pad(matrix, (0, -matrix.shape[2] % lanes)).contiguous()
