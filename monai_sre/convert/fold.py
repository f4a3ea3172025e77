"""Back to plain convolutions: what a trained equivariant network is deployed as."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from monai_sre.convert.carried import carry_hooks
from monai_sre.convert.folded import FOLDED, FOLDED_TRANSPOSED, FoldedHarmonics, FoldedRings, filled, shape_of
from monai_sre.layers.centred import CentredConvNd
from monai_sre.layers.conv import RadialNd, SREConvNd
from monai_sre.layers.conv_transpose import RadialTransposeNd, SREConvTransposeNd
from monai_sre.layers.harmonic import HarmonicConv, is_plain
from monai_sre.ops.conv import NO_RINGS, exported_ends
from monai_sre.ops.dispatch import without_autocast

#: Hooks of ``torch.nn.utils`` that compute a parameter from others before each call.
_REPARAMETRISING = (BasePruningMethod, SpectralNorm, WeightNorm)


#: What :func:`fold_sre` makes of a layer.
FORMS = ("auto", "rings", "dense")


@torch.inference_mode(False)  # parameters that can be trained later
def fold_sre(network: nn.Module, form: str = "auto") -> nn.Module:
    """Replace radial layers, in place, by plain convolutions with the kernels that they have now.

    Outputs are the same to rounding, and what is scripted, traced or exported to ONNX needs no ``monai_sre`` to run. A layer
    becomes one of two forms. *Dense*: ``torch.nn.Conv*d`` itself; a strided one, and a transposed one of a converted network,
    is a subclass that centres its grid before it convolves, and one with reflected or circular ends one that takes maps of
    any size. *Rings*: depthwise convolutions with the rings, and convolutions of one tap that mix their sums, a fraction of
    the multiply-adds; energies of harmonics share these sums. In ONNX the sums of volumes are convolutions along one axis
    after the other, which runtimes are faster at. Train before folding, not after: nothing holds folded kernels radial. A
    TorchScript file, scripted or traced, serves all sizes, and so does an ONNX file with dynamic axes.
    ``torch.fx.symbolic_trace`` takes no network with centred grids or such ends: ``torch.export`` captures its graph. Weights
    that are pruned or normalised by hooks or parametrisations of ``torch.nn.utils`` are folded as they are now, into plain
    parameters. Kernels have the parameters' precision under autocast too.

    Args:
        network: any network with layers of this package; deepcopy it first to keep it.
        form: ``"dense"`` for all layers: parameters keep their names, and shapes are those of the original architecture, but
            for kernels that the conversion has enlarged, so that a state dict needs no ``monai_sre`` to be read. ``"rings"``
            for all that have more than one tap and no transposition, but volumes whose ``axes`` are not all. ``"auto"`` for
            the form that is estimated to be faster in ONNX Runtime on a CPU, layer by layer.

    Returns:
        The same network; a new module where it is itself a single layer.

    Raises:
        TypeError: ``network`` is no module, or scripted.
        ValueError: ``form`` is none of these.

    Example:
        >>> from monai_sre.layers import SREConv2d
        >>> net = nn.Sequential(SREConv2d(1, 16, 5, padding=2), SREConv2d(16, 16, 3, padding=1))
        >>> x = torch.randn(1, 1, 9, 9)
        >>> out = net(x)
        >>> net = fold_sre(net)
        >>> [type(layer).__name__ for layer in net], torch.allclose(net(x), out, atol=1e-5)
        (['Conv2d', 'FoldedRings'], True)
        >>> net[1].sums[1].get_submodule("0"), net[1].mix[1].kernel_size
        (Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=16, bias=False), (1, 1))
    """
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"network must be an nn.Module that is not scripted, got {type(network).__name__}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    folded: dict[int, nn.Module] = {}
    with ExitStack() as stack:
        for device in {parameter.device.type for parameter in network.parameters()}:
            stack.enter_context(without_autocast(device))  # kernels would be of half precision
        for module in network.modules():
            new = _fold_energies(module, form) if isinstance(module, HarmonicConv) else _fold(module, form)
            if new is not None:
                folded[id(module)] = new
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in folded:
                setattr(parent, name, folded[id(child)])
    return folded.get(id(network), network)


def _fold(source: nn.Module, form: str) -> nn.Module | None:
    module: Any = source
    if not isinstance(source, RadialNd):
        return None
    _make_plain(source)
    if _takes_rings(source, form):
        new: Any = FoldedRings(source)
    elif isinstance(source, SREConvNd) and module.padding_mode in ("zeros", "replicate"):
        new = Conv["CONV", module.spatial_dims](
            **shape_of(module), padding=module.padding, padding_mode=module.padding_mode
        )
    elif isinstance(source, SREConvTransposeNd):
        new = Conv["CONVTRANS", module.spatial_dims](
            **shape_of(module), padding=module.padding, output_padding=module.output_padding
        )
    elif isinstance(source, (SREConvNd, CentredConvNd)):
        new = FOLDED[module.spatial_dims - 1](
            **shape_of(module), padding=module.padding, padding_mode=module.padding_mode
        )
        new.centred = isinstance(source, CentredConvNd)
        new.far_padding = getattr(module, "far_padding", (0,) * module.spatial_dims)
        new.antialias = getattr(module, "antialias", 0.0)
    else:
        new = FOLDED_TRANSPOSED[module.spatial_dims - 1](**shape_of(module))
        new.margin, new.output_padding = module.margin, module.output_padding
    if not isinstance(new, FoldedRings):
        filled(new, module.kernel(), module.bias, module.weight.requires_grad)
    carry_hooks(module, new)
    return new.train(module.training)


def _fold_energies(module: HarmonicConv, form: str) -> nn.Module | None:
    radial: Any = module.radial
    _make_plain(module.mix)
    if not isinstance(radial, RadialNd) or module.groups > 1 or form == "dense":
        return None  # the radial convolution inside is folded by itself
    _make_plain(radial)
    hooked = radial._forward_hooks or radial._forward_pre_hooks
    if hooked or not all(map(is_plain, (module.mix, *module.energies))):
        return None  # hooks, and what stands in the place of a part, would be lost
    new = FoldedHarmonics(module, rings=_takes_rings(radial, form))
    carry_hooks(module, new)
    return new.train(module.training)


def _takes_rings(source: nn.Module, form: str) -> bool:
    module: Any = source
    if form == "dense" or isinstance(source, RadialTransposeNd):
        return False
    algorithm = "ring" if form == "rings" else "auto"
    channels = module.in_channels, module.out_channels
    return exported_ends(module.current_basis(), *channels, module.groups, algorithm) is not NO_RINGS


def _make_plain(module: nn.Module) -> None:
    """Let what hooks and parametrisations compute of other parameters be parameters, with the values that they have now."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _REPARAMETRISING):
            hook.remove(module)
            del module._forward_pre_hooks[key]
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name)
