"""The compiled CPU backend of energies: loads ``energy_cpu.c``, describes a call to it, calls it.

The stencils of :mod:`monai_sre.ops.harmonics` fit polynomials under weights that are a product over the axes: each is a sum
of a few products of one-dimensional filters, which the stencils share. They are found from the values alone.
"""

from __future__ import annotations

import ctypes
import itertools
import math
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
from monai_sre.ops.ring.plan import even_part, spatial_triple

#: Size of all arrays in the scratch memory of a thread together, unless one map is larger: they stay in its own cache.
SCRATCH_BYTES = 2**17
#: Size of the energies and the gradient of the images that are mixed at once, for each thread, unless one image is larger.
MIXED_BYTES = 2**19
#: Most components, and products of filters, that the C source has room for.
MOST = 32


class _Call(ctypes.Structure):
    """The struct ``Call`` of ``energy_cpu.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "groups", "outputs")),
        *((name, ctypes.c_int64 * 3) for name in ("size", "reach", "filters")),
        *((name, ctypes.c_int64) for name in ("planes", "terms", "orders", "components", "together", "at_once")),
        *((name, ctypes.c_int64) for name in ("threads", "scratch_step")),
    )


class _Stencils(ctypes.Structure):
    """The struct ``Stencils`` of ``energy_cpu.c``."""

    _fields_ = (
        ("coefficients", ctypes.c_void_p * 3),
        ("odd", ctypes.c_void_p * 3),
        *((name, ctypes.c_void_p) for name in ("plane", "term", "order", "mix")),
    )


class _Maps(ctypes.Structure):
    """The struct ``Maps`` of ``energy_cpu.c``."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("image", "group", "order", "channel")),
    )


def _declare(library: ctypes.CDLL) -> None:
    call, stencils, maps = (ctypes.POINTER(struct) for struct in (_Call, _Stencils, _Maps))
    values = ctypes.c_void_p
    for function in (library.energy_scratch, library.energy_arrays, library.energy_mix_scratch):
        function.argtypes = [call, ctypes.c_int]
        function.restype = ctypes.c_int64
    for function, operands in (
        (library.energy_run, [maps] * 4),
        (library.energy_add, [maps, maps, values, values, maps]),
        (library.energy_add_gradients, [maps, maps, values, maps, maps, values, values]),
    ):
        function.argtypes = [call, stencils, *operands, ctypes.c_double, values]
        function.restype = None


LIBRARY = NativeLibrary(Path(__file__).with_name("energy_cpu.c"), "harmonic energies", _declare)


@constant_of_graphs
def compiled_for(dtype: torch.dtype) -> bool:
    """Whether compiled energies serve a dtype, half precision by float32; compiles them if need be. A constant of graphs."""
    return LIBRARY.get(computed_in(dtype)) is not None


def form_of(stencils: Sequence[Tensor]) -> Form | None:
    """Stencils of all orders, as the C source takes them; ``None`` where it has no room for them.

    Args:
        stencils: those of each order, shape ``(components, *kernel_size)``, float32 or float64 on the CPU.
    """
    sizes = {stencil.shape[1:] for stencil in stencils}
    if len(sizes) > 1 or sum(stencil.shape[0] for stencil in stencils) > MOST:
        return None
    content = tuple((stencil.detach().numpy().tobytes(), tuple(stencil.shape)) for stencil in stencils)
    form = _form(content, stencils[0].dtype)
    return form if max(form.terms, form.planes, *form.filters) <= MOST else None


