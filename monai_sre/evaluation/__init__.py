"""How results come out: measures of symmetry, scores, reports and pictures."""

from __future__ import annotations

from monai_sre.evaluation.classification import (
    AddScores,
    ClassificationScore,
    accuracy,
    area_under_curve,
    probabilities,
)
from monai_sre.evaluation.equivariance import culprits, equivariance_error, format_table, layer_errors
from monai_sre.evaluation.predictions import PredictionWriter
from monai_sre.evaluation.report import ClassificationReport, LearningCurves
from monai_sre.evaluation.sweep import RotationSweep, SweepResult, draw_sweep, rotation_sweep, sweep_transformations

__all__ = [
    "AddScores",
    "ClassificationReport",
    "ClassificationScore",
    "LearningCurves",
    "PredictionWriter",
    "RotationSweep",
    "SweepResult",
    "accuracy",
    "area_under_curve",
    "culprits",
    "draw_sweep",
    "equivariance_error",
    "format_table",
    "layer_errors",
    "probabilities",
    "rotation_sweep",
    "sweep_transformations",
]
