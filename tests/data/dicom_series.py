"""DICOM series for tests, written slice by slice from an array and a place in space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def save_series(folder: Path, values: np.ndarray, affine: np.ndarray | None = None, **changes: Any) -> list[Path]:
    """Write ``(columns, rows, slices)`` of integers, at the place that a NIfTI affine says, as files in a shuffled order.

    Instance numbers are those of the files, and tell nothing of the place. ``changes`` are elements of all files; a function
    gets the number of the slice.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    lps = np.diag([-1.0, -1, 1, 1]) @ (np.diag([-1.5, -2.0, 3.0, 1.0]) if affine is None else affine)
    across, down = (lps[:3, axis] / np.linalg.norm(lps[:3, axis]) for axis in (0, 1))
    folder.mkdir(parents=True, exist_ok=True)
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    files = []
    for number, index in enumerate(np.random.default_rng(0).permutation(values.shape[2]), start=1):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"IM{number:04d}"
        dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.PatientName, dataset.PatientID, dataset.Modality, dataset.SeriesNumber = "A^B", "1", "MR", 4
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, study, frame
        dataset.InstanceNumber, dataset.SeriesDescription = number, "T1 sag"
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.PixelSpacing = [float(np.linalg.norm(lps[:3, axis])) for axis in (1, 0)]
        dataset.ImageOrientationPatient = [float(value) for value in (*across, *down)]
        dataset.ImagePositionPatient = [float(value) for value in lps[:3, 3] + index * lps[:3, 2]]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = np.ascontiguousarray(values[:, :, index].T.astype("<i2")).tobytes()
        for keyword, value in changes.items():
            setattr(dataset, keyword, value(int(index)) if callable(value) else value)
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files
