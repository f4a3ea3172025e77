"""The ring algorithm in ordinary operations, on any device and in any graph: depthwise convolutions, then 1 x 1 ones.

The sums of all channels over one ring are a depthwise convolution with a constant stencil, and what mixes them is a
convolution with kernels of one tap. Runtimes such as ONNX Runtime are fast at exactly these two, and the taps beyond a
ring's own reach are left out where its values are at hand. Stencils are constants and have no gradient, so a training step
keeps the input and the weights alone, as for any convolution: the sums are formed again in the backward pass.
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


def joined_stencils(stencils: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stencils of several orders as one tensor, those of smaller sizes between zeros.

    Args:
        stencils: each of shape ``(components, *kernel_size)`` with odd sizes.

    Example:
        >>> joined_stencils([torch.ones(1, 1), torch.ones(1, 3)], torch.float32)
        tensor([[0., 1., 0.],
                [1., 1., 1.]])
    """
    sizes = [max(lengths) for lengths in zip(*(stencil.shape[1:] for stencil in stencils), strict=True)]
    parts = []
    for stencil in stencils:
        ends = [(size - own) // 2 for size, own in zip(sizes, stencil.shape[1:], strict=True)]
        pads = [end for end in reversed(ends) for _ in range(2)]
        parts.append((functional.pad(stencil, pads) if any(pads) else stencil).to(dtype))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@torch.jit.unused
def takes_planes():  # type: ignore[no-untyped-def]
    """Whether :func:`conv_by_planes` serves: ONNX by the TorchScript exporter; ``torch.export`` fixes numbers of planes."""
    return torch.onnx.is_in_onnx_export() and torch.jit.is_tracing()


@torch.jit.unused
def from_planes(planes: Tensor) -> Tensor:
    """Volumes ``(N, C, D, H, W)`` of planes ``(N, D, C, H, W)``, of a number of channels that the exporter knows."""
    x = planes.movedim(1, 2)
    return x.reshape(x.size(0), int(x.size(1)), x.size(2), x.size(3), x.size(4))


@torch.jit.unused
def conv_by_planes(
    planes: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution of volumes as convolutions of their planes, which runtimes for ONNX are several times faster at.

    Kernels are constants: planes at equal distances are added first where they meet the same taps, and the zeros around
    these are left out.

    Args:
        planes: shape ``(N, D, C, H, W)``.
        kernel: with the other arguments, those of ``torch.nn.functional.conv3d``.

    Returns:
        Shape ``(N, D, C, H, W)``, of the output.

    Example:
        >>> x, kernel = torch.randn(2, 3, 7, 6, 5), torch.randn(4, 3, 3, 3, 3)
        >>> out = conv_by_planes(x.movedim(2, 1), kernel, None, (1, 2, 1), (1, 0, 1), (2, 1, 1), 1)
        >>> wanted = functional.conv3d(x, kernel, None, (1, 2, 1), (1, 0, 1), (2, 1, 1))
        >>> torch.allclose(out.movedim(1, 2), wanted, atol=1e-5)
        True
    """
    taps, batch = kernel.shape[2], planes.size(0)
    padded = functional.pad(planes, [0] * 6 + [padding[0]] * 2) if padding[0] else planes
    depth = (padded.size(1) - dilation[0] * (taps - 1) - 1) // stride[0] + 1
    steps = torch.arange(depth, device=planes.device) * stride[0]  # a slice would guard its ends, and so the sizes
    out: Tensor | None = None
    for tap in range((taps + 1) // 2):
        mirror = taps - 1 - tap
        alike = tap != mirror and torch.equal(kernel[:, :, tap], kernel[:, :, mirror])
        places = [tap, mirror] if tap != mirror else [tap]
        parts = [padded.index_select(1, steps + place * dilation[0]) for place in places]
        for place, part in [(tap, parts[0] + parts[1])] if alike else list(zip(places, parts, strict=True)):
            flat, margin = kernel[:, :, place], list(padding[1:])
            ends = ring_ends(flat.abs().sum(dim=(0, 1)).unsqueeze(0))[0]
            for axis, end in enumerate(ends):
                flat = flat.narrow(axis + 2, end, flat.shape[axis + 2] - 2 * end)
                margin[axis] -= end * dilation[axis + 1]
            image = part.flatten(0, 1)
            if min(margin) < 0:
                image = functional.pad(image, [min(amount, 0) for amount in margin[::-1] for _ in range(2)])
            here = conv_nd(
                image,
                flat,
                bias if out is None else None,
                list(stride[1:]),
                [max(amount, 0) for amount in margin],
                list(dilation[1:]),
                groups,
            )
            out = here if out is None else out + here
    assert out is not None
    return out.reshape(batch, depth, int(out.size(1)), out.size(2), out.size(3))  # unflatten makes constants of sizes


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
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if len(stride) == 3 and takes_planes():
            volume = _exported_volume(x, weight, basis, ends, bias, stride, padding, dilation, groups)
            return volume.squeeze(0) if unbatched else volume
    ones, zeros = [1] * len(stride), [0] * len(stride)
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


def _exported_volume(
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
    channels, out = int(x.size(1)), None
    for ring in range(len(ends)):
        stencil = cropped_ring(basis, ring, ends[ring])
        margin = [pad - end * step for pad, end, step in zip(padding, ends[ring], dilation, strict=True)]
        crop = [min(amount, 0) for amount in margin[::-1] for _ in range(2)]
        planes = (functional.pad(x, crop) if any(crop) else x).movedim(2, 1)
        margin, mixing = [max(amount, 0) for amount in margin], weight[:, :, ring].reshape(*weight.shape[:2], 1, 1, 1)
        part_bias = bias if ring == 0 else None
        if stencil.numel() == 1:
            mixed = conv_by_planes(planes, mixing * stencil.flatten(), part_bias, stride, margin, [1] * 3, groups)
        else:
            kernels = stencil.unsqueeze(1).repeat(channels, 1, 1, 1, 1)
            sums = conv_by_planes(planes, kernels, None, stride, margin, dilation, channels)
            mixed = conv_by_planes(sums, mixing, part_bias, [1] * 3, [0] * 3, [1] * 3, groups)
        out = mixed if out is None else out + mixed
    assert out is not None
    return from_planes(out)


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
