"""Whole networks: the training step of ours, of the published packages and of plain kernels of size 3.

Every network of a row has the same blocks, widths, strides and input. What differs beside the kernels:

* the stem: radial of 5 x 5 (2-D) or 3 x 3 x 3 (3-D), against plain of size 3. The 3-D networks of the packages convolve with
  a (3, 7, 7) stem, of which only the 19 taps within 3 x 3 x 3 are not zero;
* MONAI's plain ResNet strides within its convolutions, the radial ones pool before them.

That ours is the network of SRE-Conv and GMR-Conv is checked: with their weights it has their logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers import peer
from benchmarks.timing import Effort, interleaved
from monai_sre.nets import SREResNet, load_sre_checkpoint

WIDTH = 64


@dataclass(frozen=True)
class NetworkRow:
    """One row: the task, and how many times faster ours should be than SRE-Conv's and than plain kernels."""

    name: str
    shape: tuple[int, ...]
    classes: int
    kernel_size: tuple[int, ...]
    target_official: float
    target_plain: float

    @property
    def ndim(self) -> int:
        return len(self.shape) - 2

    def input(self) -> Tensor:
        return torch.randn(self.shape)


NETWORKS = (
    NetworkRow("SRE-ResNet18 (9, 9, 5, 5)", (32, 3, 32, 32), 9, (9, 9, 5, 5), 4.5, 1.0),
    NetworkRow("SRE-R3D-18, kernel 5", (4, 1, 32, 32, 32), 11, (5, 5, 5, 5), 10.0, 2.0),
)
NAMES = ("auto", "harmonic", "dense", "SRE-Conv", "GMR-Conv", "plain 3")
PLAIN = "plain 3"
#: What :func:`resnet` gives beside plain kernels of 3; the bundles for classification take energies.
KINDS: dict[str, dict[str, Any]] = {
    "radial 5": {"kernel_size": 5},
    "energies 5": {"kernel_size": 5, "conv": "harmonic"},
    "radial 9, 9, 5, 5": {"kernel_size": (9, 9, 5, 5)},
}


def resnet(kind: str, ndim: int, in_channels: int, classes: int, width: int) -> nn.Module:
    """A ResNet18 with a stem of stride 1 and no max-pooling: one of :data:`KINDS`, or :data:`PLAIN`."""
    if kind != PLAIN:
        return SREResNet(ndim, in_channels, classes, width=width, **KINDS[kind])
    network: nn.Module = ResNet(
        "basic",
        [2, 2, 2, 2],
        [width, 2 * width, 4 * width, 8 * width],
        spatial_dims=ndim,
        n_input_channels=in_channels,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        num_classes=classes,
    )
    return network


def build(row: NetworkRow, name: str) -> nn.Module | None:
    """A network of a row in training mode; ``None`` where its package is missing."""
    if name == PLAIN:
        return resnet(PLAIN, row.ndim, row.shape[1], row.classes, WIDTH)
    if name not in ("SRE-Conv", "GMR-Conv"):
        stem = 3 if row.ndim == 3 else 5
        return SREResNet(
            row.ndim,
            row.shape[1],
            row.classes,
            kernel_size=row.kernel_size,
            stem_kernel_size=stem,
            width=WIDTH,
            algorithm="auto" if name == "harmonic" else name,
            conv="harmonic" if name == "harmonic" else "radial",
        )
    short = name[:3].lower()
    module = peer(name.replace("-", "_"), f"{short}_resnet" if row.ndim == 2 else f"{short}_resnet_3d")
    if module is None:
        return None
    options: dict[str, Any] = {"num_classes": row.classes, f"{short}_conv_size": list(row.kernel_size)}
    if row.ndim == 2:
        options |= {"inplanes": WIDTH, "skip_first_maxpool": True}
    else:
        options |= {"in_channels": row.shape[1]}
    network: nn.Module = getattr(module, f"{short}_resnet18" if row.ndim == 2 else f"{short}_r3d_18")(**options)
    return network


def training_step(network: nn.Module, x: Tensor, classes: int, maps: bool = False) -> Callable[[], None]:
    """Forward, cross-entropy (of each image, or position of ``maps``), backward, and a step of SGD."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    size = (len(x), *x.shape[2:]) if maps else (len(x),)
    target = (torch.arange(math.prod(size), device=x.device) % classes).reshape(size)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(x), target).backward()
        optimizer.step()

    return step


def check(row: NetworkRow, networks: dict[str, nn.Module]) -> None:
    """Assert that ours, with the weights of each published network, has its logits."""
    x = row.input()[:2]
    for name in {"SRE-Conv", "GMR-Conv"} & set(networks):
        ours = build(row, "auto")
        assert ours is not None
        load_sre_checkpoint(ours, networks[name].state_dict())
        with torch.no_grad():
            logits, expected = ours(x), networks[name](x)
        error = float((logits - expected).norm() / expected.norm())
        assert error < 1e-4, f"our logits differ from those of {name} by {error}"


def suite_networks(effort: Effort) -> list[dict[str, Any]]:
    """Training steps of all networks of each row."""
    rows = []
    for row in NETWORKS[:1] if effort.quick else NETWORKS:
        built = {name: build(row, name) for name in NAMES}
        networks = {name: network for name, network in built.items() if network is not None}
        check(row, networks)
        x = row.input()
        steps = {name: training_step(network, x, row.classes) for name, network in networks.items()}
        times = interleaved(steps, effort)
        rows.append(
            {
                "network": row.name,
                "shape": list(row.shape),
                "times": times,
                "parameters": {
                    name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
                },
                "target_official": row.target_official,
                "target_plain": row.target_plain,
            }
        )
        print(row.name, {name: round(value["ms"]) for name, value in times.items()}, flush=True)
    return rows
