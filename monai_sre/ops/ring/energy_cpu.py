"""The compiled CPU backend of energies: loads ``energy_cpu.c``, describes a call to it, calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from monai_sre.ops.ring.cpu import computed_in
from monai_sre.ops.ring.native import NativeLibrary, workspace
from monai_sre.ops.ring.plan import spatial_triple

#: Size of one array in scratch memory: all of them together stay in the second-level cache.
ARRAY_BYTES = 2**16


class _Call(ctypes.Structure):
    """The struct ``Call`` of ``energy_cpu.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "image_step", "grad_step")),
        *((name, ctypes.c_int64 * 3) for name in ("size", "reach")),
        *((name, ctypes.c_int64) for name in ("components", "taps", "together", "threads", "scratch_step")),
    )


def _declare(library: ctypes.CDLL) -> None:
    library.energy_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.energy_scratch.restype = ctypes.c_int64
    library.energy_run.argtypes = [ctypes.c_void_p] * 9
    library.energy_run.restype = None


LIBRARY = NativeLibrary(Path(__file__).with_name("energy_cpu.c"), [], "harmonic energies", _declare)


def available(dtype: torch.dtype) -> bool:
    """Whether compiled energies can be used for ``dtype``; compiles them if need be."""
    return LIBRARY.get(dtype) is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def compiled_for(dtype: torch.dtype) -> bool:
    """Whether compiled energies serve a dtype, in half precision by float32; a constant of a graph of ``torch.compile``."""
    return available(computed_in(dtype))


def energies(
    x: Tensor, stencils: Tensor, eps: float, grad: Tensor | None = None, with_values: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Energies of every map, and with ``grad``, their gradient, that by ``x``.

    Args:
        x: shape ``(N, C, *spatial)``, float32 or float64 on the CPU; each image contiguous, images any step apart.
        stencils: shape ``(components, *kernel_size)``, odd sizes, of the dtype of ``x``.
        eps: added to the sum of squares.
        grad: laid out as ``x``.
        with_values: whether the energies are wanted.

    Returns:
        The energies and the gradient, contiguous and of the shape of ``x``, or ``None`` for what is not wanted.
    """
    library = LIBRARY.get(x.dtype)
    if library is None:
        raise RuntimeError("compiled harmonic energies are not available")
    out = torch.empty(x.shape, dtype=x.dtype) if with_values else None
    slope = None if grad is None else torch.empty(x.shape, dtype=x.dtype)
    if x.numel() == 0:
        return out, slope
    size, kernel = spatial_triple(x.shape[2:], 1), spatial_triple(stencils.shape[1:], 1)
    offsets, values = _taps(stencils.numpy().tobytes(), stencils.shape, stencils.dtype, size)
    call = _Call()
    call.images, call.channels, call.image_step = x.shape[0], x.shape[1], x.stride(0)
    call.grad_step = 0 if grad is None else grad.stride(0)
    call.size[:], call.reach[:] = size, [length // 2 for length in kernel]
    call.components, call.taps = stencils.shape[0], len(offsets)
    maps, values_each = x.shape[0] * x.shape[1], x[0, 0].numel()
    threads = torch.get_num_threads()
    call.together = max(1, min(ARRAY_BYTES // (values_each * x.element_size()), -(-maps // threads)))
    call.threads = max(1, min(threads, -(-maps // call.together)))
    call.scratch_step = library.energy_scratch(ctypes.byref(call), int(grad is not None))
    scratch = workspace("energies", call.scratch_step * call.threads, x.dtype)
    constant = (ctypes.c_float if x.dtype == torch.float32 else ctypes.c_double)(eps)
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, grad, out, slope, offsets, values)]
    library.energy_run(ctypes.byref(call), *pointers, ctypes.byref(constant), scratch.data_ptr())
    return out, slope


@lru_cache(maxsize=256)
def _taps(
    content: bytes, shape: Sequence[int], dtype: torch.dtype, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Offsets of the taps in the scratch memory of ``energy_cpu.c``, and their values ``(taps, components)``."""
    stencils = torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape[0], *spatial_triple(shape[1:], 1))
    reach = [length // 2 for length in stencils.shape[1:]]
    row = size[2] + reach[2]
    plane = (size[1] + reach[1]) * row
    places = (stencils != 0).any(dim=0).nonzero()
    steps = torch.tensor([plane, row, 1])
    with torch.inference_mode(False), torch.no_grad():
        offsets = ((places - torch.tensor(reach)) * steps).sum(dim=1).to(torch.int32)
        values = stencils[:, places[:, 0], places[:, 1], places[:, 2]].T.contiguous()
    return offsets, values
