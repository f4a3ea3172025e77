"""Residual networks whose logits do not change when the input is rotated by 90 degrees or flipped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from monai.networks.layers.factories import Pool
from monai.networks.layers.utils import get_dropout_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from monai_sre.nets.blocks import (
    ConvKind,
    LayerMaker,
    ResidualBlock,
    check_dropout,
    check_input,
    conv_per_level,
    per_level,
    shared_rings,
)
from monai_sre.ops.arguments import check_dims, check_flags, int_tuple

#: Blocks per stage, and whether they are bottlenecks.
_DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


class _Bottleneck(nn.Module):
    """A radial convolution between two that mix channels only; a stride is an average pooling before it."""

    expansion = 4

    def __init__(self, config: LayerMaker, in_channels: int, width: int, kernel_size: Any, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = config.pointwise(in_channels, width)
        self.norm1 = config.norm_layer(width)
        self.act = config.act_layer()
        self.pool = config.pool(stride)
        self.conv2 = config.radial(width, width, kernel_size)
        self.norm2 = config.norm_layer(width)
        self.conv3 = config.pointwise(width, out_channels)
        self.norm3 = config.norm_layer(out_channels)
        self.shortcut_pool = config.pool(stride)
        self.shortcut = config.shortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm1(self.conv1(x)))
        out = self.act(self.norm2(self.conv2(self.pool(out))))
        out = self.norm3(self.conv3(out))
        return self.act(out + self.shortcut(self.shortcut_pool(x)))


class SREResNet(nn.Module):
    """ResNet of radially symmetric convolutions and centred pooling.

    Its logits are invariant, and its feature maps equivariant, to all lattice symmetries (8 in 2-D, 48 in 3-D) at every
    input size. With the defaults in 2-D it is the SRE-ResNet of Du et al. (arXiv 2501.09753, Section 3): a stem of stride 1
    without max-pooling, four stages of kernel sizes 9, 9, 5, 5, strides as average pooling before the convolution.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: number of channels of the input.
        num_classes: number of logits.
        depth: 18, 34 (basic blocks) or 50 (bottlenecks).
        kernel_size: odd kernel sizes of the four stages, or one for all; ``None`` is (9, 9, 5, 5), and 5 in 3-D. A stage's
            entry may itself hold one size per axis, which leaves the symmetries that do not exchange axes of other sizes.
        stem_kernel_size: odd kernel size of the first convolution.
        stem_stride: its stride, onto a centred grid; energies are taken behind it.
        width: channels of the first stage; each later stage has twice those of the one before.
        strides: down-sampling factor at the start of each stage.
        max_pool: whether a centred max-pooling of stride 2 follows the stem.
        num_rings: rings per kernel, one number for all stages or one per stage (``None`` is the default of the kernel size);
            the stem always has the default.
        profile: with ``circular``, ``orthonormal``, ``spacing``, ``axes`` and ``algorithm`` the geometry of all radial
            layers, see :class:`monai_sre.layers.SREConv2d`. ``None`` is bands, or in a network with energies orthonormal
            Gaussian rings.
        conv: ``"radial"``, or ``"harmonic"`` for :class:`monai_sre.layers.SREHarmonicConv2d`, which sees edges too; its
            options ``orders``, ``hidden_channels``, ``taps``, ``norm`` and ``eps`` as ``("harmonic", {"orders": (1, 2)})``.
            Or a list of four, one per stage; the stem is as the first.
        norm: normalisation layer, in MONAI's notation.
        act: activation layer, in MONAI's notation.
        dropout_prob: probability of dropping an entry of the pooled embedding.
        checkpointing: recompute each stage in the backward pass instead of keeping its activations.
        antialias: down-sample behind a Gaussian filter (:class:`monai_sre.layers.CentredBlurPool`) instead of averaging
            blocks: no parameter more, and less error under rotations by other angles than 90 degrees. A number is the
            filter's width.

    Shape:
        ``(N, in_channels, *spatial)`` to ``(N, num_classes)``, any sizes from 1 up, in training as far as ``norm``
        takes them. The pixels of the last feature maps lie ``reduction`` (an attribute) pixels of the input apart, around its
        centre.

    Raises:
        ValueError: an argument cannot work; the message names it, its value and what is allowed.

    Example:
        >>> net = SREResNet(2, in_channels=3, num_classes=9)
        >>> sum(p.numel() for p in net.parameters())
        3996105
        >>> net(torch.randn(2, 3, 28, 28)).shape
        torch.Size([2, 9])
        >>> [tuple(level.shape[1:]) for level in net.forward_features(torch.randn(1, 3, 28, 28))]
        [(64, 28, 28), (128, 14, 14), (256, 7, 7), (512, 4, 4)]
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        depth: int = 18,
        kernel_size: int | Sequence[int | Sequence[int]] | None = None,
        stem_kernel_size: int | Sequence[int] = 5,
        stem_stride: int = 1,
        width: int = 64,
        strides: Sequence[int] = (1, 2, 2, 2),
        max_pool: bool = False,
        num_rings: int | Sequence[int | None] | None = None,
        profile: str | tuple[str, Mapping[str, Any]] | None = None,
        circular: bool = True,
        orthonormal: bool | None = None,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
        algorithm: str = "auto",
        conv: ConvKind | Sequence[ConvKind] = "radial",
        norm: str | tuple[str, Mapping[str, Any]] = "batch",
        act: str | tuple[str, Mapping[str, Any]] = ("relu", {"inplace": True}),
        dropout_prob: float = 0.0,
        checkpointing: bool = False,
        antialias: bool | float = False,
    ) -> None:
        super().__init__()
        spatial_dims = check_dims(spatial_dims)
        if depth not in tuple(_DEPTHS):
            raise ValueError(f"depth must be one of {tuple(_DEPTHS)}, got {depth!r}")
        (in_channels,) = int_tuple("in_channels", in_channels, 1, minimum=1)
        (num_classes,) = int_tuple("num_classes", num_classes, 1, minimum=1)
        (width,) = int_tuple("width", width, 1, minimum=1)
        (stem_stride,) = int_tuple("stem_stride", stem_stride, 1, minimum=1)
        check_dropout(dropout_prob)
        check_flags(max_pool=max_pool, checkpointing=checkpointing)
        strides = int_tuple("strides", strides, 4, minimum=1)
        if kernel_size is None:
            kernel_size = 5 if spatial_dims == 3 else (9, 9, 5, 5)
        kernels = per_level("kernel_size", kernel_size, 4, "stage")
        rings = per_level("num_rings", num_rings, 4, "stage")
        convs = conv_per_level(conv, 4, "stage")
        radial = {
            **shared_rings(convs, profile, orthonormal),
            "circular": circular,
            "spacing": spacing,
            "axes": axes,
            "algorithm": algorithm,
        }
        self.spatial_dims, self.in_channels, self.checkpointing = spatial_dims, in_channels, checkpointing
        self.reduction = stem_stride * math.prod(strides) * (2 if max_pool else 1)
        config = LayerMaker(spatial_dims, norm, act, antialias, convs[0], radial)
        self.conv1 = config.radial(in_channels, width, stem_kernel_size, stem_stride)
        self.norm1 = config.norm_layer(width)
        self.act = config.act_layer()
        self.pool = Pool["CENTREDMAX", spatial_dims](3, stride=2, padding=1) if max_pool else nn.Identity()

        blocks, bottleneck = _DEPTHS[depth]
        block: type[ResidualBlock] | type[_Bottleneck] = _Bottleneck if bottleneck else ResidualBlock
        stages: list[nn.Module] = []
        channels = width
        for level in range(4):
            config = LayerMaker(spatial_dims, norm, act, antialias, convs[level], {**radial, "num_rings": rings[level]})
            stage: list[nn.Module] = []
            for index in range(blocks[level]):
                stride = strides[level] if index == 0 else 1
                stage.append(block(config, channels, width * 2**level, kernels[level], stride))
                channels = width * 2**level * block.expansion
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.num_features = channels
        self.dropout = get_dropout_layer(("dropout", {"p": dropout_prob})) if dropout_prob else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps after each stage: four tensors of shape ``(N, channels, *spatial)``, equivariant."""
        check_input(x, self.spatial_dims, self.in_channels)
        x = self.pool(self.act(self.norm1(self.conv1(x))))
        levels: list[Tensor] = []
        for stage in self.stages:
            if torch.jit.is_scripting():
                x = stage(x)
            elif self.checkpointing and self.training and torch.is_grad_enabled():
                x = _checkpointed(stage, x)
            else:
                x = stage(x)
            levels.append(x)
        return levels

    def embed(self, x: Tensor) -> Tensor:
        """Pooled embedding of shape ``(N, num_features)``, invariant."""
        return self.forward_features(x)[-1].flatten(2).mean(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(N, num_classes)``, invariant."""
        return self.fc(self.dropout(self.embed(x)))


