"""Energies: how strongly a map varies with one angular order, whatever the direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_sre.ops.conv import requested_algorithm
from monai_sre.ops.dispatch import (
    is_at_hand,
    is_eager_cpu_call,
    keep_subclass,
    may_define_gradient,
    needs_gradient,
    under_autocast,
    under_transform,
    without_autocast,
)
from monai_sre.ops.ring import energy_cpu, gpu
from monai_sre.ops.ring.cpu import computed_in
from monai_sre.ops.ring.energy_cpu import Form
from monai_sre.ops.ring.energy_portable import (
    cat_groups,
    component_norms,
    component_norms_gradient,
    convolved_energies,
    convolved_gradients,
    exported_energies,
    mix_energies,
    split_groups,
)
from monai_sre.ops.ring.portable import joined_stencils


def harmonic_energy(x: Tensor, stencils: Tensor, eps: float = 1e-3) -> Tensor:
    r"""Root of the sum of squares of all components of an order, :math:`\sqrt{\sum_k (s_k * x)^2 + \epsilon}`.

    Rotations and reflections of the grid mix the components by an orthogonal matrix, so the energy turns as a scalar map
    does. Zeros outside of ``x``. Only ``x`` is kept for the gradient, and the components exist in pieces that fit into the
    cache; gradients of second and higher order or of the stencils, graphs that are exported (TorchScript, ONNX), and devices
    without code of ours take convolutions.

    Args:
        x: shape ``(N, C, *spatial)``.
        stencils: from :func:`monai_sre.ops.harmonic_stencils`, shape ``(components, *kernel_size)``.
        eps: keeps the gradient finite where nothing varies.

    Returns:
        Shape and dtype of ``x``. Half precision is computed in float32.

    Raises:
        ValueError: the number of spatial axes differs, a kernel size is even, or ``x`` holds integers.

    Example:
        >>> from monai_sre.ops import harmonic_stencils
        >>> x = torch.randn(1, 2, 9, 8)
        >>> edges = harmonic_energy(x, harmonic_stencils(1, spatial_dims=2))
        >>> torch.allclose(harmonic_energy(x.rot90(1, (2, 3)), harmonic_stencils(1, 2)), edges.rot90(1, (2, 3)), atol=1e-5)
        True
    """
    _check_stencils(x, stencils)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if may_define_gradient(x, stencils) and not stencils.requires_grad:
            return _one_energy(x, stencils, eps, requested_algorithm("auto") == "ring")
    return exported_energies(x, [stencils], eps)[0]


def _check_stencils(x: Tensor, stencils: Tensor) -> None:
    if x.dim() != stencils.dim() + 1 or any([length % 2 == 0 for length in stencils.shape[1:]]):  # noqa: C419 - TorchScript
        raise ValueError(
            "stencils must have shape (components, *kernel_size) of odd sizes, one for each spatial axis of x, got "
            f"{list(stencils.shape)} and x of shape {list(x.shape)}"
        )
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"x must be floating-point, got {x.dtype}")
    if stencils.is_meta and not x.is_meta:  # torch itself would return memory as it finds it
        raise ValueError(
            "stencils are on the meta device, without values; to_empty(device=...) of their layer makes them"
        )


def add_energies(
    y: Tensor,
    stencils: list[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-3,
    algorithm: str = "auto",
) -> Tensor:
    """Energies of all orders of some maps, mixed by a matrix and added to the others.

    Only the maps that energies are taken of are kept for the gradient, neither energies nor components.

    Args:
        y: shape ``(N, out_channels + C, *spatial)``: in each group of channels those that are added to, and then those that
            energies are taken of.
        stencils: those of each order, as in :func:`harmonic_energy`.
        weight: shape ``(out_channels, len(stencils) * C / groups, 1, ...)``, the orders one after the other in each group.
        bias: shape ``(out_channels,)``, or ``None``.
        groups: number of blocks of channels that do not mix.
        eps: as in :func:`harmonic_energy`.
        algorithm: ``"ring"`` asks for the kernels for GPUs where nothing was measured too; see :func:`sre_conv`.

    Returns:
        Shape ``(N, out_channels, *spatial)``.

    Raises:
        ValueError: shapes do not fit; the message names them.

    Example:
        >>> from monai_sre.ops import harmonic_stencils
        >>> y, stencils = torch.randn(2, 5 + 3, 8, 8), [harmonic_stencils(order, 2) for order in (1, 2)]
        >>> add_energies(y, stencils, torch.randn(5, 6, 1, 1)).shape
        torch.Size([2, 5, 8, 8])
    """
    for each in stencils:
        _check_stencils(y, each)
    out_channels, maps_of = weight.size(0), y.size(1) - weight.size(0)
    fits = weight.dim() == y.dim() and weight.numel() == out_channels * weight.size(1)
    fits = fits and groups >= 1 and out_channels % groups == 0 and maps_of % groups == 0
    if not fits or weight.size(1) * groups != len(stencils) * maps_of:
        raise ValueError(
            "weight must have shape (out_channels, orders * C / groups, 1, ...) for y of out_channels + C channels, got "
            f"{list(weight.shape)}, {len(stencils)} orders, groups={groups} and y of shape {list(y.shape)}"
        )
    if bias is not None and list(bias.shape) != [out_channels]:
        raise ValueError(f"bias must have shape [{out_channels}], got {list(bias.shape)}")
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if may_define_gradient(y, weight) and not any(each.requires_grad for each in stencils):
            asked = requested_algorithm(algorithm) == "ring"
            return _added_energies(y, stencils, weight, bias, groups, eps, asked)
    radial, maps = split_groups(y, weight.size(0), groups)
    return radial + mix_energies(cat_groups(exported_energies(maps, stencils, eps), groups), weight, bias, groups)


@keep_subclass
def _one_energy(x: Tensor, stencils: Tensor, eps: float, asked: bool) -> Tensor:
    if _is_one_operator(x, asked):
        return _energy_operator(x, stencils, eps, asked)
    return _Energy.apply(x, stencils, eps, asked) if needs_gradient(x) else _values(x, [stencils], 1, eps, asked)


def _is_one_operator(x: Tensor, asked: bool) -> bool:
    """Whether our own code stands for energies of ``x`` as one operator, as its values are not at hand."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return energy_cpu.compiled_for(x.dtype)
    return not is_at_hand(x) and gpu.usable(x, asked)


