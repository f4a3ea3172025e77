"""Inference on one image by whole networks, eager and exported: ONNX Runtime and TorchScript.

Each network is timed as it is and in four forms, each in ratio to the plain network in the same form:

* ``onnx``: after :func:`monai_sre.fold_sre`, exported with opset 17;
* ``onnx, bundle``: unfolded, what ``python -m monai.bundle onnx_export`` gives without further options;
* ``script``, ``script, bundle``: TorchScript of both, scripted as ``ckpt_export`` does it, and frozen.

Outputs of all forms are compared with the eager ones. Without ONNX Runtime (``pip install ".[export]"``) its forms are left
out.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from monai.utils import optional_import
from torch import Tensor, nn

from benchmarks.networks import KINDS, PLAIN, resnet
from benchmarks.single import one_layer
from benchmarks.timing import Effort, interleaved
from monai_sre import fold_sre

onnxruntime, HAS_ONNXRUNTIME = optional_import("onnxruntime")
Inference = Callable[[], Tensor]
CLASSES = 9
OPSET = 17
#: Number of spatial axes, channels and width of the networks, size of the image; the first row has goals.
INPUTS = ((2, 3, 32, 64), (3, 1, 16, 32))
#: The ratio that a network should not exceed, eager and in ONNX Runtime.
GOALS = dict(zip(KINDS, (1.0, 1.5, 2.0), strict=True))
GOAL_FORMS = ("eager", "onnx")


def _session(model: bytes, x: Tensor) -> Inference:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _onnx(network: nn.Module, x: Tensor) -> Inference:
    buffer: Any = io.BytesIO()  # which the exporter without dynamo takes, whatever its annotation says
    torch.onnx.export(fold_sre(copy.deepcopy(network)), (x,), buffer, dynamo=False, opset_version=OPSET, verbose=False)
    return _session(buffer.getvalue(), x)


def _onnx_of_bundle(network: nn.Module, x: Tensor) -> Inference:
    with TemporaryDirectory() as folder:
        model = convert_to_onnx(network, [x], filename=str(Path(folder) / "model.onnx"), verbose=False)
    return _session(model.SerializeToString(), x)


def _eager(network: nn.Module, x: Tensor) -> Inference:
    @torch.no_grad()
    def run() -> Tensor:
        return network(x)  # type: ignore[no-any-return]

    return run


def _script_of_bundle(network: nn.Module, x: Tensor) -> Inference:
    return _eager(torch.jit.freeze(convert_to_torchscript(network)), x)


def _script(network: nn.Module, x: Tensor) -> Inference:
    return _script_of_bundle(fold_sre(copy.deepcopy(network)), x)


FORMS: dict[str, Callable[[nn.Module, Tensor], Inference]] = {
    "eager": _eager,
    "onnx": _onnx,
    "onnx, bundle": _onnx_of_bundle,
    "script": _script,
    "script, bundle": _script_of_bundle,
}


def suite_export(effort: Effort) -> list[dict[str, Any]]:
    """Times of all forms of all networks, one row per form."""
    rows = []
    for ndim, channels, width, size in INPUTS[:1] if effort.quick else INPUTS:
        networks = {}
        for kind in (PLAIN, *KINDS) if ndim == 2 else (PLAIN, *KINDS)[:3]:
            whole = None if effort.quick else resnet(kind, ndim, channels, CLASSES, width)
            networks[kind] = (whole or one_layer(kind, channels, CLASSES)).eval()
        x = torch.randn(1, channels, *[size] * ndim)
        for form, make in FORMS.items():
            if form.startswith("onnx") and not HAS_ONNXRUNTIME:
                continue
            steps = {kind: make(network, x) for kind, network in networks.items()}
            for kind, step in steps.items():
                expected = _eager(networks[kind], x)()
                for _ in range(3):  # TorchScript makes a graph anew from what the first runs have shown
                    error = float((step() - expected).norm() / expected.norm())
                    assert error < 1e-4, f"the logits of {kind} as {form} differ by {error}"
            goals = GOALS if ndim == 2 and form in GOAL_FORMS else {}
            times = interleaved(steps, effort)
            rows.append({"shape": list(x.shape), "width": width, "form": form, "times": times, "goals": goals})
            print(tuple(x.shape), form, {kind: round(value["ms"], 2) for kind, value in times.items()}, flush=True)
    return rows
