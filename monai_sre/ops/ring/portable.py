"""The ring algorithm in ordinary operations, on any device and in any graph: depthwise convolutions, then 1 x 1 ones.

The sums of all channels over one ring are a depthwise convolution with a constant stencil, and what mixes them is a
convolution with kernels of one tap. Runtimes such as ONNX Runtime are fast at exactly these two, and the taps beyond a
ring's own reach are left out where its values are at hand. Of volumes they are slow at depthwise ones: in ONNX each map is
summed along one axis after the other. Stencils are constants and have no gradient, so a training step keeps the input and
the weights alone, as for any convolution: the sums are formed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def conv_nd(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """``torch.nn.functional.conv*d`` for as many spatial axes as the kernel has.

    Example:
        >>> conv_nd(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 2), None, [1], [0], [1], 1)
        tensor([[[3., 5.]]])
    """
    if kernel.dim() == 3:
        return functional.conv1d(x, kernel, bias, stride, padding, dilation, groups)
    if kernel.dim() == 4:
        return functional.conv2d(x, kernel, bias, stride, padding, dilation, groups)
    return functional.conv3d(x, kernel, bias, stride, padding, dilation, groups)


def ring_ends(basis: Tensor) -> list[list[int]]:
    """For each ring, how many taps hold nothing at both ends of each axis.

    Args:
        basis: shape ``(b, *kernel_size)``.

    Example:
        >>> ring_ends(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], torch.ones(3, 3).tolist()]))
        [[1, 1], [0, 0]]
    """
    found: list[list[int]] = []
    for ring in (basis.detach() != 0).cpu().numpy():
        ends = []
        for axis, length in enumerate(ring.shape):
            taken = ring.any(axis=tuple(other for other in range(ring.ndim) if other != axis)).nonzero()[0]
            ends.append(int(min(taken[0], length - 1 - taken[-1])) if len(taken) else 0)
        found.append(ends)
    return found


def cropped_ring(basis: Tensor, ring: int, ends: list[int]) -> Tensor:
    """One ring without the taps at its ends, shape ``(1, *size)``.

    Example:
        >>> cropped_ring(torch.eye(3).unsqueeze(0), 0, [1, 0])
        tensor([[[0., 1., 0.]]])
    """
    stencil = basis.narrow(0, ring, 1)
    for axis in range(len(ends)):
        stencil = stencil.narrow(axis + 1, ends[axis], stencil.size(axis + 1) - 2 * ends[axis])
    return stencil


def ring_sums(x: Tensor, stencil: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Sums of each channel over rings.

    Args:
        x: shape ``(N, C, *spatial)``.
        stencil: shape ``(b, *kernel_size)``, the rings.
        stride: one integer per spatial axis; so ``padding`` (zeros at both ends; negative: cropped) and ``dilation``.

    Returns:
        Shape ``(N, C * b, *spatial)``, the sums of a channel beside each other.

    Example:
        >>> ring_sums(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[0.0, 1, 0], [1, 0, 1]]), [1], [1], [1])
        tensor([[[1., 2., 3.],
                 [2., 4., 2.]]])
    """
    if min(padding) < 0:
        pads: list[int] = []
        for amount in padding:
            pads = [min(amount, 0), min(amount, 0)] + pads  # noqa: RUF005 - TorchScript knows no unpacking
        x = functional.pad(x, pads)
        padding = [max(amount, 0) for amount in padding]
    channels = int(x.size(1))  # a constant of a graph
    kernels = stencil.unsqueeze(1).repeat([channels] + [1] * stencil.dim())
    return conv_nd(x, kernels, None, stride, padding, dilation, channels)


