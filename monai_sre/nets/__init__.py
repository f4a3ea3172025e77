"""Architectures, and what acts on whole networks."""

from __future__ import annotations

from monai_sre.nets.checkpoints import load_sre_checkpoint
from monai_sre.nets.convert import convert_to_sre
from monai_sre.nets.fold import fold_sre
from monai_sre.nets.report import ConversionReport, conversion_report
from monai_sre.nets.resnet import SREResNet, sre_resnet18, sre_resnet34, sre_resnet50
from monai_sre.nets.spacing import spacing_from
from monai_sre.nets.unet import SREUNet

__all__ = [
    "ConversionReport",
    "SREResNet",
    "SREUNet",
    "conversion_report",
    "convert_to_sre",
    "fold_sre",
    "load_sre_checkpoint",
    "spacing_from",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
]
