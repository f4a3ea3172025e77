"""Small networks, one of each kind of code that people's networks have in their own ``forward``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def stage(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class DecoderBlock(nn.Module):
    """As in segmentation_models_pytorch: up to the size of the skip, then two convolutions."""

    def __init__(self, inner: int, skip: int, outer: int) -> None:
        super().__init__()
        self.first, self.second = stage(inner + skip, outer), stage(outer, outer)

    def forward(self, x: Tensor, height: int, width: int, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, size=(height, width), mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.second(self.first(x))


class SkipUNet(nn.Module):
    """A U-Net in the form of segmentation_models_pytorch."""

    def __init__(self, channels: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        inner = (1, *channels)
        self.encoder = nn.ModuleList(stage(a, b, 2) for a, b in zip(inner, channels, strict=False))
        self.decoder = nn.ModuleList(
            DecoderBlock(channels[i], inner[i] if i else 0, inner[i] if i else 4) for i in (2, 1, 0)
        )
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for down in self.encoder:
            maps.append(down(maps[-1]))
        out = maps.pop()
        for up in self.decoder:
            skip = maps.pop()
            out = up(out, *skip.shape[2:], skip if maps else None)
        return self.head(out)


class ConcatUNet(nn.Module):
    """Pads by what is missing, as the U-Net of many tutorials does, and pools by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), stage(12, 4)
        self.finer = nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        x = self.finer(F.relu(self.middle(F.max_pool2d(skip, 2))))
        rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.up(torch.cat([skip, x], dim=1))


def same_padded(x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """TensorFlow's padding: the output has ``ceil(size / stride)`` pixels, and the odd one is at the far end."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], taps, stride, strict=True):
        missing = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads = [missing // 2, missing - missing // 2, *pads]
    return F.pad(x, pads, value=value)


class Conv2dSame(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, self.kernel_size, self.stride)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class MaxPool2dSame(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padded(x, (self.kernel_size,) * 2, (self.stride,) * 2, -math.inf)
        return super().forward(x)


class StandardConv2d(nn.Conv2d):
    """Weights of mean 0 and variance 1 per output, scaled by a gain: the convolution of networks without norms."""

    def __init__(self, inner: int, outer: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inner, outer, kernel_size, stride, padding)
        self.gain = nn.Parameter(torch.ones(outer, 1, 1, 1))
        self.scale = 1 / math.sqrt(self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BlurPool2d(nn.Module):
    """Binomial weights, then every second pixel."""

    def __init__(self, channels: int, taps: int = 3) -> None:
        super().__init__()
        row = torch.tensor([float(math.comb(taps - 1, i)) for i in range(taps)])
        kernel = row[:, None] * row / row.sum() ** 2
        self.channels, self.pads = channels, [(taps - 1) // 2, taps // 2] * 2
        self.register_buffer("filter", kernel.expand(channels, 1, taps, taps).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.pads, "reflect"), self.filter, stride=2, groups=self.channels)


class ChannelAttention(nn.Module):
    """Efficient channel attention: a convolution over the channels of pooled maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gates.view(x.shape[0], -1, 1, 1)


class PaddedStem(nn.Module):
    """Pads the far ends before a convolution and a pool of two pixels, as in HGNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 2)
        self.pool = nn.MaxPool2d(2, stride=1, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.first(x), (0, 1, 0, 1))
        return torch.cat([self.pool(x), F.relu(self.second(x))], dim=1)


class StridedSlices(nn.Module):
    """Every second pixel as a shortcut, and a crop to the size of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.finer = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        low = self.conv(x) + x[..., ::2, ::2]
        return self.finer(low)[:, :, : x.shape[2], : x.shape[3]] * x


class Resampled(nn.Module):
    """Functions in helper methods, by ratios, averages and shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fine = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

    def halved(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size=3, stride=2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halved(self.conv(x))
        x = F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=False)
        x = F.interpolate(x, scale_factor=1.5) * F.adaptive_avg_pool2d(x, 1)
        return self.fine(F.pixel_shuffle(x, 2))


class Halved(nn.Module):
    """One module in two places, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.conv
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)), 2)
        return F.max_pool2d(self.norm(self.again(x)), 2)


@dataclass
class Output:
    logits: Tensor
    features: list[Tensor]


class WithDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Output:
        x = self.conv(x)
        return Output(self.head(x.mean((2, 3))), [x, F.max_pool2d(x, 2)])


class RowsOfPositions(nn.Module):
    """Maps as rows of positions behind a token of the class, in tensors of as many axes as maps have."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.near, self.head = (
            nn.Conv2d(1, 8, 4, 4),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Linear(8, 3),
        )
        self.token = nn.Parameter(torch.ones(1, 2, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        n, c, height, width = x.shape
        rows = torch.cat([self.token.expand(n, -1, -1, -1), x.reshape(n, 2, 4, -1).transpose(2, 3)], dim=2)
        maps = rows[:, :, 1:].transpose(2, 3).reshape(n, c, height, width)
        near = F.pad(self.near(maps).reshape(n, 2, 4, -1).transpose(2, 3), (0, 0, 1, 0))
        rows = (rows.softmax(2).transpose(2, 3) @ rows)[:, :, :1] + rows * near
        return self.head(rows[:, :, : 1 + height * width].mean(2).flatten(1))


def standard() -> nn.Module:
    return nn.Sequential(StandardConv2d(1, 4, 3, 2, 1), nn.ReLU(), StandardConv2d(4, 4, 5, 1, 2), nn.ReLU())


def same() -> nn.Module:
    return nn.Sequential(Conv2dSame(1, 4, 3, 2), nn.ReLU(), Conv2dSame(4, 4, 5, 2, bias=False), MaxPool2dSame(3, 2))


def blurred() -> nn.Module:
    return nn.Sequential(stage(1, 4), BlurPool2d(4), stage(4, 4), BlurPool2d(4, 4))


def attentive() -> nn.Module:
    return nn.Sequential(stage(1, 6), ChannelAttention(), stage(6, 2))


class BesideChannels(nn.Module):
    """A convolution over the map with the channels as a third axis, as in lambda layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.across, self.mix = (
            stage(1, 4, 2),
            nn.Conv3d(1, 2, (3, 3, 1), padding=(1, 1, 0)),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.across(self.down(x).permute(0, 2, 3, 1).unsqueeze(1))
        return self.mix(maps.permute(0, 1, 4, 2, 3).flatten(1, 2))


#: What becomes exact.
KINDS = {
    "U-Net": SkipUNet,
    "U-Net with pads": ConcatUNet,
    "SAME": same,
    "standardised": standard,
    "blur pool": blurred,
    "channels": attentive,
    "one-sided": PaddedStem,
    "slices": StridedSlices,
    "resampled": Resampled,
    "shared": lambda: nn.Sequential(nn.Conv2d(1, 2, 1), Halved()),
    "dataclass": WithDataclass,
    "rows": RowsOfPositions,
    "beside channels": BesideChannels,
}