def energies(
    x: Tensor, form: Form, eps: float, groups: int = 1, grad: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Energies of every map and order, and with ``grad``, their gradient, that by ``x``.

    Args:
        x: shape ``(N, C, *spatial)``, float32 or float64 on the CPU; each image contiguous, images any step apart.
        form: the stencils, of the dtype of ``x``.
        eps: added to the sum of squares.
        groups: number of blocks of channels.
        grad: shape of the energies; each image contiguous.

    Returns:
        The energies, shape ``(N, orders * C, *spatial)``, the orders one after the other in each group, and the gradient,
        shape of ``x``, or ``None``.
    """
    out = x.new_empty(x.shape[0], form.orders * x.shape[1], *x.shape[2:])
    slope = None if grad is None else x.new_empty(x.shape)
    if x.numel() == 0:
        return out, slope
    library, call = _prepared(x, x.shape[1], form, groups, grad is not None)
    scratch = workspace("energies", call.scratch_step * call.threads, x.dtype)
    places = [_maps(x, groups), _maps(grad, groups, form.orders), _maps(out, groups, form.orders), _maps(slope, groups)]
    library.energy_run(call, form.struct, *places, eps, scratch.data_ptr())
    return out, slope


def add(y: Tensor, form: Form, weight: Tensor, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Energies of some maps, mixed by a matrix and added to the others.

    Args:
        y: shape ``(N, channels, *spatial)``, contiguous, float32 or float64 on the CPU: in each group those that are added
            to, then those that energies are taken of.
        form: the stencils, of the dtype of ``y``.
        weight: shape ``(out_channels, orders * C / groups, ...)``, contiguous.
        bias: shape ``(out_channels,)``, contiguous, or ``None``.
        groups: number of blocks of channels.
        eps: added to the sum of squares.

    Returns:
        Shape ``(N, out_channels, *spatial)``.
    """
    outputs = weight.shape[0]
    out = y.new_empty(y.shape[0], outputs, *y.shape[2:])
    if out.numel() == 0:
        return out
    library, call = _prepared(y, y.shape[1] - outputs, form, groups, False, outputs)
    scratch = workspace("energies", library.energy_mix_scratch(call, 0), y.dtype)
    radial, maps = _parts(y, outputs, groups)
    operands = (weight.data_ptr(), None if bias is None else bias.data_ptr(), _maps(out, groups))
    library.energy_add(call, form.struct, maps, radial, *operands, eps, scratch.data_ptr())
    return out


def add_gradients(
    grad: Tensor, maps: Tensor, form: Form, weight: Tensor, groups: int, eps: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`add` by ``y``, ``weight`` and ``bias``, those that are wanted.

    Args:
        grad: that of the output; each image contiguous.
        maps: those that energies are taken of, shape ``(N, C, *spatial)``, each image contiguous.
        form: with the rest as in :func:`add`.
    """
    outputs, hidden = weight.shape[0], maps.shape[1]
    by_y = grad.new_empty(grad.shape[0], outputs + hidden, *grad.shape[2:]) if wanted[0] else None
    make = torch.empty if grad.numel() else torch.zeros
    by_weight = make(weight.shape, dtype=weight.dtype) if wanted[1] else None
    by_bias = make(outputs, dtype=weight.dtype) if wanted[2] else None
    if grad.numel() == 0:
        return by_y, by_weight, by_bias
    library, call = _prepared(maps, hidden, form, groups, True, outputs)
    scratch = workspace("energies", library.energy_mix_scratch(call, 1), maps.dtype)
    radial, slope = (_Maps(), _Maps()) if by_y is None else _parts(by_y, outputs, groups)
    places = (_maps(maps, groups), _maps(grad, groups), weight.data_ptr(), slope, radial)
    sums = [None if tensor is None else tensor.data_ptr() for tensor in (by_weight, by_bias)]
    library.energy_add_gradients(call, form.struct, *places, *sums, eps, scratch.data_ptr())
    return by_y, by_weight, by_bias


def _prepared(
    x: Tensor, channels: int, form: Form, groups: int, with_grad: bool, outputs: int = 0
) -> tuple[ctypes.CDLL, _Call]:
    """The library and the description of a call, for energies of ``channels`` maps of each image of ``x``."""
    library = LIBRARY.get(x.dtype)
    if library is None:
        raise RuntimeError("compiled harmonic energies are not available")
    images, positions, threads = x.shape[0], math.prod(x.shape[2:]), torch.get_num_threads()
    call = _Call(images=images, channels=channels, groups=groups, outputs=outputs)
    call.size[:], call.reach[:], call.filters[:] = spatial_triple(x.shape[2:], 1), form.reach, form.filters
    call.planes, call.terms, call.orders, call.components = form.planes, form.terms, form.orders, form.components
    map_bytes = positions * x.element_size()
    if outputs:
        rows = form.orders * channels + (outputs if with_grad else 0)
        images = call.at_once = even_part(images, MIXED_BYTES * threads // (rows * map_bytes))
    maps, arrays = images * channels, library.energy_arrays(call, with_grad)
    call.together = even_part(maps, SCRATCH_BYTES // (arrays * map_bytes), threads)
    call.threads = threads if outputs else min(threads, -(-maps // call.together))
    call.scratch_step = library.energy_scratch(call, with_grad)
    return library, call


def _maps(tensor: Tensor | None, groups: int, orders: int = 1) -> _Maps:
    """Where maps lie, those of an order of each group beside each other; nowhere without a tensor."""
    if tensor is None:
        return _Maps()
    of_group, positions = tensor.shape[1] // groups, math.prod(tensor.shape[2:])
    steps = (of_group * positions, of_group // orders * positions, positions)
    return _Maps(tensor.data_ptr(), tensor.stride(0), *steps)


def _parts(y: Tensor, outputs: int, groups: int) -> tuple[_Maps, _Maps]:
    """The two parts of each group of ``y``; see :func:`add`."""
    radial, maps = _maps(y, groups), _maps(y, groups)
    maps.first += outputs // groups * radial.channel * y.element_size()
    return radial, maps


@dataclass(frozen=True)
class Form:
    """Stencils as sums of products of filters, as the C source reads them."""

    reach: list[int]
    filters: list[int]
    planes: int
    terms: int
    orders: int
    components: int
    struct: _Stencils
    arrays: list[np.ndarray]  # what the struct points to


@lru_cache(maxsize=256)
def _form(content: tuple[tuple[bytes, tuple[int, ...]], ...], dtype: torch.dtype) -> Form:
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
    reach = [f.shape[1] // 2 for f in filters]
    counts = (len(planes), len(terms), len(orders), len(core))
    return Form(reach, [len(f) for f in filters], *counts, struct, arrays)


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
