from __future__ import annotations

from itertools import product

import pytest
import torch

from monai_sre.symmetry.lattice import LatticeSymmetry, lattice_generators, lattice_symmetries


def numbered(*size: int) -> torch.Tensor:
    return torch.arange(float(torch.tensor(size).prod())).reshape(size)


@pytest.mark.parametrize(("spatial_dims", "order", "rotations"), [(1, 2, 1), (2, 8, 4), (3, 48, 24)])
def test_group_orders(spatial_dims: int, order: int, rotations: int) -> None:
    group = lattice_symmetries(spatial_dims)
    assert len(group) == order  # 2^d d!, the hyperoctahedral group
    assert sum(symmetry.is_rotation for symmetry in group.values()) == rotations
    x = numbered(*[3] * spatial_dims)
    assert len({tuple(symmetry(x).flatten().tolist()) for symmetry in group.values()}) == order
    assert next(iter(group)) == "identity"


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_closed_under_composition_and_inverse(spatial_dims: int) -> None:
    group = lattice_symmetries(spatial_dims)
    x = numbered(*range(3, 3 + spatial_dims))
    for first, second in product(group.values(), repeat=2):
        both = second.compose(first)
        assert group[both.name] == both
        assert torch.equal(both(x), second(first(x)))
    for symmetry in group.values():
        assert sum(torch.equal(other(symmetry(x)), x) for other in group.values()) == 1


@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotations_are_those_of_torch(plane: tuple[int, int], turns: int) -> None:
    x = torch.randn(2, 5, 3, 4, 6)
    symmetry = lattice_symmetries(3)[f"rot{90 * turns}({plane[0]},{plane[1]})"]
    assert torch.equal(symmetry(x), x.rot90(turns, [axis + 2 for axis in plane]))


def test_reflections_are_those_of_torch() -> None:
    x, group = torch.randn(2, 5, 4, 7), lattice_symmetries(2)
    assert torch.equal(group["flip(1)"](x), x.flip(3))
    assert torch.equal(group["swap(0,1)"](x), x.transpose(2, 3))
    assert torch.equal(group["antiswap(0,1)"](x), x.transpose(2, 3).flip(2, 3))


def test_the_inverse_undoes() -> None:
    x = numbered(3, 4, 5)
    for symmetry in lattice_symmetries(3).values():
        assert torch.equal(symmetry.inverse(symmetry(x)), x)
        assert symmetry.compose(symmetry.inverse).name == "identity"


def test_subgroups() -> None:
    plane = lattice_symmetries(3, axes=(1, 2))
    assert len(plane) == 8
    assert all(symmetry.order[0] == 0 and 0 not in symmetry.flips for symmetry in plane.values())
    thick = lattice_symmetries(3, spacing=(5.0, 1.0, 1.0))
    assert len(thick) == 16  # the 8 of the plane, times the flip of the thick axis
    assert all(symmetry.order[0] == 0 for symmetry in thick.values())
    assert len(lattice_symmetries(3, spacing=(3.0, 2.0, 1.0))) == 8  # flips alone
    assert set(plane) <= set(thick) <= set(lattice_symmetries(3))


@pytest.mark.parametrize(
    "options", [{"spatial_dims": 1}, {"spatial_dims": 2}, {"spatial_dims": 3}, {"spatial_dims": 3, "axes": (0, 2)}]
)
def test_generators_generate(options: dict) -> None:
    group, generators = lattice_symmetries(**options), lattice_generators(**options)
    reached = {group["identity"]}
    for _ in range(len(group)):
        reached |= {maker.compose(old) for maker in generators.values() for old in reached}
    assert reached == set(group.values())
    assert len(generators) <= 3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="spatial_dims"):
        lattice_symmetries(0)
    with pytest.raises(ValueError, match=r"spacing must be None or 2 voxel sizes, got \(1.0,\)"):
        lattice_symmetries(2, spacing=(1.0,))
    with pytest.raises(ValueError, match="axes"):
        lattice_symmetries(2, axes=(2,))
    with pytest.raises(ValueError, match="order"):
        LatticeSymmetry((0, 0))
    with pytest.raises(ValueError, match="flips"):
        LatticeSymmetry((0, 1), (1, 0))
    with pytest.raises(ValueError, match="at least 2 axes"):
        LatticeSymmetry((1, 0))(torch.zeros(3))
