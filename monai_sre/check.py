"""Why is it not equivariant? ``python -m monai_sre.check NETWORK`` says how far a network is, by which layer, and the cost.

``NETWORK`` is one of

* a class, function or network that can be imported, ``monai.networks.nets.UNet`` or ``my_module:network``; what is no option
  of this command is an argument of it: ``--spatial_dims 2 --channels "(8, 16)"``;
* the folder of a MONAI bundle: its ``network_def``, with ``models/model.pt`` where that is there;
* a TorchScript file, of which no layers can be seen.

Errors are those of :mod:`monai_sre.symmetry.error`, of smooth noise. Costs are in ratio to the plain twin: for a network with
radial layers, dense kernels in their place (``fold_sre(form="dense")``); a plain network is itself the twin of what
``convert_to_sre`` makes of it. Needs no extra of the package, but for the picture ``monai_sre[bundles,plot]``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn

from monai_sre.convert import convert_to_sre, fold_sre
from monai_sre.convert.trial import find_input, prepared, spatial_dims_of
from monai_sre.description import load_weights
from monai_sre.layers.conv import RadialNd
from monai_sre.ops.arguments import cause_of
from monai_sre.options import given_options
from monai_sre.symmetry.error import culprits, equivariance_error, layer_errors, tensors_of

#: The name under which the largest error of the symmetries of the grid stands.
GRID = "grid"
_ENDINGS = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class Check:
    """What :func:`check_network` has found.

    Attributes:
        title: the network's class, and the shape of the input.
        errors: relative error of each symmetry under ``"grid"``, and of each rotation under ``"angles"``.
        layers: the same of each module by itself, in the order in which they finish: the largest of the symmetries of the
            grid (``"grid"``), and of each angle. Empty for a TorchScript file.
        breaking: names of the innermost modules that break the symmetries of the grid.
        costs: parameters, time of a forward and of a training step, in ratio to the plain twin.
        twin: what the ratio is of, or why there is none.
    """

    title: str
    errors: Mapping[str, Mapping[str, float]]
    layers: Mapping[str, Mapping[str, float]]
    breaking: Sequence[str]
    costs: Mapping[str, float]
    twin: str

    def __str__(self) -> str:
        """Tables in Markdown."""
        grid, turns = self.errors[GRID], self.errors["angles"]
        worst = max(grid, key=lambda name: grid[name])
        rows = {f"{GRID}, the worst of {len(grid)}: {worst}": grid[worst]} | dict(turns)
        text = f"{self.title}\n\n" + _table("transformation", {name: {"error": value} for name, value in rows.items()})
        if self.layers:
            count = len(self.breaking)
            text += f"\nlayers that break the symmetries of the grid: {count}"
            text += f"{', first below' if count else ''}; then those with the largest errors at angles\n\n"
            text += _table("layer", {name or "(its own forward)": self.layers[name] for name in self.ranked()[:10]})
        costs = {name: {"ratio": value} for name, value in self.costs.items()}
        return f"{text}\ncosts, {self.twin}\n" + (f"\n{_table('', costs, '.2f')}" if costs else "")

    def ranked(self) -> list[str]:
        """Innermost layers: those that break the symmetries of the grid, then by their largest error at an angle."""
        inner = [name for name in self.layers if name and not any(each.startswith(f"{name}.") for each in self.layers)]
        return [
            *self.breaking,
            *(n for n in sorted(inner, key=self._at_angles, reverse=True) if n not in self.breaking),
        ]

    def _at_angles(self, name: str) -> float:
        return max((error for key, error in self.layers[name].items() if key != GRID), default=0.0)


def check_network(
    network: nn.Module, shape: Sequence[int] | None = None, angles: Sequence[float] = (30.0,), seconds: float = 2.0
) -> Check:
    """How equivariant a network is, which of its layers break the symmetry, and what it costs beside its plain twin.

    Args:
        network: any module; it stays as it was.
        shape: of the input, ``(N, C, *spatial)``; ``None`` looks for one that the network accepts.
        angles: of rotation in degrees, beside the symmetries of the grid; in 3-D about each axis.
        seconds: how long each of two times is measured, in rounds of both networks in turn; medians are compared.

    Raises:
        ValueError: the network takes no input of this shape, or none was found.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> check = check_network(net, (2, 1, 24, 20), seconds=0)
        >>> list(check.errors["angles"]), check.breaking, list(check.costs)
        (['30 deg'], ['0'], ['parameters', 'forward', 'training step'])
    """
    x = _smooth(network, shape or _accepted_shape(network))
    try:
        with torch.no_grad():
            copy.deepcopy(network).eval()(x)
    except Exception as error:  # each network has its own
        raise ValueError(f"shape={tuple(x.shape)}: the network raises {type(error).__name__}: {error}") from error
    title = f"{type(network).__name__}, input {'x'.join(map(str, x.shape))}"
    turns = list(angles) if x.dim() > 3 else []
    errors = {GRID: equivariance_error(network, x), "angles": equivariance_error(network, x, turns)}
    if isinstance(network, torch.jit.ScriptModule):
        return Check(title, errors, {}, [], {}, "not known of TorchScript, nor its layers: name the network's class")
    found = layer_errors(network, x)
    layers = {name: {GRID: max(row.values())} for name, row in found.items()}
    for name, row in layer_errors(network, x, turns).items():
        layers.setdefault(name, {}).update(row)
    return Check(title, errors, layers, culprits(found), *_costs(network, x, seconds))


def _accepted_shape(network: nn.Module) -> tuple[int, ...]:
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError("shape must be given for a TorchScript network, such as 2,1,64,64")
    try:
        dims = spatial_dims_of(network)
    except ValueError as error:
        raise ValueError(f"{error}; give the shape, such as 2,1,64,64") from error
    with prepared(network):
        arguments, reason = find_input(network, dims)
    if arguments is None:
        raise ValueError(f"{reason}; give the shape, such as 2,1,64,64")
    return 2, *arguments[0].shape[1:]  # two, as normalisation over a batch of one can fail in training


def _smooth(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Noise of variance 1 without details below 3 pixels, which no rotation keeps."""
    if not 3 <= len(shape) <= 5 or min(shape) < 1:
        raise ValueError(f"shape must be (N, C, *spatial) with 1 to 3 spatial axes, got {tuple(shape)}")
    tensors = (*network.parameters(), *network.buffers())
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    x: Tensor = GaussianFilter(len(shape) - 2, sigma=1.5)(noise)
    return (x / x.std()).to(own)


