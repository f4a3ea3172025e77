"""How exactly converted networks commute with the lattice symmetries, beside swapping their convolutions alone.

    python -m benchmarks.conversion [--slow]

writes ``benchmarks/results/conversion.json`` and ``conversion.md``. Errors are those of :func:`monai_sre.equivariance_error`,
the largest over all sizes and over the symmetries that generate the group (of converted networks in float64 all 8 in 2-D).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import monai
import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import monai_sre
from monai_sre import convert_to_sre, equivariance_error
from monai_sre.layers import SREConv1d, SREConv2d, SREConv3d

RESULTS = Path(__file__).parent / "results"

Sizes = dict[int, tuple[tuple[int, ...], ...]]
_ANY: Sizes = {2: ((33, 40), (48, 48), (37, 45)), 3: ((17, 20, 23), (16, 16, 16), (19, 19, 19))}
_BY_4: Sizes = {2: ((32, 40), (44, 28), (36, 36)), 3: ((16, 20, 12), (16, 16, 16))}
_BY_8: Sizes = {2: ((32, 40), (48, 24), (24, 24)), 3: ((16, 24, 32), (16, 16, 16))}
_BY_16: Sizes = {2: ((32, 48), (64, 64)), 3: ((16, 32, 48), (32, 32, 32))}
_LARGE: Sizes = {2: ((65, 72), (64, 64), (67, 81)), 3: ((33, 36, 32), (37, 37, 37))}
_BASIC: Sizes = {2: ((33, 40), (48, 48), (37, 45)), 3: ((33, 34, 36), (32, 32, 32))}
_HIGH_RES: Sizes = {2: ((17, 20), (18, 18)), 3: ((9, 10, 12),)}
_FLEXIBLE: Sizes = {2: ((65, 72), (64, 64)), 3: ((32, 48, 64), (64, 64, 64))}
_FLEXIBLE_RESNET: Sizes = {2: ((63, 32), (64, 64)), 3: ((31, 64, 32),)}

_RESNET: dict[str, Any] = {"n_input_channels": 1, "num_classes": 3, "widen_factor": 0.125}
_UNET: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "channels": (4, 8, 16), "strides": (2, 2)}
_BASIC_UNET: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "features": (4, 4, 8, 8, 16, 4)}
_SEGRESNET: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "init_filters": 8, "blocks_down": (1, 1, 1)}
_SEGRESNET["blocks_up"] = (1, 1)
_DYNUNET: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "kernel_size": (3,) * 4, "strides": (1, 2, 2, 2)}
_DYNUNET |= {"upsample_kernel_size": (2,) * 3, "filters": (4, 8, 16, 16), "res_block": True}
_DYNUNET |= {"deep_supervision": True, "deep_supr_num": 2}
_CHANNELS = {"in_channels": 1, "out_channels": 2}

#: Networks of MONAI, as narrow as they come: how each is made, and sizes that it takes, even, odd and unequal where it does.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Sizes]] = {
    "ResNet18": (partial(nets.resnet18, conv1_t_stride=2, **_RESNET), _ANY),
    "ResNet18 shortcut A": (partial(nets.resnet18, shortcut_type="A", **_RESNET), _ANY),
    "ResNet50": (partial(nets.resnet50, **_RESNET), _ANY),
    "DenseNet121": (partial(nets.DenseNet121, in_channels=1, out_channels=3, init_features=8, growth_rate=4), _LARGE),
    "SEResNet50": (partial(nets.SEResNet50, in_channels=1, num_classes=3), _LARGE),
    "EfficientNet-b0": (
        partial(nets.EfficientNetBN, "efficientnet-b0", pretrained=False, in_channels=1, num_classes=3),
        _LARGE,
    ),
    "UNet": (partial(nets.UNet, **_UNET), _BY_4),
    "UNet residual": (partial(nets.UNet, num_res_units=2, **_UNET), _BY_4),
    "BasicUNet": (partial(nets.BasicUNet, **_BASIC_UNET), _BASIC),
    "BasicUNet pixelshuffle": (partial(nets.BasicUNet, upsample="pixelshuffle", **_BASIC_UNET), _BASIC),
    "BasicUNet nontrainable": (partial(nets.BasicUNet, upsample="nontrainable", **_BASIC_UNET), _BASIC),
    "AttentionUnet": (partial(nets.AttentionUnet, **_UNET), _BY_4),
    "SegResNet": (partial(nets.SegResNet, **_SEGRESNET), _BY_4),
    "SegResNet deconv": (partial(nets.SegResNet, upsample_mode="deconv", **_SEGRESNET), _BY_4),
    "SegResNet pixelshuffle": (partial(nets.SegResNet, upsample_mode="pixelshuffle", **_SEGRESNET), _BY_4),
    "DynUNet": (partial(nets.DynUNet, **_DYNUNET), _BY_8),
    "VNet": (partial(nets.VNet, **_CHANNELS), _BY_16),
    "HighResNet": (partial(nets.HighResNet, acti_type="leakyrelu", **_CHANNELS), _HIGH_RES),
    "FlexibleUNet EfficientNet": (
        partial(nets.FlexibleUNet, backbone="efficientnet-b0", decoder_channels=(16, 8, 8, 4, 4), **_CHANNELS),
        _FLEXIBLE,
    ),
    "FlexibleUNet ResNet": (
        partial(nets.FlexibleUNet, backbone="resnet10", decoder_channels=(16, 8, 8, 4, 4), **_CHANNELS),
        _FLEXIBLE_RESNET,
    ),
    "AutoEncoder": (partial(nets.AutoEncoder, channels=(4, 8, 8), strides=(2, 2, 2), **_CHANNELS), _ANY),
    "AutoEncoder residual": (
        partial(
            nets.AutoEncoder,
            channels=(4, 8),
            strides=(2, 2),
            num_res_units=2,
            inter_channels=[8, 8],
            inter_dilations=[1, 2],
            **_CHANNELS,
        ),
        _ANY,
    ),
}
#: Measured in 3-D too without ``--slow``.
QUICK = ("ResNet18", "UNet", "SegResNet", "AutoEncoder")


def swap_layers(network: nn.Module) -> nn.Module:
    """Radial kernels in place of odd convolutions, with their strides and paddings as they are; nothing else is touched."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or any(k % 2 == 0 for k in child.kernel_size):
                continue
            kind = (SREConv1d, SREConv2d, SREConv3d)[len(child.kernel_size) - 1]
            layer = kind(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                child.stride,
                child.padding,
                child.dilation,
                child.groups,
                child.bias is not None,
            )
            setattr(parent, name, layer)
    return network


