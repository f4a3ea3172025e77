"""Libraries of a wheel, and those compiled at first use: compilers, and the folder where what they made is kept."""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import re
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_sre.ops.ring import compiler, native
from monai_sre.ops.ring.native import NativeLibrary

COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
SOURCE = """
#ifdef _OPENMP
int omp_get_max_threads(void);
int threads(void) { return omp_get_max_threads(); }
#else
int threads(void) { return 0; }
#endif
REAL twice(REAL x) { return 2 * x; }
"""
OTHER_USER = 65534

pytestmark = pytest.mark.skipif(COMPILER is None or os.name != "posix", reason="needs a C compiler")


def declare(library: ctypes.CDLL) -> None:
    library.twice.argtypes, library.twice.restype = [ctypes.c_float], ctypes.c_float
    library.threads.restype = ctypes.c_int


def openmp() -> bool:
    return b"libgomp" in Path("/proc/self/maps").read_bytes()


class Machine:
    """A user's machine, of which everything that concerns compiled code lies in ``folder``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.folder, self.cache, self.temporary = folder, folder / "cache", folder / "temporary"
        self._patch, self._log, self._calls = monkeypatch, caplog, folder / "calls"
        self.source = folder / "twice.c"
        self.source.write_text(SOURCE)
        self.temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(self.temporary))
        monkeypatch.setenv("MONAI_SRE_CACHE", str(self.cache))
        monkeypatch.setenv("HOME", str(folder / "home"))
        self.use_compiler("")

    def use_compiler(self, lines: str, version: str = "echo 1.0", name: str = "cc", options: str = "") -> Path:
        """A shell script that runs ``lines`` and then the compiler, which is given ``options`` more."""
        script = self.folder / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; exit 0; fi\n'
            f'echo "$@" >> "{self._calls}"\n{lines}\nexec {COMPILER} "$@" {options}\n'
        )
        script.chmod(0o755)
        self._patch.setenv("CC", str(script))
        return script

    @property
    def compiled(self) -> int:
        """How many times something was compiled."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return sum(" -c " in f" {line} " for line in lines)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self._log.records]

    def load(self, declare: Callable[[ctypes.CDLL], None] = declare) -> ctypes.CDLL | None:
        """As a new process does."""
        with self._log.at_level(logging.WARNING, logger="monai_sre"):
            return NativeLibrary(self.source, "doubles", declare).get(torch.float32)

    def works(self) -> bool:
        """Whether a new process has a library that is right and uses OpenMP where torch does."""
        library = self.load()
        return library is not None and library.twice(1.5) == 3 and (library.threads() > 0) == openmp()

    def kept(self) -> Path:
        """The one file in the cache."""
        (path,) = self.cache.iterdir()
        return path

    def left(self) -> list[Path]:
        """What lies in the temporary folder."""
        return list(self.temporary.iterdir())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Machine:
    return Machine(tmp_path, monkeypatch, caplog)


