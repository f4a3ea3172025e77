"""A plan for a user's own volumes: ``python -m monai_sre.plan DIR`` looks at them and writes a config for the bundle.

The rules are those of nnU-Net (Isensee et al., Nature Methods 18:203, 2021) in small. MONAI's ``DataAnalyzer`` does not serve
here: it takes the largest channel of a map that has several, resizes a map that does not fit, and skips files that fail.
"""

from __future__ import annotations

from monai_sre.extras import require

require("monai_sre.plan")

# ruff: noqa: E402 - what the rest imports is there by now

import argparse
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Orientationd
from tqdm import tqdm

from monai_sre.bundles import FOLDER
from monai_sre.data import ClassMapd, ReadImaged, find_source, free_gib, load_pairs, volumes_in
from monai_sre.data.datalist import numbered_titles, open_datalist
from monai_sre.data.pairs import nnunet_description
from monai_sre.files import writable_folder, write_whole
from monai_sre.ops.arguments import listed

__all__ = ["Fingerprint", "choose_classes", "choose_geometry", "choose_spacing", "look_at", "main", "make_plan"]

#: The bundle's configs, which the wheel holds too.
CONFIGS = FOLDER / "hippocampus_segmentation/configs"
#: Bytes of a training step per voxel of its patches, measured with 16 maps at the first level, kernels of 5 and energies.
_BYTES = 3000
#: Most voxels of a step on a CPU, for the time it takes, and of a patch.
_CPU_STEP, _MOST = 150_000, 128**3
#: Steps of an epoch, at least.
_STEPS = 60
#: Values of a volume's foreground that are kept.
_SAMPLE = 10_000


@dataclass(frozen=True)
class Fingerprint:
    """What is found in volumes and their maps, turned to RAS.

    Args:
        spacings: voxel sizes, shape ``(N, 3)``.
        shapes: numbers of voxels, shape ``(N, 3)``.
        num_channels: of all volumes.
        values: number of maps that hold each value.
        lowest: least intensity of each volume.
        foreground: intensities where a map is not 0, a sample of each volume.
    """

    spacings: np.ndarray
    shapes: np.ndarray
    num_channels: int
    values: dict[int, int]
    lowest: np.ndarray
    foreground: np.ndarray


