"""Random configurations of all layers: values and gradients against dense references in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional

from tests.testers import relative_error

CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
Reference = Callable[[nn.Module, Tensor], Tensor]


def geometry(draw: random.Random, ndim: int) -> dict[str, Any]:
    """What a kernel may look like."""
    kernel = [draw.choice((1, 3, 5, 7, 9)[: 6 - ndim]) for _ in range(ndim)]
    options: dict[str, Any] = {"profile": draw.choice(("band", "linear", "gaussian", "isotropic"))}
    options["spacing"] = [draw.choice((1.0, 1.5, 4.0)) for _ in range(ndim)] if draw.random() < 0.3 else None
    options["axes"] = sorted(draw.sample(range(ndim), 2)) if ndim == 3 and draw.random() < 0.3 else None
    options["circular"], options["orthonormal"] = draw.random() < 0.7, draw.random() < 0.3
    if options["profile"] == "isotropic" and (options["axes"] or options["spacing"]):
        options["profile"] = "band"
    return {"kernel_size": kernel, **options}


def convolution(draw: random.Random, ndim: int) -> tuple[nn.Module, int, Reference]:
    groups = draw.choice((1, 1, 2, 3))
    channels, outputs = groups * draw.choice((1, 2, 5)), groups * draw.choice((1, 3, 8))
    shape = geometry(draw, ndim)
    stride = [draw.choice((1, 1, 2, 3)) for _ in range(ndim)]
    dilation = [draw.choice((1, 1, 2)) for _ in range(ndim)]
    mode = draw.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
    padding: Any = "same" if set(stride) == {1} and draw.random() < 0.5 else [draw.randint(0, 2) for _ in range(ndim)]
    layer = Conv["SRECONV", ndim](
        channels, outputs, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode,
        bias=draw.random() < 0.5, algorithm=draw.choice(("auto", "ring", "dense")), **shape,
    )  # fmt: skip
    same = [d * (k - 1) // 2 for d, k in zip(dilation, shape["kernel_size"], strict=True)]
    ends = same if padding == "same" else padding

    def reference(module: Any, x: Tensor) -> Tensor:
        if mode == "zeros":
            x = functional.pad(x, [end for end in reversed(ends) for _ in range(2)])
        else:  # of any size, where torch stops at that of the image
            how: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
            for axis, end in enumerate(ends, start=2):
                x = x.index_select(axis, torch.from_numpy(np.pad(np.arange(x.shape[axis]), end, how)))
        return CONV[ndim - 1](x, module.kernel(), module.bias, stride, 0, dilation, groups)

    return layer, channels, reference


def transposed(draw: random.Random, ndim: int) -> tuple[nn.Module, int, Reference]:
    groups = draw.choice((1, 1, 2))
    channels, outputs = groups * draw.choice((1, 3)), groups * draw.choice((1, 4))
    stride = [draw.randint(1, 3) for _ in range(ndim)]
    sizes: dict[str, Any] = {"stride": stride, "padding": [draw.randint(0, 1) for _ in range(ndim)], "groups": groups}
    sizes["output_padding"] = [draw.randrange(step) for step in stride]
    layer = Conv["SRECONVTRANS", ndim](channels, outputs, bias=draw.random() < 0.5, **sizes, **geometry(draw, ndim))
    return layer, channels, lambda module, x: TRANSPOSED[ndim - 1](x, module.kernel(), module.bias, **sizes)


def harmonic(draw: random.Random, ndim: int) -> tuple[nn.Module, int, Reference]:
    """Radial maps, energies from their definition, mixed."""
    channels, outputs, hidden = draw.choice((1, 3)), draw.choice((2, 5)), draw.choice((1, 2))
    orders = (1,) if ndim == 1 else draw.choice(((1,), (2,), (1, 2), (3,)))
    shape = {"kernel_size": draw.choice((3, 5)), "padding": "same", "hidden_channels": hidden, "orders": orders}
    layer = Conv["SREHARMONICCONV", ndim](channels, outputs, norm=None, **shape)

    def reference(module: Any, x: Tensor) -> Tensor:
        maps = CONV[ndim - 1](x, module.radial.kernel(), module.radial.bias, padding="same")
        parts = [maps[:, outputs:].flatten(0, 1)[:, None], *[energy.stencils[:, None] for energy in module.energies]]
        squares = [CONV[ndim - 1](parts[0], each.double(), padding="same").square().sum(1) for each in parts[1:]]
        energies = torch.cat([(each + 1e-3).sqrt().unflatten(0, (len(x), hidden)) for each in squares], dim=1)
        mixed = CONV[ndim - 1](energies, module.mix.weight, module.mix.bias)
        return maps[:, :outputs] + mixed

    return layer, channels, reference


def pool(draw: random.Random, ndim: int) -> tuple[nn.Module, int, Reference]:
    """Windows of ``kernel_size`` about places that lie alike from both ends; a pixel counts by what of it lies inside."""
    kernel = [draw.randint(1, 4) for _ in range(ndim)]
    stride = [draw.randint(1, 3) for _ in range(ndim)]
    maximum, ceil = draw.random() < 0.5, draw.random() < 0.5
    name = "CENTREDMAX" if maximum else "CENTREDAVG"
    layer = Pool[name, ndim](kernel, stride, ceil_mode=ceil, **({} if maximum else {"count_include_pad": False}))
    plain = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[ndim - 1](kernel, stride, ceil_mode=ceil)

    def reference(_: nn.Module, x: Tensor) -> Tensor:
        counts = plain(x).shape[2:]
        for axis, (k, s, count) in enumerate(zip(kernel, stride, counts, strict=True), start=2):
            size = x.shape[axis]
            places = (torch.arange(count) - (count - 1) / 2) * s
            away = (torch.arange(size) - (size - 1) / 2 - places[:, None]).abs()
            share = ((k + 1) / 2 - away).clamp(0, 1).double()
            x = x.movedim(axis, -1)
            if maximum:
                x = x[..., None, :].expand(*x.shape[:-1], count, size).masked_fill(share == 0, -torch.inf).amax(-1)
            else:
                x = x @ (share / share.sum(1, keepdim=True)).T
            x = x.movedim(-1, axis)
        return x

    return layer, 2, reference


KINDS = {"convolution": convolution, "transposed": transposed, "harmonic": harmonic, "pool": pool}


def check(kind: str, seed: int) -> bool:
    """Compares one configuration; ``False`` where it is none, which the layer and the reference must agree on."""
    draw = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    ndim = draw.choice((1, 2, 3))
    size = [draw.randint(1, (40, 16, 7)[ndim - 1]) for _ in range(ndim)]
    layer, channels, reference = KINDS[kind](draw, ndim)
    exact, x = layer.double(), torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    try:
        wanted = reference(exact, x)
    except RuntimeError:  # the kernel does not fit
        wanted = x[:0]
    if wanted.numel() == 0:
        with pytest.raises((ValueError, RuntimeError)):
            layer(x)
        return False
    leaves = [x, *(parameter for parameter in exact.parameters() if parameter.requires_grad)]
    slope = torch.randn_like(wanted)
    expected = [wanted, *torch.autograd.grad(wanted, leaves, slope, retain_graph=True)]
    found = layer(x)
    assert relative_error([found, *torch.autograd.grad(found, leaves, slope)], expected) < 1e-9
    narrow = layer.float()
    leaves = [x.detach().float().requires_grad_(), *(p for p in narrow.parameters() if p.requires_grad)]
    found = narrow(leaves[0])
    assert relative_error([found, *torch.autograd.grad(found, leaves, slope.float())], expected) < 1e-3
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_random_configurations(kind: str) -> None:
    tried = [check(kind, seed) for seed in range(30)]
    assert sum(tried) > 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_configurations(kind: str) -> None:
    tried = [check(kind, seed) for seed in range(30, 500)]
    assert sum(tried) > 250