def in_a_fork(check: Callable[[], bool]) -> int | None:
    """Exit code of a process that runs ``check``: 0 for true, the negative signal where it is killed."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if check() else 1))
    process.start()
    process.join(60)
    return process.exitcode


class TestCache:
    """The folder that outlives the process."""

    def test_kept_for_the_next_process(self, machine: Machine) -> None:
        assert machine.works()
        assert machine.works()
        assert machine.compiled == 1
        assert not machine.messages
        assert not machine.left()

    def test_two_processes_at_once(self, machine: Machine) -> None:
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(2)

        def load() -> None:
            barrier.wait(60)
            sys.exit(0 if machine.works() else 1)

        processes = [context.Process(target=load) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        assert machine.kept().is_file()

    def test_nobody_else_can_write_whatever_the_umask(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MONAI_SRE_CACHE", str(machine.cache / "below" / "here"))
        before = os.umask(0)
        try:
            assert machine.works()
        finally:
            os.umask(before)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (machine.cache, *machine.cache.rglob("*"))]
        assert modes == [0o700, 0o700, 0o700, 0o600]

    @pytest.mark.parametrize("mode", [0o602, 0o620, 0o666], ids=oct)
    def test_file_that_others_can_write(self, mode: int, machine: Machine) -> None:
        assert machine.works()
        machine.kept().chmod(mode)
        assert machine.works()
        assert machine.compiled == 2
        assert stat.S_IMODE(machine.kept().stat().st_mode) == 0o600

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
    def test_file_of_another_user(self, machine: Machine) -> None:
        assert machine.works()
        os.chown(machine.kept(), OTHER_USER, OTHER_USER)
        assert machine.works()
        assert machine.compiled == 2
        assert machine.kept().stat().st_uid == os.geteuid()

    def test_link_to_a_file(self, machine: Machine) -> None:
        """Its owner says nothing about the file at its end."""
        assert machine.works()
        name = machine.kept()
        elsewhere = name.rename(machine.folder / "elsewhere")
        name.symlink_to(elsewhere)
        assert machine.works()
        assert machine.compiled == 2
        assert not machine.kept().is_symlink()

    @pytest.mark.parametrize("mode", [0o702, 0o720, 0o777, 0o1777], ids=oct)
    def test_folder_that_others_can_write(self, mode: int, machine: Machine) -> None:
        assert machine.works()
        made = machine.kept().stat()
        machine.cache.chmod(mode)
        assert machine.works()
        assert machine.works()
        assert machine.compiled == 3  # nothing is taken from there
        assert machine.kept().stat().st_ino == made.st_ino  # nor put there
        assert len(machine.messages) == 1
        assert f"{str(machine.cache)!r} belongs to another user, or others can write to it" in machine.messages[0]
        assert not machine.left()

    @pytest.mark.parametrize("owner", [0, OTHER_USER])
    def test_folder_of_another_user(self, owner: int, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of root as well."""
        assert machine.works()
        if os.geteuid() == 0 and owner:
            os.chown(machine.cache, owner, owner)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: machine.cache.stat().st_uid + 1)
        assert machine.works()
        assert machine.compiled == 2
        assert "belongs to another user" in machine.messages[0]

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda content: b"", id="empty"),
            pytest.param(lambda content: content[: len(content) // 2], id="half"),
            pytest.param(lambda content: content[:-1], id="one byte short"),
            pytest.param(lambda content: content[:2000] + bytes(len(content) - 2000), id="zeros at the end"),
            pytest.param(lambda content: content[:70] + b"\xff" + content[71:], id="one byte"),
            pytest.param(lambda content: b"not a library", id="text"),
        ],
    )
    def test_damaged_file(self, damage: Callable[[bytes], bytes], machine: Machine) -> None:
        assert in_a_fork(machine.works) == 0
        damaged = damage(machine.kept().read_bytes())
        machine.kept().write_bytes(damaged)
        assert in_a_fork(machine.works) == 0  # rebuilt, with OpenMP
        assert machine.compiled == 2
        assert machine.kept().read_bytes() != damaged
        assert in_a_fork(machine.works) == 0
        assert machine.compiled == 2

    def test_library_under_the_name_of_another(self, machine: Machine) -> None:
        """Whole, but for other arguments."""

        def is_new() -> bool:
            library = machine.load()
            return library is not None and library.twice(1.0) == 3

        assert in_a_fork(machine.works) == 0
        old = machine.kept().rename(machine.folder / "old")
        machine.source.write_text(SOURCE.replace("2 * x", "3 * x"))
        assert in_a_fork(is_new) == 0
        old.rename(machine.kept())
        assert in_a_fork(is_new) == 0

    def test_file_that_is_truncated_while_in_use(self, machine: Machine) -> None:
        """The next call would end with a bus error if the file itself were mapped."""

        def check() -> bool:
            library = machine.load()
            assert library is not None
            os.truncate(machine.kept(), 0)
            return library.twice(1.5) == 3

        assert in_a_fork(check) == 0

    def test_written_through(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name appears after the content is on the disk."""
        events = []

        def record(name: str) -> None:
            function = getattr(os, name)

            def call(*arguments: Any) -> None:
                events.append(name)
                function(*arguments)

            monkeypatch.setattr(os, name, call)

        record("fsync")
        record("replace")
        assert machine.works()
        assert events == ["fsync", "replace"]

    @pytest.mark.parametrize("variable", ["MONAI_SRE_CACHE", "XDG_CACHE_HOME"])
    @pytest.mark.parametrize("value", [".", "somewhere/else"])
    def test_relative_path(self, variable: str, value: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        here = machine.folder / f"here {variable} {value.replace('/', ' ')}"
        here.mkdir()
        monkeypatch.chdir(here)
        monkeypatch.delenv("MONAI_SRE_CACHE")
        monkeypatch.setenv(variable, value)
        assert machine.works()
        assert machine.messages == [f"{variable} must be an absolute path, got {value!r}: it is ignored"]
        assert not list(here.iterdir())
        assert len(list((machine.folder / "home" / ".cache" / "monai_sre").iterdir())) == 1

    def test_user_without_home(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A container's user without an entry in passwd."""

        def nowhere() -> Path:
            raise RuntimeError("Could not determine home directory.")

        for name in ("MONAI_SRE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", nowhere)
        assert machine.works()
        assert not machine.left()

    def test_full_disk_of_the_cache(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compiled in the temporary folder instead, and no draft keeps the disk full."""
        machine.use_compiler(f'case "$*" in *"{machine.cache}"*) echo No space left on device >&2; exit 1;; esac')

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert machine.works()
        assert machine.messages == ["compiled code is not kept: [Errno 28] No space left on device"]
        assert not list(machine.cache.iterdir())
        assert not machine.left()

    def test_full_disk_of_the_temporary_folder(self, machine: Machine) -> None:
        machine.use_compiler(f'case "$*" in *"{machine.temporary}"*) echo No space left on device >&2; exit 1;; esac')
        assert machine.works()
        assert not machine.messages
        assert machine.kept().is_file()

    @pytest.mark.parametrize("folder", ["cache", "temporary", ""])
    def test_folders_from_which_nothing_can_be_run(
        self, folder: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mounted noexec: the cache, the temporary folder, or both."""
        forbidden, load = str(machine.folder / folder), ctypes.CDLL

        def load_elsewhere(path: str) -> ctypes.CDLL:
            if path.startswith(forbidden):
                raise OSError(f"{path}: failed to map segment from shared object")
            return load(path)

        monkeypatch.setattr(ctypes, "CDLL", load_elsewhere)
        if folder:
            assert machine.works()
            assert machine.works()
            assert machine.compiled == 1
            assert not machine.messages
        else:
            assert machine.load() is None
            (message,) = machine.messages
            assert message.startswith("doubles run uncompiled, several times slower: ")
            assert message.endswith("failed to map segment from shared object")

    def test_folder_that_cannot_be_made(self, machine: Machine) -> None:
        machine.cache.write_text("not a folder")
        assert machine.works()
        assert machine.cache.read_text() == "not a folder"
        assert len(machine.messages) == 1
        assert not machine.left()


class TestCompiler:
    """Compilers that people have."""

    def test_none(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        for chosen in ("no-such-compiler", "no-such-compiler -m64", "gcc 'without end", " "):
            monkeypatch.setenv("CC", chosen)
            assert machine.load() is None
        reason = "no C compiler (CC, cc, gcc or clang) was found"
        assert machine.messages == [f"doubles run uncompiled, several times slower: {reason}"] * 4

    def test_one_that_fails(self, machine: Machine) -> None:
        machine.use_compiler("printf 'fatal error: \\377 is full\\nended\\n' >&2; exit 1")
        assert machine.load() is None
        (message,) = machine.messages
        assert message.endswith("cc: fatal error: \ufffd is full")

    def test_one_that_makes_nothing(self, machine: Machine) -> None:
        machine.use_compiler("exit 0")
        assert machine.load() is None
        assert len(machine.messages) == 1

    def test_library_without_the_functions(self, machine: Machine) -> None:
        machine.use_compiler("", options="-Dtwice=thrice")
        assert machine.load() is None
        (message,) = machine.messages
        assert "twice" in message
        assert not list(machine.cache.iterdir())

    def test_kept_library_without_the_functions(self, machine: Machine) -> None:
        machine.use_compiler("", options="-Dtwice=thrice")
        assert machine.load(lambda library: setattr(library.thrice, "restype", ctypes.c_float)) is not None
        machine.use_compiler("")
        assert machine.works()
        assert machine.compiled == 2
        assert machine.works()
        assert machine.compiled == 2
        assert not machine.messages

    @pytest.mark.parametrize("form", ["env {}", "{} -DUNUSED", "'{}' -DUNUSED", "{}", "env '{}' -DUNUSED"])
    def test_wrappers_options_and_spaces(self, form: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        spaces = "'" in form or form == "{}"
        script = machine.use_compiler("", name="my compilers/cc" if spaces else "cc")
        monkeypatch.setenv("CC", form.format(script))
        assert machine.works()
        assert machine.compiled == 1
        assert ("-DUNUSED" in (machine.folder / "calls").read_text()) == ("-DUNUSED" in form)

    def test_version_that_is_no_text(self, machine: Machine) -> None:
        machine.use_compiler("", version="printf '\\377\\376 1.0'")
        assert machine.works()

    def test_another_version_compiles_anew(self, machine: Machine) -> None:
        assert machine.works()
        machine.use_compiler("", version="echo 2.0")
        assert machine.works()
        assert machine.compiled == 2

    def test_too_slow(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the compiler has started ends with it, and nothing is tried again."""
        pipe = machine.folder / "pipe"
        os.mkfifo(pipe)
        end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        machine.use_compiler(f"sh -c 'sleep 30; exit 1' 3> {pipe}; exit 1")
        monkeypatch.setattr(compiler, "COMPILE_SECONDS", 1.5)
        assert machine.load() is None
        (message,) = machine.messages
        assert message.endswith("cc: ended after 1.5 s")
        assert machine.compiled == 1
        assert select.select([end], [], [], 10)[0]  # nobody holds the other end any more
        os.close(end)
        assert not machine.left()


@pytest.mark.skipif(not native.instruction_sets(), reason="there are no wheels for this machine")
class TestShipped:
    """Libraries that came in a wheel, and lie beside their source."""

    @staticmethod
    def ship(machine: Machine) -> list[Path]:
        """Does what the build of a wheel does."""
        libraries = compiler.wheel_libraries(machine.folder, compiler.compilers()[0])
        for name, content in libraries.items():
            (machine.folder / name).write_bytes(content)
        return [machine.folder / name for name in libraries]

    def test_one_for_each_type_and_instruction_set(self, machine: Machine) -> None:
        shipped = self.ship(machine)
        assert len(shipped) == machine.compiled == 2 * len(compiler.INSTRUCTION_SETS[os.uname().machine])
        assert machine.works()
        assert machine.compiled == len(shipped)
        assert not machine.cache.exists()
        assert not machine.messages

    def test_of_other_sources_is_not_used(self, machine: Machine) -> None:
        shipped = self.ship(machine)
        (machine.folder / "included.h").write_text("/* changed since */")
        assert machine.works()
        assert machine.compiled == len(shipped) + 1

    @pytest.mark.parametrize("options", ["-Dtwice=thrice", "-include unknown_symbol.h"])
    def test_that_cannot_be_loaded(self, options: str, machine: Machine) -> None:
        (machine.folder / "unknown_symbol.h").write_text("void nowhere(void); void also(void) { nowhere(); }")
        machine.use_compiler("", options=options.replace("unknown", str(machine.folder / "unknown")))
        shipped = self.ship(machine)
        machine.use_compiler("")
        assert machine.works()
        assert machine.compiled == len(shipped) + 1
        (message,) = machine.messages
        assert message.startswith("the library that came with the package is not used: ")
        assert ("twice" if "twice" in options else "nowhere") in message

    def test_only_what_the_processor_has(self) -> None:
        program = "from monai_sre.ops.ring.native import instruction_sets; print(*instruction_sets())"
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [compiler.BASELINE] == native.instruction_sets()[-1:]


class TestOtherLibraries:
    """Those that the process has loaded already."""

    def test_folder_whose_name_is_no_text(self, machine: Machine) -> None:
        assert COMPILER is not None
        folder = os.fsencode(machine.folder) + b"/\377"
        os.mkdir(folder)
        empty, path = machine.folder / "empty.c", folder + b"/libempty.so"
        empty.touch()
        subprocess.run([COMPILER, "-shared", "-fPIC", str(empty), "-o", path], check=True)

        def check() -> bool:
            ctypes.CDLL(os.fsdecode(path))
            return path in Path("/proc/self/maps").read_bytes() and machine.works()

        assert in_a_fork(check) == 0

    @pytest.mark.skipif(not openmp(), reason="torch has no OpenMP here")
    @pytest.mark.parametrize("name", [b"a folder/torch/lib", b"\377/torch/lib"])
    def test_openmp_runtime_in_any_folder(self, name: bytes, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = re.findall(rb"/.*/libgomp\S*", Path("/proc/self/maps").read_bytes())
        runtime = min(loaded, key=lambda path: b"/torch/" not in path)
        folder = os.fsencode(machine.folder) + b"/" + name
        os.makedirs(folder)
        moved = shutil.copy(runtime, folder)
        read = Path.read_bytes

        def read_moved(path: Path) -> bytes:
            return read(path).replace(runtime, moved) if str(path) == "/proc/self/maps" else read(path)

        monkeypatch.setattr(Path, "read_bytes", read_moved)
        assert machine.works()
        assert moved in read(machine.folder / "calls")
