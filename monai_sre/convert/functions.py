"""Functions that a ``forward`` calls by itself, on centred grids: resampling, pools, padding, convolutions, strided slices.

A module whose own ``forward`` calls such functions keeps its parameters, its names and its code. It gets a subclass of its
class, whose ``forward`` runs the one that there was inside a :class:`CentredFunctions`. That is a
``torch.overrides.TorchFunctionMode``: torch hands it each call of one of its functions, wherever the code of the network has
it, in helper functions and methods too, and it answers with the centred counterpart, or refuses with the file and line.
Calls that torch's own modules and this package make are left alone: modules have their :mod:`monai_sre.convert.rules`, and
functions theirs in :mod:`monai_sre.convert.function_rules`.

Why a mode: ``torch.fx`` and ``torch.export`` capture a graph for training or for evaluation, not both, and lose the modules;
other names in the code of a ``forward`` would not reach operators such as ``x[..., ::2, ::2]``. A mode is ordinary Python
around ordinary tensors: gradients, ``deepcopy``, ``pickle``, ``torch.jit.trace``, ``torch.onnx.export`` and
``torch.export.export`` see the functions that it calls. ``torch.jit.script`` reads code without running it, and is refused.
``torch.compile`` runs such a ``forward``, with what it calls, as it is: frames of compiled code do not say who calls.

Which modules these are is found by running the network in eval mode (:func:`calls_of`).
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from monai_sre.convert.function_rules import DOUBTFUL, RESHAPING, RULES, is_map, what_it_mixes
from monai_sre.convert.options import Options
from monai_sre.convert.report import RefusedError
from monai_sre.convert.rules import has_own_forward, radial_projection

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
        ValueError: (when a function is called) it has no centred counterpart, or gradient checkpointing would call it again
            outside of the mode; the message names the file and line.

    Example:
        >>> from torch.nn import functional
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
        rule = RULES.get(func)
        frame = None if rule is None else _users_frame()
        if rule is None or frame is None or (self.left and _short(frame) in self.left):
            return func(*args, **kwargs)
        if _is_recomputed_outside(frame):
            raise ValueError(
                f"{_name(func)} works on a centred grid in forward and not in the backward pass, where "
                "torch.utils.checkpoint calls its function again outside of forward: give it a module, or a method of one "
                f"({_place(frame)})"
            )
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
        rule = RULES.get(func)
        reshaped = what_it_mixes(self, *args, *kwargs.values()) if func in RESHAPING else ""
        frame = _users_frame() if rule is not None or func in DOUBTFUL or reshaped else None
        if frame is None:
            return func(*args, **kwargs)
        owner, through = self._owner(frame)
        calls, where = self._calls(owner), f"{_name(func)} ({_place(frame)})"
        calls.methods |= through
        if rule is not None and is_map(self, args[0] if args else kwargs.get("input"), self.spatial_dims):
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
        self.sizes = [x.shape[2:] for x in tree_leaves(args) if is_map(self, x, self.spatial_dims)]

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
        return _in_mode(method, self, args, kwargs)

    outside_of_graphs: Callable[..., Any] = torch.compiler.disable(call)
    return outside_of_graphs


def _in_mode(method: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    with getattr(module, MODE):
        return method(module, *args, **kwargs)


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


def _is_recomputed_outside(frame: FrameType | None) -> bool:
    """Whether gradient checkpointing stands between a call and the method that entered the mode."""
    while frame is not None and frame.f_code is not _in_mode.__code__:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


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
