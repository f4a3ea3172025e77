"""Networks of the study of changes: the bundles' network behind a disc mask, and its moving average."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_sre.nets import SREResNet

#: Widths of the bundles' networks.
_WIDTHS = {2: 32, 3: 16}


def bundle_network(spatial_dims: int, in_channels: int, num_classes: int) -> SREResNet:
    """The network of ``train.json`` of a classification bundle."""
    return SREResNet(
        spatial_dims,
        in_channels,
        num_classes,
        kernel_size=5,
        width=_WIDTHS[spatial_dims],
        profile="gaussian",
        orthonormal=True,
        conv="harmonic",
    )


class Masked(nn.Module):
    """The network sees what lies in the disc (ball) that touches the image's sides; elsewhere it sees 0, mid-grey.

    Example:
        >>> seen = Masked(2, 1, 2).visible(torch.ones(1, 1, 4, 4))
        >>> seen[0, 0].int().tolist()
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """

    def __init__(self, spatial_dims: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.network = bundle_network(spatial_dims, in_channels, num_classes)

    def visible(self, x: Tensor) -> Tensor:
        """The image with its corners set to 0."""
        axes = [torch.linspace(-1, 1, size + 1, device=x.device, dtype=x.dtype) for size in x.shape[2:]]
        centres = torch.meshgrid([(axis[1:] + axis[:-1]) / 2 for axis in axes], indexing="ij")
        squares = sum((centre.square() for centre in centres), torch.zeros_like(centres[0]))
        return x * (squares <= 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.visible(x))
        return out


class Averaged(nn.Module):
    """Trains a network and evaluates the exponential moving average of its weights and statistics.

    Args:
        spatial_dims: with ``in_channels`` and ``num_classes``, of the network.
        decay: what a step keeps of the average.

    Example:
        >>> net = Averaged(2, 1, 2, decay=0.5)
        >>> with torch.no_grad():
        ...     _ = net.network.fc.bias.fill_(2), net.average.module.fc.bias.fill_(0)
        >>> net.average.n_averaged += 1
        >>> net.eval().average.module.fc.bias.tolist()
        [1.0, 1.0]
    """

    def __init__(self, spatial_dims: int, in_channels: int, num_classes: int, decay: float = 0.98) -> None:
        super().__init__()
        self.network = bundle_network(spatial_dims, in_channels, num_classes)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.average.requires_grad_(False)

    def train(self, mode: bool = True) -> Averaged:
        if self.training and not mode:
            self.average.update_parameters(self.network)
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.update_parameters(self.network)
        out: Tensor = (self.network if self.training else self.average)(x)
        return out
