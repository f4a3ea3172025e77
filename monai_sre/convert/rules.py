"""How single modules become equivariant: convolutions, pools, interpolation, padding; or why they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from monai_sre.convert.function_rules import per_axis
from monai_sre.convert.options import Options, add_energies, embed, fill, make_layer, project
from monai_sre.convert.report import INDICES, RefusedError
from monai_sre.layers import centred
from monai_sre.layers.pool import CentredNearest, CentredPad
from monai_sre.ops.arguments import on_cpu

CENTRED = (centred.CentredConv1d, centred.CentredConv2d, centred.CentredConv3d)
_CENTRED_TRANSPOSED = (centred.CentredConvTranspose1d, centred.CentredConvTranspose2d, centred.CentredConvTranspose3d)
#: Pixels that are added at both ends of each axis.
Pads = list[tuple[int, int]]


@dataclass(frozen=True)
class Replaced:
    """What takes a module's place.

    Attributes:
        module: the new one.
        energy: share of the kernel's energy that it has kept; ``None`` where no kernel was projected.
        seen: share that its energies see besides, where it has some.
    """

    module: nn.Module
    energy: float | None = None
    seen: float | None = None


@dataclass(frozen=True)
class Kept:
    """Why a module may stay."""

    reason: str


def convert_conv(
    conv: _ConvNd, options: Options, spacing: tuple[float, ...] | None, merged: Pads | None
) -> Replaced | Kept:
    """The counterpart of a convolution.

    Args:
        conv: ``nn.Conv1d/2d/3d``.
        options: what the user asked for.
        spacing: voxel size where this layer works.
        merged: zero padding that a module before it applied and that is now the layer's.

    Raises:
        RefusedError: it cannot be made equivariant; so does every rule here.
    """
    if has_own_forward(conv) and max(*conv.kernel_size, *conv.stride) == 1:
        return Kept("a 1-tap kernel is radial; it was not seen to run")
    ndim = _spatial_dims(conv, "CONV")
    taps, stride, dilation = list(conv.kernel_size), conv.stride, conv.dilation
    pads = _conv_pads(conv)
    if merged is not None:
        if conv.padding_mode != "zeros":
            raise RefusedError(
                f"padding_mode={conv.padding_mode!r} behind a padding layer that differs between the ends"
            )
        pads = [(low + more, high + extra) for (low, high), (more, extra) in zip(pads, merged, strict=True)]
    for what, values in (("stride", stride), ("dilation", dilation)):
        options.check_alike(what, values)
    keeps_size = all(s == 1 and sum(p) == d * (k - 1) for s, p, d, k in zip(stride, pads, dilation, taps, strict=True))
    wide = [max(taps)] * ndim if ndim == 2 and keeps_size and options.exchanged(0, 1) else taps
    try:
        options.check_alike("kernel_size", wide)
    except RefusedError as error:
        raise RefusedError(
            f"{error}; in place of a pair of such layers, take one of kernel_size={max(taps)}"
        ) from error
    options.check_alike(
        "padding", [sum(p) + d * (w - k) for p, d, w, k in zip(pads, dilation, wide, taps, strict=True)]
    )
    symmetric = all(low == high for low, high in pads)
    if all(k == 1 for k in taps) and all(s == 1 for s in stride) and symmetric and merged is None:
        return Kept("a 1-tap kernel is radial")
    size = options.enlarged(wide)
    total = [sum(pair) + d * (new - k) for pair, d, new, k in zip(pads, dilation, size, taps, strict=True)]
    for axis in range(ndim):
        if stride[axis] == 1 and dilation[axis] == 1 and total[axis] % 2:  # always half a pixel aside: one tap more
            size[axis] += 1
            total[axis] += 1
    arguments: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": tuple(size),
        "stride": stride,
        "padding": tuple(amount // 2 for amount in total),
        "dilation": dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "padding_mode": conv.padding_mode,
        "algorithm": options.algorithm,
    }
    on_torch_grid = all(s == 1 for s in stride) and all(k % 2 for k in size) and not any(amount % 2 for amount in total)
    if conv.padding_mode != "zeros" and any(amount % 2 for amount in total):
        raise RefusedError(
            f"its padding is odd in all, {tuple(total)} pixels, half of which padding_mode={conv.padding_mode!r} cannot "
            "place at either end"
        )
    if not on_torch_grid:
        arguments["far_padding"] = tuple(amount % 2 for amount in total)
        arguments["antialias"] = options.antialias if any(s > 1 for s in stride) else False
    kernel = embed(conv.weight, size, [low < high for low, high in pads])
    new = make_layer(Conv["SRECONV", ndim] if on_torch_grid else CENTRED[ndim - 1], arguments, options, spacing)
    energy, seen = fill(new, kernel, conv.bias, conv, options), None
    if options.energies is not None and max(size) > 1:
        new, seen = add_energies(new, arguments, options, spacing, kernel)
    return Replaced(new, energy, seen)


def convert_transposed(conv: _ConvTransposeNd, options: Options, spacing: tuple[float, ...] | None) -> Replaced:
    """The counterpart of a transposed convolution."""
    ndim = _spatial_dims(conv, "CONVTRANS")
    padding = [int(amount) for amount in conv.padding]
    for what, values in (
        ("kernel_size", conv.kernel_size),
        ("stride", conv.stride),
        ("dilation", conv.dilation),
        ("padding", padding),
        ("output_padding", conv.output_padding),
    ):
        options.check_alike(what, values)
    size = options.enlarged(conv.kernel_size)
    pairs = zip(padding, conv.dilation, size, conv.kernel_size, strict=True)
    arguments: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": tuple(size),
        "stride": conv.stride,
        "padding": tuple(amount + d * (new - k) // 2 for amount, d, new, k in pairs),
        "output_padding": conv.output_padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }
    new = make_layer(_CENTRED_TRANSPOSED[ndim - 1], arguments, options, spacing)
    kernel = embed(conv.weight, new.kernel_size, [False] * ndim)  # type: ignore[arg-type]
    return Replaced(new, fill(new, kernel, conv.bias, conv, options))


def convert_subpixel(conv: _ConvNd, factor: int, options: Options, spacing: tuple[float, ...] | None) -> Replaced:
    """A convolution and the pixel shuffle behind it, which together are a transposed convolution.

    A rotation exchanges the channels that a pixel shuffle interleaves, so the two cannot be treated one by one.
    """
    ndim = _spatial_dims(conv, "CONV")
    pads = _conv_pads(conv)
    unusual = conv.padding_mode != "zeros" or conv.groups != 1 or any(v != 1 for v in (*conv.stride, *conv.dilation))
    if unusual or any(low != high for low, high in pads):
        raise RefusedError(
            "the convolution before a pixel shuffle must have stride 1, dilation 1, groups 1 and zero padding"
        )
    options.check_alike("kernel_size", conv.kernel_size)
    options.check_alike("padding", pads)
    size = options.enlarged(conv.kernel_size)
    out_channels = conv.out_channels // factor**ndim
    weight = embed(conv.weight.detach(), size, [False] * ndim).flip(list(range(2, 2 + ndim)))
    weight = weight.unflatten(0, (out_channels, *[factor] * ndim)).movedim(1 + ndim, 0)  # (in, out, *factor, *size)
    order = [0, 1] + [place for axis in range(ndim) for place in (2 + ndim + axis, 2 + axis)]
    kernel = weight.permute(order).reshape(conv.in_channels, out_channels, *[factor * k for k in size])
    more = [(new - k) // 2 for new, k in zip(size, conv.kernel_size, strict=True)]
    arguments: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": out_channels,
        "kernel_size": tuple(factor * k for k in size),
        "stride": factor,
        "padding": tuple(factor * (low + grown) for (low, _), grown in zip(pads, more, strict=True)),
        "bias": conv.bias is not None,
    }
    new = make_layer(_CENTRED_TRANSPOSED[ndim - 1], arguments, options, spacing)
    bias = None if conv.bias is None else conv.bias.detach().reshape(out_channels, -1).mean(dim=1)
    return Replaced(new, fill(new, kernel, bias, conv, options))


def convert_pool(pool: nn.Module, options: Options) -> Replaced | Kept:
    """The counterpart of a pool."""
    ndim = int(_torch_base(pool, "pools").__name__[-2])
    if isinstance(pool, (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)):
        if getattr(pool, "return_indices", False):
            raise RefusedError(INDICES)
        size: Any = pool.output_size
        options.check_alike("output_size", [size] * ndim if not isinstance(size, Sequence) else list(size))
        return Kept("adaptive windows lie alike at both ends")
    kernel, stride, padding = (
        per_axis(value, ndim) for value in (pool.kernel_size, pool.stride or pool.kernel_size, pool.padding)
    )
    for what, values in (("kernel_size", kernel), ("stride", stride), ("padding", padding)):
        options.check_alike(what, values)
    strided = any(step != 1 for step in stride)
    if isinstance(pool, _MaxPoolNd):
        dilation = per_axis(pool.dilation, ndim)
        options.check_alike("dilation", dilation)
        if pool.return_indices:
            raise RefusedError(INDICES)
        if not strided:
            return Kept("stride 1")
        new: nn.Module = Pool["CENTREDMAX", ndim](
            kernel, stride, padding, dilation, pool.ceil_mode, antialias=options.antialias
        )
        return Replaced(new)
    if not strided:
        return Kept("stride 1")
    if getattr(pool, "divisor_override", None) is not None:
        raise RefusedError(f"divisor_override={pool.divisor_override} has no centred counterpart: leave it out")
    ceil_mode, count_include_pad = bool(pool.ceil_mode), bool(pool.count_include_pad)
    new = Pool["CENTREDAVG", ndim](kernel, stride, padding, ceil_mode, count_include_pad, antialias=options.antialias)
    return Replaced(new)


def convert_upsample(layer: nn.Upsample, options: Options) -> Replaced | Kept:
    """The counterpart of an interpolation."""
    _torch_base(layer, "interpolates")
    size: Any = layer.size
    factors: Any = layer.scale_factor
    for what, values in (("size", size), ("scale_factor", factors)):
        if isinstance(values, Sequence):
            options.check_alike(what, list(values))
    ratios = list(factors) if isinstance(factors, Sequence) else [] if factors is None else [factors]
    whole = size is None and all(float(factor).is_integer() for factor in ratios)
    if whole or layer.align_corners or (size is not None and "nearest" not in layer.mode):
        return Kept("interpolates on a centred grid")
    if "nearest" in layer.mode:
        return Replaced(CentredNearest(size, factors))
    twin = nn.Upsample(scale_factor=factors, mode=layer.mode, align_corners=layer.align_corners)
    twin.recompute_scale_factor = True  # the ratio of the sizes, so that the grid is centred
    return Replaced(twin)


def acts_elsewhere(module: nn.Module, spatial_dims: int) -> bool:
    """Whether a convolution or pool is made for another number of axes than the image has, such as one over channels."""
    if not (isinstance(module, _ConvNd) or is_pool(module)):
        return False
    return int(torch_base(module).__name__[-2]) != spatial_dims


def convert_elsewhere(module: nn.Module, spatial_dims: int, options: Options) -> Replaced | Kept:
    """The counterpart of a layer that :func:`acts_elsewhere`: radial over the map, if it has one tap along all else."""
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        wide = tuple(axis for axis, taps in enumerate(module.kernel_size) if taps > 1)
        over_map = spatial_dims == len(wide) < len(module.kernel_size)
        if over_map and options.axes is None and options.spacing is None:
            return convert_conv(module, replace(options, axes=wide, kernel_size=None, conv="radial"), None, None)
    return Kept(f"it acts on another number of axes than the {spatial_dims} of the image")


def radial_kernel(
    weight: nn.Parameter, options: Options, spacing: tuple[float, ...] | None
) -> tuple[Tensor, float | None]:
    """The radial kernel for the weight of a module that computes its convolution itself, and the share that it keeps."""
    size = tuple(weight.shape[2:])
    if max(size) == 1:
        return weight.data, None
    arguments = {"in_channels": weight.shape[1], "out_channels": weight.shape[0], "kernel_size": size, "bias": False}
    new: Any = make_layer(CENTRED[len(size) - 1], arguments, options, spacing)
    new.to(weight.device, weight.dtype)
    new.reset_parameters()
    energy = None
    if options.init == "project":
        coefficients, energy = project(weight, new.basis)
        new.weight.data.copy_(coefficients)
    return new.kernel().detach(), energy


@on_cpu
def radial_projection(size: tuple[int, ...], options: Options, spacing: tuple[float, ...] | None) -> Tensor:
    """The matrix, on flat kernels, of the projection on radial ones; float64."""
    arguments = {"in_channels": 1, "out_channels": 1, "kernel_size": size, "bias": False, "dtype": torch.float64}
    rings: Any = make_layer(CENTRED[len(size) - 1], arguments, options, spacing).basis
    with torch.no_grad():
        return torch.linalg.pinv(rings.flatten(1)) @ rings.flatten(1)


def convert_padding(layer: nn.Module, options: Options) -> Replaced | Kept:
    """The counterpart of a padding layer."""
    pads: Any = layer.padding
    pairs, value = pad_pairs(pads), getattr(layer, "value", 0.0)
    total = [low + high for low, high in pairs]
    options.check_alike("padding", total)
    if all(low == high for low, high in pairs):
        return Kept("pads both ends alike")
    modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
    mode = next((mode for name, mode in modes.items() if type(layer).__name__.startswith(name)), "constant")
    return Replaced(CentredPad(total, mode, float(value)))


def pad_pairs(pads: Sequence[int]) -> Pads:
    """Padding in the order of PyTorch, the last axis first, as one pair per axis, the first axis first.

    Example:
        >>> pad_pairs((0, 1, 2, 3))
        [(2, 3), (0, 1)]
    """
    return [(int(pads[index]), int(pads[index + 1])) for index in range(len(pads) - 2, -1, -2)]


def is_pool(module: nn.Module) -> bool:
    """Whether :func:`convert_pool` knows it."""
    return isinstance(module, (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd))


def torch_base(module: nn.Module) -> type[nn.Module]:
    """PyTorch's own class of a module."""
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules."))


