"""Libraries of C sources, loaded: those that came in the wheel, or else compiled at first use for the processor at hand.

A wheel holds one library for each instruction set of its machine; the processor decides which one is loaded. What is
compiled at first use (:mod:`monai_sre.ops.ring.compiler`) is kept in the user's cache folder (``MONAI_SRE_CACHE``, or
``monai_sre`` under ``XDG_CACHE_HOME`` or ``~/.cache``; paths must be absolute), whole and with a hash. The folder and the
file are used only where they belong to this user and nobody else can write to them. What is loaded is a copy in a private
folder, which nobody can exchange or truncate: in the temporary folder, or in the cache where nothing can be run from there.
Libraries share the OpenMP runtime that torch has loaded. Where none can be had, one line is logged, and the caller takes
another path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import re
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from monai_sre.ops.ring import compiler

_logger = logging.getLogger(__name__)
_REAL = {torch.float32: "float", torch.float64: "double"}
_FAILURES = (OSError, UnicodeError, subprocess.CalledProcessError)  # ctypes decodes messages that name any path
_Result = TypeVar("_Result")


class NativeLibrary:
    """One C source as a library for each of float32 and float64, when it is first asked for.

    Args:
        source: the C file; it reads the element type from the macro ``REAL``, and includes files of its folder alone.
        purpose: what it does, for the line that says that it cannot be had.
        declare: sets the argument and result types of the library's functions.
    """

    def __init__(self, source: Path, purpose: str, declare: Callable[[ctypes.CDLL], None]) -> None:
        self.source, self._purpose, self._declare = source, purpose, declare
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
        shipped = self._shipped(_REAL[dtype])
        if shipped is not None:
            return shipped
        reason = "no C compiler (CC, cc, gcc or clang) was found"
        runtimes = dict.fromkeys((_openmp_runtime(), None))  # without OpenMP rather than not at all
        for command, runtime in itertools.product(compiler.compilers(), runtimes):
            try:
                return self._open(command, runtime, _REAL[dtype])
            except (AttributeError, subprocess.TimeoutExpired, *_FAILURES) as error:
                reason = compiler.reason(command, error)
                if isinstance(error, subprocess.TimeoutExpired):  # so would be the next attempts
                    break
        _logger.warning("%s run uncompiled, several times slower: %s", self._purpose, reason)
        return None

    def _shipped(self, real: str) -> ctypes.CDLL | None:
        """The library that came in the wheel for this processor, or ``None``."""
        names = instruction_sets()
        try:
            path = self.source.with_name(compiler.library_name(self.source, real, names[0])) if names else None
            if path is not None and path.is_file():
                return self.load_file(path)
        except (AttributeError, *_FAILURES) as error:  # torch without the OpenMP runtime of GCC
            _warn_once(f"the library that came with the package is not used: {error}")
        return None

    def _open(self, command: list[str], runtime: str | None, real: str) -> ctypes.CDLL:
        """The library for this source, compiler and processor, compiled unless an earlier process did it."""
        native = ["-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"]
        if platform.machine() in ("x86_64", "AMD64"):
            native.append("-mtune=generic")  # as the libraries of a wheel; GCC's tuning for Zen 3 is slower
        options = compiler.options(native, real, openmp=runtime is not None)
        version = compiler.run([*command, "--version"])
        identity = repr((compiler.sources(self.source), command, version, options, runtime, _processor()))
        # the OpenMP runtime is part of the name: a library without it is never found in place of one with it
        name = f"{self.source.stem}_{real}_{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
        cache = _cache_folder()
        places: list[Path | None] = [None, cache] if cache else [None]
        kept = _read(cache / name) if cache else None
        if kept is not None:
            with contextlib.suppress(AttributeError, *_FAILURES):  # another system made it: it is built anew
                return _privately(functools.partial(self._link, kept), places)
        built = _privately(functools.partial(compiler.compile_source, command, options, runtime, self.source), places)
        library = _privately(functools.partial(self._link, built), places)
        if cache:
            _keep(cache / name, built)
        return library

    def _link(self, content: bytes, folder: Path) -> ctypes.CDLL:
        """The library with this content."""
        path = folder / "library.so"  # a name in a new folder: an open library would be taken for another of its name
        path.write_bytes(content)
        return self.load_file(path)

    def load_file(self, path: Path) -> ctypes.CDLL:
        """The library in a file; ``AttributeError`` where it lacks a function."""
        library = ctypes.CDLL(str(path))
        self._declare(library)
        return library


def instruction_sets() -> list[str]:
    """Those of this machine's wheels that the processor has, best first.

    ``ATEN_CPU_CAPABILITY``, a variable of torch, can leave out the best.
    """
    names = list(compiler.INSTRUCTION_SETS.get(platform.machine(), ()))
    capability = torch.backends.cpu.get_cpu_capability()
    return names[names.index(capability) if capability in names else -1 :]


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


def _openmp_runtime() -> str | None:
    """Path of the OpenMP library that this process has loaded already: a second one would compete for the cores."""
    try:
        maps = Path("/proc/self/maps").read_bytes()  # paths, in any encoding
    except OSError:
        return None
    found = re.findall(rb"(/.*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*)$", maps, flags=re.MULTILINE)
    paths = sorted(set(map(os.fsdecode, found)))
    return min(paths, key=lambda path: "/torch/" not in path, default=None)


def _privately(action: Callable[[Path], _Result], places: Sequence[Path | None]) -> _Result:
    """The result of ``action`` in a new folder of this user alone, in the first of ``places`` where it does not fail.

    ``None`` is the temporary folder. The new folder is removed: a library stays open without its file.
    """
    place, *others = places
    try:
        with tempfile.TemporaryDirectory(prefix="monai_sre_", dir=place, ignore_cleanup_errors=True) as folder:
            return action(Path(folder))
    except _FAILURES:  # full, read-only, or nothing can be run from there
        if not others:
            raise
    return _privately(action, others)


def _cache_folder() -> Path | None:
    """Where libraries are kept, made if need be; ``None``, and a line in the log, where that is not safe or not possible."""
    try:
        folder = _chosen_folder()
        _make(folder)
        if _private(folder.stat()):
            return folder
        reason = f"{str(folder)!r} belongs to another user, or others can write to it"
    except (OSError, RuntimeError) as error:
        reason = str(error)
    _warn_once(f"compiled code is not kept: {reason}")
    return None


def _chosen_folder() -> Path:
    """What the environment says; ``RuntimeError`` where the user has no home."""
    for variable, inside in (("MONAI_SRE_CACHE", ""), ("XDG_CACHE_HOME", "monai_sre")):
        value = os.environ.get(variable)
        if value and os.path.isabs(value):
            return Path(value, inside)
        if value:
            _warn_once(f"{variable} must be an absolute path, got {value!r}: it is ignored")
    return Path.home() / ".cache" / "monai_sre"


def _make(folder: Path) -> None:
    """Makes the folder and what lies above it, for this user alone."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(0o700, exist_ok=True)


def _private(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and nobody else can write to it."""
    ours = hasattr(os, "geteuid") and status.st_uid == os.geteuid()
    return ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(path: Path) -> bytes | None:
    """The library that is kept here, if it is whole and this user's alone."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            stored = file.read() if _private(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    content = stored[: -len(_seal(path, b""))]
    return content if stored == content + _seal(path, content) else None


def _keep(path: Path, content: bytes) -> None:
    """Stores a library: another process sees all of it or nothing, after a power failure too."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder, path.name)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content + _seal(path, content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
    except OSError as error:
        _warn_once(f"compiled code is not kept: {error}")


def _seal(path: Path, content: bytes) -> bytes:
    """A hash of a library and its name, which stands for its source, compiler, options, OpenMP runtime and processor."""
    return hashlib.sha256(os.fsencode(path.name) + b"\0" + content).digest()


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        kept = {line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU part"))}
        return platform.machine() + repr(sorted(kept))
    except OSError:
        return platform.machine() + platform.processor()
