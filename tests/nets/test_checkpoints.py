"""Checkpoints that can be made without the published packages; for theirs, see ``benchmarks/tests``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_sre import load_network
from monai_sre.description import make_network, network_entry
from monai_sre.nets import SREResNet
from monai_sre.nets.checkpoints import load_sre_checkpoint


def test_unreadable_files(tmp_path: Path) -> None:
    ours = SREResNet(2, 3, 5, width=8)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_sre_checkpoint(ours, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pth cannot be read as weights"):
        load_sre_checkpoint(ours, tmp_path / "text.pth")
    torch.save(ours.state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut.pth cannot be read as weights"):
        load_sre_checkpoint(ours, tmp_path / "cut.pth")
    torch.save(ours, tmp_path / "whole.pth")  # a pickled module would run code
    with pytest.raises(ValueError, match=r"whole.pth cannot be read as weights"):
        load_sre_checkpoint(ours, tmp_path / "whole.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    for path in (tmp_path / "empty.pth", tmp_path):
        with pytest.raises(ValueError, match=r"cannot be read as weights \(\w+\); expected tensors, as torch.save"):
            load_sre_checkpoint(ours, path)
    torch.save(ours.state_dict(), tmp_path / "flipped.pth")
    content = bytearray((tmp_path / "flipped.pth").read_bytes())
    place = content.find(ours.fc.weight.detach().numpy().tobytes()) + 2
    content[place] ^= 4
    (tmp_path / "flipped.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped.pth cannot be read as weights"):
        load_sre_checkpoint(ours, tmp_path / "flipped.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(TypeError, match="checkpoint must be a path or a state dict"):
        load_sre_checkpoint(ours, tmp_path / "list.pth")


def test_our_own_and_foreign_state_dicts() -> None:
    ours, other = SREResNet(2, 3, 5, width=8), SREResNet(2, 3, 5, width=8)
    assert load_sre_checkpoint(ours, {"model": other.state_dict()}) == "monai_sre"
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ValueError, match=r"none of SRE-Conv, .*\['0.bias', '0.weight'\]"):
        load_sre_checkpoint(ours, nn.Sequential(nn.Linear(1, 1)).state_dict())
    with pytest.raises(ValueError, match=r"state dict of tensors, got also \['lr'\]"):
        load_sre_checkpoint(ours, {"lr": 0.1})
    with pytest.raises(ValueError, match="got none"):
        load_sre_checkpoint(ours, {})
    with pytest.raises(TypeError, match="network must be an SREResNet, got dict"):
        load_sre_checkpoint({}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    """Nothing is rounded or cut off without a word; half precision is taken."""
    ours = SREResNet(2, 3, 5, width=8)
    state = ours.state_dict()
    with pytest.raises(ValueError, match=rf"conv1.weight holds {dtype}, the network's is torch.float32"):
        load_sre_checkpoint(ours, {**state, "conv1.weight": state["conv1.weight"].to(dtype)})
    broken = state["conv1.weight"].clone()
    broken[0] = torch.nan
    with pytest.raises(ValueError, match=r"conv1.weight holds values that are not finite"):
        load_sre_checkpoint(ours, {**state, "conv1.weight": broken})
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    assert load_sre_checkpoint(ours, half) == "monai_sre"


def test_our_own_state_dicts_in_their_wrappings() -> None:
    ours, other = SREResNet(2, 3, 5, width=8), SREResNet(2, 3, 5, width=8)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        wrapped = {f"{prefix}{name}": value for name, value in other.state_dict().items()}
        nn.init.zeros_(ours.fc.weight)
        assert load_sre_checkpoint(ours, {"network": wrapped, "epoch": 3}) == "monai_sre"
        assert torch.equal(ours.fc.weight, other.fc.weight)


def test_a_learned_width_that_was_saved_as_a_scalar(tmp_path: Path) -> None:
    options = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "width": 4}
    options["profile"] = ["gaussian", {"learn_width": True}]
    ours, file = make_network("monai_sre.nets.SREResNet", **options), tmp_path / "model.pt"
    new = {name: torch.full_like(value, 0.25) for name, value in ours.state_dict().items() if "log_width" in name}
    state = {**ours.state_dict(), **{name: value.reshape(()) for name, value in new.items()}}
    assert new
    assert load_sre_checkpoint(ours, state) == "monai_sre"
    torch.save(state, file)
    file.with_suffix(".json").write_text(json.dumps({"network": network_entry(ours)}))
    for network in (ours, load_network(file)):
        torch.testing.assert_close({name: network.state_dict()[name] for name in new}, new)
    with pytest.raises(ValueError, match=r"fc\.bias has shape \(\), the network's is \(2,\)"):
        load_sre_checkpoint(ours, {**state, "fc.bias": torch.tensor(0.0)})


def test_wrapped_networks_take_what_they_gave() -> None:
    for wrap in (nn.DataParallel, torch.compile):
        one, other = (wrap(SREResNet(2, 1, 3, width=4)) for _ in range(2))  # type: ignore[operator]
        assert load_sre_checkpoint(other, one.state_dict()) == "monai_sre"
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