@keep_subclass
def _added_energies(
    y: Tensor,
    stencils: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    eps: float,
    asked: bool,
) -> Tensor:
    device = y.device.type
    if under_autocast(device) and y.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        y, weight, bias = y.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    maps = None
    if needs_gradient(y, weight, bias):  # the layer keeps these, and not y
        maps = split_groups(y, weight.shape[0], groups)[1].clone(memory_format=torch.contiguous_format)
    if _is_one_operator(y, asked):
        return _added_operator(y, maps, weight, bias, list(stencils), groups, eps, asked)
    if maps is None and not torch.compiler.is_compiling():
        return _added(y, maps, weight, bias, stencils, groups, eps, asked)
    return _AddedEnergies.apply(y, maps, weight, bias, groups, eps, asked, *stencils)


def _form(x: Tensor, stencils: Sequence[Tensor]) -> Form | None:
    """The stencils as the C engine takes them; ``None`` where it does not compute with operands that are at hand."""
    if not is_eager_cpu_call(x, stencils[0]) or not energy_cpu.compiled_for(x.dtype):
        return None
    return energy_cpu.form_of([stencil.to(computed_in(x.dtype)) for stencil in stencils])


def _values(x: Tensor, stencils: Sequence[Tensor], groups: int, eps: float, asked: bool) -> Tensor:
    """Energies of all orders, those of a group beside each other."""
    with without_autocast(x.device.type):
        form = _form(x, stencils)
        if form is not None:
            return energy_cpu.energies(_computable(x), form, eps, groups)[0].to(x.dtype)
        found = gpu.attempt(gpu.energies, x, stencils, groups, eps) if gpu.usable(x, asked) else None
        if found is not None:
            return found[0]
        energies, _, _ = component_norms(
            x, stencils, joined_stencils(list(stencils), computed_in(x.dtype)), groups, eps
        )
        return energies.to(x.dtype).reshape(len(x), len(stencils) * x.shape[1], *x.shape[2:])


