"""What a trained model says of itself: a JSON file beside its weights, so that both can be used without the training data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from monai.utils import instantiate
from torch import nn

import monai_sre
from monai_sre.files import draft_of
from monai_sre.nets.checkpoints import misfits, read_tensors
from monai_sre.ops.arguments import cause_of

#: Of the JSON file beside ``model.pt``.
FILE_NAME = "model.json"
#: What the values are that others are made of; options of a bundle are checked as such (:mod:`monai_sre.options`).
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": ("a text", lambda value: isinstance(value, str)),
    "class_names": (
        "a list of names",
        lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, (str, int)) for item in value),
    ),
    "spatial_dims": ("2 or 3", lambda value: value in (2, 3)),
    "num_channels": ("a whole number from 1", lambda value: isinstance(value, int) and value >= 1),
    "axcodes": ("null or a text", lambda value: value is None or isinstance(value, str)),
    "pixdim": (
        "null or a list of numbers",
        lambda value: value is None or (isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)),
    ),
}
#: Attribute of a network that says how it was made.
_NOTE = "_monai_sre_description"


class ModelDescription(Mapping[str, Any]):
    """The values that a model needs to be used: those of a JSON file, by name.

    Args:
        values: ``"network"`` is the network's class and arguments as a MONAI config writes them, ``{"_target_": ..., ...}``.
            The others are those of the config that it was trained with, such as ``"class_names"``.
        source: where they come from, for messages.

    Raises:
        ValueError: when a value is asked for that is not there; the message names the source and what there is.

    Example:
        >>> model = ModelDescription({"network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}})
        >>> model.network()
        Linear(in_features=2, out_features=1, bias=True)
        >>> model["size"]
        Traceback (most recent call last):
        ValueError: the description of the model has no 'size'; it holds network
    """

    def __init__(self, values: Mapping[str, Any], source: str = "the description of the model") -> None:
        self._values, self.source = dict(values), source

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise ValueError(f"{self.source} has no {name!r}; it holds {', '.join(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def network(self, **changes: Any) -> nn.Module:
        """Build the network, with new weights.

        Args:
            changes: arguments of the network that are to be others than those of the description.

        Raises:
            ValueError: the description cannot say how; the message names its source.
        """
        entry = self["network"]
        if entry is None:
            raise ValueError(
                f"{self.source} does not say how the network is made; give the network_def that it was trained with"
            )
        if not isinstance(entry, dict) or not isinstance(entry.get("_target_"), str):
            raise ValueError(
                f"{self.source}: 'network' must be {{'_target_': class, argument: value, ...}}, got {entry!r}"
            )
        arguments = {name: value for name, value in entry.items() if name != "_target_"} | changes
        for name, value in arguments.items():
            if isinstance(value, dict) and "_target_" in value:  # a network within, such as one to be converted
                arguments[name] = ModelDescription({"network": value}, self.source).network()
        try:
            if not _makes_a_network(instantiate(entry["_target_"], "callable")):  # a file of data runs nothing else
                raise TypeError(f"{entry['_target_']} is no nn.Module and no function that is annotated to return one")
            network: nn.Module = instantiate(entry["_target_"], "default", **arguments)
        except Exception as error:  # each network has its own
            cause = cause_of(error)
            raise ValueError(f"{self.source}: the network cannot be built: {type(cause).__name__}: {cause}") from error
        return network


def _makes_a_network(target: Any) -> bool:
    if str(getattr(target, "__module__", "")).startswith("monai.networks.nets."):  # whose functions are not annotated
        return True
    kind = target if isinstance(target, type) else get_type_hints(target).get("return")
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def make_network(target: str, **arguments: Any) -> nn.Module:
    """Build a network and note how, so that training can write it beside the weights: a config's ``network_def``.

    Args:
        target: the network's class by its full name, as ``_target_`` has it in MONAI's configs, or that of a function of
            MONAI's networks, or of another one which is annotated to return a network.
        arguments: its arguments; a network among them, such as that of :func:`monai_sre.convert_to_sre`, should come from
            this function too.

    Returns:
        The network. :func:`network_entry` gives what was noted.

    Raises:
        ValueError: there is no such class or function, or it does not take the arguments.

    Example:
        >>> make_network("torch.nn.Linear", in_features=2, out_features=1)
        Linear(in_features=2, out_features=1, bias=True)
    """
    noted = {
        name: network_entry(value) or value if isinstance(value, nn.Module) else value
        for name, value in arguments.items()
    }
    network = ModelDescription({"network": {"_target_": target, **arguments}}, "network_def").network()
    object.__setattr__(network, _NOTE, {"_target_": target, **noted})
    return network


def network_entry(network: nn.Module) -> dict[str, Any] | None:
    """A network's class and arguments as a MONAI config writes them.

    Args:
        network: from :func:`make_network`.

    Returns:
        What was noted; ``None`` of any other network, and where JSON cannot hold an argument.

    Example:
        >>> network_entry(make_network("torch.nn.Linear", in_features=2, out_features=1))
        {'_target_': 'torch.nn.Linear', 'in_features': 2, 'out_features': 1}
    """
    try:
        entry: dict[str, Any] | None = json.loads(json.dumps(getattr(network, _NOTE, None)))
    except (TypeError, ValueError):
        return None
    return entry


def describe(values: Mapping[str, Any], epoch: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the JSON file of a model holds: the version of this package, the values given, the epoch and its metrics.

    Args:
        values: those that the model needs to be used; ``"network"``, where it is there, is what :func:`network_entry` gives.
        epoch: that the weights come from.
        metrics: of the validation at that epoch; NaN and infinities become ``None``, which JSON can hold.

    Raises:
        TypeError: a value is none that JSON can hold; the message names it.

    Example:
        >>> describe({"size": 28}, epoch=3, metrics={"val_auc": 0.9})["size"]
        28
    """
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the description of a model must hold numbers, texts and lists, got {name}={value!r}"
            ) from error
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"monai_sre_version": monai_sre.__version__, **values, "epoch": epoch, "metrics": finite}


