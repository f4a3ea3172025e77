"""When code of our own may take the place of torch's operations, in which dtypes, and the memory order of its results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from monai_sre.ops.arguments import constant_of_graphs

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_eager_cpu_call(x: Tensor, weight: Tensor) -> bool:
    """Whether code of our own may compute with these operands here and now, in place of torch's operations.

    It may not on devices other than the CPU, for tensor subclasses that see operations themselves (others, such as MONAI's
    ``MetaTensor``, are wrapped again around the result), while a graph is captured (``torch.compile``,
    ``torch.export``, ``torch.jit.trace``, ONNX) or operations are watched (``TorchDispatchMode``), and under
    ``torch.func`` transforms and forward-mode derivatives.
    """
    return (
        is_at_hand(x)
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, torch.nn.Parameter)
        and may_define_gradient(x, weight)
    )


def may_define_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether an operation may bring its own backward pass, on any device, also in what ``torch.compile`` compiles.

    It may not where a graph is exported (``torch.export``, ``torch.jit.trace``, ONNX), and under ``torch.func`` transforms
    and forward-mode derivatives.
    """
    if x.layout != torch.strided or x.dtype not in _DTYPES or weight.dtype not in _DTYPES or is_exporting():
        return False
    if torch.compiler.is_compiling():
        return True
    return not under_transform() and torch.autograd.forward_ad._current_level < 0


def is_at_hand(x: Tensor) -> bool:
    """Whether ``x`` has values here and now: it is no operand of a graph, of a watched operation, or of shapes alone."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type != "meta"
        and type(x).__torch_dispatch__ == Tensor.__torch_dispatch__
        and torch._C._len_torch_dispatch_stack() == 0
    )


def needs_gradient(*operands: Tensor | None) -> bool:
    """Whether an operation on these operands is to be differentiated: otherwise nothing need be kept.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> needs_gradient(x, None), needs_gradient(x.detach(), None)
        (True, False)
    """
    return torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands)


def is_exporting() -> bool:
    """Whether a graph is captured that is to run elsewhere: ``torch.export``, ``torch.jit.trace``, ONNX."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def under_autocast(device_type: str) -> bool:
    """Whether autocast is on, on a device that may know none."""
    return _knows_autocast(device_type) and torch.is_autocast_enabled(device_type)


@constant_of_graphs
def _knows_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Operations in the dtypes that they are given."""
    if under_autocast(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def under_transform(grad: Tensor | None = None) -> bool:
    """Whether a ``torch.func`` transform is at work, or ``grad`` is a batch of gradients: operations must be torch's own."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last where an image's memory is in that order and no other, else contiguous.

    Example:
        >>> memory_format_of(torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last))
        torch.channels_last
    """
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return layout if x.is_contiguous(memory_format=layout) and not x.is_contiguous() else torch.contiguous_format


def keep_subclass(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of ``x`` and other operands give what ``x`` is: a subclass sees one operation, the function a tensor."""

    @wraps(function)
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(call, (x,), x, *args, **kwargs)
        ordinary = type(x) in (Tensor, torch.nn.Parameter)
        return function(x if ordinary else x.as_subclass(Tensor), *args, **kwargs)

    return call
