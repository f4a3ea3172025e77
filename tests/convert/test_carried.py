"""What a replaced module leaves to the new one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

from monai_sre import SREConv2d, convert_to_sre, fold_sre


def test_hooks_stay() -> None:
    for change in (convert_to_sre, lambda net: fold_sre(convert_to_sre(net))):
        net, seen = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), []
        handle = net[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        change(net)
        seen.clear()
        net(torch.randn(1, 1, 8, 8))
        assert seen == [1]
        handle.remove()
        net(torch.randn(1, 1, 8, 8))
        assert seen == [1]


def test_shared_modules_stay_shared() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    network = convert_to_sre(nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)}), verify=False)
    assert isinstance(network["a"], SREConv2d)
    assert network["a"] is network["b"][0]
    dynunet: Any = convert_to_sre(
        nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8), deep_supervision=True, deep_supr_num=1)
    )
    assert dynunet.input_block.conv1.conv is dynunet.skip_layers.downsample.conv1.conv


@pytest.mark.parametrize("options", [{}, {"init": "reset"}, {"conv": "harmonic"}])
def test_tied_parameters_stay_tied(options: dict[str, Any]) -> None:
    first, second, third = (
        nn.Conv2d(2, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, stride=2, padding=1),
        nn.Conv2d(2, 2, 1),
    )
    second.weight, third.bias = first.weight, first.bias
    network: Any = convert_to_sre(nn.Sequential(first, second, third), **options)
    ours, theirs = (dict(layer.named_parameters()) for layer in network[:2])
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert (theirs[name] is parameter) != name.endswith("bias"), name
    if not options.get("conv"):
        assert network[2].bias is network[0].bias
