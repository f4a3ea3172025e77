"""What the accuracy of our networks is compared with: networks of SRE-Conv and GMR-Conv, averaging over rotations."""

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
