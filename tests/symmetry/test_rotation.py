"""Rotations by any angle: exact at quarter turns, and as closed forms say elsewhere."""

from __future__ import annotations

import pytest
import torch

from monai_sre.symmetry.rotation import disc, rotate


@pytest.mark.parametrize("interpolation", ["bilinear", "spline3", "spline5"])
@pytest.mark.parametrize("size", [7, 8])
def test_quarter_turns_are_exact(interpolation: str, size: int) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for turns in range(1, 4):
        torch.testing.assert_close(rotate(x, 90.0 * turns, interpolation=interpolation), x.rot90(turns, (2, 3)))
    torch.testing.assert_close(rotate(x, 90.0, (3, 2)), x.rot90(1, (3, 2)))
    torch.testing.assert_close(rotate(x, 90.0, (-1, 2)), x.rot90(1, (3, 2)))
    torch.testing.assert_close(rotate(x, 90.0, (1, 3))[:, :, 0], rotate(x[:, :, 0], 90.0, (1, 2)))


@pytest.mark.parametrize("size", [(41, 41), (40, 40), (40, 61), (57, 40)])
def test_a_plane_wave(size: tuple[int, int]) -> None:
    """cos(k . x) becomes cos(k . R x), a wave in another direction: closed form, away from the border."""
    rows, columns = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2 for length in size)

    def wave(angle: float) -> torch.Tensor:
        direction = torch.tensor(torch.pi * angle / 180, dtype=torch.float64)
        phase = rows[:, None] * torch.cos(direction) + columns[None, :] * torch.sin(direction)
        return torch.cos(2 * torch.pi / 8 * phase)

    inside = disc(size, radius=12.0).bool()
    for degrees in (10.0, 37.0, 120.0):
        for interpolation, tolerance in (("spline5", 5e-4), ("spline3", 5e-3), ("bilinear", 0.1)):
            turned = rotate(wave(20.0), degrees, interpolation=interpolation)
            assert (turned - wave(20.0 + degrees))[inside].abs().max() < tolerance


def test_the_border_is_repeated() -> None:
    """A constant stays constant, though the corners come from outside of the frame."""
    for interpolation in ("bilinear", "spline3", "spline5"):
        torch.testing.assert_close(
            rotate(torch.full((1, 9, 14), 3.0), 30.0, (1, 2), interpolation), torch.full((1, 9, 14), 3.0)
        )


def test_dtype_and_integers() -> None:
    assert rotate(torch.randn(2, 5, 5, dtype=torch.bfloat16), 30).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"x must hold floating-point numbers, got torch\.int64"):
        rotate(torch.ones(8, 8, dtype=torch.int64), 30)
    with pytest.raises(ValueError, match=r"interpolation must be one of .*'cubic'"):
        rotate(torch.ones(8, 8), 30, interpolation="cubic")
