"""Promise 7: ``configs`` and ``models`` alone, elsewhere and without the training data, read an image and name its class."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.bundles.inferring import BUNDLES, SEGMENTATION, VOLUMES
from tests.bundles.running import rows, run
from tests.bundles.test_forms import data

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
        (BUNDLES[3], "a.nii.gz", "segmentations.csv"),
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
    elif bundle == VOLUMES:
        assert nibabel.load(tmp_path / "out/a_seg.nii.gz").shape == (20, 24, 9)
        assert {"ml of Anterior", "share of Posterior"} <= set(row)
    else:
        assert Image.open(tmp_path / "out/a_seg.png").size == (50, 60)
        assert 0 <= float(row["share of vessel"]) < 1
    assert not any(elsewhere.iterdir())


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Copies a bundle's ``configs`` and ``models`` to where nothing can be written, by a read-only mount for root."""
    target = tmp_path / "mounted"
    mounted = False

    def copied(bundle: Path) -> Path:
        nonlocal mounted
        for part in ("configs", "models"):
            shutil.copytree(bundle / part, target / part)
        if os.geteuid() != 0:
            for path in (*target.rglob("*"), target):
                path.chmod(0o555 if path.is_dir() else 0o444)
        else:
            for options in (["--bind", str(target)], ["-o", "remount,ro,bind"]):
                if subprocess.run(["mount", *options, str(target)], capture_output=True).returncode:
                    pytest.skip("nothing can be mounted here")
                mounted = True
        with pytest.raises(OSError, match=r"Read-only|denied"):
            (target / "new").touch()
        return target

    yield copied
    if mounted:
        subprocess.run(["umount", str(target)], check=True)
    elif os.geteuid() != 0:
        for path in (target, *target.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_all_phases_run_from_a_read_only_folder_and_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: Callable[[Path], Path], bundle: Path
) -> None:
    copied, folder = read_only(bundle), tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir("/")
    before = sorted(os.listdir())
    small: dict[str, Any] = {"network_def#width": 4}
    if bundle in (SEGMENTATION, VOLUMES):
        small = {"network_def#channels": [4, 8], "network_def#kernel_size": 3, "patch_size": 16, "val_interval": 1}
    options = {**data(bundle, folder), "device": "cpu"}
    model = {"ckpt_dir": str(tmp_path / "train/models")}
    run(copied, "train", **options, **small, max_epochs=1, output_dir=str(tmp_path / "train"))
    run(copied, "train", "evaluate", **options, **model, output_dir=str(tmp_path / "evaluation"))
    source = tmp_path / ("a.nii.gz" if "3d" in bundle.name or bundle == VOLUMES else "a.png")
    save(source)
    for name, which in (("trained", model), ("shipped", {})):
        run(copied, "inference", **which, device="cpu", input=str(source), output_dir=str(tmp_path / name))
        assert len(list((tmp_path / name).glob("*.csv"))) == 1
    assert (tmp_path / "evaluation/metrics.json").is_file()
    assert sorted(os.listdir()) == before
