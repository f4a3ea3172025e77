"""Files for inference: find them, keep record of what was written, and read each so that a bad one stops no other."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import TraceableTransform, Transform
from monai.utils import TraceKeys

from monai_sre.data.dicom import find_cases, is_dicom
from monai_sre.data.reader import IMAGE_ENDINGS, is_foreign
from monai_sre.ops.arguments import cause_of

__all__ = ["OUTPUTS", "ImageFiles", "earlier_outputs", "find_images", "note_output", "relative_names"]

_LOGGER = logging.getLogger(__name__)
#: File in a folder of outputs that lists them, see :func:`note_output`: they are no inputs, and may be renewed.
OUTPUTS = ".monai_sre_outputs"


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files to infer on: those named, and those in the folders named whose ending is an image's.

    Of a folder, hidden files and what earlier inferences have written (:func:`earlier_outputs`) do not count. Medical images
    of kinds that are not read, such as NRRD, are among the files found, so that each is refused by name; what other files
    were left out is logged as a warning.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    found: list[Path] = []
    left: Counter[str] = Counter()
    for item in map(Path, sources):
        if item.is_dir():
            above = [folder / OUTPUTS for folder in item.resolve().parents if (folder / OUTPUTS).is_file()]
            files = list(_files_below(item))
            records = [*above, *(path for path in files if path.name == OUTPUTS)]  # of runs with outputs here or below
            written = {output for record in records for output in earlier_outputs(record.parent)}
            shown = (path for path in files if not path.name.startswith("."))
            for path in sorted(path for path in shown if path.resolve() not in written):
                if path.name.lower().endswith(IMAGE_ENDINGS) or is_foreign(path) or is_dicom(path):
                    found.append(path)
                else:
                    left[path.suffix.lower() or "no ending"] += 1
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"{item} is neither a file nor a folder of images")
    names = [str(item) for item in sources]
    kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left.items()))
    if not found:
        there = f"; there are {kinds}" if left else ""
        raise FileNotFoundError(f"no image in {names}: files must end in {', '.join(IMAGE_ENDINGS)}{there}")
    if left:
        _LOGGER.warning("left out %d files in %s, which are no images by their endings: %s", left.total(), names, kinds)
    return found


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below but in hidden folders, in linked ones too; a link to nowhere is a file that is missing."""
    real = folder.resolve()
    if real not in above:  # else a link back up
        for path in folder.iterdir():
            if path.is_dir():
                if not path.name.startswith("."):
                    yield from _files_below(path, above | {real})
            elif path.is_file() or path.is_symlink():
                yield path


def earlier_outputs(folder: Path) -> set[Path]:
    """What inferences have written below a folder and nobody has changed since: resolved paths, by the list kept there.

    Raises:
        ValueError: the list is damaged; the message names it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()).resolve()
        >>> _ = (folder / "a_seg.png").write_text("a map")
        >>> note_output(folder / "a_seg.png", folder)
        >>> earlier_outputs(folder) == {folder / "a_seg.png"}
        True
        >>> _ = (folder / "a_seg.png").write_text("corrected by hand")
        >>> earlier_outputs(folder)
        set()
    """
    record = folder / OUTPUTS
    if not record.is_file():
        return set()
    lines = record.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    stamps = {name.replace("\0", "\n"): stamp for stamp, _, name in (line.partition(" ") for line in lines)}
    return {(folder / name).resolve() for name, stamp in stamps.items() if stamp and _stamp(folder / name) == stamp}


def note_output(path: Path, folder: Path) -> None:
    """Add a file just written to the list of outputs in a folder: what tells its state, and its path from there."""
    name = os.path.relpath(path, folder).replace("\n", "\0")  # a line each
    with (folder / OUTPUTS).open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(f"{_stamp(path)} {name}\n")


def _stamp(path: Path) -> str:
    """Size and time of the last change of a file; nothing of what is none, or has a name that none can have."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{state.st_size}-{state.st_mtime_ns}"


def relative_names(paths: Sequence[Path]) -> list[str]:
    """The path of each file from the deepest folder that holds them all.

    Example:
        >>> relative_names([Path("/data/one/a.png"), Path("/data/two/a.png")])
        ['one/a.png', 'two/a.png']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # links keep their names
    root = os.path.commonpath([path.parent for path in absolute])
    return [os.path.relpath(path, root) for path in absolute]


class ImageFiles(Dataset):
    """Image files as a ``monai.data.Dataset`` of ``{"image", "path", "name", "files", "error"}`` items.

    ``"name"`` is the path from the deepest folder that holds all files. The DICOM files of a series are one image of three
    axes, whose path is the folder if that holds no other, else the first file (:func:`monai_sre.data.dicom.find_cases`);
    ``"files"`` are the paths of all, with a NUL character between. A file that cannot be used has a zero image, and in
    ``"error"`` one sentence that says why; it is an empty string for the others. Where the transform brings images to one
    size, batches may hold several; else load them in batches of one.

    Args:
        data: a file, a folder (searched through all levels), or a list of them.
        transform: from ``{"image": path}``, of a series a list of paths, to ``{"image": (C, *spatial)}``; its first is
            :class:`ReadImaged`.
        num_channels: channels of the network's input.
        spatial_dims: number of its spatial axes.
        size: side of the zero image: that of the others where batches hold several.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> _ = path.write_text("no picture")
        >>> from monai_sre.data import ReadImaged
        >>> message = ImageFiles(path, ReadImaged("image", 2), num_channels=1, spatial_dims=2)[0]["error"]
        >>> message.startswith(f"{path} cannot be read as an image: UnidentifiedImageError")
        True
    """

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        num_channels: int,
        spatial_dims: int,
        size: int = 8,
    ) -> None:
        super().__init__(data=find_cases(find_images(data), series=spatial_dims == 3), transform=transform)
        self.names = relative_names([case.named for case in self.data])
        self._ids = {id(part): id(part) for part in _traceable(transform)}
        zeros = torch.zeros(num_channels, *[size] * spatial_dims)
        # batches keep the metadata that all their images have
        self.empty = MetaTensor(zeros, meta={"original_affine": np.eye(4)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker that was not forked, keep the ids of the first process: by them MONAI finds what undoes a transform."""
        self.__dict__.update(state)
        self._ids = dict(zip(map(id, _traceable(self.transform)), state["_ids"].values(), strict=True))

    def _transform(self, index: int) -> Any:
        case = self.data[index]
        path, files = str(case.path), [str(file) for file in case.files]
        try:
            image, error = self.transform({"image": files if len(files) > 1 else path})["image"], ""
            for applied in getattr(image, "applied_operations", []):
                applied[TraceKeys.ID] = self._ids.get(applied[TraceKeys.ID], applied[TraceKeys.ID])
        except Exception as problem:  # each reader has its own exceptions for a damaged file
            image, error = self.empty, _sentence(path, problem)
        return {"image": image, "path": path, "name": self.names[index], "files": "\0".join(files), "error": error}


def _traceable(part: Any) -> Iterator[TraceableTransform]:
    """A transform, and those within it, that leave their id in what they are applied to."""
    if isinstance(part, TraceableTransform):
        yield part
    within = part if isinstance(part, (list, tuple)) else vars(part).values() if isinstance(part, Transform) else ()
    for item in within:
        yield from _traceable(item)


def _sentence(path: str, problem: BaseException) -> str:
    """The error's message where it names the file; else one that does."""
    problem = cause_of(problem)
    text = str(problem) if path in str(problem) else f"{path} cannot be used: {type(problem).__name__}: {problem}"
    return " ".join(text.split())
