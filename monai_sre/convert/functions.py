"""Functions that a ``forward`` calls by itself, on centred grids: resampling, pools, padding, convolutions, strided slices.

A module whose own ``forward`` calls such functions keeps its parameters, its names and its code. It gets a subclass of its
class, whose ``forward`` runs the one that there was inside a :class:`CentredFunctions`. That is a
``torch.overrides.TorchFunctionMode``: torch hands it each call of one of its functions, wherever the code of the network has
it, in helper functions and methods too, and it answers with the centred counterpart, or refuses with the file and line.
Calls that torch's own modules and this package make are left alone: modules have their :mod:`monai_sre.convert.rules`.

Why a mode: ``torch.fx`` and ``torch.export`` capture a graph for training or for evaluation, not both, and lose the modules;
other names in the code of a ``forward`` would not reach operators such as ``x[..., ::2, ::2]``. A mode is ordinary Python
around ordinary tensors: gradients, ``deepcopy``, ``pickle``, ``torch.jit.trace``, ``torch.onnx.export`` and
``torch.export.export`` see the functions that it calls. ``torch.jit.script`` reads code without running it, and is refused.

Which modules these are is found by running the network in eval mode (:func:`calls_of`).
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from monai_sre.convert.monai_blocks import CentredShuffle
from monai_sre.convert.options import Options
from monai_sre.convert.report import AS_FEATURES, INDICES, INTO_CHANNELS, RefusedError
from monai_sre.convert.rules import has_own_forward, radial_projection
from monai_sre.layers.pool import CentredNearest
from monai_sre.ops.conv import centred_conv, centred_conv_transpose
from monai_sre.ops.grid import centred_pad
from monai_sre.ops.pool import blur_width, centred_avg_pool, centred_blur_pool, centred_nearest

#: Attribute of a module with the mode that its ``forward`` runs in.
MODE = "_centred_functions"
#: Pixels by which a map may differ from a whole part of the input.
_MARGIN = 3


@dataclass
class Calls:
    """What the ``forward`` of a module was seen to call.

    Attributes:
        module: whose ``forward`` it is.
        centred: calls that have a centred counterpart, as ``"interpolate (file:line)"``.
        refused: why calls have none.
        doubtful: calls that may break the symmetry.
        with_weight: whether a convolution had a kernel of the shape of the module's weight.
        projections: of kernels, see :class:`CentredFunctions`.
        left: places whose calls are left alone.
        methods: of the module, through which its ``forward`` came to such calls.
    """

    module: nn.Module
    centred: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    with_weight: bool = False
    projections: dict[Any, Tensor] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)


class CentredFunctions(TorchFunctionMode):
    """Inside, functions of torch that the network's own code calls work on centred grids.

    Args:
        spatial_dims: number of spatial axes; functions for another number are left alone.
        options: of the conversion. Kernels of convolutions are projected on radial ones, at each call, so that what computes
            them, such as a standardisation, stays and is trained.
        spacing: voxel size, where kernels are radial.
        fixed: whether kernels are filters that stay as they are, such as those of a blur pool.
        strict: raise where a call has no counterpart; else it is left alone.
        projections: of kernels, by their size and spacing, where they are known.
        left: places, as ``"file:line"``, whose calls are left alone: what they work on are no maps.

    Raises:
        ValueError: (when a function is called) it has no centred counterpart; the message names the file and line.

    Example:
        >>> from monai_sre.convert.options import Options
        >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
        >>> with CentredFunctions(1, Options()):
        ...     functional.avg_pool1d(x, 2), functional.pad(x, (0, 2))
        (tensor([[[2., 4.]]]), tensor([[[0., 1., 2., 3., 4., 5., 0.]]]))
    """

    def __init__(
        self,
        spatial_dims: int,
        options: Options,
        spacing: tuple[float, ...] | None = None,
        fixed: bool = False,
        strict: bool = True,
        projections: dict[Any, Tensor] | None = None,
        left: set[str] | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.options, self.spacing = spatial_dims, options, spacing
        self.fixed, self.strict = fixed, strict
        #: Constants: filled by the conversion, so that graphs find them.
        self.projections = {} if projections is None else projections
        self.left = left or set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        frame = None if rule is None else _users_frame()
        if rule is None or frame is None or (self.left and _short(frame) in self.left):
            return func(*args, **kwargs)
        try:
            out = rule(self, *args, **kwargs)
        except RefusedError as error:
            if self.strict:
                raise ValueError(f"{_name(func)} cannot work on a centred grid, {error} ({_place(frame)})") from error
            out = None
        return func(*args, **kwargs) if out is None else out

    def radial(self, kernel: Tensor) -> Tensor:
        """The radial kernels nearest to given ones, as a function that is trained through; fixed ones as they are."""
        size = tuple(int(taps) for taps in kernel.shape[2:])
        if self.fixed or max(size) == 1:
            return kernel
        projection = self.projections.get((size, self.spacing))
        if projection is None:
            projection = self.projections[size, self.spacing] = radial_projection(size, self.options, self.spacing)
        return (kernel.flatten(2) @ projection.to(kernel)).unflatten(2, size)


class _Observer(CentredFunctions):
    """Notes which modules call what."""

    def __init__(self, network: nn.Module, spatial_dims: int, options: Options, spacings: Mapping[int, Any]) -> None:
        super().__init__(spatial_dims, options)
        self.network, self.spacings = network, spacings
        self.modules = {id(module) for module in network.modules()}
        self.calls: dict[int, Calls] = {}
        self.shape: Any = None
        self.sizes: list[tuple[int, ...]] = []
        self.maps: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        reshaped = _what_it_mixes(self, *args, *kwargs.values()) if func in _RESHAPING else ""
        frame = _users_frame() if rule is not None or func in _DOUBTFUL or reshaped else None
        if frame is None:
            return func(*args, **kwargs)
        owner, through = self._owner(frame)
        calls, where = self._calls(owner), f"{_name(func)} ({_place(frame)})"
        calls.methods |= through
        if rule is not None and _is_map(self, args[0] if args else kwargs.get("input"), self.spatial_dims):
            if self.fits(args[0] if args else kwargs["input"]):
                self.maps.add(_short(frame))
            else:
                calls.left.add(_short(frame))
                rule = None
        if rule is None:
            calls.doubtful.append(where + reshaped)
            return func(*args, **kwargs)
        self.fixed, self.spacing = is_fixed(owner), self.spacings.get(id(owner), self.options.spacing)
        self.shape, out = None, None
        try:
            out = rule(self, *args, **kwargs)
        except RefusedError as error:
            calls.refused.append(f"{where}: {error}")
        if out is None:
            return func(*args, **kwargs)
        calls.centred.append(where)
        calls.with_weight |= getattr(getattr(owner, "weight", None), "shape", 0) == self.shape
        return out

    def begin(self, _: nn.Module, args: Any) -> None:
        """Note the sizes of the network's inputs."""
        self.sizes = [x.shape[2:] for x in tree_leaves(args) if _is_map(self, x, self.spatial_dims)]

    def fits(self, x: Tensor) -> bool:
        """Whether a tensor may be a map: its size is that of an input over one number, up to what padding adds."""
        found = not self.sizes
        for size in self.sizes:
            pairs = list(zip(size, x.shape[2:], strict=True))
            least = max(whole / (part + _MARGIN) for whole, part in pairs)
            found |= all(part <= _MARGIN or least <= whole / (part - _MARGIN) for whole, part in pairs)
        return found

    def radial(self, kernel: Tensor) -> Tensor:
        self.shape = kernel.shape
        return super().radial(kernel)

    def _calls(self, owner: nn.Module) -> Calls:
        return self.calls.setdefault(id(owner), Calls(owner, projections=self.projections))

    def _owner(self, frame: FrameType) -> tuple[nn.Module, set[str]]:
        """The module whose ``forward`` is running, and which of its methods have been called since."""
        at: FrameType | None = frame
        called: list[tuple[Any, str]] = []
        while at is not None:
            owner = _self(at)
            if at.f_code.co_name == "forward" and id(owner) in self.modules:
                return owner, {name for who, name in called if who is owner and _is_method(owner, name)}
            called.append((owner, at.f_code.co_name))
            at = at.f_back
        return self.network, set()


