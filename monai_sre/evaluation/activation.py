"""Class-activation maps: what each place of an image adds to the class that a network decides for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_sre.ops.pool import centred_upsample
from monai_sre.symmetry.error import undisturbed

__all__ = ["ClassActivation"]


class ClassActivation:
    """Class-activation maps (Zhou et al., CVPR 2016, arXiv 1512.04150).

    They are the logit of a class at each place of the last feature maps, as if these were alike everywhere; their mean over
    all places is the logit of the image. Of an equivariant network they turn with the image. Between calls the network is
    as it was: no hook stays in it.

    Args:
        network: one that ends in the mean over all places and a linear layer ``fc``, as :class:`monai_sre.nets.SREResNet`
            and MONAI's ``ResNet`` do.
        target_layer: name of the module that gives the last feature maps; None: ``"stages.3"`` or ``"layer4"``, as these two
            call it.
        relative: give the logit less the mean of those of the other classes. Where classes exclude each other, a logit alone
            says nothing; this speaks for the class above 0, against it below.

    Raises:
        ValueError: the network has no module of that name, or no ``fc``.

    Example:
        >>> from monai_sre.nets import SREResNet
        >>> network = SREResNet(2, in_channels=1, num_classes=3, width=4).eval()
        >>> x = torch.randn(2, 1, 28, 28)
        >>> maps = ClassActivation(network)(x, torch.tensor([2, 0]))
        >>> maps.shape, torch.allclose(maps.mean((1, 2)), network(x)[[0, 1], [2, 0]], atol=1e-5)
        (torch.Size([2, 4, 4]), True)
    """

    def __init__(self, network: nn.Module, target_layer: str | None = None, relative: bool = False) -> None:
        names = [name for name, _ in network.named_modules() if name]
        if target_layer is None:
            target_layer = next((name for name in ("stages.3", "layer4") if name in names), "stages.3")
        if target_layer not in names or not isinstance(getattr(network, "fc", None), nn.Linear):
            children = ", ".join(name for name in names if name.count(".") < 2)
            raise ValueError(
                f"target_layer must be a module before the pooling and the linear layer 'fc' of {type(network).__name__}, "
                f"got {target_layer!r}; its modules are {children}"
            )
        self.network, self.target_layer, self.relative = network, target_layer, relative

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """Maps of shape ``(N, *coarse)``, of the classes ``(N,)`` of the images ``(N, C, *spatial)``."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.append(output)

        hook = self.network.get_submodule(self.target_layer).register_forward_hook(keep)
        try:
            with undisturbed(self.network, training=False), torch.no_grad():
                self.network(x)
        finally:
            hook.remove()
        linear: Any = self.network.fc
        weight = self._of(linear.weight.detach(), classes)
        maps = torch.einsum("nc...,nc->n...", seen[-1].to(weight.dtype), weight)
        if linear.bias is None:
            return maps
        return maps + self._of(linear.bias.detach(), classes).reshape(-1, *[1] * (maps.dim() - 1))

    def _of(self, values: Tensor, classes: Tensor) -> Tensor:
        """What belongs to the classes, of the values of all."""
        found, others = values[classes], len(values) - 1
        if not self.relative or others == 0:
            return found
        return found - (values.sum(dim=0) - found) / others

    def resample(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Bring maps onto the grid of the image that the network saw, by linear interpolation around its centre.

        Pixels of the map are as far apart as the network's ``reduction`` says; without such an attribute, the map fills the
        extent of the image.

        Args:
            maps: shape ``(N, *coarse)``.
            size: ``(*spatial)`` of the image.

        Returns:
            Tensor of shape ``(N, *spatial)``.

        Example:
            >>> from monai_sre.nets import SREResNet
            >>> activation = ClassActivation(SREResNet(2, 1, 3, width=4))
            >>> found = activation.resample(torch.arange(4.0).expand(1, 4, 4), (28, 28))
            >>> [round(float(value), 2) for value in found[0, 0, 5:22:8]]  # one step of the map is 8 pixels
            [0.44, 1.44, 2.44]
        """
        step = getattr(self.network, "reduction", None)
        if step is not None:
            return centred_upsample(maps[:, None], int(step), list(size))[:, 0]
        mode = "bilinear" if len(size) == 2 else "trilinear"
        return functional.interpolate(maps[:, None], tuple(size), mode=mode, align_corners=False)[:, 0]