def _checkpointed(stage: nn.Module, x: Tensor) -> Tensor:
    """Call ``stage`` without keeping its activations; each batch counts once in the statistics of its norms."""
    if torch.compiler.is_compiling():  # a compiled graph recomputes values, not side effects
        out: Tensor = checkpoint(stage, x, use_reentrant=False)
    else:
        out = checkpoint(stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(stage)))
    return out


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [(count, count.clone()) for count in tracked]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)


def sre_resnet18(spatial_dims: int, in_channels: int, num_classes: int, **options: Any) -> SREResNet:
    """:class:`SREResNet` of depth 18, two basic blocks per stage.

    Example:
        >>> sre_resnet18(3, 1, 11, width=16)(torch.randn(1, 1, 12, 9, 10)).shape
        torch.Size([1, 11])
    """
    return SREResNet(spatial_dims, in_channels, num_classes, depth=18, **options)


def sre_resnet34(spatial_dims: int, in_channels: int, num_classes: int, **options: Any) -> SREResNet:
    """:class:`SREResNet` of depth 34, basic blocks."""
    return SREResNet(spatial_dims, in_channels, num_classes, depth=34, **options)


def sre_resnet50(spatial_dims: int, in_channels: int, num_classes: int, **options: Any) -> SREResNet:
    """:class:`SREResNet` of depth 50, bottleneck blocks."""
    return SREResNet(spatial_dims, in_channels, num_classes, depth=50, **options)