def calls_of(
    network: nn.Module,
    run: Callable[[], Any],
    spatial_dims: int,
    options: Options,
    spacings: Mapping[int, tuple[float, ...]],
) -> dict[int, Calls]:
    """Which modules call functions that act on space, by their ``id``.

    Args:
        network: as it was.
        run: runs it.
        spatial_dims: number of spatial axes.
        options: of the conversion.
        spacings: voxel size where a module works, by its ``id``.
    """
    observer = _Observer(network, spatial_dims, options, spacings)
    handle = network.register_forward_pre_hook(observer.begin)
    try:
        with observer:
            run()
    finally:
        handle.remove()
    left = set().union(*(calls.left for calls in observer.calls.values())) - observer.maps
    for calls in observer.calls.values():
        calls.left = left  # of all, as the mode of a module also sees what its children call
        for notes in (calls.centred, calls.refused, calls.doubtful):
            notes[:] = dict.fromkeys(notes)
    return observer.calls


def is_fixed(module: nn.Module) -> bool:
    """Whether its kernels are filters: it has no parameters."""
    return next(module.parameters(), None) is None


def _is_method(module: nn.Module, name: str) -> bool:
    return not name.startswith("__") and isinstance(inspect.getattr_static(type(module), name, None), FunctionType)


class _Centred:
    """What stands before a class whose ``forward`` calls functions on centred grids."""

    _methods: tuple[str, ...] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        return (_blank, (type(self).__bases__[1], self._methods), *made[2:])

    def __prepare_scriptable__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} calls functions in its forward, which are put on centred grids while it runs: "
            "torch.jit.script cannot compile that; use torch.jit.trace, torch.export.export or torch.onnx.export"
        )


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def centred_class(kind: type[nn.Module], methods: Iterable[str] = ()) -> type[nn.Module]:
    """A subclass of the same name that runs ``forward`` inside the mode that an instance has under :data:`MODE`.

    Args:
        kind: the class.
        methods: others to run so, as they may be called from elsewhere: by a user, or by gradient checkpointing, which calls
            them again in the backward pass.
    """
    key = kind, tuple(sorted(methods))
    if key not in _CLASSES:
        names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        inside = {name: _inside(getattr(kind, name)) for name in ("forward", *key[1])}
        _CLASSES[key] = type(kind.__name__, (_Centred, kind), {**names, "_methods": key[1], **inside})
    return _CLASSES[key]


