"""What an installed copy holds, and that it works without a compiler, a home folder and the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_sre import bundles, demo
from monai_sre.ops.ring import compiler
from monai_sre.ops.ring.native import instruction_sets
from tests.bundles.running import rows

ROOT = Path(__file__).parents[1]
#: A layer against a dense kernel, a network's first step, a conversion; prints the libraries that were loaded.
FIRST_STEP = """
import torch, monai_sre
from monai.networks.nets import UNet
from monai_sre.ops.ring import cpu, energy_cpu
layer, x = monai_sre.SREConv2d(2, 3, 9, algorithm="ring"), torch.randn(1, 2, 40, 30)
torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.kernel(), layer.bias))
monai_sre.sre_resnet18(2, 1, 3, width=4, conv="harmonic")(torch.randn(2, 1, 20, 23)).sum().backward()
network = monai_sre.convert_to_sre(UNet(2, 1, 2, channels=(4, 8), strides=(2,))).eval()
assert max(monai_sre.equivariance_error(network, torch.randn(1, 1, 20, 23)).values()) < 1e-5
for engine in (cpu, energy_cpu):
    print(engine.LIBRARY.libraries[torch.float32]._name)
"""


def build(folder: Path, kind: str, **environment: str) -> Path:
    """The source distribution or the wheel that the build makes in ``folder``."""
    pytest.importorskip("setuptools", "77")
    program = f"import setuptools.build_meta as backend; print(backend.build_{kind}('.'))"
    done = run([sys.executable, "-c", program], cwd=folder, env=os.environ | environment)
    return folder / done.split()[-1]


def run(command: list[Any], **options: Any) -> str:
    """What a command prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repository(folder: Path) -> list[str]:
    """Copies all files that git knows or would take, and returns their paths."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    listed = run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"], cwd=ROOT
    ).splitlines()
    names = [name for name in listed if os.path.lexists(ROOT / name)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return names


def package(names: list[str]) -> set[str]:
    """The files that the package has of those of the repository: the bundles lie within it."""
    inside = {name for name in names if name.startswith("monai_sre/") and name != "monai_sre/bundles"}
    return inside | {f"monai_sre/{name}" for name in names if name.startswith("bundles/")}


def test_without_a_compiler_a_wheel_for_all_systems(tmp_path: Path) -> None:
    names = repository(tmp_path)
    path = build(tmp_path, "wheel", CC="no-such-compiler")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert held == package(names)
        assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in held)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not instruction_sets(), reason="wheels are not compiled on this system")
@pytest.mark.skipif(not compiler.compilers(), reason="needs a C compiler")
class TestInstalled:
    """A wheel made from the source distribution, installed in an environment of its own."""

    @pytest.fixture(scope="class")
    def wheel(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("sources")
        names = repository(folder)
        archive = build(folder, "sdist")
        unpacked = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(archive) as sources:
            sources.extractall(unpacked, filter="data")
        (root,) = unpacked.iterdir()
        held = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        made = {"PKG-INFO", *(name for name in held if name.startswith("monai_sre.egg-info/"))}
        wanted = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
        assert held - made == package(names) | wanted
        path = build(root, "wheel")
        with zipfile.ZipFile(path) as wheel:
            beside = {name for name in wheel.namelist() if ".dist-info/" not in name} - package(names)
        assert path.name.rsplit("-", 3)[1:3] == ["py3", "none"]
        assert not path.name.endswith("-any.whl")
        assert all(name.startswith("monai_sre/ops/ring/") and name.endswith(".so") for name in beside)
        sources_count = len(list((ROOT / "monai_sre/ops/ring").glob("*.c")))
        sets = compiler.INSTRUCTION_SETS[os.uname().machine]
        assert len(beside) == sources_count * len(compiler.REALS) * len(sets)
        return path

    @pytest.fixture(scope="class")
    def python(self, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Python of an environment that has the wheel, read-only, and whatever else the tests have."""
        pytest.importorskip("pip")
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        python = folder / "bin/python"
        here = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH"
        }  # where a checkout may be found
        words = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
        run([sys.executable, *words], cwd=folder, env=here)
        (site,) = folder.glob("lib/python*/site-packages")
        others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "others.pth").write_text("\n".join(others))
        for path in (*site.rglob("*"), site):
            path.chmod(0o555 if path.is_dir() else 0o444)
        return python

    @staticmethod
    def in_a_container(folder: Path, python: Path, *arguments: Any, **more: str) -> str:
        """What Python prints in ``folder``, without compilers and home folder."""
        (folder / "temporary").mkdir(exist_ok=True)
        environment = {"PATH": str(folder / "nothing"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
        environment |= {"TMPDIR": str(folder / "temporary"), "MPLCONFIGDIR": str(folder / "temporary")}
        return run([python, *arguments], cwd=folder, env=environment)

    @pytest.mark.parametrize("capability", ["", "default"])
    def test_the_first_step_uses_the_library_of_the_processor(
        self, capability: str, python: Path, tmp_path: Path
    ) -> None:
        site = next(python.parents[1].glob("lib/python*/site-packages"))
        before = sorted(site.rglob("*"))
        cache = tmp_path / "cache"
        options = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        printed = self.in_a_container(tmp_path, python, "-c", FIRST_STEP, MONAI_SRE_CACHE=str(cache), **options)
        name = instruction_sets()[-1 if capability else 0]
        loaded = [Path(line) for line in printed.splitlines()[-2:]]
        assert [path.parent for path in loaded] == [site / "monai_sre/ops/ring"] * 2
        assert [path.name.rsplit("_", 1)[0] for path in loaded] == [
            f"ring_cpu_float_{name}",
            f"energy_cpu_float_{name}",
        ]
        assert not cache.exists()
        assert sorted(site.rglob("*")) == before

    def test_a_bundle_is_listed_copied_and_infers(self, python: Path, tmp_path: Path) -> None:
        listed = self.in_a_container(tmp_path, python, "-m", "monai_sre.bundles")
        assert [line.split()[0] for line in listed.splitlines()] == bundles.names()
        root = tmp_path / "mine"
        self.in_a_container(tmp_path, python, "-m", "monai_sre.bundles", demo.BUNDLE.name, root)
        copied = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        listed = run(["git", "ls-files", "."], cwd=ROOT / "bundles" / demo.BUNDLE.name)
        assert sorted(copied) == sorted(listed.splitlines())
        image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "image.png")
        words = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--device", "cpu"]
        self.in_a_container(root, python, *words, "--input", tmp_path / "image.png")
        (row,) = rows(root / "output/inference/predictions.csv")
        assert row["class"]

    def test_the_demo(self, python: Path, tmp_path: Path) -> None:
        printed = self.in_a_container(tmp_path, python, "-m", "monai_sre.demo", "--epochs", 1)
        assert "accuracy, no rotation in training:" in printed
        assert (tmp_path / "output/demo/rotation.png").is_file()
        assert len(rows(tmp_path / "output/demo/inference/predictions.csv")) > 5


def test_a_demo_without_a_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no configs/train.json; name the folder"):
        demo.main(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
