"""What single functions of torch become on a centred grid, and why some have no counterpart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor
from torch.nn import functional

from monai_sre.convert.monai_blocks import CentredShuffle
from monai_sre.convert.report import AS_FEATURES, INDICES, INTO_CHANNELS, RefusedError
from monai_sre.layers.pool import CentredNearest
from monai_sre.ops.conv import centred_conv, centred_conv_transpose
from monai_sre.ops.grid import centred_pad
from monai_sre.ops.pool import blur_width, centred_avg_pool, centred_blur_pool, centred_nearest

if TYPE_CHECKING:
    from monai_sre.convert.functions import CentredFunctions


def per_axis(value: Any, ndim: int) -> list[Any]:
    """One value for all axes, or one per axis, as lists of integers; sizes of a graph stay as they are."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * ndim if len(values) == 1 else values


def is_map(here: CentredFunctions, x: Any, ndim: int) -> bool:
    """Whether a value has the axes of a map ``(N, C, *spatial)``, of as many spatial axes as the network's."""
    return ndim == here.spatial_dims and isinstance(x, Tensor) and x.dim() == ndim + 2


def _interpolate(
    here: CentredFunctions,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    ndim = input.dim() - 2
    if not is_map(here, input, ndim):
        return None
    nearest = "nearest" in mode
    if size is not None:
        return centred_nearest(input, per_axis(size, ndim)) if nearest else None
    ratios = [float(ratio) for ratio in per_axis(scale_factor, ndim)]
    here.options.check_alike("scale_factor", ratios)
    if align_corners or mode == "area" or all(ratio.is_integer() for ratio in ratios):
        return None
    if nearest:
        return CentredNearest(None, ratios)(input)
    return functional.interpolate(
        input, None, ratios, mode, align_corners, recompute_scale_factor=True, antialias=antialias
    )


def _max_pool(ndim: int) -> Callable[..., Tensor | None]:
    def rule(
        here: CentredFunctions,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | None:
        if not is_map(here, input, ndim):
            return None
        if return_indices:
            raise RefusedError(INDICES)
        stride = kernel_size if stride is None or stride == [] else stride
        shape = (per_axis(value, ndim) for value in (kernel_size, stride, padding, dilation))
        return _pooled(here, "CENTREDMAX", input, *shape, ceil_mode)

    return rule


def _avg_pool(ndim: int) -> Callable[..., Tensor | None]:
    def rule(
        here: CentredFunctions,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor | None:
        if not is_map(here, input, ndim):
            return None
        if divisor_override is not None:
            raise RefusedError(f"divisor_override={divisor_override} has no centred counterpart: leave it out")
        stride = kernel_size if stride is None or stride == [] else stride
        shape = (per_axis(value, ndim) for value in (kernel_size, stride, padding))
        return _pooled(here, "CENTREDAVG", input, *shape, ceil_mode, count_include_pad)

    return rule


def _pooled(
    here: CentredFunctions, kind: str, x: Tensor, size: list[Any], stride: list[Any], *more: Any
) -> Tensor | None:
    ndim = len(size)
    whole = all(taps is length or taps == length for taps, length in zip(size, x.shape[2:], strict=True))
    if whole or all(step == 1 for step in stride):
        return None
    settings = [[int(value) for value in values] for values in (size, stride)]
    for what, values in zip(("kernel_size", "stride"), settings, strict=True):
        here.options.check_alike(what, values)
    return Pool[kind, ndim](*settings, *more, antialias=here.options.antialias)(x)


def _pad(
    here: CentredFunctions, input: Tensor, pad: Any, mode: str = "constant", value: float | None = None
) -> Tensor | None:
    ndim = here.spatial_dims
    if not is_map(here, input, input.dim() - 2) or not input.is_floating_point():
        return None
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    spatial = [*pairs[:ndim], *[(0, 0)] * (ndim - len(pairs))][::-1]
    known = all(
        type(amount) is int for pair in spatial for amount in pair
    )  # else a graph's, which may differ elsewhere
    if known and all(low == high for low, high in spatial):
        return None
    size = [length + low + high for length, (low, high) in zip(input.shape[2:], spatial, strict=True)]
    x = centred_pad(input, size, mode, 0.0 if value is None else value)
    if len(pairs) > ndim:
        x = functional.pad(x, [0, 0] * ndim + list(pad[2 * ndim :]), mode, value)
    return x


def _conv(
    here: CentredFunctions,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    ndim = weight.dim() - 2
    if not is_map(here, input, ndim):
        return None
    taps, steps, spread = ([int(v) for v in per_axis(value, ndim)] for value in (weight.shape[2:], stride, dilation))
    if padding in ("valid", "same"):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, taps, strict=True)]
    else:
        total = [2 * int(amount) for amount in per_axis(padding, ndim)]
    for what, values in (("kernel_size", taps), ("stride", steps), ("dilation", spread), ("padding", total)):
        here.options.check_alike(what, values)
    if max(*taps, *steps) == 1:
        return None
    blur = blur_width(here.options.antialias) if max(steps) > 1 and not here.fixed else 0.0
    near, far = [amount // 2 for amount in total], [amount % 2 for amount in total]
    return centred_conv(input, here.radial(weight), bias, steps, near, far, spread, groups, "zeros", blur)


def _conv_transpose(
    here: CentredFunctions,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    ndim = weight.dim() - 2
    if not is_map(here, input, ndim):
        return None
    settings = [weight.shape[2:], stride, padding, output_padding, dilation]
    taps, steps, amounts, extra, spread = ([int(v) for v in per_axis(value, ndim)] for value in settings)
    for what, values in (("kernel_size", taps), ("stride", steps), ("padding", amounts), ("output_padding", extra)):
        here.options.check_alike(what, values)
    margin = [2 * amount - more for amount, more in zip(amounts, extra, strict=True)]
    return centred_conv_transpose(input, here.radial(weight), bias, steps, margin, spread, groups)


def _getitem(here: CentredFunctions, input: Tensor, index: Any) -> Tensor | None:
    """Every ``step``-th pixel along all spatial axes, or as many as another map has."""
    ndim = here.spatial_dims
    if not is_map(here, input, ndim) or not isinstance(index, tuple) or len(index) > ndim + 3:
        return None
    if Ellipsis in [item if item is Ellipsis else None for item in index]:
        at = [item is Ellipsis for item in index].index(True)
        index = (*index[:at], *[slice(None)] * (ndim + 3 - len(index)), *index[at + 1 :])
    slices = index[2:]
    if len(index) != ndim + 2 or not all(isinstance(item, slice) for item in index):
        return None
    if all(type(item.step) is int and item.step > 1 for item in slices):
        return _every(here, input, index)
    crops = all(item.step in (None, 1) and (item.start is None or type(item.start) is int) for item in slices)
    ends = [item.stop for item in slices]
    if not crops or any(item.start for item in slices) or any(type(end) is int and end < 0 for end in ends):
        return None
    if all(end is None for end in ends):
        return None
    if not all(end is None or type(end) is not int or end <= input.shape[i + 2] for i, end in enumerate(ends)):
        return None
    size = [length if end is None else end for length, end in zip(input.shape[2:], ends, strict=True)]
    return centred_pad(input[index[:2]], size, "replicate")


def _every(here: CentredFunctions, x: Tensor, index: tuple[Any, ...]) -> Tensor:
    slices = index[2:]
    steps = [item.step for item in slices]
    here.options.check_alike("step", steps)
    if any(item.start or item.stop is not None for item in slices):
        raise RefusedError(
            "as it starts or stops at some pixel: a rotation exchanges what such slices hold, so put a strided convolution "
            "in its place"
        )
    x = x[index[:2]]
    if here.options.antialias:
        return centred_blur_pool(x, steps, blur_width(here.options.antialias))
    return centred_avg_pool(x, [1] * len(steps), steps, [0] * len(steps))


def _pixel_shuffle(here: CentredFunctions, input: Tensor, upscale_factor: int) -> Tensor | None:
    return CentredShuffle(upscale_factor, 2)(input) if is_map(here, input, 2) else None


def what_it_mixes(here: CentredFunctions, x: Any, *more: Any) -> str:
    """What a change of shape does to positions that a head or a map cannot take, and the way out; ``""`` for nothing."""
    ndim = here.spatial_dims
    sizes = tuple(more[0] if len(more) == 1 and isinstance(more[0], Sequence) else more)
    of_map = is_map(here, x, ndim) and x.shape[2:].numel() > 1
    if of_map and sizes in ((1,), (1, -1), (len(x), -1), (len(x), x[0].numel())):
        return f", which {AS_FEATURES}"
    rows = isinstance(x, Tensor) and x.dim() == 3 and len(sizes) == ndim + 2 and sizes[0] == len(x)
    if rows and math.prod(sizes[2:]) == x.shape[1] != x.shape[2]:
        return ", which makes a map of rows of channels: transpose it first"
    return ""


def _refused(reason: str) -> Callable[..., None]:
    def rule(here: CentredFunctions, input: Tensor, *args: Any, **kwargs: Any) -> None:
        if is_map(here, input, here.spatial_dims):
            raise RefusedError(reason)

    return rule


#: By function: its counterpart, called with the mode and the arguments; ``None`` where the function is right as it is.
RULES: dict[Any, Callable[..., Tensor | None]] = {
    functional.interpolate: _interpolate,
    functional.pad: _pad,
    torch.pixel_shuffle: _pixel_shuffle,
    torch.pixel_unshuffle: _refused(f"as {INTO_CHANNELS}"),
    Tensor.__getitem__: _getitem,
}
#: What may or may not break the symmetry, which the check finds: named with its place where it does.
DOUBTFUL = {
    functional.unfold,
    functional.fold,
    functional.grid_sample,
    functional.affine_grid,
    Tensor.unfold,
    torch.roll,
}
#: What changes shapes, and may take positions for channels.
RESHAPING = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape}
for _n in (1, 2, 3):
    RULES |= {
        getattr(functional, f"max_pool{_n}d"): _max_pool(_n),
        getattr(torch, f"max_pool{_n}d"): _max_pool(_n),
        getattr(functional, f"max_pool{_n}d_with_indices"): _refused(INDICES),
        getattr(functional, f"adaptive_max_pool{_n}d_with_indices"): _refused(INDICES),
        getattr(functional, f"avg_pool{_n}d"): _avg_pool(_n),
        getattr(torch, f"conv{_n}d"): _conv,
        getattr(torch, f"conv_transpose{_n}d"): _conv_transpose,
        getattr(functional, f"lp_pool{_n}d"): _refused("as it has none: take an average pool"),
    }
