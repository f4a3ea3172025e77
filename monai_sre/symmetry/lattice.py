"""The symmetries of the pixel grid, rotations by 90 degrees and flips that map it onto itself, as functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

from torch import Tensor

from monai_sre.ops.arguments import int_tuple


@dataclass(frozen=True)
class LatticeSymmetry:
    """One symmetry of the grid: a permutation of the spatial axes, then flips along some of them.

    Args:
        order: the input's spatial axis that becomes output axis 0, 1, ...
        flips: the output's spatial axes that are reversed, ascending.

    Example:
        >>> import torch
        >>> turn = LatticeSymmetry((1, 0), (0,))
        >>> x = torch.randn(2, 3, 4, 7)
        >>> turn.name, torch.equal(turn(x), x.rot90(1, (2, 3)))
        ('rot90(0,1)', True)
    """

    order: tuple[int, ...]
    flips: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order must hold each of the axes 0 to {len(self.order) - 1} once, got {self.order!r}")
        if any(axis not in self.order for axis in self.flips) or list(self.flips) != sorted(set(self.flips)):
            raise ValueError(f"flips must be ascending axes out of {tuple(sorted(self.order))}, got {self.flips!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last ``len(order)`` axes of ``x``, whatever axes come before; unequal sizes change places."""
        ndim, lead = len(self.order), x.dim() - len(self.order)
        if lead < 0:
            raise ValueError(
                f"x must have at least {ndim} axes for the symmetry {self.name!r}, got shape {tuple(x.shape)}"
            )
        x = x.permute(*range(lead), *[lead + axis for axis in self.order])
        return x.flip([lead + axis for axis in self.flips]) if self.flips else x

    def compose(self, first: LatticeSymmetry) -> LatticeSymmetry:
        """The symmetry that applies ``first`` and then this one."""
        order = tuple(first.order[axis] for axis in self.order)
        moved = {self.order.index(axis) for axis in first.flips}
        return LatticeSymmetry(order, tuple(sorted(moved ^ set(self.flips))))

    @property
    def inverse(self) -> LatticeSymmetry:
        """The symmetry that undoes this one.

        Example:
            >>> LatticeSymmetry((1, 0), (0,)).inverse.name
            'rot270(0,1)'
        """
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return LatticeSymmetry(order, tuple(sorted(self.order[axis] for axis in self.flips)))

    @property
    def is_rotation(self) -> bool:
        """Whether it is a rotation, that is, reverses no orientation."""
        inversions = sum(a > b for i, a in enumerate(self.order) for b in self.order[i + 1 :])
        return (inversions + len(self.flips)) % 2 == 0

    @property
    def name(self) -> str:
        """A readable name, unique in its group.

        ``"rot90(0,1)"`` is ``torch.rot90`` in the plane of the spatial axes 0 and 1, ``"flip(0)"`` is ``torch.flip``,
        ``"swap(0,1)"`` exchanges two axes, ``"permute(1,2,0)"`` is ``torch.permute``; several are applied from left to right.
        """
        moved = [axis for axis, source in enumerate(self.order) if axis != source]
        flips = f"flip({','.join(map(str, self.flips))})"
        if not moved:
            if len(self.flips) == 2:
                return f"rot180{flips[4:]}"
            return flips if self.flips else "identity"
        if len(moved) > 2:
            turn = f"permute({','.join(map(str, self.order))})"
            return f"{turn} {flips}" if self.flips else turn
        plane = f"({moved[0]},{moved[1]})"
        inside = [axis for axis in self.flips if axis in moved]
        outside = [axis for axis in self.flips if axis not in moved]
        turn = {(): "swap", (moved[0],): "rot90", (moved[1],): "rot270"}.get(tuple(inside), "antiswap") + plane
        return f"{turn} flip({','.join(map(str, outside))})" if outside else turn


