"""The main job on the embedded data: ``python -m monai_sre.demo`` trains, evaluates and infers with the 2-D bundle.

An SRE network and a plain one of the same skeleton see the same upright patches of real images; then both are tested on
patches that are rotated at random. Needs no download and takes about three minutes on two cores.
"""

from __future__ import annotations

from monai_sre.extras import require

require("monai_sre.demo")

# ruff: noqa: E402 - what the rest imports is there by now

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import run
from PIL import Image

from monai_sre.bundles import FOLDER
from monai_sre.data import load_dataset
from monai_sre.evaluation import SweepResult, draw_sweep

_DATASET = "demo_2d"
#: The bundle whose configs are run.
BUNDLE = FOLDER / "medmnist_2d_classification"


def main(output_dir: str | Path, bundle: str | Path = BUNDLE, epochs: int = 10) -> str:
    """Run the comparison.

    Args:
        output_dir: folder of all results.
        bundle: folder of the bundle ``medmnist_2d_classification``.
        epochs: epochs of training for each of the two networks.

    Returns:
        The table as text.

    Raises:
        FileNotFoundError: ``bundle`` holds no bundle.
    """
    output_dir, configs = Path(output_dir).resolve(), Path(bundle).resolve() / "configs"
    if not (configs / "train.json").is_file():
        raise FileNotFoundError(
            f"bundle={str(bundle)!r} holds no configs/train.json; name the folder medmnist_2d_classification of a checkout"
        )
    train, evaluate = [configs / "train.json"], [configs / "train.json", configs / "evaluate.json"]
    networks: dict[str, tuple[list[Path], dict[str, Any]]] = {
        "SRE": (train, {"network_def#width": 48}),
        "plain": ([*train, configs / "plain.json"], {"network_def#block_inplanes": [48, 96, 192, 384]}),
    }
    rows, curves = [], {}
    for name, (files, width) in networks.items():
        folder = output_dir / name.lower()
        started = time.perf_counter()
        options = {"dataset_name": _DATASET, "max_epochs": epochs, "batch_size": 64, "output_dir": str(folder)}
        _run(files, configs, **options, **width, overwrite=True)
        seconds = time.perf_counter() - started
        options = {"dataset_name": _DATASET, "ckpt_dir": str(folder / "models")}
        upright, rotated = folder / "validation", folder / "test"
        _run(evaluate, configs, **options, output_dir=str(upright), **{"validate#dataset#split": "val"})
        _run(evaluate, configs, **options, output_dir=str(rotated), sweep=True, sweep_step=30)
        sweep = json.loads((rotated / "sweep_bilinear_background.json").read_text())
        curves[name] = SweepResult(sweep["rows"], sweep["consistency"])
        accuracy = [json.loads((part / "metrics.json").read_text())["ACC"] for part in (upright, rotated)]
        rows.append((name, *accuracy, sweep["ACC mean"], sweep["consistency"], seconds))
    draw_sweep(
        curves, output_dir / "rotation.png", title="random patches of real images, corners filled with the background"
    )
    predictions = _infer(output_dir, configs)
    return _table(rows) + f"\npicture:     {output_dir / 'rotation.png'}\npredictions: {predictions}"


def _run(files: list[Path], configs: Path, **options: Any) -> None:
    run(
        config_file=[str(file) for file in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=str(configs / "logging.conf"),
        bundle_root=str(configs.parent),
        **options,
    )


def _infer(output_dir: Path, configs: Path) -> Path:
    """Write some test patches as PNG files, and predict them as a user would."""
    folder = output_dir / "images"
    folder.mkdir(parents=True, exist_ok=True)
    data = load_dataset(_DATASET, split="test")
    for index in range(0, len(data), max(1, len(data) // 12)):
        name = data.info.class_names[int(data.labels[index])]
        Image.fromarray(np.asarray(data.images[index, 0])).save(folder / f"{index:03d}_{name}.png")
    options = {"ckpt_dir": str(output_dir / "sre" / "models"), "output_dir": str(output_dir / "inference")}
    _run([configs / "inference.json"], configs, **options, input=str(folder))
    return output_dir / "inference" / "predictions.csv"


def _table(rows: list[tuple[Any, ...]]) -> str:
    titles = ("network", "upright (validation)", "rotated (test)", "mean of 12 turns", "consistency", "training")
    lines = [" | ".join(titles)]
    for name, *scores, seconds in rows:
        cells = [f"{score:.3f}".rjust(len(title)) for score, title in zip(scores, titles[1:-1], strict=True)]
        lines.append(" | ".join([name.ljust(len(titles[0])), *cells, f"{seconds:.0f} s".rjust(len(titles[-1]))]))
    return "\n".join(["", "accuracy, no rotation in training:", *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m monai_sre.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", default="output/demo", help="folder of all results (default: %(default)s)")
    parser.add_argument("--bundle", default=BUNDLE, help="folder of the 2-D bundle (default: the one in this package)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training per network (default: %(default)s)")
    arguments = parser.parse_args()
    logging.getLogger("ignite").setLevel(logging.WARNING)
    print(main(arguments.output_dir, arguments.bundle, arguments.epochs))
