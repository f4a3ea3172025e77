"""Image files for inference through any chain of MONAI transforms: a bad one never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset

from monai_sre.data.files import find_images, relative_names

__all__ = ["TransformedFiles"]


class TransformedFiles(Dataset):
    """Image files as a ``monai.data.Dataset`` of ``{"image", "path", "name", "error"}`` items, each of its own size.

    ``"name"`` is the path from the deepest folder that holds all files.

    A file that cannot be used has a small zero image, and in ``"error"`` one sentence that says why; it is an empty string
    for the others. Load them in batches of one.

    Args:
        data: a file, a folder (searched through all levels), or a list of them.
        transform: from ``{"image": path}`` to ``{"image": (C, *spatial)}``.
        num_channels: channels of the network's input.
        spatial_dims: number of its spatial axes.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> _ = path.write_text("no picture")
        >>> from monai_sre.data import ReadImaged
        >>> message = TransformedFiles(path, ReadImaged("image"), 1, 2)[0]["error"]
        >>> message.startswith(f"{path} cannot be read as an image: UnidentifiedImageError")
        True
    """

    def __init__(
        self,
        data: str | Path | Sequence[str | Path],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        num_channels: int,
        spatial_dims: int,
    ) -> None:
        super().__init__(data=find_images(data), transform=transform)
        self.names = relative_names(self.data)
        self.empty = torch.zeros(num_channels, *[8] * spatial_dims)

    def _transform(self, index: int) -> Any:
        path = str(self.data[index])
        try:
            image, error = self.transform({"image": path})["image"], ""
        except Exception as problem:  # each reader has its own exceptions for a damaged file
            image, error = self.empty, _sentence(path, problem)
        return {"image": image, "path": path, "name": self.names[index], "error": error}


def _sentence(path: str, problem: BaseException) -> str:
    """The message that names the file, from behind those of ``Compose``; else the first cause."""
    causes = [problem]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    root = causes[-1]
    named = (str(cause) for cause in causes if path in str(cause))
    return " ".join(next(named, f"{path} cannot be used: {type(root).__name__}: {root}").split())