def lattice_symmetries(
    spatial_dims: int, spacing: Sequence[float] | None = None, axes: Sequence[int] | None = None
) -> dict[str, LatticeSymmetry]:
    """All rotations by 90 degrees and flips that map the pixel grid onto itself, the identity first.

    Args:
        spatial_dims: number of spatial axes.
        spacing: the voxel size along each; only axes of one voxel size are exchanged. ``None`` is one size for all.
        axes: the spatial axes that may move; ``None`` is all.

    Returns:
        ``{name: symmetry}``, a group: 2, 8 or 48 in 1, 2 or 3 dimensions, fewer where ``spacing`` or ``axes`` say so. Each
        acts on the last ``spatial_dims`` axes of any tensor.

    Raises:
        ValueError: an argument cannot work.

    Example:
        >>> list(lattice_symmetries(2))  # doctest: +NORMALIZE_WHITESPACE
        ['identity', 'rot90(0,1)', 'rot180(0,1)', 'rot270(0,1)', 'flip(0)', 'flip(1)', 'swap(0,1)', 'antiswap(0,1)']
        >>> len(lattice_symmetries(3)), len(lattice_symmetries(3, spacing=(5, 1, 1))), len(lattice_symmetries(3, axes=(1, 2)))
        (48, 16, 8)
    """
    (ndim,) = int_tuple("spatial_dims", spatial_dims, 1, minimum=1)
    if spacing is not None and len(spacing) != ndim:
        raise ValueError(f"spacing must be None or {ndim} voxel sizes, got {spacing!r}")
    moving = range(ndim) if axes is None else axes
    if any(axis not in range(ndim) for axis in moving):
        raise ValueError(f"axes must be None or spatial axes out of {tuple(range(ndim))}, got {axes!r}")
    found = []
    for order in permutations(range(ndim)):
        moved = [axis for axis, source in enumerate(order) if axis != source]
        if any(axis not in moving for axis in moved):
            continue
        if spacing is not None and any(spacing[axis] != spacing[order[axis]] for axis in moved):
            continue
        for signs in product((False, True), repeat=ndim):
            flips = tuple(axis for axis, flipped in enumerate(signs) if flipped)
            if all(axis in moving for axis in flips):
                found.append(LatticeSymmetry(order, flips))
    kinds = ("identity", "rot90", "rot180", "rot270", "flip", "swap", "antiswap", "permute")

    def rank(symmetry: LatticeSymmetry) -> tuple[bool, int, str]:
        kind = symmetry.name.split("(")[0]
        return not symmetry.is_rotation, kinds.index(kind), symmetry.name

    return {symmetry.name: symmetry for symmetry in sorted(found, key=rank)}


def lattice_generators(
    spatial_dims: int, spacing: Sequence[float] | None = None, axes: Sequence[int] | None = None
) -> dict[str, LatticeSymmetry]:
    """A few of :func:`lattice_symmetries` whose products are all of them: what a quick check needs.

    What commutes with two symmetries commutes with their product, so a network that passes on the generators passes on the
    whole group, to rounding.

    Args:
        spatial_dims: with ``spacing`` and ``axes`` as in :func:`lattice_symmetries`.

    Example:
        >>> list(lattice_generators(2)), list(lattice_generators(3))
        (['flip(0)', 'rot90(0,1)'], ['flip(0)', 'rot90(0,1)', 'rot90(0,2)'])
    """
    group = lattice_symmetries(spatial_dims, spacing, axes)
    chosen: dict[str, LatticeSymmetry] = {}
    reached = {LatticeSymmetry(tuple(range(spatial_dims)))}
    order = sorted(group.values(), key=lambda symmetry: (_preference(symmetry), symmetry.name))
    for symmetry in order:
        if symmetry in reached:
            continue
        chosen[symmetry.name] = symmetry
        new = reached
        while new:
            new = {maker.compose(old) for maker in chosen.values() for old in reached} - reached
            reached |= new
    return chosen


def _preference(symmetry: LatticeSymmetry) -> int:
    """Generators of few axes first: one flip, then quarter turns of neighbouring axes."""
    if symmetry.name.startswith("flip") and len(symmetry.flips) == 1:
        return 2 if symmetry.flips != (0,) else 0
    if symmetry.name.startswith("rot90") and symmetry.name.endswith(")") and " " not in symmetry.name:
        return 1
    return 3
