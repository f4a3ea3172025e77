"""Picture: what a plain layer, a radial layer and two energies see on an image and on its rotated copy.

    python -m benchmarks.studies.harmonic_views

The image is a photograph that comes with scikit-image. Each layer is one channel: a plain 3 x 3 kernel (a slope along one
direction), a radial kernel of 7 x 7 (a blob), and the energies of orders 1 and 2 of the same radial kernel's map. The last
row turns the first one and takes the difference: nothing of a symmetric layer but interpolation errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from torch import Tensor, nn

from monai_sre.evaluation.figures import new_figure
from monai_sre.layers import HarmonicEnergy, SREConv2d
from monai_sre.symmetry.rotation import disc, rotate

ANGLE, SIZE = 40.0, 160
OUT = Path(__file__).with_name("results") / "harmonic_views.png"


def layers() -> dict[str, nn.Module]:
    """One channel in, one channel out."""
    plain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    plain.weight.data = torch.tensor([[[[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]]]]) / 4
    radial = SREConv2d(1, 1, 7, padding=3, bias=False, profile="isotropic")
    radial.weight.data = torch.tensor([[[0.9, 0.0, -0.06, 0.0]]])
    smooth = SREConv2d(1, 1, 7, padding=3, bias=False, profile="isotropic")
    smooth.weight.data = torch.tensor([[[0.3, 0.1, 0.02, 0.0]]])
    edges, streaks = (nn.Sequential(smooth, HarmonicEnergy(2, order, eps=1e-6)) for order in (1, 2))
    return {"plain kernel": plain, "radial kernel": radial, "energy, order 1": edges, "energy, order 2": streaks}


def main() -> None:
    """Draw the picture."""
    photograph = Image.open(Path(skimage.__file__).parent / "data" / "camera.png").convert("L").resize((SIZE, SIZE))
    image = torch.from_numpy(np.array(photograph, dtype=np.float32) / 255)[None, None]
    inside = disc((SIZE, SIZE), SIZE / 2 - 8)
    rows = ["upright", f"rotated by {ANGLE:.0f}°", "difference"]
    columns: dict[str, list[Tensor]] = {}
    turned = rotate(image, ANGLE)
    columns["image"] = [image, turned, rotate(image, ANGLE) - turned]
    with torch.no_grad():
        for name, layer in layers().items():
            upright, after = layer(image), layer(turned)
            columns[name] = [upright, after, rotate(upright, ANGLE) - after]
    figure = new_figure(2.1 * len(columns), 6.4)
    axes = figure.subplots(len(rows), len(columns))
    for column, (name, maps) in enumerate(columns.items()):
        shown = [part[0, 0] * inside for part in maps]
        limit = float(torch.quantile(shown[0].abs(), 0.995))
        signed = bool(shown[0].min() < -0.05 * limit)
        for row, part in enumerate(shown):
            difference = row == len(rows) - 1
            low = -limit if signed or difference else 0.0
            axis = axes[row, column]
            axis.imshow(part, cmap="RdBu_r" if signed or difference else "gray", vmin=low, vmax=limit)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(name, fontsize=10)
            if column == 0:
                axis.set_ylabel(rows[row], fontsize=10)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
