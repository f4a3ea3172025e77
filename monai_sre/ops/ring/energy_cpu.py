"""The compiled CPU backend of energies: loads ``energy_cpu.c``, describes a call to it, calls it.

The stencils of :mod:`monai_sre.ops.harmonics` fit polynomials under weights that are a product over the axes: each is a sum
of a few products of one-dimensional filters, which the stencils share. They are found from the values alone.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_sre.ops.arguments import constant_of_graphs
from monai_sre.ops.ring.cpu import computed_in
from monai_sre.ops.ring.native import NativeLibrary, workspace
from monai_sre.ops.ring.plan import spatial_triple

#: Size of all arrays in scratch memory together, unless one map is larger: they stay in the second-level cache.
SCRATCH_BYTES = 2**19
#: Most components, and products of filters, that the C source has room for.
MOST = 32


class _Call(ctypes.Structure):
    """The struct ``Call`` of ``energy_cpu.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "group", "image_step", "grad_step")),
        *((name, ctypes.c_int64 * 3) for name in ("size", "reach", "filters")),
        *((name, ctypes.c_int64) for name in ("planes", "terms", "orders", "components", "together")),
        *((name, ctypes.c_int64) for name in ("threads", "scratch_step")),
    )


class _Stencils(ctypes.Structure):
    """The struct ``Stencils`` of ``energy_cpu.c``."""

    _fields_ = (
        ("coefficients", ctypes.c_void_p * 3),
        ("odd", ctypes.c_void_p * 3),
        *((name, ctypes.c_void_p) for name in ("plane", "term", "order", "mix")),
    )


def _declare(library: ctypes.CDLL) -> None:
    for function in (library.energy_scratch, library.energy_arrays):
        function.argtypes = [ctypes.c_void_p, ctypes.c_int]
        function.restype = ctypes.c_int64
    library.energy_run.argtypes = [ctypes.c_void_p] * 8
    library.energy_run.restype = None


LIBRARY = NativeLibrary(Path(__file__).with_name("energy_cpu.c"), [], "harmonic energies", _declare)


def available(dtype: torch.dtype) -> bool:
    """Whether compiled energies can be used for ``dtype``; compiles them if need be."""
    return LIBRARY.get(dtype) is not None


@constant_of_graphs
def compiled_for(dtype: torch.dtype) -> bool:
    """Whether compiled energies serve a dtype, in half precision by float32; a constant of a graph of ``torch.compile``."""
    return available(computed_in(dtype))


