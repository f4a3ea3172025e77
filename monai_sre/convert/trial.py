"""Does a network commute with the symmetries of the grid? A numeric check, and the module that breaks it.

Replacing modules does not reach what a network does in its own ``forward``: slicing, padding, flattening, functional pooling.
So the converted network is run on a small random input, in float64 and in eval mode, and on that input turned and flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from monai_sre.symmetry.lattice import LatticeSymmetry

#: Spatial sizes to try, the most telling first: odd, even and unequal; then what deep networks accept.
_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((37,), (48,), (96,), (256,)),
    2: ((37, 46), (24, 40), (32, 48), (64, 96), (128, 192), (256, 320)),
    3: ((19, 22, 25), (16, 24, 16), (16, 32, 16), (32, 48, 32), (64, 64, 96)),
}
#: The largest relative error, in float64, of a module that commutes, and of a whole network, which amplifies rounding.
MODULE_TOLERANCE, TOLERANCE = 1e-9, 1e-6
Arguments = tuple[Any, ...]
#: Arguments, and the shapes of what the network returns.
Example = tuple[Arguments, list[tuple[int, ...]]]
#: Pixels to add along the axes: grids of strides that fit some sizes are off centre at others. With the first of the sizes
#: above, odd and even maps at strides 1 to 16; else so for what takes any size, and multiples of 2, 4, 8 or 16 alone.
_MORE: dict[int, tuple[tuple[int, ...], ...]] = {1: ((14,), (11,)), 2: ((14, 6),), 3: ((15, 13, 8),)}
_GROWTH = ((1, 2, 4), (4, 1, 2), (2, 8, 4), (4, 8, 12), (8, 16, 24), (16, 32, 16))
EXAMPLE = "an example input, its shape or a tuple of arguments"


def spatial_dims_of(network: nn.Module) -> int:
    """Number of spatial axes, from the first convolution or pool that has one.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = {
        int(base.__name__[-2])
        for module in network.modules()
        for base in type(module).__mro__
        if base.__name__[-2:] in ("1d", "2d", "3d") and ("Conv" in base.__name__ or "Pool" in base.__name__)
    }
    if len(found) != 1:
        raise ValueError(
            f"network must hold convolutions or pools of one number of spatial axes, got {sorted(found) or 'none'} "
            f"in {type(network).__name__}"
        )
    return found.pop()


def find_input(network: nn.Module, spatial_dims: int, divisible: bool = False) -> tuple[Arguments | None, str]:
    """A small random input that ``network`` accepts, or ``None``; and why the last one that failed did.

    Args:
        network: any network of one input ``(N, C, *spatial)``.
        spatial_dims: number of spatial axes.
        divisible: only sizes that strides divide.
    """
    channels: list[Any] = [network.in_channels] if isinstance(getattr(network, "in_channels", None), int) else []
    for module in network.modules():
        if isinstance(module, _ConvNd) or (hasattr(module, "kernel_size") and hasattr(module, "in_channels")):
            channels.append(module.in_channels)
            break
    sizes = _SIZES[spatial_dims][1 if divisible else 0 :]
    shapes = [(int(count), *size) for size in sizes for count in dict.fromkeys(channels)]
    declared = getattr(network, "in_shape", None)  # of MONAI's networks of a fixed size
    if isinstance(declared, Sequence) and len(declared) in (spatial_dims, spatial_dims + 1):
        sized = tuple(int(length) for length in declared)
        shapes += [sized] if len(sized) > spatial_dims else [(int(count), *sized) for count in dict.fromkeys(channels)]
    reason = "no input was found to try it with"
    for shape in shapes:
        x = _noise((1, *shape))
        try:
            run(network, (x,))
        except Exception as error:  # whatever it raises: this size does not suit it
            why = f"{type(error).__name__}: {error}"
            reason = f"no input was found that it accepts; one of shape {tuple(x.shape)} raises {why}"
            continue
        return (x,), ""
    return None, reason


