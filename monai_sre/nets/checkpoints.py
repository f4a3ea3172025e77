"""Read what others trained: state dicts of SRE-Conv, SRI-Conv and GMR-Conv into :class:`monai_sre.nets.SREResNet`."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_sre.layers.conv import SREConv1d, SREConv2d, SREConv3d
from monai_sre.ops.arguments import listed
from monai_sre.ops.radial import change_basis

#: Their names to ours, in the order in which they are tried: the 2-D ResNets, and the 3-D ones with their ``stem``.
_BLOCK = (r"^layer(\d)\.(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.{match[2]}.")
_RENAMES: dict[bool, tuple[tuple[str, Any], ...]] = {
    False: ((r"\bbn(\d)\.", r"norm\1."), (r"\bconv(\d)\.1\.", r"conv\1.")),
    True: (
        (r"^stem\.0\.", "conv1."),
        (r"^stem\.1\.", "norm1."),
        (r"\bconv1\.1\.", "conv1."),
        (r"\bconv1\.2\.", "norm1."),
        (r"\bconv2\.0\.", "conv2."),
        (r"\bconv2\.1\.", "norm2."),
    ),
}
_SHORTCUT = ((r"\bdownsample\.1\.", "shortcut.0."), (r"\bdownsample\.2\.", "shortcut.1."))
#: What they keep beside the weights of a radial layer.
_EXTRAS = ("weight_index_mat", "default_weight_index_mat", "mus", "sigmas", "log_sigmas")
#: Share of a kernel's norm that may be lost in our basis: rounding of float32.
_TOLERANCE = 1e-6


def load_sre_checkpoint(network: nn.Module, checkpoint: str | PathLike[str] | Mapping[str, Any]) -> str:
    """Load trained weights of another package, or our own, into an :class:`monai_sre.nets.SREResNet`.

    Understood are the ResNets of SRE-Conv 1.0.2 (18, 34, 50 and ``sre_r3d_18``), SRI-Conv 1.2.5 and GMR-Conv 1.0.3 (and its
    ``gmr_r3d_18``). Their kernels are built as these packages build them (for GMR-Conv with the learned Gaussian mixing of
    its rings) and expressed in the network's basis, so ``orthonormal=True`` serves as well as its default. The outputs
    agree to rounding at the input sizes where every stride of theirs divides, such as 32, 40, 48 and 64.

    A state dict does not say everything. Build the network to match: ``kernel_size``, ``num_rings``, ``strides``,
    ``circular=False`` for SRI-Conv; its ``force_circular=True`` cuts the corners of the stem and of each block's first
    convolution, but not of the second, which ``circular=False`` also holds where kernels have 3 or 5 taps. For larger ones,
    put an ``SREConv2d(..., circular=False)`` in place of each block's ``conv2`` first.

    For a checkpoint trained without ``skip_first_maxpool=True``, SRE-Conv and SRI-Conv need ``max_pool=True``; it samples
    their grid at odd sizes only. The 3-D networks need ``stem_kernel_size=3``: of the (3, 7, 7) stem of theirs only the 19
    taps within 1.5 voxels are alive.

    Args:
        network: the :class:`monai_sre.nets.SREResNet` to fill; untouched when anything does not fit.
        checkpoint: a file written by ``torch.save`` (read with ``weights_only=True``), or a state dict. Either may hold the
            state dict under ``"state_dict"``, ``"model"`` or ``"network"`` (the ``last.pt`` of a bundle), and its names may
            start with ``"module."`` or ``"_orig_mod."``. Our own weights say nothing of their basis: build the network with
            the profile and the ``orthonormal`` that they were trained with.

    Returns:
        Whose it was: ``"SRE-Conv"``, ``"SRI-Conv"``, ``"GMR-Conv"`` or ``"monai_sre"``.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument is of the wrong type.
        ValueError: the file cannot be read, or something does not fit; the message lists what.

    Example:
        >>> from monai_sre.nets import SREResNet
        >>> net = SREResNet(2, 3, 9, width=8)
        >>> load_sre_checkpoint(net, SREResNet(2, 3, 9, width=8).state_dict())
        'monai_sre'
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be an SREResNet, got {type(network).__name__}")
    network = unwrapped(network)
    state = _state_dict(checkpoint)
    wanted = network.state_dict()
    kind = _kind(state, set(wanted))
    problems: list[str] = []
    if kind != "monai_sre":
        state = _translated(_renamed(state), network, problems)
    refused = {problem.split(":")[0] for problem in problems}
    problems += [fault for name, fault in misfits(wanted, state).items() if name not in refused]
    if problems:
        lines = listed(problems, count=12, separator="\n  ")
        raise ValueError(f"the checkpoint (of {kind}) does not fit the network:\n  {lines}")
    network.load_state_dict(state)
    return kind


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote to a file, on the CPU; nothing but tensors and plain containers is accepted.

    Raises:
        ValueError: it cannot be read, or is damaged; the message names it.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # PyTorch does not compare the checksums of what it reads
                damaged = file.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}); expected tensors, as torch.save writes them"
        ) from error


def misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Why entries of a state dict are not those of a network, by their names.

    Example:
        >>> misfits({"weight": torch.ones(1, 2)}, {"weight": torch.ones(1, 3)})
        {'weight': "weight has shape (1, 3), the network's is (1, 2)"}
    """
    faults = {name: f"{name} is not in it" for name in wanted if name not in state}
    faults |= {name: f"the network has no {name}" for name in state if name not in wanted}
    for name in (name for name in wanted if name in state):
        ours, theirs = wanted[name], state[name]
        # a layer reads its width as the scalar that it was once, too
        width = theirs.dim() == 0 and name.split(".")[-1] == "log_width"
        if ours.shape != theirs.shape and not width:
            faults[name] = f"{name} has shape {tuple(theirs.shape)}, the network's is {tuple(ours.shape)}"
        elif ours.is_floating_point() != theirs.is_floating_point():
            faults[name] = f"{name} holds {theirs.dtype}, the network's is {ours.dtype}"
        elif theirs.is_floating_point() and ours.isfinite().all() and not theirs.isfinite().all():
            faults[name] = f"{name} holds values that are not finite"
    return faults


def unwrapped(network: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` or what ``torch.compile`` returns."""
    compiled = getattr(network, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return unwrapped(compiled)
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(network.module)
    return network


def _state_dict(checkpoint: str | PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    if isinstance(checkpoint, (str, PathLike)):
        if not Path(checkpoint).exists():
            raise FileNotFoundError(f"there is no checkpoint {str(checkpoint)!r}")
        content = read_tensors(Path(checkpoint))
    else:
        content = checkpoint
    for key in ("state_dict", "model", "network"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise TypeError(
            f"checkpoint must be a path or a state dict, or hold a state dict, got {type(content).__name__}"
        )
    state = {str(name): value for name, value in content.items()}
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if not state or others:
        raise ValueError(
            f"checkpoint must hold a state dict of tensors, got {f'also {others[:5]}' if state else 'none'}"
        )
    for wrapper in ("_orig_mod.", "module.", "_orig_mod."):  # torch.compile's and DataParallel's, in either order
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return {name: value.cpu() for name, value in state.items()}


def _kind(state: Mapping[str, Tensor], wanted: set[str]) -> str:
    endings = {name.rpartition(".")[2] for name in state}
    if "log_sigmas" in endings:
        return "GMR-Conv"
    if "default_weight_index_mat" in endings:
        return "SRI-Conv"
    if "weight_index_mat" in endings:
        return "SRE-Conv"
    if wanted & set(state):
        return "monai_sre"
    raise ValueError(
        "the checkpoint is none of SRE-Conv, SRI-Conv, GMR-Conv or monai_sre: it holds no 'weight_index_mat' and none of the "
        f"network's names, but {sorted(state)[:5]}"
    )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of :class:`monai_sre.nets.SREResNet`."""
    in_3d = any(name.startswith("stem.") for name in state)
    renamed = {}
    for name, value in state.items():
        for pattern, new in (_BLOCK, *_RENAMES[in_3d], *_SHORTCUT):
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


def _translated(state: Mapping[str, Tensor], network: nn.Module, problems: list[str]) -> dict[str, Tensor]:
    """``state`` with the weights of each radial layer in that layer's basis; what has none is added to ``problems``."""
    layers = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, (SREConv1d, SREConv2d, SREConv3d))
    }
    result = {name: value for name, value in state.items() if name.rpartition(".")[2] not in _EXTRAS}
    for name, value in state.items():
        prefix, _, ending = name.rpartition(".")
        if ending != "weight_index_mat":
            continue
        weight, layer = state.get(f"{prefix}.weight"), layers.get(prefix)
        if weight is None or layer is None:
            continue  # reported as missing, or as not in the network
        result.pop(f"{prefix}.weight")
        try:
            rings = _mixing(state, prefix, len(value.squeeze(0).squeeze(0))) @ value[0, 0].double()
            taps = _fitted(rings, layer.kernel_size)
            found = change_basis(weight.double(), taps, layer.basis.cpu())
            lost = _lost(weight.double(), found, taps, layer.basis.cpu().double())
            if lost > _TOLERANCE:
                raise ValueError(
                    f"{lost:.0%} of its kernels lie outside the network's basis of {layer.num_rings} rings: they have "
                    f"{_description(rings, value.shape[-1], len(layer.kernel_size))}"
                )
            result[f"{prefix}.weight"] = found.to(layer.weight.dtype)
        except (ValueError, IndexError, RuntimeError) as error:
            problems.append(f"{prefix}.weight: {error}")
    return result


def _mixing(state: Mapping[str, Tensor], prefix: str, count: int) -> Tensor:
    """The matrix with which GMR-Conv, and SRI-Conv on request, spreads each ring's weight over its neighbours."""
    places = torch.arange(count, dtype=torch.float64)
    if f"{prefix}.log_sigmas" in state:
        sigmas, root = state[f"{prefix}.log_sigmas"].double().exp(), 2.5066  # their rounding of the root of 2 pi
    elif state.get(f"{prefix}.sigmas") is not None:
        sigmas, root = state[f"{prefix}.sigmas"].double(), math.sqrt(2 * math.pi)
    else:
        return torch.eye(count, dtype=torch.float64)
    sigmas = sigmas.clamp(1e-2, 2 * count)[:, None]
    return torch.exp(-0.5 * ((places[None, :] - places[:, None]) / sigmas).square()) / (sigmas * root)


def _fitted(rings: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Rings ``(b, taps)`` as kernels of the given size: cropped where only zeros are lost, or padded with zeros."""
    theirs = _kernel_size(rings.shape[-1], len(kernel_size), kernel_size)
    taps = rings.reshape(-1, *theirs)
    margins = [(ours - size) // 2 for ours, size in zip(kernel_size, theirs, strict=True)]
    fitted = nn.functional.pad(taps, [margin for margin in reversed(margins) for _ in range(2)])
    if not torch.isclose(fitted.abs().sum(), taps.abs().sum(), rtol=1e-12):
        raise ValueError(f"kernels of size {theirs} have taps beyond the network's {kernel_size}")
    return fitted


def _kernel_size(taps: int, ndim: int, expected: tuple[int, ...]) -> tuple[int, ...]:
    side = round(taps ** (1 / ndim))
    for size in (expected, (side,) * ndim, (3, 7, 7)):
        if len(size) == ndim and math.prod(size) == taps:
            return size
    raise ValueError(f"kernels of {taps} taps fit no {ndim}-D kernel size")


def _lost(weight: Tensor, found: Tensor, theirs: Tensor, ours: Tensor) -> float:
    """Share of the kernels' norm that our basis does not hold."""
    kernel = weight @ theirs.flatten(1)
    rest = kernel - found @ ours.flatten(1)
    return float(rest.norm() / kernel.norm().clamp(min=1e-300))


def _description(rings: Tensor, taps: int, ndim: int) -> str:
    size = _kernel_size(taps, ndim, ())
    live = rings.reshape(-1, *size).abs().sum(dim=0) > 0
    reach = [int((live.movedim(axis, 0).flatten(1).any(dim=1)).sum()) for axis in range(ndim)]
    corners = bool(live[tuple([0] * ndim)])
    alive = f" (alive within {tuple(reach)})" if tuple(reach) != size else ""
    return f"{len(rings)} rings over {size} taps{alive}, as profile='band', circular={not corners} has"
