"""Sliding windows that lie alike at both ends of every axis, so that an equivariant network stays equivariant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.arguments import int_tuple


class CentredWindowInferer(Inferer):
    """Sliding-window inference for networks from maps to maps, commuting with rotations by 90 degrees and flips.

    MONAI's ``SlidingWindowInferer`` lays its windows from one end of an axis, and the last one flush with the other, so
    a flip moves them. Here they are spread evenly, the same from either end. Where windows overlap, their outputs are
    averaged with Gaussian weights about the windows' centres, in float32 at least. Memory beyond the input and the
    output is that of ``batch_size`` windows, whatever the size of the volume.

    Args:
        roi_size: size of a window, one for all axes or one per axis; an axis that is shorter is taken whole.
        overlap: smallest overlap of neighbouring windows, as a share of the window.
        batch_size: windows that go through the network at once.
        sigma: standard deviation of the Gaussian weights, as a share of the window.
        multiple_of: what the sizes of windows must be multiples of, for networks whose strides must divide them: an axis
            that is shorter than the window is padded with zeros, alike at both ends where it can be.
        inferer: how a batch of windows goes through the network; ``None`` is ``SimpleInferer()``.
        sw_device: where the windows are computed; ``None`` is the input's device.
        device: where the output is gathered; ``None`` is the input's device.

    Raises:
        TypeError: an argument is of the wrong type, or the network returns no tensor.
        ValueError: an argument is out of range.

    Example:
        >>> x = torch.randn(1, 2, 37, 50)
        >>> blur = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        >>> inferer = CentredWindowInferer(roi_size=16, overlap=0.5)
        >>> torch.allclose(inferer(x.flip(2), blur), inferer(x, blur).flip(2), atol=1e-5)
        True
    """

    def __init__(
        self,
        roi_size: int | Sequence[int],
        overlap: float = 0.25,
        batch_size: int = 1,
        sigma: float = 0.125,
        inferer: Inferer | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        multiple_of: int = 1,
    ) -> None:
        super().__init__()
        length = len(roi_size) if isinstance(roi_size, Sequence) else 1
        self.roi_size = int_tuple("roi_size", roi_size, length, minimum=1)
        (self.multiple_of,) = int_tuple("multiple_of", multiple_of, 1, minimum=1)
        if any(size % self.multiple_of for size in self.roi_size):
            raise ValueError(f"roi_size must be a multiple of multiple_of={self.multiple_of}, got {roi_size!r}")
        if not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
            raise ValueError(f"overlap must be a number from 0 to below 1, got {overlap!r}")
        (self.batch_size,) = int_tuple("batch_size", batch_size, 1, minimum=1)
        if not isinstance(sigma, (int, float)) or not sigma > 0:
            raise ValueError(f"sigma must be a positive number, got {sigma!r}")
        self.overlap, self.sigma = overlap, sigma
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.sw_device, self.device = sw_device, device

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Output of ``network`` on ``inputs``, shape ``(N, C, *spatial)``, window by window."""
        inputs = convert_to_tensor(inputs)  # without the metadata, which each window would copy
        spatial = inputs.shape[2:]
        if inputs.numel() == 0:
            raise ValueError(f"inputs must hold at least one pixel, got shape {tuple(inputs.shape)}")
        roi = self.roi_size * len(spatial) if len(self.roi_size) == 1 else self.roi_size
        if len(roi) != len(spatial):
            raise ValueError(f"roi_size={self.roi_size} does not have one size for each of {len(spatial)} spatial axes")
        rests = [-length % self.multiple_of if length < w else 0 for w, length in zip(roi, spatial, strict=True)]
        if any(rests):
            found = self(pad_around(inputs, rests), network, *args, **kwargs)
            for axis, (rest, length) in enumerate(zip(rests, spatial, strict=True), start=2):
                found = found.narrow(axis, rest // 2, length)
            return found
        window = [min(size, length) for size, length in zip(roi, spatial, strict=True)]
        starts = [window_starts(size, w, self.overlap) for size, w in zip(spatial, window, strict=True)]
        weights = [_bell(w, self.sigma) for w in window]
        places: list[tuple[int | slice, ...]] = [
            (sample, slice(None), *(slice(start, start + w) for start, w in zip(corner, window, strict=True)))
            for sample in range(len(inputs))
            for corner in itertools.product(*starts)
        ]
        output, given = None, inputs.dtype
        for index in range(0, len(places), self.batch_size):
            chosen = places[index : index + self.batch_size]
            batch = torch.stack([inputs[place] for place in chosen])
            found = self.inferer(batch.to(self.sw_device or inputs.device), network, *args, **kwargs)
            if not isinstance(found, Tensor):
                raise TypeError(
                    f"the network must give one map per window, got {type(found).__name__}; is it in eval mode?"
                )
            if found.shape[2:] != batch.shape[2:]:
                raise ValueError(
                    f"the network gives maps of {tuple(found.shape[2:])} for windows of {tuple(batch.shape[2:])}; "
                    "sliding windows need maps of the input's size"
                )
            if output is None:
                target, dtype = self.device or inputs.device, torch.promote_types(found.dtype, torch.float32)
                output = torch.zeros((len(inputs), found.shape[1], *spatial), dtype=dtype, device=target)
                given = found.dtype
            found = _scale(found.to(output), weights)
            for place, part in zip(chosen, found, strict=True):
                output[place] += part
        assert output is not None
        totals = [torch.zeros(size, dtype=torch.float64) for size in spatial]
        for total, weight, begins in zip(totals, weights, starts, strict=True):
            for start in begins:
                total[start : start + len(weight)] += weight
        return _scale(output, [1 / total for total in totals]).to(given)


class FileInferer(Inferer):
    """Another inferer for batches of one file each: what fails on a file is kept as that file's error.

    Args:
        inferer: the other one.

    Example:
        >>> inferer = FileInferer(CentredWindowInferer(roi_size=8))
        >>> inferer(torch.zeros(1, 1, 9, 9), torch.nn.MaxPool2d(2)).shape
        torch.Size([1, 1, 9, 9])
        >>> inferer.error.startswith("ValueError: the network gives maps of (4, 4) for windows of (8, 8)")
        True
    """

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer, self.error = inferer, ""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Output of the other inferer; where it fails, one channel of zeros, and the reason in ``error``."""
        self.error = ""
        try:
            found: Tensor = self.inferer(inputs, network, *args, **kwargs)
        except Exception as problem:  # out of memory, for example: the files to come may be smaller
            self.error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
            found = convert_to_tensor(inputs)[:, :1] * 0
        return found


def pad_around(x: Tensor, amounts: Sequence[int]) -> Tensor:
    """Pad the last axes by zeros, half of the amount at each end; of an odd amount, one more at the end.

    Example:
        >>> pad_around(torch.ones(3), [3])
        tensor([0., 1., 1., 1., 0., 0.])
    """
    return functional.pad(x, [end for amount in reversed(amounts) for end in (amount // 2, amount - amount // 2)])


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First positions of windows that cover an axis, spread evenly and the same from either end.

    Example:
        >>> window_starts(10, 4, overlap=0.25)
        [0, 3, 6]
        >>> window_starts(11, 4, overlap=0.25)  # three windows would put the middle one between pixels
        [0, 2, 5, 7]
    """
    rest = size - window
    if rest == 0:
        return [0]
    count = 1 + math.ceil(rest / max(1, int(window * (1 - overlap))))
    if count % 2 == 1 and rest % 2 == 1:
        count += 1
    near = [round(index * rest / (count - 1)) for index in range((count + 1) // 2)]
    return near + [rest - start for start in reversed(near[: count // 2])]


def _bell(length: int, sigma: float) -> Tensor:
    offsets = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    # Not below what float32 can hold of the product of three axes, or the ends of a volume would have no weight.
    return torch.exp(-0.5 * (offsets / (sigma * length)).square()).clamp(min=1e-4)


def _scale(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply ``(N, C, *spatial)`` in place by a factor along each spatial axis."""
    for axis, factor in enumerate(factors):
        x *= factor.to(x).reshape([-1 if other == axis + 2 else 1 for other in range(x.dim())])
    return x
