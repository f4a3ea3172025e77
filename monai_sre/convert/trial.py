"""Does a network commute with the symmetries of the grid? Inputs to find it out, and the decision.

Replacing modules does not reach what a network does in its own ``forward``: slicing, padding, flattening, functional pooling.
So the converted network is run on a small random input, in float64 and in eval mode, and on that input turned and flipped.
What the error is says :mod:`monai_sre.symmetry.error`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from monai_sre.convert import rules
from monai_sre.convert.report import AS_FEATURES, INTO_CHANNELS, WITHOUT_POSITIONS, ConversionReport, Entry
from monai_sre.symmetry.error import (
    commutation_error,
    culprits,
    is_map,
    module_errors,
    tensors_of,
    transformed,
    undisturbed,
)
from monai_sre.symmetry.lattice import LatticeSymmetry

#: Spatial sizes to try, the most telling first: odd, even and unequal; then what deep networks accept.
_SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((37,), (48,), (96,), (256,)),
    2: ((37, 46), (24, 40), (32, 48), (64, 96), (128, 192), (256, 320), (224, 224), (256, 256)),
    3: ((19, 22, 25), (16, 24, 16), (16, 32, 16), (32, 48, 32), (64, 64, 96)),
}
#: The largest error of a module that commutes, and of a whole network, which amplifies rounding; and the largest one with
#: which no module is looked at.
MODULE_TOLERANCE, TOLERANCE, NEGLIGIBLE = 1e-9, 1e-6, 1e-10
Arguments = tuple[Any, ...]
#: Arguments, and the shapes of what the network returns.
Example = tuple[Arguments, list[tuple[int, ...]]]
#: Pixels to add along the axes: grids of strides that fit some sizes are off centre at others. With the first of the sizes
#: above, odd and even maps at strides 1 to 16; else so for what takes any size, and multiples of 2, 4, 8 or 16 alone.
_MORE: dict[int, tuple[tuple[int, ...], ...]] = {1: ((14,), (11,)), 2: ((14, 6),), 3: ((15, 13, 8),)}
_GROWTH = ((1, 2, 4), (4, 1, 2), (2, 8, 4), (4, 8, 12), (8, 16, 24), (16, 32, 16))
#: Kinds of devices that compute in float64; from others a network moves to the CPU for the trial.
_WITH_FLOAT64 = ("cpu", "cuda")
EXAMPLE = "an example input, its shape or a tuple of arguments"


@contextmanager
def prepared(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode and in float64, and no parameter holds one value throughout, so nothing vanishes.

    Frozen parameters of two axes or more stay as they are: somebody has made them so, such as a filter. Tensors keep their
    identity and only refer to other values, so that shared ones stay shared; afterwards they refer to their own again. What
    modules keep of a run as attributes, or in lists and dictionaries of tensors, is put back too; what they keep as plain
    attributes, such as the kernel of a filter, and what is made in a ``forward`` is in float64. Casts to a shorter dtype do
    nothing (:class:`Unrounded`).
    """
    registers: list[Any] = [held for m in network.modules() for held in (m._parameters, m._buffers, vars(m))]
    caches = [held for m in network.modules() for name, held in vars(m).items() if _is_cache(name, held)]
    registers += caches
    entries = [dict(held) for held in registers]
    lists = [(held, held[:]) for m in network.modules() for held in vars(m).values() if _is_list_of_tensors(held)]
    originals = [(tensor, tensor.data) for tensor in (*network.parameters(), *network.buffers())]
    generator, default = torch.Generator().manual_seed(1), torch.get_default_dtype()
    with undisturbed(network, training=False), torch.no_grad(), Unrounded():
        try:
            torch.set_default_dtype(torch.float64)
            for cache in caches:
                cache.clear()
            for attributes in map(vars, network.modules()):
                constants = {name: held for name, held in attributes.items() if isinstance(held, Tensor)}
                attributes |= {name: held.double() for name, held in constants.items() if held.dtype in _SHORTER}
            for tensor, values in originals:
                tensor.data = _trial_values(tensor, values, generator)
            network.double()  # all is by now, but layers write bases and stencils anew, unrounded
            yield
        finally:
            torch.set_default_dtype(default)
            for held, entry in zip(registers, entries, strict=True):
                held.clear()
                held.update(entry)
            for items, kept in lists:
                items[:] = kept
            for tensor, values in originals:
                tensor.data = values


