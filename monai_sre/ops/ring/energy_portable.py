"""Energies of harmonics in torch's own convolutions: for exported graphs, other devices, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_sre.ops.dispatch import without_autocast
from monai_sre.ops.ring.cpu import computed_in
from monai_sre.ops.ring.portable import conv_maps, conv_nd, joined_stencils, ring_sums


def split_groups(y: Tensor, first: int, groups: int) -> list[Tensor]:
    """The first ``first`` channels, as many in each group, and the others.

    Example:
        >>> first, others = split_groups(torch.arange(6).reshape(1, 6, 1), 4, groups=2)
        >>> first.flatten().tolist(), others.flatten().tolist()
        ([0, 1, 3, 4], [2, 5])
    """
    if groups == 1:  # apart from the others: flattening would make the batch of an ONNX graph a constant
        return list(y.split([first, y.size(1) - first], dim=1))
    blocks, own = _in_groups(y, groups), first // groups
    parts: list[Tensor] = []
    for part in blocks.split([own, blocks.size(2) - own], dim=2):
        parts.append(_side_by_side(part))
    return parts


def _in_groups(x: Tensor, groups: int) -> Tensor:
    """``(N, groups, C / groups, *spatial)``; ``unflatten`` has no batching rule, which Jacobians in batches need."""
    return x.reshape([x.size(0), groups, x.size(1) // groups] + list(x.shape[2:]))  # noqa: RUF005 - TorchScript


def _side_by_side(blocks: Tensor) -> Tensor:
    return blocks.reshape([blocks.size(0), blocks.size(1) * blocks.size(2)] + list(blocks.shape[3:]))  # noqa: RUF005 - TorchScript


def mix_energies(energies: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    ones = [1] * (energies.dim() - 2)
    return conv_nd(energies, weight, bias, ones, [0] * len(ones), ones, groups)


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
        blocks.append(_in_groups(part, groups))
    return _side_by_side(torch.cat(blocks, dim=2))


def exported_energies(x: Tensor, stencils: list[Tensor], eps: float) -> list[Tensor]:
    """:func:`harmonic_energy` of each order, for graphs that are exported.

    One depthwise convolution per component; for volumes, whose depthwise convolutions are slow in ONNX Runtime, one
    convolution for all.

    Example:
        >>> exported_energies(torch.tensor([[[0.0, 3.0, 0.0]]]), [torch.tensor([[-1.0, 0.0, 1.0]])], eps=16.0)
        [tensor([[[5., 4., 5.]]])]
    """
    if x.dim() == 5:
        return convolved_energies(x, stencils, eps)
    found: list[Tensor] = []
    for stencil in stencils:
        if torch.jit.is_scripting():
            found.append(_depthwise_energy(x, stencil, eps))
        else:
            with without_autocast(x.device.type):  # which would take half precision for the convolutions
                found.append(_depthwise_energy(x, stencil, eps))
    return found


def _depthwise_energy(x: Tensor, stencils: Tensor, eps: float) -> Tensor:
    stride: list[int] = []
    padding: list[int] = []
    for axis in range(1, stencils.dim()):
        stride.append(1)
        padding.append(stencils.size(axis) // 2)
    half = x.dtype == torch.float16 or x.dtype == torch.bfloat16
    computed = x.float() if half else x
    total = torch.full([1], eps, dtype=computed.dtype, device=x.device)
    for component in range(stencils.size(0)):
        part = ring_sums(computed, stencils.narrow(0, component, 1).to(computed.dtype), stride, padding, stride)
        total = total + part * part
    return total.sqrt().to(x.dtype)


def _components(x: Tensor, kernels: Tensor) -> Tensor:
    """Every map is taken as an image: shape ``(N * C, components, *spatial)``."""
    ones = [1] * (x.dim() - 2)
    padding: list[int] = []
    for axis in range(1, kernels.dim()):
        padding.append(kernels.size(axis) // 2)
    return conv_maps(x, [kernels.unsqueeze(1)], ones, padding, ones)


def convolved_energies(x: Tensor, stencils: list[Tensor], eps: float) -> list[Tensor]:
    """Energies of all orders from one convolution, which torch differentiates as often as asked."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kernels = joined_stencils(stencils, dtype)
    if torch.jit.is_scripting():
        components = _components(x.to(dtype), kernels)
    else:
        with without_autocast(x.device.type):
            components = _components(x.to(dtype), kernels)
    sizes: list[int] = []
    for axis in range(x.dim()):
        sizes.append(x.size(axis))
    squares = components.square()
    found: list[Tensor] = []
    first = 0
    for stencil in stencils:
        total = squares.narrow(1, first, stencil.size(0)).sum(dim=1)
        found.append(total.add(eps).sqrt().reshape(sizes).to(x.dtype))
        first += stencil.size(0)
    return found


def component_norms(
    x: Tensor, stencils: Sequence[Tensor], kernels: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Energies of all orders, the components of each map, and views of these, by order.

    For reading and writing alone: no operation here is meant to be differentiated.

    Returns:
        Shapes ``(N, groups, orders, C / groups, positions)``, ``(N * C, components, *spatial)`` and, as few as there are
        different numbers of components, ``(N, groups, orders, C / groups, components, positions)``.
    """
    components = _components(x.to(kernels.dtype), kernels).contiguous()
    flat, counts = components.flatten(2), [len(stencil) for stencil in stencils]
    blocks = flat.view(len(x), groups, x.shape[1] // groups, len(kernels), flat.shape[2])
    if len(set(counts)) == 1:
        parts = [blocks.unflatten(3, (len(counts), counts[0])).transpose(2, 3)]
    else:
        parts = [part.unsqueeze(2) for part in blocks.split(counts, dim=3)]
    found = [torch.linalg.vector_norm(part, dim=4) for part in parts]
    energies = torch.cat(found, dim=2) if len(found) > 1 else found[0]
    return energies.hypot_(energies.new_full((), eps**0.5)), components, parts


def component_norms_gradient(
    x: Tensor, kernels: Tensor, by_energies: Tensor, energies: Tensor, components: Tensor, parts: Sequence[Tensor]
) -> Tensor:
    """The gradient by ``x`` of what :func:`component_norms` gives; writes over the components."""
    ratio = by_energies.to(energies.dtype).reshape(energies.shape) / energies
    for part, by in zip(parts, ratio.split([part.shape[2] for part in parts], dim=2), strict=True):
        part.mul_(by.unsqueeze(4))
    padding, ones = [length // 2 for length in kernels.shape[1:]], [1] * (x.dim() - 2)
    by_maps = torch.ops.aten.convolution(
        components, kernels.unsqueeze(1), None, ones, padding, ones, True, [0] * len(ones), 1
    )
    return by_maps.reshape(x.shape)


def convolved_gradients(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    stencils: Sequence[Tensor],
    groups: int,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """:func:`_added_gradients` in torch's convolutions."""
    kernels, ones, zeros = (
        joined_stencils(list(stencils), computed_in(maps.dtype)),
        [1] * (maps.dim() - 2),
        [0] * (maps.dim() - 2),
    )
    found = component_norms(maps, stencils, kernels, groups, eps)
    energies = found[0].to(grad.dtype).reshape(len(maps), weight.shape[1] * groups, *maps.shape[2:])
    by_energies, by_weight, by_bias = torch.ops.aten.convolution_backward(
        grad, energies, weight, [len(weight)], ones, zeros, ones, False, zeros, groups, list(wanted)
    )
    by_maps = component_norms_gradient(maps, kernels, by_energies, *found).to(maps.dtype) if wanted[0] else None
    return by_maps, by_weight, by_bias
