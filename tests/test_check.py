"""The command that says how equivariant a network is: what it finds, what it loads, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from monai_sre.check import _ratio, check_network, load, main
from monai_sre.convert import convert_to_sre
from monai_sre.description import make_network
from monai_sre.layers import SREConv2d

ROOT = Path(__file__).parents[1]


class Crop(nn.Module):
    """Breaks the symmetry in its own forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 1:, :]


def test_the_layer_that_breaks_the_symmetry_is_named() -> None:
    network = nn.Sequential(nn.AvgPool2d(3, 1, 1), SREConv2d(1, 4, 5, padding=2), nn.Sequential(nn.ReLU(), Crop()))
    check = check_network(network, (1, 1, 18, 15), angles=(40,), seconds=0)
    assert check.breaking == ["2.1"]
    assert check.ranked()[0] == "2.1"
    assert check.layers["1"]["grid"] < 1e-6 < 1e-3 < check.layers["1"]["40 deg"]
    assert list(check.errors["angles"]) == ["40 deg"]
    assert len(check.errors["grid"]) == 8
    assert "| 2.1 |" in str(check)


def test_a_forward_that_breaks_it_is_named_too() -> None:
    check = check_network(Crop(), (1, 1, 18, 15), seconds=0)
    assert check.breaking == [""]
    assert "| (its own forward) |" in str(check)


def test_an_exact_network_has_no_such_layer_and_its_own_shape_is_found() -> None:
    network = convert_to_sre(UNet(3, 2, 2, channels=(4, 8), strides=(2,)))
    check = check_network(network, angles=(), seconds=0)
    assert max(check.errors["grid"].values()) < 1e-5
    assert check.errors["angles"] == {}
    assert check.breaking == []
    assert "input 2x2x19x22x25" in check.title
    assert "layers that break the symmetries of the grid: 0;" in str(check)


def test_costs_are_in_ratio_to_dense_kernels_and_to_a_plain_network() -> None:
    layer = SREConv2d(4, 4, 5, padding=2, bias=False)  # 3 radii, 25 taps
    own = check_network(nn.Sequential(layer), (2, 4, 12, 12), seconds=0)
    assert own.costs["parameters"] == layer.weight.shape[-1] / 25
    plain = check_network(nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, bias=False)), (2, 4, 12, 12), seconds=0)
    assert plain.costs["parameters"] == own.costs["parameters"]
    assert min(*own.costs.values(), *plain.costs.values()) > 0
    assert "convert_to_sre" in plain.twin


def test_times_are_compared_by_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slow = [0.0], iter([9.0, 3.0, 50.0, 3.0])  # the first warms up
    monkeypatch.setattr("monai_sre.check.time.perf_counter", lambda: now[0])

    def takes(seconds: Iterator[float]) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + next(seconds))

    assert _ratio(takes(slow), takes(repeat(2.0)), seconds=0) == 1.5


def test_a_network_that_cannot_be_converted_says_why() -> None:
    check = check_network(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 2)), (1, 1, 8, 8), seconds=0
    )
    assert check.costs == {}
    assert "1 (Flatten): it does not commute with" in check.twin


def test_a_training_step_that_fails_says_why() -> None:
    network = nn.Sequential(SREConv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))
    check = check_network(network, (1, 1, 8, 8), seconds=0)
    assert list(check.costs) == ["parameters", "forward"]
    assert "no training step: ValueError: Expected more than 1 value per channel" in check.twin


def test_a_frozen_network_has_no_training_step() -> None:
    network = nn.Sequential(SREConv2d(1, 2, 3, padding=1)).requires_grad_(False)
    assert (
        "no training step: ValueError: no parameter requires a gradient"
        in check_network(network, (1, 1, 8, 8), seconds=0).twin
    )


