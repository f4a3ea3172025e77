"""The modules of a folded network: torch's own convolutions inside, and no kernel that is made anew at each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_sre.layers.centred import CentredConvNd
from monai_sre.layers.harmonic import HarmonicConv
from monai_sre.ops.conv import centred_conv, centred_conv_transpose, extra_padding
from monai_sre.ops.grid import centred_windows, extend_ends
from monai_sre.ops.pool import centred_blur
from monai_sre.ops.ring.energy_portable import exported_energies
from monai_sre.ops.ring.portable import conv_nd, cropped_ring, ring_ends, scaled_rings, summed_along_axes, tensor_train


def shape_of(module: Any) -> dict[str, Any]:
    """Arguments that a radial layer and its plain counterpart have in common."""
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


def filled(layer: nn.Module, weight: Tensor, bias: Tensor | None, requires_grad: bool) -> nn.Module:
    """A plain convolution with these values; ``requires_grad`` is that of its weight."""
    new: Any = layer
    with torch.no_grad():
        new.weight.copy_(weight)
        new.weight.requires_grad_(requires_grad)
        if bias is not None:
            new.bias.copy_(bias)
            new.bias.requires_grad_(bias.requires_grad)
    return layer


class FoldedRings(nn.Module):
    """A radial convolution as sums over rings, and what mixes them: depthwise convolutions and such of one tap."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.prepare, padding = _prepared(source)
        self.sums, (self.mix,) = _rings(source, padding, [source.out_channels], source.bias)
        self.volumes = SumsAlongAxes(source, padding) if source.spatial_dims == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
            if self.volumes is not None and torch.onnx.is_in_onnx_export():
                return _mixed(self.volumes(x), self.mix)
        out: Tensor | None = None
        for sums, mix in zip(self.sums, self.mix):  # noqa: B905 - TorchScript knows no strict=
            part = mix(sums(x))
            out = part if out is None else out + part
        assert out is not None
        return out


class FoldedHarmonics(nn.Module):
    """A radial convolution with energies of harmonics; both kinds of maps share the sums over rings.

    Args:
        source: the layer, with one group of channels.
        rings: whether there are such sums, or one dense kernel for each kind of maps.
    """

    def __init__(self, source: HarmonicConv, rings: bool) -> None:
        super().__init__()
        radial: Any = source.radial
        channels = [source.mix.out_channels, source.hidden_channels]
        self.spatial_dims = radial.spatial_dims
        self.prepare, padding = _prepared(radial)
        if rings:
            self.sums, (self.radial, self.hidden) = _rings(radial, padding, channels, None)
            self.volumes = SumsAlongAxes(radial, padding) if radial.spatial_dims == 3 else None
        else:
            self.sums, self.volumes = nn.ModuleList([nn.Identity()]), None
            shape = {**shape_of(radial), "padding": padding}
            self.radial, self.hidden = (
                nn.ModuleList([_convolution(radial, kernel, {**shape, "out_channels": len(kernel)})])
                for kernel in radial.kernel().split(channels)
            )
        self.energies = nn.ModuleList(
            FoldedEnergy(energy) if energy.padding_mode == "zeros" else energy for energy in source.energies
        )
        self.norm, self.mix = source.norm, source.mix

    def forward(self, x: Tensor) -> Tensor:
        unbatched = x.dim() == self.spatial_dims + 1
        x = self.prepare(x.unsqueeze(0) if unbatched else x)
        out: Tensor | None = None
        maps: Tensor | None = None
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
            if self.volumes is not None and torch.onnx.is_in_onnx_export():
                along = self.volumes(x)
                return self._with_energies(_mixed(along, self.radial), _mixed(along, self.hidden), unbatched)
        for sums, radial, hidden in zip(self.sums, self.radial, self.hidden):  # noqa: B905 - TorchScript knows no strict=
            here = sums(x)
            first, second = radial(here), hidden(here)
            out = first if out is None else out + first
            maps = second if maps is None else maps + second
        assert out is not None
        assert maps is not None
        return self._with_energies(out, maps, unbatched)

    def _with_energies(self, out: Tensor, maps: Tensor, unbatched: bool) -> Tensor:
        energies: list[Tensor] = []
        for energy in self.energies:
            energies.append(energy(maps))
        out = out + self.mix(self.norm(torch.cat(energies, dim=1)))
        return out.squeeze(0) if unbatched else out


