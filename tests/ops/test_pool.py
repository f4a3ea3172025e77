"""Centred resampling against torch, closed forms and a slow reference in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.pool import (
    blurred_avg_pool,
    blurred_max_pool,
    centred_avg_pool,
    centred_blur,
    centred_blur_pool,
    centred_max_pool,
    centred_upsample,
)
from tests.testers import assert_symmetric, lattice_symmetries

AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
MAXIMUM = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def one_dimensional() -> Iterator[tuple[int, int, int, int, bool]]:
    """Every size 1 to 12 under every window up to 5, stride up to 4, padding and rounding."""
    for kernel_size, stride, ceil_mode in product(range(1, 6), range(1, 5), (False, True)):
        for padding, size in product(range(kernel_size // 2 + 1), range(1, 13)):
            if size + 2 * padding >= kernel_size:
                yield size, kernel_size, stride, padding, ceil_mode


def windows(
    size: int, outputs: int, kernel_size: int, stride: int, dilation: int = 1
) -> Iterator[list[tuple[int, float]]]:
    """``(position, share)`` of the taps of each centred window; one between the pixels is the mean of its two neighbours."""
    for index in range(outputs):
        centre = (size - 1) / 2 + (index - (outputs - 1) / 2) * stride
        start = centre - dilation * (kernel_size - 1) / 2
        taps = [start + dilation * tap for tap in range(kernel_size)]
        yield [(side(tap), 0.5) for tap in taps for side in (math.floor, math.ceil)]


def test_average_and_maximum_in_1d() -> None:
    """Exhaustive: values by the definition, the number of outputs by torch."""
    for size, kernel_size, stride, padding, ceil_mode in one_dimensional():
        values = torch.randn(size, dtype=torch.float64)
        x = values.reshape(1, 1, -1)
        outputs = functional.avg_pool1d(x, kernel_size, stride, padding, ceil_mode).shape[-1]
        arguments = ([kernel_size], [stride], [padding])
        for include in (True, False):
            margin = padding if include else 0
            expected = []
            for window in windows(size, outputs, kernel_size, stride):
                present = sum(share for tap, share in window if -margin <= tap < size + margin)
                total = sum(share * values[tap].item() for tap, share in window if 0 <= tap < size)
                expected.append(total / present)
            actual = centred_avg_pool(x, *arguments, ceil_mode, include).flatten().tolist()
            assert actual == pytest.approx(expected, abs=1e-12), (size, *arguments, ceil_mode, include)
        expected = [
            max(values[tap].item() for tap, _ in window if 0 <= tap < size)
            for window in windows(size, outputs, kernel_size, stride)
        ]
        actual = centred_max_pool(x, *arguments, [1], ceil_mode).flatten().tolist()
        assert actual == expected, (size, *arguments, ceil_mode)


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilated_maximum_in_1d(dilation: int) -> None:
    for size, kernel_size, stride, padding, ceil_mode in one_dimensional():
        if size + 2 * padding < dilation * (kernel_size - 1) + 1:
            continue
        values = torch.randn(size, dtype=torch.float64)
        theirs = functional.max_pool1d(values.reshape(1, 1, -1), kernel_size, stride, padding, dilation, ceil_mode)
        expected = [
            max([values[tap].item() for tap, _ in window if 0 <= tap < size], default=-math.inf)
            for window in windows(size, theirs.shape[-1], kernel_size, stride, dilation)
        ]
        ours = centred_max_pool(values.reshape(1, 1, -1), [kernel_size], [stride], [padding], [dilation], ceil_mode)
        assert ours.flatten().tolist() == expected


@st.composite
def pools(draw: Callable[[Any], Any], dilated: bool = False) -> dict[str, Any]:
    """Sizes and arguments in 1 to 3 dimensions at which at least one window fits."""
    ndim = draw(st.integers(1, 3))
    axes = []
    for _ in range(ndim):
        kernel_size = draw(st.integers(1, 5))
        padding = draw(st.integers(0, kernel_size // 2))
        dilation = draw(st.integers(1, 2)) if dilated else 1
        least = max(
            1, dilation * (kernel_size - 1) + 1 - padding
        )  # torch in 3-D wants the window's end inside the input
        size = draw(st.integers(least, max(least, 20 if ndim < 3 else 9)))
        axes.append((size, kernel_size, draw(st.integers(1, 4)), padding, dilation))
    names = ("size", "kernel_size", "stride", "padding", "dilation")
    case = {name: list(values) for name, values in zip(names, zip(*axes, strict=True), strict=True)}
    return {**case, "ceil_mode": draw(st.booleans())}


def is_centred(case: dict[str, Any], outputs: torch.Size) -> bool:
    """Whether torch's own grid is centred: nothing left over, and nothing beyond the padding."""
    reach = [d * (k - 1) + 1 for d, k in zip(case["dilation"], case["kernel_size"], strict=True)]
    return all(
        (n - 1) * s + r == size + 2 * p
        for n, s, r, size, p in zip(outputs[2:], case["stride"], reach, case["size"], case["padding"], strict=True)
    )