def _differentiable_again(grad: Tensor) -> bool:
    """Whether a backward pass must consist of operations that torch differentiates: ``create_graph``, or a transform."""
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or under_transform(grad))


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stencils: Tensor, eps: float, asked: bool) -> Tensor:
        ctx.save_for_backward(x, stencils)
        ctx.eps, ctx.asked = eps, asked
        return _values(x, [stencils], 1, eps, asked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, stencils = ctx.saved_tensors
        if _differentiable_again(grad):
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                source = x if again else x.detach().requires_grad_()
                values = convolved_energies(source, [stencils], ctx.eps)[0]
            (slope,) = torch.autograd.grad(values, source, grad, create_graph=again)
            return slope, None, None, None
        return _slope(x, stencils, ctx.eps, ctx.asked, grad), None, None, None


def _slope(x: Tensor, stencils: Tensor, eps: float, asked: bool, grad: Tensor) -> Tensor:
    with without_autocast(x.device.type):
        form = _form(x, [stencils])
        found: tuple[Tensor, Tensor | None] | None = None
        if form is not None:
            found = energy_cpu.energies(_computable(x), form, eps, 1, _computable(grad))
        elif gpu.usable(x, asked):
            found = gpu.attempt(gpu.energies, x, [stencils], 1, eps, grad)
        if found is not None and found[1] is not None:
            return found[1].to(x.dtype)
        kernels = joined_stencils([stencils], computed_in(x.dtype))
        return component_norms_gradient(x, kernels, grad, *component_norms(x, [stencils], kernels, 1, eps)).to(x.dtype)


class _AddedEnergies(torch.autograd.Function):
    """``maps`` are a copy of those of ``y`` that energies are taken of, to keep: the gradient by ``y`` is theirs too."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        maps: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        eps: float,
        asked: bool,
        *stencils: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, *stencils)
        ctx.groups, ctx.eps, ctx.asked, ctx.has_bias = groups, eps, asked, bias is not None
        return _added(y, maps, weight, bias, stencils, groups, eps, asked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, *stencils = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.has_bias and ctx.needs_input_grad[3])
        if _differentiable_again(grad):
            again = torch.is_grad_enabled()
            with torch.enable_grad(), without_autocast(maps.device.type):
                sources = [source if again else source.detach().requires_grad_() for source in (maps, weight)]
                energies = cat_groups(convolved_energies(sources[0], stencils, ctx.eps), ctx.groups)
                mixed = mix_energies(energies, sources[1], None, ctx.groups)
                chosen = [source for source, use in zip(sources, wanted[:2], strict=True) if use]
                found = iter(torch.autograd.grad(mixed, chosen, grad, create_graph=again) if chosen else ())
                by_y = cat_groups([grad, next(found)], ctx.groups) if wanted[0] else None
                by_weight = next(found) if wanted[1] else None
                by_bias = grad.sum(dim=[0, *range(2, grad.dim())]) if wanted[2] else None
        else:
            grads = _added_gradients(grad, maps, weight, stencils, ctx.groups, ctx.eps, ctx.asked, wanted)
            by_y, by_weight, by_bias = grads
        return (by_y, None, by_weight, by_bias, None, None, None, *[None] * len(stencils))


def _added(
    y: Tensor,
    maps: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    asked: bool,
) -> Tensor:
    """Values of :func:`add_energies`; ``maps`` are those of ``y``, where they are at hand."""
    with without_autocast(y.device.type):
        form = _form(y, stencils)
        if form is not None:
            image, mixer = _computable(y).contiguous(), _computable(weight).contiguous()
            offset = None if bias is None else _computable(bias).contiguous()
            return energy_cpu.add(image, form, mixer, offset, groups, eps).to(y.dtype)
        radial, hidden = split_groups(y, weight.shape[0], groups)
        maps = hidden if maps is None else maps
        if gpu.usable(maps, asked):
            found = gpu.attempt(gpu.add_energies, radial, maps, stencils, weight, bias, groups, eps)
            if found is not None:
                return found
        energies = _values(maps, stencils, groups, eps, asked).unflatten(1, (groups, -1)).flatten(3)
        mixer = weight.reshape(groups, weight.shape[0] // groups, -1)
        if groups == 1:
            out = torch.baddbmm(radial.flatten(2), mixer.expand(len(radial), -1, -1), energies.squeeze(1))
        else:
            out = radial.flatten(2) + torch.matmul(mixer, energies).flatten(1, 2)
        if bias is not None:
            out += bias.reshape(-1, 1)
        return out.reshape(radial.shape)


def _added_gradients(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    asked: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`add_energies` by ``y``, weight and bias, those that are wanted; the energies are formed again."""
    with without_autocast(maps.device.type):
        form = _form(maps, stencils)
        if form is not None:
            slope, source, mixer = (_computable(operand) for operand in (grad, maps, weight))
            found = energy_cpu.add_gradients(slope, source, form, mixer.contiguous(), groups, eps, wanted)
            by_y, by_weight, by_bias = (None if item is None else item.to(maps.dtype) for item in found)
            return by_y, by_weight, by_bias
        grads = None
        if gpu.usable(maps, asked):
            grads = gpu.attempt(gpu.add_energies_gradients, grad, maps, weight, stencils, groups, eps, wanted)
        if grads is None:
            grads = convolved_gradients(grad, maps, weight, stencils, groups, eps, wanted)
        by_maps, by_weight, by_bias = grads
        return None if by_maps is None else cat_groups([grad, by_maps], groups), by_weight, by_bias


def _computable(x: Tensor) -> Tensor:
    """Contiguous images in the dtype that they are computed in: a slice of channels is left where it is."""
    x = x.detach().to(computed_in(x.dtype))
    return x if x[:1].is_contiguous() else x.contiguous()


@torch.library.custom_op("monai_sre::energy", mutates_args=(), device_types=("cpu", "cuda"))
def _energy_operator(x: Tensor, stencils: Tensor, eps: float, asked: bool) -> Tensor:
    """The operator that stands for our own code where values are not at hand; so do the other ones below."""
    return _values(x, [stencils], 1, eps, asked)


@_energy_operator.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("monai_sre::energy_slope", mutates_args=(), device_types=("cpu", "cuda"))
def _slope_operator(x: Tensor, stencils: Tensor, eps: float, asked: bool, grad: Tensor) -> Tensor:
    return _slope(x, stencils, eps, asked, grad)


@_slope_operator.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_for_slope(ctx: Any, inputs: tuple[Tensor, Tensor, float, bool], output: Tensor) -> None:
    x, stencils, *ctx.settings = inputs
    ctx.save_for_backward(x, stencils)


def _operator_slope(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _slope_operator(*ctx.saved_tensors, *ctx.settings, grad), None, None, None


_energy_operator.register_autograd(_operator_slope, setup_context=_keep_for_slope)


@torch.library.custom_op("monai_sre::add_energies", mutates_args=(), device_types=("cpu", "cuda"))
def _added_operator(
    y: Tensor,
    maps: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    asked: bool,
) -> Tensor:
    return _added(y, maps, weight, bias, stencils, groups, eps, asked)


@_added_operator.register_fake
def _(y: Tensor, maps: Tensor | None, weight: Tensor, *_: Any) -> Tensor:
    return y.new_empty(y.shape[0], weight.shape[0], *y.shape[2:])


@torch.library.custom_op("monai_sre::add_energies_gradients", mutates_args=(), device_types=("cpu", "cuda"))
def _added_gradients_operator(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    asked: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    grads = _added_gradients(grad, maps, weight, stencils, groups, eps, asked, wanted)
    return [item for item in grads if item is not None]


@_added_gradients_operator.register_fake
def _(grad: Tensor, maps: Tensor, weight: Tensor, *settings: Any) -> list[Tensor]:
    y = maps.new_empty(maps.shape[0], weight.shape[0] + maps.shape[1], *maps.shape[2:])
    likes = (y, weight, weight.new_empty(len(weight)))
    chosen = [item for item, use in zip(likes, settings[-1], strict=True) if use]
    return [torch.empty_like(item, memory_format=torch.contiguous_format) for item in chosen]


def _keep_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, maps, weight, bias, stencils, *ctx.settings = inputs
    ctx.save_for_backward(maps, weight, *stencils)
    ctx.has_bias = bias is not None


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    maps, weight, *stencils = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.has_bias and ctx.needs_input_grad[3]]
    found = iter(_added_gradients_operator(grad, maps, weight, stencils, *ctx.settings, wanted))
    by_y, *others = [next(found) if use else None for use in wanted]
    return (by_y, None, *others, [None] * len(stencils), None, None, None)


_added_operator.register_autograd(_operator_gradients, setup_context=_keep_for_gradients)