@pytest.mark.parametrize("build", [lambda: SREConv2d(1, 2, 3, padding=1), lambda: nn.Conv2d(1, 2, 3, padding=1)])
def test_the_input_has_the_precision_of_the_network(build: Callable[[], nn.Module]) -> None:
    """A network in float64 tells rounding from what is not symmetric."""
    network = nn.Sequential(build()).double()
    error = max(check_network(network, (1, 1, 8, 8), seconds=0).errors["grid"].values())
    assert error < 1e-14 if isinstance(network[0], SREConv2d) else error > 1e-2


def test_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_network(network, (2, 1, 9, 9), seconds=0)
    assert network.training
    assert isinstance(network[0], nn.Conv2d)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_bundle_has_its_own_weights() -> None:
    folder = ROOT / "bundles/hippocampus_segmentation"
    network = load(str(folder))
    wanted = torch.load(folder / "models/model.pt", weights_only=True)
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())


def test_a_bundle_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    config = {
        "imports": ["$import torch.nn as layers"],
        "width": 3,
        "network_def": "$layers.Sequential(layers.Conv2d(1, @width, 3))",
    }
    (tmp_path / "configs/train.json").write_text(json.dumps(config))
    network = load(str(tmp_path))
    assert network[0].out_channels == 3
    torch.save(network[0].state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt does not fit the network: 0.weight is not in it"):
        load(str(tmp_path), weights=tmp_path / "other.pt")


def test_torchscript_has_errors_alone(tmp_path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3))).save(str(tmp_path / "model.ts"))
    network = load(str(tmp_path / "model.ts"))
    check = check_network(network, (1, 1, 9, 9))
    assert check.errors["grid"]["flip(0)"] > 0.1
    assert (check.layers, check.costs) == ({}, {})
    assert "name the network's class" in str(check)
    with pytest.raises(ValueError, match="shape must be given for a TorchScript network"):
        check_network(network)


made_network = make_network("torch.nn.Conv2d", in_channels=1, out_channels=2, kernel_size=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.such.module"], "'no.such.module' is no bundle, no TorchScript file and cannot be imported"),
        (["torch.nn:Conv2d"], "torch.nn:Conv2d cannot be built: TypeError"),
        (["torch:nn"], "torch:nn must be a network, or return one, got module"),
        (["torch:zeros", "--size", "(2,)"], "torch:zeros must be a network, or return one, got Tensor"),
        (["tests.test_check:made_network", "--width", "3"], "takes no arguments, got width"),
        (
            ["tests.test_check:made_network", "--shape", "1,5,9,9"],
            "shape=(1, 5, 9, 9): the network raises RuntimeError",
        ),
        (
            ["tests.test_check:made_network", "--shape", "9,9"],
            "shape must be (N, C, *spatial) with 1 to 3 spatial axes",
        ),
        (["torch.nn:ReLU"], "give the shape, such as 2,1,64,64"),
        (["{folder}"], "is no bundle: it has no configs/inference.json"),
        (["{folder}/file.ts"], "file.ts is no TorchScript file"),
        (["{folder}/file.ts", "--width", "3"], "file.ts takes no arguments, got width"),
        (["tests.test_check:made_network", "--weights", "{folder}/none.pt"], "none.pt is missing"),
        (["torch.nn:ReLU", "--inplace=True", "stray", "--shape", "1,1,9,9"], "'stray' is no argument of the network"),
        (["{folder}/file.ts", "--weights", "{folder}/none.pt"], "file.ts holds its weights, and takes no others, got"),
    ],
)
def test_wrong_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.ts").write_text("no network")
    with pytest.raises(SystemExit) as stop:
        main([word.format(folder=tmp_path) for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_command_prints_tables_and_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["torch.nn:Conv2d", "--in_channels", "1", "--out_channels=2", "--kernel_size", "(3, 3)"]
    main(
        [*network, "--shape", "1,1,9,9", "--seconds", "0", "--angles", "10,22.5", "--picture", f"{tmp_path}/check.png"]
    )
    printed = capsys.readouterr().out
    assert "| 22.5 deg |" in printed
    assert (tmp_path / "check.png").stat().st_size > 5000
