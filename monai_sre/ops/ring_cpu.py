"""The compiled CPU backend of the ring engine: builds ``ring_cpu.c`` once for a machine, loads it, calls it.

The C source is compiled at first use (1 to 3 s, once for float32 and once for float64) with ``CC``, ``cc``, ``gcc`` or
``clang`` and kept in the user's cache folder (``MONAI_SRE_CACHE``, or ``monai_sre`` under ``XDG_CACHE_HOME`` or
``~/.cache``). It serves every size, so nothing is ever compiled again. It shares the OpenMP runtime that torch has
loaded. Without a compiler one line is logged and :mod:`monai_sre.ops.ring_eager` takes over.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_sre.ops.ring_plan import SMALL_MAP, Geometry, Plan, sum_matrix

_logger = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("ring_cpu.c")
_HEADERS = [_SOURCE.with_name(name) for name in ("ring_cpu.h", "ring_cpu_sums.h", "ring_cpu_products.h")]
#: Size of the ring sums of one tile: they are read again from the second- or third-level cache.
TILE_BYTES = 2**20
_REAL = {torch.float32: "float", torch.float64: "double"}
_COMPILE_SECONDS = 60
_lock = threading.Lock()
_libraries: dict[torch.dtype, ctypes.CDLL | None] = {}


class _Call(ctypes.Structure):
    """The struct ``Call`` of ``ring_cpu.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "channels", "out_channels", "other_channels", "blocks")),
        *(
            (name, ctypes.c_int64 * 3)
            for name in ("in_size", "out_size", "stride", "padding", "dilation", "zoom", "kernel", "tile")
        ),
        *((name, ctypes.c_int64) for name in ("columns", "rows", "groups", "maps", "threads", "scratch_step")),
    )


