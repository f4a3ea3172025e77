"""Plans of volumes as ``python -m monai_sre.plan`` writes them, trained on, and the memory that loading takes.

    python -m benchmarks.plans fill --data DIR    # a folder with msd_hippocampus (Task04 of the MSD) and nifti (nibabel's)
    python -m benchmarks.plans report             # plans.md from plans.json

* hippocampus: every 6th labelled volume, as a folder of images and labels;
* slabs: 20 crops of a head (``someones_anatomy.nii.gz`` of nibabel), 4 slices averaged to one, with noise and another
  contrast each. The map is two thresholds of the smoothed head, its values are 0, 1 and 3. The crops overlap, so that
  their Dice says that the plan trains and no more.
* memory: one pass through the loaders of training and validation of 20 volumes of 160 x 160 x 160 voxels, in a fresh process.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.bundle import ConfigParser, run
from scipy import ndimage

from benchmarks.bundles import HIPPOCAMPUS, source_of
from benchmarks.memory import MALLOC, in_a_fresh_process, peak_growth
from benchmarks.tables import RESULTS, markdown, read_json
from benchmarks.timing import machine
from monai_sre.files import write_json
from monai_sre.plan import main as write_plan

FOUND = RESULTS / "plans.json"
#: Epochs of the short trainings.
EPOCHS = {"hippocampus": 3, "slabs": 5}
#: ``cache_gib`` and ``num_workers`` of the passes; ``None``: as the bundle has them.
PASSES: tuple[tuple[float | None, int], ...] = ((None, 0), (0.4, 0), (0, 0), (0, 1))


def hippocampus(data: Path, folder: Path) -> None:
    """Links to every 6th labelled volume."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for path in sorted((data / "msd_hippocampus" / part).glob("hippocampus_*.nii.gz"))[::6]:
            (folder / part / path.name).symlink_to(path.resolve())


def slabs(data: Path, folder: Path) -> None:
    """Thick slices of real anatomy, whose labels skip a number."""
    file: Any = nibabel.load(data / "nifti" / "someones_anatomy.nii.gz")
    head = file.get_fdata()
    low, high = np.percentile(head[head > 20], [40, 80])
    smooth, draw, shape = ndimage.gaussian_filter(head, 1.0), np.random.default_rng(0), (44, 52, 48)
    classes = np.digitize(smooth, [low, high])
    for index in range(20):
        box = tuple(slice(start, start + n) for start, n in zip(_corner(draw, head, shape), shape, strict=True))
        image = head[box] * draw.uniform(0.8, 1.2) + draw.normal(0, 3, shape)
        most = np.stack([_thick(classes[box] == value) for value in range(3)]).argmax(axis=0)
        _save(folder, f"slab_{index:02d}.nii.gz", _thick(image), np.array([0, 1, 3])[most], (2.75, 2.75, 11.0))


def cubes(folder: Path) -> None:
    """Balls in noise, 20 volumes of 160 x 160 x 160."""
    draw, places = np.random.default_rng(0), np.moveaxis(np.indices((160,) * 3), 0, -1)
    ball = (((places - 80) / [40, 50, 30]) ** 2).sum(-1) < 1
    for index in range(20):
        image = draw.integers(0, 60, ball.shape) + 100 * ball
        _save(folder, f"{index:02d}.nii.gz", image.astype(np.int16), ball, (1.0, 1.0, 1.0))


def _corner(draw: np.random.Generator, volume: np.ndarray, shape: tuple[int, ...]) -> list[int]:
    return [int(draw.integers(0, whole - n + 1)) for whole, n in zip(volume.shape, shape, strict=True)]


def _thick(volume: np.ndarray) -> np.ndarray:
    """Means of four slices."""
    means: np.ndarray = volume.reshape(*volume.shape[:2], -1, 4).mean(-1)
    return means


def _save(folder: Path, name: str, image: np.ndarray, classes: np.ndarray, spacing: tuple[float, ...]) -> None:
    affine = np.diag([*spacing, 1.0])
    values = image if image.dtype == np.int16 else image.astype(np.float32)
    for part, volume in (("imagesTr", values), ("labelsTr", classes.astype(np.uint8))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / part / name)


def trained(folder: Path, epochs: int) -> dict[str, Any]:
    """The plan of a folder, and its scores after each epoch."""
    path, output = folder / "plan.json", folder / "output"
    write_plan([str(folder), "--output", str(path)])
    configs = source_of(HIPPOCAMPUS).bundle / "configs"
    options: dict[str, Any] = {"max_epochs": epochs, "val_interval": 1, "output_dir": str(output), "device": "cpu"}
    run(config_file=[str(configs / "train.json"), str(path)], bundle_root=str(configs.parent), **options)
    plan = {key: value for key, value in read_json(path).items() if key != "dataset_dir"}
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {"plan": plan, **{key: [float(row[key]) for row in rows] for key in ("train_loss", "val_dice")}}


