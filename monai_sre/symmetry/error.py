"""How far a network is from commuting with rotations and flips, as a whole and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from monai_sre.symmetry.lattice import lattice_generators, lattice_symmetries
from monai_sre.symmetry.rotation import INTERPOLATIONS, disc, rotate

#: What ``transforms`` may be: names, angles in degrees, several of them, or functions on tensors by name.
Transforms = str | float | Sequence[str | float] | Mapping[str, Callable[[Tensor], Tensor]]


def equivariance_error(
    network: nn.Module | Callable[[Any], Any],
    x: Tensor,
    transforms: Transforms = "lattice",
    *,
    interpolation: str = "spline5",
    margin: float = 0.25,
    training: bool = False,
) -> dict[str, float]:
    r"""Relative error with which a network commutes with each transformation ``g``.

    .. math:: \lVert f(g x) - g f(x) \rVert \;/\; \lVert g f(x) \rVert

    An output with as many axes as ``x``, or more, is a map: ``g`` acts on its last axes, whatever their sizes. One of at most
    two axes, such as logits ``(N, C)``, is to stay as it is. Outputs may be nested in dicts, lists and tuples: the error is
    that of the worst tensor.

    Lattice symmetries are applied exactly: no interpolation, and the error is over the whole output. For an angle, ``x`` is
    first faded to zero outside a disc, so that rotating loses nothing; maps are rotated with splines of their own
    resolution and compared within ``1 - margin`` of the inscribed disc (in 3-D: the cylinder about the axis of rotation).

    Args:
        network: any module: it runs in eval mode, and its mode, buffers and gradients and the random state stay as they
            were. Or a function of one tensor, called as it is.
        x: input, shape ``(N, C, *spatial)``, 1 to 3 spatial axes. For angles, take a smooth one: what is finer than about 3
            pixels cannot be rotated without an error of its own.
        transforms: ``"lattice"`` for all 2, 8 or 48 symmetries of the grid, ``"generators"`` for a few that generate them,
            the name of one (``"rot90(0,1)"``), an angle in degrees (in 3-D: about each axis), a sequence of those, or a
            mapping from names to functions that act exactly on the last axes of a tensor, such as
            ``lattice_symmetries(3, axes=(1, 2))``.
        interpolation: how angles rotate, ``"bilinear"``, ``"spline3"`` or ``"spline5"``, see
            :func:`monai_sre.symmetry.rotation.rotate`.
        margin: share of the inscribed disc's radius over which ``x`` fades out and maps are not compared.
        training: run in train mode: batch statistics, whose running averages are restored afterwards.

    Returns:
        ``{name: error}``, names as in :func:`monai_sre.symmetry.lattice.lattice_symmetries`, or ``"15 deg"`` and in 3-D
        ``"15 deg (1,2)"`` with the plane. ``inf`` where the shapes of the two outputs differ, or where ``f(x)`` is zero and
        the other is not.

    Raises:
        ValueError: an argument cannot work, or an output is neither a map nor a vector.

    Example:
        >>> from monai_sre.nets import SREResNet
        >>> errors = equivariance_error(SREResNet(2, 1, 3, width=8), torch.randn(2, 1, 30, 27))
        >>> list(errors)[:3], max(errors.values()) < 1e-5
        (['identity', 'rot90(0,1)', 'rot180(0,1)'], True)
        >>> equivariance_error(torch.nn.Conv2d(1, 2, 3), torch.randn(1, 1, 9, 9), "flip(0)")["flip(0)"] > 0.1
        True
    """
    actions = _resolve(transforms, x, interpolation, margin)
    with undisturbed(network, training), torch.no_grad():
        outputs = {faded: network(action.prepare(x)) for faded, action in _inputs(actions)}
        errors = {}
        for name, action in actions.items():
            turned = network(action.on_input(x))
            pairs = list(_pairs(outputs[action.plane], turned))
            if not pairs:
                raise ValueError("the network returned no tensor of real numbers")
            errors[name] = max(_error(action, old, new, x.dim()) for old, new in pairs)
    return errors


def layer_errors(
    network: nn.Module,
    x: Tensor,
    transforms: Transforms = "generators",
    *,
    interpolation: str = "spline5",
    margin: float = 0.25,
    training: bool = False,
) -> dict[str, dict[str, float]]:
    """The error that each module adds by itself: it is given the transformed inputs of its place in the network.

    Errors that come in from earlier layers do not count, so the layer that breaks the symmetry stands out, wherever it is.
    :func:`culprits` names it. A module called several times has the largest of its errors; one without tensors of the
    dimension of ``x`` among its inputs (the head behind a global pooling) is left out.

    Args:
        network: any module that accepts hooks (not a ScriptModule).
        x: with all other arguments as in :func:`equivariance_error`.

    Returns:
        ``{module name: {transformation: error}}`` in the order in which they finish; the network itself is ``""``. ``inf``
        where a module cannot take the transformed inputs. Modules whose outputs are neither maps nor vectors are left out.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(3, 1, 1), torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
        >>> culprits(layer_errors(net, torch.randn(1, 1, 9, 9)))
        ['1']
    """
    actions = _resolve(transforms, x, interpolation, margin)
    recorder = _Recorder(actions, x.dim())
    with undisturbed(network, training), torch.no_grad():
        handles = []
        try:
            for name, module in network.named_modules():
                handles.append(module.register_forward_pre_hook(recorder.before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(recorder.after(name), with_kwargs=True))
            for _, action in _inputs(actions):
                recorder.plane = action.plane
                network(action.prepare(x))
        finally:
            for handle in handles:
                handle.remove()
    return recorder.errors


def culprits(errors: Mapping[str, Mapping[str, float]], tolerance: float = 1e-4) -> list[str]:
    """Names of the innermost modules that break the symmetry: above ``tolerance``, with nothing inside them that is.

    A module that only holds sound ones breaks it in its own ``forward`` (a reshape, a crop, a functional pooling).

    Args:
        errors: from :func:`layer_errors`.
        tolerance: the largest error of a sound module; the default suits lattice symmetries in float32.
    """
    broken = [name for name, row in errors.items() if max(row.values()) > tolerance]
    return [name for name in broken if not any(_inside(other, name) for other in broken)]


def format_table(errors: Mapping[str, float] | Mapping[str, Mapping[str, float]]) -> str:
    """The result of :func:`equivariance_error` or :func:`layer_errors` as a Markdown table that reads well as plain text.

    Example:
        >>> print(format_table({"rot90(0,1)": 2.5e-7, "15 deg": 0.031}))
        | transformation | error   |
        | -------------- | ------- |
        | rot90(0,1)     | 2.5e-07 |
        | 15 deg         | 3.1e-02 |
    """
    nested = {name: row for name, row in errors.items() if isinstance(row, Mapping)}
    if nested:
        columns = list(dict.fromkeys(key for row in nested.values() for key in row))
        lines = [["layer", *columns]]
        lines += [[name or "(network)", *[_number(row.get(key)) for key in columns]] for name, row in nested.items()]
    else:
        flat = {name: value for name, value in errors.items() if not isinstance(value, Mapping)}
        lines = [["transformation", "error"], *[[name, _number(value)] for name, value in flat.items()]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


@dataclass(frozen=True)
class _Action:
    """One transformation, as it acts on inputs and on maps; ``plane`` is None where it is exact."""

    apply: Callable[[Tensor], Tensor]
    plane: tuple[int, int] | None = None
    margin: float = 0.0

    def prepare(self, x: Tensor) -> Tensor:
        """A new tensor to compare with: faded to zero outside the disc where ``g`` is a rotation by an angle."""
        if self.plane is None:
            return x.clone()
        radius = min(x.shape[dim] for dim in self.plane) / 2
        return x * self._disc(x, (1 - self.margin) * radius, soft=self.margin * radius)

    def on_input(self, x: Tensor) -> Tensor:
        return self.apply(self.prepare(x))

    def region(self, x: Tensor) -> Tensor | None:
        """Where maps like ``x`` are compared; ``None`` is everywhere."""
        if self.plane is None:
            return None
        return self._disc(x, (1 - self.margin) * min(x.shape[dim] for dim in self.plane) / 2)

    def _disc(self, x: Tensor, radius: float, soft: float = 0.0) -> Tensor:
        assert self.plane is not None
        first, second = self.plane
        shape = [1] * x.dim()
        shape[first], shape[second] = x.shape[first], x.shape[second]
        return disc((x.shape[first], x.shape[second]), radius, soft).reshape(shape).to(x)


def _resolve(transforms: Transforms, x: Tensor, interpolation: str, margin: float) -> dict[str, _Action]:
    ndim = x.dim() - 2
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}")
    if not 1 <= ndim <= 3:
        raise ValueError(f"x must have shape (N, C, *spatial) with 1 to 3 spatial axes, got {tuple(x.shape)}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {tuple(INTERPOLATIONS)}, got {interpolation!r}")
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be at least 0 and below 1, got {margin!r}")
    if isinstance(transforms, Mapping):
        return {name: _Action(function) for name, function in transforms.items()}
    group = lattice_symmetries(ndim)
    actions: dict[str, _Action] = {}
    for item in (transforms,) if isinstance(transforms, (str, int, float, Real)) else transforms:
        if item == "lattice":
            actions.update({name: _Action(symmetry) for name, symmetry in group.items()})
        elif item == "generators":
            actions.update({name: _Action(symmetry) for name, symmetry in lattice_generators(ndim).items()})
        elif isinstance(item, str) and item in group:
            actions[item] = _Action(group[item])
        elif isinstance(item, Real) and not isinstance(item, bool) and ndim > 1:
            for axes in combinations(range(ndim), 2):
                plane = (axes[0] - ndim, axes[1] - ndim)
                name = f"{item:g} deg" if ndim == 2 else f"{item:g} deg ({axes[0]},{axes[1]})"
                actions[name] = _Action(_Rotation(float(item), plane, interpolation), plane, margin)
        else:
            angles = "" if ndim == 1 else " or an angle in degrees"
            raise ValueError(f"transforms must be 'lattice', 'generators', one of {list(group)}{angles}, got {item!r}")
    return actions


@dataclass(frozen=True)
class _Rotation:
    degrees: float
    dims: tuple[int, int]
    interpolation: str

    def __call__(self, x: Tensor) -> Tensor:
        return rotate(x, self.degrees, self.dims, self.interpolation)


def _inputs(actions: Mapping[str, _Action]) -> Iterable[tuple[tuple[int, int] | None, _Action]]:
    """One action for each different input to compare with."""
    return {action.plane: action for action in actions.values()}.items()


def _error(action: _Action, old: Tensor, new: Tensor, ndim: int) -> float:
    """Relative error of one output; ``old`` is of the input as it was, ``new`` of the transformed one."""
    if old.dim() >= ndim:
        expected, region = action.apply(old), action.region(old)
    elif old.dim() <= 2:
        expected, region = old, None
    else:
        raise ValueError(
            f"an output of shape {tuple(old.shape)} is neither a map ({ndim} axes or more) nor a vector (2 axes or fewer)"
        )
    if expected.shape != new.shape:
        return float("inf")
    expected, difference = expected.double(), new.double() - expected.double()
    if region is not None:
        expected, difference = expected * region, difference * region
    scale, size = float(expected.norm()), float(difference.norm())
    if size == 0:
        return 0.0
    return size / scale if scale > 0 else float("inf")


def _pairs(old: Any, new: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The real tensors at the same places of two nested outputs."""
    if isinstance(old, Tensor):
        if isinstance(new, Tensor) and not old.is_complex():
            yield old.detach(), new.detach()
    elif isinstance(old, Mapping):
        for key in old:
            yield from _pairs(old[key], new[key])
    elif isinstance(old, (list, tuple)):
        for first, second in zip(old, new, strict=True):
            yield from _pairs(first, second)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it replaced by ``function`` of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class _Recorder:
    """Hooks that run each module again on transformed inputs and keep the errors."""

    def __init__(self, actions: Mapping[str, _Action], ndim: int) -> None:
        self.actions, self.ndim = actions, ndim
        self.errors: dict[str, dict[str, float]] = {}
        self.plane: tuple[int, int] | None = None
        self._calls: list[tuple[Any, Any]] = []
        self._busy = False

    def before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._busy:  # cloned: a module in place overwrites its input
                self._calls.append(_mapped((args, kwargs), torch.clone))

        return hook

    def after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._busy:
                return
            call = self._calls.pop()
            if not any(tensor.dim() >= self.ndim for tensor, _ in _pairs(call, call)):
                return
            self._busy = True
            try:
                self._compare(name, module, call, output)
            finally:
                self._busy = False

        return hook

    def _compare(self, name: str, module: nn.Module, call: Any, output: Any) -> None:
        for key, action in self.actions.items():
            if action.plane != self.plane:
                continue

            def turn(tensor: Tensor, action: _Action = action) -> Tensor:
                copy = tensor.clone()  # of which a transformation may give a view
                return action.apply(copy) if tensor.dim() >= self.ndim else copy

            args, kwargs = _mapped(call, turn)
            try:
                pairs = list(_pairs(output, module(*args, **kwargs)))
            except Exception:  # a reshape to fixed sizes, say, cannot take turned maps
                self.errors.setdefault(name, {})[key] = float("inf")
                continue
            if not pairs or any(2 < old.dim() < self.ndim for old, _ in pairs):
                return
            row = self.errors.setdefault(name, {})
            row[key] = max([row.get(key, 0.0), *[_error(action, old, new, self.ndim) for old, new in pairs]])


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and (outer == "" or inner.startswith(outer + "."))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


@contextmanager
def undisturbed(network: Any, training: bool) -> Iterator[None]:
    """Run in the mode asked for, then put back every module's mode, every buffer and the random state."""
    if not isinstance(network, nn.Module):
        yield
        return
    modes = {module: module.training for module in network.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in network.buffers()} if training else {}
    if training or any(modes.values()):
        network.train(training)
    devices = sorted({p.device.index for p in network.parameters() if p.is_cuda and p.device.index is not None})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
