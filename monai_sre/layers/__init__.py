"""The layers: modules over :mod:`monai_sre.ops`."""

from __future__ import annotations

from monai_sre.layers.conv import SREConv1d, SREConv2d, SREConv3d
from monai_sre.layers.conv_transpose import SREConvTranspose1d, SREConvTranspose2d, SREConvTranspose3d
from monai_sre.layers.harmonic import (
    HarmonicConv,
    HarmonicEnergy,
    SREHarmonicConv1d,
    SREHarmonicConv2d,
    SREHarmonicConv3d,
)
from monai_sre.layers.pool import (
    CentredAvgPool1d,
    CentredAvgPool2d,
    CentredAvgPool3d,
    CentredBlurPool,
    CentredMaxPool1d,
    CentredMaxPool2d,
    CentredMaxPool3d,
    CentredUpsample,
)

__all__ = [
    "CentredAvgPool1d",
    "CentredAvgPool2d",
    "CentredAvgPool3d",
    "CentredBlurPool",
    "CentredMaxPool1d",
    "CentredMaxPool2d",
    "CentredMaxPool3d",
    "CentredUpsample",
    "HarmonicConv",
    "HarmonicEnergy",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
    "SREHarmonicConv1d",
    "SREHarmonicConv2d",
    "SREHarmonicConv3d",
]
