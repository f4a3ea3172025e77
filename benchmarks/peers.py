"""The published packages, one file at a time: importing them whole needs torchio and torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor, nn

_TORCHVISION = (
    "torchvision",
    "torchvision.utils",
    "torchvision.transforms",
    "torchvision.transforms._presets",
    "torchvision.models",
    "torchvision.models._api",
    "torchvision.models._meta",
    "torchvision.models._utils",
)


def peer(package: str, file: str) -> ModuleType | None:
    """The module ``package.file`` without the package's ``__init__``; ``None``, and one line, where it is missing."""
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            _say_left_out(package, "it is not installed")
            return None
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = list(found.submodule_search_locations)
    try:
        with _stand_in_for_torchvision():
            return importlib.import_module(f"{package}.{file}")
    except ImportError as missing:
        _say_left_out(package, str(missing))
        return None


def peer_layer(package: str, ndim: int, channels: int, kernel: int) -> nn.Module | None:
    """The layer of SRE_Conv or GMR_Conv that keeps the number of channels and the size, without bias."""
    module = peer(package, package.lower())
    if module is None:
        return None
    layer: nn.Module = getattr(module, f"{package}{ndim}d")(channels, channels, kernel, padding=kernel // 2, bias=False)
    return layer


def escnn_layer(channels: int, kernel: int, rotations: int = 8) -> nn.Module | None:
    """The 2-D layer of escnn that is equivariant to ``rotations`` rotations, with as many maps in all; ``None`` without it.

    Its fields are regular representations: ``channels / rotations`` of them, each with a map per rotation.
    """
    if importlib.util.find_spec("escnn") is None:
        _say_left_out("escnn", "it is not installed")
        return None
    from escnn import gspaces
    from escnn import nn as fields

    space = gspaces.rot2dOnR2(N=rotations)
    kind = fields.FieldType(space, [space.regular_repr] * (channels // rotations))

    class Wrapped(nn.Module):
        """From tensors to tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = fields.R2Conv(kind, kind, kernel, padding=kernel // 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(fields.GeometricTensor(x, kind)).tensor
            return out

    return Wrapped()


@cache
def _say_left_out(package: str, reason: str) -> None:
    print(f"{package} is left out: {reason}", file=sys.stderr)


class _Anything:
    """Takes any arguments and has any attribute: what the 3-D files import for pretrained video models."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> _Anything:
        return self

    def __getattr__(self, name: str) -> _Anything:
        return self


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type[_Anything]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


@contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in _TORCHVISION}
    sys.modules.update({name: _StandIn(name) for name in _TORCHVISION})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
