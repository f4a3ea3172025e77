"""What a model says of itself: written, read, and held against weights that are not its own."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet121
from torch import nn

import monai_sre
from monai_sre.description import (
    check_weights,
    describe,
    described_network,
    load_description,
    load_weights,
    make_network,
    network_entry,
)

BASIC = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 4, 4]}


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (
            "monai_sre.nets.SREResNet",
            {"spatial_dims": 2, "in_channels": 1, "num_classes": 3, "width": 4, "conv": ["harmonic", {"orders": [1]}]},
        ),
        ("monai.networks.nets.ResNet", {**BASIC, "spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}),
        ("monai_sre.nets.sre_resnet18", {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "width": 4}),
        ("monai.networks.nets.MedNeXtS", {"spatial_dims": 2, "in_channels": 1}),
    ],
    ids=["SREResNet", "ResNet", "a function of ours", "a function of MONAI"],
)
def test_a_network_is_built_again_from_its_description(tmp_path: Path, target: str, arguments: dict[str, Any]) -> None:
    network = make_network(target, **arguments)
    path = tmp_path / "model.json"
    values = describe({"network": network_entry(network)}, 3, {"val_auc": 0.9, "val_loss": float("nan")})
    path.write_text(json.dumps(values))
    model = load_description(path)
    assert (model["epoch"], model["metrics"]) == (3, {"val_auc": 0.9, "val_loss": None})
    twin = described_network(path)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, *[16] * arguments["spatial_dims"])
    torch.testing.assert_close(twin.eval()(x), network.eval()(x), rtol=0, atol=0)
    assert network_entry(copy.deepcopy(network)) == network_entry(network)


def test_a_converted_network_is_converted_again(tmp_path: Path) -> None:
    """As a config writes it: a network to be made within the one to be made."""
    make, unet = "monai_sre.description.make_network", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    inner = {"_target_": make, "target": "monai.networks.nets.UNet", **unet, "channels": [4, 8], "strides": [2]}
    outer = {"_target_": make, "target": "monai_sre.convert_to_sre", "network": inner, "antialias": True}
    network = ConfigParser({"net": outer}).get_parsed_content("net")
    entry = network_entry(network)
    assert entry is not None
    assert entry["network"] == {
        key.replace("target", "_target_"): value for key, value in inner.items() if key != "_target_"
    }
    (tmp_path / "model.json").write_text(json.dumps({"network": entry}))
    twin = described_network(tmp_path / "model.json")
    assert repr(twin) == repr(network)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 12, 16)
    torch.testing.assert_close(twin.eval()(x), network.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["model.pt", "model.json", "other.pt"])
def test_weights_have_the_description_beside_them(tmp_path: Path, name: str) -> None:
    for stem in ("model", "other"):
        (tmp_path / f"{stem}.json").write_text(json.dumps({"data": stem}))
    assert load_description(tmp_path / name)["data"] == name.split(".")[0]


def test_a_config_may_change_an_argument(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}}))
    assert described_network(path, out_features=5).weight.shape == (5, 2)


def test_a_trained_network_has_its_weights_and_is_ready_for_use(tmp_path: Path) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 1, "num_classes": 2, "width": 4}
    trained, path = make_network("monai_sre.nets.SREResNet", **arguments).eval(), tmp_path / "model.pt"
    torch.save(trained.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"network": network_entry(trained)}))
    loaded, x = monai_sre.load_network(path), torch.randn(2, 1, 20, 17)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), trained(x), rtol=0, atol=0)


def test_a_network_of_which_nothing_is_known_is_left_out_and_said(tmp_path: Path) -> None:
    converted = make_network("monai_sre.convert_to_sre", network=DenseNet121(2, 1, 2), verify=False)
    assert network_entry(converted) is None
    assert network_entry(nn.Linear(2, 1)) is None
    (tmp_path / "model.json").write_text(json.dumps(describe({"network": None}, 1, {})))
    with pytest.raises(ValueError, match=r"model.json does not say how the network is made; give the network_def"):
        described_network(tmp_path / "model.json")


def test_only_what_json_can_hold_describes_a_model() -> None:
    with pytest.raises(TypeError, match="got device=device"):
        describe({"device": torch.device("cpu")}, 1, {})


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "model.json is missing: training writes it beside model.pt"),
        ("{", ValueError, "model.json is no description of a model"),
        ("[1]", ValueError, "it must hold one JSON object"),
        ('{"network": {"_target_": "monai_sre.nets.Nothing"}}', ValueError, "the network cannot be built"),
        ('{"network": {"_target_": "monai_sre.nets.SREResNet", "spatial_dims": 7}}', ValueError, "cannot be built"),
        ('{"size": 28}', ValueError, "model.json has no 'network'; it holds size"),
        ('{"task": null}', ValueError, "model.json is no description of a model: task must be a text, got None"),
        ('{"class_names": "ab"}', ValueError, "class_names must be a list of names, got 'ab'"),
        ('{"class_names": [["a"]]}', ValueError, r"class_names must be a list of names, got \[\['a'\]\]"),
        ('{"spatial_dims": "2"}', ValueError, "spatial_dims must be 2 or 3, got '2'"),
        ('{"axcodes": 3}', ValueError, "axcodes must be null or a text, got 3"),
        ('{"pixdim": ["a"]}', ValueError, r"pixdim must be null or a list of numbers, got \['a'\]"),
        ('{"num_channels": 0}', ValueError, "num_channels must be a whole number from 1, got 0"),
        (
            '{"network": {"_target_": "os.mkdir", "path": "run"}}',
            ValueError,
            "os.mkdir is no nn.Module and no function",
        ),
        (
            '{"network": {"_target_": "torch.hub.load", "repo_or_dir": "a/b"}}',
            ValueError,
            "torch.hub.load is no nn.Mod",
        ),
        ('{"network": {"_target_": "pathlib.Path"}}', ValueError, "pathlib.Path is no nn.Module"),
    ],
)
def test_a_damaged_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, error: type[Exception], message: str
) -> None:
    """Which runs nothing, either."""
    path = tmp_path / "model.json"
    monkeypatch.chdir(tmp_path)
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        load_description(path).network()
    assert not (tmp_path / "run").exists()


def weights(kind: str, path: Path) -> None:
    other = nn.Linear(2, 1)
    if kind == "text":
        path.write_text("no weights")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(other))
    elif kind == "one bit":
        torch.save({"weight": torch.full((1, 3), 2.0), "bias": torch.ones(1)}, path)
        two, four = (torch.full((3,), value).numpy().tobytes() for value in (2.0, 4.0))
        path.write_bytes(path.read_bytes().replace(two, four))
    elif kind == "list":
        torch.save([torch.ones(1)], path)
    elif kind == "names":
        torch.save({"kernel": torch.ones(1, 3), "bias": torch.ones(1)}, path)
    elif kind == "integers":
        torch.save({"weight": torch.ones(1, 3, dtype=torch.int64), "bias": torch.ones(1)}, path)
    elif kind == "shape":
        torch.save(other.state_dict(), path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "model.pt is missing"),
        ("text", "model.pt cannot be read as weights"),
        ("empty", "model.pt cannot be read as weights"),
        ("pickle", "model.pt cannot be read as weights"),
        ("one bit", "model.pt cannot be read as weights"),
        ("list", "model.pt does not fit the network: it must hold a state dict of tensors"),
        ("names", "model.pt does not fit the network: weight is not in it; and 1 more differences"),
        ("integers", "weight holds torch.int64, the network's is torch.float32"),
        ("shape", r"weight has shape \(1, 2\), the network's is \(1, 3\)"),
    ],
)
@pytest.mark.parametrize("use", [check_weights, load_weights])
def test_weights_that_do_not_fit_end_in_one_sentence(
    tmp_path: Path, use: Callable[[nn.Module, Path], Any], kind: str, message: str
) -> None:
    path, network = tmp_path / "model.pt", nn.Linear(3, 1)
    weights(kind, path)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        use(network, path)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