def _costs(network: nn.Module, x: Tensor, seconds: float) -> tuple[dict[str, float], str]:
    """In ratio to the plain twin, and what that is."""
    plain, sre = copy.deepcopy(network), copy.deepcopy(network)
    if any(isinstance(module, RadialNd) for module in network.modules()):
        plain, twin = fold_sre(plain, "dense"), "this network in ratio to itself with dense kernels (fold_sre)"
    else:
        try:
            sre = convert_to_sre(sre, verify=tuple(x.shape))
        except (TypeError, ValueError) as error:
            return {}, f"not known: {error}"
        worst = max(equivariance_error(sre, x).values())
        twin = f"convert_to_sre(network), whose largest error on the grid is {worst:.0e}, in ratio to this network"
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (sre, plain)]
    costs = {} if 0 in counts else {"parameters": counts[0] / counts[1]}
    costs["forward"] = _ratio(_forward(sre.eval(), x), _forward(plain.eval(), x), seconds)
    try:
        costs["training step"] = _ratio(_training_step(sre.train(), x), _training_step(plain.train(), x), seconds)
    except Exception as error:  # such as normalisation over a batch of one, or nothing to learn
        twin += f"; no training step: {type(error).__name__}: {error}"
    return costs, twin


def _forward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: network(x))


def _training_step(network: nn.Module, x: Tensor) -> Callable[[], object]:
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("no parameter requires a gradient")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        losses = [output.square().mean() for output in tensors_of(network(x)) if output.requires_grad]
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


def _ratio(first: Callable[[], object], second: Callable[[], object], seconds: float) -> float:
    """How many times longer the first takes than the second: medians over rounds of both in turn, three at least."""
    times: tuple[list[float], list[float]] = [], []
    first(), second()
    begun = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - begun < seconds:
        for step, measured in zip((first, second), times, strict=True):
            started = time.perf_counter()
            step()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            measured.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])