class FoldedEnergy(nn.Module):
    """The energy of one order, from torch's convolutions."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.eps = source.eps
        self.register_buffer("stencils", source.stencils.detach().clone())
        self.stencils: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return exported_energies(x, [self.stencils], self.eps)[0]


class SumsAlongAxes(nn.Module):
    """All sums over rings of volumes, a channel's beside each other, for ONNX: its runtimes are slow at depthwise ones."""

    def __init__(self, source: Any, padding: Sequence[int]) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = list(source.stride), list(padding), list(source.dilation)
        rings, _ = scaled_rings(source.current_basis().detach(), source.weight.detach())
        rings = rings.clone()
        for ring, ends in enumerate(ring_ends(rings)):
            if cropped_ring(rings, ring, ends).numel() == 1:  # whose value is in what mixes
                rings[ring] = (rings[ring] != 0).to(rings)
        self.kernels = nn.ParameterList(nn.Parameter(kernel, requires_grad=False) for kernel in tensor_train(rings))

    def forward(self, x: Tensor) -> Tensor:
        kernels: list[Tensor] = []
        for kernel in self.kernels:
            kernels.append(kernel)
        return summed_along_axes(x, kernels, self.stride, self.padding, self.dilation)


def _mixed(sums: Tensor, mixes: nn.ModuleList) -> Tensor:
    """What the mixes make of all sums at once."""
    layers: list[Any] = list(mixes)
    weight, ones = torch.stack([layer.weight for layer in layers], dim=2).flatten(1, 2), [1] * (sums.dim() - 2)
    return conv_nd(sums, weight, layers[0].bias, ones, [0] * len(ones), ones, layers[0].groups)


class FoldedEnds(nn.Module):
    """Maps with what lies outside of them; torch's own modules stop where that is more than the maps."""

    def __init__(self, amounts: Sequence[int], mode: str) -> None:
        super().__init__()
        self.amounts, self.mode = list(amounts), mode

    def forward(self, x: Tensor) -> Tensor:
        return extend_ends(x, self.amounts, self.mode)


