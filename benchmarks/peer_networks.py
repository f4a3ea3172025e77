"""What the accuracy of our networks is compared with: networks of SRE-Conv, GMR-Conv and escnn, averaging over rotations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import peer
from monai_sre.evaluation import sweep_transformations
from monai_sre.ops import sre_conv
from monai_sre.symmetry.lattice import lattice_symmetries


class PeerResNet18(nn.Module):
    """``sre_resnet18`` or ``gmr_resnet18`` of the papers (width 64, kernels 9, 9, 5, 5); ``sre_r3d_18`` or ``gmr_r3d_18``.

    Built and initialised by the package; only the products of its radial layers are computed in another order, at a
    fraction of the time. ``benchmarks/tests/test_peer_networks.py`` compares steps of training with the package alone. The
    2-D networks take three channels: a single one is repeated.

    Args:
        package: ``"SRE_Conv"`` or ``"GMR_Conv"``.
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: logits.
        options: for the package's function.
    """

    def __init__(self, package: str, spatial_dims: int, in_channels: int, num_classes: int, **options: object) -> None:
        super().__init__()
        short = package[:3].lower()
        module = peer(package, f"{short}_resnet" if spatial_dims == 2 else f"{short}_resnet_3d")
        if module is None:
            raise ImportError(f"the package {package.replace('_', '-')} is not installed")
        if spatial_dims == 2:
            options = {f"{short}_conv_size": [9, 9, 5, 5], "skip_first_maxpool": True, **options}
        else:
            options = {"in_channels": in_channels, **options}
        build = getattr(module, f"{short}_resnet18" if spatial_dims == 2 else f"{short}_r3d_18")
        self.network: nn.Module = build(num_classes=num_classes, **options)
        self.repeats = 3 if spatial_dims == 2 and in_channels == 1 else 1
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if hasattr(child, "weight_index_mat"):
                    setattr(parent, name, _OnRings(child))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.repeat(1, self.repeats, *[1] * (x.ndim - 2)))
        return out


class EscnnResNet18(nn.Module):
    """The bundles' 2-D ResNet18 of escnn's own modules (Weiler and Cesa, NeurIPS 2019): regular fields of a finite group.

    Stem of stride 1, stages of stride 1, 2, 2 and 2 with twice the fields each, antialiased pooling before a strided block,
    at the end the largest value of each field and the mean over the image. At sizes of 8 k + 1 pixels the strides keep the
    grid centred, and the logits do not change under rotations by 90 degrees.

    Its state dict holds what is learned, and is the same in train and eval mode.

    Args:
        spatial_dims: 2.
        in_channels: of the images.
        num_classes: logits.
        rotations: how many the group has.
        flips: whether it has reflections too.
        fields: of the first stage, each of as many channels as the group has elements.
        kernel_size: of all layers but the shortcuts.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        rotations: int = 8,
        flips: bool = False,
        fields: int = 7,
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims must be 2, got {spatial_dims!r}")
        from escnn import gspaces
        from escnn import nn as steerable

        space = gspaces.flipRot2dOnR2(rotations) if flips else gspaces.rot2dOnR2(rotations)
        types = [steerable.FieldType(space, [space.regular_repr] * fields * 2**level) for level in range(4)]

        def layers(first: Any, last: Any, size: int = kernel_size) -> list[nn.Module]:
            conv = steerable.R2Conv(first, last, size, padding=size // 2, bias=False)
            return [conv, steerable.InnerBatchNorm(last)]

        def block(first: Any, last: Any) -> nn.Module:
            pool = steerable.IdentityModule(first)
            if first != last:
                pool = steerable.PointwiseAvgPoolAntialiased(first, sigma=0.66, stride=2)
            main = steerable.SequentialModule(*layers(first, last), steerable.ReLU(last), *layers(last, last))
            shortcut = steerable.SequentialModule(*(layers(first, last, 1) if first != last else [pool]))
            return nn.ModuleList([pool, main, shortcut, steerable.ReLU(last)])

        self.kind = steerable.FieldType(space, [space.trivial_repr] * in_channels)
        self.stem = steerable.SequentialModule(*layers(self.kind, types[0]), steerable.ReLU(types[0]))
        pairs = [
            (types[max(level - 1, 0)] if index == 0 else kind, kind)
            for level, kind in enumerate(types)
            for index in (0, 1)
        ]
        self.blocks = nn.ModuleList(block(first, last) for first, last in pairs)
        self.invariant = steerable.GroupPooling(types[-1])
        self.fc = nn.Linear(self.invariant.out_type.size, num_classes)
        self.wrap: Any = steerable.GeometricTensor
        self.train()

    def train(self, mode: bool = True) -> EscnnResNet18:
        """The mode; what is computed from the weights stays out of the state dict."""
        super().train(mode)
        for module in self.modules():
            if not isinstance(module, nn.modules.batchnorm._NormBase):
                module._non_persistent_buffers_set.update(module._buffers)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the network, whose expanded kernels are then those of the new weights."""
        mode, found = self.training, super().load_state_dict(*args, **kwargs)
        self.train().train(mode)
        return found

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(self.wrap(x, self.kind))
        for pool, main, shortcut, act in self.blocks:
            maps = pool(maps)
            maps = act(main(maps) + shortcut(maps))
        out: Tensor = self.fc(self.invariant(maps).tensor.flatten(2).mean(dim=2))
        return out


class RotationAverage(nn.Module):
    """Test-time averaging: the mean of a network's probabilities over rotations of its input, as logits.

    Rotations are bilinear and filled with each image's background: 12 by multiples of 30 degrees in 2-D, the 10 by
    multiples of 90 degrees about each axis in 3-D.

    Its state dict is that of the network.

    Args:
        network: from images to logits of exclusive classes.
        spatial_dims: 2 or 3.
    """

    def __init__(self, network: nn.Module, spatial_dims: int) -> None:
        super().__init__()
        self.network = network
        self.rotations = sweep_transformations(
            spatial_dims, "bilinear_background", 30 if spatial_dims == 2 else 90, flips=False
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the network."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the network."""
        return self.network.load_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        views = torch.stack([self.network(rotation(x)).softmax(dim=1) for rotation in self.rotations.values()])
        return views.mean(dim=0).log()


class OrientationAverage(RotationAverage):
    """The same of class maps: over all symmetries of the grid, each map turned back.

    Args:
        network: from images ``(N, C, *spatial)`` to logits of exclusive classes, ``(N, classes, *spatial)``.
        spatial_dims: 2 or 3.
    """

    def __init__(self, network: nn.Module, spatial_dims: int) -> None:
        super().__init__(network, spatial_dims)
        self.symmetries = list(lattice_symmetries(spatial_dims).values())

    def forward(self, x: Tensor) -> Tensor:
        views = (move.inverse(self.network(move(x)).softmax(dim=1)) for move in self.symmetries)
        return torch.stack(list(views)).mean(dim=0).log()


class _OnRings(nn.Module):
    """A radial layer of a package: its weights, its bands, and for GMR-Conv its learned mixing of their weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.log_sigmas = getattr(layer, "log_sigmas", None)
        self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        bands = layer.get_buffer("weight_index_mat")[0, 0]
        self.register_buffer("bands", bands.reshape(-1, *layer.kernel_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.log_sigmas is not None:
            places = torch.arange(weight.shape[2], device=x.device, dtype=weight.dtype)
            sigmas = self.log_sigmas.exp().clamp(1e-2, 2 * len(places))[:, None]
            mixing = torch.exp(-0.5 * ((places - places[:, None]) / sigmas).square()) / (sigmas * 2.5066)
            weight = weight @ mixing
        return sre_conv(x, weight, self.get_buffer("bands"), self.bias, *self.geometry)
