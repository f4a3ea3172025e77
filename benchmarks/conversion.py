"""How exactly converted networks commute with the lattice symmetries, beside swapping their convolutions alone.

    python -m benchmarks.conversion [--slow]

writes ``benchmarks/results/conversion.json`` and ``conversion.md``. The networks are those that the converter is tested on
(``tests/nets/networks.py``). Errors are those of :func:`monai_sre.equivariance_error`, the largest over all sizes and over
the symmetries that generate the group (of converted networks in float64 all 8 in 2-D).
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from typing import Any

import monai
import torch
from torch import nn

import monai_sre
from benchmarks.tables import RESULTS, markdown
from monai_sre import convert_to_sre, equivariance_error
from monai_sre.files import write_json
from monai_sre.layers import SREConv1d, SREConv2d, SREConv3d
from tests.nets.networks import ARCHITECTURES, varied


def swap_layers(network: nn.Module) -> nn.Module:
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


def measure(slow: bool) -> list[dict[str, Any]]:
    """One row per network and number of spatial axes."""
    rows = []
    for architecture in ARCHITECTURES:
        for ndim, sizes in architecture.sizes.items():
            if not slow and ndim == 3 and ndim in architecture.slow:
                continue
            row: dict[str, Any] = {"network": architecture.name, "spatial_dims": ndim, "sizes": [*map(list, sizes)]}
            torch.manual_seed(0)
            swapped = swap_layers(varied(architecture.build(ndim)))
            torch.manual_seed(0)
            converted = convert_to_sre(varied(architecture.build(ndim)), verify=False)
            for kind, network, dtype, transforms in (
                ("naive", swapped, torch.float64, "generators"),
                ("float64", converted, torch.float64, "lattice" if ndim == 2 else "generators"),
                ("float32", converted, torch.float32, "generators"),
            ):
                network.to(dtype)
                row[kind] = max(
                    max(equivariance_error(network, torch.randn(1, 1, *size, dtype=dtype), transforms).values())
                    for size in sizes
                )
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    cells = []
    for row in rows:
        sizes = ", ".join("x".join(map(str, size)) for size in row["sizes"])
        errors = [f"{row[name]:.0e}" for name in ("naive", "float64", "float32")]
        cells.append([row["network"], str(row["spatial_dims"]), sizes, *errors])
    head = ("network", "axes", "sizes", "layers swapped", "converted, float64", "converted, float32")
    return markdown(head, cells)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="also 3-D networks that take long")
    rows = measure(parser.parse_args().slow)
    machine = {"torch": torch.__version__, "monai": monai.__version__, "monai_sre": monai_sre.__version__}
    machine |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
    write_json(RESULTS / "conversion.json", {"machine": machine, "rows": rows})
    (RESULTS / "conversion.md").write_text(table(rows))


if __name__ == "__main__":
    main()
