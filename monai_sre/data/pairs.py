"""Images and the masks that belong to them: found in folders by name, or listed in a MONAI datalist (JSON)."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from monai.data import partition_dataset

from monai_sre.data.datalist import class_titles, find_file, open_datalist
from monai_sre.data.info import SECTIONS
from monai_sre.data.loaders import process_place, training_subset
from monai_sre.ops.arguments import listed

__all__ = ["find_pairs", "find_source", "load_pairs", "nnunet_description", "pair_classes"]

#: Where folders usually have their volumes and maps; nnU-Net's have the number of the channel behind the name.
PATTERNS = [
    (f"{images}/*{channel}{ending}", f"{labels}/*{other}")
    for ending, other in sorted(itertools.product((".nii.gz", ".nii"), repeat=2), key=lambda pair: pair[0] != pair[1])
    for images, labels in (("imagesTr", "labelsTr"), ("images", "labels"))
    for channel in ("_0000", "")
]


def find_pairs(
    dataset_dir: str | Path, images: str = "images/*.png", labels: str = "labels/*.png"
) -> list[dict[str, str]]:
    """Pair images and masks by their names, in the order of these.

    Each pattern is a path below ``dataset_dir`` with one ``*``; an image and a mask belong together when their ``*`` stand
    for the same text, in capitals or not. Hidden files, whose names begin with a dot, do not count. The retinal sets:

    * CHASE_DB1: ``images/*.jpg`` and ``labels1/*_1stHO.png``
    * DRIVE: ``training/images/*_training.tif`` and ``training/1st_manual/*_manual1.gif``

    Args:
        dataset_dir: the folder.
        images: pattern of the images.
        labels: pattern of the masks.

    Returns:
        Dictionaries ``{"image": path, "label": path}``.

    Raises:
        FileNotFoundError: the folder is missing, or no file matches a pattern.
        ValueError: a pattern does not have one ``*``, or an image or a mask is without its partner.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("images/eye 2.jpg", "images/eye 1.jpg", "masks/eye 1_vessels.png", "masks/eye 2_vessels.png"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     (folder / name).touch()
        >>> pairs = find_pairs(folder, "images/*.jpg", "masks/*_vessels.png")
        >>> [(Path(pair["image"]).name, Path(pair["label"]).name) for pair in pairs]
        [('eye 1.jpg', 'eye 1_vessels.png'), ('eye 2.jpg', 'eye 2_vessels.png')]
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir={str(dataset_dir)!r} is neither a folder nor a JSON datalist")
    found = {name: _match(folder, name, pattern) for name, pattern in (("images", images), ("labels", labels))}
    alone = sorted(found["images"].keys() ^ found["labels"].keys())
    if alone:
        files = [str(found["images" if key in found["images"] else "labels"][key]) for key in alone]
        raise ValueError(
            f"{len(files)} files have no partner under images={images!r} and labels={labels!r}: {listed(files)}"
        )
    return [{"image": str(found["images"][key]), "label": str(found["labels"][key])} for key in found["images"]]


def find_source(source: str | Path, images: str | None = None, labels: str | None = None) -> dict[str, str]:
    """Where the bundle finds the volumes: its options ``dataset_name``, ``dataset_dir``, ``images`` and ``labels``.

    Args:
        source: a MONAI datalist, a folder with a ``dataset.json`` that lists its volumes, or a folder of volumes and maps,
            as nnU-Net has it, whose ``dataset.json`` lists none.
        images: pattern of the volumes, see :func:`find_pairs`; None: a list, or one of :data:`PATTERNS`.
        labels: likewise, of the maps.

    Raises:
        FileNotFoundError: there is nothing of the kind.
        ValueError: one pattern is given without the other, channels are in several files, or some files are compressed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("images/a.nii.gz", "labels/a.nii.gz"):
        ...     (folder / name).parent.mkdir()
        ...     (folder / name).touch()
        >>> found = find_source(folder)
        >>> found["dataset_name"], found["images"], found["labels"]
        ('', 'images/*.nii.gz', 'labels/*.nii.gz')
    """
    path = Path(source).expanduser().resolve()
    if (images is None) != (labels is None):
        raise ValueError(f"images and labels must be given together, got {images!r} and {labels!r}")
    if images is not None and labels is not None:
        patterns = [(images, labels)] if path.is_dir() else []
    else:
        patterns = [pair for pair in PATTERNS if path.is_dir() and _are_there(path, *pair)]
    listing = path / "dataset.json" if path.is_dir() else path
    if (
        images is None
        and listing.suffix == ".json"
        and listing.is_file()
        and not (patterns and nnunet_description(listing))
    ):
        return {"dataset_name": str(listing), "dataset_dir": str(listing.parent)}
    if not path.is_dir():
        raise FileNotFoundError(f"{source} is no folder and no JSON datalist")
    if patterns:
        pair = patterns[0]
        if "_0000" in pair[0] and _seen(path, pair[0].replace("_0000", "_0001")):
            raise ValueError(
                f"{source} has a file per channel; save those of a volume as one, channels last, or give images and labels"
            )
        for pattern in pair if images is None else ():
            other = pattern.removesuffix(".gz") if pattern.endswith(".gz") else pattern + ".gz"
            if _seen(path, other):
                raise ValueError(f"{source} has {pattern} and {other}; compress all of them or none, or list them")
        return {"dataset_name": "", "dataset_dir": str(path), "images": pair[0], "labels": pair[1]}
    raise FileNotFoundError(
        f"{source} has no dataset.json, and no volumes where they usually are, such as {PATTERNS[1][0]} with "
        f"{PATTERNS[1][1]}; give the patterns of both, --images and --labels"
    )


def _are_there(folder: Path, images: str, labels: str) -> bool:
    """Whether a folder has such volumes and maps; ``_0000`` is a channel where a map has the name without it."""
    seen = all(_seen(folder, pattern) for pattern in (images, labels))
    if not seen or "_0000" not in images:
        return seen
    names = {file.name.removesuffix(images.partition("*")[2]) for file in folder.glob(images)}
    return any((folder / labels.replace("*", name)).is_file() for name in names)


def _seen(folder: Path, pattern: str) -> bool:
    """Whether a folder has such files, hidden ones aside."""
    return any(file.name[0] != "." for file in folder.glob(pattern))


def nnunet_description(path: str | Path) -> dict[str, Any]:
    """What nnU-Net's ``dataset.json`` says, which names channels and classes and lists no volumes; else nothing."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):  # there is none, or it is no JSON, which is said where a list is opened
        return {}
    listing = isinstance(content, dict) and content.keys() & set(SECTIONS.values())
    return content if isinstance(content, dict) and "channel_names" in content and not listing else {}


def pair_classes(
    dataset_name: str | None = None, dataset_dir: str | Path = ".", otherwise: Sequence[str] | None = None
) -> list[str]:
    """The names of the classes that a datalist gives its masks, the background first: its ``"labels"``.

    Args:
        dataset_name: with ``dataset_dir`` as in :func:`load_pairs`; the pairs of a folder have no names.
        otherwise: the names where there is no such datalist, so that a config makes its network without data.

    Raises:
        FileNotFoundError: there is no such datalist.
        ValueError: it has no names, or fewer than two.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "dataset.json"
        >>> _ = path.write_text(json.dumps({"labels": {"0": "background", "1": "liver"}, "training": []}))
        >>> pair_classes(str(path))
        ['background', 'liver']
        >>> pair_classes("nowhere.json", otherwise=["background", "spleen"])
        ['background', 'spleen']
    """
    try:
        path = _datalist(dataset_name, dataset_dir)
    except FileNotFoundError:
        if otherwise is None:
            raise
        return list(otherwise)
    if path is None:
        raise ValueError(
            f"dataset_dir={str(dataset_dir)!r} is a folder of pairs; give class_names, the background first"
        )
    names = class_titles(path, open_datalist(path, []).get("labels") or [])
    if len(names) < 2:
        raise ValueError(f"{path} names no classes in 'labels'; give class_names, the background first")
    return names


def load_pairs(
    dataset_name: str | None = None,
    dataset_dir: str | Path = ".",
    split: str = "train",
    images: str = "images/*.png",
    labels: str = "labels/*.png",
    num_val: int | None = 0,
    num_test: int | None = 0,
    every: int = 0,
    num_train: int | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """The pairs of one split, from a folder or from a MONAI datalist.

    A folder's pairs are split in the order of their names: the last ``num_test`` test, the ``num_val`` before them
    validate, the others train. Number the files of one patient consecutively, and choose counts that keep them together.
    With ``every``, those that validate and test are spread over the names instead.

    Args:
        dataset_name: name or path of a JSON file with lists ``training``, ``validation`` and ``test`` of ``{"image": path
            relative to the JSON, "label": path}``, which says itself what is in a split, or of a folder that holds a
            ``dataset.json``; None: the files in ``dataset_dir`` that fit the patterns. Where a list has no ``validation``,
            as in the Medical Segmentation Decathlon, ``training`` is split as a folder is; a ``test`` with labels stays.
        dataset_dir: the folder; a relative name is looked for here after the working directory. May name the JSON itself.
        split: ``"train"``, ``"val"`` or ``"test"``.
        images: with ``labels``, see :func:`find_pairs`.
        num_val: number of pairs to validate on.
        num_test: number of pairs to test on.
        every: where it is not 0: in the order of the names of the images, the first pair and each that is ``every`` later
            validates, those after them test: the first ``num_val`` and ``num_test`` of these, or all where the number is
            None. The others train.
        num_train: number of pairs to train on, of those that are left for it; of two numbers, the smaller one's pairs are
            among the greater one's. None takes all.
        seed: of that choice.

    Returns:
        Dictionaries ``{"image": path, "label": path}``. Several processes share them: each gets every n-th, and in training
        as many as the others.

    Raises:
        FileNotFoundError: a folder or a listed file is missing.
        ValueError: ``split`` is unknown, empty or too small, or the pairs cannot be made.
    """
    if split not in SECTIONS:
        raise ValueError(f"split must be one of {tuple(SECTIONS)}, got {split!r}")
    source, path = dataset_name or str(dataset_dir), _datalist(dataset_name, dataset_dir)
    if path is not None:
        chosen = _from_datalist(path, split, num_val, num_test, every)
    else:
        chosen = _split(find_pairs(dataset_dir, images, labels), split, num_val, num_test, every)
    if not chosen:
        raise ValueError(f"split={split!r} of {source!r} is empty; give num_val and num_test, or list it")
    if split == "train":
        chosen = [chosen[place] for place in training_subset(np.zeros(len(chosen)), num_train, seed)]
    rank, processes = process_place()
    if len(chosen) < processes:
        raise ValueError(f"split={split!r} of {source!r} has {len(chosen)} pairs for {processes} processes")
    share: list[dict[str, str]] = partition_dataset(chosen, num_partitions=processes, even_divisible=split == "train")[
        rank
    ]
    return share


def _datalist(dataset_name: str | None, dataset_dir: str | Path) -> Path | None:
    """The datalist that is meant; None where it is a folder of pairs."""
    if not dataset_name and str(dataset_dir).lower().endswith(".json"):
        dataset_name = str(dataset_dir)
    if not dataset_name:
        return None
    path = find_file(dataset_name, dataset_dir, (".json",))
    if path is None:
        raise FileNotFoundError(
            f"dataset_name is {dataset_name!r}, and no such JSON datalist is here or in {dataset_dir}"
        )
    return path


def _match(folder: Path, name: str, pattern: str) -> dict[str, Path]:
    """Files by the text that ``*`` stands for."""
    if pattern.count("*") != 1:
        raise ValueError(f"{name} must be a pattern with one '*', such as 'images/*.png', got {pattern!r}")
    head, tail = pattern.split("*")
    files = sorted(file for file in folder.glob(f"{_any_case(head)}*{_any_case(tail)}") if file.name[0] != ".")
    found: dict[str, Path] = {}
    for file in files:
        key = file.relative_to(folder).as_posix()
        key = normalize("NFC", key[len(head) : len(key) - len(tail)])  # as Macs write accents, and others
        other = found.setdefault(key.lower(), file)
        if other != file:
            raise ValueError(
                f"{name}={pattern!r} takes {other} and {file} for one, as capitals do not count; rename one"
            )
    if not found:
        raise FileNotFoundError(f"no file in {str(folder)!r} matches {name}={pattern!r}")
    return found


def _any_case(text: str) -> str:
    """A pattern for a text in capitals or not."""
    return "".join(f"[{char.lower()}{char.upper()}]" if char.isalpha() else glob.escape(char) for char in text)


def _split(
    pairs: list[dict[str, str]], split: str, num_val: int | None, num_test: int | None, every: int
) -> list[dict[str, str]]:
    if min(num_val or 0, num_test or 0) < 0:
        raise ValueError(f"num_val and num_test must be at least 0, got {num_val} and {num_test}")
    if every == 0:
        if (num_val or 0) + (num_test or 0) > len(pairs):
            raise ValueError(
                f"num_val={num_val} and num_test={num_test} are more than the {len(pairs)} pairs; num_val=0 and "
                f"num_test={len(pairs)} test on all of them"
            )
        end = len(pairs) - (num_test or 0)
        start = end - (num_val or 0)
        found = {"train": pairs[:start], "val": pairs[start:end], "test": pairs[end:]}
    elif isinstance(every, bool) or not isinstance(every, int) or every < 3:
        raise ValueError(f"every must be 0 or a whole number from 3, got {every!r}")
    else:
        ordered = sorted(pairs, key=lambda pair: Path(pair["image"]).name)
        places = range(len(pairs))
        val, test = places[::every][:num_val], places[1::every][:num_test]
        parts = {
            "train": [place for place in places if place not in val and place not in test],
            "val": val,
            "test": test,
        }
        found = {name: [ordered[place] for place in part] for name, part in parts.items()}
    if split == "train" and not found["train"]:
        raise ValueError(
            f"of {len(pairs)} pairs none is left to train on, with num_val={num_val}, num_test={num_test} and every={every}"
        )
    return found[split]


def _from_datalist(
    path: Path, split: str, num_val: int | None, num_test: int | None, every: int
) -> list[dict[str, str]]:
    content = open_datalist(path, [])
    section, own = SECTIONS[split], content.get("test") or []
    labelled = bool(own) and all(isinstance(entry, dict) and "label" in entry for entry in own)
    # A count of None takes all that the rule gives.
    wanted = num_val != 0 or (num_test != 0 and not labelled)
    shared = not content.get("validation") and wanted and not (split == "test" and (labelled or num_test == 0))
    if shared:
        section = "training"
    entries: list[dict[str, Any]] = open_datalist(path, [section]).get(section) or []
    if shared:
        entries = _split(entries, split, num_val, 0 if labelled else num_test, every)
    for number, entry in enumerate(entries):
        if not isinstance(entry["label"], str):
            raise ValueError(
                f"{path}: the label of {section}[{number}] is {entry['label']!r}; expected the path of a mask"
            )
    pairs = [{key: str(path.parent / entry[key]) for key in ("image", "label")} for entry in entries]
    missing = [file for pair in pairs for file in pair.values() if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path}: {len(missing)} files of {section!r} are missing: {listed(missing)}")
    return pairs
