"""How exactly converted networks commute with the lattice symmetries, beside swapping their convolutions alone.

    python -m benchmarks.conversion [--slow]

writes ``benchmarks/results/conversion.json`` and ``conversion.md``. Errors are the largest relative error over all symmetries
(of converted networks in float64 all 8 in 2-D, else those that generate the group) and sizes;
``max|f(g x) - g f(x)| / max|f(x)|``.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

import monai_sre
from monai_sre import convert_to_sre
from monai_sre.layers import SREConv1d, SREConv2d, SREConv3d
from monai_sre.symmetry import LatticeSymmetry, lattice_generators, lattice_symmetries
from tests.nets.networks import ARCHITECTURES

RESULTS = Path(__file__).parent / "results"


def naive_swap(network: nn.Module) -> nn.Module:
    """Radial kernels in place of odd convolutions, with their strides and paddings as they are; nothing else is touched."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or any(k % 2 == 0 for k in child.kernel_size):
                continue
            kind = (SREConv1d, SREConv2d, SREConv3d)[len(child.kernel_size) - 1]
            layer = kind(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                child.stride,
                child.padding,
                child.dilation,
                child.groups,
                child.bias is not None,
            )
            setattr(parent, name, layer)
    return network


def stir(network: nn.Module) -> nn.Module:
    """Random biases and statistics, so that no term vanishes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


def worst_error(network: nn.Module, x: Tensor, symmetries: Sequence[LatticeSymmetry]) -> float:
    """Largest relative error over the symmetries."""
    worst = 0.0
    with torch.no_grad():
        outputs = tree_leaves(network(x))
        for symmetry in symmetries:
            for old, new in zip(outputs, tree_leaves(network(symmetry(x).contiguous())), strict=True):
                wanted = symmetry(old) if old.dim() > 2 else old
                if wanted.shape != new.shape:
                    return float("inf")
                worst = max(worst, float((wanted - new).abs().max() / wanted.abs().max()))
    return worst


def measure(slow: bool) -> list[dict[str, Any]]:
    """One row a network and number of spatial axes."""
    rows = []
    for architecture in ARCHITECTURES:
        for ndim in (2, 3):
            if not slow and ndim in architecture.slow and ndim == 3:
                continue
            some = list(lattice_generators(ndim).values())
            group = list(lattice_symmetries(ndim).values()) if ndim == 2 else some
            row: dict[str, Any] = {"network": architecture.name, "spatial_dims": ndim}
            row["sizes"] = [list(size) for size in architecture.sizes[ndim]]
            torch.manual_seed(0)
            naive = naive_swap(stir(architecture.build(ndim))).double().eval()
            torch.manual_seed(0)
            original = stir(architecture.build(ndim)).eval()
            converted = convert_to_sre(original, verify=False)
            for name, network, dtype, symmetries in (
                ("naive", naive, torch.float64, some),
                ("float64", converted, torch.float64, group),
                ("float32", converted, torch.float32, some),
            ):
                network.to(dtype)
                row[name] = max(
                    worst_error(network, torch.randn(1, 1, *size, dtype=dtype), symmetries)
                    for size in architecture.sizes[ndim]
                )
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| network | axes | sizes | layers swapped | converted, float64 | converted, float32 |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        sizes = ", ".join("x".join(map(str, size)) for size in row["sizes"])
        errors = " | ".join(f"{row[name]:.0e}" for name in ("naive", "float64", "float32"))
        lines.append(f"| {row['network']} | {row['spatial_dims']} | {sizes} | {errors} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="also 3-D networks that take long")
    rows = measure(parser.parse_args().slow)
    machine = {"torch": torch.__version__, "monai": monai.__version__, "monai_sre": monai_sre.__version__}
    machine |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "conversion.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (RESULTS / "conversion.md").write_text(table(rows))


if __name__ == "__main__":
    main()