def look_at(pairs: Sequence[Mapping[str, str]]) -> Fingerprint:
    """Read volumes and their maps, one after the other.

    Args:
        pairs: dictionaries ``{"image": path, "label": path}``.

    Raises:
        ValueError: one cannot be read, a map is none or does not fit its volume, volumes differ in their channels, or no map
            has any foreground; the message names a file.
    """
    steps = (
        ReadImaged(["image", "label"], spatial_dims=3, as_classes=[False, True]),
        ClassMapd("label", "image", num_classes=None),
        Orientationd(["image", "label"], axcodes="RAS", labels=None),
    )
    spacings, shapes, lowest, foreground, values = [], [], [], [], Counter[int]()
    channels = 0
    for pair in tqdm(pairs, desc="volumes", disable=None):
        data: Any = pair
        for step in steps:
            data = step(data)
        image, label = data["image"], data["label"].as_tensor()
        channels = channels or len(image)
        if len(image) != channels:
            raise ValueError(f"{pair['image']} has {len(image)} channels, and {pairs[0]['image']} has {channels}")
        spacings.append([float(f"{step:.4g}") for step in image.pixdim.tolist()])
        shapes.append(image.shape[1:])
        values.update(label.unique().int().tolist())
        inside = image.as_tensor()[:, label[0] > 0].float().numpy()
        foreground.append(inside[:, :: max(1, inside.shape[1] // _SAMPLE)].ravel())
        lowest.append(float(image.min()))
    held = dict(sorted(values.items()))
    if not any(len(inside) for inside in foreground):
        raise ValueError(f"no map has any foreground: {pairs[0]['label']} and all others hold 0 alone")
    return Fingerprint(
        np.array(spacings), np.array(shapes), channels, held, np.array(lowest), np.concatenate(foreground)
    )


def choose_classes(
    found: Mapping[int, int], names: Mapping[int, str] | None = None
) -> tuple[list[int], list[str], list[str]]:
    """The value of each class in the maps, the background's first, the names, and what a user must know of them.

    Args:
        found: number of maps that hold each value.
        names: those that a datalist gives values; 0 is the background even where it is not named.

    Raises:
        ValueError: a value has no name, or there is no class beside the background.

    Example:
        >>> choose_classes({0: 5, 2: 4})
        ([0, 2], ['background', 'class 2'], ['values 0, 2 of the maps are the classes 0, 1'])
        >>> choose_classes({0: 5, 1: 5}, {0: "background", 1: "liver", 2: "tumour"})
        ([0, 1, 2], ['background', 'liver', 'tumour'], ["no map holds 2 ('tumour')"])
    """
    notes = []
    if names:
        titles = {0: "background", **names}
        unknown = [str(value) for value in found if value not in titles]
        if unknown:
            raise ValueError(
                f"maps hold {listed(unknown, separator=', ')}, which 'labels' does not name: {dict(names)}"
            )
        notes += [f"no map holds {value} ({title!r})" for value, title in sorted(titles.items()) if value not in found]
    else:
        titles = {value: "background" if value == min(found) else f"class {value}" for value in found}
    values = sorted(titles)
    if not 2 <= len(values) <= 256:
        raise ValueError(f"maps hold {len(values)} values ({listed([*values])}); expected 2 to 256 classes")
    if values[0] != 0:
        notes.append(
            f"no map holds 0, so {values[0]} is taken for the background; if it is a class, put 0 before it in "
            "label_values and 'background' in class_names"
        )
    if values != list(range(len(values))):
        numbers = ", ".join(str(number) for number in range(len(values)))
        notes.append(f"values {', '.join(map(str, values))} of the maps are the classes {numbers}")
    return values, [titles[value] for value in values], notes


def choose_spacing(spacings: np.ndarray, shapes: np.ndarray) -> list[float]:
    """Voxel size to resample to: the median; along much thicker slices, as in nnU-Net, their 10th percentile.

    Args:
        spacings: with ``shapes`` as in :class:`Fingerprint`.

    Example:
        >>> choose_spacing(np.array([[1, 1, 4.0], [1, 1, 6.0], [1, 1, 5.0]]), np.array(3 * [[90, 90, 12]]))
        [1.0, 1.0, 4.2]
    """
    target = np.median(spacings, axis=0)
    size, worst = np.median(shapes, axis=0), int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > 3 * target[others].max() and 3 * size[worst] < size[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    if target.max() < 1.02 * target.min():
        target[:] = np.median(target)
    return [float(f"{step:.4g}") for step in target]


def choose_geometry(spacing: Sequence[float], shape: Sequence[float], voxels: int) -> dict[str, Any]:
    """Patch, levels, strides and kernels of the network.

    The patch is as large as ``voxels`` allow and as near to a cube in mm as the volumes are. An axis is halved from one level
    to the next while it has 16 voxels or more, and where these are at most twice as long as the shortest. A kernel reaches
    two of the shortest voxels to each side, so it is flatter along thicker slices.

    Args:
        spacing: voxel size.
        shape: median size of the volumes, in such voxels.
        voxels: most of a patch.

    Example:
        >>> choose_geometry([1.0, 1.0, 1.0], [35, 50, 35], 75_000)
        {'patch_size': [36, 52, 36], 'channels': [16, 32, 64], 'strides': [2, 2], 'kernel_size': [5, 5, 5], 'spacing': None}
        >>> thick = choose_geometry([1.0, 1.0, 4.0], [200, 200, 20], 75_000)
        >>> thick["patch_size"], thick["strides"], thick["kernel_size"]
        ([64, 64, 16], [[2, 2, 1], 2, [2, 2, 1]], [[5, 5, 1], [5, 5, 3], [5, 5, 3], 5])
    """
    low, high = 0.0, max(length * step for length, step in zip(shape, spacing, strict=True))
    for _ in range(50):  # the side in mm, by bisection
        side = (low + high) / 2
        patch = [max(1.0, min(length, side / step)) for length, step in zip(shape, spacing, strict=True)]
        low, high = (side, high) if math.prod(patch) <= voxels else (low, side)
    sizes, scale, strides, kernels = patch, [1, 1, 1], list[list[int]](), list[list[int]]()
    while True:
        steps = [step * factor for step, factor in zip(spacing, scale, strict=True)]
        kernels.append([2 * round(2 * min(steps) / step) + 1 for step in steps])
        halved = [size >= 16 and step <= 2 * min(steps) for size, step in zip(sizes, steps, strict=True)]
        if not any(halved):
            break
        strides.append([1 + half for half in halved])
        sizes = [size / stride for size, stride in zip(sizes, strides[-1], strict=True)]
        scale = [factor * stride for factor, stride in zip(scale, strides[-1], strict=True)]
    if not strides:  # a network has two levels or more
        strides, kernels, scale = [[2, 2, 2]], 2 * kernels, [2, 2, 2]
    return {
        "patch_size": [
            (math.ceil(length / factor) if math.isclose(size, length) else max(1, int(size / factor))) * factor
            for size, length, factor in zip(patch, shape, scale, strict=True)
        ],
        "channels": [min(16 * 2**level, 128) for level in range(len(kernels))],
        "strides": [step[0] if len(set(step)) == 1 else step for step in strides],
        "kernel_size": [size[0] if len(set(size)) == 1 else size for size in kernels],
        "spacing": None if len(set(spacing)) == 1 else list(spacing),
    }


def make_plan(
    source: Mapping[str, str], modality: str | None = None, memory: float | None = None
) -> tuple[dict[str, Any], list[tuple[str, str, str, str]], list[str]]:
    """Look at volumes and propose how to train on them.

    Args:
        source: see :func:`monai_sre.data.find_source`.
        modality: ``"CT"`` or ``"MR"``; None: what the datalist says, or the intensities.
        memory: GiB to use; None: half of what is free, and on a GPU all that is free there for a step.

    Returns:
        The overlay of the bundle's config, the rows of a table (value, what was found, what was chosen, why), and notes.

    Raises:
        ValueError: the volumes cannot be used, and the message names the file and says why; or ``memory`` is none.
    """
    if memory is not None and not memory > 0:
        raise ValueError(f"memory must be None or GiB above 0, got {memory!r}")
    for name, text in source.items():
        _check_text(name, text)
    path = Path(source["dataset_name"] or Path(source["dataset_dir"]) / "dataset.json")
    content: dict[str, Any] = open_datalist(path, []) if source["dataset_name"] else nnunet_description(path)
    given: dict[str, Any] = dict(source)
    splits = {part: load_pairs(**given, split=part, every=5, num_val=None, num_test=None) for part in ("train", "val")}
    pairs = load_pairs(**given)
    names = numbered_titles(path, content["labels"]) if content.get("labels") else None
    for title in (names or {}).values():
        _check_text(f"{path}: labels", title)
    seen = look_at(pairs)
    values, titles, notes = choose_classes(seen.values, names)
    ct, reason = _is_ct(seen, modality, content.get("modality") or content.get("channel_names"))
    cuda, memory = torch.cuda.is_available(), free_gib() / 2 if memory is None else memory
    step = torch.cuda.mem_get_info()[0] / 2**30 if cuda else memory
    voxels = int(step * 2**30 / _BYTES) if cuda else min(int(step * 2**30 / _BYTES), _CPU_STEP)
    spacing = choose_spacing(seen.spacings, seen.shapes)
    shape = np.median(seen.shapes * seen.spacings / np.array(spacing), axis=0).round().astype(int).tolist()
    geometry = choose_geometry(spacing, shape, min(voxels // 2, _MOST))
    patch = geometry.pop("patch_size")
    count, cores = len(splits["train"]), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    batch = max(2, min(8, voxels // math.prod(patch), count))
    window = [float(f"{value:.4g}") for value in np.percentile(seen.foreground, [0.5, 99.5])] if ct else None
    kept = volumes_in(0.75 * memory, splits["train"], spacing, seen.num_channels)
    workers = 0 if kept == count and not cuda else max(1, min(4, cores - 1))
    plan = {
        **source,
        "class_names": titles,
        "label_values": values,
        "num_channels": seen.num_channels,
        "pixdim": spacing,
        "intensity_range": window,
        "patch_size": patch,
        "roi_size": patch if geometry["spacing"] else max(patch),
        "batch_size": batch,
        "patches_per_image": math.ceil(_STEPS * batch / count),
        "cache_gib": round(memory, 2),
        "num_workers": workers,
        **{f"network_def#{key}": value for key, value in geometry.items()},
    }
    low, high = (" x ".join(f"{step:g}" for step in ends) for ends in (seen.spacings.min(0), seen.spacings.max(0)))
    rows = [
        ("volumes", f"{len(pairs)}", f"{count} train, {len(splits['val'])} validate", "as listed, or 1 of 5 each"),
        ("class_names", f"values {listed([*seen.values], 9, ', ')}", ", ".join(titles), "maps, datalist"),
        ("pixdim", low if low == high else f"{low} to {high}", str(spacing), "median; thick slices: 10th percentile"),
        ("intensity_range", reason, str(window or "z-score"), "CT: 0.5 to 99.5 % of the foreground"),
        ("patch_size", f"median {shape}", str(patch), f"near to a cube in mm, about {voxels // 2} voxels"),
        ("batch_size", f"{step:.1f} GiB, {'GPU' if cuda else 'CPU'}", str(batch), "2 to 8; few on a CPU, for its time"),
        ("strides", "", str(geometry["strides"]), "from 16 voxels on, along thick slices later"),
        ("kernel_size", "", str(geometry["kernel_size"]), "reach 2 of the shortest voxels"),
        ("cache_gib", f"{kept} of {count} fit", f"{memory:.2f}", "half of what is free; others are read anew"),
        ("num_workers", f"{cores} cores", str(workers), "0 where all volumes are kept, else 1 to 4"),
    ]
    return plan, rows, notes


def _check_text(name: str, text: str) -> None:
    """Refuse a text that a config of MONAI would read as something else: a reference, an expression, or ``#`` as ``::``."""
    if "#" in text or text.startswith(("$", "@", "%")):
        raise ValueError(
            f"{name} must hold no '#', nor begin with '$', '@' or '%', which configs of MONAI read, got {text!r}"
        )


def _is_ct(seen: Fingerprint, modality: str | None, listed_as: Any) -> tuple[bool, str]:
    """Whether intensities are Hounsfield units, and what says so."""
    given = [modality] if modality else [*listed_as.values()] if isinstance(listed_as, dict) else []
    if given:
        return all(str(name).upper() == "CT" for name in given), ", ".join(str(name) for name in given)
    low = float(np.median(seen.lowest))
    return -5000 < low <= -500, f"lowest {low:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, see ``python -m monai_sre.plan --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_sre.plan", description="Plan a training on your own volumes."
    )
    parser.add_argument(
        "source", metavar="DIR", help="folder of volumes and maps, or with a dataset.json, or a datalist"
    )
    parser.add_argument("--output", default="plan.json", help="the config to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace it where it is there")
    parser.add_argument("--images", help="pattern of the volumes below DIR, such as 'scans/*.nii.gz'")
    parser.add_argument("--labels", help="pattern of the maps, such as 'maps/*_seg.nii.gz'")
    parser.add_argument("--modality", choices=("CT", "MR"), help="of the volumes (default: what they say)")
    parser.add_argument("--memory", type=float, help="GiB to use (default: half of what is free)")
    options = parser.parse_args(arguments)
    try:
        path = Path(options.output)
        if path.exists() and not options.overwrite:
            raise FileExistsError(f"{path} is there already; --overwrite replaces it, --output names another file")
        writable_folder(path.parent, "--output")
        plan, rows, notes = make_plan(
            find_source(options.source, options.images, options.labels), options.modality, options.memory
        )
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in plan.items())
        write_whole({path: lambda draft: draft.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")})
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    table = [("", "found", "chosen", "why"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    print(
        "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )
    )
    print("".join(f"\nNote: {note}" for note in notes))
    run, train = "python -m monai.bundle run --config_file", f"'{CONFIGS}/train.json','{path}'"
    print(f'{path} is yours to edit. Then:\n  {run} "[{train}]"')
    print(f"  {run} \"[{train},'{CONFIGS}/evaluate.json']\" --ckpt_dir output/models")
    print(f"  {run} {shlex.quote(f'{CONFIGS}/inference.json')} --ckpt_dir output/models --input VOLUMES")


if __name__ == "__main__":
    main()
