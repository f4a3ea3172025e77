"""What importing the package registers in MONAI."""

from __future__ import annotations

import pytest
import torch
from monai.networks.layers.factories import Conv, Pool
from torch import nn

import monai_sre
from monai_sre import layers
from monai_sre.layers.factories import register

NAMES = {
    "SRECONV": "SREConv",
    "SRECONVTRANS": "SREConvTranspose",
    "SREHARMONICCONV": "SREHarmonicConv",
    "CENTREDAVG": "CentredAvgPool",
    "CENTREDMAX": "CentredMaxPool",
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_registered(name: str, dim: int) -> None:
    factory = Conv if name.startswith("SRE") else Pool
    for key in (name, name.lower()):
        assert factory[key, dim] is getattr(layers, f"{NAMES[name]}{dim}d")


def test_every_layer_of_three_dimensions_is_registered() -> None:
    assert {name[:-2] for name in layers.__all__ if name[-2:] in ("1d", "2d", "3d")} == set(NAMES.values())
    registered = [name for factory in (Conv, Pool) for name in factory.names if name.startswith(("SRE", "CENTRED"))]
    assert sorted(registered) == sorted(NAMES)


def test_registered_once_and_beside_what_is_there() -> None:
    before = (Conv.names, Pool.names)
    register()
    assert (Conv.names, Pool.names) == before
    assert Conv["CONV", 2] is nn.Conv2d
    assert Pool["AVG", 3] is nn.AvgPool3d


def test_layers_from_a_factory_work() -> None:
    layer = Conv["SRECONV", 2](3, 4, kernel_size=5, padding=2)
    assert layer(torch.randn(1, 3, 7, 6)).shape == (1, 4, 7, 6)


def test_public_names_exist() -> None:
    assert all(hasattr(monai_sre, name) for name in monai_sre.__all__)
