"""Wheels with the C engine compiled for each instruction set of this machine; the metadata are in setup.cfg."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

RING = Path("monai_sre/ops/ring")
compiler = runpy.run_path(str(RING / "compiler.py"))  # the package itself needs torch


class Wheel(bdist_wheel):
    """A wheel for one platform and all Pythons; for all platforms where nothing can be compiled."""

    def run(self) -> None:
        libraries, reason = {}, "there is no C compiler, or none that is used on this system"
        for command in compiler["compilers"]() if sys.platform == "linux" else []:
            try:
                libraries = compiler["wheel_libraries"](RING, command)
                break
            except (OSError, subprocess.SubprocessError) as error:
                reason = compiler["reason"](command, error)
        if not libraries:
            self.warn(f"the wheel holds no compiled code, which will be compiled at first use: {reason}")
        folder = Path(self.get_finalized_command("build_py").build_lib) / RING
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.so"):
            old.unlink()
        for name, content in libraries.items():
            (folder / name).write_bytes(content)
        self.root_is_pure = not libraries
        self.distribution.has_ext_modules = lambda: bool(libraries)  # where the files lie in the wheel
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


setup(cmdclass={"bdist_wheel": Wheel})
