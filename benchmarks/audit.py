"""What a training step asks of any device, counted and not timed: ours in ratio to plain kernels of 3 with the same skeleton.

A step (forward, cross-entropy, backward, SGD) runs on torch's meta device in float32, which takes the path of every device
but the CPU. Counted are

* ``flops``: those of convolutions and matrix products, by ``torch.utils.flop_counter``;
* ``kept``: bytes held for the backward pass, each storage once, without parameters and buffers;
* ``operations``: those that compute something, so neither views nor what only allocates;
* ``moved``: bytes that these operations read and write. Nothing is fused: sums over rings that are written out and read again
  count as such.

They are counted twice: in torch's own operations, and with the kernels for GPUs (:mod:`monai_sre.ops.ring.gpu`),
each start of which is one operation that reads and writes its tensors once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import KINDS, PLAIN, resnet, training_step
from benchmarks.timing import Effort
from monai_sre.nets import SREUNet
from monai_sre.ops import energy
from monai_sre.ops.ring import convolution, gpu

COUNTS = ("flops", "kept", "operations", "moved")
CLASSES = 2
MAPS = (16, 32, 64)
_ALLOCATING = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")


@dataclass(frozen=True)
class AuditRow:
    """One row: ours, its plain counterpart, the input, and the ratio that each of :data:`COUNTS` should not exceed."""

    name: str
    ours: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    shape: tuple[int, ...]
    goals: tuple[float, ...]
    maps: bool = False


def _unet(kind: str, **options: Any) -> nn.Module:
    if kind != PLAIN:
        return SREUNet(3, 1, CLASSES, channels=MAPS, kernel_size=5, **options)
    network: nn.Module = DynUNet(3, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=MAPS, **options)
    return network


def _rows() -> list[AuditRow]:
    radial, energies = (1.0, 1.0, 2.0, 1.2), (1.0, 1.3, 3.0, 1.6)
    rows = []
    for what, kinds, sizes, shape in (
        ("2-D, width 32", tuple(KINDS), (2, 3, CLASSES, 32), (64, 3, 32, 32)),
        ("3-D, width 16", tuple(KINDS)[:2], (3, 1, CLASSES, 16), (16, 1, 32, 32, 32)),
    ):
        for kind in kinds:
            goals = energies if "energies" in kind else (1.2, 1.0, 2.0, 1.3) if "9" in kind else radial
            rows.append(
                AuditRow(f"{what}, {kind}", partial(resnet, kind, *sizes), partial(resnet, PLAIN, *sizes), shape, goals)
            )
    ours = {
        "radial 5": (partial(_unet, "radial"), radial),
        "energies 5": (partial(_unet, "energies", conv="harmonic"), energies),
    }
    alike = {"norm_name": "batch", "act_name": ("relu", {"inplace": True})}
    for against, norm in (("", alike), (" against instance norms", {"norm_name": "instance"})):
        for kind, (network, goals) in ours.items():
            plain = partial(_unet, PLAIN, **norm)
            name = f"U-Net 3-D, {', '.join(map(str, MAPS))} maps, {kind}{against}"
            rows.append(AuditRow(name, network, plain, (2, 1, 96, 96, 96), goals, maps=True))
    return rows


ROWS = _rows()


class Operations(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write.

    Example:
        >>> x = torch.ones(4, 2)
        >>> with Operations() as operations:
        ...     total = x.T.reshape(8).sum()  # a view, a copy of 8 numbers, and their sum
        >>> operations.count, operations.moved
        (2, 100)
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = self.moved = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "monai_sre" and func._schema.name in _INSIDE:
            with self, patch.object(gpu, "_kernels", lambda: _Kernels(self)):
                return _INSIDE[func._schema.name](*args)
        out = func(*args, **(kwargs or {}))
        read, written = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((_used(func, args), kwargs), out)
        )
        views = {_storage(tensor) for tensor in read} >= {_storage(tensor) for tensor in written}
        if (views and not func._schema.is_mutable) or func._schema.name in _ALLOCATING:
            return out
        if func.namespace != "aten":
            raise NotImplementedError(f"what is inside of {func} is not known: it is no operation of torch's own")
        self.count += 1
        self.moved += sum(_bytes(tensor) for tensor in (*read, *written))
        return out


class _Kernels:
    """In place of the kernels: counts their starts, what they read and write, and their multiplications and additions."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def __getattr__(self, name: str) -> Any:
        return _Start(self.operations, name)


