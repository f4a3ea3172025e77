"""Architectures, and what acts on whole networks."""

from __future__ import annotations

from monai_sre.nets.resnet import SREResNet, sre_resnet18, sre_resnet34, sre_resnet50

__all__ = ["SREResNet", "sre_resnet18", "sre_resnet34", "sre_resnet50"]
