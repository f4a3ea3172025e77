"""Turn any convolutional network of MONAI or PyTorch into its twin that is equivariant to rotation and reflection."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.networks.blocks.upsample import SubpixelUpsample
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from monai_sre.convert import functions, monai_blocks, rules, trial
from monai_sre.convert.carried import carry_hooks, share_parameters
from monai_sre.convert.options import Options
from monai_sre.convert.report import (
    ATTRIBUTE,
    INTO_CHANNELS,
    WITHOUT_POSITIONS,
    ConversionReport,
    Entry,
    RefusedError,
    conversion_report,
    describe,
    refusal,
)
from monai_sre.convert.rules import Kept, Replaced
from monai_sre.convert.spacing import layer_spacings
from monai_sre.layers.pool import CentredPadPool
from monai_sre.nets.checkpoints import unwrapped
from monai_sre.ops.arguments import check_flags, int_tuple
from monai_sre.symmetry.lattice import lattice_generators

logger = logging.getLogger(__name__)
INITS = ("project", "reset")
_ABSENT = object()
#: Modules without an equivariant counterpart, by a base class of theirs.
_WITHOUT_COUNTERPART: dict[type[nn.Module], str] = {
    nn.RNNBase: "a recurrent layer reads positions in an order",
    nn.Unfold: "unfolding turns positions into channels: take a convolution",
    nn.Fold: "folding turns channels into positions: take a transposed convolution",
    nn.PixelUnshuffle: INTO_CHANNELS,
    nn.FractionalMaxPool2d: "its windows are random: take a max pool",
    nn.FractionalMaxPool3d: "its windows are random: take a max pool",
    nn.MaxUnpool1d: "it takes positions on the grid: take an upsampling",
    nn.MaxUnpool2d: "it takes positions on the grid: take an upsampling",
    nn.MaxUnpool3d: "it takes positions on the grid: take an upsampling",
    nn.LPPool1d: "it has no centred counterpart: take an average pool",
    nn.LPPool2d: "it has no centred counterpart: take an average pool",
    nn.LPPool3d: "it has no centred counterpart: take an average pool",
}


@torch.inference_mode(False)  # parameters that can be trained later
def convert_to_sre(
    network: nn.Module,
    kernel_size: int | Sequence[int] | None = None,
    num_rings: int | None = None,
    profile: str | tuple[str, Mapping[str, Any]] | None = None,
    init: str = "project",
    *,
    circular: bool = True,
    orthonormal: bool | None = None,
    spacing: Sequence[float] | None = None,
    axes: Sequence[int] | None = None,
    algorithm: str = "auto",
    antialias: bool | float = False,
    conv: str | tuple[str, Mapping[str, Any]] = "radial",
    strict: bool = True,
    verify: bool | Tensor | Sequence[Any] = True,
) -> nn.Module:
    """Make a network equivariant, in place: its outputs turn with its input under every symmetry of the grid, at every size.

    Convolutions become radial (:class:`monai_sre.layers.SREConv2d`). Strides, pools, transposed convolutions and pixel
    shuffles move to centred grids (:mod:`monai_sre.layers.centred`), and so do the paddings in the blocks of MONAI. The
    shapes of all outputs stay, and so do names of parameters, train or eval mode, ``requires_grad``, device, dtype,
    hooks of their calls, and what modules share. Create the optimiser afterwards.

    The network is run on a small input to find functions that a ``forward`` calls by itself, such as
    ``torch.nn.functional.interpolate``: they move to centred grids too, see :mod:`monai_sre.convert.functions`. Then it runs
    on that input's rotations and reflections, as no replacement reaches all that a ``forward`` may do.

    Args:
        network: a convolutional network of one number of spatial axes.
        kernel_size: size that convolutions grow to, one for all axes or one per axis; layers of one tap stay so, even kernels
            take the next even size, and none shrinks. ``None`` keeps each layer's own.
        num_rings: largest number of learned coefficients per pair of channels; ``None`` is one per unit of radius.
        profile: with ``circular``, ``orthonormal`` and ``algorithm`` as in :class:`monai_sre.layers.SREConv2d`. ``None`` is
            the default of the kind of convolution: bands (``"radial"``), or orthonormal Gaussian rings (``"harmonic"``).
        init: ``"project"`` takes the radial kernel nearest to each kernel there is (least squares; the report says how much
            of it that keeps), ``"reset"`` starts anew, with the variance that radial kernels need. Other layers keep theirs.
        spacing: voxel size of the input along each spatial axis, such as :func:`spacing_from` gives; kernels are round in
            that unit, at every level of the network, and axes of unequal size need not be treated alike.
        axes: the spatial axes to be symmetric in; ``None`` is all.
        antialias: blur before strides leave out pixels, in convolutions, max and average pools
            (:mod:`monai_sre.ops.pool`): less error under rotations by other angles than 90 degrees. ``True``, or the
            filter's standard deviation in steps of the coarser grid (``True`` is 0.6; wider ones err less and blur more).
        conv: ``"harmonic"`` adds energies of harmonics to each convolution of more than one tap (not to transposed ones), so
            that it sees edges too (:class:`monai_sre.layers.HarmonicConv`); its options ``orders``, ``hidden_channels``,
            ``taps``, ``norm`` and ``eps`` as ``("harmonic", {"orders": (1,)})``. Parameters of these layers get new names.
            With ``init="project"`` the energies start with weights of zero.
        strict: raise where a module cannot be made equivariant; otherwise it stays, and the report lists it.
        verify: ``True`` looks for an input size that the network accepts; else the shape ``(N, C, *spatial)`` or the input to
            check, or a tuple of all arguments. Where the network takes them, larger maps are checked too, as grids are off
            centre at some sizes only. ``False`` checks nothing; functions are looked for with any input that is accepted.

    Returns:
        The same network; a new module where it is itself a single layer. :func:`conversion_report` says what was done.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work, or modules cannot be made equivariant: the message names each and says why, and
            the network is left as it was.

    Example:
        >>> from monai.networks.nets import UNet
        >>> net = convert_to_sre(UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2))).eval()
        >>> x = torch.randn(1, 1, 20, 28)
        >>> torch.allclose(net(x.rot90(1, (2, 3))), net(x).rot90(1, (2, 3)), atol=1e-5)
        True
    """
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"network must be an nn.Module that is not scripted, got {type(network).__name__}")
    if init not in INITS:
        raise ValueError(f"init must be one of {INITS}, got {init!r}")
    if unwrapped(network) is not network:
        raise TypeError(
            f"network must be the module that {type(network).__name__} wraps: convert it, and wrap it again"
        )
    for name, module in network.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn", "torch.ao.quantization")):
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise TypeError(f"network must compute in floating point, but its module {name or '(root)'} is {kind}")
    for name, parameter in network.named_parameters():
        if parameter.is_complex():
            raise TypeError(f"network must be real, but its parameter {name} is {parameter.dtype}")
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"network must hold values, but its parameter {name} is lazy: run the network once")
        if parameter.is_meta:
            raise ValueError(f"network must hold values, but its parameter {name} is on the meta device")
    ndim = trial.spatial_dims_of(network, verify)
    check_flags(strict=strict)
    try:
        lengths = None if spacing is None else tuple(map(float, spacing))
    except (TypeError, ValueError):
        raise TypeError(f"spacing must be None or {ndim} positive lengths, got {spacing!r}") from None
    if kernel_size is not None:
        sizes = int_tuple("kernel_size", kernel_size, ndim, minimum=1)
        kernel_size = sizes if isinstance(kernel_size, Sequence) else sizes[0]
    if axes is not None and not isinstance(axes, Sequence):
        raise TypeError(f"axes must be None or different spatial axes out of {tuple(range(ndim))}, got {axes!r}")
    options = Options(
        kernel_size=kernel_size,
        num_rings=num_rings,
        profile=profile,
        init=init,
        circular=circular,
        orthonormal=orthonormal,
        spacing=lengths,
        axes=None if axes is None else tuple(axes),
        algorithm=algorithm,
        antialias=antialias,
        conv=conv,
    )
    options.check(ndim)
    given = None if isinstance(verify, bool) else trial.as_arguments(verify, ndim)
    with trial.prepared(network):
        arguments, reason = trial.find_input(network, ndim) if given is None else (given, "")
        checked = verify is not False and arguments is not None
        examples = trial.examples(network, arguments, ndim) if checked else []  # type: ignore[arg-type]
        spacings = layer_spacings(network, options.spacing, arguments, ndim)
        inputs = [example for example, _ in examples] or ([] if arguments is None else [arguments])
        run = partial(_run_all, network, inputs)
        calls = functions.calls_of(network, run, ndim, options, spacings)
    if arguments is None and verify is False:
        logger.warning(
            "%s was not run, so functions that a forward calls stay as they are: %s", type(network).__name__, reason
        )

    plan = _Plan(ndim, options, spacings, calls, strict)
    # new layers hold values, whatever the default device; then they go where the old ones are
    with torch.device("cpu"):
        plan.read(network)
    if strict and plan.report.refused:
        raise ValueError(refusal(plan.report.refused))
    converted = plan.apply(network)
    try:
        if verify is not False:
            if not examples:
                raise ValueError(f"verify must be {trial.EXAMPLE} (False converts without the check); {reason}")
            with trial.prepared(converted):
                symmetries = lattice_generators(ndim, options.spacing, options.axes)
                trial.check(converted, plan.report, symmetries, examples, ndim)
            plan.name_doubts()
        if strict and plan.report.refused:
            raise ValueError(refusal(plan.report.refused))
    except BaseException:
        plan.undo()
        raise
    if not plan.report.replaced and isinstance(getattr(converted, ATTRIBUTE, None), ConversionReport):
        logger.warning("%s was converted before: nothing was left to change", type(converted).__name__)
        plan.report.entries = conversion_report(converted).entries  # what was done then
    object.__setattr__(converted, ATTRIBUTE, plan.report)
    logger.info("convert_to_sre(%s): %s", type(converted).__name__, plan.report)
    return converted


def _run_all(network: nn.Module, inputs: Sequence[trial.Arguments]) -> None:
    for arguments in inputs:
        trial.run(network, arguments)


class _Plan:
    """What is to be replaced; nothing is changed before :meth:`apply`."""

    def __init__(
        self,
        spatial_dims: int,
        options: Options,
        spacings: dict[int, tuple[float, ...]],
        calls: dict[int, functions.Calls],
        strict: bool,
    ) -> None:
        self.spatial_dims, self.options, self.spacings = spatial_dims, options, spacings
        self.calls, self.strict = calls, strict
        self.report = ConversionReport()
        self.new: dict[int, nn.Module] = {}
        self.merged: dict[int, rules.Pads] = {}
        self.absorbed: list[tuple[str, nn.Module, nn.Module]] = []
        self.padders: list[tuple[nn.Module, nn.Module]] = []
        self.parents: Counter[int] = Counter()
        self.blocks: set[int] = set()
        self.kernels: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.doubts: dict[str, list[str]] = {}
        self.assignments: list[tuple[nn.Module, str, Any]] = []
        self.log: list[tuple[nn.Module, str, Any]] = []
        self.order: dict[int, tuple[nn.Module, list[str]]] = {}

    def read(self, network: nn.Module) -> None:
        """Fill the report and the plan."""
        modules = list(network.named_modules())
        self.parents = Counter(id(child) for _, module in modules for child in module._modules.values())
        for name, module in modules:
            self._attempt(name, module, self._read_block)
        pads = {id(pad) for _, pad, _ in self.absorbed}
        for name, module in modules:
            if id(module) not in self.new and id(module) not in pads:
                self._attempt(name, module, self._read_layer)
        for name, pad, conv in self.absorbed:  # by a convolution, unless that was refused
            if id(conv) in self.new:
                self._record(name, pad, Replaced(nn.Identity()))
            else:
                self._attempt(name, pad, self._read_layer)
        for block, conv in self.padders:
            if id(conv) in self.new:
                self.assignments.append((block, "pad", nn.Identity()))
        self.report.entries.extend(share_parameters(network, self.new))

    def apply(self, network: nn.Module) -> nn.Module:
        """Carry the plan out; returns the network, or what replaces it."""
        for parameter, _, values in self.kernels:
            parameter.data = values
        for target, name, value in self.assignments:
            self._set(target, name, value)
        for parent in list(network.modules()):
            for name, child in parent._modules.items():
                if child is not None and id(child) in self.new:
                    self._set(parent, name, self.new[id(child)])
        return self.new.get(id(network), network)

    def undo(self) -> None:
        """Put everything back."""
        for parameter, values, _ in self.kernels:
            parameter.data = values
        for target, name, old in reversed(self.log):
            if name != "__class__":
                delattr(target, name)
            if old is not _ABSENT:
                setattr(target, name, old)
        for target, names in self.order.values():
            target._modules = {name: target._modules[name] for name in names}

    def _set(self, target: nn.Module, name: str, value: Any) -> None:
        self.order.setdefault(id(target), (target, list(target._modules)))
        self.log.append((target, name, getattr(target, name, _ABSENT)))
        setattr(target, name, value)

    def _attempt(self, name: str, module: nn.Module, rule: Callable[[str, nn.Module], None]) -> None:
        try:
            rule(name, module)
        except ValueError as error:  # RefusedError, or that of a layer that cannot be made
            self.report.entries.append(Entry(name, "refused", describe(module), str(error)))

    def _record(self, name: str, old: nn.Module, result: Replaced | Kept) -> None:
        if isinstance(result, Kept):
            self.report.entries.append(Entry(name, "kept", describe(old), result.reason))
            return
        new = result.module.train(old.training)
        carry_hooks(old, new)
        self.new[id(old)] = new
        self.report.entries.append(Entry(name, "replaced", describe(old), describe(new), result.energy, result.seen))

    def _swap_class(self, name: str, module: nn.Module, twin: type[nn.Module]) -> None:
        self.blocks.add(id(module))
        self.assignments.append((module, "__class__", twin))
        self.report.entries.append(Entry(name, "replaced", type(module).__name__, twin.__name__))

    def _read_block(self, name: str, module: nn.Module) -> None:
        """Blocks that do something in their own ``forward``."""
        kind = type(module)
        children = dict(module.named_children())
        if kind is UpCat:
            self._swap_class(name, module, monai_blocks.CentredUpCat)
        elif kind is SubpixelUpsample:
            self._read_subpixel(name, module)
        elif isinstance(getattr(module, "downsample", None), partial):
            self._read_shortcut(name, module)
        elif kind.__name__ == "AEKLDownsample" and isinstance(children.get("conv"), nn.Sequential):
            pad: Any = module.pad
            conv: Any = children["conv"].conv
            self.merged[id(conv)] = rules.pad_pairs(getattr(pad, "pad", pad))
            self.blocks |= {id(module), id(pad)}
            self.padders.append((module, conv))
        ordered = list(children.items())
        for index, (pad_name, pad) in enumerate(ordered):
            follower = children.get(pad_name.removesuffix("_padding")) if pad_name.endswith("_padding") else None
            if kind is nn.Sequential and index + 1 < len(ordered):
                follower = ordered[index + 1][1]
            alone = self.parents[id(pad)] == self.parents[id(follower)] == 1
            if type(follower) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and alone and _is_uneven_zero_padding(pad):
                self.merged[id(follower)] = rules.pad_pairs(pad.padding)
                self.absorbed.append((f"{name}.{pad_name}".lstrip("."), pad, follower))  # type: ignore[arg-type]

    def _read_subpixel(self, name: str, module: nn.Module) -> None:
        factor: Any = module.scale_factor
        conv: Any = module.conv_block
        if isinstance(conv, _ConvNd) and not isinstance(conv, _ConvTransposeNd):
            result = rules.convert_subpixel(conv, factor, self.options, self._spacing(conv))
            self._record(f"{name}.conv_block".lstrip("."), conv, result)
            self._swap_class(name, module, monai_blocks.CentredSubpixel)
        else:
            self._swap_class(name, module, monai_blocks.CentredSubpixelMean)
            self.assignments.append((module, "shuffle", monai_blocks.CentredShuffle(factor)))
        if isinstance(module.pad_pool, nn.Sequential):
            self._record(f"{name}.pad_pool".lstrip("."), module.pad_pool, Replaced(CentredPadPool(factor)))
            for child in module.pad_pool.modules():
                self.new.setdefault(id(child), child)

    def _read_shortcut(self, name: str, module: nn.Module) -> None:
        shortcut: Any = module.downsample
        if getattr(shortcut.func, "__name__", "") != "_downsample_basic_block":
            raise RefusedError("its downsample is a function that is not known here: take a module, or shortcut type B")
        new = monai_blocks.CentredPadShortcut(
            shortcut.keywords["planes"], shortcut.keywords["stride"], self.options.antialias
        )
        self.assignments.append((module, "downsample", new))
        self.blocks.add(id(module))
        self.report.entries.append(Entry(f"{name}.downsample", "replaced", "shortcut A", describe(new)))

    def _read_layer(self, name: str, module: nn.Module) -> None:
        """Single layers."""
        reasons = [why for base, why in _WITHOUT_COUNTERPART.items() if isinstance(module, base)]
        if reasons:
            raise RefusedError(reasons[0])
        positions = [key for key in module._parameters if "pos_emb" in key or "position_emb" in key]
        if positions:
            raise RefusedError(f"its parameter {positions[0]} is a position embedding: {WITHOUT_POSITIONS}")
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1 and module.elementwise_affine:
            raise RefusedError("it has weights of its own for each position: take one with elementwise_affine=False")
        calls = self.calls.get(id(module))
        if calls is not None and id(module) not in self.blocks:
            self._read_calls(name, calls)
        elif rules.acts_elsewhere(module, self.spatial_dims):
            self._record(name, module, rules.convert_elsewhere(module, self.spatial_dims, self.options))
        elif isinstance(module, _ConvTransposeNd):
            self._record(name, module, rules.convert_transposed(module, self.options, self._spacing(module)))
        elif isinstance(module, _ConvNd):
            merged = self.merged.get(id(module))
            self._record(name, module, rules.convert_conv(module, self.options, self._spacing(module), merged))
        elif rules.is_pool(module):
            self._record(name, module, rules.convert_pool(module, self.options))
        elif isinstance(module, nn.Upsample):
            self._record(name, module, rules.convert_upsample(module, self.options))
        elif isinstance(module, nn.PixelShuffle):
            self._record(name, module, Replaced(monai_blocks.CentredShuffle(module.upscale_factor, 2)))
        elif isinstance(getattr(module, "padding", None), tuple) and "Pad" in type(module).__name__:
            self._record(name, module, rules.convert_padding(module, self.options))

    def _read_calls(self, name: str, calls: functions.Calls) -> None:
        """Functions that the module's own ``forward`` calls."""
        module = calls.module
        self.doubts[name] = calls.doubtful
        if calls.refused:
            raise RefusedError("; ".join(calls.refused))
        if not calls.centred:
            if isinstance(module, _ConvNd) or rules.is_pool(module):
                self._record(name, module, Kept("what it calls commutes"))
            return
        weight, energy = getattr(module, "weight", None), None
        if calls.with_weight and isinstance(weight, nn.Parameter):
            kernel, energy = rules.radial_kernel(weight, self.options, self._spacing(module))
            self.kernels.append((weight, weight.data, kernel))
        mode = functions.CentredFunctions(
            self.spatial_dims,
            self.options,
            self._spacing(module),
            functions.is_fixed(module),
            self.strict,
            calls.projections,
            calls.left,
        )
        self.assignments += [
            (module, "__class__", functions.centred_class(type(module), calls.methods)),
            (module, functions.MODE, mode),
        ]
        after = "on centred grids: " + ", ".join(calls.centred)
        self.report.entries.append(Entry(name, "replaced", describe(module), after, energy))

    def name_doubts(self) -> None:
        """Let refusals of the check say which calls may be the cause."""
        for index, entry in enumerate(self.report.entries):
            doubtful = self.doubts.get(entry.name) if entry.action == "refused" else None
            if doubtful and entry.after.startswith("it does not commute"):
                self.report.entries[index] = replace(entry, after=f"{entry.after}; it calls {', '.join(doubtful)}")

    def _spacing(self, module: nn.Module) -> tuple[float, ...] | None:
        return self.spacings.get(id(module), self.options.spacing)


def _is_uneven_zero_padding(module: nn.Module) -> bool:
    if "Pad" not in type(module).__name__ or getattr(module, "value", None) != 0:
        return False
    return any(low != high for low, high in rules.pad_pairs(module.padding))  # type: ignore[arg-type]
