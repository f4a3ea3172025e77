"""Any convolutional network to its equivariant twin, and back to plain convolutions."""

from __future__ import annotations

from monai_sre.convert.convert import convert_to_sre
from monai_sre.convert.fold import fold_sre
from monai_sre.convert.report import ConversionReport, conversion_report
from monai_sre.convert.spacing import spacing_from

__all__ = ["ConversionReport", "conversion_report", "convert_to_sre", "fold_sre", "spacing_from"]