class FoldedCentring(nn.Module):
    """What a layer with a stride or an even kernel reads, so that it samples a centred grid without padding of its own."""

    def __init__(self, source: CentredConvNd) -> None:
        super().__init__()
        self.stride, self.padding, self.padding_mode = list(source.stride), list(source.padding), source.padding_mode
        self.reach = [step * (size - 1) + 1 for step, size in zip(source.dilation, source.kernel_size, strict=True)]
        self.antialias = source.antialias
        total = [2 * amount + far for amount, far in zip(source.padding, source.far_padding, strict=True)]
        self.total = total if source.padding_mode == "zeros" else list(source.far_padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.antialias > 0:
            x = centred_blur(x, self.stride, self.antialias)
        if self.padding_mode != "zeros":
            x = extend_ends(x, self.padding, self.padding_mode)
        return centred_windows(x, self.reach, self.stride, self.total)


def _prepared(source: Any) -> tuple[nn.Module, list[int]]:
    """What comes before the convolutions of a layer, and the zero padding that is left to them."""
    padding, ndim = list(source.padding), source.spatial_dims
    on_grid = max(source.stride) == 1 and not any(getattr(source, "far_padding", ()))
    if isinstance(source, CentredConvNd) and not on_grid:
        return FoldedCentring(source), [0] * ndim
    if source.padding_mode == "zeros":
        return nn.Identity(), padding
    return FoldedEnds(padding, source.padding_mode), [0] * ndim


def _rings(
    source: Any, padding: Sequence[int], outputs: Sequence[int], bias: Tensor | None
) -> tuple[nn.ModuleList, list[nn.ModuleList]]:
    """Modules that sum over each ring, and for each part of the output channels, those that mix the sums."""
    ndim = source.spatial_dims
    basis, weights = scaled_rings(source.current_basis().detach(), source.weight.detach())
    sums, mixes = nn.ModuleList(), [nn.ModuleList() for _ in outputs]
    for ring, ends in enumerate(ring_ends(basis)):
        stencil = cropped_ring(basis, ring, ends)
        margin = [pad - end * step for pad, end, step in zip(padding, ends, source.dilation, strict=True)]
        weight, mixing = weights[:, :, ring], {"kernel_size": 1}
        crop = [min(amount, 0) for amount in reversed(margin) for _ in range(2)]
        before = [getattr(nn, f"ZeroPad{ndim}d")(tuple(crop))] if any(crop) else []
        shape = {"stride": source.stride, "padding": tuple(max(amount, 0) for amount in margin)}
        if stencil.numel() == 1:
            weight, mixing = weight * stencil.flatten(), {**mixing, **shape}
        else:
            size = {"kernel_size": tuple(stencil.shape[1:]), "dilation": source.dilation, "bias": False, **shape}
            channels = {"in_channels": source.in_channels, "out_channels": source.in_channels}
            before.append(_convolution(source, stencil, {**channels, **size, "groups": source.in_channels}, fixed=True))
        sums.append(nn.Sequential(*before) if before else nn.Identity())
        for mix, part, count in zip(mixes, weight.split(list(outputs)), outputs, strict=True):
            offset = bias if ring == 0 else None
            arguments = {**mixing, "in_channels": source.in_channels, "out_channels": count, "groups": source.groups}
            mix.append(_convolution(source, part, {**arguments, "bias": offset is not None}, offset))
    return sums, mixes


def _convolution(
    source: Any, weight: Tensor, arguments: dict[str, Any], bias: Tensor | None = None, fixed: bool = False
) -> nn.Module:
    """A plain convolution on the device and in the dtype of ``source``; ``weight`` has the axes that are longer than 1."""
    factory = {"device": source.weight.device, "dtype": source.weight.dtype}
    layer: Any = Conv["CONV", source.spatial_dims](**{**factory, **arguments})
    values = weight.unsqueeze(1) if fixed else weight.reshape(layer.weight.shape)
    return filled(layer, values, bias, source.weight.requires_grad and not fixed)


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
        centred: bool

    def forward(self, x: Tensor) -> Tensor:
        if not self.centred:
            x = extend_ends(x, list(self.padding), self.padding_mode)
            margin = [0] * len(self.stride)
            return conv_nd(x, self.weight, self.bias, list(self.stride), margin, list(self.dilation), self.groups)
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
    """``torch.nn.Conv1d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`, or with ends of any reach."""


class FoldedConv2d(_Folded, nn.Conv2d):
    """``torch.nn.Conv2d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`, or with ends of any reach."""


class FoldedConv3d(_Folded, nn.Conv3d):
    """``torch.nn.Conv3d`` on a centred grid, see :func:`monai_sre.ops.conv.centred_conv`, or with ends of any reach."""


class FoldedConvTranspose1d(_FoldedTranspose, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


class FoldedConvTranspose2d(_FoldedTranspose, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


class FoldedConvTranspose3d(_FoldedTranspose, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` onto a centred grid, see :func:`monai_sre.ops.conv.centred_conv_transpose`."""


#: By number of spatial axes.
FOLDED = (FoldedConv1d, FoldedConv2d, FoldedConv3d)
FOLDED_TRANSPOSED = (FoldedConvTranspose1d, FoldedConvTranspose2d, FoldedConvTranspose3d)
