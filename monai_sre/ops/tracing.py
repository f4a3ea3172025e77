"""Functions that decide by the size of an image, kept whole where a network is traced."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def script_where_traced(function: Function) -> Function:
    """Script ``function`` when ``torch.jit.trace`` meets it, so that a trace serves all sizes and not that of its example alone.

    As ``torch.jit.script_if_tracing``, but for the older ONNX exporter, which traces too and needs constants: it gets the
    function for the size of its example.

    Example:
        >>> @script_where_traced
        ... def double_if_even(x: torch.Tensor) -> torch.Tensor:
        ...     return 2 * x if x.size(0) % 2 == 0 else x
        >>> double_if_even(torch.ones(2)), double_if_even(torch.ones(1))
        (tensor([2., 2.]), tensor([1.]))
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return function(*args, **kwargs)
        return torch.jit.script(function)(*args, **kwargs)

    # What torch.jit.script and torch.compile look for, to take the function itself.
    wrapper.__original_fn = function  # type: ignore[attr-defined]
    wrapper.__script_if_tracing_wrapper = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]
