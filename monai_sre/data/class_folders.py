"""Pictures in a folder per class, as torchvision's ``ImageFolder`` has them, listed like a MONAI datalist."""

from __future__ import annotations

import filecmp
import warnings
from pathlib import Path
from typing import Any

from monai_sre.data.inference import find_images
from monai_sre.data.info import OTHER_NAMES, SECTIONS
from monai_sre.data.reader import IMAGE_ENDINGS
from monai_sre.ops.arguments import listed

__all__ = ["list_class_folders"]


def list_class_folders(folder: Path) -> dict[str, Any]:
    """The images of ``folder/CLASS/``, searched through all levels, as a datalist whose labels are the names of the classes.

    Folders ``train``, ``val`` and ``test`` (or ``training``, ``valid``, ``validation``, ``testing``; in any case), each with
    folders of classes in it, say what is in a split; without ``val``, a part of ``train`` validates
    (:func:`monai_sre.data.datalist.datalist_info`). Without any of them, of each class in the order of names, the last fifth
    tests, the tenth before it validates, one image at least each, and the others train; number the files of one patient
    consecutively.

    Args:
        folder: that of the classes, or of the splits.

    Returns:
        Lists ``"training"``, ``"validation"``, ``"test"``, and ``"labels"``, the names of the classes in their order.

    Raises:
        ValueError: there are no folders of classes, an image lies in none, or a class has too few images to be split.
        FileNotFoundError: a class has no image.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("benign", "malignant"):
        ...     (folder / name).mkdir()
        ...     for number in range(10):
        ...         (folder / name / f"{number}.png").touch()
        >>> content = list_class_folders(folder)
        >>> content["labels"], [len(content[section]) for section in ("training", "validation", "test")]
        (['benign', 'malignant'], [14, 2, 4])
    """
    given = {section: folder / name for section, name in _split_folders(folder).items()}
    parts = {section: _classes(part, section) for section, part in given.items()} or {"": _classes(folder)}
    others = [path.name for path in _shown(folder) if path.is_dir() and path not in given.values()] if given else []
    if others:
        known = listed([*SECTIONS.values(), *OTHER_NAMES], 9, ", ")
        warnings.warn(f"left out of {folder}, as their names are no split ({known}): {listed(others)}", stacklevel=2)
    content: dict[str, Any] = {"labels": sorted({each.name for classes in parts.values() for each in classes})}
    seen: dict[tuple[str, int], Path] = {}
    copies = []
    for section, classes in parts.items():
        for each in classes:
            images = find_images(each)
            twins = [
                (path, seen.setdefault((path.name, path.stat().st_size), path)) for path in images if path.is_file()
            ]
            copies += [pair for pair in twins if pair[0] != pair[1] and filecmp.cmp(*pair, shallow=False)]
            entries = [{"image": str(path.absolute()), "label": each.name} for path in images]
            for name, share in ({section: entries} if section else _split(entries, each)).items():
                content.setdefault(name, []).extend(share)
    if copies:
        more = f", and {len(copies) - 1} more such pairs" if len(copies) > 1 else ""
        warnings.warn(f"{copies[0][0]} is the same image as {copies[0][1]}{more}", stacklevel=2)
    return content


def _split_folders(folder: Path) -> dict[str, str]:
    """The folder of each section that there is, in any case."""
    sections = {section: section for section in SECTIONS.values()} | OTHER_NAMES
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
    found: dict[str, str] = {}
    for name in names:
        section = sections.get(name.lower())
        if section is not None and found.setdefault(section, name) != name:
            raise ValueError(f"{folder} has the folders {found[section]!r} and {name!r}, which both mean {section!r}")
    return found


def _shown(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def _classes(folder: Path, section: str = "") -> list[Path]:
    shown = _shown(folder)
    loose = [path for path in shown if path.is_file() and path.name.lower().endswith(IMAGE_ENDINGS)]
    classes = [path for path in shown if path.is_dir()]
    if loose or not classes:
        why = f", as {folder.name!r} is the name of a split ({section})" if section else ""
        raise ValueError(
            f"{loose[0] if loose else folder} is in no folder of a class; expected {folder / 'CLASS' / 'IMAGE'}{why}"
        )
    return classes


def _split(entries: list[dict[str, str]], folder: Path) -> dict[str, list[dict[str, str]]]:
    if len(entries) < 3:
        raise ValueError(
            f"{folder} has {len(entries)} images; a class needs at least 3, to train, validate and test on"
        )
    test = len(entries) - max(1, len(entries) // 5)
    val = test - max(1, len(entries) // 10)
    return {"training": entries[:val], "validation": entries[val:test], "test": entries[test:]}
