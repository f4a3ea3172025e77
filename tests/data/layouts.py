"""Arrays in MedMNIST's layout, for the tests of what reads them."""

from __future__ import annotations

import numpy as np

from monai_sre.data import DatasetInfo


def arrays_like(info: DatasetInfo, counts: tuple[int, int, int] = (7, 4, 5)) -> dict[str, np.ndarray]:
    """Random images and labels of the three splits, every class among them."""
    random = np.random.default_rng(0)
    shape = (info.size,) * info.spatial_dims + ((3,) if info.num_channels == 3 else ())
    arrays, seen = {}, 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        columns, top = (info.num_classes, 2) if info.multi_label else (1, info.num_classes)
        arrays[f"{split}_labels"] = random.integers(0, top, (count, columns), dtype=np.uint8)
        if not info.multi_label:
            arrays[f"{split}_labels"][1:, 0] = (seen + np.arange(count - 1)) % top
        arrays[f"{split}_labels"].flat[0] = top - 1
        seen += count - 1
    return arrays
