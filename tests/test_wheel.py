"""What an installed copy holds: the C sources, and the configs that ``python -m monai_sre.demo`` runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from monai_sre import demo

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_sources_and_configs(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    for name in ("monai_sre", "bundles"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.pt", "output"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    program = "import setuptools.build_meta; print(setuptools.build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist()}
    wanted = [path for kind in ("*.py", "*.c", "*.h") for path in ROOT.glob(f"monai_sre/**/{kind}")]
    wanted += [ROOT / "monai_sre" / path.relative_to(ROOT) for path in ROOT.glob("bundles/*/configs/*")]
    for path in wanted:
        assert held[path.relative_to(ROOT).as_posix()] == path.read_bytes()
    assert demo.BUNDLE.relative_to(ROOT).as_posix() + "/configs/train.json" in held


def test_a_demo_without_a_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no configs/train.json; name the folder"):
        demo.main(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
