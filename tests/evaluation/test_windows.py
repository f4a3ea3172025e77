"""Sliding windows that lie alike at both ends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from monai_sre.evaluation import CentredWindowInferer
from monai_sre.evaluation.windows import window_starts
from monai_sre.nets import SREUNet
from tests.testers import assert_symmetric, relative_error


@given(size=st.integers(1, 200), window=st.integers(1, 60), overlap=st.floats(0, 0.9))
def test_windows_cover_the_axis_alike_from_both_ends(size: int, window: int, overlap: float) -> None:
    window = min(size, window)
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert [size - window - start for start in reversed(starts)] == starts
    step = max(1, int(window * (1 - overlap)))
    assert all(0 < after - before <= step for before, after in itertools.pairwise(starts))
    assert len(starts) <= 3 + (size - window) // step  # MONAI's number, one for symmetry, one for rounding


class Recorder(nn.Module):
    """Doubles its input, and remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.cat([2 * x, -x], dim=1)


@pytest.mark.parametrize(
    ("size", "roi", "window"),
    [((23, 40), 16, (16, 16)), ((23, 9), 16, (16, 9)), ((5, 6, 7), (4, 8, 3), (4, 6, 3)), ((11,), 4, (4,))],
)
def test_a_pointwise_network_is_untouched(size: tuple[int, ...], roi: Any, window: tuple[int, ...]) -> None:
    """Weights add to one everywhere; at most ``batch_size`` windows of the window's size go in at once."""
    x, network = torch.randn(3, 1, *size), Recorder()
    out = CentredWindowInferer(roi, overlap=0.4, batch_size=2)(x, network)
    torch.testing.assert_close(out, torch.cat([2 * x, -x], dim=1))
    assert {shape[1:] for shape in network.shapes} == {(1, *window)}
    assert max(shape[0] for shape in network.shapes) == 2


def test_an_equivariant_network_stays_so() -> None:
    """At odd, even and unequal sizes; with MONAI's windows it does not."""
    network = SREUNet(2, 1, 2, channels=(3, 4), kernel_size=3, norm="instance").double().eval()
    for size in ((30, 30), (31, 31), (29, 34)):
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        ours = CentredWindowInferer(12, overlap=0.3, batch_size=4)
        with torch.no_grad():
            assert_symmetric(lambda image, windows=ours: windows(image, network), x, "map", 1e-12)
            theirs = SlidingWindowInferer(12, 4, overlap=0.3, mode="gaussian")
            assert relative_error(theirs(x.flip(2), network), theirs(x, network).flip(2)) > 1e-3


def test_close_to_the_network_on_the_whole_image() -> None:
    """Of a network that sees 3 pixels far, only the surroundings of the windows' edges may change."""
    network = nn.Conv2d(1, 2, 7, padding=3)
    x = torch.randn(1, 1, 50, 50)
    out, whole = CentredWindowInferer(32, overlap=0.5)(x, network), network(x)
    assert relative_error(out, whole) < 0.02
    assert relative_error(out[..., :9, :9], whole[..., :9, :9]) < 1e-5  # the next window begins at 9


def test_devices_and_inferer() -> None:
    calls = []

    def inferer(x: Tensor, network: nn.Module, scale: float) -> Tensor:
        calls.append(x.shape)
        return scale * network(x)

    windows = CentredWindowInferer(4, inferer=inferer, sw_device="cpu", device="cpu")  # type: ignore[arg-type]
    x = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(windows(x, nn.Identity(), scale=3.0), 3 * x)
    assert calls == [(1, 1, 4, 4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_gathered_in_float32(dtype: torch.dtype) -> None:
    """In float16 the weights at a window's corner are zero."""
    found = CentredWindowInferer(16)(torch.ones(1, 1, 24, 24, 24, dtype=dtype), nn.Identity())
    assert found.dtype == dtype
    assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi_size": 0}, "roi_size must be an integer >= 1"),
        ({"overlap": 1.0}, "overlap must be a number from 0 to below 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"sigma": 0.0}, "sigma must be a positive number, got 0.0"),
        ({"sigma": float("nan")}, "sigma must be a positive number, got nan"),
        ({"overlap": "0.5"}, "overlap must be a number from 0 to below 1, got '0.5'"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CentredWindowInferer(**{"roi_size": 4, **options})


@pytest.mark.parametrize("size", [(13, 30), (14, 9), (16, 16), (40, 13)])
def test_windows_of_a_multiple(size: tuple[int, int]) -> None:
    shapes = set()

    def network(x: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(x.shape[2:]))
        return 2 * x

    x = torch.randn(2, 1, *size)
    found = CentredWindowInferer(16, multiple_of=4)(x, network)
    torch.testing.assert_close(found, 2 * x)
    assert all(length % 4 == 0 for shape in shapes for length in shape)
    with pytest.raises(ValueError, match="roi_size must be a multiple of multiple_of=4, got 15"):
        CentredWindowInferer(15, multiple_of=4)


def test_what_has_no_map() -> None:
    with pytest.raises(TypeError, match=r"roi_size must be an integer >= 1.*got 8\.0"):
        CentredWindowInferer(8.0)  # type: ignore[arg-type]
    for size in ((0, 1, 8, 8), (1, 1, 8, 0)):
        with pytest.raises(ValueError, match=r"inputs must hold at least one pixel, got shape \("):
            CentredWindowInferer(4)(torch.zeros(size), nn.Identity())
    deep = SREUNet(2, 1, 2, (2, 2, 2), kernel_size=3, deep_supervision=True)
    with pytest.raises(TypeError, match="the network must give one map per window, got list; is it in eval mode"):
        CentredWindowInferer(8)(torch.randn(1, 1, 8, 8), deep)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the network gives maps of \(2, 2\) for windows of \(4, 4\)"):
        CentredWindowInferer(4)(torch.randn(1, 1, 8, 8), nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"roi_size=\(4, 4\) does not have one size for each of 3 spatial axes"):
        CentredWindowInferer((4, 4))(torch.randn(1, 1, 8, 8, 8), nn.Identity())


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.06])
def test_narrow_windows_leave_no_gap(sigma: float) -> None:
    """Where the weights of three axes would vanish in float32."""
    found = CentredWindowInferer(8, 0.25, sigma=sigma)(torch.ones(1, 1, 20, 20, 20), lambda x: x)
    torch.testing.assert_close(found, torch.ones_like(found))