def run(network: nn.Module, arguments: Arguments, seed: int = 0) -> Any:
    """Outputs in eval mode and float64; what starts all alike (zeros, ones) is stirred, so that nothing vanishes.

    Frozen parameters of two axes or more are what somebody has made them, such as a filter.
    """
    generator = torch.Generator().manual_seed(1)

    def stirred(tensor: Tensor, fixed: bool) -> Tensor:
        if tensor.numel() and not fixed and bool((tensor == tensor.flatten()[0]).all()):
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            tensor = tensor + 0.1 * noise
        return tensor

    state = {
        name: stirred(parameter.detach().double(), not parameter.requires_grad and parameter.dim() > 1)
        for name, parameter in network.named_parameters()
    }
    for name, buffer in network.named_buffers():
        state[name] = buffer.double() if buffer.is_floating_point() else buffer
    device = next((t.device for t in state.values()), torch.device("cpu"))
    arguments = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, arguments)
    gpus = [device] if device.type == "cuda" else []
    with _eval(network), torch.no_grad(), torch.random.fork_rng(devices=gpus):
        torch.random.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        return torch.func.functional_call(network, state, arguments)


def output_shapes(network: nn.Module, arguments: Arguments) -> list[tuple[int, ...]]:
    """Shapes of all tensors that the network returns.

    Raises:
        ValueError: it does not run on these arguments.
    """
    try:
        out = run(network, arguments)
    except Exception as error:
        raise ValueError(
            f"verify must be what the network accepts, in float64 (False for one that casts to another dtype itself); it "
            f"raises {type(error).__name__}: {error}"
        ) from error
    return [tuple(leaf.shape) for leaf in tensors_of(out)]


def tensors_of(out: Any, depth: int = 3) -> list[Tensor]:
    """All tensors in what a network returns: nests of lists, tuples and dictionaries, and the attributes of other objects."""
    found: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif depth and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)):
            found += tensors_of(dict(vars(leaf)), depth - 1)
    return found


def examples(network: nn.Module, arguments: Arguments, spatial_dims: int) -> list[Example]:
    """The arguments, and those with larger maps that the network takes.

    Raises:
        ValueError: the network does not run on ``arguments``.
    """
    found = [(arguments, output_shapes(network, arguments))]
    sizes = {tuple(leaf.shape[-spatial_dims:]) for leaf in tree_leaves(arguments) if _is_map(leaf, spatial_dims)}
    for growth in _MORE[spatial_dims] if sizes == {_SIZES[spatial_dims][0]} else _GROWTH:
        larger = grown(arguments, growth, spatial_dims)
        try:
            found.append((larger, output_shapes(network, larger)))
        except ValueError:  # this size does not suit it
            continue
    return found


def grown(arguments: Arguments, growth: tuple[int, ...], spatial_dims: int) -> Arguments:
    """The arguments, with maps larger by ``growth``, in pixels an axis."""
    pads = [amount for more in reversed(growth[:spatial_dims]) for amount in (0, more)]

    def larger(leaf: Any) -> Any:
        return torch.nn.functional.pad(leaf, pads, value=0.5) if _is_map(leaf, spatial_dims) else leaf

    return tree_map(larger, arguments)  # type: ignore[no-any-return]


def blindness(network: nn.Module, arguments: Arguments) -> str:
    """Why a check on these arguments says nothing of the network; ``""`` where it does."""
    outputs = tensors_of(run(network, arguments))
    if not outputs:
        return "it returns no tensor that could be compared"
    again = tensors_of(run(network, arguments, seed=1))
    if any(not _same(*pair) for pair in zip(outputs, again, strict=True)):
        return "it draws random numbers in eval mode"
    if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(arguments)):
        return ""
    generator = torch.Generator().manual_seed(2)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.flip(0) + torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device="cpu").to(
            leaf.device
        )

    changed = tensors_of(run(network, tree_map(other, arguments)))
    if all(_same(*pair) for pair in zip(outputs, changed, strict=True)):
        return "its outputs are the same for another input"
    return ""


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def symmetry_errors(
    network: nn.Module, arguments: Arguments, symmetries: Mapping[str, LatticeSymmetry], spatial_dims: int
) -> tuple[dict[str, float], list[tuple[int, ...]]]:
    """Relative error of each symmetry, and the shapes of the outputs.

    Outputs with at least ``spatial_dims + 2`` axes are to turn with the input, all others to stay; those with one axis less
    may do either, as maps without channels do.
    """
    plain = tensors_of(run(network, arguments))
    errors = {}
    for name, symmetry in symmetries.items():
        turned = run(network, _turned(arguments, symmetry, spatial_dims))
        pairs = zip(plain, tensors_of(turned), strict=True)
        errors[name] = max((_error(old, new, symmetry, spatial_dims) for old, new in pairs), default=0.0)
    return errors, [tuple(leaf.shape) for leaf in plain]


