"""How results come out: measures of symmetry, scores, reports and pictures."""

from __future__ import annotations

from monai_sre.evaluation.activation import ClassActivation
from monai_sre.evaluation.activation_views import draw_activations
from monai_sre.evaluation.classification import (
    AddScores,
    ClassificationScore,
    accuracy,
    area_under_curve,
    probabilities,
)
from monai_sre.evaluation.report import ClassificationReport, LearningCurves
from monai_sre.evaluation.segmentation import SegmentationScore, map_scores
from monai_sre.evaluation.segmentation_report import SegmentationReport, draw_maps
from monai_sre.evaluation.sweep import (
    RotationSweep,
    SweepResult,
    Transformation,
    draw_sweep,
    rotation_sweep,
    sweep_transformations,
)
from monai_sre.evaluation.windows import CentredWindowInferer, FileInferer
from monai_sre.evaluation.writers import PredictionWriter, SegmentationWriter

__all__ = [
    "AddScores",
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
    "draw_activations",
    "draw_maps",
    "draw_sweep",
    "map_scores",
    "probabilities",
    "rotation_sweep",
    "sweep_transformations",
]
