"""Energies: how strongly a map varies with one angular order, whatever the direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_sre.ops.conv import conv_nd
from monai_sre.ops.ring import energy_cpu
from monai_sre.ops.ring.convolution import is_eager_cpu_call, keep_subclass, under_transform


def harmonic_energy(x: Tensor, stencils: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Root of the sum of squares of all components of an order, :math:`\sqrt{\sum_k (s_k * x)^2 + \epsilon}`.

    Rotations and reflections of the grid mix the components by an orthogonal matrix, so the energy turns as a scalar map
    does. Zeros outside of ``x``. Only ``x`` is kept for the gradient, and the components exist in pieces that fit into the
    cache; gradients of second and higher order, graphs that are captured (TorchScript, ``torch.compile``, ONNX) and other
    devices than the CPU take convolutions.

    Args:
        x: shape ``(N, C, *spatial)``.
        stencils: from :func:`monai_sre.ops.harmonic_stencils`, shape ``(components, *kernel_size)``.
        eps: keeps the gradient finite where nothing varies.

    Returns:
        Shape and dtype of ``x``. Half precision is computed in float32.

    Raises:
        ValueError: the number of spatial axes differs, or a kernel size is even.

    Example:
        >>> from monai_sre.ops import harmonic_stencils
        >>> x = torch.randn(1, 2, 9, 8)
        >>> edges = harmonic_energy(x, harmonic_stencils(1, spatial_dims=2))
        >>> torch.allclose(harmonic_energy(x.rot90(1, (2, 3)), harmonic_stencils(1, 2)), edges.rot90(1, (2, 3)), atol=1e-5)
        True
    """
    if x.dim() != stencils.dim() + 1 or any([length % 2 == 0 for length in stencils.shape[1:]]):  # noqa: C419 - TorchScript
        raise ValueError(
            "stencils must have shape (components, *kernel_size) of odd sizes, one for each spatial axis of x, got "
            f"{list(stencils.shape)} and x of shape {list(x.shape)}"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    computed, stencils = x.to(dtype), stencils.to(dtype)
    if not torch.jit.is_scripting():
        if is_eager_cpu_call(computed, stencils) and energy_cpu.available(dtype):
            return _compiled_energy(computed, stencils, eps).to(x.dtype)
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # which would take half precision for the convolutions
                return _convolved_energy(computed, stencils, eps).to(x.dtype)
    return _convolved_energy(computed, stencils, eps).to(x.dtype)


def mixed_energies(
    x: Tensor,
    stencils: list[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-3,
) -> Tensor:
    """Energies of all orders, mixed by a matrix; only ``x`` is kept for the gradient, no energy.

    Args:
        x: shape ``(N, C, *spatial)``.
        stencils: those of each order, as in :func:`harmonic_energy`.
        weight: shape ``(out_channels, len(stencils) * C / groups, 1, ...)``, the orders one after the other in each group.
        bias: shape ``(out_channels,)``, or ``None``.
        groups: number of blocks of channels that do not mix.
        eps: as in :func:`harmonic_energy`.

    Returns:
        Shape ``(N, out_channels, *spatial)``.

    Example:
        >>> from monai_sre.ops import harmonic_stencils
        >>> x, stencils = torch.randn(2, 3, 8, 8), [harmonic_stencils(order, 2) for order in (1, 2)]
        >>> mixed_energies(x, stencils, torch.randn(5, 6, 1, 1)).shape
        torch.Size([2, 5, 8, 8])
    """
    if not torch.jit.is_scripting():
        alike = x.dtype == weight.dtype and stencils[0].dtype == (
            torch.float64 if x.dtype == torch.float64 else torch.float32
        )
        if alike and is_eager_cpu_call(x, weight) and not torch.is_autocast_enabled("cpu"):
            return _recomputed_energies(x, stencils, weight, bias, groups, eps)
    return _mix(_all_energies(x, stencils, groups, eps), weight, bias, groups)


def _mix(energies: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    ones = [1] * (energies.dim() - 2)
    return conv_nd(energies, weight, bias, ones, [0] * len(ones), ones, groups)


def _all_energies(x: Tensor, stencils: list[Tensor], groups: int, eps: float) -> Tensor:
    parts: list[Tensor] = []
    for stencil in stencils:
        parts.append(harmonic_energy(x, stencil, eps))
    return cat_groups(parts, groups)


def cat_groups(parts: list[Tensor], groups: int) -> Tensor:
    """Maps joined along the channels, those of a group beside each other.

    Example:
        >>> cat_groups([torch.tensor([[1, 2]]), torch.tensor([[3, 4]])], groups=2).tolist()
        [[1, 3, 2, 4]]
    """
    if groups == 1:
        return torch.cat(parts, dim=1)
    blocks: list[Tensor] = []
    for part in parts:
        blocks.append(part.unflatten(1, [groups, -1]))
    return torch.cat(blocks, dim=2).flatten(1, 2)


def _convolved_energy(x: Tensor, stencils: Tensor, eps: float) -> Tensor:
    padding: list[int] = []
    sizes: list[int] = []  # one by one, or ONNX takes them for constants
    for axis in range(1, stencils.dim()):
        padding.append(stencils.size(axis) // 2)
        sizes.append(x.size(axis + 1))
    maps = x.reshape([x.size(0) * x.size(1), 1] + sizes)  # noqa: RUF005 - each an image of its own
    ones = [1] * len(padding)
    components = conv_nd(maps, stencils.unsqueeze(1), None, ones, padding, ones, 1)
    return components.square().sum(dim=1).add(eps).sqrt().reshape([x.size(0), x.size(1)] + sizes)  # noqa: RUF005


@keep_subclass
def _compiled_energy(x: Tensor, stencils: Tensor, eps: float) -> Tensor:
    return _CompiledEnergy.apply(x, stencils, eps)


@keep_subclass
def _recomputed_energies(
    x: Tensor, stencils: list[Tensor], weight: Tensor, bias: Tensor | None, groups: int, eps: float
) -> Tensor:
    return _MixedEnergies.apply(x.contiguous(), weight, bias, groups, eps, *stencils)


class _CompiledEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stencils: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, stencils)
        ctx.eps = eps
        values, _ = energy_cpu.energies(_whole_images(x), stencils.detach().contiguous(), eps)
        assert values is not None
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        x, stencils = ctx.saved_tensors
        again = torch.is_grad_enabled()  # create_graph: formulas that torch can differentiate again
        if again or under_transform(grad):
            with torch.enable_grad():
                source = x if again else x.detach().requires_grad_()
                values = _convolved_energy(source, stencils, ctx.eps)
            (slope,) = torch.autograd.grad(values, source, grad, create_graph=again)
            return slope, None, None
        _, slope = energy_cpu.energies(
            _whole_images(x), stencils.contiguous(), ctx.eps, _whole_images(grad), with_values=False
        )
        return slope, None, None


class _MixedEnergies(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, eps: float, *stencils: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, *stencils)
        ctx.groups, ctx.eps = groups, eps
        return _mix(_all_energies(x, list(stencils), groups, eps), weight, bias, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, *stencils = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2])
        mirrored = weight.unflatten(0, (ctx.groups, -1)).transpose(1, 2).flatten(0, 1)
        slopes = _mix(grad, mirrored, None, ctx.groups)
        again = torch.is_grad_enabled()  # create_graph: formulas that torch can differentiate again
        if again or under_transform(grad) or not energy_cpu.available(x.dtype):
            with torch.enable_grad():
                source = x if again and x.requires_grad else x.detach().requires_grad_()
                energies = _all_energies(source, stencils, ctx.groups, ctx.eps)
            (grad_x,) = torch.autograd.grad(energies, source, slopes, create_graph=again)
        else:
            energies, grad_x = _energies_with_gradient(x, stencils, slopes, ctx.groups, ctx.eps)
        ones, zeros = [1] * (x.dim() - 2), [0] * (x.dim() - 2)
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, energies, weight, [len(weight)], ones, zeros, ones, False, zeros, ctx.groups, (False, *wanted)
        )
        return grad_x, grad_weight, grad_bias, None, None, *[None] * len(stencils)


def _energies_with_gradient(
    x: Tensor, stencils: list[Tensor], grad: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """:func:`_all_energies` and, where ``grad`` is theirs, the gradient by ``x``: the components are formed once."""
    energies, slope = torch.empty_like(grad), torch.zeros_like(x)
    split = (groups, len(stencils), x.shape[1] // groups)
    parts, outs = (tensor.unflatten(1, split).unbind(2) for tensor in (grad, energies))
    for stencil, part, out in zip(stencils, parts, outs, strict=True):
        whole = _whole_images(part.flatten(1, 2))
        values, gradient = energy_cpu.energies(x, stencil.contiguous(), eps, whole)
        assert values is not None
        assert gradient is not None
        out.copy_(values.unflatten(1, (groups, -1)))
        slope += gradient
    return energies, slope


def _whole_images(x: Tensor) -> Tensor:
    """``x`` with contiguous images: a slice of channels is left where it is."""
    x = x.detach()
    return x if x[:1].is_contiguous() else x.contiguous()
