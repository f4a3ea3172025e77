"""MONAI's networks, as narrow as they come: what the converter is tested on, and ``benchmarks.conversion`` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.networks import nets
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One network of MONAI.

    Attributes:
        name: shown in tests and tables.
        build: makes it for a number of spatial axes, with one input channel.
        sizes: spatial sizes that it accepts, by number of spatial axes: even, odd and unequal where it takes them.
        slow: the numbers of spatial axes for which it takes long.
    """

    name: str
    build: Callable[[int], nn.Module]
    sizes: dict[int, tuple[tuple[int, ...], ...]]
    slow: tuple[int, ...] = (3,)


_ANY = {2: ((33, 40), (48, 48), (37, 45)), 3: ((17, 20, 23), (16, 16, 16), (19, 19, 19))}
_BY_4 = {2: ((32, 40), (44, 28), (36, 36)), 3: ((16, 20, 12), (16, 16, 16))}
_BY_8 = {2: ((32, 40), (48, 24), (24, 24)), 3: ((16, 24, 32), (16, 16, 16))}
_BY_16 = {2: ((32, 48), (64, 64)), 3: ((16, 32, 48), (32, 32, 32))}
_LARGE = {2: ((65, 72), (64, 64), (67, 81)), 3: ((33, 36, 32), (37, 37, 37))}
_BASIC = {2: ((33, 40), (48, 48), (37, 45)), 3: ((33, 34, 36), (32, 32, 32))}

ARCHITECTURES = (
    Architecture(
        "ResNet18",
        lambda d: nets.resnet18(
            spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.125, conv1_t_stride=2
        ),
        _ANY,
        (),
    ),
    Architecture(
        "ResNet18 shortcut A",
        lambda d: nets.resnet18(
            spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.125, shortcut_type="A"
        ),
        _ANY,
    ),
    Architecture(
        "ResNet50",
        lambda d: nets.resnet50(spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.125),
        _ANY,
    ),
    Architecture(
        "DenseNet121",
        lambda d: nets.DenseNet121(spatial_dims=d, in_channels=1, out_channels=3, init_features=8, growth_rate=4),
        _LARGE,
    ),
    Architecture("SEResNet50", lambda d: nets.SEResNet50(spatial_dims=d, in_channels=1, num_classes=3), _LARGE, (2, 3)),
    Architecture(
        "EfficientNet-b0",
        lambda d: nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1, num_classes=3
        ),
        _LARGE,
    ),
    Architecture("UNet", lambda d: nets.UNet(d, 1, 2, channels=(4, 8, 16), strides=(2, 2)), _BY_4, ()),
    Architecture(
        "UNet residual",
        lambda d: nets.UNet(d, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2),
        _BY_4,
    ),
    Architecture("BasicUNet", lambda d: nets.BasicUNet(d, 1, 2, features=(4, 4, 8, 8, 16, 4)), _BASIC),
    Architecture(
        "BasicUNet pixelshuffle",
        lambda d: nets.BasicUNet(d, 1, 2, features=(4, 4, 8, 8, 16, 4), upsample="pixelshuffle"),
        _BASIC,
    ),
    Architecture(
        "BasicUNet nontrainable",
        lambda d: nets.BasicUNet(d, 1, 2, features=(4, 4, 8, 8, 16, 4), upsample="nontrainable"),
        _BASIC,
    ),
    Architecture("AttentionUnet", lambda d: nets.AttentionUnet(d, 1, 2, channels=(4, 8, 16), strides=(2, 2)), _BY_4),
    Architecture("SegResNet", lambda d: nets.SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)), _BY_4, ()),
    Architecture(
        "SegResNet deconv",
        lambda d: nets.SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="deconv"),
        _BY_4,
    ),
    Architecture(
        "SegResNet pixelshuffle",
        lambda d: nets.SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="pixelshuffle"),
        _BY_4,
    ),
    Architecture(
        "DynUNet",
        lambda d: nets.DynUNet(
            d,
            1,
            2,
            kernel_size=(3, 3, 3, 3),
            strides=(1, 2, 2, 2),
            upsample_kernel_size=(2, 2, 2),
            filters=(4, 8, 16, 16),
            deep_supervision=True,
            deep_supr_num=2,
            res_block=True,
        ),
        _BY_8,
    ),
    Architecture("VNet", lambda d: nets.VNet(d, 1, 2), _BY_16, (3,)),
    Architecture(
        "HighResNet",
        lambda d: nets.HighResNet(d, 1, 2, acti_type="leakyrelu"),
        {2: ((17, 20), (18, 18)), 3: ((9, 10, 12),)},
    ),
    Architecture(
        "FlexibleUNet EfficientNet",
        lambda d: nets.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=d, decoder_channels=(16, 8, 8, 4, 4)),
        {2: ((65, 72), (64, 64)), 3: ((32, 48, 64), (64, 64, 64))},
    ),
    Architecture(
        "FlexibleUNet ResNet",
        lambda d: nets.FlexibleUNet(1, 2, "resnet10", spatial_dims=d, decoder_channels=(16, 8, 8, 4, 4)),
        {2: ((63, 32), (64, 64)), 3: ((31, 64, 32),)},
        (2, 3),
    ),
    Architecture("AutoEncoder", lambda d: nets.AutoEncoder(d, 1, 2, channels=(4, 8, 8), strides=(2, 2, 2)), _ANY, ()),
    Architecture(
        "AutoEncoder residual",
        lambda d: nets.AutoEncoder(
            d, 1, 2, channels=(4, 8), strides=(2, 2), num_res_units=2, inter_channels=[8, 8], inter_dilations=[1, 2]
        ),
        _ANY,
    ),
)


def varied(network: nn.Module) -> nn.Module:
    """Biases and norms away from 0 and 1, statistics of norms too, dropout off: no term vanishes, no two calls differ."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_connect_rate"):
            module.drop_connect_rate = 0.0
    return network