@dataclass(frozen=True)
class _Start:
    operations: Operations
    name: str

    def __getitem__(self, grid: tuple[int, ...]) -> _Start:
        return self

    def __call__(self, *arguments: Any, **constants: Any) -> None:
        tensors = {_storage(argument): argument for argument in arguments if isinstance(argument, Tensor)}
        if self.name != "tables":
            images, channels, *more = [argument for argument in arguments if isinstance(argument, int)]
            *_, size = [argument for argument in arguments if isinstance(argument, tuple) and len(argument) == 3]
            frame = constants["F"]
            mixed = len(constants["STARTS"]) - 1 if "STARTS" in constants else frame.B
            products = frame.B * math.prod(frame.KERNEL) + mixed * (more[0] if more else 0)
            self.operations.flops += 2 * images * math.prod(size) * channels * products
        self.operations.count += 1
        self.operations.moved += sum(_bytes(tensor) for tensor in tensors.values())


#: What our own operators do where they run.
_INSIDE: dict[str, Callable[..., Any]] = {
    "monai_sre::ring_conv": convolution._values,
    "monai_sre::ring_conv_gradients": lambda *args: [
        item for item in convolution._gradients(*args) if item is not None
    ],
    "monai_sre::add_energies": energy._added,
    "monai_sre::add_energies_gradients": lambda *args: [
        item for item in energy._added_gradients(*args) if item is not None
    ],
}


def _used(func: Any, args: Any) -> Any:
    """The arguments that are read: of a convolution's operands, each is needed for the gradient by the other."""
    if func is not torch.ops.aten.convolution_backward.default:
        return args
    grad, x, weight, *others, (by_input, by_weight, _) = args
    return [grad, x if by_weight else None, weight if by_input else None, *others]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Those of the elements, of which an expanded axis holds one."""
    count = 1
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if step or not length else 1
    return count * tensor.itemsize


def audit(network: nn.Module, shape: tuple[int, ...], maps: bool = False, kernels: bool = False) -> dict[str, int]:
    """All of :data:`COUNTS` for a training step of a network on the meta device, perhaps with the kernels for GPUs.

    Example:
        >>> found = audit(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (5, 1, 2, 3))
        >>> found["flops"], found["kept"]  # 2 * 5 * 6 * 2 forward and for the weights; input, log-softmax, target, its weight
        (240, 204)
    """
    network, x = network.to("meta"), torch.empty(shape, device="meta")
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}  # the tensors too: a storage that is gone could give its number to another

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor
        return tensor

    step = training_step(network, x, CLASSES, maps)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    usable = patch.object(gpu, "usable", lambda x, asked: kernels)
    with FlopCounterMode(display=False) as counter, Operations() as operations, hooks, usable:
        step()
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    flops = counter.get_total_flops() + operations.flops
    return dict(zip(COUNTS, (flops, kept, operations.count, operations.moved), strict=True))


def suite_audit(effort: Effort) -> list[dict[str, Any]]:
    """Counts of all rows."""
    rows = []
    for row in ROWS[:2] if effort.quick else ROWS:
        counts = {"ours": audit(row.ours(), row.shape, row.maps), PLAIN: audit(row.plain(), row.shape, row.maps)}
        counts["kernels"] = audit(row.ours(), row.shape, row.maps, kernels=True)
        rows.append(
            {
                "network": row.name,
                "shape": list(row.shape),
                "counts": counts,
                "goals": dict(zip(COUNTS, row.goals, strict=True)),
            }
        )
        for kind in ("ours", "kernels"):
            ratios = {name: round(counts[kind][name] / counts[PLAIN][name], 2) for name in COUNTS}
            print(row.name, kind, ratios, flush=True)
    return rows
