"""Class-activation maps: what each place of an image adds to the class that a network decides for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.visualize import CAM
from torch import Tensor, nn

from monai_sre.data.datalist import is_nifti
from monai_sre.data.files import file_grids
from monai_sre.data.grids import Grid
from monai_sre.evaluation.nifti import save_like


class ClassActivation:
    """Class-activation maps (Zhou et al., CVPR 2016, arXiv 1512.04150) by ``monai.visualize.CAM``.

    They are the logit of a class at each place of the last feature maps, as if these were alike everywhere; their mean over
    all places is the logit of the image. Of an equivariant network they turn with the image. A hook stays in the network.

    Args:
        network: one that ends in the mean over all places and a linear layer ``fc``, as :class:`monai_sre.nets.SREResNet`
            and MONAI's ``ResNet`` do.
        target_layer: name of the module that gives the last feature maps: ``"stages.3"`` and ``"layer4"`` of these two.

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

    def __init__(self, network: nn.Module, target_layer: str = "stages.3") -> None:
        names = [name for name, _ in network.named_modules() if name]
        if target_layer not in names or "fc" not in names:
            children = ", ".join(name for name in names if name.count(".") < 2)
            raise ValueError(
                f"target_layer must be a module before the pooling and the linear layer 'fc' of {type(network).__name__}, "
                f"got {target_layer!r}; its modules are {children}"
            )
        self.network = network
        self.cam = CAM(network, target_layer, "fc")

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """Maps of shape ``(N, *coarse)``, of the classes ``(N,)`` of the images ``(N, C, *spatial)``."""
        with torch.no_grad():
            maps: Tensor = self.cam.compute_map(x, classes).squeeze(1)
        return maps

    def resample(self, values: Tensor, seen: Grid, target: Grid) -> np.ndarray:
        """Bring a map onto another grid by linear interpolation around the centre of the image.

        Args:
            values: the map, shape ``(*coarse)``.
            seen: the grid of the image that the network saw.
            target: another grid in the same space.

        Returns:
            float32 array of the shape of ``target``.

        Example:
            >>> from monai_sre.nets import SREResNet
            >>> activation = ClassActivation(SREResNet(2, 1, 3, width=4))
            >>> seen = Grid((28, 28), np.eye(4))
            >>> found = activation.resample(torch.arange(4.0).expand(4, 4), seen, seen)
            >>> [round(float(value), 2) for value in found[0, 5:22:8]]  # one step of the map is 8 pixels
            [0.44, 1.44, 2.44]
        """
        coarse = seen.around(values.shape, getattr(self.network, "reduction", None))
        return coarse.resample(values.float().cpu().numpy(), target)

    def save(self, values: Tensor, shape: Sequence[int], source: Path, target: Path, size: int | None = None) -> None:
        """Write a map as NIfTI on the grid of its image file, see :func:`monai_sre.data.file_grids`.

        Args:
            values: the map, shape ``(*coarse)``.
            shape: ``(*spatial)`` of the network's input.
            source: the image file; NIfTI gives its affine and header.
            target: of the map.
            size: side of the square that :class:`monai_sre.data.FileImages` made of the file; None: its longest side.

        Raises:
            OSError: a file cannot be read or written.
        """
        own, square = file_grids(source, size)
        found = self.resample(values, square.around(shape), own)
        save_like(found, nibabel.load(source) if is_nifti(source) else nibabel.Nifti1Image(found, own.affine), target)