def _table(title: str, rows: Mapping[str, Mapping[str, float]], digits: str = ".1e") -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[title, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(format(row[c], digits) if c in row else "" for c in columns)] for name, row in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def load(target: str, arguments: Mapping[str, Any] | None = None, weights: str | Path | None = None) -> nn.Module:
    """The network that a text names, as the command takes it.

    Args:
        target: the folder of a bundle, a TorchScript file, ``package.module.Class`` or ``module:function_or_network``.
        arguments: of the class or function.
        weights: a file of its state dict; ``None`` leaves it as it is made, a bundle with its ``models/model.pt``.

    Raises:
        ValueError: it is none of these, cannot be built, or the weights are not its own; the message says why.
        FileNotFoundError: there is no such file or bundle.

    Example:
        >>> load("torch.nn:Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": 3})
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    path, given = Path(target), dict(arguments or {})
    if path.exists() and given:
        raise ValueError(f"{target} takes no arguments, got {', '.join(given)}")
    if path.is_file():
        if weights is not None:
            raise ValueError(f"{target} holds its weights, and takes no others, got {str(weights)!r}")
        try:
            return torch.jit.load(target, map_location="cpu")
        except RuntimeError as error:
            raise ValueError(f"{target} is no TorchScript file: {str(error).splitlines()[0]}") from error
    network = _bundled(path) if path.is_dir() else _imported(target, given)
    if weights is None and (path / "models/model.pt").is_file():
        weights = path / "models/model.pt"
    if weights is not None:
        load_weights(network, weights)
    return network


def _bundled(folder: Path) -> nn.Module:
    found = [
        p for name in ("inference", "train") for p in sorted(folder.glob(f"configs/{name}.*")) if p.suffix in _ENDINGS
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} is no bundle: it has no configs/inference.json, nor train.json, nor such YAML"
        )
    parser = ConfigParser()
    parser.read_config(found[0])
    parser["bundle_root"] = str(folder)
    try:
        if "imports" in parser:
            parser.get_parsed_content("imports")
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # each config has its own
        cause = cause_of(error)
        raise ValueError(f"{found[0]}: network_def cannot be built: {type(cause).__name__}: {cause}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{found[0]}: network_def must be a network, got {type(network).__name__}")
    return network


def _imported(target: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        network = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{target!r} is no bundle, no TorchScript file and cannot be imported: {error}") from error
    if not isinstance(network, nn.Module) and callable(network):
        try:
            network = network(**arguments)
        except Exception as error:  # each network has its own
            raise ValueError(f"{target} cannot be built: {type(error).__name__}: {error}") from error
    elif arguments:
        raise ValueError(f"{target} takes no arguments, got {', '.join(arguments)}")
    if not isinstance(network, nn.Module):
        raise ValueError(f"{target} must be a network, or return one, got {type(network).__name__}")
    return network


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _angles(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",")) if text else ()


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main(words: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_sre.check", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("network", help="class, function or network to import, folder of a bundle, or TorchScript file")
    parser.add_argument("--shape", type=_shape, help="of the input, such as 2,1,64,64 (default: one that it accepts)")
    parser.add_argument("--weights", help="file of a state dict (default: as it is made; of a bundle models/model.pt)")
    parser.add_argument("--angles", type=_angles, default=(15, 30, 45), help="in degrees (default: 15,30,45)")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each time for (default: %(default)g)")
    parser.add_argument("--picture", help="PNG file of the errors of the network and of its layers (default: none)")
    options, others = parser.parse_known_args(words)
    torch.manual_seed(0)
    try:
        for before, word in zip(["", *others], others, strict=False):
            if not word.startswith("-") and (not before.startswith("-") or "=" in before):
                raise ValueError(f"{word!r} is no argument of the network, which is written --NAME VALUE")
        arguments = {name: _value(text) for name, text in given_options(others).items()}
        check = check_network(
            load(options.network, arguments, options.weights), options.shape, options.angles, options.seconds
        )
        if options.picture:
            from monai_sre.evaluation import draw_errors  # with the extras that it needs

            layers = {name: check.layers[name] for name in check.layers if name in check.ranked()}
            draw_errors(check.errors, layers, options.picture, check.title)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")
    print(check)


if __name__ == "__main__":
    main()
