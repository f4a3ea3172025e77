"""How the tests run a bundle, and read what it leaves behind."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "bundles"


def config_files(bundle: Path, *names: str) -> list[str]:
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def run(bundle: Path, *configs: str, **options: Any) -> None:
    """``python -m monai.bundle run`` with some of the bundle's configs, in this process."""
    monai.bundle.run(
        config_file=config_files(bundle, *configs),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        bundle_root=str(bundle),
        **options,
    )


def run_in_two_processes(bundle: Path, *configs: str, **options: Any) -> None:
    """The same by ``torchrun`` with two processes, over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", f"--config_file={config_files(bundle, *configs)}", f"--bundle_root={bundle}"]
    command += [
        f"--meta_file={bundle / 'configs/metadata.json'}",
        *[f"--{key}={value}" for key, value in options.items()],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def causes(error: BaseException | None) -> str:
    """The messages of an error and of those that it came from."""
    text = ""
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__
    return text
