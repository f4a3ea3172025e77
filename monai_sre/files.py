"""Files that are written whole or not at all, and folders that are proven to take them."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils._pytree import tree_map


def writable_folder(path: Path, name: str = "output_dir") -> Path:
    """Create a folder and prove that it takes files, before a long run and not behind it.

    Args:
        path: of the folder.
        name: of the argument that names it, for the message.

    Raises:
        OSError: it does not; the message names it.

    Example:
        >>> writable_folder(Path(tempfile.mkdtemp()) / "a/b").is_dir()
        True
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"{name}={str(path)!r} is no folder that can be written to: {error}") from error
    return path


def draft_of(path: Path) -> Path:
    """Where a file that is complete waits for its name: beside it, hidden, with the same ending."""
    return path.with_name(f".draft-{path.name}")


def remove_drafts(path: Path) -> None:
    """Remove what processes that were killed have left of a file."""
    draft = draft_of(path)
    for left in (draft, *path.parent.glob(f".????????{glob.escape(draft.name)}")):
        left.unlink(missing_ok=True)


def write_whole(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write all drafts first, then give them their names in the order given.

    What fails leaves the files as they were, and no drafts, which would keep a full disk full. A process that is killed
    between two names leaves the drafts of the later files, and none of the first. Of two processes that write one file, the
    last to finish has it.

    Args:
        files: for each path, what writes to the path that it is given.

    Raises:
        OSError: a file cannot be written; the message names it.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_whole({folder / "a.txt": lambda draft: draft.write_text("one")})
        >>> [(path.name, path.read_text()) for path in folder.iterdir()]
        [('a.txt', 'one')]
    """
    token = secrets.token_hex(4)
    begun = {path: path.with_name(f".{token}{draft_of(path).name}") for path in files}
    try:
        for path, write in files.items():
            write(begun[path])
            with begun[path].open("rb+") as file:
                os.fsync(file.fileno())
    except BaseException as error:
        for other in reversed(begun.values()):
            other.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # the latter of torch's writer, which does not say why
            hint = " (is the disk full?)" if isinstance(error, RuntimeError) else ""
            raise OSError(f"{path} cannot be written{hint}: {error}") from error
        raise
    if len(files) > 1:  # under names that tell, after a kill between two of the last, which files belong together
        for path, draft in begun.items():
            draft.replace(draft_of(path))
            begun[path] = draft_of(path)
    for path, draft in begun.items():
        draft.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the union of their columns, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_whole({path: write})


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole or not at all; NaN, which JSON does not know, becomes ``null``."""
    text = json.dumps(tree_map(_finite, content), indent=2, allow_nan=False)
    write_whole({path: lambda draft: draft.write_text(text + "\n", encoding="utf-8")})


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a compressed npz, whole or not at all."""
    write_whole({path: lambda draft: np.savez_compressed(draft, **arrays)})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