def load_description(path: str | Path) -> ModelDescription:
    """Read the JSON file of a trained model.

    Args:
        path: of the file, or of the weights that it lies beside under the same name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no description of a model.
    """
    path = settled(Path(path).with_suffix(".json"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} is missing: training writes it beside model.pt, and a model needs both"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no description of a model: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no description of a model: it must hold one JSON object")
    for name, (expected, good) in _KINDS.items():
        if name in values and not good(values[name]):
            raise ValueError(f"{path} is no description of a model: {name} must be {expected}, got {values[name]!r}")
    return ModelDescription(values, str(path))


def described_network(path: str | Path, **changes: Any) -> nn.Module:
    """The network of a trained model with new weights: what a config names as its ``network_def``.

    Args:
        path: of its JSON file or of its weights, see :func:`load_description`.
        changes: arguments of the network that are to be others than those of the description.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it does not describe a network that can be built.
    """
    return load_description(path).network(**changes)


def load_network(path: str | Path) -> nn.Module:
    """A trained network with its weights.

    Args:
        path: of the weights, ``model.pt``; training writes ``model.json`` beside them.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: the network cannot be built, or the weights cannot be read or are those of another one.

    Example:
        >>> import json, tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> trained = make_network("torch.nn.Linear", in_features=2, out_features=1)
        >>> torch.save(trained.state_dict(), file)
        >>> _ = file.with_suffix(".json").write_text(json.dumps({"network": network_entry(trained)}))
        >>> torch.equal(load_network(file).weight, trained.weight)
        True
    """
    return load_weights(described_network(path), path).eval()


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Give a network the weights of a file that fits it.

    Args:
        network: as its description builds it.
        path: of the weights, a plain state dict.

    Returns:
        The network itself.

    Raises:
        FileNotFoundError: as :func:`check_weights`.
        ValueError: likewise; the network is as it was.
    """
    network.load_state_dict(_fitting(network, Path(path)))
    return network


def check_weights(network: nn.Module, path: str | Path) -> None:
    """Refuse weights that are not those of a network, in one sentence.

    Args:
        network: as its description builds it.
        path: of the weights, a plain state dict.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it cannot be read, holds no state dict, or one of another network.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save(nn.Linear(3, 1).state_dict(), file)
        >>> try:
        ...     check_weights(nn.Linear(2, 1), file)
        ... except ValueError as error:
        ...     print(str(error).replace(str(file), "model.pt"))
        model.pt does not fit the network: weight has shape (1, 3), the network's is (1, 2)
    """
    _fitting(network, Path(path))


def _fitting(network: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the weights of a trained model")
    state: dict[str, torch.Tensor] = read_tensors(path)
    fault = misfit(network, state)
    if fault:
        raise ValueError(f"{path} does not fit the network: {fault}")
    return state


def misfit(network: nn.Module, state: Any) -> str:
    """Why a state dict is not that of a network; an empty text if it is.

    Example:
        >>> misfit(nn.Linear(2, 1), {"weight": torch.ones(1, 2)})
        'bias is not in it'
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return "it must hold a state dict of tensors"
    faults = list(misfits(network.state_dict(), state).values())
    return faults[0] + (f"; and {len(faults) - 1} more differences" if len(faults) > 1 else "") if faults else ""


def settled(path: Path) -> Path:
    """The description beside weights: its draft, where a process ended after the weights got their name and before it did."""
    draft = draft_of(path)
    return draft if draft.is_file() and not draft_of(path.with_suffix(".pt")).is_file() else path
