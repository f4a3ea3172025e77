"""What it means to be equivariant: the symmetries of the grid, rotations by any angle, and the error of a network."""

from __future__ import annotations

from monai_sre.symmetry.error import culprits, equivariance_error, layer_errors
from monai_sre.symmetry.lattice import LatticeSymmetry, lattice_generators, lattice_symmetries

__all__ = [
    "LatticeSymmetry",
    "culprits",
    "equivariance_error",
    "lattice_generators",
    "lattice_symmetries",
    "layer_errors",
]