def conv_maps(x: Tensor, kernels: list[Tensor], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Convolutions one after the other of every map, taken as an image of its own.

    Args:
        x: shape ``(N, C, *spatial)``.
        kernels: one, or one per axis that reaches along that axis alone; shapes ``(outputs, inputs, *kernel_size)``, the
            first with one input. Where there are fewer inputs than outputs before, these are in as many groups.
        stride: one integer per spatial axis; so ``padding`` and ``dilation``.

    Returns:
        Shape ``(N * C, outputs, *spatial)``.

    Example:
        >>> x, along, across = torch.ones(1, 2, 3, 3), torch.ones(1, 1, 3, 1), torch.ones(1, 1, 1, 3)
        >>> conv_maps(x, [along, across], [1, 1], [1, 1], [1, 1])[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    sizes: list[int] = []  # one by one, or ONNX takes them for constants
    for axis in range(2, x.dim()):
        sizes.append(x.size(axis))
    maps = x.reshape([x.size(0) * x.size(1), 1] + sizes)  # noqa: RUF005 - TorchScript knows no unpacking
    inputs = 1
    for index, kernel in enumerate(kernels):
        own = [1] * len(sizes), [0] * len(sizes), [1] * len(sizes)
        for axis in range(len(sizes)):
            if index == min(axis, len(kernels) - 1):
                own[0][axis], own[1][axis], own[2][axis] = stride[axis], padding[axis], dilation[axis]
        maps = conv_nd(maps, kernel, None, own[0], own[1], own[2], inputs // int(kernel.size(1)))
        inputs = int(kernel.size(0))
    return maps


def summed_along_axes(
    x: Tensor, kernels: list[Tensor], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """:func:`ring_sums` in convolutions along one axis after the other, for runtimes whose depthwise ones are slow.

    Args:
        x: with the other arguments as in :func:`conv_maps`.
        kernels: from :func:`tensor_train` or :func:`folding_kernels` of the rings.

    Example:
        >>> x, rings = torch.randn(1, 2, 7, 6, 5), torch.ones(1, 3, 3, 3)
        >>> found = summed_along_axes(x, folding_kernels(rings), [1, 1, 1], [1, 1, 1], [1, 1, 1])
        >>> torch.allclose(found, ring_sums(x, rings, [1, 1, 1], [1, 1, 1], [1, 1, 1]), atol=1e-5)
        True
    """
    maps = conv_maps(x, kernels, stride, padding, dilation)
    sizes: list[int] = []
    for axis in range(2, maps.dim()):
        sizes.append(maps.size(axis))
    channels = int(x.size(1)) * int(kernels[-1].size(0))  # a constant of a graph
    return maps.reshape([x.size(0), channels] + sizes)  # noqa: RUF005


def folding_kernels(rings: Tensor) -> list[Tensor]:
    """Rings of volumes as convolutions along one axis after the other, whatever their values.

    What lies at equal distances on both sides is added, along the first axis and along the second, in which the rings must be
    symmetric; what is left of them is the convolution along the last.

    Args:
        rings: shape ``(b, *kernel_size)``.

    Example:
        >>> [list(kernel.shape) for kernel in folding_kernels(torch.ones(2, 5, 5, 5))]
        [[3, 1, 5, 1, 1], [9, 1, 1, 5, 1], [2, 9, 1, 1, 5]]
    """
    folds: list[Tensor] = []
    for axis in (1, 2):
        taps = rings.size(axis)
        halves = torch.eye(taps, dtype=rings.dtype, device=rings.device).narrow(0, taps // 2, taps - taps // 2)
        folds.append(torch.maximum(halves, halves.flip(1)))
        rings = rings.narrow(axis, taps // 2, taps - taps // 2)
    first, second = (len(fold) for fold in folds)
    return [
        folds[0].reshape(first, 1, -1, 1, 1),
        folds[1].repeat(first, 1).reshape(first * second, 1, 1, -1, 1),
        rings.reshape(len(rings), first * second, 1, 1, -1),
    ]


def tensor_train(stencils: Tensor) -> list[Tensor]:
    """Stencils as convolutions along one axis after the other, the fewest maps between them (Oseledets, SIAM 2011).

    Args:
        stencils: shape ``(components, *kernel_size)``.

    Returns:
        One kernel per axis, shape ``(outputs, inputs, *ones, taps, *ones)``.

    Example:
        >>> from monai_sre.ops import harmonic_stencils
        >>> [list(kernel.shape) for kernel in tensor_train(harmonic_stencils(2, 3))]
        [[3, 1, 5, 1, 1], [6, 3, 1, 5, 1], [5, 6, 1, 1, 5]]
    """
    ndim, kernels = stencils.dim() - 1, []
    rest = stencils.double().movedim(0, -1).unsqueeze(0)  # (inputs, *kernel_size, components)
    for axis in range(ndim):
        inputs, taps = rest.shape[:2]
        last = axis == ndim - 1
        if last:
            kernel = rest
        else:
            left, strengths, right = torch.linalg.svd(rest.reshape(inputs * taps, -1), full_matrices=False)
            rank = max(int((strengths > 1e-6 * strengths[0]).sum()), 1)
            kernel = left[:, :rank].reshape(inputs, taps, rank)
            rest = (strengths[:rank, None] * right[:rank]).reshape(rank, *rest.shape[2:])
        shape = [taps if place == axis else 1 for place in range(ndim)]
        kernels.append(kernel.permute(2, 0, 1).reshape(-1, inputs, *shape).to(stencils.dtype))
    return kernels


def joined_stencils(stencils: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Stencils of several orders as one tensor, those of smaller sizes between zeros.

    Args:
        stencils: each of shape ``(components, *kernel_size)`` with odd sizes.

    Example:
        >>> joined_stencils([torch.ones(1, 1), torch.ones(1, 3)], torch.float32)
        tensor([[0., 1., 0.],
                [1., 1., 1.]])
    """
    parts: list[Tensor] = []
    for stencil in stencils:
        pads: list[int] = []
        for axis in range(stencil.dim() - 1, 0, -1):
            longest = max([int(other.size(axis)) for other in stencils])
            pads += [(longest - int(stencil.size(axis))) // 2] * 2
        parts.append((functional.pad(stencil, pads) if max(pads) > 0 else stencil).to(dtype))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def portable_ring_conv(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution with the kernel ``weight @ basis``; torch differentiates it, and keeps the sums to do so.

    On a CPU each ring is a convolution of its own, without the taps that lie beyond it. Elsewhere all rings are one, as a
    look at their values would wait for the device. In float16 each ring is divided by the power of two above the sum of its
    taps, and the weights multiplied by it: what fits into the range as input fits as a sum.

    Args:
        x: shape ``(N, C, *spatial)``, in the dtype of ``weight``, and of ``bias`` where there is one.
        weight: shape ``(out_channels, C / groups, b)``.
        basis: shape ``(b, *kernel_size)``.
        bias: shape ``(out_channels,)``, or ``None``.
        stride: one integer per spatial axis; so ``padding`` and ``dilation``.
        groups: number of blocks of channels that do not mix.

    Example:
        >>> x, weight = torch.ones(1, 1, 3), torch.tensor([[[1.0, 10.0]]])
        >>> portable_ring_conv(x, weight, torch.tensor([[0.0, 1, 0], [1, 0, 1]]), None, [1], [1], [1], 1)
        tensor([[[11., 21., 11.]]])
    """
    out: Tensor | None = None
    for part in _parts(x, weight, basis, padding, dilation):
        sums = ring_sums(x, part.stencil, list(stride), part.padding, list(dilation))
        ones = [1] * len(stride)
        mixed = conv_nd(sums, part.mixing, bias if out is None else None, ones, [0] * len(ones), ones, groups)
        out = mixed if out is None else out + mixed
    assert out is not None
    return out


def exported_ring_conv(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    ends: list[list[int]],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """:func:`portable_ring_conv` for graphs that are exported: each ring apart, cropped by what is known of it.

    Args:
        x: with all other arguments as in :func:`portable_ring_conv`.
        ends: from :func:`ring_ends`.

    Example:
        >>> x, weight, basis = torch.ones(1, 1, 3), torch.tensor([[[1.0, 10.0]]]), torch.tensor([[0.0, 1, 0], [1, 0, 1]])
        >>> exported_ring_conv(x, weight, basis, ring_ends(basis), None, [1], [1], [1], 1)
        tensor([[[11., 21., 11.]]])
    """
    unbatched = x.dim() == basis.dim()
    if unbatched:
        x = x.unsqueeze(0)
    basis, weight = scaled_rings(basis, weight)
    ones, zeros = [1] * len(stride), [0] * len(stride)
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if len(stride) == 3 and torch.onnx.is_in_onnx_export():
            sums = summed_along_axes(x, folding_kernels(basis), stride, padding, dilation)
            volume = conv_nd(sums, weight.reshape(len(weight), -1, 1, 1, 1), bias, ones, zeros, ones, groups)
            return volume.squeeze(0) if unbatched else volume
    out = torch.zeros([0], dtype=x.dtype)
    for ring in range(len(ends)):
        stencil, margin = cropped_ring(basis, ring, ends[ring]), padding.copy()
        for axis in range(len(margin)):
            margin[axis] = margin[axis] - ends[ring][axis] * dilation[axis]
        mixing = weight.select(2, ring).reshape([weight.size(0), weight.size(1)] + ones)  # noqa: RUF005
        part_bias = bias if ring == 0 else None
        if stencil.numel() == 1 and min(margin) >= 0:
            mixed = conv_nd(x, mixing * stencil.reshape([1, 1] + ones), part_bias, stride, margin, ones, groups)  # noqa: RUF005
        else:
            mixed = conv_nd(
                ring_sums(x, stencil, stride, margin, dilation), mixing, part_bias, ones, zeros, ones, groups
            )
        out = mixed if ring == 0 else out + mixed
    return out.squeeze(0) if unbatched else out


def portable_ring_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`portable_ring_conv` by input, weight and bias, those that are ``wanted``.

    Of the two ways that :mod:`monai_sre.ops.ring.convolution` describes, the one whose sums are fewer: those of ``grad`` over
    mirrored rings serve both gradients, those of ``x`` one, and the other takes the sums back. Behind a stride, always these.
    """
    grad_x: Tensor | None = None
    grad_weights: list[Tensor] = []
    mirrored = max(stride) == 1 and weight.shape[0] < x.shape[1] * (wanted[0] + wanted[1])
    for part in _parts(x, weight, basis, padding, dilation) if wanted[0] or wanted[1] else ():
        one_way = _from_sums_of_grad if mirrored else _from_sums_of_input
        by_x, by_weight = one_way(grad, x, part, stride, dilation, groups, wanted)
        if by_x is not None:
            grad_x = by_x if grad_x is None else grad_x + by_x
        if by_weight is not None:
            grad_weights.append(by_weight if part.scale is None else by_weight * part.scale)
    grad_bias = grad.sum(dim=[0, *range(2, grad.dim())]) if wanted[2] else None
    return grad_x, torch.cat(grad_weights, dim=2) if wanted[1] else None, grad_bias


@dataclass(frozen=True)
class _Part:
    """Some rings, cropped, their weights as kernels of one tap, and the factor between these and the layer's weights."""

    stencil: Tensor
    padding: list[int]
    mixing: Tensor
    scale: Tensor | None


def _parts(
    x: Tensor, weight: Tensor, basis: Tensor, padding: Sequence[int], dilation: Sequence[int]
) -> Iterator[_Part]:
    scale = ring_scales(basis).to(weight.dtype) if weight.dtype == torch.float16 else None
    basis, weight = scaled_rings(basis, weight)
    at_hand = all(type(operand) in (Tensor, torch.nn.Parameter) for operand in (x, basis))  # no fake tensors
    apart = x.device.type == "cpu" and at_hand and not torch.compiler.is_compiling()
    ends = ring_ends(basis) if apart else []
    pieces: Sequence[Any] = range(len(ends)) if apart else [slice(None)]
    for piece in pieces:
        chosen = slice(piece, piece + 1) if isinstance(piece, int) else piece
        stencil, margin = basis[chosen], list(padding)
        if isinstance(piece, int):
            stencil = cropped_ring(basis, piece, ends[piece])
            margin = [pad - end * step for pad, end, step in zip(padding, ends[piece], dilation, strict=True)]
        mixing = weight[:, :, chosen].flatten(1).reshape(weight.shape[0], -1, *[1] * len(margin))
        yield _Part(stencil, margin, mixing, None if scale is None else scale[chosen])


def _from_sums_of_grad(
    grad: Tensor,
    x: Tensor,
    part: _Part,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by input and weights at stride 1: the transpose of a sum over a ring is that over the mirrored ring."""
    kernel, ones, zeros = part.stencil.shape, [1] * len(stride), [0] * len(stride)
    margin = [d * (k - 1) - p for d, k, p in zip(dilation, kernel[1:], part.padding, strict=True)]
    sums = ring_sums(grad, part.stencil.flip(list(range(1, len(kernel)))), list(stride), margin, list(dilation))
    mixing = part.mixing.reshape(grad.shape[1], -1, kernel[0]).transpose(1, 2).reshape(sums.shape[1], -1, *ones)
    by_x, by_mixing, _ = torch.ops.aten.convolution_backward(
        sums, x, mixing, None, ones, zeros, ones, False, zeros, groups, [*wanted[:2], False]
    )
    return by_x, by_mixing.reshape(grad.shape[1], kernel[0], -1).transpose(1, 2) if wanted[1] else None


def _from_sums_of_input(
    grad: Tensor,
    x: Tensor,
    part: _Part,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by input and weights through :func:`ring_sums`: that by the weights alone needs the sums."""
    channels, ones, zeros = x.shape[1], [1] * len(stride), [0] * len(stride)
    crop = [end for pad in reversed(part.padding) for end in [min(pad, 0)] * 2]
    image = functional.pad(x, crop) if any(crop) else x
    kernels = part.stencil.unsqueeze(1).repeat(channels, *[1] * part.stencil.dim())
    padding = [max(pad, 0) for pad in part.padding]
    by_mixing: Tensor | None = None
    if wanted[1]:
        sums = conv_nd(image, kernels, None, list(stride), padding, list(dilation), channels)
        slope, by_mixing, _ = torch.ops.aten.convolution_backward(
            grad, sums, part.mixing, None, ones, zeros, ones, False, zeros, groups, [*wanted[:2], False]
        )
        by_mixing = by_mixing.reshape(grad.shape[1], -1, part.stencil.shape[0])
    else:
        slope = torch.ops.aten.convolution(grad, part.mixing, None, ones, zeros, ones, True, zeros, groups)
    by_x = None
    if wanted[0]:
        by_x, _, _ = torch.ops.aten.convolution_backward(
            slope, image, kernels, None, stride, padding, dilation, False, zeros, channels, (True, False, False)
        )
        by_x = functional.pad(by_x, [-end for end in crop]) if any(crop) else by_x
    return by_x, by_mixing


def scaled_rings(basis: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rings and weights in the dtype of ``weight``, scaled in float16 as :func:`portable_ring_conv` says.

    Example:
        >>> rings, weight = scaled_rings(torch.full((1, 3, 3), 2.0), torch.ones(1, 1, 1, dtype=torch.float16))
        >>> rings[0, 0, 0].item(), weight.item()
        (0.0625, 32.0)
    """
    if weight.dtype != torch.float16:
        return basis.to(weight.dtype), weight
    scale = ring_scales(basis)
    return (basis / scale.reshape([-1] + [1] * (basis.dim() - 1))).to(weight.dtype), weight * scale.to(weight.dtype)


def ring_scales(basis: Tensor) -> Tensor:
    """Of each ring the power of two above the sum of its taps, shape ``(b,)``, in float32.

    Example:
        >>> ring_scales(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 3.0]]))
        tensor([1., 8.])
    """
    return torch.exp2(torch.ceil(torch.log2(basis.float().abs().flatten(1).sum(dim=1).clamp(min=1.0))))
