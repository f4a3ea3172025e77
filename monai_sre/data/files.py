"""Image files of any kind for inference: each is checked when its turn comes, and a bad one never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from torch import Tensor

from monai_sre.data.datalist import read_image
from monai_sre.data.dataset import DatasetInfo

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz", ".npy", ".npz")


def find_images(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files to infer on: those named, and those in the folders named whose suffix is an image's.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or no image is found at all.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    found: list[Path] = []
    for item in map(Path, sources):
        if item.is_dir():
            found += sorted(
                path for path in item.rglob("*") if path.is_file() and path.name.lower().endswith(_SUFFIXES)
            )
        elif item.is_file():
            found.append(item)
        else:
            raise FileNotFoundError(f"{item} is neither a file nor a folder of images")
    if not found:
        raise FileNotFoundError(
            f"no image in {[str(item) for item in sources]}: files must end in {', '.join(_SUFFIXES)}"
        )
    return found


class FileImages(Dataset):
    """Image files as a ``monai.data.Dataset`` of ``{"image", "path", "error"}`` items, all of one shape.

    A file that cannot be used has a zero image, and in ``"error"`` one sentence that says why; it is an empty string for
    the others. Images that are not square are padded to a square with their background; volumes likewise. A grey image
    feeds a network of three channels; a coloured file whose channels are equal feeds a network of one.

    Args:
        data: a file, a folder (searched through all levels), or a list of them.
        info: what the network expects: dimensions, channels.
        transform: brings a batch ``(1, C, *spatial)`` to the network's size and scale, as in validation.

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
    ) -> None:
        super().__init__(data=find_images(data), transform=transform)
        self.info = info

    def _transform(self, index: int) -> Any:
        path = self.data[index]
        try:
            image, error = self._open(path), ""
        except (OSError, ValueError) as problem:
            image = torch.zeros(self.info.num_channels, *[self.info.size] * self.info.spatial_dims)
            error = " ".join(str(problem).split())
        return {"image": self.transform(image.unsqueeze(0)).squeeze(0), "path": str(path), "error": error}

    def _open(self, path: Path) -> Tensor:
        image = read_image(path)
        longest = max(image.shape[1:])
        if path.name.lower().endswith((".nii", ".nii.gz")) or any(side != longest for side in image.shape[1:]):
            image = read_image(path, longest)
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