def energies(
    x: Tensor,
    stencils: Sequence[Tensor],
    eps: float,
    groups: int = 1,
    grad: Tensor | None = None,
    with_values: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Energies of every map and order, and with ``grad``, their gradient, that by ``x``.

    Args:
        x: shape ``(N, C, *spatial)``, float32 or float64 on the CPU; each image contiguous, images any step apart.
        stencils: those of each order, shape ``(components, *kernel_size)`` of one odd size, of the dtype of ``x``.
        eps: added to the sum of squares.
        groups: number of blocks of channels.
        grad: shape of the energies; each image contiguous.
        with_values: whether the energies are wanted.

    Returns:
        The energies, shape ``(N, len(stencils) * C, *spatial)``, the orders one after the other in each group, and the
        gradient, shape of ``x``; or ``None`` for what is not wanted.
    """
    library = LIBRARY.get(x.dtype)
    if library is None:
        raise RuntimeError("compiled harmonic energies are not available")
    shape = (x.shape[0], len(stencils) * x.shape[1], *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype) if with_values else None
    slope = None if grad is None else torch.empty(x.shape, dtype=x.dtype)
    if x.numel() == 0:
        return out, slope
    size, kernel = spatial_triple(x.shape[2:], 1), spatial_triple(stencils[0].shape[1:], 1)
    form = _form(tuple((s.numpy().tobytes(), tuple(s.shape)) for s in stencils), x.dtype)
    call = _Call()
    call.images, call.channels, call.group, call.image_step = x.shape[0], x.shape[1], x.shape[1] // groups, x.stride(0)
    call.grad_step = 0 if grad is None else grad.stride(0)
    call.size[:], call.reach[:] = size, [length // 2 for length in kernel]
    call.filters[:], call.planes, call.terms = form.filters, form.planes, form.terms
    call.orders, call.components = len(stencils), form.components
    maps, threads = x.shape[0] * x.shape[1], torch.get_num_threads()
    map_bytes = x[0, 0].numel() * x.element_size() * library.energy_arrays(ctypes.byref(call), int(grad is not None))
    call.together = max(1, min(SCRATCH_BYTES // map_bytes, -(-maps // threads)))
    call.threads = max(1, min(threads, -(-maps // call.together)))
    call.scratch_step = library.energy_scratch(ctypes.byref(call), int(grad is not None))
    scratch = workspace("energies", call.scratch_step * call.threads, x.dtype)
    constant = (ctypes.c_float if x.dtype == torch.float32 else ctypes.c_double)(eps)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, grad, out, slope)]
    library.energy_run(
        ctypes.byref(call), ctypes.byref(form.struct), *pointers, ctypes.byref(constant), scratch.data_ptr()
    )
    return out, slope


def serves(stencils: Sequence[Tensor]) -> bool:
    """Whether the C source has room for stencils of one size."""
    sizes = {tuple(stencil.shape[1:]) for stencil in stencils}
    if len(sizes) > 1 or sum(stencil.shape[0] for stencil in stencils) > MOST:
        return False
    form = _form(tuple((s.detach().numpy().tobytes(), tuple(s.shape)) for s in stencils), stencils[0].dtype)
    return max(form.terms, form.planes, *form.filters) <= MOST


@dataclass(frozen=True)
class _Form:
    """Stencils as sums of products of filters, as the C source reads them."""

    filters: list[int]
    planes: int
    terms: int
    components: int
    struct: _Stencils
    arrays: list[np.ndarray]  # what the struct points to


@lru_cache(maxsize=256)
def _form(content: tuple[tuple[bytes, tuple[int, ...]], ...], dtype: torch.dtype) -> _Form:
    kind = np.float64 if dtype == torch.float64 else np.float32
    orders = [
        np.frombuffer(values, kind).reshape(shape[0], *spatial_triple(shape[1:], 1)).astype(np.float64)
        for values, shape in content
    ]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    filters = [_filters(orders, axis, tolerance) for axis in range(3)]
    core: np.ndarray = np.concatenate(orders)
    for axis in range(3):
        core = np.moveaxis(np.tensordot(core, np.linalg.pinv(filters[axis]), axes=([axis + 1], [0])), -1, axis + 1)
    core[np.abs(core) <= tolerance * np.abs(core).max(initial=1e-300)] = 0
    used = np.any(core, axis=0)  # (z, y, x)
    planes = [(x, y) for y, x in itertools.product(*map(range, used.shape[1:])) if used[:, y, x].any()]
    terms = [(p, z) for p, (x, y) in enumerate(planes) for z in range(used.shape[0]) if used[z, y, x]]
    mix = np.stack([core[:, z, planes[p][1], planes[p][0]] for p, z in terms], axis=1) if terms else core.reshape(-1, 0)
    halves = [np.ascontiguousarray(f[:, f.shape[1] // 2 :]).astype(kind) for f in filters]
    odd = [np.array([np.array_equal(f[::-1], -f) for f in each], np.int32) for each in filters]
    starts = np.cumsum([0] + [len(order) for order in orders])
    rest = [np.array(planes), np.array(terms), starts]
    arrays: list[np.ndarray] = [
        *halves,
        *odd,
        *(np.ascontiguousarray(part, np.int32) for part in rest),
        np.ascontiguousarray(mix, kind),
    ]
    struct = _Stencils()
    pointers = [array.ctypes.data for array in arrays]
    struct.coefficients[:], struct.odd[:] = pointers[:3], pointers[3:6]
    struct.plane, struct.term, struct.order, struct.mix = pointers[6:]
    return _Form([len(f) for f in filters], len(planes), len(terms), len(core), struct, arrays)


def _filters(orders: Sequence[np.ndarray], axis: int, tolerance: float) -> np.ndarray:
    """Even and odd filters, shape ``(filters, taps)``, whose sums are all that the stencils hold along an axis.

    Those of a low order come first, and a later one holds nothing of them: so few products of filters are needed.
    """
    taps = orders[0].shape[axis + 1]
    found: list[np.ndarray] = []
    for order in orders:
        rows = np.moveaxis(order, axis + 1, -1).reshape(-1, taps)
        for sign in (1, -1):
            own = [f for f in found if np.array_equal(f[::-1], sign * f)]
            part = (rows + sign * rows[:, ::-1]) / 2
            if own:
                part = part - part @ np.linalg.pinv(np.stack(own)) @ np.stack(own)
            _, strengths, vectors = np.linalg.svd(part, full_matrices=False)
            for vector in vectors[strengths > tolerance * np.abs(order).max(initial=1e-300) * len(rows)]:
                exact = (vector + sign * vector[::-1]) / 2
                found.append(exact / np.abs(exact).max())
    return np.stack(found or [np.eye(1, taps, taps // 2)[0]])