def passed(folder: str, cache_gib: float | None, workers: int) -> dict[str, Any]:
    """GiB by which the resident memory of this process rises at most, and the most that a worker has."""
    parser = ConfigParser()
    parser.read_config(str(source_of(HIPPOCAMPUS).bundle / "configs" / "train.json"))
    entries: dict[str, Any] = {"dataset_name": "", "dataset_dir": folder, "class_names": ["background", "ball"]}
    entries |= {"device": "cpu", "num_workers": workers} | ({} if cache_gib is None else {"cache_gib": cache_gib})
    for name, value in entries.items():
        parser[name] = value

    def load() -> None:
        for part in ("train", "validate"):
            for _ in parser.get_parsed_content(f"{part}#dataloader"):
                pass

    growth = peak_growth(lambda: None, load) / 2**30
    kept = sum(parser.get_parsed_content(f"{part}#dataset").cache_num for part in ("train", "validate"))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of kibibytes
    return {"cache_gib": cache_gib, "num_workers": workers, "kept": kept, "growth_gib": growth, "worker_gib": most}


def fill(arguments: argparse.Namespace) -> None:
    """Train on both plans, and load."""
    found: dict[str, Any] = read_json(FOUND, {})
    found["machine"] = machine("wall")
    with tempfile.TemporaryDirectory() as work:
        for name, make in (("hippocampus", hippocampus), ("slabs", slabs)):
            if arguments.only in (None, name):
                make(Path(arguments.data), Path(work) / name)
                found[name] = trained(Path(work) / name, EPOCHS[name])
        if arguments.only in (None, "memory"):
            cubes(Path(work) / "cubes")
            found["memory"] = [
                in_a_fresh_process("benchmarks.plans", "pass", f"{work}/cubes", json.dumps(kept), workers, **MALLOC)
                for kept, workers in PASSES
            ]
    write_json(FOUND, found)


def report(_: argparse.Namespace) -> None:
    """The page of tables."""
    found = read_json(FOUND)
    lines = [
        "# Plans of volumes",
        "",
        "Made by `benchmarks/plans.py`: what `python -m monai_sre.plan` proposes, and a short training with it, one seed.",
        f"{found['machine']['cpu']}, {found['machine']['threads']} thread. The module says what the volumes are.",
    ]
    for name in EPOCHS:
        content = found[name]
        plan = [(f"`{key}`", json.dumps(value)) for key, value in content["plan"].items()]
        epochs = [(str(n), f"{loss:.3f}", f"{dice:.3f}") for n, loss, dice in _epochs(content)]
        lines += ["", f"## {name}", "", markdown(("entry", "planned"), plan)]
        lines += [markdown(("epoch", "training loss", "validation Dice"), epochs)]
    lines += ["", "## memory", "", "Growth of the resident memory at its peak, over that of the program itself.", ""]
    head = ("`cache_gib`", "`num_workers`", "volumes kept", "GiB more, at most", "GiB of a worker, at most")
    rows = []
    for row in found["memory"]:
        kept = "half of what is free" if row["cache_gib"] is None else f"{row['cache_gib']:g}"
        sizes = [f"{row[key]:.2f}" if row[key] else "" for key in ("growth_gib", "worker_gib")]
        rows.append((kept, str(row["num_workers"]), str(row["kept"]), *sizes))
    lines.append(markdown(head, rows))
    FOUND.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")


def _epochs(content: dict[str, Any]) -> list[tuple[int, float, float]]:
    losses, dice = content["train_loss"], content["val_dice"]
    return list(zip(range(1, len(losses) + 1), losses, dice, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    filling = commands.add_parser("fill", help="train on both plans, and load")
    filling.add_argument("--data", required=True, metavar="DIR")
    filling.add_argument("--only", choices=("hippocampus", "slabs", "memory"))
    filling.set_defaults(call=fill)
    commands.add_parser("report", help="plans.md from plans.json").set_defaults(call=report)
    one = commands.add_parser("pass", help="print the memory of one pass; used by fill")
    for argument, kind in (("folder", str), ("cache_gib", json.loads), ("workers", int), ("threads", int)):
        one.add_argument(argument, type=kind)
    one.set_defaults(call=lambda chosen: print(json.dumps(passed(chosen.folder, chosen.cache_gib, chosen.workers))))
    chosen = parser.parse_args()
    chosen.call(chosen)
