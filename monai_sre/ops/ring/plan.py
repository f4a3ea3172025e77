"""How to sum over the taps of a basis with few additions, and the geometry of one pass over an image.

Radial kernels repeat themselves: taps at +x and -x belong to the same rings, and so do +y and -y. A plan finds every
such repetition by comparing values, axis by axis, so it needs to know nothing about rings and serves any fixed basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Triple = tuple[int, int, int]
#: Maps of at most this many positions, in and out, are summed by a product with a constant matrix.
SMALL_MAP = 32


@dataclass(frozen=True, eq=False)
class Stage:
    """Sets of terms: set ``s`` sums ``source[t]`` shifted by ``tap[t]`` for ``t`` in ``start[s] .. start[s + 1]``."""

    start: np.ndarray
    tap: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    def terms(self, index: int) -> list[tuple[int, int]]:
        """The ``(tap, source)`` pairs of one set."""
        part = slice(self.start[index], self.start[index + 1])
        return list(zip(self.tap[part].tolist(), self.source[part].tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Plan:
    """Sums over the taps of a basis, in stages.

    Attributes:
        kernel: kernel size along z, y, x.
        columns: sums along x of the input; ``source`` is unused.
        rows: sums along y of column sums.
        groups: sums along z of row sums.
        maps: how many maps per channel the sums yield: ``b``, or the number of groups where there are no more than ``b``.
        mix: coefficients ``(b, groups)`` with which groups add up to rings, or ``None`` when groups are the maps.
        fold: coefficients ``(b, maps)`` for the channel weights then, or ``None`` when they are the identity.
    """

    kernel: Triple
    columns: Stage
    rows: Stage
    groups: Stage
    maps: int
    mix: np.ndarray | None
    fold: np.ndarray | None

    def kernels(self) -> np.ndarray:
        """The sums as kernels, shape ``(maps, *kernel)``."""
        sets = np.zeros((len(self.groups), *self.kernel))
        for group in range(len(self.groups)):
            for z, row in self.groups.terms(group):
                for y, column in self.rows.terms(row):
                    for x, _ in self.columns.terms(column):
                        sets[group, z, y, x] += 1
        return sets if self.mix is None else np.tensordot(self.mix, sets, axes=1)


@dataclass(frozen=True)
class Geometry:
    """One correlation: output ``o`` reads the zero-stuffed input at ``o * stride - padding + tap * dilation``.

    All triples are (z, y, x). ``zoom - 1`` zeros are read between neighbours of the input, zeros outside it.
    """

    in_size: Triple
    out_size: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    zoom: Triple = (1, 1, 1)

    @property
    def positions(self) -> int:
        """Number of output positions."""
        return math.prod(self.out_size)

    def adjoint(self, kernel: Triple) -> Geometry:
        """The correlation with the mirrored kernel that is the transpose of this one; for ``zoom`` 1."""
        padding = tuple(d * (k - 1) - p for d, k, p in zip(self.dilation, kernel, self.padding, strict=True))
        return Geometry(self.out_size, self.in_size, (1, 1, 1), _triple(padding), self.dilation, self.stride)


def _triple(values: Sequence[int]) -> Triple:
    return (values[0], values[1], values[2])


def spatial_triple(values: Sequence[int], fill: int) -> Triple:
    """Sizes along z, y, x for 1 to 3 axes; one axis is y, whose sums need no padded copies.

    Example:
        >>> spatial_triple([5, 7], fill=1), spatial_triple([5], fill=1)
        ((1, 5, 7), (1, 5, 1))
    """
    if len(values) == 1:
        return (fill, values[0], fill)
    return _triple([fill] * (3 - len(values)) + list(values))


@lru_cache(maxsize=1024)
def even_part(count: int, most: int, threads: int = 1) -> int:
    """The size of parts of ``count``, at least one, at most and not less than half of ``most``, that gives threads even work.

    Example:
        >>> even_part(10, 4), even_part(10, 0), even_part(32, 12), even_part(32, 12, threads=2)
        (4, 1, 12, 8)
    """
    most = max(1, min(count, most))
    sizes = range((most + 1) // 2, most + 1)
    return min(sizes, key=lambda size: (min(count, -(-count // (size * threads)) * size), -size))


def convolution_geometry(
    size: Sequence[int], kernel: Triple, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Geometry:
    """Geometry of a convolution of an image of the given spatial size, as ``torch.nn.functional.conv*d`` defines it.

    Raises:
        ValueError: the kernel does not fit into the padded image.
    """
    in_size, step = spatial_triple(size, 1), spatial_triple(stride, 1)
    pad, spread = spatial_triple(padding, 0), spatial_triple(dilation, 1)
    room = [n + 2 * p - d * (k - 1) - 1 for n, p, d, k in zip(in_size, pad, spread, kernel, strict=True)]
    out = [left // s + 1 for left, s in zip(room, step, strict=True)]
    if min(out) < 1:
        raise ValueError(f"kernel {kernel} with dilation {spread} does not fit into an image {in_size} padded by {pad}")
    return Geometry(in_size, _triple(out), step, pad, spread)


def plans(basis: Tensor) -> tuple[Plan, Plan]:
    """The plans of a basis ``(b, *kernel_size)`` and of its mirror image, which the transposed operation needs.

    Found by content, so that a basis changed in place gets new plans.
    """
    values = basis.detach().to("cpu")
    values = values if values.dtype == torch.float64 else values.float()
    array = values.contiguous().numpy()
    return _cached_plans(array.tobytes(), array.shape, array.dtype.str)


@lru_cache(maxsize=256)
def _cached_plans(content: bytes, shape: tuple[int, ...], dtype: str) -> tuple[Plan, Plan]:
    array = np.frombuffer(content, dtype=dtype).reshape(shape[0], *spatial_triple(shape[1:], 1))
    tolerance = 1e-13 if array.dtype == np.float64 else 1e-6
    array = array.astype(np.float64)
    return _build(array, tolerance), _build(array[:, ::-1, ::-1, ::-1], tolerance)


def _build(basis: np.ndarray, tolerance: float) -> Plan:
    """Group taps whose coefficients agree, first along x, then y, then z."""
    rings, depth, height, width = basis.shape
    tolerance *= max(float(np.abs(basis).max()), 1e-300)
    columns, column_at = _stage([(x, 0, basis[..., x]) for x in range(width)], tolerance)
    row_terms = [(y, a, basis[:, :, y, x]) for y in range(height) for a, x in enumerate(column_at)]
    rows, row_at = _stage(row_terms, tolerance)
    places = [(row_terms[t][0], column_at[row_terms[t][1]]) for t in row_at]
    group_terms = [(z, s, basis[:, z, y, x]) for z in range(depth) for s, (y, x) in enumerate(places)]
    groups, group_at = _stage(group_terms, tolerance)
    coefficients = np.stack([group_terms[t][2] for t in group_at], axis=1)  # (rings, groups)
    if len(groups) > rings:
        return Plan((depth, height, width), columns, rows, groups, rings, coefficients, None)
    identity = coefficients.shape[0] == coefficients.shape[1] and np.array_equal(coefficients, np.eye(rings))
    return Plan((depth, height, width), columns, rows, groups, len(groups), None, None if identity else coefficients)


def _stage(terms: list[tuple[int, int, np.ndarray]], tolerance: float) -> tuple[Stage, list[int]]:
    """Join terms ``(tap, source, coefficients)`` of equal coefficients, drop zeros; also the first term of each set."""
    sets: list[list[int]] = []
    for index, (_, _, values) in enumerate(terms):
        if np.abs(values).max() <= tolerance:
            continue
        for members in sets:
            if np.abs(values - terms[members[0]][2]).max() <= tolerance:
                members.append(index)
                break
        else:
            sets.append([index])
    sets = sets or [[0]]  # a basis of zeros: any one tap, with coefficients zero
    # in the order of the rings they belong to, so that the groups of a band basis are its rings
    sets.sort(key=lambda members: int(np.argmax(np.abs(terms[members[0]][2]).ravel() > tolerance)))
    order = [index for members in sets for index in members]
    start = np.cumsum([0] + [len(members) for members in sets])
    tap, source = ([terms[index][part] for index in order] for part in (0, 1))
    stage = Stage(*(np.array(part, dtype=np.int32) for part in (start, tap, source)))
    return stage, [members[0] for members in sets]


@lru_cache(maxsize=256)
def sum_matrix(plan: Plan, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """All sums of a small map as one matrix, shape ``(positions in, maps, positions out)``."""
    inputs = np.indices(geometry.in_size).reshape(3, -1)
    outputs = np.indices(geometry.out_size).reshape(3, -1)
    step, padding, spread, zoom = (
        np.array(triple)[:, None] for triple in (geometry.stride, geometry.padding, geometry.dilation, geometry.zoom)
    )
    # the tap that leads from an output to an input, along each axis: (3, in, out)
    distance = (inputs * zoom)[:, :, None] - (outputs * step - padding)[:, None, :]
    tap, rest = np.divmod(distance, spread[:, :, None])
    inside = ((rest == 0) & (tap >= 0) & (tap < np.array(plan.kernel)[:, None, None])).all(axis=0)
    kernels = plan.kernels()
    z, y, x = np.where(inside, tap, 0)
    values = kernels[:, z, y, x] * inside
    with torch.inference_mode(False), torch.no_grad():
        return torch.from_numpy(values).to(dtype).movedim(0, 1).contiguous()