def available(dtype: torch.dtype) -> bool:
    """Whether the compiled sums can be used for ``dtype``; compiles them if need be."""
    return _library(dtype) is not None


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
    """One pass over the sums of an image, tile by tile; every tensor is contiguous, float32 or float64 on the CPU.

    Args:
        x: shape ``(N, C, D, H, W)``.
        plan: the sums of each channel, ``plan.maps`` of them.
        geometry: where they are taken.
        groups: number of blocks of channels that do not mix.
        weight: ``(O, C / groups * maps)``; with it ``out``, ``(N, O, *out_size)``, receives ``weight . sums + bias``.
        bias: ``(O,)``, or ``None``.
        other: ``(N, J, *out_size)``, to be multiplied with the sums.

    Returns:
        With ``other``, the products ``sums . other^T`` over images and positions, shape ``(C * maps, J / groups)``.
    """
    library = _library(x.dtype)
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
    small = geometry.positions <= SMALL_MAP and math.prod(geometry.in_size) <= SMALL_MAP
    tile, call.threads = _tile(x, plan, geometry, whole=small)
    call.tile[:] = tile
    call.scratch_step = library.ring_scratch(ctypes.byref(call))
    scratch = workspace("scratch", call.scratch_step * call.threads, x.dtype)
    packed = None if out is None else workspace("weights", library.ring_weights(ctypes.byref(call)), x.dtype)
    total = None if other is None else x.new_empty(x.shape[1] * plan.maps, other.shape[1] // groups)
    matrix = None
    if small:
        matrix = _padded_matrix(plan, geometry, x.dtype, library.ring_lanes())
    arrays = _arrays(plan, x.dtype)
    pointers = [None if t is None else t.data_ptr() for t in (x, weight, bias, out, other, total, scratch, packed)]
    weights = None if arrays.weights is None else arrays.weights.ctypes.data
    constants = (arrays.table, weights, None if matrix is None else matrix.data_ptr())
    if library.ring_run(ctypes.byref(call), *pointers, *constants):
        raise MemoryError("no memory for the ring sums")
    return total


def _tile(x: Tensor, plan: Plan, geometry: Geometry, whole: bool) -> tuple[tuple[int, int, int], int]:
    """Images, planes and rows of a tile, and the number of threads: even work, sums of about ``TILE_BYTES``.

    A map that is summed by a constant matrix stays ``whole``: the matrix gives all its positions at once.
    """
    count, maps = x.shape[0], x.shape[1] * plan.maps
    depth, height, width = geometry.out_size
    threads = torch.get_num_threads()
    budget = max(1, TILE_BYTES // (maps * x.element_size()))  # positions
    if whole or geometry.positions <= budget:
        images = _even(count, min(max(1, budget // geometry.positions), math.ceil(count / threads)))
        tile = (images, depth, height)
    else:
        reach = [(k - 1) * d // s for k, d, s in zip(plan.kernel, geometry.dilation, geometry.stride, strict=True)]
        planes = min(depth, max(1, budget // (height * width)))
        rows = height
        if planes < min(depth, 2 * reach[0]) or height * width > budget:  # neighbours would sum the same planes again
            planes = min(depth, max(1, 2 * reach[0]))
            rows = min(height, max(budget // (width * planes), 2 * reach[1], 4))
        tile = (1, _even(depth, planes), _even(height, rows))
    tiles = math.ceil(count / tile[0]) * math.ceil(depth / tile[1]) * math.ceil(height / tile[2])
    if tiles < threads and tile[0] == 1 and not whole:  # few large images: split them, some sums are taken twice
        if depth > 1:
            tile = (1, _even(tile[1], math.ceil(tile[1] / threads)), tile[2])
        else:
            tile = (1, 1, _even(tile[2], math.ceil(tile[2] / threads)))
        tiles = math.ceil(count / tile[0]) * math.ceil(depth / tile[1]) * math.ceil(height / tile[2])
    return tile, max(1, min(threads, tiles))


def _even(count: int, step: int) -> int:
    """The size of even parts of ``count`` that are at most ``step``."""
    return math.ceil(count / math.ceil(count / max(1, step))) if count else 1


class _Arrays:
    """A plan's arrays as ``ring_run`` takes them, and what keeps them alive."""

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        stages = [plan.columns.start, plan.columns.tap]
        for stage in (plan.rows, plan.groups):
            stages += [stage.start, stage.tap, stage.source]
        self.weights: np.ndarray | None = None
        if plan.mix is not None:
            ring, group = np.nonzero(plan.mix)
            stages += [np.searchsorted(ring, np.arange(plan.maps + 1)), group]
            self.weights = plan.mix[ring, group].astype(np.float32 if dtype == torch.float32 else np.float64)
        self.stages = [np.ascontiguousarray(array, dtype=np.int32) for array in stages]
        self.table = (ctypes.c_void_p * 10)(*(array.ctypes.data for array in self.stages))


@lru_cache(maxsize=512)
def _arrays(plan: Plan, dtype: torch.dtype) -> _Arrays:
    return _Arrays(plan, dtype)


@lru_cache(maxsize=256)
def _padded_matrix(plan: Plan, geometry: Geometry, dtype: torch.dtype, lanes: int) -> Tensor:
    matrix = sum_matrix(plan, geometry, dtype)
    with torch.inference_mode(False), torch.no_grad():
        return torch.nn.functional.pad(matrix, (0, -matrix.shape[2] % lanes)).contiguous()


_local = threading.local()
_KEPT_BYTES = 64 * 2**20


def workspace(name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of this thread for ``count`` values, reused by the next call of the same name."""
    held: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("held", {})
    buffer = held.get((name, dtype))
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False), torch.no_grad():
            buffer = torch.empty(count, dtype=dtype)
        if buffer.nbytes <= _KEPT_BYTES:
            held[name, dtype] = buffer
    return buffer


def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    if dtype not in _libraries:
        with _lock:
            if dtype not in _libraries:
                _libraries[dtype] = _load(dtype)
    return _libraries[dtype]


def _load(dtype: torch.dtype) -> ctypes.CDLL | None:
    if dtype not in _REAL:
        return None
    reason = "no C compiler (CC, cc, gcc or clang) was found"
    for compiler in filter(None, map(shutil.which, _compilers())):
        for runtime in dict.fromkeys((_openmp_runtime(), None)):  # without OpenMP rather than not at all
            try:
                library = ctypes.CDLL(str(_build(compiler, runtime, _REAL[dtype])))
            except (OSError, subprocess.SubprocessError) as error:
                lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                reason = f"{compiler}: {lines[-1] if lines else type(error).__name__}"
                continue
            for function in (library.ring_scratch, library.ring_weights, library.ring_lanes):
                function.restype = ctypes.c_int64
            library.ring_run.argtypes = [ctypes.c_void_p] * 12
            return library
    _logger.warning("ring sums run uncompiled, several times slower: %s", reason)
    return None


def _compilers() -> list[str]:
    chosen = os.environ.get("CC")
    return [chosen] if chosen else ["cc", "gcc", "clang"]


def _openmp_runtime() -> str | None:
    """Path of the OpenMP library that this process has loaded already: a second one would compete for the cores."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = sorted(set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*)\s*$", maps, flags=re.MULTILINE)))
    ours = [path for path in found if "/torch/" in path]
    return (ours or found or [None])[0]


def _build(compiler: str, runtime: str | None, real: str) -> Path:
    """Path of the shared library for this source, compiler and processor, compiled unless an earlier process did it."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    options = ["-O3", native, "-std=gnu11", "-fPIC", "-fno-math-errno", f"-DREAL={real}"]
    options += ["-fopenmp"] if runtime else []
    version = _run([compiler, "--version"])
    sources = [path.read_text() for path in (_SOURCE, *_HEADERS)]
    identity = "\0".join([*sources, compiler, version, str(options), str(runtime), _processor()])
    name = f"ring_{real}_{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    target = _cache_folder() / name
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, options, runtime, target)
    except OSError:  # nothing can be kept there: compile for this process alone
        target = Path(tempfile.mkdtemp(prefix="monai_sre_")) / name
        atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
        _compile(compiler, options, runtime, target)
    return target


def _compile(compiler: str, options: list[str], runtime: str | None, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        parts = Path(work) / "ring.o", Path(work) / "ring.so"
        _run([compiler, *options, "-c", str(_SOURCE), "-o", str(parts[0])])
        _run([compiler, "-shared", str(parts[0]), "-o", str(parts[1]), *([runtime] if runtime else [])])
        os.replace(parts[1], target)  # atomic: another process sees all of it or nothing


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=True)
    return done.stdout


def _cache_folder() -> Path:
    chosen = os.environ.get("MONAI_SRE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "monai_sre"


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return platform.machine() + "".join(sorted(kept))
    except OSError:
        return platform.machine() + platform.processor()
