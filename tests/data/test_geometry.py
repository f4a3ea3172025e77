"""Rotation, flips and resizing of batches, against slow references written here in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from monai_sre.data import (
    background_value,
    flip_batch,
    random_rotations,
    resize_batch,
    rotate_batch,
    turn_volumes,
)


def slow_rotation(image: np.ndarray, degrees: float, mode: str, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """One (H, W) image turned anticlockwise, pixel by pixel in float64; of ties, the other value that rounding may take."""
    height, width = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    framed = np.pad(image.astype(np.float64), 1, constant_values=fill)

    def pixel(row: float, column: float) -> float:
        return framed[min(max(int(row), -1), height) + 1, min(max(int(column), -1), width) + 1]

    out, other = np.empty((2, height, width))
    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, i - (height - 1) / 2
            column, row = cos * x - sin * y + (width - 1) / 2, sin * x + cos * y + (height - 1) / 2
            if mode == "nearest":
                out[i, j] = pixel(round(row - 1e-4), round(column - 1e-4))
                choices = [pixel(round(row + a), round(column + b)) for a in (-1e-4, 1e-4) for b in (-1e-4, 1e-4)]
                other[i, j] = next((choice for choice in choices if choice != out[i, j]), out[i, j])
            else:
                out[i, j] = other[i, j] = sum(
                    (1 - abs(row - r)) * (1 - abs(column - c)) * pixel(r, c)
                    for r in (math.floor(row), math.floor(row) + 1)
                    for c in (math.floor(column), math.floor(column) + 1)
                )
    return out, other


SHAPES = [(28, 28), (32, 32), (13, 13), (12, 20), (9, 14)]
DEGREES = [10, 30, 45, 130, 180, 350, -25.5]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", DEGREES)
def test_nearest_rotation_takes_the_nearest_pixel(shape: tuple[int, int], degrees: float) -> None:
    """Of two that are as near, either."""
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    turned = rotate_batch(x, degrees).numpy()
    for sample, channel in ((0, 0), (1, 1)):
        nearest, other = slow_rotation(x[sample, channel].numpy(), degrees, "nearest", 0.0)
        found = turned[sample, channel]
        assert ((found == nearest) | (found == other)).all()
        assert (nearest == other).mean() > 0.85


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_rotation_is_torchvisions(shape: tuple[int, int]) -> None:
    """Ties included, where torchvision is installed."""
    vision = pytest.importorskip("torchvision.transforms.functional")
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    for degrees in DEGREES:
        assert torch.equal(rotate_batch(x, degrees), vision.rotate(x, degrees, vision.InterpolationMode.NEAREST))


@pytest.mark.parametrize("degrees", [10, 60, 90, 245])
def test_bilinear_rotation_blends_the_fill(degrees: float) -> None:
    x = torch.rand(1, 1, 11, 16, generator=torch.Generator().manual_seed(1))
    expected, _ = slow_rotation(x[0, 0].double().numpy(), degrees, "bilinear", 0.7)
    np.testing.assert_allclose(rotate_batch(x, degrees, mode="bilinear", fill=0.7)[0, 0], expected, atol=2e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_exact(mode: str, side: int) -> None:
    x = torch.randn(2, 3, side, side)
    for quarter in range(-4, 9):
        assert torch.equal(rotate_batch(x, 90 * quarter, mode=mode, fill="background"), torch.rot90(x, quarter, (2, 3)))
    expected, _ = slow_rotation(x[0, 0].double().numpy(), 90, "nearest", 0.0)  # what torchvision gives at 90 degrees
    np.testing.assert_array_equal(rotate_batch(x, 90)[0, 0], expected.astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_about_an_axis_turns_every_slice(axis: int) -> None:
    x = torch.randn(2, 2, 10, 12, 14, generator=torch.Generator().manual_seed(2))
    for mode in ("nearest", "bilinear"):
        turned = rotate_batch(x, 40, axis=axis, mode=mode, fill="background")
        fill = background_value(x)
        for index in (0, 5):
            piece = x.select(axis + 2, index)[1:, 1:]
            value = float(fill[1, 1])
            expected, other = slow_rotation(piece[0, 0].double().numpy(), 40, mode, value)
            found = turned.select(axis + 2, index)[1, 1].numpy()
            assert (np.minimum(abs(found - expected), abs(found - other)) < 2e-5).all()


def test_clean_fill_is_each_images_border_and_commutes_with_normalising() -> None:
    x = torch.zeros(2, 1, 9, 9)
    x[0], x[1] = 0.25, 0.75
    x[:, :, 3:6, 3:6] = 1.0
    assert background_value(x).flatten().tolist() == [0.25, 0.75]
    turned = rotate_batch(x, 33, mode="bilinear", fill="background")
    assert turned[0, 0, 0, 0].item() == pytest.approx(0.25)
    assert turned[1, 0, 0, 0].item() == pytest.approx(0.75)
    after = rotate_batch((x - 0.5) / 0.5, 33, mode="bilinear", fill="background")
    torch.testing.assert_close((turned - 0.5) / 0.5, after, atol=1e-6, rtol=0)
    quantised = rotate_batch((x * 255).byte(), 33, mode="bilinear", fill="background")
    assert quantised.dtype == torch.uint8
    assert (quantised.float() - turned * 255).abs().max() <= 1.01


def test_rotation_arguments_are_checked() -> None:
    x = torch.zeros(1, 1, 4, 4)
    for bad in ({"mode": "bicubic"}, {"fill": "mean"}, {"axis": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            rotate_batch(x, 10, **bad)
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2 in 3-D, got None"):
        rotate_batch(torch.zeros(1, 1, 4, 4, 4), 10)
    with pytest.raises(ValueError, match="axes"):
        flip_batch(x, 2)


def about(axis: int, degrees: float) -> torch.Tensor:
    """The matrix of what :func:`rotate_batch` does about an axis."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix, (first, second) = torch.eye(3), [each for each in range(3) if each != axis]
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("axis", "degrees"), [(0, 37.0), (1, 140.0), (2, -71.0)])
def test_volumes_turn_by_a_matrix_as_about_an_axis(axis: int, degrees: float, mode: str) -> None:
    x = torch.rand(2, 2, 6, 7, 5, dtype=torch.float64)
    found = turn_volumes(x, about(axis, degrees).double(), mode, "background")
    torch.testing.assert_close(found, rotate_batch(x, degrees, axis, mode, "background"), atol=1e-6, rtol=0)