@given(pools(), st.booleans())
def test_average_against_torch(case: dict[str, Any], include: bool) -> None:
    """The shape of torch's output always, and its values wherever its grid is centred."""
    x = torch.randn(2, 2, *case["size"], dtype=torch.float64)
    arguments = (case["kernel_size"], case["stride"], case["padding"], case["ceil_mode"], include)
    try:
        theirs = AVERAGE[len(case["size"]) - 1](x, *arguments)
    except RuntimeError as error:  # torch 2.10 does not count the padding of volumes
        if "smaller than kernel size" not in str(error):
            raise
        reject()
    ours = centred_avg_pool(x, *arguments)
    assert ours.shape == theirs.shape
    if is_centred(case, theirs.shape):
        torch.testing.assert_close(ours, theirs)


@given(pools(dilated=True))
def test_maximum_against_torch(case: dict[str, Any]) -> None:
    x = torch.randn(2, 2, *case["size"])
    arguments = (case["kernel_size"], case["stride"], case["padding"], case["dilation"], case["ceil_mode"])
    theirs = MAXIMUM[len(case["size"]) - 1](x, *arguments)
    ours = centred_max_pool(x, *arguments)
    assert ours.shape == theirs.shape
    if is_centred(case, theirs.shape):
        assert torch.equal(ours, theirs)


@given(pools(), st.booleans())
def test_flips(case: dict[str, Any], include: bool) -> None:
    """Any window commutes with the flips, at every size."""
    ndim = len(case["size"])
    x = torch.randn(1, 1, *case["size"], dtype=torch.float64)
    arguments = (case["kernel_size"], case["stride"], case["padding"])
    flips = lattice_symmetries(ndim, swaps=False)
    assert_symmetric(lambda y: centred_avg_pool(y, *arguments, case["ceil_mode"], include), x, "map", 1e-12, flips)
    ones = [1] * ndim
    assert_symmetric(lambda y: centred_max_pool(y, *arguments, ones, case["ceil_mode"]), x, "map", 0, flips)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (5, 4, 2), (1, 2, 0), (4, 1, 1)]
)
def test_all_symmetries_at_every_size(kernel_size: int, stride: int, padding: int) -> None:
    """Square windows commute with rotations as well: sizes 1 to 20 against a cycle of others, under generators of all 8."""
    generators = (lambda y: y.flip(2), lambda y: y.rot90(1, (2, 3)))
    for size, ceil_mode in product(range(1, 21), (False, True)):
        sizes = (size, (7 * size) % 20 + 1)
        if min(sizes) + 2 * padding < kernel_size:
            continue
        x = torch.randn(1, 1, *sizes, dtype=torch.float64)
        arguments = ([kernel_size] * 2, [stride] * 2, [padding] * 2)
        for include in (False, True):
            pool = lambda y: centred_avg_pool(y, *arguments, ceil_mode, include)  # noqa: B023, E731 - called at once
            assert_symmetric(pool, x, "map", 1e-12, generators)
        assert_symmetric(lambda y: centred_max_pool(y, *arguments, [1, 1], ceil_mode), x, "map", 0, generators)  # noqa: B023