def randomise(network: nn.Module) -> nn.Module:
    """Random biases and statistics, so that no term vanishes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


def measure(slow: bool) -> list[dict[str, Any]]:
    """One row per network and number of spatial axes."""
    rows = []
    for name, (make, sizes) in NETWORKS.items():
        for ndim in (2, 3):
            if not slow and ndim == 3 and name not in QUICK:
                continue
            row: dict[str, Any] = {"network": name, "spatial_dims": ndim, "sizes": [list(size) for size in sizes[ndim]]}
            torch.manual_seed(0)
            swapped = swap_layers(randomise(make(spatial_dims=ndim)))
            torch.manual_seed(0)
            converted = convert_to_sre(randomise(make(spatial_dims=ndim)), verify=False)
            for kind, network, dtype, transforms in (
                ("naive", swapped, torch.float64, "generators"),
                ("float64", converted, torch.float64, "lattice" if ndim == 2 else "generators"),
                ("float32", converted, torch.float32, "generators"),
            ):
                network.to(dtype)
                row[kind] = max(
                    max(equivariance_error(network, torch.randn(1, 1, *size, dtype=dtype), transforms).values())
                    for size in sizes[ndim]
                )
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| network | axes | sizes | layers swapped | converted, float64 | converted, float32 |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        sizes = ", ".join("x".join(map(str, size)) for size in row["sizes"])
        errors = " | ".join(f"{row[name]:.0e}" for name in ("naive", "float64", "float32"))
        lines.append(f"| {row['network']} | {row['spatial_dims']} | {sizes} | {errors} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="also 3-D networks that take long")
    rows = measure(parser.parse_args().slow)
    machine = {"torch": torch.__version__, "monai": monai.__version__, "monai_sre": monai_sre.__version__}
    machine |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "conversion.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (RESULTS / "conversion.md").write_text(table(rows))


if __name__ == "__main__":
    main()