def find_culprits(
    network: nn.Module, arguments: Arguments, symmetry: LatticeSymmetry, spatial_dims: int
) -> list[tuple[str, nn.Module]]:
    """The innermost modules that do not commute by themselves: each is given the turned inputs of its own place."""
    broken: list[tuple[str, nn.Module]] = []
    given: list[Any] = []
    busy = False

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not busy:  # copied, as modules may work in place
            given.append(tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)))

    def after(name: str) -> Callable[..., None]:
        def check(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            nonlocal busy
            if busy:
                return
            arguments = given.pop()
            if any(other.startswith(f"{name}." if name else "") for other, _ in broken):
                return
            if not any(_is_map(leaf, spatial_dims) for leaf in tree_leaves(arguments)):
                return
            busy = True
            try:
                args, kwargs = _turned(arguments, symmetry, spatial_dims)
                pairs = zip(tensors_of(out), tensors_of(module(*args, **kwargs)), strict=True)
                bad = any(_error(old, new, symmetry, spatial_dims) > MODULE_TOLERANCE for old, new in pairs)
            except Exception:  # it cannot even take them
                bad = True
            finally:
                busy = False
            if bad:
                broken.append((name, module))

        return check

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    try:
        run(network, arguments)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict(broken).items())


def input_sizes(network: nn.Module, arguments: Arguments, spatial_dims: int) -> dict[int, tuple[int, ...]]:
    """Spatial sizes of the first input of each module, by ``id``."""
    sizes: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, args: Any) -> None:
        if args and _is_map(args[0], spatial_dims):
            sizes.setdefault(id(module), tuple(args[0].shape[-spatial_dims:]))

    handles = [module.register_forward_pre_hook(note) for module in network.modules()]
    try:
        run(network, arguments)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def as_arguments(example: Tensor | Sequence[Any], spatial_dims: int) -> Arguments:
    """What a user gives as ``verify``: an input, a shape, or a tuple of the network's arguments."""
    if isinstance(example, Tensor):
        return (example.detach().double().as_subclass(Tensor),)
    if not isinstance(example, Sequence) or isinstance(example, str):
        raise TypeError(f"verify must be {EXAMPLE}, or a bool, got {type(example).__name__}")
    items = tuple(example)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        if len(items) != spatial_dims + 2:
            raise ValueError(
                f"verify must be a shape of {spatial_dims + 2} integers, an input, or a bool, got {example!r}"
            )
        return (_noise(items),)
    return tree_map(_double, items)  # type: ignore[no-any-return]


def _double(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")


def _is_map(leaf: Any, spatial_dims: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() >= spatial_dims + 2


def _turned(arguments: Any, symmetry: LatticeSymmetry, spatial_dims: int) -> Any:
    return tree_map(lambda leaf: symmetry(leaf).contiguous() if _is_map(leaf, spatial_dims) else leaf, arguments)


def _error(old: Tensor, new: Any, symmetry: LatticeSymmetry, spatial_dims: int) -> float:
    if isinstance(old, Tensor) and old.dim() == spatial_dims + 1:
        return min(_difference(old, new), _difference(symmetry(old), new))
    return _difference(symmetry(old) if _is_map(old, spatial_dims) else old, new)


def _difference(wanted: Tensor, new: Any) -> float:
    if not isinstance(new, Tensor) or wanted.shape != new.shape:
        return float("inf")
    if not wanted.is_floating_point() or wanted.numel() == 0:
        return 0.0 if bool((wanted == new).all()) else float("inf")
    difference, scale = float((wanted - new).abs().max()), float(wanted.abs().max())
    if difference != difference or scale != scale:
        return float("inf")
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


@contextmanager
def _eval(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
