"""The bundles that come with the package, weights included: ``python -m monai_sre.bundles`` lists them, or copies one.

``python -m monai_sre.bundles NAME FOLDER`` makes FOLDER the root of the bundle, where ``python -m monai.bundle run`` works.
To run a bundle, the extra is needed: ``pip install "monai_sre[bundles]"``.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from monai_sre.files import write_whole

#: Of all bundles: in a wheel, or those of the repository.
FOLDER = Path(__file__).with_name("bundles")
#: What a bundle consists of; runs in a checkout leave other folders beside it.
_PARTS = ("LICENSE", "configs", "docs", "models")


def names() -> list[str]:
    """The names of the bundles.

    Example:
        >>> names()[:2]
        ['hippocampus_segmentation', 'medmnist_2d_classification']
    """
    return sorted(path.parents[1].name for path in FOLDER.glob("*/configs/metadata.json"))


def copy_bundle(name: str, folder: str | Path) -> Path:
    """Copy a bundle.

    Args:
        name: of the bundle, one of :func:`names`.
        folder: what becomes its root; it is made, or is there and empty.

    Returns:
        The root.

    Raises:
        ValueError: there is no bundle of this name, or the folder holds something.
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> root = copy_bundle("hippocampus_segmentation", Path(tempfile.mkdtemp()) / "mine")
        >>> sorted(path.name for path in root.iterdir())
        ['LICENSE', 'configs', 'docs', 'models']
    """
    root = Path(folder)
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}")
    if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
        raise ValueError(f"folder must be new or empty, got {str(root)!r}")
    copies = {}
    for source in _files(name):
        target = root / source.relative_to(FOLDER / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        copies[target] = functools.partial(
            shutil.copyfile, source
        )  # not the modes: an installed package may be read-only
    write_whole(copies)
    return root


def _files(name: str) -> list[Path]:
    found = [path for part in _PARTS for path in ((FOLDER / name / part), *(FOLDER / name / part).rglob("*"))]
    return [path for path in found if path.is_file()]


def _list() -> str:
    lines = []
    for name in names():
        task = json.loads((FOLDER / name / "configs/metadata.json").read_text(encoding="utf-8"))["task"]
        size = sum(path.stat().st_size for path in _files(name)) / 2**20
        lines.append(f"{name:<30}{size:4.1f} MiB  {task}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command, with its words or those of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_sre.bundles", description="List the bundles of this package, or copy one."
    )
    parser.add_argument("name", nargs="?", help="of the bundle to copy; without it, all are listed")
    parser.add_argument("folder", nargs="?", type=Path, help="what becomes the bundle's root: new or empty")
    arguments = parser.parse_args(words)
    if arguments.name is None:
        print(_list())
    elif arguments.folder is None:
        parser.error("folder is missing: where to copy the bundle to")
    else:
        try:
            root = copy_bundle(arguments.name, arguments.folder)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(f"copied. What can be run: {root / 'docs' / 'README.md'}; for example, on your own images:")
        print(
            f"cd {shlex.quote(str(root))} && python -m monai.bundle run --config_file configs/inference.json --input FOLDER"
        )


if __name__ == "__main__":
    main()
