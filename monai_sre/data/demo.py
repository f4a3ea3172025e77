"""The embedded default data sets: patches of real images that ship inside installed packages, no download."""

from __future__ import annotations

import importlib.util
import math
import warnings
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from monai_sre.data.info import SPLITS, DatasetInfo

__all__ = ["DEMO_NAMES", "demo_arrays", "demo_info"]

DEMO_NAMES = ("demo_2d", "demo_3d")

# Class -> (file of scikit-image, part of it (rows, columns), averaging in rows and columns). Most are averaged over
# twice as many columns as rows: unequal pixels, as those of thick-slice scans are. That, and the direction a picture
# has of its own, makes each texture look different when it is turned, as it is in the test split.
_PICTURES = {
    "brick": ("brick.png", None, (2, 4)),
    "page": ("page.png", None, (1, 1)),
    "gravel": ("gravel.png", None, (1, 2)),
    "stained tissue": ("ihc.png", None, (1, 2)),
    "retina": ("retina.jpg", (slice(255, 1155), slice(255, 1155)), (1, 2)),
    "grass": ("grass.png", None, (1, 2)),
}
# Class -> file of nibabel: brain volumes of one anatomical and two functional acquisitions.
_VOLUMES = {
    "anatomical": "anatomical.nii",
    "functional": "example4d+orig.BRIK.gz",
    "functional, Talairach space": "scaled+tlrc.BRIK",
}
_COUNTS_2D = {"train": 80, "val": 25, "test": 50}  # per class
_COUNTS_3D = {"train": 60, "val": 20, "test": 40}
_FIELD_2D, _FIELD_3D = 28.0, 8.0  # side of a patch in pixels / voxels of the (averaged) source
_BLOCK = 60  # at least; a turned patch with its interpolation margin needs 28 * sqrt(2) + 1


def demo_info(name: str, size: int = 28) -> DatasetInfo:
    """Describe a demo data set.

    Args:
        name: ``"demo_2d"`` or ``"demo_3d"``.
        size: side length of the patches.

    Raises:
        ValueError: unknown name, or ``size`` below 8.

    Example:
        >>> demo_info("demo_3d").class_names
        ('anatomical', 'functional', 'functional, Talairach space')
    """
    if name not in DEMO_NAMES:
        raise ValueError(f"name must be one of {DEMO_NAMES}, got {name!r}")
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    names = tuple(_PICTURES if name == "demo_2d" else _VOLUMES)
    return DatasetInfo(name, 2 if name == "demo_2d" else 3, size, "multi-class", 1, len(names), names)


@lru_cache(maxsize=4)
def demo_arrays(name: str, size: int = 28) -> dict[str, np.ndarray]:
    """Build a demo data set: six arrays in MedMNIST's layout, the same on every call.

    ``demo_2d``: six textures, grey; ``demo_3d``: three kinds of brain volume. Training and validation patches are
    upright; each test patch is turned at random (any angle; in 3-D any rotation) by sampling the source on a turned
    grid, so its corners hold image, not fill. No source pixel is used by two splits: each picture is cut into blocks
    and each volume into boxes that belong to one split, and the grid of a patch stays in its block.

    Args:
        name: ``"demo_2d"`` or ``"demo_3d"``.
        size: side length of the patches; the field of view does not depend on it.

    Returns:
        ``{split}_images``: uint8 ``(N, size, size)`` or ``(N, size, size, size)``;
        ``{split}_labels``: uint8 ``(N, 1)``.

    Raises:
        ValueError: as :func:`demo_info`.
        FileNotFoundError: scikit-image or nibabel is not installed, or without its sample files.

    Example:
        >>> arrays = demo_arrays("demo_2d")
        >>> arrays["train_images"].shape, arrays["test_images"].shape
        ((480, 28, 28), (300, 28, 28))
    """
    info = demo_info(name, size)
    counts = _COUNTS_2D if info.spatial_dims == 2 else _COUNTS_3D
    arrays = {}
    for number, split in enumerate(SPLITS):
        patches = []
        for label, class_name in enumerate(info.class_names):
            source = _picture(class_name) if info.spatial_dims == 2 else _volume(class_name)
            boxes = _blocks(source.shape) if info.spatial_dims == 2 else _boxes(source.shape)
            random = np.random.default_rng([info.spatial_dims, number, label])
            patches.append(_cut(source, boxes[split], counts[split], size, split == "test", random))
        arrays[f"{split}_images"] = np.concatenate(patches)
        labels = np.repeat(np.arange(info.num_classes, dtype=np.uint8), counts[split])[:, None]
        arrays[f"{split}_labels"] = labels
    return arrays


