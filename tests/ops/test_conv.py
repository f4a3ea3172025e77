"""The pure functions of the radial convolution, against kernels filled tap by tap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops import expand_kernel, radial_basis, sre_conv
from monai_sre.ops.conv import ALGORITHM_VARIABLE, centred_conv, centred_conv_transpose, requested_algorithm
from tests.testers import relative_error

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SIZES = {1: (17,), 2: (11, 14), 3: (8, 9, 7)}


def kernel_by_loops(weight: Tensor, kernel_size: int, ndim: int) -> Tensor:
    """The published kernel, tap by tap: ``b`` bands of equal width from 0 to ``k // 2 + 1 / 2``, nothing outside."""
    out_channels, in_channels, rings = weight.shape
    reach = kernel_size // 2 + 0.5
    kernel = torch.zeros(out_channels, in_channels, *[kernel_size] * ndim, dtype=weight.dtype)
    for tap in product(range(kernel_size), repeat=ndim):
        distance = math.dist(tap, [kernel_size // 2] * ndim)
        if distance < reach:
            kernel[(slice(None), slice(None), *tap)] = weight[:, :, math.floor(distance * rings / reach)]
    return kernel


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": 4, "dilation": 2},
        {"groups": 2, "padding": 3},
        {"stride": 3, "groups": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equals_convolution(ndim: int, kernel_size: int, options: dict[str, Any]) -> None:
    basis = radial_basis((kernel_size,) * ndim)
    groups = options.get("groups", 1)
    weight = torch.randn(8, 4 // groups, len(basis), dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64)
    reach = options.get("dilation", 1) * (kernel_size - 1) - 2 * options.get("padding", 0)
    size = tuple(max(length, reach + 2) for length in SIZES[ndim])
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    kernel = kernel_by_loops(weight, kernel_size, ndim)
    assert torch.equal(expand_kernel(weight, basis), kernel)
    assert (
        relative_error(sre_conv(x, weight, basis, bias, **options), CONVOLUTIONS[ndim](x, kernel, bias, **options))
        < 1e-12
    )
    without = sre_conv(x[0], weight, basis, **options)
    assert relative_error(without, CONVOLUTIONS[ndim](x[0], kernel, **options)) < 1e-12


def test_kernel_is_in_the_dtype_of_the_weight() -> None:
    basis = radial_basis((3, 3))
    assert basis.dtype == torch.float64
    assert expand_kernel(torch.ones(1, 1, 2), basis).dtype == torch.float32
    out = sre_conv(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 2), basis)
    assert out.dtype == torch.float32
    assert out.unique().tolist() == [9.0]


def test_requested_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALGORITHM_VARIABLE, raising=False)
    assert requested_algorithm("ring") == "ring"
    monkeypatch.setenv(ALGORITHM_VARIABLE, "dense")
    assert requested_algorithm("ring") == "dense"
    monkeypatch.setenv(ALGORITHM_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"environment variable MONAI_SRE_ALGORITHM must be one of .*got 'fast'"):
        requested_algorithm("auto")


def operands(**changes: Any) -> dict[str, Any]:
    plain = {"x": torch.ones(1, 4, 8, 8), "weight": torch.ones(6, 4, 3), "basis": torch.ones(3, 5, 5)}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"basis": torch.ones(3)}, ValueError, r"basis must have shape \(b, \*kernel_size\) with 1 to 3 .*got \(3,\)"),
        (
            {"basis": torch.ones(2, 5, 5)},
            ValueError,
            r"weight must have 3 axes, the last of the basis' 2 rings, got shape",
        ),
        ({"weight": torch.ones(6, 3)}, ValueError, r"weight must have 3 axes.*got shape \(6, 3\)"),
        ({"x": torch.ones(8, 8)}, ValueError, r"x must have 3 or 4 axes for 2 spatial axes, got shape \(8, 8\)"),
        ({"x": torch.ones(1, 4, 8, 8, 8)}, ValueError, "x must have 3 or 4 axes"),
        ({"stride": 0}, ValueError, "stride must be an integer >= 1 or 2 of them, got 0"),
        ({"padding": (1, 1, 1)}, ValueError, r"padding must be an integer >= 0 or 2 of them, got \(1, 1, 1\)"),
        ({"dilation": 1.5}, TypeError, "dilation must be an integer >= 1 or 2 of them, got 1.5"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sre_conv(**operands(**changes))


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match=r"algorithm must be one of \('auto', 'dense', 'ring'\), got 'fft'"):
        sre_conv(**operands(algorithm="fft"))


# Centred grids --------------------------------------------------------------------------------------------------------


def centred_by_loops(values: list[float], kernel: list[float], count: int, stride: int, dilation: int) -> list[float]:
    """Outputs around the middle of a line, tap by tap: a tap between two pixels sees their mean, one outside sees zero."""

    def pixel(place: int) -> float:
        return values[place] if 0 <= place < len(values) else 0.0

    found = []
    for index in range(count):
        centre = (len(values) - 1) / 2 + stride * (index - (count - 1) / 2)
        places = [centre + dilation * (tap - (len(kernel) - 1) / 2) for tap in range(len(kernel))]
        seen = [(pixel(math.floor(place)) + pixel(math.ceil(place))) / 2 for place in places]
        found.append(sum(weight * value for weight, value in zip(kernel, seen, strict=True)))
    return found


def line_cases() -> Iterator[tuple[int, list[float], int, int, int, int]]:
    """Sizes, symmetric kernels, strides, dilations and paddings, also of the far end alone."""
    kernels = ([2.0], [1.0, 1.0], [1.0, 3.0, 1.0], [1.0, -2.0, -2.0, 1.0])
    for size, kernel, stride, dilation in product(range(4, 12), kernels, (1, 2, 3), (1, 2)):
        for padding, far in ((0, 0), (1, 0), (2, 1)):
            if size + 2 * padding + far >= dilation * (len(kernel) - 1) + 1:
                yield size, kernel, stride, dilation, padding, far


def test_centred_convolution_is_that_of_the_loops() -> None:
    """With as many outputs as torch has; a step of the grid may lie between the pixels."""
    for size, kernel, stride, dilation, padding, far in line_cases():
        x, weight = torch.randn(1, 1, size, dtype=torch.float64), torch.tensor([[kernel]], dtype=torch.float64)
        count = functional.conv1d(functional.pad(x, (padding, padding + far)), weight, None, stride, 0, dilation).shape[
            -1
        ]
        found = centred_conv(x, weight, None, [stride], [padding], [far], [dilation], 1, "zeros")
        wanted = centred_by_loops(x.flatten().tolist(), kernel, count, stride, dilation)
        assert found.flatten().tolist() == pytest.approx(wanted, abs=1e-12), (
            size,
            kernel,
            stride,
            dilation,
            padding,
            far,
        )


def test_centred_transposed_convolution_is_the_transpose() -> None:
    """Of the matrix of the loops above, whatever the size that it gives back."""
    for size, kernel, stride, dilation, padding, far in line_cases():
        full = dilation * (len(kernel) - 1) + 1
        count = (size + 2 * padding + far - full) // stride + 1
        margin = (count - 1) * stride + full - size
        matrix = [
            centred_by_loops([float(i == k) for i in range(size)], kernel, count, stride, dilation) for k in range(size)
        ]
        y, weight = torch.randn(1, 1, count, dtype=torch.float64), torch.tensor([[kernel]], dtype=torch.float64)
        found = centred_conv_transpose(y, weight, None, [stride], [margin], [dilation], 1)
        torch.testing.assert_close(found[0, 0], torch.tensor(matrix, dtype=torch.float64) @ y[0, 0])