def test_all_symmetries_in_3d() -> None:
    for sizes in ((4, 5, 6), (6, 6, 6), (3, 3, 8)):
        x = torch.randn(1, 1, *sizes, dtype=torch.float64)
        arguments = ([3] * 3, [2] * 3, [1] * 3)
        assert_symmetric(lambda y: centred_avg_pool(y, *arguments), x, "map", 1e-12)  # noqa: B023
        assert_symmetric(lambda y: centred_max_pool(y, *arguments, [1] * 3), x, "map", 0)  # noqa: B023
        assert_symmetric(lambda y: centred_upsample(y, 2, [2 * n for n in y.shape[2:]]), x, "map", 1e-12)


@given(pools(), st.booleans())
def test_average_of_a_constant(case: dict[str, Any], include: bool) -> None:
    """Where padding does not count, or there is none, it is that constant."""
    padding = [0] * len(case["size"]) if include else case["padding"]
    if any(size + 2 * p < k for size, p, k in zip(case["size"], padding, case["kernel_size"], strict=True)):
        return
    x = torch.full((1, 1, *case["size"]), 3.25, dtype=torch.float64)
    out = centred_avg_pool(x, case["kernel_size"], case["stride"], padding, case["ceil_mode"], include)
    torch.testing.assert_close(out, torch.full_like(out, 3.25))


def test_closed_forms() -> None:
    """By hand: 6 pixels, windows of 3 at stride 2. Torch's sit on the pixels 1 and 3; the centred ones on 1.5 and 3.5."""
    x = torch.tensor([[[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]])
    torch.testing.assert_close(
        centred_avg_pool(x, [3], [2], [0]),
        torch.tensor([[[(1.5 + 3 + 6) / 3, (6 + 12 + 24) / 3]]]),
    )
    assert centred_max_pool(x, [3], [2], [0], [1]).tolist() == [[[8.0, 32.0]]]
    assert centred_max_pool(x, [2], [2], [0], [1]).tolist() == [[[2.0, 8.0, 32.0]]]


def test_gradients_share_ties_evenly() -> None:
    """Where a window lies between pixels, equal maxima get equal gradients, so that training is symmetric, too."""
    x = torch.ones(1, 1, 2, requires_grad=True)
    centred_max_pool(x, [1], [2], [0], [1]).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.5, 0.5]]]


# Upsampling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_factor", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(4,), (4, 5), (4, 5, 3), (97,), (100, 97), (97, 2, 98)])
def test_upsampling_against_interpolate(sizes: tuple[int, ...], scale_factor: int) -> None:
    """Torch's two grids are centred too, at the sizes where their spacing is ``1 / scale_factor``."""
    ndim = len(sizes)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    mode = ("linear", "bilinear", "trilinear")[ndim - 1]
    for target, corners in (
        ([s * scale_factor for s in sizes], False),
        ([(s - 1) * scale_factor + 1 for s in sizes], True),
    ):
        expected = functional.interpolate(x, target, mode=mode, align_corners=corners)
        torch.testing.assert_close(centred_upsample(x, scale_factor, target), expected)


@given(st.integers(1, 12) | st.integers(95, 99), st.integers(1, 12), st.integers(1, 4), st.data())
def test_upsampling_commutes_with_all_symmetries(
    height: int, width: int, scale_factor: int, data: st.DataObject
) -> None:
    x = torch.randn(1, 1, height, width, dtype=torch.float64)
    more = data.draw(st.integers(1, 3 * scale_factor))

    def upsample(y: Tensor) -> Tensor:
        return centred_upsample(y, scale_factor, [(length - 1) * scale_factor + more for length in y.shape[2:]])

    assert_symmetric(upsample, x, "map", 1e-12)


def test_upsampling_a_ramp() -> None:
    """Inside, a linear ramp stays linear, with its value in the middle; outside, the border is repeated."""
    short, long = product(range(1, 8), range(1, 20), (1, 2, 3)), product((97, 98), (1, 190, 200, 300, 301), (1, 2, 3))
    for coarse, fine, scale in (*short, *long):
        out = centred_upsample(torch.arange(float(coarse)).reshape(1, 1, -1), scale, [fine]).flatten()
        for index, value in enumerate(out.tolist()):
            place = (coarse - 1) / 2 + (index - (fine - 1) / 2) / scale
            assert value == pytest.approx(min(max(place, 0), coarse - 1), abs=1e-5)