def _sample_file(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path(package)
    path = folder.joinpath(*parts)
    if not path.is_file():
        pip_name = {"skimage": "scikit-image"}.get(package, package)
        raise FileNotFoundError(f"{path} is missing: the demo data need the sample files of {pip_name}; install it")
    return path


def _picture(class_name: str) -> torch.Tensor:
    """Read a source picture, ``(H, W)`` float32 in 0..255."""
    file, part, averaging = _PICTURES[class_name]
    grey = torch.from_numpy(np.array(Image.open(_sample_file("skimage", "data", file)).convert("L"), dtype=np.float32))
    grey = grey if part is None else grey[part]
    return functional.avg_pool2d(grey[None, None], averaging)[0, 0]


def _volume(class_name: str) -> torch.Tensor:
    """Read a source volume, float32 in 0..255 between its 1st and 99th percentile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = nibabel.load(_sample_file("nibabel", "tests", "data", _VOLUMES[class_name])).get_fdata()  # type: ignore[attr-defined]
    values = values[..., 0] if values.ndim == 4 else values
    low, high = np.percentile(values, [1, 99])
    return torch.from_numpy(np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.float32))


def _blocks(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Disjoint blocks of a picture: ``(n, 2, 2)`` first and last pixel in rows and columns, for each split."""
    edges = [np.linspace(0, side, side // _BLOCK + 1).round().astype(int) for side in shape]
    tiles = [
        [[rows[0], rows[1] - 1], [columns[0], columns[1] - 1]]
        for rows in zip(edges[0][:-1], edges[0][1:], strict=True)
        for columns in zip(edges[1][:-1], edges[1][1:], strict=True)
    ]
    order = np.random.default_rng(7).permutation(len(tiles))
    test, val = max(1, round(0.3 * len(tiles))), max(1, round(0.15 * len(tiles)))
    shuffled = np.array(tiles)[order]
    return {"test": shuffled[:test], "val": shuffled[test : test + val], "train": shuffled[test + val :]}


def _boxes(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """One half of a head for training and validation, the other, which shows the same anatomy, for the test."""
    middle, front = shape[0] // 2, round(0.65 * shape[1])
    depth = [0, shape[2] - 1]
    return {
        "train": np.array([[[0, middle - 1], [0, front - 1], depth]]),
        "val": np.array([[[0, middle - 1], [front, shape[1] - 1], depth]]),
        "test": np.array([[[middle, shape[0] - 1], [0, shape[1] - 1], depth]]),
    }


def _cut(
    source: torch.Tensor, boxes: np.ndarray, count: int, size: int, turned: bool, random: np.random.Generator
) -> np.ndarray:
    """Sample ``count`` patches by linear interpolation on grids that stay within their box."""
    dims = source.ndim
    field = _FIELD_2D if dims == 2 else _FIELD_3D
    # Half of a patch between the outermost sample points; turned, it must fit in any direction.
    reach = field / 2 * (1 - 1 / size) * (math.sqrt(dims) if turned else 1.0)
    steps = ((np.arange(size) + 0.5) / size - 0.5) * field
    offsets = np.stack(np.meshgrid(*[steps] * dims, indexing="ij"), -1).reshape(-1, dims)
    scale, image = np.array(source.shape), source[None, None].double()
    patches: list[np.ndarray] = []
    while len(patches) < count:
        box = boxes[random.integers(len(boxes))]
        centre = box[:, 0] + reach + random.random(dims) * (box[:, 1] - box[:, 0] - 2 * reach)
        points = centre + (offsets @ _turn(dims, random).T if turned else offsets)
        grid = torch.from_numpy(((2 * points + 1) / scale - 1)[:, ::-1].copy()).reshape(1, *[size] * dims, dims)
        sampled = functional.grid_sample(image, grid, "bilinear", "border", align_corners=False)
        patch = sampled[0, 0]
        # Mostly outside of the head, or bare paper or glass: says nothing of its class.
        if (patch > 38).double().mean() < 0.6 if dims == 3 else patch.std() < 6:
            continue
        if dims == 2:  # equal brightness and contrast: texture alone tells the classes
            patch = 127 + 45 * (patch - patch.mean()) / patch.std().clamp_min(12)
        patches.append(patch.round().clamp(0, 255).to(torch.uint8).numpy())
    return np.stack(patches)


def _turn(dims: int, random: np.random.Generator) -> np.ndarray:
    """Draw a uniformly random rotation matrix."""
    if dims == 2:
        angle = random.random() * 2 * math.pi
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    w, x, y, z = (q := random.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
