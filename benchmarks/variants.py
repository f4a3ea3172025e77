"""What the study of changes puts around the bundles' network: a disc mask, a moving average of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Masked(nn.Module):
    """The network sees what lies in the disc (ball) that touches the image's sides; elsewhere it sees 0, mid-grey.

    Args:
        network: from images to logits.

    Example:
        >>> seen = Masked(nn.Identity())(torch.ones(1, 1, 4, 4))
        >>> seen[0, 0].int().tolist()
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, size + 1, device=x.device, dtype=x.dtype) for size in x.shape[2:]]
        centres = torch.meshgrid([(axis[1:] + axis[:-1]) / 2 for axis in axes], indexing="ij")
        squares = sum((centre.square() for centre in centres), torch.zeros_like(centres[0]))
        out: Tensor = self.network(x * (squares <= 1))
        return out


class Averaged(nn.Module):
    """Trains a network and evaluates the exponential moving average of its weights and statistics.

    Args:
        network: from images to logits.
        decay: what a step keeps of the average.

    Example:
        >>> net = Averaged(nn.PReLU(init=0.0), decay=0.5)
        >>> _ = net(torch.ones(1))  # a step of training: the first one takes the weight as it is
        >>> _ = net.network.weight.data.fill_(2)
        >>> net.eval().average.module.weight.tolist()
        [1.0]
    """

    def __init__(self, network: nn.Module, decay: float = 0.98) -> None:
        super().__init__()
        self.network = network
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
