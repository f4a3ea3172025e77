"""Checks of arguments that every floor shares: each failure is one sentence with the name, the value and what is accepted.

Also what such sentences are made of: the first of many names, and the error that MONAI has wrapped into its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

#: How the messages of MONAI's own exceptions begin.
_WRAPPERS = ("Failed to instantiate ", "Failed to evaluate ", "applying transform ")
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


def constant_of_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """What ``torch.compiler.assume_constant_result`` does, without the import of its compiler, which takes seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


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


def as_flag(name: str, value: bool | str | int) -> bool:
    """A yes or no as command lines write it.

    Args:
        name: the option's name, for the message.
        value: a boolean, or one of the words true, yes, on, 1, false, no, off, 0, in any case.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> as_flag("amp", "True"), as_flag("amp", "no"), as_flag("amp", 1)
        (True, False, True)
    """
    word = str(value).lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{name} must be true or false, got {value!r}")


def listed(names: Sequence[Any], count: int = 5, separator: str = "; ") -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed(["a", 7, "c"], count=2)
        'a; 7; and 1 more'
    """
    more = [f"and {len(names) - count} more"] if len(names) > count else []
    return separator.join([*map(str, names[:count]), *more])


def cause_of(error: BaseException) -> BaseException:
    """The error behind those that MONAI's transforms and configs raise from it.

    Args:
        error: as it was caught.

    Returns:
        The first in the chain of causes that is not MONAI's; what lies behind one of ours is a library's, and says less.

    Example:
        >>> from monai.transforms import Compose
        >>> def transform(value):
        ...     raise ValueError(f"value must be positive, got {value}")
        >>> try:
        ...     Compose([transform])(-1)
        ... except RuntimeError as error:
        ...     print(cause_of(error))
        value must be positive, got -1
    """
    while error.__cause__ is not None and str(error).startswith(_WRAPPERS):
        error = error.__cause__
    return error


def check_dims(spatial_dims: int) -> int:
    """The number of spatial axes of a layer or network.

    Raises:
        ValueError: it is not 1, 2 or 3.

    Example:
        >>> check_dims(2.0)
        Traceback (most recent call last):
        ValueError: spatial_dims must be 1, 2 or 3, got 2.0
    """
    if (
        isinstance(spatial_dims, bool)
        or not isinstance(spatial_dims, (int, np.integer))
        or spatial_dims not in (1, 2, 3)
    ):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims!r}")
    return int(spatial_dims)


def int_tuple(name: str, value: int | Sequence[int], length: int, minimum: int) -> tuple[int, ...]:
    """Return ``value`` as a tuple of ``length`` integers, each at least ``minimum``.

    Args:
        name: the argument's name, for the message.
        value: one integer for all axes, or one per axis.
        length: how many integers are wanted.
        minimum: the smallest integer that is accepted.

    Raises:
        TypeError: when ``value`` holds anything but integers.
        ValueError: when there are not ``length`` of them, or one is below ``minimum``.

    Example:
        >>> int_tuple("stride", 2, length=3, minimum=1)
        (2, 2, 2)
    """
    accepted = f"an integer >= {minimum}" + (f" or {length} of them" if length > 1 else "")
    items = (value,) * length if isinstance(value, (int, np.integer)) else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if any(isinstance(item, bool) or not isinstance(item, (int, np.integer)) for item in items):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if len(items) != length or any(item < minimum for item in items):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return tuple(int(item) for item in items)
