"""Promise 8: layers, networks and conversion need torch, MONAI, numpy and scipy alone; the rest says what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from monai_sre.extras import BUNDLES

ROOT = Path(__file__).parents[1]
#: Import names of what the extras of ``setup.cfg`` bring.
EXTRAS = (
    "ignite",
    "nibabel",
    "PIL",
    "skimage",
    "tifffile",
    "sklearn",
    "tensorboard",
    "fire",
    "tqdm",
    "matplotlib",
    "pandas",
    "onnx",
    "pydicom",
    "highdicom",
)
#: Hides the extras, as if they were not installed.
HIDE = f"""
import sys
EXTRAS = {EXTRAS!r}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {(*EXTRAS, "onnxscript", "onnxruntime", "medmnist")!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", HIDE + code], env=environment, capture_output=True, text=True, timeout=200
    )


def test_layers_networks_conversion_and_errors_without_any_extra() -> None:
    done = python(
        """
import torch, monai_sre
from monai_sre.check import check_network
from monai.networks.layers import Conv
from monai.networks.nets import UNet
torch.manual_seed(0)
x = torch.randn(1, 1, 20, 23)
Conv["SRECONV", 2](1, 4, 5, padding="same")(x)
monai_sre.SREHarmonicConv2d(1, 4, 5, padding="same")(x)
monai_sre.sre_resnet18(2, 1, 3, width=4)(x)
monai_sre.SREUNet(2, 1, 2, channels=(4, 8))(x)
network = monai_sre.convert_to_sre(UNet(2, 1, 2, channels=(4, 8), strides=(2,))).eval()
print(monai_sre.conversion_report(network))
assert 1e-3 < monai_sre.equivariance_error(network, x, 30.0)["30 deg"] < 10
assert max(monai_sre.equivariance_error(network, x).values()) < 1e-5
monai_sre.layer_errors(network, x)
assert check_network(network, x.shape, seconds=0).breaking == []
monai_sre.fold_sre(network)(x)
loaded = {name.split(".")[0] for name in sys.modules}
print("loaded:", sorted(loaded & set(EXTRAS)))
"""
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout


def test_the_base_of_the_package_asks_for_four_packages() -> None:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    names = [line.split(">=")[0] for line in parser["options"]["install_requires"].split()]
    assert sorted(names) == ["monai", "numpy", "scipy", "torch"]


@pytest.mark.parametrize("room", ["monai_sre.data", "monai_sre.evaluation", "monai_sre.training", "monai_sre.demo"])
def test_what_needs_an_extra_says_so_in_one_sentence(room: str) -> None:
    done = python(f"import {room}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    packages = "pytorch-ignite, nibabel, pillow, scikit-image, tifffile, tqdm"
    assert last == f'ImportError: {room} needs {packages}: pip install "monai_sre[bundles]"'


def test_an_extra_brings_what_the_rooms_ask_for() -> None:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    names = {line.split(">=")[0] for line in parser["options.extras_require"]["bundles"].split()}
    assert {*BUNDLES.split(), "fire", "tensorboard"} <= names
