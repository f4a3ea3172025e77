r"""How far a network is from commuting with rotations and flips: the one definition, as a whole and module by module.

The error of a network :math:`f` under a transformation :math:`g` is

.. math:: \lVert f(g x) - g f(x) \rVert \;/\; \lVert g f(x) \rVert

in the Euclidean norm over one output tensor, in float64; of several outputs the worst counts. The norm is the Euclidean one
because it is the typical error beside the typical value: it does not grow with the number of pixels, as a largest difference
does, so it compares inputs of different sizes, and single pixels that an interpolation spoils do not decide it. It misses
nothing that matters: one wrong pixel among a million is an error of 1e-3.

An output is told to be a map or a vector by its number of axes:

* with those of the input ``(N, C, *spatial)``, or more, it is a map: ``g`` acts on its last axes, whatever their sizes;
* with at most two, such as logits ``(N, C)``, it is a vector, which is to stay as it is;
* with one axis less than a map, it may be a map without channels, or stay: the smaller of the two errors counts;
* anything else is to stay.

What this package calls equivariant has an error below 1e-5 where it computes in float32, and below 1e-12 in float64, under
all symmetries of the grid, in eval mode, at every input size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from monai_sre.symmetry.lattice import lattice_generators, lattice_symmetries
from monai_sre.symmetry.rotation import INTERPOLATIONS, disc, rotate

#: What acts on the last axes of a tensor.
Transform = Callable[[Tensor], Tensor]
#: What ``transforms`` may be: names, angles in degrees, several of them, or functions on tensors by name.
Transforms = str | float | Sequence[str | float] | Mapping[str, Transform]


def is_map(value: Any, spatial_dims: int) -> bool:
    """Whether it is a tensor that turns with the image: ``(N, C, *spatial)``, or with more axes."""
    return isinstance(value, Tensor) and value.dim() >= spatial_dims + 2


def tensors_of(output: Any, depth: int = 3) -> list[Tensor]:
    """All tensors in what a network returns: nests of lists, tuples and dictionaries, and the attributes of other objects.

    Example:
        >>> [tuple(tensor.shape) for tensor in tensors_of({"logits": torch.zeros(1, 2), "maps": [torch.zeros(3), "name"]})]
        [(1, 2), (3,)]
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            found += tensors_of(dict(vars(leaf)), depth - 1)
    return found