def has_own_forward(module: nn.Module) -> bool:
    """Whether its class computes something else than PyTorch's own class of it."""
    own, base = type(module), torch_base(module)
    return any(getattr(own, name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward"))


def _torch_base(module: nn.Module, verb: str) -> type[nn.Module]:
    """PyTorch's own class of a module, unless a subclass of it does something else."""
    base = torch_base(module)
    if has_own_forward(module):
        raise RefusedError(
            f"{type(module).__name__} changes how {base.__name__} {verb}, and was not seen to run: remove it"
        )
    return base


def _spatial_dims(conv: nn.Module, kind: str) -> int:
    _torch_base(conv, "convolves")
    found = [ndim for ndim in (1, 2, 3) if isinstance(conv, Conv[kind, ndim])]
    if not found:
        raise RefusedError(f"{type(conv).__name__} is no convolution that is known here")
    if {"weight", "bias"} - conv._parameters.keys():
        raise RefusedError(
            f"its weight or bias is computed (by {', '.join(_reparametrised_by(conv))}): remove that before the "
            "conversion, and apply it anew to the new layer"
        )
    return found[0]


def _reparametrised_by(module: nn.Module) -> list[str]:
    """Names of the parametrisations and hooks of ``torch.nn.utils`` that compute parameters of a module."""
    chains = getattr(module, "parametrizations", {})
    makers = [maker for key in chains for maker in chains[key]]
    makers += [
        hook for hook in module._forward_pre_hooks.values() if type(hook).__module__.startswith("torch.nn.utils")
    ]
    return [type(maker).__name__.lstrip("_") for maker in makers]


def _conv_pads(conv: _ConvNd) -> Pads:
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    if conv.padding == "same":
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(int(amount), int(amount)) for amount in conv.padding]