def test_turning_volumes_takes_a_point_where_the_matrix_takes_it_and_back() -> None:
    matrix = random_rotations(1, torch.tensor([[0.3], [0.6], [0.8]]))[0]
    x = torch.zeros(1, 1, 21, 21, 21)
    x[0, 0, 14, 8, 11] = 1.0  # at (4, -2, 1) from the centre
    found = turn_volumes(x, matrix, "bilinear")[0, 0]
    places = torch.stack(torch.meshgrid(*[torch.arange(21.0) - 10] * 3, indexing="ij"), -1)
    centre = (found[..., None] * places).sum((0, 1, 2)) / found.sum()
    torch.testing.assert_close(centre, matrix @ torch.tensor([4.0, -2.0, 1.0]), atol=0.3, rtol=0)
    smooth = torch.nn.functional.avg_pool3d(torch.nn.functional.avg_pool3d(x, 5, 1, 2), 5, 1, 2)
    back = turn_volumes(turn_volumes(smooth, matrix, "bilinear"), matrix.T, "bilinear")
    assert float((back - smooth).norm() / smooth.norm()) < 0.1


def test_what_turning_volumes_refuses() -> None:
    for x, matrix, mode, fill, message in (
        (torch.rand(1, 1, 4, 4), torch.eye(3), "nearest", 0.0, r"x must have shape \(B, C, D, H, W\)"),
        (torch.rand(1, 1, 4, 4, 4), torch.eye(4), "nearest", 0.0, r"and matrix \(3, 3\), got"),
        (torch.rand(1, 1, 4, 4, 4), torch.eye(3), "spline", 0.0, "mode must be"),
        (torch.rand(1, 1, 4, 4, 4), torch.eye(3), "nearest", "edge", "fill must be"),
    ):
        with pytest.raises(ValueError, match=message):
            turn_volumes(x, matrix, mode, fill)


def test_flip_and_resize() -> None:
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    np.testing.assert_array_equal(flip_batch(x, (0, 2)).numpy(), x.numpy()[:, :, ::-1, :, ::-1])
    assert resize_batch(x, [2, 3, 4]) is x
    ramp = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 8, 8)
    # A triangle filter of half width 2 (times the scale of 2) keeps a ramp away from its ends: new pixel 1 is at 2.5.
    assert resize_batch(ramp, 4)[0, 0, 0, 1].item() == pytest.approx(2.5)
    volume = torch.rand(1, 1, 4, 4, 4)
    assert resize_batch(volume, 2)[0, 0, 0, 0, 0].item() == pytest.approx(volume[0, 0, :2, :2, :2].mean().item())


def test_random_rotations_are_uniform_on_so3() -> None:
    matrices = random_rotations(4000, torch.rand(3, 4000, generator=torch.Generator().manual_seed(0)))
    identity = torch.eye(3).expand(4000, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(4000))
    assert matrices.mean(0).abs().max() < 0.04
    torch.testing.assert_close((matrices**2).mean(0), torch.full((3, 3), 1 / 3), atol=0.02, rtol=0)
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    assert (trace**2).mean().item() == pytest.approx(1.0, abs=0.1)  # Haar measure: E[trace^2] = 1