# Antialiasing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_shape_symmetry_and_constants(size: int, stride: int) -> None:
    x = torch.randn(2, 3, size, size + 3, dtype=torch.float64)
    y = centred_blur_pool(x, [stride, stride])
    assert y.shape == centred_avg_pool(x, [stride] * 2, [stride] * 2, [0, 0], True, False).shape
    assert_symmetric(lambda image: centred_blur_pool(image, [stride, stride]), x, "map", 1e-14)
    torch.testing.assert_close(centred_blur_pool(torch.ones_like(x), [stride, stride]), torch.ones_like(y))


@pytest.mark.parametrize("size", [39, 40])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_the_grid_is_that_of_the_block_means(size: int, stride: int) -> None:
    """A symmetric filter keeps a linear image as it is, so the outputs show where they lie."""
    x = torch.arange(float(size), dtype=torch.float64)[None, None]
    blocks = centred_avg_pool(x, [stride], [stride], [0], True, False)
    torch.testing.assert_close(centred_blur_pool(x, [stride])[..., 3:-3], blocks[..., 3:-3])


def test_weights_are_gaussian() -> None:
    x = torch.zeros(1, 1, 15, dtype=torch.float64)
    x[..., 7] = 1
    offsets = 2.0 * torch.arange(-3, 4, dtype=torch.float64)  # outputs lie at the pixels 1, 3 ... of 15
    y = centred_blur_pool(
        x[..., 1:-1], [2], width=0.5
    )  # 13 pixels: outputs at 0, 2 ... 12, the one at 6 on the impulse
    pixels = torch.arange(-3.0, 4.0, dtype=torch.float64)
    wanted = torch.exp(-0.5 * offsets**2) / torch.exp(-0.5 * pixels**2).sum()
    torch.testing.assert_close(y[0, 0, 2:5], wanted[2:5])


def sampled(line: list[float], count: int, step: int, sigma: float) -> list[float]:
    """Reference: ``count`` Gaussian means of a line, ``step`` apart and centred, pixel by pixel."""
    found = []
    for output in range(count):
        place = (len(line) - 1) / 2 + step * (output - (count - 1) / 2)
        near = [(pixel, abs(pixel - place)) for pixel in range(len(line)) if abs(pixel - place) <= int(3 * sigma) + 0.5]
        shares = [math.exp(-0.5 * (distance / sigma) ** 2) for _, distance in near]
        total = sum(share * line[pixel] for share, (pixel, _) in zip(shares, near, strict=True))
        found.append(total / sum(shares))
    return found


@pytest.mark.parametrize("size", [9, 12, 14])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_are_those_of_the_reference(size: int, kernel: int, stride: int, ceil_mode: bool) -> None:
    x = torch.randn(1, 1, size, dtype=torch.float64)
    options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "ceil_mode": ceil_mode}
    count = functional.max_pool1d(x, **options).shape[-1]
    spread = max(0.6 * stride, math.sqrt((kernel**2 - 1) / 12))
    wanted = sampled(x.flatten().tolist(), count, stride, spread)
    found = blurred_avg_pool(x, [kernel], [stride], [kernel // 2], ceil_mode, 0.6)
    torch.testing.assert_close(found.flatten().tolist(), wanted)
    dense = functional.max_pool1d(x, kernel, 1, kernel // 2)
    wanted = sampled(dense.flatten().tolist(), count, stride, 0.6 * stride)
    found = blurred_max_pool(x, [kernel], [stride], [kernel // 2], [1], ceil_mode, 0.6)
    torch.testing.assert_close(found.flatten().tolist(), wanted)


def test_blur_keeps_the_grid_and_axes_without_stride() -> None:
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    found = centred_blur(x, [3, 1], 0.6)
    for image, blurred in zip(x, found, strict=True):
        for column in range(5):
            wanted = sampled(image[:, column].tolist(), 9, 1, 1.8)
            torch.testing.assert_close(blurred[:, column].tolist(), wanted)
    assert torch.equal(centred_blur(x, [1, 1], 0.6), x)
