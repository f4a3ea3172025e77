"""Checks of arguments that every floor shares: each failure is one sentence with the name, the value and what is accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def on_cpu(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function compute its constants on the CPU, whatever the default device, which may hold no values.

    Example:
        >>> with torch.device("meta"):
        ...     on_cpu(torch.ones)(2).device
        device(type='cpu')
    """

    @wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return guarded


def check_flags(**values: bool) -> None:
    """Refuse anything but booleans: the string ``"false"``, as command lines pass it, would count as true.

    Args:
        values: the arguments by their names.

    Raises:
        TypeError: one is no boolean.

    Example:
        >>> check_flags(circular="false")
        Traceback (most recent call last):
        TypeError: circular must be True or False, got 'false'
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def int_tuple(name: str, value: int | Sequence[int], length: int, minimum: int) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ``length`` integers, each at least ``minimum``.

    Args:
        name: the argument's name, for the message.
        value: one integer for all axes, or one an axis.
        length: how many integers are wanted.
        minimum: the smallest integer that is accepted.

    Raises:
        TypeError: when ``value`` holds anything but integers.
        ValueError: when there are not ``length`` of them, or one is below ``minimum``.

    Example:
        >>> int_tuple("stride", 2, length=3, minimum=1)
        (2, 2, 2)
    """
    accepted = f"an integer >= {minimum} or {length} of them"
    items = (value,) * length if isinstance(value, (int, np.integer)) else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if any(isinstance(item, bool) or not isinstance(item, (int, np.integer)) for item in items):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if len(items) != length or any(item < minimum for item in items):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return tuple(int(item) for item in items)
