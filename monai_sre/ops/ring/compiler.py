"""The C compiler, and how it makes libraries of the engine's sources: for the processor at hand, or for a wheel.

The compiler is ``CC`` (a path, or a command with options, such as ``ccache gcc``), ``cc``, ``gcc`` or ``clang``; a command
that takes longer than :data:`COMPILE_SECONDS` is ended, with all that it started. Only the standard library is needed here:
the build of a wheel (``setup.py``) runs this file by itself, where torch is not installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: Seconds that one command of the compiler may take.
COMPILE_SECONDS = 60
#: Element types of the libraries.
REALS = ("float", "double")
#: What every processor of a machine has.
BASELINE = "baseline"
#: For each machine that wheels are built for, the options of each instruction set, under torch's name for it.
INSTRUCTION_SETS: dict[str, dict[str, Sequence[str]]] = {
    "x86_64": {
        "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"),  # what torch asks for
        "AVX2": ("-mavx2", "-mfma"),
        BASELINE: (),
    },
    "aarch64": {BASELINE: ()},  # it has NEON
}


def compilers() -> list[list[str]]:
    """The commands to try, as lists of words."""
    chosen = os.environ.get("CC")
    commands = [["cc"], ["gcc"], ["clang"]]
    if chosen:
        try:
            commands = [[chosen] if shutil.which(chosen) else shlex.split(chosen)]
        except ValueError:  # a quotation mark without its partner
            return []
    found = [(shutil.which(first), rest) for first, *rest in filter(None, commands)]
    return [[path, *rest] for path, rest in found if path]


def options(instructions: Sequence[str], real: str, openmp: bool) -> list[str]:
    """What a source is compiled with."""
    common = ["-O3", *instructions, "-std=gnu11", "-fPIC", "-fno-math-errno", f"-DREAL={real}"]
    return [*common, "-fopenmp"] if openmp else common


def compile_source(command: list[str], options: list[str], runtime: str | None, source: Path, folder: Path) -> bytes:
    """The library of a source, linked with an OpenMP ``runtime`` if one is given; ``folder`` is for what lies between."""
    parts = folder / "part.o", folder / "part.so"
    run([*command, *options, "-c", str(source), "-o", str(parts[0])], folder)
    run([*command, "-shared", str(parts[0]), "-o", str(parts[1]), *([runtime] if runtime else [])], folder)
    return parts[1].read_bytes()


def run(command: list[str], folder: Path | None = None) -> bytes:
    """What the command prints; its temporary files go to ``folder``."""
    environment = {**os.environ, "TMPDIR": str(folder)} if folder else None
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, start_new_session=True) as process:
        try:
            output, messages = process.communicate(timeout=COMPILE_SECONDS)
        except BaseException:  # too slow, or interrupted: the compiler ends with all that it started
            with contextlib.suppress(OSError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, messages)
    return output


def sources(source: Path) -> list[bytes]:
    """The source and all that it can include: every C file of its folder."""
    return [source.read_bytes(), *(path.read_bytes() for path in sorted(source.parent.glob("*.[ch]")))]


def library_name(source: Path, real: str, instruction_set: str) -> str:
    """File name of a library in a wheel; the hash in it stands for the sources, of which it must never be an older form."""
    digest = hashlib.sha256(repr(sources(source)).encode()).hexdigest()
    return f"{source.stem}_{real}_{instruction_set}_{digest[:12]}.so"


def wheel_libraries(folder: Path, command: list[str]) -> dict[str, bytes]:
    """All libraries of a wheel for this machine, by name: each source in ``folder``, element type and instruction set."""
    openmp = b"clang" not in run(
        [*command, "--version"]
    )  # the functions of GCC's runtime are those that torch has loaded
    sets = INSTRUCTION_SETS.get(platform.machine(), {})

    def build(case: tuple[Path, str, str]) -> tuple[str, bytes]:
        source, real, instruction_set = case
        with tempfile.TemporaryDirectory() as place:
            chosen = options(sets[instruction_set], real, openmp)
            return library_name(*case), compile_source(command, chosen, None, source, Path(place))

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(build, itertools.product(sorted(folder.glob("*.c")), REALS, sets)))


def reason(command: list[str], error: Exception) -> str:
    """Why a command failed, in one line."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{command[0]}: ended after {COMPILE_SECONDS} s"
    stderr = getattr(error, "stderr", None) or b""
    lines = (stderr.decode(errors="replace").strip() or str(error) or type(error).__name__).splitlines()
    return f"{command[0]}: {next((line for line in lines if 'error' in line), lines[-1])}"
