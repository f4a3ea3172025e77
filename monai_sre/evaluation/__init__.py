"""How results come out: scores, sweeps, reports, files and pictures."""

from __future__ import annotations

from monai_sre.extras import require

require("monai_sre.evaluation")

# ruff: noqa: E402 - what the rest imports is there by now

from monai_sre.evaluation.activation import ClassActivation
from monai_sre.evaluation.figures import draw_activations, draw_contours, draw_errors, draw_maps, draw_sweep
from monai_sre.evaluation.metrics import (
    ClassificationScore,
    SegmentationScore,
    accuracy,
    area_under_curve,
    calibration_error,
    class_scores,
    map_scores,
    probabilities,
)
from monai_sre.evaluation.reports import ClassificationReport, LearningCurves, SegmentationReport
from monai_sre.evaluation.sweep import RotationSweep, SweepResult, rotation_sweep
from monai_sre.evaluation.transformations import Transformation, protocol_name, sweep_transformations
from monai_sre.evaluation.windows import CentredWindowInferer, FileInferer
from monai_sre.evaluation.writers import PredictionWriter, SegmentationWriter

__all__ = [
    "CentredWindowInferer",
    "ClassActivation",
    "ClassificationReport",
    "ClassificationScore",
    "FileInferer",
    "LearningCurves",
    "PredictionWriter",
    "RotationSweep",
    "SegmentationReport",
    "SegmentationScore",
    "SegmentationWriter",
    "SweepResult",
    "Transformation",
    "accuracy",
    "area_under_curve",
    "calibration_error",
    "class_scores",
    "draw_activations",
    "draw_contours",
    "draw_errors",
    "draw_maps",
    "draw_sweep",
    "map_scores",
    "probabilities",
    "protocol_name",
    "rotation_sweep",
    "sweep_transformations",
]
