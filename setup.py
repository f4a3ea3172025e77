"""Wheels with the C engine compiled for each instruction set of this machine; the metadata are in setup.cfg."""

from __future__ import annotations

import itertools
import platform
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

RING = Path("monai_sre/ops/ring")
compiler = runpy.run_path(str(RING / "compiler.py"))


def libraries(command: list[str]) -> dict[str, bytes]:
    """Every C source of the engine, for each element type and instruction set, by the name of the library."""
    openmp = b"clang" not in compiler["run"]([*command, "--version"])  # torch has the runtime of GCC
    sets = compiler["INSTRUCTION_SETS"][platform.machine()]

    def build(case: tuple[Path, str, str]) -> tuple[str, bytes]:
        source, real, instruction_set = case
        options = compiler["options"](sets[instruction_set], real, openmp)
        with tempfile.TemporaryDirectory() as folder:
            content = compiler["compile_source"](command, options, None, source, Path(folder))
        return compiler["library_name"](*case), content

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(build, itertools.product(sorted(RING.glob("*.c")), compiler["REALS"], sets)))


class Wheel(bdist_wheel):
    """One wheel per platform for all Pythons; one for all platforms where nothing can be compiled."""

    def run(self) -> None:
        folder = Path(self.get_finalized_command("build_py").build_lib) / RING
        for old in folder.glob("*.so"):
            old.unlink()
        built, reason = {}, "no C compiler for this system"
        known = sys.platform == "linux" and platform.machine() in compiler["INSTRUCTION_SETS"]
        for command in compiler["compilers"]() if known else []:
            try:
                built = libraries(command)
                break
            except (OSError, subprocess.SubprocessError) as error:
                reason = compiler["reason"](command, error)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in built.items():
            (folder / name).write_bytes(content)
        if not built:
            self.warn(f"a wheel without compiled code, which is compiled at first use: {reason}")
        self.root_is_pure = not built
        self.distribution.has_ext_modules = lambda: bool(built)  # where files go in a wheel that is not pure
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


setup(cmdclass={"bdist_wheel": Wheel})
