"""The models of :mod:`benchmarks.accuracy`: what differs from the bundles' ``train.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_sre.data import dataset_info

BUNDLES = Path(__file__).parents[1] / "bundles"


@dataclass(frozen=True)
class Model:
    """A row of a table.

    Args:
        title: how the tables and the pictures call it.
        overlays: further config files of the bundle.
        settings: entries of the config.
        by_dims: more of them, for 2-D and for 3-D data.
        wrapper: a module of the benchmarks around the network of ``train.json``.
        averaged: the model that is averaged over rotations at test time, in place of a training of its own.
        colour: of its curve; a model without one has no curve.
    """

    title: str
    overlays: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    by_dims: dict[int, dict[str, Any]] = field(default_factory=dict)
    wrapper: str = ""
    averaged: str = ""
    colour: str = ""

    def configs(self, spatial_dims: int) -> list[str]:
        """Paths of the config files for training."""
        return [str(bundle_of(spatial_dims) / "configs" / name) for name in ("train.json", *self.overlays)]

    def entries(self, spatial_dims: int) -> dict[str, Any]:
        """Entries of the config that differ."""
        entries = {**self.settings, **self.by_dims.get(spatial_dims, {})}
        if self.wrapper:
            inner = ConfigParser.load_config_file(self.configs(spatial_dims)[0])["network_def"]
            entries["network_def"] = {"_target_": f"benchmarks.{self.wrapper}", "network": inner}
        return entries


def bundle_of(spatial_dims: int) -> Path:
    """The bundle that classifies images of so many axes."""
    return BUNDLES / f"medmnist_{spatial_dims}d_classification"


def network_of(model: Model, dataset: str, dataset_dir: str) -> nn.Module:
    """The untrained network of a model for a data set."""
    dims = dataset_info(dataset, dataset_dir).spatial_dims
    parser = ConfigParser()
    parser.read_config(model.configs(dims))
    parser.update({"dataset_name": dataset, "dataset_dir": dataset_dir, **model.entries(dims)})
    network: nn.Module = parser.get_parsed_content("network_def")
    return network


_TURNED = {
    2: {"train#preprocessing#rotation": 180, "train#preprocessing#fill": "background"},
    3: {"train#preprocessing#rotation": True},
}
_RADIAL = {"network_def#conv": "radial"}
_BANDS = {"network_def#profile": "band", "network_def#orthonormal": False}
_OFFICIAL_SIZE = {"network_def#width": 64, "network_def#kernel_size": [9, 9, 5, 5]}


def _published(package: str) -> dict[str, Any]:
    """Config entry of another package's network."""
    sizes = {
        "spatial_dims": "$@info.spatial_dims",
        "in_channels": "$@info.num_channels",
        "num_classes": "$@info.num_classes",
    }
    return {"network_def": {"_target_": "benchmarks.peer_networks.PeerResNet18", "package": package, **sizes}}


MODELS = {
    "plain": Model("plain, kernels of 3", ("plain.json",), colour="tab:blue"),
    "plain-turned": Model("plain, random rotations in training", ("plain.json",), {}, _TURNED, colour="tab:orange"),
    "plain-averaged": Model("plain, averaged over rotations at test time", averaged="plain", colour="tab:green"),
    "bands": Model("SRE, bands (the published kernel)", (), {**_RADIAL, **_BANDS}, colour="tab:red"),
    "sre": Model("SRE, Gaussian rings", (), _RADIAL, colour="tab:pink"),
    "harmonic": Model("SRE, Gaussian rings and harmonic energies (the bundles)", colour="tab:purple"),
    "harmonic-1": Model("the same, energies of order 1 only", (), {"network_def#conv": ["harmonic", {"orders": [1]}]}),
    "plain-wide": Model("plain, width 64", ("plain.json",), {"network_def#block_inplanes": [64, 128, 256, 512]}),
    "sre-wide": Model("SRE, Gaussian rings, width 64, kernels 9, 9, 5, 5", (), {**_RADIAL, **_OFFICIAL_SIZE}),
    "official": Model("SRE-Conv's own network, width 64", (), _published("SRE_Conv"), colour="tab:gray"),
    "gmr": Model("GMR-Conv's own network, width 64", (), _published("GMR_Conv"), colour="tab:olive"),
}

#: Changes of the bundles' network and recipe, judged on validation sets alone.
VARIANTS = {
    "unchanged": Model("the bundles' network and recipe"),
    "isotropic": Model("rings of least error at every angle", (), {"network_def#profile": "isotropic"}),
    "kernel-3": Model("kernels of 3", (), {"network_def#kernel_size": 3}),
    "kernel-7": Model("kernels of 7", (), {"network_def#kernel_size": 7}),
    "kernels-9-9-5-5": Model("kernels of 9, 9, 5, 5", (), {"network_def#kernel_size": [9, 9, 5, 5]}),
    "antialias": Model("blur before every stride", (), {"network_def#antialias": True}),
    "disc": Model("corners masked to a disc, in training and test", wrapper="variants.Masked"),
    "group-norm": Model("group normalisation", (), {"network_def#norm": ["group", {"num_groups": 8}]}),
    "memswish": Model("swish in place of ReLU", (), {"network_def#act": "memswish"}),
    "radial-38": Model("no energies, width 38: as many parameters", (), {**_RADIAL, "network_def#width": 38}),
    "width-24": Model("width 24", (), {"network_def#width": 24}),
    "width-48": Model("width 48", (), {"network_def#width": 48}),
    "smoothing": Model("label smoothing 0.1", (), {"loss": "$torch.nn.CrossEntropyLoss(label_smoothing=0.1)"}),
    "ema": Model("moving average of the weights (0.98 a step)", wrapper="variants.Averaged"),
}
