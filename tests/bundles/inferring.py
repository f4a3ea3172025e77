"""Inference of the three bundles through ``monai.bundle``, for the tests of what it gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import torch
from torch import nn

from monai_sre.description import ModelDescription

ROOT = Path(__file__).parents[2] / "bundles"
CLASSIFICATION = {2: ROOT / "medmnist_2d_classification", 3: ROOT / "medmnist_3d_classification"}
SEGMENTATION = ROOT / "retinal_vessel_segmentation"
BUNDLES = [*CLASSIFICATION.values(), SEGMENTATION]


def infer(bundle: Path, source: Path, target: Path, **options: Any) -> None:
    """Run the bundle's inference on the CPU; its own model unless ``ckpt_dir`` names another."""
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=str(bundle / "configs/logging.conf"),
        bundle_root=str(bundle),
        **{"device": "cpu", "input": str(source), "output_dir": str(target), **options},
    )


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


def rows(path: Path) -> list[dict[str, str]]:
    """Those of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def chain(error: BaseException | None) -> str:
    """The messages of an exception and of all its causes."""
    text = ""
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__
    return text


def reoriented(image: Any, code: str) -> Any:
    """The same anatomy with its axes in another order and direction."""
    now, then = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    return image.as_reoriented(nibabel.orientations.ornt_transform(now, then))
