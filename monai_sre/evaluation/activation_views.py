"""Picture of what networks see in an image and in its rotated copies: feature maps and class activations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.visualize import ModelWithHooks
from torch import Tensor, nn

from monai_sre.data.geometry import rotate_batch
from monai_sre.evaluation.activation import ClassActivation
from monai_sre.evaluation.report import new_figure
from monai_sre.symmetry.rotation import disc, rotate


def draw_activations(
    networks: Mapping[str, tuple[nn.Module, str, str]],
    image: Tensor,
    path: str | Path,
    angles: Sequence[float] = (0, 45, 90),
    class_names: Sequence[str] = (),
) -> None:
    """Draw a row for each angle: the rotated image, and of each network a feature map and the class activation.

    The class is the one that a network decides for in the first row, the feature map the channel that varies most there; its
    greys are the same in all rows. Class activations have one colour scale: less the mean of the network's map in the first
    row, in its standard deviations, both inside the circle that the image fills at every angle. Below each stands the softmax
    probability of the class and how far the map is from that of the first row, rotated: the root mean square difference on
    that scale, inside the circle. Without matplotlib, nothing is drawn.

    Args:
        networks: by title: network, name of the module whose feature map is shown, and ``target_layer`` of
            :class:`ClassActivation`.
        image: ``(C, H, W)``, as the networks take it.
        path: of the PNG file.
        angles: in degrees, anticlockwise.
        class_names: one for each class; ``()`` numbers them.

    Raises:
        ValueError: the image has another shape, a network has no such module, or there is no network or no angle.

    Example:
        >>> import tempfile
        >>> from monai_sre.nets import SREResNet
        >>> path = Path(tempfile.mkdtemp()) / "views.png"
        >>> network = SREResNet(2, in_channels=1, num_classes=2, width=4).eval()
        >>> draw_activations({"SRE": (network, "stages.0", "stages.3")}, torch.rand(1, 28, 28), path)
        >>> path.is_file()
        True
    """
    if image.dim() != 3:
        raise ValueError(f"image must have shape (C, H, W), got {tuple(image.shape)}")
    if not networks or not angles:
        raise ValueError(f"networks and angles must not be empty, got {tuple(networks)} and {tuple(angles)}")
    figure = new_figure(2.2 * (1 + 2 * len(networks)) + 0.8, 2.4 * len(angles) + 0.8)
    if figure is None:
        return
    views = torch.cat([rotate_batch(image[None], angle, mode="bilinear", fill="background") for angle in angles])
    seen = {title: _Seen(*parts, views, angles) for title, parts in networks.items()}
    limit = max(float(np.abs(found.activations).max()) for found in seen.values())
    grid = figure.subplots(len(angles), 1 + 2 * len(seen), squeeze=False)
    for row, angle in enumerate(angles):
        grid[row, 0].imshow(_grey(image, views[row]), cmap="gray", vmin=0, vmax=1)
        grid[row, 0].set_ylabel(f"{angle:g}°", rotation=0, labelpad=14)
        for index, found in enumerate(seen.values()):
            left, right = grid[row, 1 + 2 * index : 3 + 2 * index]
            left.imshow(found.features[row], cmap="gray", vmin=found.features.min(), vmax=found.features.max())
            colours = right.imshow(found.activations[row], cmap="RdBu_r", vmin=-limit, vmax=limit)
            change = f", off by {found.changes[row]:.2f}" if row else ""
            right.set_xlabel(f"p = {found.probabilities[row]:.3f}{change}")
    grid[0, 0].set_title("image")
    for index, (title, found) in enumerate(seen.items()):
        name = class_names[found.decided] if class_names else f"class {found.decided}"
        grid[0, 1 + 2 * index].set_title(f"{title}\nfeature map")
        grid[0, 2 + 2 * index].set_title(f"{title}\nactivation of {name!r}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    label = "class activation: difference from the mean of the map in the first row, in its standard deviations"
    figure.colorbar(colours, ax=grid, shrink=0.9, label=label)
    figure.supxlabel(
        "off by: root mean square difference, on that scale, from the map of the first row, rotated", size=9
    )
    figure.savefig(path, dpi=110)


class _Seen:
    """What a network sees: feature maps and class activations ``(angles, H, W)``, probabilities, changes."""

    def __init__(
        self, network: nn.Module, feature_layer: str, target_layer: str, views: Tensor, angles: Sequence[float]
    ) -> None:
        if feature_layer not in dict(network.named_modules()):
            raise ValueError(f"{feature_layer!r} is no module of {type(network).__name__}, so it has no feature map")
        network = copy.deepcopy(network)  # MONAI's hooks stay in it
        activation = ClassActivation(network, target_layer)
        with torch.no_grad():
            logits, (features,), _ = ModelWithHooks(network, feature_layer, register_forward=True)(views)
        self.decided = int(logits[0].argmax())
        self.probabilities = logits.softmax(dim=1)[:, self.decided].tolist()
        self.features = features[:, int(features[0].flatten(1).std(dim=1).argmax())].cpu().numpy()
        height, width = views.shape[2:]
        maps = activation(views, torch.tensor([self.decided] * len(views)))
        logit_maps = activation.resample(maps.float(), (height, width)).cpu().numpy()
        inside = (disc((height, width), min(height, width) / 2) > 0).numpy()
        first = logit_maps[0, inside]
        self.activations = (logit_maps - first.mean()) / max(float(first.std()), 1e-6)
        turned = [rotate(torch.from_numpy(self.activations[0]), angle - angles[0]).numpy() for angle in angles]
        self.changes = np.sqrt(np.square(self.activations - turned)[:, inside].mean(axis=1)).tolist()


def _grey(reference: Tensor, image: Tensor) -> np.ndarray:
    low, high = reference.min(), reference.max()
    picture = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).movedim(0, -1).cpu().numpy()
    return picture if picture.shape[-1] == 3 else picture.mean(axis=-1)
