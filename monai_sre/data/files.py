"""Image files of any kind for inference: each is checked when its turn comes, and a bad one never stops the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import Dataset
from torch import Tensor

from monai_sre.data.datalist import is_nifti, read_array, read_image
from monai_sre.data.dataset import DatasetInfo
from monai_sre.data.grids import Grid

#: File in a folder of outputs that lists them, see :func:`note_output`: they are no inputs, and may be renewed.
OUTPUTS = ".monai_sre_outputs"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz", ".npy", ".npz")


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files to infer on: those named, and those in the folders named whose suffix is an image's.

    Of a folder, hidden files and what earlier inferences have written (:func:`earlier_outputs`) do not count.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    found: list[Path] = []
    for item in map(Path, sources):
        if item.is_dir():
            written = {output for record in item.rglob(OUTPUTS) for output in earlier_outputs(record.parent)}
            images = (path for path in item.rglob("*") if path.is_file() and _is_shown_image(path.relative_to(item)))
            found += sorted(path for path in images if path.resolve() not in written)
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"{item} is neither a file nor a folder of images")
    if not found:
        raise FileNotFoundError(
            f"no image in {[str(item) for item in sources]}: files must end in {', '.join(_SUFFIXES)}"
        )
    return found


def _is_shown_image(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES) and not any(part.startswith(".") for part in path.parts)


def earlier_outputs(folder: Path) -> set[Path]:
    """What inferences have written below a folder and nobody has changed since: resolved paths, by the list kept there.

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
    lines = record.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    stamps = {name: stamp for stamp, _, name in (line.partition(" ") for line in lines)}
    return {(folder / name).resolve() for name, stamp in stamps.items() if _stamp(folder / name) == stamp}


def note_output(path: Path, folder: Path) -> None:
    """Add a file just written to the list of outputs in a folder: what tells its state, and its path from there."""
    with (folder / OUTPUTS).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{_stamp(path)} {os.path.relpath(path, folder)}\n")


def _stamp(path: Path) -> str:
    """Size and time of the last change of a file."""
    if not path.is_file():
        return ""
    state = path.stat()
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


def file_grids(path: Path, size: int | None = None) -> tuple[Grid, Grid]:
    """The grid of an image file, and that of the square image which :class:`FileImages` makes of it.

    The file's own grid is that of NIfTI. Files that say nothing about space have an identity affine; of pictures, the first
    axis is that of the columns, as MONAI reads them.

    Args:
        path: the file.
        size: side of the square; None: the longest side of the image.

    Raises:
        OSError: the file is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.npy"
        >>> np.save(path, np.zeros((4, 2), dtype=np.uint8))
        >>> own, square = file_grids(path)
        >>> own.shape, square.shape, square.affine[:2, 3].tolist()  # the square begins one pixel beside the image
        ((4, 2), (4, 4), [0.0, -1.0])
    """
    array, affine = read_array(path)
    seen = Grid(array.shape[1:], affine)
    side = size or max(seen.shape)
    steps = [old / new for old, new in zip(seen.shape, seen.inscribed(side), strict=True)]
    square = seen.around([side] * len(steps), steps)
    if is_nifti(path):
        source: Any = nibabel.load(path)
        return Grid(source.shape[:3], source.affine), square
    axes = slice(len(steps))
    return Grid(tuple(int(size) for size in affine[axes, axes] @ seen.shape), np.eye(4)), square


class FileImages(Dataset):
    """Image files as a ``monai.data.Dataset`` of ``{"image", "path", "name", "error"}`` items, all of one shape.

    ``"name"`` is the path from the deepest folder that holds all files.

    A file that cannot be used has a zero image, and in ``"error"`` one sentence that says why; it is an empty string for
    the others. Images are brought to a square of ``info.size`` as those of a datalist are (see :func:`read_image`), so that a
    network sees what it was trained on; volumes likewise. A grey image feeds a network of three channels; a coloured file
    whose channels are equal feeds a network of one.

    Args:
        data: a file, a folder (searched through all levels), or a list of them.
        info: what the network expects: dimensions, channels, and the size of the images that it was trained on.
        transform: brings a batch ``(1, C, *spatial)`` to the network's size and scale, as in validation.
        intensity_range: as in the training, see :func:`scale_to_unit`; applied to all but 8-bit data.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.

    Example:
        >>> import numpy as np, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "a.npy", np.zeros((8, 8), dtype=np.uint8))
        >>> _ = (folder / "b.png").write_text("no picture")
        >>> info = DatasetInfo("toy", 2, 8, "binary-class", 1, 2, ("no", "yes"))
        >>> [(item["image"].shape, bool(item["error"])) for item in FileImages(folder, info, lambda x: x / 255)]
        [(torch.Size([1, 8, 8]), False), (torch.Size([1, 8, 8]), True)]
    """

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        info: DatasetInfo,
        transform: Callable[[Tensor], Tensor],
        intensity_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(data=find_images(data), transform=transform)
        self.info, self.intensity_range, self.names = info, intensity_range, relative_names(self.data)

    def _transform(self, index: int) -> Any:
        path = self.data[index]
        try:
            image, error = self._open(path), ""
        except (OSError, ValueError) as problem:
            image = torch.zeros(self.info.num_channels, *[self.info.size] * self.info.spatial_dims)
            error = " ".join(str(problem).split())
        image = self.transform(image.unsqueeze(0)).squeeze(0)
        return {"image": image, "path": str(path), "name": self.names[index], "error": error}

    def _open(self, path: Path) -> Tensor:
        image = read_image(path, self.info.size, self.intensity_range)
        if image.dim() - 1 != self.info.spatial_dims:
            raise ValueError(
                f"{path} has {image.dim() - 1} spatial axes; the network takes images of {self.info.spatial_dims}"
            )
        channels = self.info.num_channels
        if channels == 1 and bool((image == image[:1]).all()):
            return image[:1]
        if image.shape[0] == 1:
            return image.expand(channels, *image.shape[1:])
        if image.shape[0] != channels:
            raise ValueError(f"{path} has {image.shape[0]} channels; the network takes {channels}")
        return image
