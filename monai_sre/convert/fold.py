"""Back to plain convolutions: what a trained equivariant network is deployed as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from monai_sre.convert.carried import carry_hooks
from monai_sre.layers.centred import CentredConvNd, CentredConvTransposeNd
from monai_sre.layers.conv import SREConvNd
from monai_sre.layers.conv_transpose import SREConvTransposeNd
from monai_sre.ops.conv import centred_conv, centred_conv_transpose, extra_padding

#: Hooks of ``torch.nn.utils`` that compute a parameter from others before each call.
_REPARAMETRISING = (BasePruningMethod, SpectralNorm, WeightNorm)


@torch.inference_mode(False)  # parameters that can be trained later
def fold_sre(network: nn.Module) -> nn.Module:
    """Replace radial layers, in place, by plain convolutions with the kernels that they have now.

    Outputs are the same to rounding. A layer of stride 1 becomes ``torch.nn.Conv*d`` itself, a strided one a subclass that
    centres its grid before it convolves, and so does a transposed one of a converted network. Parameters keep their names,
    and shapes are those of the original architecture, but for kernels that the conversion has enlarged: so a state dict
    needs no ``monai_sre`` to be read, and what is scripted, traced or exported to ONNX needs none to run. Layers with
    energies of harmonics stay, as no plain network has them, with plain convolutions inside: such a network is exported
    without this package, but read by it. Train before folding, not after: nothing holds folded kernels radial. Centring
    depends on the sizes of the maps. A TorchScript file, scripted or traced, serves all sizes; so does an ONNX file with
    dynamic axes where the grids change in means and upsampling only (``SREUNet``, ``SREResNet`` without ``max_pool``).
    With strided or transposed convolutions or maxima on centred grids, which conversion makes, it serves only the size that
    it was exported at: name no dynamic axes but the batch. ``torch.fx.symbolic_trace`` takes no network with centred grids:
    ``torch.export`` captures its graph. Weights that are pruned or normalised by hooks or parametrisations of
    ``torch.nn.utils`` are folded as they are now, into plain parameters.

    Args:
        network: any network with layers of this package; deepcopy it first to keep it.

    Returns:
        The same network; a new module where it is itself a single layer.

    Example:
        >>> from monai_sre.layers import SREConv2d
        >>> net = nn.Sequential(SREConv2d(1, 4, 5, padding=2), nn.ReLU())
        >>> x = torch.randn(1, 1, 9, 9)
        >>> out = net(x)
        >>> fold_sre(net)[0], torch.allclose(net(x), out, atol=1e-6)
        (Conv2d(1, 4, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2)), True)
    """
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"network must be an nn.Module that is not scripted, got {type(network).__name__}")
    folded: dict[int, nn.Module] = {}
    for module in network.modules():
        new = _fold(module)
        if new is not None:
            folded[id(module)] = new
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in folded:
                setattr(parent, name, folded[id(child)])
    return folded.get(id(network), network)


def _fold(source: nn.Module) -> nn.Module | None:
    module: Any = source
    new: Any = None
    if isinstance(source, SREConvNd):
        new = Conv["CONV", module.spatial_dims](
            **_options(module), padding=module.padding, padding_mode=module.padding_mode
        )
    elif isinstance(source, SREConvTransposeNd):
        new = Conv["CONVTRANS", module.spatial_dims](
            **_options(module), padding=module.padding, output_padding=module.output_padding
        )
    elif isinstance(source, CentredConvNd):
        new = _FOLDED[module.spatial_dims - 1](
            **_options(module), padding=module.padding, padding_mode=module.padding_mode
        )
        new.far_padding, new.antialias = module.far_padding, module.antialias
    elif isinstance(source, CentredConvTransposeNd):
        new = _FOLDED_TRANSPOSED[module.spatial_dims - 1](**_options(module))
        new.margin, new.output_padding = module.margin, module.output_padding
    if new is None:
        return None
    with torch.no_grad():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _REPARAMETRISING):  # makes the weight anew at each call, which nothing does behind it
                hook(module, ())
                del module._forward_pre_hooks[key]
        new.weight.copy_(module.kernel())
        new.weight.requires_grad_(module.weight.requires_grad)
        if module.bias is not None:
            new.bias.copy_(module.bias)
            new.bias.requires_grad_(module.bias.requires_grad)
    carry_hooks(module, new)
    return new.train(module.training)  # type: ignore[no-any-return]


def _options(module: Any) -> dict[str, Any]:
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": module.bias is not None,
        "device": module.weight.device,
        "dtype": module.weight.dtype,
    }


class _Folded:
    if TYPE_CHECKING:  # TorchScript would read these
        weight: Any
        bias: Any
        stride: Any
        padding: Any
        far_padding: Any
        dilation: Any
        groups: Any
        padding_mode: Any
        antialias: Any

    def forward(self, x: Tensor) -> Tensor:
        return centred_conv(
            x,
            self.weight,
            self.bias,
            list(self.stride),
            list(self.padding),
            list(self.far_padding),
            list(self.dilation),
            self.groups,
            self.padding_mode,
            self.antialias,
        )


class _FoldedTranspose:
    if TYPE_CHECKING:  # TorchScript would read these
        weight: Any
        bias: Any
        kernel_size: Any
        stride: Any
        margin: Any
        output_padding: Any
        dilation: Any
        groups: Any

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        margin = list(self.margin)
        if output_size is not None:
            extra = extra_padding(
                x,
                output_size,
                list(self.kernel_size),
                list(self.stride),
                list(self.dilation),
                margin,
                list(self.output_padding),
            )
            margin = [margin[axis] + self.output_padding[axis] - extra[axis] for axis in range(len(margin))]
        return centred_conv_transpose(
            x, self.weight, self.bias, list(self.stride), margin, list(self.dilation), self.groups
        )


class FoldedConv1d(_Folded, nn.Conv1d):
    """``torch.nn.Conv1d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`."""


class FoldedConv2d(_Folded, nn.Conv2d):
    """``torch.nn.Conv2d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`."""


class FoldedConv3d(_Folded, nn.Conv3d):
    """``torch.nn.Conv3d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`."""


class FoldedConvTranspose1d(_FoldedTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose1d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


class FoldedConvTranspose2d(_FoldedTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose2d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


class FoldedConvTranspose3d(_FoldedTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose3d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


_FOLDED = (FoldedConv1d, FoldedConv2d, FoldedConv3d)
_FOLDED_TRANSPOSED = (FoldedConvTranspose1d, FoldedConvTranspose2d, FoldedConvTranspose3d)
