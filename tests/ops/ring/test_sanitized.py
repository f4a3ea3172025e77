"""The C engine under AddressSanitizer and UBSan, its scratch memory full of NaN: it reads and writes nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: Random convolutions and energies of images down to one pixel: values and gradients against float64.
PROGRAM = """
import math, random, sys
import torch
from torch.nn import functional
from monai_sre.ops import add_energies, harmonic_energy, harmonic_stencils
from monai_sre.ops.ring.energy_portable import cat_groups
from monai_sre.ops.ring import cpu, energy_cpu
from tests.ops.ring.rings import DTYPES, check, error, fitted, random_basis
from tests.ops.test_energy import reference

def poisoned(name, count, dtype):
    return torch.full((count,), math.nan, dtype=dtype)

cpu.workspace = energy_cpu.workspace = poisoned  # of the size that is asked for, made anew at each call
torch.set_num_threads(2)
draw, done = random.Random(0), 0
while done < int(sys.argv[1]):
    ndim, dtype, groups = draw.choice((1, 2, 3)), draw.choice(list(DTYPES)), draw.choice((1, 1, 2, 3))
    kernel = tuple(draw.randint(1, (9, 6, 4)[ndim - 1]) for _ in range(ndim))
    size = tuple(draw.randint(1, (90, 24, 9)[ndim - 1]) for _ in range(ndim))
    channels = groups * draw.choice((1, 2, 5)), groups * draw.choice((1, 3, 13))
    basis = random_basis(draw.randint(1, 5), kernel)
    sizes = fitted(basis, size, (draw.randint(1, 3), draw.choice((-1, 0, 1, 4)), draw.randint(1, 3), groups))
    if sizes is None:
        continue
    assert cpu.compiled_for(dtype) and energy_cpu.compiled_for(dtype)
    check(basis, size, sizes, dtype, channels)
    stencils = harmonic_stencils(1 if ndim == 1 else draw.choice((1, 2)), ndim, taps=draw.choice((3, 5)))
    x = torch.randn(2, channels[0], *size, dtype=dtype, requires_grad=True)
    for value, exact in zip(*(
        (out, *torch.autograd.grad(out.square().sum(), x))
        for out in (harmonic_energy(x, stencils.to(dtype)), reference(x, stencils, 1e-3))
    )):
        assert error(value, exact) < 10 * DTYPES[dtype]
    parts = [torch.randn(draw.randint(1, 7), count, *size, dtype=dtype) for count in channels]
    parts = [part[: min(map(len, parts))].requires_grad_() for part in parts]
    weight, bias = (torch.randn(channels[1], *more, dtype=dtype) for more in ((channels[0] // groups, *[1] * ndim), ()))
    operands = [*parts, weight.requires_grad_(), bias.requires_grad_()]
    mixed = add_energies(cat_groups([parts[1], parts[0]], groups), [stencils.to(dtype)], weight, bias, groups)
    energies = reference(parts[0], stencils, 1e-3)
    plain = parts[1] + getattr(functional, f"conv{ndim}d")(energies, weight.double(), bias.double(), groups=groups)
    for value, exact in zip(*((out, *torch.autograd.grad(out.square().sum(), operands)) for out in (mixed, plain))):
        assert error(value, exact) < 10 * DTYPES[dtype]
    done += 1
print(done, "configurations")
"""


@pytest.mark.slow
def test_memory_and_arithmetic(tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if not gcc:
        pytest.skip("needs gcc")
    needed = [
        "libasan.so",
        "libubsan.so",
        "libstdc++.so.6",
    ]  # the last for exceptions of other libraries, under the first
    found = [
        subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in needed
    ]
    if not all(map(os.path.isabs, found)):
        pytest.skip(f"needs gcc with {', '.join(needed)}")
    environment = {
        **os.environ,
        "CC": f"{gcc} -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g",
        "MONAI_SRE_CACHE": str(tmp_path),
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, "150"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert "150 configurations" in done.stdout
    assert len(list(tmp_path.glob("*.so"))) == 4  # both sources, both precisions
