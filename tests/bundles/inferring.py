"""Inference of the bundles through ``monai.bundle``, for the tests of what it gives."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import torch
from torch import nn

from monai_sre.description import ModelDescription
from tests.bundles import running

CLASSIFICATION = {dims: running.BUNDLES / f"medmnist_{dims}d_classification" for dims in (2, 3)}
SEGMENTATION = running.BUNDLES / "retinal_vessel_segmentation"
VOLUMES = running.BUNDLES / "hippocampus_segmentation"
#: All orientations of an image, as nibabel names them.
CODES = ["".join(code) for order in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*order)]
BUNDLES = [*CLASSIFICATION.values(), SEGMENTATION, VOLUMES]


def infer(bundle: Path, source: Path, target: Path, **options: Any) -> None:
    """Run the bundle's inference on the CPU; its own model unless ``ckpt_dir`` names another."""
    options = {"device": "cpu", "input": str(source), "output_dir": str(target), **options}
    running.run(bundle, "inference", **options)


def classifier(folder: Path, dims: int, **changes: Any) -> nn.Module:
    """Write the description and random weights of a small network of two classes, and return it."""
    network = {
        "_target_": "monai_sre.nets.SREResNet",
        "spatial_dims": dims,
        "in_channels": 1,
        "num_classes": 2,
        "width": 4,
    }
    values = {"task": "binary-class", "class_names": ["0", "1"], "spatial_dims": dims, "num_channels": 1, "size": 12}
    values |= {"image_size": 12, "intensity_range": None, "network": {**network, "kernel_size": 5, "conv": "harmonic"}}
    return _written(folder, {**values, **changes})


def segmenter(folder: Path, dims: int, plain: bool = False, **changes: Any) -> nn.Module:
    """The same of a small U-Net, whose random weights are balanced so that noise is decided for either class alike."""
    channels = changes.get("num_channels", 3 if dims == 2 else 1)
    network: dict[str, Any] = {"spatial_dims": dims, "in_channels": channels, "out_channels": 2, "channels": [4, 8]}
    own = {"_target_": "monai_sre.nets.SREUNet", "kernel_size": 3, "conv": "radial"}
    network |= {"_target_": "monai.networks.nets.UNet", "strides": [2]} if plain else own
    values: dict[str, Any] = {"task": "segmentation", "class_names": ["background", "foreground"], "spatial_dims": dims}
    values |= {"num_channels": channels, "axcodes": None, "pixdim": None, "field_threshold": 0.05 if dims == 2 else 0}
    values |= {"roi_size": 16, "window_multiple": 1, "network": network}
    return _written(folder, {**values, **changes})


def _written(folder: Path, values: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = ModelDescription(values).network().eval()
    if values["task"] == "segmentation":
        bias = [parameter for parameter in network.parameters() if parameter.shape == (2,)][-1]
        with torch.no_grad():
            logits = network(torch.randn(1, values["num_channels"], *[16] * values["spatial_dims"]))
            bias[0] += (logits[:, 1] - logits[:, 0]).median()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(values))
    torch.save(network.state_dict(), folder / "model.pt")
    return network


def reoriented(image: Any, code: str) -> Any:
    """The same anatomy with its axes in another order and direction."""
    now, then = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    return image.as_reoriented(nibabel.orientations.ornt_transform(now, then))
