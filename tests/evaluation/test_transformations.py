"""The rotations and flips of a sweep: their list, what they do to images, and arguments that are refused."""

from __future__ import annotations

import pytest
import torch

from monai_sre.evaluation import sweep_transformations


def test_list_of_transformations() -> None:
    plane = sweep_transformations(2)
    assert list(plane)[:3] == ["0", "10", "20"]
    assert len(plane) == 36 + 2
    volume = sweep_transformations(3)
    assert len(volume) == 1 + 3 * 11 + 3
    assert list(volume)[1] == "30 about axis 0"


def test_quarter_turns_and_flips_are_those_of_torch() -> None:
    x = torch.randn(2, 3, 6, 6)
    for protocol in ("bilinear_background", "nearest_zero"):
        found = sweep_transformations(2, protocol, step=90)
        for turns in range(4):
            assert torch.equal(found[str(90 * turns)](x), x.rot90(turns, (2, 3)))
        assert torch.equal(found["flip 1"](x), x.flip(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), "spatial_dims must be"),
        ((2, "fancy"), "protocol must be"),
        *(
            ((2, "bilinear_background", step), "step must be a positive divisor of 360 degrees, from 0.1 on, got")
            for step in (25, 0, -30, 720, 1e-9, float("nan"), float("inf"), True, "30")
        ),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_transformations(*arguments)


def test_orientations_and_random_rotations_on_request() -> None:
    found = sweep_transformations(3, step=360, flips=False, orientations=True, random_rotations=2)
    assert len(found) == 1 + 47 + 2
    x = torch.rand(1, 1, 4, 5, 6)
    assert torch.equal(found["orientation rot90(0,1)"](x), x.rot90(1, (2, 3)))
    more = sweep_transformations(3, step=360, random_rotations=5)
    assert found["random 2"] == more["random 2"]
    assert found["random 2"] != more["random 1"]
    for name, move in found.items():
        assert move.keeps_the_grid == (not name.startswith("random"))
        if move.keeps_the_grid:
            assert torch.equal(move.inverse(move(x)), x)
    matrix = torch.tensor(found["random 1"].matrix)
    torch.testing.assert_close(torch.tensor(found["random 1"].inverse.matrix) @ matrix, torch.eye(3), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="random_rotations must be 0 in 2-D, got 1"):
        sweep_transformations(2, random_rotations=1)


@pytest.mark.parametrize(("dims", "size"), [(2, (5, 6, 7)), (3, (5, 6)), (2, (6, 6, 6))])
def test_transformations_of_other_images(dims: int, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axis must be"):
        sweep_transformations(dims, step=90)["90" if dims == 2 else "90 about axis 0"](torch.zeros(1, 1, *size))


def test_steps_that_floating_point_cannot_divide_exactly() -> None:
    assert len(sweep_transformations(2, step=7.2, flips=False)) == 50
    with pytest.raises(ValueError, match=r"step must be a positive divisor of 360 degrees, .*got 7"):
        sweep_transformations(2, step=7)