def _inside(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with getattr(self, MODE):
            return method(self, *args, **kwargs)

    return call


def _blank(kind: type[nn.Module], methods: tuple[str, ...] = ()) -> nn.Module:
    twin = centred_class(kind, methods)
    return twin.__new__(twin)


#: Folders of torch and of this package; torchvision's begins alike, up to the separator.
_TORCH, _OURS = (f"{Path(file).parent}{os.sep}" for file in (torch.__file__, Path(__file__).parent))


def _users_frame() -> FrameType | None:
    """The network's code that called a function of torch; ``None`` if a module of torch or a layer of ours did."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        owner = _self(frame)
        if isinstance(owner, nn.Module) and not has_own_forward(owner):
            return None
        frame = frame.f_back
    return None if frame is None or frame.f_code.co_filename.startswith(_OURS) else frame


def _self(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _short(frame: FrameType) -> str:
    """The place in a form that holds on another machine."""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _name(func: Any) -> str:
    return "a slice" if func is Tensor.__getitem__ else str(getattr(func, "__name__", func))


def _per_axis(value: Any, ndim: int) -> list[Any]:
    """One value for all axes, or one per axis, as lists of integers; sizes of a graph stay as they are."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * ndim if len(values) == 1 else values


def _is_map(here: CentredFunctions, x: Any, ndim: int) -> bool:
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
    if not _is_map(here, input, ndim):
        return None
    nearest = "nearest" in mode
    if size is not None:
        return centred_nearest(input, _per_axis(size, ndim)) if nearest else None
    ratios = [float(ratio) for ratio in _per_axis(scale_factor, ndim)]
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
        if not _is_map(here, input, ndim):
            return None
        if return_indices:
            raise RefusedError(INDICES)
        stride = kernel_size if stride is None or stride == [] else stride
        shape = (_per_axis(value, ndim) for value in (kernel_size, stride, padding, dilation))
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
        if not _is_map(here, input, ndim):
            return None
        if divisor_override is not None:
            raise RefusedError(f"divisor_override={divisor_override} has no centred counterpart: leave it out")
        stride = kernel_size if stride is None or stride == [] else stride
        shape = (_per_axis(value, ndim) for value in (kernel_size, stride, padding))
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
    if not _is_map(here, input, input.dim() - 2) or not input.is_floating_point():
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
    if not _is_map(here, input, ndim):
        return None
    taps, steps, spread = ([int(v) for v in _per_axis(value, ndim)] for value in (weight.shape[2:], stride, dilation))
    if padding in ("valid", "same"):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, taps, strict=True)]
    else:
        total = [2 * int(amount) for amount in _per_axis(padding, ndim)]
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
    if not _is_map(here, input, ndim):
        return None
    settings = [weight.shape[2:], stride, padding, output_padding, dilation]
    taps, steps, amounts, extra, spread = ([int(v) for v in _per_axis(value, ndim)] for value in settings)
    for what, values in (("kernel_size", taps), ("stride", steps), ("padding", amounts), ("output_padding", extra)):
        here.options.check_alike(what, values)
    margin = [2 * amount - more for amount, more in zip(amounts, extra, strict=True)]
    return centred_conv_transpose(input, here.radial(weight), bias, steps, margin, spread, groups)