class Unrounded(TorchFunctionMode):
    """Inside, tensors are cast to float64 where a network casts them to a shorter floating-point type.

    Example:
        >>> with Unrounded():
        ...     torch.ones(1, dtype=torch.float64).float().dtype, torch.zeros(1).to(torch.float16).dtype
        (torch.float64, torch.float64)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            func = Tensor.double
        if func in (Tensor.to, Tensor.type):
            args = tuple(torch.float64 if value in _SHORTER else value for value in args)
        kwargs = {k: torch.float64 if k == "dtype" and v in _SHORTER else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


_SHORTER = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


def _is_cache(name: str, held: Any) -> bool:
    """Whether a module keeps tensors that it has computed there, by their device or size."""
    return type(held) is dict and not name.startswith("_") and all(isinstance(v, Tensor) for v in held.values())


def _is_list_of_tensors(held: Any) -> bool:
    """Whether a module may keep maps of its last run there, such as the outputs of deep supervision."""
    return type(held) is list and all(isinstance(value, Tensor) for value in held)


def _trial_values(tensor: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    values = values.clone() if values.device.type in _WITH_FLOAT64 else values.cpu()
    if not values.is_floating_point():
        return values
    values = values.double()
    learned = isinstance(tensor, nn.Parameter) and (tensor.requires_grad or tensor.dim() < 2)
    if learned and values.numel() and bool((values == values.flatten()[0]).all()):
        values += 0.1 * torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
    return values


def spatial_dims_of(network: nn.Module, verify: Any = True) -> int:
    """Number of spatial axes, from the convolutions and pools.

    Where there are several, as with a convolution over channels beside those over the image, it is that of the input that
    the user gave, or of one that the network accepts.

    Raises:
        ValueError: there is none, or no input tells which of several.
    """
    found = {
        int(base.__name__[-2])
        for module in network.modules()
        for base in type(module).__mro__
        if base.__name__[-2:] in ("1d", "2d", "3d") and ("Conv" in base.__name__ or "Pool" in base.__name__)
    }
    if len(found) == 1:
        return found.pop()
    shape: Sequence[Any] = ()
    if isinstance(verify, Tensor):
        shape = verify.shape
    elif isinstance(verify, Sequence) and verify:
        shape = verify[0].shape if isinstance(verify[0], Tensor) else verify
    if len(shape) - 2 in found:
        return len(shape) - 2
    with prepared(network):
        for spatial_dims in sorted(found, reverse=True):
            if find_input(network, spatial_dims)[0] is not None:
                return spatial_dims
    raise ValueError(
        f"network must hold convolutions or pools of one number of spatial axes, got {sorted(found) or 'none'} "
        f"in {type(network).__name__}; an input in verify tells which of several"
    )


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
    channels += [3, 1]  # where something stands before the first convolution
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
            if shape[0] == channels[0]:  # the others are guesses
                why = f"{type(error).__name__}: {error}"
                reason = f"no input was found that it accepts; one of shape {tuple(x.shape)}, in float64, raises {why}"
            continue
        return (x,), ""
    return None, reason


def run(network: nn.Module, arguments: Arguments, seed: int = 0) -> Any:
    """Outputs of a network that is :func:`prepared`, on its device."""
    device = next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    # copies: a network may work in place
    return network(*tree_map(lambda leaf: leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf, arguments))


def output_shapes(network: nn.Module, arguments: Arguments) -> list[tuple[int, ...]]:
    """Shapes of all tensors that the network returns.

    Raises:
        ValueError: it does not run on these arguments.
    """
    try:
        out = run(network, arguments)
    except Exception as error:
        raise ValueError(
            f"verify must be what the network accepts, in float64; it raises {type(error).__name__}: {error}"
        ) from error
    return [tuple(leaf.shape) for leaf in tensors_of(out)]


def examples(network: nn.Module, arguments: Arguments, spatial_dims: int) -> list[Example]:
    """The arguments, and those with larger maps that the network takes.

    Raises:
        ValueError: the network does not run on ``arguments``.
    """
    found = [(arguments, output_shapes(network, arguments))]
    sizes = {tuple(leaf.shape[-spatial_dims:]) for leaf in tree_leaves(arguments) if is_map(leaf, spatial_dims)}
    for growth in _MORE[spatial_dims] if sizes == {_SIZES[spatial_dims][0]} else _GROWTH:
        larger = grown(arguments, growth, spatial_dims)
        try:
            found.append((larger, output_shapes(network, larger)))
        except ValueError:  # this size does not suit it
            continue
    single = {key for key, size in input_sizes(network, arguments, spatial_dims).items() if max(size) == 1}
    if single:  # of one pixel, maps turn whatever is done to them: at larger sizes they have more, or are means
        times = 2 if spatial_dims < 3 else 1
        larger = grown(arguments, tuple(times * length for length in max(sizes)), spatial_dims)
        try:
            wide = input_sizes(network, larger, spatial_dims)
            if any(max(wide.get(key, (1,))) > 1 for key in single):
                found.append((larger, output_shapes(network, larger)))
        except Exception:  # this size does not suit it, whatever it raises
            return found
    return found


def grown(arguments: Arguments, growth: tuple[int, ...], spatial_dims: int) -> Arguments:
    """The arguments, with maps larger by ``growth``, in pixels per axis."""
    pads = [amount for more in reversed(growth[:spatial_dims]) for amount in (0, more)]

    def larger(leaf: Any) -> Any:
        return nn.functional.pad(leaf, pads, value=0.5) if is_map(leaf, spatial_dims) else leaf

    return tree_map(larger, arguments)


def check(
    network: nn.Module,
    report: ConversionReport,
    symmetries: Mapping[str, LatticeSymmetry],
    examples: Sequence[Example],
    spatial_dims: int,
) -> None:
    """Measure the errors into the report, and refuse the modules that cause them.

    Args:
        network: converted, and :func:`prepared`.
        report: of its conversion.
        symmetries: those with which it is to commute.
        examples: what the network took before.
        spatial_dims: number of spatial axes.
    """
    for arguments, expected in examples:
        shape = next((tuple(a.shape) for a in arguments if isinstance(a, Tensor)), None)
        try:
            doubt = "" if report.errors else why_inconclusive(network, arguments)
            out = run(network, arguments)
            errors = {
                name: commutation_error(
                    out, run(network, transformed(arguments, symmetry, spatial_dims)), symmetry, spatial_dims
                )
                for name, symmetry in symmetries.items()
            }
        except Exception as error:  # whatever a forward raises
            why = f"converted, it raises {type(error).__name__} on an input of shape {shape}: {error}"
            report.entries.append(Entry("", "refused", type(network).__name__, why))
            return
        if doubt:
            why = (
                f"it cannot be checked, as {doubt}; give verify an input that tells, convert the part of it that can be "
                "checked, or give False"
            )
            report.entries.append(Entry("", "refused", type(network).__name__, why))
            return
        report.errors = {name: max(value, report.errors.get(name, 0.0)) for name, value in errors.items()}
        report.input_shape = report.input_shape or shape
        shapes = [tuple(leaf.shape) for leaf in tensors_of(out)]
        if shapes != expected:
            why = f"the shapes of its outputs change from {expected} to {shapes}"
            report.entries.append(Entry("", "refused", type(network).__name__, why))
        worst = max(errors, key=lambda name: errors[name])
        if errors[worst] > NEGLIGIBLE:
            known = {entry.name for entry in report.refused}
            each = module_errors(network, partial(run, network, arguments), {worst: symmetries[worst]}, spatial_dims)
            found = culprits(each, MODULE_TOLERANCE)
            if errors[worst] <= TOLERANCE:  # of the network itself, it may be rounding
                found = [name for name in found if name]
            elif not found:
                found = [""]
            why = f"it does not commute with {worst} (relative error of the network {errors[worst]:.1e})"
            for name in found:
                if name not in known:
                    module, parent = network.get_submodule(name), name.rpartition(".")[0]
                    around = network.get_submodule(parent) if parent else module
                    after = why + (cause(module, spatial_dims) or cause(around, spatial_dims))
                    report.entries.append(Entry(name, "refused", type(module).__name__, after))
            if found:
                return


def cause(module: nn.Module, spatial_dims: int) -> str:
    """What in a module may be why it breaks the symmetry, as the end of a sentence; ``""`` where nothing is known.

    Example:
        >>> block = nn.Module()
        >>> block.attention_biases = nn.Parameter(torch.zeros(2, 9))
        >>> cause(block, 2)
        '; positions enter by attention_biases: a network without them can be converted'
    """
    for name, part in module.named_modules():
        for key, kind in (
            (name, type(part).__name__),
            *((f"{name}.{key}".lstrip("."), "") for key in part._parameters),
        ):
            if _POSITIONS.search(key.rpartition(".")[2]) or _POSITIONS.search(kind):
                return f"; positions enter by {key or kind}: {WITHOUT_POSITIONS}"
    if isinstance(module, nn.Flatten):
        return f"; it {AS_FEATURES}"
    if _INTO_CHANNELS.search(type(module).__name__):
        return f"; {INTO_CHANNELS}"
    for name, part in module.named_modules():
        own = getattr(part, "kernel_size", 1)
        if rules.acts_elsewhere(part, spatial_dims) and own not in (1, (1,)):
            kind = f"{name} ({type(part).__name__})" if name else "it"
            return f"; {kind} acts along positions in a row, or on channels beside them: let it act on the map"
    return ""


_INTO_CHANNELS = re.compile(r"space_?to_?depth|unshuffle|focus|patch_?merg|dct", re.I)
#: Names of what tells positions apart.
_POSITIONS = re.compile(
    r"pos(ition(al)?)?_?(emb|enc|bias)|rel(ative)?_?pos|attention_bias|(height|width)_rel|rel_(h|w|height|width)$|rope",
    re.I,
)


def why_inconclusive(network: nn.Module, arguments: Arguments) -> str:
    """Why a check on these arguments says nothing of the network; ``""`` where it does."""
    outputs = tensors_of(run(network, arguments))
    if not outputs:
        return "it returns no tensor that could be compared"
    if any(bool(out.isnan().any()) for out in outputs):
        return "its outputs are NaN"
    again = tensors_of(run(network, arguments, seed=1))
    if not _equal(outputs, again):
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

    if _equal(outputs, tensors_of(run(network, tree_map(other, arguments)))):
        return "its outputs are the same for another input"
    return ""


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)


def input_sizes(network: nn.Module, arguments: Arguments, spatial_dims: int) -> dict[int, tuple[int, ...]]:
    """Spatial sizes of the first input of each module, by ``id``."""
    sizes: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, args: Any) -> None:
        if args and is_map(args[0], spatial_dims):
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
    return tree_map(_double, items)


def _double(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