def transformed(values: Any, transform: Transform, spatial_dims: int) -> Any:
    """A copy of a nest of arguments in which every map is transformed."""

    def act(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        turned = transform(leaf) if is_map(leaf, spatial_dims) else leaf
        return turned.clone(memory_format=torch.contiguous_format)

    return tree_map(act, values)


def commutation_error(old: Any, new: Any, transform: Transform, spatial_dims: int) -> float:
    """The relative error of what a network returns, as this module defines it.

    Args:
        old: output for the input as it was: a tensor, or a nest of them.
        new: output for the transformed input.
        transform: what was done to the input.
        spatial_dims: number of spatial axes of the input.

    Returns:
        The error of the worst tensor. ``inf`` where numbers or shapes of tensors differ, where a value is not finite, and
        where ``old`` is zero and ``new`` is not.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 2.0]]])
        >>> error = commutation_error(x, x, lambda t: t.flip(-1), spatial_dims=1)  # (1, 0, -1) beside (2, 2, 1)
        >>> math.isclose(error, 2**0.5 / 3)
        True
    """
    ours, theirs = tensors_of(old), tensors_of(new)
    if len(ours) != len(theirs):
        return math.inf
    pairs = zip(ours, theirs, strict=True)
    return max((_tensor_error(one, other, transform, spatial_dims) for one, other in pairs), default=0.0)


def equivariance_error(
    network: nn.Module | Callable[[Any], Any],
    x: Tensor,
    transforms: Transforms = "lattice",
    *,
    interpolation: str = "spline5",
    margin: float = 0.25,
    training: bool = False,
) -> dict[str, float]:
    """Relative error with which a network commutes with each transformation, see :mod:`monai_sre.symmetry.error`.

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
        ``"15 deg (1,2)"`` with the plane. ``inf`` as in :func:`commutation_error`.

    Raises:
        ValueError: an argument cannot work, or the network returns no tensor.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(3, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> errors = equivariance_error(net, torch.randn(2, 1, 30, 27))
        >>> list(errors)[:3], max(errors.values()) < 1e-5
        (['identity', 'rot90(0,1)', 'rot180(0,1)'], True)
        >>> equivariance_error(torch.nn.Conv2d(1, 2, 3), torch.randn(1, 1, 9, 9), "flip(0)")["flip(0)"] > 0.1
        True
    """
    actions, ndim = _resolve(transforms, x, interpolation, margin), x.dim() - 2
    with undisturbed(network, training), torch.no_grad():
        outputs = {plane: network(action.prepare(x)) for plane, action in _inputs(actions)}
        if not all(tensors_of(output) for output in outputs.values()):
            raise ValueError("network must return a tensor or a nest of tensors, got no tensor")
        return {
            name: commutation_error(
                outputs[action.plane], network(transformed(action.prepare(x), action, ndim)), action, ndim
            )
            for name, action in actions.items()
        }


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
    :func:`culprits` names it. A module called several times has the largest of its errors; one without maps among its
    inputs (the head behind a global pooling), or without tensors among its outputs, is left out.

    Args:
        network: any module that accepts hooks (not a ScriptModule).
        x: with all other arguments as in :func:`equivariance_error`.

    Returns:
        ``{module name: {transformation: error}}`` in the order in which they finish; the network itself is ``""``. ``inf``
        where a module cannot take the transformed inputs.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.AvgPool2d(3, 1, 1), torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
        >>> culprits(layer_errors(net, torch.randn(1, 1, 9, 9)))
        ['1']
    """
    actions = _resolve(transforms, x, interpolation, margin)
    errors: dict[str, dict[str, float]] = {}
    with undisturbed(network, training), torch.no_grad():
        for plane, first in _inputs(actions):
            alike = {name: action for name, action in actions.items() if action.plane == plane}
            found = module_errors(network, partial(network, first.prepare(x)), alike, x.dim() - 2)
            for name, row in found.items():
                errors.setdefault(name, {}).update(row)
    return errors


def module_errors(
    network: nn.Module, call: Callable[[], Any], transforms: Mapping[str, Transform], spatial_dims: int
) -> dict[str, dict[str, float]]:
    """:func:`layer_errors` of the modules of a network, while ``call`` runs it.

    Args:
        network: any module that accepts hooks.
        call: runs the network once, on any arguments.
        transforms: what acts on the maps among the inputs of each module.
        spatial_dims: number of spatial axes.
    """
    errors: dict[str, dict[str, float]] = {}
    calls: list[Any] = []
    busy = False

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not busy:  # copied: a module in place overwrites its input
            calls.append(transformed((args, kwargs), torch.clone, spatial_dims))

    def after(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal busy
        if busy:
            return
        given = calls.pop()
        if not tensors_of(output) or not any(is_map(leaf, spatial_dims) for leaf in tree_leaves(given)):
            return
        busy = True
        try:
            for key, transform in transforms.items():
                error = _module_error(module, given, output, transform, spatial_dims)
                if error > 0 and spatial_dims > 1 and _call(module, given, _swap, spatial_dims) is None:
                    error = _module_error(module, given, output, _channels_last(transform), spatial_dims)
                row = errors.setdefault(name, {})
                row[key] = max(row.get(key, 0.0), error)
        finally:
            busy = False

    handles = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name), with_kwargs=True))
        call()
    finally:
        for handle in handles:
            handle.remove()
    return errors


def _swap(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _channels_last(transform: Transform) -> Transform:
    """The transformation of maps ``(N, *spatial, C)``, which a module takes if it fails where the last axes are swapped."""
    return lambda x: transform(x.movedim(-1, 1)).movedim(1, -1)


def _call(module: nn.Module, given: Any, transform: Transform, spatial_dims: int) -> list[Tensor] | None:
    """What a module returns for transformed inputs; ``None`` if it cannot take them, as with a reshape to fixed sizes."""
    args, kwargs = transformed(given, transform, spatial_dims)
    try:
        return tensors_of(module(*args, **kwargs))
    except Exception:
        return None


def _module_error(module: nn.Module, given: Any, output: Any, transform: Transform, spatial_dims: int) -> float:
    """The error of one module, whose output may also be a map flattened to a row of positions."""
    old, new = tensors_of(output), _call(module, given, transform, spatial_dims)
    if new is None:
        return math.inf
    error = commutation_error(old, new, transform, spatial_dims)
    if error == 0 or spatial_dims == 1 or len(old) != 1 or len(new) != 1 or old[0].dim() != 3:
        return error
    for axis in (1, 2):
        for sides in _grids(old[0].shape[axis], spatial_dims):
            maps = old[0].movedim(axis, -1).unflatten(-1, sides)
            row = transform(maps).flatten(-spatial_dims).movedim(-1, axis)
            error = min(error, commutation_error(row, new, torch.clone, spatial_dims))
    return error


def _grids(count: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """All sizes of maps with so many positions."""
    if spatial_dims == 1:
        return [(count,)]
    sides = [side for side in range(1, count + 1) if count % side == 0]
    return [(side, *rest) for side in sides for rest in _grids(count // side, spatial_dims - 1)]


def culprits(errors: Mapping[str, Mapping[str, float]], tolerance: float = 1e-4) -> list[str]:
    """Names of the innermost modules that break the symmetry: above ``tolerance``, with nothing inside them that is.

    A module that only holds sound ones breaks it in its own ``forward`` (a reshape, a crop, a functional pooling).

    Args:
        errors: from :func:`layer_errors`.
        tolerance: the largest error of a sound module; the default suits lattice symmetries in float32.
    """
    broken = [name for name, row in errors.items() if max(row.values()) > tolerance]
    return [name for name in broken if not any(_inside(other, name) for other in broken)]


@dataclass(frozen=True)
class _Action:
    """One transformation, as it acts on inputs and on maps; ``plane`` is None where it is exact."""

    apply: Transform
    plane: tuple[int, int] | None = None
    margin: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def prepare(self, x: Tensor) -> Tensor:
        """A new tensor to compare with: faded to zero outside the disc where ``g`` is a rotation by an angle."""
        if self.plane is None:
            return x.clone()
        return x * self._disc(x, soft=True)

    def region(self, x: Tensor) -> Tensor | None:
        """Where maps like ``x`` are compared; ``None`` is everywhere."""
        return None if self.plane is None else self._disc(x, soft=False)

    def _disc(self, x: Tensor, soft: bool) -> Tensor:
        assert self.plane is not None
        first, second = self.plane
        radius = min(x.shape[first], x.shape[second]) / 2
        shape = [1] * x.dim()
        shape[first], shape[second] = x.shape[first], x.shape[second]
        inner, fading = (1 - self.margin) * radius, self.margin * radius if soft else 0.0
        return disc((x.shape[first], x.shape[second]), inner, fading).reshape(shape).to(x)


def _resolve(transforms: Transforms, x: Tensor, interpolation: str, margin: float) -> dict[str, _Action]:
    ndim = x.dim() - 2
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}")
    if not 1 <= ndim <= 3:
        raise ValueError(f"x must have shape (N, C, *spatial) with 1 to 3 spatial axes, got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must hold at least one value, got shape {tuple(x.shape)}")
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
                turn = partial(rotate, degrees=float(item), dims=plane, interpolation=interpolation)
                actions[name] = _Action(turn, plane, margin)
        else:
            angles = "" if ndim == 1 else " or an angle in degrees"
            raise ValueError(f"transforms must be 'lattice', 'generators', one of {list(group)}{angles}, got {item!r}")
    return actions


def _inputs(actions: Mapping[str, _Action]) -> Iterable[tuple[tuple[int, int] | None, _Action]]:
    """One action for each different input to compare with."""
    return {action.plane: action for action in actions.values()}.items()


def _tensor_error(old: Tensor, new: Tensor, transform: Transform, spatial_dims: int) -> float:
    was, now = _real(old), _real(new)
    errors = []
    if old.dim() > max(spatial_dims, 2):
        turned = transform(was)
        errors.append(_relative(turned, now, transform.region(turned) if isinstance(transform, _Action) else None))
    if old.dim() < spatial_dims + 2:
        errors.append(_relative(was, now))
    return min(errors)


def _real(tensor: Tensor) -> Tensor:
    """In float64, on the CPU, which always has it; complex numbers as pairs along a new first axis."""
    tensor = tensor.detach().cpu().as_subclass(Tensor)
    return torch.stack([tensor.real, tensor.imag]).double() if tensor.is_complex() else tensor.double()


def _relative(expected: Tensor, actual: Tensor, region: Tensor | None = None) -> float:
    if expected.shape != actual.shape:
        return math.inf
    difference = actual - expected
    if region is not None:
        expected, difference = expected * region, difference * region
    scale, size = float(expected.norm()), float(difference.norm())
    if size == 0:
        return 0.0
    return size / scale if scale > 0 and math.isfinite(size) else math.inf


def _inside(inner: str, outer: str) -> bool:
    return inner != outer and (outer == "" or inner.startswith(outer + "."))


@contextmanager
def undisturbed(network: Any, training: bool) -> Iterator[None]:
    """Run in the mode asked for, then put back every module's mode, every buffer that has changed, and the random state."""
    if not isinstance(network, nn.Module):
        yield
        return
    modes = {module: module.training for module in network.modules()}
    registers = [(module._buffers, dict(module._buffers)) for module in network.modules()]
    buffers = {buffer: buffer.detach().clone() for buffer in network.buffers()}
    if training or any(modes.values()):
        network.train(training)
    devices = sorted({p.device.index for p in network.parameters() if p.is_cuda and p.device.index is not None})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for register, entries in registers:
            for name, buffer in entries.items():  # one by one, as scripted modules take them
                register[name] = buffer
        with torch.no_grad():
            for buffer, value in buffers.items():
                if not torch.equal(buffer, value):  # a graph may need those that have not
                    buffer.copy_(value)