def _getitem(here: CentredFunctions, input: Tensor, index: Any) -> Tensor | None:
    """Every ``step``-th pixel along all spatial axes, or as many as another map has."""
    ndim = here.spatial_dims
    if not _is_map(here, input, ndim) or not isinstance(index, tuple) or len(index) > ndim + 3:
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
    return CentredShuffle(upscale_factor, 2)(input) if _is_map(here, input, 2) else None


def _what_it_mixes(here: CentredFunctions, x: Any, *more: Any) -> str:
    """What a change of shape does to positions that a head or a map cannot take, and the way out; ``""`` for nothing."""
    ndim = here.spatial_dims
    sizes = tuple(more[0] if len(more) == 1 and isinstance(more[0], Sequence) else more)
    of_map = _is_map(here, x, ndim) and x.shape[2:].numel() > 1
    if of_map and sizes in ((1,), (1, -1), (len(x), -1), (len(x), x[0].numel())):
        return f", which {AS_FEATURES}"
    rows = isinstance(x, Tensor) and x.dim() == 3 and len(sizes) == ndim + 2 and sizes[0] == len(x)
    if rows and math.prod(sizes[2:]) == x.shape[1] != x.shape[2]:
        return ", which makes a map of rows of channels: transpose it first"
    return ""


def _refused(reason: str) -> Callable[..., None]:
    def rule(here: CentredFunctions, input: Tensor, *args: Any, **kwargs: Any) -> None:
        if _is_map(here, input, here.spatial_dims):
            raise RefusedError(reason)

    return rule


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    functional.interpolate: _interpolate,
    functional.pad: _pad,
    torch.pixel_shuffle: _pixel_shuffle,
    torch.pixel_unshuffle: _refused(f"as {INTO_CHANNELS}"),
    Tensor.__getitem__: _getitem,
}
#: What may or may not break the symmetry, which the check finds: named with its place where it does.
_DOUBTFUL = {
    functional.unfold,
    functional.fold,
    functional.grid_sample,
    functional.affine_grid,
    Tensor.unfold,
    torch.roll,
}
_RESHAPING = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape}
for _n in (1, 2, 3):
    _RULES |= {
        getattr(functional, f"max_pool{_n}d"): _max_pool(_n),
        getattr(torch, f"max_pool{_n}d"): _max_pool(_n),
        getattr(functional, f"max_pool{_n}d_with_indices"): _refused(INDICES),
        getattr(functional, f"adaptive_max_pool{_n}d_with_indices"): _refused(INDICES),
        getattr(functional, f"avg_pool{_n}d"): _avg_pool(_n),
        getattr(torch, f"conv{_n}d"): _conv,
        getattr(torch, f"conv_transpose{_n}d"): _conv_transpose,
        getattr(functional, f"lp_pool{_n}d"): _refused("as it has none: take an average pool"),
    }
