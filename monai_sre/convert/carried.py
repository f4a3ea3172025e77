"""What a replaced module leaves to the new one: parameters that it shares with others, and hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from monai_sre.convert.report import Entry, describe

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let ``new`` have the hooks of ``old``: the same dictionaries, so that their handles can still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def share_parameters(network: nn.Module, new: Mapping[int, nn.Module]) -> Iterator[Entry]:
    """Let new modules share what those that they replace share.

    Args:
        network: as it was.
        new: what replaces its modules, by their ``id``.

    Yields:
        A refusal of each module of which a shared parameter cannot stay so.
    """
    first: dict[int, tuple[str, str, nn.Module]] = {}
    for name, module in network.named_modules():
        for key, parameter in module._parameters.items():
            owner, owners_key, source = first.setdefault(id(parameter), (name, key, module))
            pair = new.get(id(source)), new.get(id(module))
            if parameter is None or source is module or pair == (None, None):
                continue
            if key == owners_key == "bias":
                shared = all(layer is None or _set_bias(layer, parameter) for layer in pair)
            else:
                shared = key == owners_key and None not in pair and _share_kernel(*pair)  # type: ignore[arg-type]
            if not shared:
                why = f"its {key} is shared with {owner}, and the layers that they become cannot share it"
                yield Entry(name, "refused", describe(module), why)


def _set_bias(layer: nn.Module, bias: nn.Parameter) -> bool:
    """Let a new layer have the bias that there was; whether it has one of that shape."""
    found = [name for name, value in _parameters(layer, bias=True).items() if value.shape == bias.shape]
    for name in found:
        _put(layer, name, bias)
    return len(found) == 1


def _share_kernel(source: nn.Module, target: nn.Module) -> bool:
    """Give ``target`` all parameters of ``source`` but the bias, where they are of one shape on one basis."""
    ours, theirs = (_parameters(layer, bias=False) for layer in (source, target))
    alike = bool(ours) and {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in theirs.items()}
    if not alike or not _equal(dict(source.named_buffers()), dict(target.named_buffers())):
        return False
    for name, value in ours.items():
        _put(target, name, value)
    return True


def _parameters(layer: nn.Module, bias: bool) -> dict[str, nn.Parameter]:
    return {name: value for name, value in layer.named_parameters() if name.endswith("bias") == bias}


def _put(layer: nn.Module, name: str, value: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, value)


def _equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
