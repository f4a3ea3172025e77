"""Architectures, and what reads foreign checkpoints."""

from __future__ import annotations

from monai_sre.nets.checkpoints import load_sre_checkpoint
from monai_sre.nets.resnet import SREResNet, sre_resnet18, sre_resnet34, sre_resnet50
from monai_sre.nets.unet import SREUNet

__all__ = [
    "SREResNet",
    "SREUNet",
    "load_sre_checkpoint",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
]
