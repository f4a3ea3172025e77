"""The uncompiled backend of the ring engine: the same sums as additions of shifted slices, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.ring.plan import SMALL_MAP, Geometry, Plan, Stage, Triple, sum_matrix

#: Size of the ring sums that exist at a time.
PIECE_BYTES = 2**21


def contract(
    x: Tensor,
    plan: Plan,
    geometry: Geometry,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor | None:
    """One pass over the sums of an image, piece by piece; arguments and result are those of ``contract`` in ``cpu.py``."""
    total = None
    if other is not None:
        total = x.new_zeros(groups, x.shape[1] // groups * plan.maps, other.shape[1] // groups)
    for images, first, sums in _pieces(x, plan, geometry):
        place = (slice(images.start, images.stop), slice(None), slice(first, first + sums.shape[2]))
        blocks = sums.unflatten(1, (groups, -1))
        if out is not None and weight is not None:
            target = out.flatten(2)[place]
            mixed = torch.matmul(weight.unflatten(0, (groups, -1)), blocks).flatten(1, 2)
            torch.add(mixed, 0 if bias is None else bias[:, None], out=target)
        if other is not None and total is not None:
            total += (blocks @ other.flatten(2)[place].unflatten(1, (groups, -1)).mT).sum(dim=0)
    return None if total is None else total.flatten(0, 1)


def _pieces(x: Tensor, plan: Plan, geometry: Geometry) -> Iterator[tuple[range, int, Tensor]]:
    """Images, first position and sums ``(images, C * maps, positions)`` of the pieces of a batch."""
    count, channels = x.shape[:2]
    depth, height, width = geometry.out_size
    budget = max(1, PIECE_BYTES // (channels * plan.maps * x.element_size()))  # positions
    if geometry.positions <= SMALL_MAP and math.prod(geometry.in_size) <= SMALL_MAP:
        matrix = sum_matrix(plan, geometry, x.dtype).flatten(1)
        for images in _ranges(count, budget // geometry.positions):
            part = x[images.start : images.stop]
            sums = (part.flatten(2) @ matrix).reshape(len(images), channels * plan.maps, -1)
            if not math.isfinite(sums.sum()):  # zeros of the matrix spread it over all sums
                sums = _sums(part, plan, geometry, (range(depth), range(height), range(width))).flatten(3).flatten(1, 2)
            yield images, 0, sums
        return
    for images in _ranges(count, budget // geometry.positions):
        for planes in _ranges(depth, max(budget // (height * width), plan.kernel[0]) if len(images) == 1 else depth):
            rows_at_once = max(budget // (len(planes) * width), plan.kernel[1]) if len(planes) == 1 else height
            for rows in _ranges(height, rows_at_once):
                sums = _sums(x[images.start : images.stop], plan, geometry, (planes, rows, range(width)))
                yield images, (planes.start * height + rows.start) * width, sums.flatten(3).flatten(1, 2)


def _ranges(count: int, step: int) -> Iterator[range]:
    """``range(count)`` in even parts of at most ``step``."""
    parts = math.ceil(count / max(1, step))
    for part in range(parts):
        yield range(part * count // parts, (part + 1) * count // parts)


def _sums(x: Tensor, plan: Plan, geometry: Geometry, box: tuple[range, range, range]) -> Tensor:
    """Sums over a box of the output, shape ``(N, C, maps, *box)``."""
    maps = [_padded_part(x, geometry, plan.kernel, box)]
    for axis, stage in ((2, plan.columns), (1, plan.rows), (0, plan.groups)):
        maps = _sum_stage(maps, stage, axis + 2, geometry.stride[axis], geometry.dilation[axis], len(box[axis]))
    sums = torch.stack(maps, dim=2)
    if plan.mix is None:
        return sums
    mix = torch.from_numpy(plan.mix).to(x.dtype)
    return (mix @ sums.flatten(3)).unflatten(3, sums.shape[3:])


def _padded_part(x: Tensor, geometry: Geometry, kernel: Triple, box: tuple[range, range, range]) -> Tensor:
    """The part of the zero-stuffed, zero-padded input that a box of the output reads."""
    if geometry.zoom != (1, 1, 1):
        size = [(n - 1) * zoom + 1 for n, zoom in zip(geometry.in_size, geometry.zoom, strict=True)]
        stuffed = x.new_zeros(*x.shape[:2], *size)
        stuffed[:, :, :: geometry.zoom[0], :: geometry.zoom[1], :: geometry.zoom[2]] = x
        x = stuffed
    pads: list[int] = []
    for axis in (2, 1, 0):
        low = box[axis].start * geometry.stride[axis] - geometry.padding[axis]
        high = (box[axis].stop - 1) * geometry.stride[axis] - geometry.padding[axis]
        high += (kernel[axis] - 1) * geometry.dilation[axis] + 1
        pads += [-low, high - x.shape[axis + 2]]
    return functional.pad(x, pads) if any(pads) else x


def _sum_stage(maps: list[Tensor], stage: Stage, axis: int, stride: int, dilation: int, count: int) -> list[Tensor]:
    results = []
    for index in range(len(stage)):
        slices = []
        for tap, source in stage.terms(index):
            window = maps[source].narrow(axis, tap * dilation, (count - 1) * stride + 1)
            slices.append(window if stride == 1 else window[(slice(None),) * axis + (slice(None, None, stride),)])
        total = slices[0]
        if len(slices) > 1:
            total = slices[0] + slices[1]
            for values in slices[2:]:
                total += values
        results.append(total)
    return results
