"""Weights of the published packages, as these build and save them; what needs none of them is in ``tests/nets``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers
from monai_sre.layers import SREConv2d
from monai_sre.nets import SREResNet
from monai_sre.nets.checkpoints import load_sre_checkpoint

PREFIXES = {"SRE": "sre", "SRI": "sri", "GMR": "gmr"}
STAGES = [9, 9, 5, 5]


@pytest.fixture
def peer() -> Callable[[str, str], ModuleType]:
    """One file of a peer package, such as ``sre_resnet`` for ``("SRE", "resnet")``."""

    def load(short: str, name: str) -> ModuleType:
        module = peers.peer(f"{short}_Conv", f"{PREFIXES[short]}_{name}")
        return module or pytest.skip(f"the peer package {short}_Conv is not installed")

    return load


def trained(network: nn.Module) -> nn.Module:
    """As if trained: every weight, average and mixing width has a value of its own."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "running_var" in name or (value.dim() == 1 and name.endswith("weight")):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif "running_mean" in name or name.endswith("bias") or "log_sigmas" in name:
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return network


def compare(theirs: nn.Module, ours: SREResNet, kind: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    assert load_sre_checkpoint(ours, trained(theirs).state_dict()) == kind
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
            expected = theirs(x)
            assert float((ours(x) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("orthonormal", [False, True])
def test_sre_conv(peer: Any, depth: int, orthonormal: bool) -> None:
    options = {"num_classes": 5, "inplanes": 16, "sre_conv_size": STAGES, "skip_first_maxpool": True}
    theirs = getattr(peer("SRE", "resnet"), f"sre_resnet{depth}")(**options)
    ours = SREResNet(2, 3, 5, depth=depth, width=16, orthonormal=orthonormal)
    compare(theirs, ours, "SRE-Conv", ((3, 32, 32), (3, 40, 48)) if depth == 18 else ((3, 32, 32),))


def test_sre_conv_at_full_width_and_the_sizes_of_the_paper(peer: Any) -> None:
    theirs = peer("SRE", "resnet").sre_resnet18(num_classes=9, sre_conv_size=STAGES, skip_first_maxpool=True)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 3996105
    compare(theirs, SREResNet(2, 3, 9), "SRE-Conv", ((3, 32, 32), (3, 64, 64)))


def test_sre_conv_with_chosen_rings_and_max_pool(peer: Any) -> None:
    options = {"num_classes": 5, "inplanes": 8, "sre_conv_size": 5, "sre_k": [2, 3, 3, 2]}
    theirs = peer("SRE", "resnet").sre_resnet18(**options)
    ours = SREResNet(2, 3, 5, width=8, kernel_size=5, num_rings=(2, 3, 3, 2), max_pool=True)
    compare(theirs, ours, "SRE-Conv", ((3, 31, 63),))  # 16 and 32 behind the max-pooling, whose grid is centred


def test_sri_conv(peer: Any) -> None:
    """SRI-Conv fills the corners. Its ResNet50 cannot be built: it passes arguments that its layers do not take."""
    options = {"num_classes": 5, "inplanes": 16, "ri_conv_size": STAGES, "skip_first_maxpool": True}
    theirs = peer("SRI", "resnet").sri_resnet18(**options)
    compare(theirs, SREResNet(2, 3, 5, width=16, circular=False), "SRI-Conv", ((3, 32, 32), (3, 40, 40)))


@pytest.mark.parametrize("size", [3, 5])
def test_sri_conv_forced_to_be_circular(peer: Any, size: int) -> None:
    """Only the stem and the first convolution of each block are. With 3 or 5 taps filled corners hold such kernels, too."""
    options = {"num_classes": 5, "inplanes": 16, "ri_conv_size": size, "skip_first_maxpool": True}
    theirs = peer("SRI", "resnet").sri_resnet18(**options, force_circular=True)
    ours = SREResNet(2, 3, 5, width=16, kernel_size=size, circular=False)
    compare(theirs, ours, "SRI-Conv", ((3, 32, 32), (3, 40, 40)))
    assert not ours.conv1.kernel()[..., 0, 0].any()
    assert ours.stages[0][0].conv2.kernel()[..., 0, 0].all()


def test_sri_conv_forced_to_be_circular_with_large_kernels(peer: Any) -> None:
    options = {"num_classes": 5, "inplanes": 16, "ri_conv_size": STAGES, "skip_first_maxpool": True}
    theirs = trained(peer("SRI", "resnet").sri_resnet18(**options, force_circular=True))
    for circular, convolution in ((True, "conv2"), (False, "conv1")):
        message = refusal(SREResNet(2, 3, 5, width=16, circular=circular), theirs.state_dict())
        assert f"stages.0.0.{convolution}.weight: " in message
        assert f"over (9, 9) taps, as profile='band', circular={not circular} has" in message
    ours = SREResNet(2, 3, 5, width=16)
    for stage in ours.stages:
        for block in stage:
            width, kernel = block.conv2.out_channels, block.conv2.kernel_size
            block.conv2 = SREConv2d(width, width, kernel, padding="same", bias=False, circular=False)
    compare(theirs, ours, "SRI-Conv", ((3, 32, 32), (3, 40, 40)))


@pytest.mark.parametrize("depth", [18, 50])
def test_gmr_conv(peer: Any, depth: int) -> None:
    options = {"num_classes": 5, "inplanes": 16, "gmr_conv_size": STAGES, "skip_first_maxpool": True}
    theirs = getattr(peer("GMR", "resnet"), f"gmr_resnet{depth}")(**options)
    compare(theirs, SREResNet(2, 3, 5, depth=depth, width=16), "GMR-Conv", ((3, 32, 32), (3, 48, 48)))


@pytest.mark.parametrize(("short", "size"), [("SRE", "sre_conv_size"), ("GMR", "gmr_conv_size")])
def test_3d(peer: Any, short: str, size: str) -> None:
    theirs = getattr(peer(short, "resnet_3d"), f"{short.lower()}_r3d_18")(num_classes=11, in_channels=1, **{size: 5})
    compare(theirs, SREResNet(3, 1, 11, stem_kernel_size=3), f"{short}-Conv", ((1, 8, 8, 16),))
    if short == "SRE":
        assert sum(parameter.numel() for parameter in theirs.parameters()) == 3849227
    with pytest.raises(
        ValueError, match=r"conv1.weight: .* 2 rings over \(3, 7, 7\) taps \(alive within \(3, 3, 3\)\)"
    ):
        load_sre_checkpoint(SREResNet(3, 1, 11, stem_kernel_size=(3, 7, 7)), theirs.state_dict())


def test_files(peer: Any, tmp_path: Path) -> None:
    theirs = trained(peer("SRE", "resnet").sre_resnet18(num_classes=5, inplanes=8, sre_conv_size=5))
    ours = SREResNet(2, 3, 5, width=8, kernel_size=5)
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "latest.pth")
    assert load_sre_checkpoint(ours, tmp_path / "latest.pth") == "SRE-Conv"
    torch.save({f"module.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "parallel.pth")
    again = SREResNet(2, 3, 5, width=8, kernel_size=5)
    assert load_sre_checkpoint(again, str(tmp_path / "parallel.pth")) == "SRE-Conv"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


def refusal(network: nn.Module, state: dict[str, Tensor]) -> str:
    """The message with which a state dict is refused; the network is as it was."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the network") as raised:
        load_sre_checkpoint(network, state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return str(raised.value)


def test_what_does_not_fit_is_listed(peer: Any) -> None:
    package = peer("SRE", "resnet")
    state = package.sre_resnet18(num_classes=5, inplanes=8, sre_conv_size=5).state_dict()
    ours = SREResNet(2, 3, 5, width=8, kernel_size=5)
    partial = {name: value for name, value in state.items() if not name.startswith("layer2.0.conv2")}
    assert "stages.1.0.conv2.weight is not in it" in refusal(ours, partial)
    assert "fc.weight has shape (5, 64), the network's is (7, 64)" in refusal(
        SREResNet(2, 3, 7, width=8, kernel_size=5), state
    )
    assert "the network has no extra.weight" in refusal(ours, {**state, "extra.weight": torch.zeros(1)})
    assert "norm1.bias holds values that are not finite" in refusal(
        ours, {**state, "bn1.bias": torch.full((8,), torch.nan)}
    )
    deeper = refusal(SREResNet(2, 3, 5, depth=34, width=8, kernel_size=5), state)
    assert "stages.0.2.conv1.weight is not in it" in deeper
    assert "more" in deeper


def test_other_kernels_are_refused_and_described(peer: Any) -> None:
    state = peer("SRE", "resnet").sre_resnet18(num_classes=5, inplanes=8, sre_conv_size=STAGES).state_dict()
    message = refusal(SREResNet(2, 3, 5, width=8, profile="gaussian"), state)
    assert "outside the network's basis of 5 rings: they have 5 rings over (9, 9) taps" in message
    assert "(9, 9) have taps beyond the network's (5, 5)" in refusal(SREResNet(2, 3, 5, width=8, kernel_size=5), state)
    message = refusal(SREResNet(2, 3, 5, width=8, circular=False), state)
    assert "profile='band', circular=True" in message


def test_learned_index_matrices_are_refused(peer: Any) -> None:
    """SRI-Conv can train the index matrix: each tap then has a value of its own, which no radial kernel has."""
    options = {"num_classes": 5, "inplanes": 8, "ri_conv_size": 5, "train_index_mat": True}
    theirs = peer("SRI", "resnet").sri_resnet18(**options)
    with torch.no_grad():
        theirs.layer1[0].conv1.weight_index_mat += 0.1 * torch.randn(1, 1, 4, 25)
    message = refusal(SREResNet(2, 3, 5, width=8, kernel_size=5, circular=False), theirs.state_dict())
    assert message.count("outside the network's basis") == 1
    assert "stages.0.0.conv1.weight" in message
