"""NIfTI files with the geometry of the image that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np


def save_like(values: np.ndarray, source: Any, target: Path) -> None:
    """Write a map as NIfTI with the affine and the header of the image that it belongs to.

    Args:
        values: shape ``(*spatial)``; the file has their dtype.
        source: the image, as ``nibabel.load`` gives it; its spatial axes have that shape, but for those of one voxel.
        target: of the file.

    Example:
        >>> import tempfile
        >>> source = nibabel.Nifti1Image(np.zeros((4, 3, 2, 5), dtype=np.float32), np.diag([2.0, 3.0, 4.0, 1.0]))
        >>> path = Path(tempfile.mkdtemp()) / "a_seg.nii.gz"
        >>> save_like(np.ones((4, 3, 2), dtype=np.uint8), source, path)
        >>> written = nibabel.load(path)
        >>> written.shape, written.affine.diagonal().tolist(), written.get_data_dtype()
        ((4, 3, 2), [2.0, 3.0, 4.0, 1.0], dtype('uint8'))
    """
    spatial = source.shape[:3]
    if values.size == int(np.prod(spatial)):
        values = values.reshape(spatial)
    header = source.header.copy()
    header.set_data_dtype(values.dtype)
    header["cal_min"] = header["cal_max"] = 0
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    nibabel.save(kind(values, source.affine, header), target)
