"""Promise 7: ``configs`` and ``models`` alone, elsewhere and without the training data, read an image and name its class."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.bundles.inferring import BUNDLES
from tests.bundles.running import rows

#: In a process that cannot import medmnist.
RUN = """
import sys
sys.modules["medmnist"] = None
import monai.bundle
bundle, source, target = sys.argv[1:]
config = f"{bundle}/configs/inference.json"
monai.bundle.run(config_file=config, bundle_root=bundle, input=source, output_dir=target, device="cpu")
"""


def save(path: Path) -> None:
    random = np.random.default_rng(0)
    if path.name.endswith(".nii.gz"):
        nibabel.save(
            nibabel.Nifti1Image(random.normal(size=(20, 24, 9)).astype(np.float32), np.diag([1, 1, 3, 1])), path
        )
    elif path.suffix == ".png":
        Image.fromarray(random.integers(0, 256, (40, 50), dtype=np.uint8)).save(path)
    else:
        Image.fromarray(random.integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("bundle", "name", "table"),
    [
        (BUNDLES[0], "a.png", "predictions.csv"),
        (BUNDLES[1], "a.nii.gz", "predictions.csv"),
        (BUNDLES[2], "a.jpg", "segmentations.csv"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_configs_and_models_alone_are_enough(tmp_path: Path, bundle: Path, name: str, table: str) -> None:
    copied, elsewhere = tmp_path / "copied", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for part in ("configs", "models"):
        shutil.copytree(bundle / part, copied / part)
    save(tmp_path / name)
    command = [sys.executable, "-c", RUN, str(copied), str(tmp_path / name), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    environment.pop("MONAI_SRE_DATA", None)
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path / "out" / table)
    assert row["error"] == ""
    if table == "predictions.csv":
        names = {
            "medmnist_2d_classification": {"malignant", "normal, benign"},
            "medmnist_3d_classification": {"normal", "hyperplasia"},
        }
        assert row["name"] in names[bundle.name]
        assert {key for key in row if key.startswith("p(")} == {f"p({title})" for title in names[bundle.name]}
    else:
        assert Image.open(tmp_path / "out/a_seg.png").size == (50, 60)
        assert 0 <= float(row["share of vessel"]) < 1
    assert not any(elsewhere.iterdir())
