"""C sources, compiled at first use for the processor at hand, and loaded.

The compiler is ``CC``, ``cc``, ``gcc`` or ``clang``; libraries are kept in the user's cache folder (``MONAI_SRE_CACHE``, or
``monai_sre`` under ``XDG_CACHE_HOME`` or ``~/.cache``). They share the OpenMP runtime that torch has loaded. Without a
compiler one line is logged, and the caller takes another path.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)
_REAL = {torch.float32: "float", torch.float64: "double"}
_COMPILE_SECONDS = 60


class NativeLibrary:
    """One C source, compiled for each of float32 and float64 when it is first asked for.

    Args:
        source: the C file; it reads the element type from the macro ``REAL``.
        headers: what it includes.
        purpose: what it does, for the line that says that it cannot be had.
        declare: sets the argument and result types of the library's functions.
    """

    def __init__(
        self, source: Path, headers: Sequence[Path], purpose: str, declare: Callable[[ctypes.CDLL], None]
    ) -> None:
        self._source, self._headers, self._purpose, self._declare = source, list(headers), purpose, declare
        self._lock = threading.Lock()
        self.libraries: dict[torch.dtype, ctypes.CDLL | None] = {}

    def get(self, dtype: torch.dtype) -> ctypes.CDLL | None:
        """The library for ``dtype``, or ``None`` where there is none."""
        if dtype not in self.libraries:
            with self._lock:
                if dtype not in self.libraries:
                    self.libraries[dtype] = self._load(dtype)
        return self.libraries[dtype]

    def _load(self, dtype: torch.dtype) -> ctypes.CDLL | None:
        if dtype not in _REAL:
            return None
        reason = "no C compiler (CC, cc, gcc or clang) was found"
        for compiler in filter(None, map(shutil.which, _compilers())):
            for runtime in dict.fromkeys((_openmp_runtime(), None)):  # without OpenMP rather than not at all
                try:
                    library = ctypes.CDLL(str(self._build(compiler, runtime, _REAL[dtype])))
                except (OSError, subprocess.SubprocessError) as error:
                    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                    reason = f"{compiler}: {lines[-1] if lines else type(error).__name__}"
                    continue
                self._declare(library)
                return library
        _logger.warning("%s run uncompiled, several times slower: %s", self._purpose, reason)
        return None

    def _build(self, compiler: str, runtime: str | None, real: str) -> Path:
        """Path of the shared library for this source, compiler and processor, compiled unless an earlier process did it."""
        native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
        options = ["-O3", native, "-std=gnu11", "-fPIC", "-fno-math-errno", f"-DREAL={real}"]
        options += ["-fopenmp"] if runtime else []
        version = _run([compiler, "--version"])
        sources = [path.read_text() for path in (self._source, *self._headers)]
        identity = "\0".join([*sources, compiler, version, str(options), str(runtime), _processor()])
        name = f"{self._source.stem}_{real}_{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
        try:
            target = _cache_folder() / name
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _compile(compiler, options, runtime, self._source, target)
        except (OSError, RuntimeError):  # no folder, or no home: for this process alone
            target = Path(tempfile.mkdtemp(prefix="monai_sre_")) / name
            atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
            _compile(compiler, options, runtime, self._source, target)
        return target


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


def _compile(compiler: str, options: list[str], runtime: str | None, source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        parts = Path(work) / "part.o", Path(work) / "part.so"
        _run([compiler, *options, "-c", str(source), "-o", str(parts[0])])
        _run([compiler, "-shared", str(parts[0]), "-o", str(parts[1]), *([runtime] if runtime else [])])
        os.replace(parts[1], target)  # atomic: another process sees all of it or nothing


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=True)
    return done.stdout


def _cache_folder() -> Path:
    """Where libraries are kept; ``RuntimeError`` where the user has no home."""
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
