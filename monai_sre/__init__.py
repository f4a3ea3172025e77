"""Convolutional networks for MONAI that are equivariant to rotation and reflection.

Importing this package registers its layers in MONAI's factories: ``Conv["SRECONV", dim]``, ``Conv["SRECONVTRANS", dim]``,
``Conv["SREHARMONICCONV", dim]``, ``Pool["CENTREDAVG", dim]`` and ``Pool["CENTREDMAX", dim]``.
"""

from __future__ import annotations

from monai_sre import description, options
from monai_sre.convert import conversion_report, convert_to_sre, fold_sre, spacing_from
from monai_sre.description import load_network
from monai_sre.layers import (
    SREConv1d,
    SREConv2d,
    SREConv3d,
    SREConvTranspose1d,
    SREConvTranspose2d,
    SREConvTranspose3d,
    SREHarmonicConv1d,
    SREHarmonicConv2d,
    SREHarmonicConv3d,
)
from monai_sre.layers.factories import register
from monai_sre.nets import SREResNet, SREUNet, load_sre_checkpoint, sre_resnet18, sre_resnet34, sre_resnet50
from monai_sre.symmetry import equivariance_error, layer_errors

__version__ = "0.2.0"
__all__ = [
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "SREHarmonicConv1d",
    "SREHarmonicConv2d",
    "SREHarmonicConv3d",
    "SREResNet",
    "SREUNet",
    "conversion_report",
    "convert_to_sre",
    "description",
    "equivariance_error",
    "fold_sre",
    "layer_errors",
    "load_network",
    "load_sre_checkpoint",
    "options",
    "spacing_from",
    "sre_resnet18",
    "sre_resnet34",
    "sre_resnet50",
]

register()
