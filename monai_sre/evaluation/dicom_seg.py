"""Class maps as DICOM segmentations, which viewers show over the series that they refer to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import monai_sre
from monai_sre.data.dicom import open_series
from monai_sre.extras import require

#: What each source must state, be it empty; files without names may lack it.
_STATED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
logging.getLogger("highdicom").setLevel(logging.WARNING)  # it logs every group of elements that it copies


def save_dicom_seg(classes: np.ndarray, files: Sequence[Path], class_names: Sequence[str], target: Path) -> None:
    """Write a class map of a DICOM series as a binary DICOM SEG with a segment per class, by ``highdicom``.

    Each frame refers to the slice that it lies on; frames in which nothing is found are left out, unless
    these are all. Property and category of
    the segments are DICOM's general ones, "Anatomical Structure": what a segment is, its label says.

    Args:
        classes: integers of shape ``(columns, rows, slices)``, or ``(rows, columns)`` of one image, as
            :func:`monai_sre.data.dicom.read_series` gives the values.
        files: of the series, or one file.
        class_names: one per class, the background first.
        target: of the segmentation.

    Raises:
        ImportError: highdicom is not installed.
        ValueError: the files are no series, see :func:`monai_sre.data.dicom.open_series`, or do not say where they lie.
    """
    require("writing DICOM segmentations", "pydicom highdicom", "dicom")
    import highdicom
    from pydicom.sr.codedict import codes

    sources, order, affine = open_series(files)
    thickness = round(float(np.linalg.norm(affine[:3, 2])), 6)
    for source in sources:
        for keyword in _STATED:
            source.setdefault(keyword, None)
        if not source.get("SliceThickness"):
            source.SliceThickness = thickness
        if not source.get("FrameOfReferenceUID"):
            raise ValueError("it has no FrameOfReferenceUID, without which a segmentation has no place")
    frames = classes[None] if classes.ndim == 2 else classes.T[np.argsort(order)]  # as the sources are ordered
    method = highdicom.AlgorithmIdentificationSequence(
        name="monai_sre", version=monai_sre.__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type="AUTOMATIC",
            algorithm_identification=method,
        )
        for number, name in enumerate(class_names[1:], start=1)
    ]
    written = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames.astype(np.uint8),
        segmentation_type="BINARY",
        omit_empty_frames=bool(classes.any()),
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="monai_sre",
        manufacturer_model_name="monai_sre",
        software_versions=monai_sre.__version__,
        device_serial_number="none",
        content_label="SEGMENTATION",
        series_description="Segmentation by monai_sre",
    )
    written.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the labels and the patient's name hold
    written.save_as(target)
