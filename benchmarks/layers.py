"""Single layers: the ring algorithm against the dense one, the published packages and plain convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers import escnn_layer, peer_layer
from benchmarks.roofline import least_times, measured_peaks
from benchmarks.timing import Effort, interleaved
from monai_sre.layers import SREHarmonicConv1d, SREHarmonicConv2d, SREHarmonicConv3d
from monai_sre.ops import expand_kernel, radial_basis, sre_conv

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
#: Peers that are timed in 2-D only.
PLANAR = ["GMR-Conv", "escnn"]
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerRow:
    """One row: a layer that keeps channels and size, and how many times faster it should be than SRE-Conv and plain 3."""

    shape: tuple[int, ...]
    kernel: int
    target_official: float
    target_plain: float
    inference: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape) - 2

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def name(self) -> str:
        return f"{', '.join(map(str, self.shape))}, k={self.kernel}{', inference' if self.inference else ''}"


LAYERS = (
    LayerRow((32, 64, 32, 32), 9, 5.0, 1.0),
    LayerRow((32, 128, 16, 16), 9, 6.0, 1.0),
    LayerRow((32, 256, 8, 8), 5, 4.0, 1.5),
    LayerRow((32, 512, 4, 4), 5, 4.0, 1.2),
    LayerRow((4, 64, 32, 32, 32), 5, 12.0, 3.0),
    LayerRow((4, 128, 16, 16, 16), 5, 12.0, 3.0),
    LayerRow((2, 32, 32, 32, 32), 7, 10.0, 1.5),
    LayerRow((1, 32, 96, 96, 96), 5, 10.0, 2.0, inference=True),
)


def candidates(
    channels: int, kernel: int, ndim: int, names: Sequence[str], rings: int | None = None
) -> dict[str, tuple[Layer, list[Tensor]]]:
    """Layers by name, each as a function with the parameters it learns; peers that are not installed are left out.

    Ours are named after the algorithm, and after what their basis is where it is not the published one (see
    :func:`basis_of`). Each is checked against the dense algorithm in float64.
    """
    found: dict[str, tuple[Layer, list[Tensor]]] = {}
    for name in names:
        if name == "plain 3":
            weight = torch.randn(channels, channels, *(3,) * ndim).mul_(0.02).requires_grad_()
            found[name] = (lambda x, w=weight: CONVOLUTIONS[ndim - 1](x, w, padding=1), [weight])  # type: ignore[misc]
        elif name == "harmonic":
            made = (SREHarmonicConv1d, SREHarmonicConv2d, SREHarmonicConv3d)[ndim - 1]
            harmonic = made(channels, channels, kernel, padding=kernel // 2, bias=False)
            found[name] = (harmonic, list(harmonic.parameters()))
        elif name in ("SRE-Conv", "GMR-Conv", "escnn"):
            package = name.replace("-", "_")
            layer = escnn_layer(channels, kernel) if name == "escnn" else peer_layer(package, ndim, channels, kernel)
            if layer is not None:
                found[name] = (layer, [p for p in layer.parameters() if p.requires_grad])
        else:
            algorithm, _, kind = name.partition(" ")
            basis = basis_of(kind or "band", (kernel,) * ndim, rings)
            found[name] = radial_layer(channels, channels, basis, algorithm)
            _check(*found[name], basis)
    return found


def basis_of(kind: str, kernel: tuple[int, ...], rings: int | None = None) -> Tensor:
    """The basis of a profile, or for ``"spaced"`` bands on voxels twice as long along the first axis, with as many rings."""
    if kind == "spaced":
        rings = len(radial_basis(kernel, rings))
        return radial_basis(kernel, rings, spacing=(2.0, *(1.0,) * (len(kernel) - 1)))
    return radial_basis(kernel, rings, kind)


def radial_layer(channels: int, out_channels: int, basis: Tensor, algorithm: str) -> tuple[Layer, list[Tensor]]:
    """A radial convolution that keeps the size, as a function with its weights."""
    weight = torch.randn(out_channels, channels, len(basis)).mul_(0.02).requires_grad_()
    basis = basis.float()

    def run(x: Tensor) -> Tensor:
        return sre_conv(x, weight, basis, padding=basis.shape[1] // 2, algorithm=algorithm)

    return run, [weight]


def _check(layer: Layer, parameters: list[Tensor], basis: Tensor) -> None:
    ndim, (weight,) = basis.dim() - 1, parameters
    x = torch.randn(2, weight.shape[1], *(12,) * ndim)
    exact = CONVOLUTIONS[ndim - 1](
        x.double(), expand_kernel(weight.detach().double(), basis), padding=basis.shape[1] // 2
    )
    error = float((layer(x).detach().double() - exact).norm() / exact.norm())
    assert error < 1e-5, f"a layer with a basis of {tuple(basis.shape)} differs from the dense algorithm by {error}"


def layer_step(
    layer: Layer, parameters: list[Tensor], x: Tensor, grad: Tensor, inference: bool = False
) -> Callable[[], Any]:
    """The layer and, unless ``inference``, its backward by input and weights."""

    def run() -> Any:
        if inference:
            with torch.no_grad():
                return layer(x)
        return torch.autograd.grad(layer(x), [x, *parameters], grad)

    return run


def timed_layers(
    layers: dict[str, tuple[Layer, list[Tensor]]],
    shape: tuple[int, ...],
    out_channels: int,
    inference: bool,
    effort: Effort,
) -> dict[str, dict[str, float]]:
    """Times of layers that keep the size, on one input."""
    x = torch.randn(shape).requires_grad_(not inference)
    grad = torch.randn(shape[0], out_channels, *shape[2:])
    return interleaved({name: layer_step(*layer, x, grad, inference) for name, layer in layers.items()}, effort)


def suite_layers(effort: Effort) -> list[dict[str, Any]]:
    """The table of targets, with the least time that this machine could take for the ring algorithm."""
    rows = []
    peaks = measured_peaks(effort)
    for row in LAYERS[2:4] if effort.quick else LAYERS:
        names = ["ring", "ring gaussian", "ring spaced", "harmonic", "auto", "dense", "SRE-Conv", "plain 3"]
        names += PLANAR * (row.ndim == 2)
        layers = candidates(row.channels, row.kernel, row.ndim, names)
        times = timed_layers(layers, row.shape, row.channels, row.inference, effort)
        rows.append(
            {
                "shape": list(row.shape),
                "kernel": row.kernel,
                "inference": row.inference,
                "times": times,
                "target_official": row.target_official,
                "target_plain": row.target_plain,
                "peaks": peaks,
                "least_ms": least_times(row.shape, (row.kernel,) * row.ndim, row.inference, peaks),
            }
        )
        print(row.name, {name: round(value["ms"], 2) for name, value in times.items()}, flush=True)
    return rows


def suite_growth(effort: Effort) -> list[dict[str, Any]]:
    """Cost against kernel size, with one ring per unit of radius and with the number of rings held at 4."""
    rows = []
    for shape, kernels in (((16, 64, 32, 32), (3, 5, 7, 9, 11, 13, 15)), ((1, 32, 32, 32, 32), (3, 5, 7, 9))):
        for kernel in kernels[::3] if effort.quick else kernels:
            ndim = len(shape) - 2
            names = ["ring", "dense", "plain 3", "SRE-Conv"] + PLANAR * (ndim == 2)
            layers = candidates(shape[1], kernel, ndim, names)
            if kernel > 6:
                layers["ring, 4 rings"] = candidates(shape[1], kernel, ndim, ["ring"], rings=4)["ring"]
            times = timed_layers(layers, shape, shape[1], False, effort)
            rows.append({"shape": list(shape), "kernel": kernel, "times": times})
            print(shape, kernel, {name: round(value["ms"], 2) for name, value in times.items()}, flush=True)
    return rows
