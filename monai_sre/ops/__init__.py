"""Pure functions on tensors: no module, no state, no MONAI."""

from __future__ import annotations

from monai_sre.ops.conv import expand_kernel, sre_conv
from monai_sre.ops.energy import add_energies, harmonic_energy
from monai_sre.ops.harmonics import harmonic_stencils
from monai_sre.ops.radial import change_basis, radial_basis

__all__ = [
    "add_energies",
    "change_basis",
    "expand_kernel",
    "harmonic_energy",
    "harmonic_stencils",
    "radial_basis",
    "sre_conv",
]
