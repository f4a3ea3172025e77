"""What :mod:`benchmarks.gpu` measures, part by part: each names its rows and says how they are made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ignite.engine import Events
from monai.utils import set_determinism
from torch import Tensor, nn

from benchmarks.audit import CLASSES, MAPS, _unet
from benchmarks.bundles import BUNDLES, Model, Source, parsed
from benchmarks.choice import random_layers
from benchmarks.kernel_bounds import CASES, Case
from benchmarks.layers import layer_step
from benchmarks.networks import NETWORKS, PLAIN, build, resnet, training_step
from benchmarks.peers import escnn_layer, peer_layer
from benchmarks.timing import Effort, interleaved
from monai_sre import layers as sre
from monai_sre.ops import expand_kernel, harmonic_stencils, radial_basis
from monai_sre.ops.conv import ALGORITHM_VARIABLE
from monai_sre.ops.ring import gpu
from monai_sre.ops.ring.energy_portable import exported_energies

#: What is computed with: whether TF32 is allowed, and whether under autocast.
MODES = {"float32": (False, False), "float32, TF32": (True, False), "bfloat16": (True, True)}
PLAIN_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Algorithms between which the networks' rows choose: ours in Triton, as torch's own convolutions, and the dense kernel.
RING, PORTABLE, DENSE = "Triton", "portable", "dense"


@dataclass(frozen=True)
class Bench:
    """Where and how long is measured.

    Args:
        device: ``"cuda"``, or ``"cpu"`` in a tiny run.
        tiny: whether sizes are tiny and rounds few.
    """

    device: torch.device
    tiny: bool

    @property
    def modes(self) -> tuple[str, ...]:
        return ("bfloat16",) if self.tiny else ("bfloat16", "float32", "float32, TF32")

    @property
    def effort(self) -> Effort:
        return Effort(0.0, quick=True) if self.tiny else Effort(0.3, clock="device", rounds=7)


@contextmanager
def precision(mode: str, device: torch.device) -> Iterator[None]:
    """Compute as one of :data:`MODES` says."""
    tf32, autocast = MODES[mode]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(allow_tf32=tf32), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def asking(module: nn.Module, algorithm: str) -> nn.Module:
    """A copy of a module, whose radial layers take an algorithm as a user would ask for it."""
    own = deepcopy(module)
    for part in own.modules():
        if hasattr(part, "algorithm"):
            part.algorithm = DENSE if algorithm == DENSE else "ring"  # type: ignore[assignment]
    return own


def with_kernels(step: Callable[[], Any], algorithm: str) -> Callable[[], Any]:
    """A step as it is, or without the kernels in Triton for :data:`PORTABLE`."""
    if algorithm != PORTABLE:
        return step

    def run() -> Any:
        with patch.object(gpu, "usable", _never):
            return step()

    return run


def _never(*_: Any) -> bool:
    return False


def with_precision(step: Callable[[], Any], mode: str, device: torch.device) -> Callable[[], Any]:
    """A step that computes as one of :data:`MODES` says."""

    def run() -> Any:
        with precision(mode, device):
            return step()

    return run


def timed(steps: dict[str, Callable[[], Any]], bench: Bench, graphs: bool = False) -> dict[str, Any]:
    """Times and peak memory of steps; those that fail are named with their errors.

    Args:
        graphs: whether each is also captured as a CUDA graph and replayed, which leaves the time of the device alone.
    """
    failed: dict[str, str] = {}
    peaks: dict[str, float] = {}
    for name in () if bench.tiny else list(steps):
        try:
            steps[name]()
            if bench.device.type == "cuda":
                peaks[name] = peak_mib(steps[name])
                if graphs:
                    steps[f"{name}, graph"] = captured(steps[name])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            if name not in peaks:  # it does not run at all, while a step that only cannot be captured does
                del steps[name]
    found = {"times": interleaved(steps, bench.effort) if steps else {}, "peak_mib": peaks}
    return found | ({"failed": failed} if failed else {})


def peak_mib(step: Callable[[], Any]) -> float:
    """MiB by which what torch allocates on the device rises at most while a step runs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of a step that was captured as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# --- correctness


def part_correctness(bench: Bench, rows: Callable[..., Any]) -> None:
    """Relative errors of values and gradients; :func:`wrong` lists those that are too large."""
    shapes: Sequence[tuple[tuple[int, ...], int, int]] = (
        ((3, 5, 33), 9, 7),
        ((4, 32, 32, 32), 5, 32),
        ((4, 24, 17, 15), 9, 40),
        ((2, 160, 8, 8), 5, 144),
        ((2, 16, 12, 11, 13), 5, 16),
        ((1, 8, 9, 9, 9), 7, 24),
    )
    if bench.tiny:
        shapes = (((1, 3, 5, 4), 3, 2), ((1, 2, 3, 4, 3), 3, 2))
    for shape, kernel, outputs in shapes:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for last in (False, True) if len(shape) > 3 and not bench.tiny else (False,):
                named = str(dtype).removeprefix("torch.")
                where = f"{_text(shape)} to {outputs}, k={kernel}, {named}{', channels last' if last else ''}"
                for stride in (1, 2) if not bench.tiny or dtype == torch.float32 else (1,):
                    rows(
                        f"{where}, stride {stride}",
                        lambda a=(shape, kernel, outputs, dtype, last, stride): layer_errors(bench, *a),
                    )
                if len(shape) > 3 and not (bench.tiny and len(shape) > 4):
                    rows(f"{where}, energies", lambda a=(shape, dtype, last): energy_errors(bench, *a))
    for ndim in (2,) if bench.tiny else (2, 3):
        rows(f"logits, {ndim}-D, float32", lambda n=ndim: logit_errors(bench, n))


def layer_errors(
    bench: Bench, shape: tuple[int, ...], kernel: int, outputs: int, dtype: torch.dtype, last: bool, stride: int
) -> dict[str, Any]:
    """Errors of a convolution with Gaussian rings in Triton."""
    ndim = len(shape) - 2
    basis = radial_basis((kernel,) * ndim, profile="gaussian").double().to(bench.device)
    x, weight, bias = _operands(bench, dtype, shape, (outputs, shape[1], len(basis)), (outputs,))
    x = _channels_last(x) if last else x
    geometry = ([stride] * ndim, [kernel // 2] * ndim, [1] * ndim)
    values = [operand.double().requires_grad_() for operand in (x, weight, bias)]
    convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[ndim - 1]
    exact = convolve(values[0], expand_kernel(values[1], basis), values[2], *geometry)
    (slope,) = _operands(bench, dtype, tuple(exact.shape))
    wanted = [exact, *torch.autograd.grad(exact, values, slope.double())]
    with precision("float32", bench.device):
        basis = basis.float()
        found: list[Any] = [gpu.ring_conv(x, weight, bias, basis, *geometry)]
        found += gpu.ring_conv_gradients(slope, x, weight, basis, *geometry, (True, True, True))
    return _errors(("values", "by input", "by weights", "by bias"), found, wanted)


def energy_errors(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> dict[str, Any]:
    """Errors of energies of orders 1 and 2 in Triton, alone and mixed into other maps."""
    (x,) = _operands(bench, dtype, shape)
    x = _channels_last(x) if last else x
    stencils = [harmonic_stencils(order, len(shape) - 2).to(bench.device) for order in (1, 2)]
    value = x.double().requires_grad_()
    exact = torch.cat(exported_energies(value, [stencil.double() for stencil in stencils], 1e-3), dim=1)
    (slope,) = _operands(bench, dtype, tuple(exact.shape))
    (by_x,) = torch.autograd.grad(exact, value, slope.double(), retain_graph=True)
    own = [stencil.float() for stencil in stencils]
    radial, mixer = _operands(bench, dtype, shape, (shape[1], exact.shape[1], *[1] * (len(shape) - 2)))
    (by_sum,) = _operands(bench, dtype, shape)
    weight = mixer.double().requires_grad_()
    mixed = radial.double() + torch.einsum("oc...,nc...->no...", weight.flatten(1), exact)
    with precision("float32", bench.device):
        values, _ = gpu.energies(x, own, 1, 1e-3)
        again, gradient = gpu.energies(x, own, 1, 1e-3, slope)
        added = gpu.add_energies(radial, x, own, mixer, None, 1, 1e-3)
        by_maps, by_weight, _ = gpu.add_energies_gradients(by_sum, x, mixer, own, 1, 1e-3, (True, True, False))
    return _errors(
        ("values", "values with gradient", "by input", "mixed", "mixed, by input", "mixed, by weights"),
        (values, again, gradient, added, by_maps, by_weight),
        (exact, exact, by_x, mixed, *torch.autograd.grad(mixed, (value, weight), by_sum.double())),
    )


def logit_errors(bench: Bench, ndim: int) -> dict[str, Any]:
    """Difference between the ring algorithm and the dense one in a whole network's logits and gradients."""
    torch.manual_seed(0)
    network, x = (
        _network("energies 5", ndim, 8, bench),
        torch.randn(2, 1, *(24 if ndim == 2 else 12,) * ndim, device=bench.device),
    )
    x = x[..., :3, :3] if bench.tiny else x
    network.eval()  # statistics of a batch would differ by more than rounding where variances are small

    def outputs(algorithm: str) -> list[Tensor]:
        own = asking(network, algorithm)
        logits = own(x)
        return [logits, *torch.autograd.grad(logits.square().sum(), list(own.parameters()))]

    with precision("float32", bench.device):
        pairs = list(zip(outputs(RING), outputs(DENSE), strict=True))
    worst = max(_error(found, wanted) for found, wanted in pairs[1:])
    return {"errors": {"logits": _error(*pairs[0]), "gradients": worst}}


def _operands(bench: Bench, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(bench.device, dtype) for shape in shapes]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _errors(names: Sequence[str], found: Sequence[Any], wanted: Sequence[Tensor]) -> dict[str, Any]:
    return {"errors": {name: _error(*pair) for name, *pair in zip(names, found, wanted, strict=True)}}


def _error(found: Tensor, wanted: Tensor) -> float:
    value, exact = found.detach().double(), wanted.detach().double()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))


# --- layers


def part_layers(bench: Bench, rows: Callable[..., Any]) -> None:
    """The shapes of ``benchmarks/kernel_bounds.py``, so that times stand beside bounds."""
    cases = (Case((1, 8, 2, 2), 3, "tiny"),) if bench.tiny else CASES
    for mode in bench.modes:
        for case in cases:
            for training in (False, True):
                what = "training" if training else "forward"
                rows(f"{case.name}, {mode}, {what}", lambda a=(case, mode, training, False): layer_times(bench, *a))
    for case in () if bench.tiny else (CASES[0], CASES[7]):
        rows(
            f"{case.name}, bfloat16, channels last, training",
            lambda c=case: layer_times(bench, c, "bfloat16", True, True),
        )


def layer_times(bench: Bench, case: Case, mode: str, training: bool, last: bool) -> dict[str, Any]:
    """All candidates on one shape."""
    ndim, channels = len(case.shape) - 2, case.shape[1]
    sizes: dict[str, Any] = {"kernel_size": case.kernel, "padding": case.kernel // 2, "bias": False}
    radial = (sre.SREConv1d, sre.SREConv2d, sre.SREConv3d)[ndim - 1](channels, channels, **sizes)
    harmonic = (sre.SREHarmonicConv1d, sre.SREHarmonicConv2d, sre.SREHarmonicConv3d)[ndim - 1](
        channels, channels, **sizes
    )
    plain = PLAIN_LAYERS[ndim - 1](channels, channels, 3, padding=1, bias=False)
    built: dict[str, tuple[nn.Module | None, str]] = {
        RING: (radial, RING),
        PORTABLE: (radial, PORTABLE),
        DENSE: (radial, DENSE),
        f"energies, {RING}": (harmonic, RING),
        f"energies, {PORTABLE}": (harmonic, PORTABLE),
        PLAIN: (plain, DENSE),
        "SRE-Conv": (peer_layer("SRE_Conv", ndim, channels, case.kernel), DENSE),
        "GMR-Conv": (peer_layer("GMR_Conv", ndim, channels, case.kernel), DENSE),
        "escnn": (escnn_layer(channels, case.kernel) if ndim == 2 else None, DENSE),
    }
    x = torch.randn(case.shape, device=bench.device, dtype=torch.bfloat16 if mode == "bfloat16" else torch.float32)
    x = (_channels_last(x) if last else x).requires_grad_(training)
    grad = torch.randn_like(x)
    steps = {}
    for name, (layer, algorithm) in built.items():
        if layer is not None:
            own = asking(layer, algorithm).to(bench.device)
            step = layer_step(own, [p for p in own.parameters() if p.requires_grad], x, grad, not training)
            steps[name] = with_kernels(with_precision(step, mode, bench.device), algorithm)
    return {"shape": list(case.shape), "kernel": case.kernel, "mode": mode} | timed(steps, bench, graphs=True)


# --- networks


def part_networks(bench: Bench, rows: Callable[..., Any]) -> None:
    """Networks of the bundles' kinds, then what is compiled, then those of the published packages."""
    planar: Sequence[str] = ("energies 5", "radial 5", "radial 9, 9, 5, 5")
    solid: Sequence[str] = ("energies 5", "radial 5")
    if bench.tiny:
        planar = planar[:2]
    for mode in bench.modes:
        rows(f"2-D ResNet18, {mode}", lambda m=mode: network_times(bench, 2, planar, m))
        if not bench.tiny:
            rows(f"3-D ResNet18, {mode}", lambda m=mode: network_times(bench, 3, solid, m))
    for mode in bench.modes[:2]:
        rows(f"3-D U-Net, {mode}", lambda m=mode: unet_times(bench, m))
    for ndim, kinds in ((2, planar[1:2]),) if bench.tiny else ((2, solid), (3, solid)):
        label = f"{ndim}-D ResNet18, bfloat16, compiled"
        rows(label, lambda n=ndim, k=kinds: network_times(bench, n, k, "bfloat16", compiled=True))
    if not bench.tiny:
        rows("2-D ResNet18, bfloat16, channels last", lambda: network_times(bench, 2, planar, "bfloat16", last=True))
        for published in NETWORKS:
            for mode in bench.modes[:2]:
                rows(f"{published.name}, {mode}", lambda r=published, m=mode: published_times(bench, r, m))


def network_times(
    bench: Bench, ndim: int, kinds: Sequence[str], mode: str, compiled: bool = False, last: bool = False
) -> dict[str, Any]:
    """Networks of the bundles' widths, by all algorithms."""
    shape = (2, 1, *(3,) * ndim) if bench.tiny else (128, 3, 32, 32) if ndim == 2 else (16, 1, 32, 32, 32)
    networks = {kind: _network(kind, ndim, 32 if ndim == 2 else 16, bench, shape[1]) for kind in (PLAIN, *kinds)}
    return _network_times(bench, networks, shape, mode, compiled, last)


def _network(kind: str, ndim: int, width: int, bench: Bench, in_channels: int = 1) -> nn.Module:
    """A network; one layer of kernel 3 and a head in a tiny run."""
    if bench.tiny:
        radial, harmonic = ((sre.SREConv2d, sre.SREHarmonicConv2d), (sre.SREConv3d, sre.SREHarmonicConv3d))[ndim - 2]
        made = {PLAIN: PLAIN_LAYERS[ndim - 1], "radial 5": radial, "energies 5": harmonic}[kind]
        first = made(in_channels, 8, 3, padding=1)
        return nn.Sequential(
            first, (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[ndim - 2](1), nn.Flatten(), nn.Linear(8, CLASSES)
        )
    return resnet(kind, ndim, in_channels, CLASSES, width).to(bench.device)


def unet_times(bench: Bench, mode: str) -> dict[str, Any]:
    """U-Nets for volumes against DynUNet with batch norms."""
    if bench.tiny:
        networks = {PLAIN: nn.Conv3d(1, CLASSES, 3, padding=1), "radial 5": sre.SREConv3d(1, CLASSES, 3, padding=1)}
        return _network_times(bench, networks, (1, 1, 3, 3, 3), mode, maps=True)
    networks = {
        PLAIN: _unet(PLAIN, norm_name="batch", act_name=("relu", {"inplace": True})),
        "energies 5": _unet("energies", conv="harmonic"),
        "radial 5": _unet("radial"),
    }
    shape = (2, 1, 96, 96, 96)
    return _network_times(bench, networks, shape, mode, maps=True) | {"channels": list(MAPS)}


def published_times(bench: Bench, row: Any, mode: str) -> dict[str, Any]:
    """The published networks beside ours of the same layout."""
    built = {name: build(row, name) for name in (PLAIN, "auto", "SRE-Conv", "GMR-Conv")}
    networks = {name.replace("auto", "ours"): network for name, network in built.items() if network is not None}
    return _network_times(bench, networks, row.shape, mode)


def _network_times(
    bench: Bench,
    networks: dict[str, nn.Module],
    shape: tuple[int, ...],
    mode: str,
    compiled: bool = False,
    last: bool = False,
    maps: bool = False,
) -> dict[str, Any]:
    x = torch.randn(shape, device=bench.device)
    x = _channels_last(x) if last else x
    steps: dict[str, Callable[[], Any]] = {}
    for name, network in networks.items():
        ours = any(hasattr(module, "algorithm") for module in network.modules())
        for algorithm in ((RING,) if compiled else (RING, PORTABLE, DENSE)) if ours else ("",):
            own = asking(network, algorithm).to(bench.device)
            own = own.to(memory_format=torch.channels_last) if last and x.dim() == 4 else own
            run: Any = torch.compile(own, backend="aot_eager" if bench.tiny else "inductor") if compiled else own
            for what, step in (("training", training_step(run, x, CLASSES, maps)), ("forward", _inference(run, x))):
                label = ", ".join(part for part in (name, algorithm, what) if part)
                steps[label] = with_kernels(with_precision(step, mode, bench.device), algorithm)
    return {"shape": list(shape), "mode": mode} | timed(steps, bench)


def _inference(network: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return network(x)

    return run


# --- training of the bundles


def part_training(bench: Bench, rows: Callable[..., Any]) -> None:
    """The bundles' own loops: loader, augmentation, network, optimiser and trainer, without validation and files."""
    models = {"energies": Model("the bundle's"), PLAIN: Model("plain", ("plain.json",))}
    for ndim, batch in ((2, 128), (3, 128)):
        for name, model in models.items():
            for amp in (True,) if bench.tiny else (True, False):
                label = f"{ndim}-D bundle, {name}, {'bfloat16' if amp else 'float32'}"
                rows(label, lambda a=(ndim, 4 if bench.tiny else batch, model, amp): loop(bench, *a))


def loop(bench: Bench, ndim: int, batch: int, model: Model, amp: bool) -> dict[str, Any]:
    """Images per second over whole epochs after the first, and in the last the share of time in which a kernel runs."""
    size, epochs, images = (8, 2, 8) if bench.tiny else (28, 4, 16 * batch)
    bundle = BUNDLES / f"medmnist_{ndim}d_classification"
    with TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(set_determinism, None)
        stack.enter_context(patch.dict(os.environ, {ALGORITHM_VARIABLE: "ring"}))
        file = Path(folder) / "random.npz"
        shape, few = (size,) * ndim + ((3,) if ndim == 2 else ()), max(4, images // 16)
        draw = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for split, count in (("train", images), ("val", few), ("test", few)):
            arrays[f"{split}_images"] = draw.integers(0, 255, (count, *shape), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
        np.savez(file, **arrays)
        source = Source("random", bundle, ndim, {"bundle_root": str(bundle)})
        own = [entry for entry in source.recipe["train"]["handlers"] if entry["_target_"].endswith("EpochSeed")]
        settings: dict[str, Any] = {"dataset_name": str(file), "size": size, "batch_size": batch, "amp": amp}
        settings |= {"max_epochs": epochs, "learning_rate": 1e-4, "output_dir": folder, "device": bench.device}
        settings |= {"train#handlers": own, "train#reports": []}
        if bench.tiny:
            narrow = {"network_def#block_inplanes": [4, 8, 16, 32]} if model.overlays else {"network_def#width": 4}
            settings |= narrow
        parser = parsed(source, model)
        parser.update(settings)
        parser.get_parsed_content("initialize")
        trainer = parser.get_parsed_content("train#trainer")
        clock = _EpochClock(bench.device, epochs)
        for event in (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED):
            trainer.add_event_handler(event, clock)
        trainer.run()
    seconds = sorted(clock.seconds[1:-1] or clock.seconds)
    found = {
        "images": images,
        "batch": batch,
        "images_per_s": images / seconds[len(seconds) // 2],
        "all_s": clock.seconds,
    }
    return found | ({} if clock.busy is None else {"busy": clock.busy})


class _EpochClock:
    """Seconds of each epoch from its start to the end of its last step; the last one is profiled."""

    def __init__(self, device: torch.device, epochs: int) -> None:
        self.device, self.epochs = device, epochs
        self.seconds: list[float] = []
        self.busy: float | None = None
        self.profile: Any = None

    def __call__(self, engine: Any) -> None:
        state = engine.state
        if engine.last_event_name == Events.EPOCH_STARTED:
            if self.device.type == "cuda" and state.epoch == self.epochs:
                self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profile.__enter__()
            self._wait()
            self.begun = time.perf_counter()
        elif state.iteration % state.epoch_length == 0:
            self._wait()
            self.seconds.append(time.perf_counter() - self.begun)
            if self.profile is not None:
                self.profile.__exit__(None, None, None)
                spans = [
                    (event.time_range.start, event.time_range.end)
                    for event in self.profile.events()
                    if event.device_type == torch.autograd.DeviceType.CUDA
                ]
                self.busy = covered(spans) / (self.seconds[-1] * 1e6)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of spans of time.

    Example:
        >>> covered([(0.0, 2.0), (5.0, 6.0), (1.0, 3.0)])
        4.0
    """
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


# --- constants of a cost model


def part_constants(bench: Bench, rows: Callable[..., Any]) -> None:
    """Random layers; :mod:`benchmarks.gpu_tables` fits."""
    drawn = random_layers(2e4 if bench.tiny else 1e11)
    for layer in islice(drawn, 1 if bench.tiny else 80):
        for mode in ("bfloat16",) if bench.tiny else ("bfloat16", "float32"):
            what = "forward" if layer["inference"] else "training"
            name = f"{_text(layer['shape'])} to {layer['out_channels']}, k={layer['kernel']}, {layer['profile']}"
            rows(f"{name}, {mode}, {what}", lambda a=(layer, mode): random_times(bench, *a))


def random_times(bench: Bench, layer: dict[str, Any], mode: str) -> dict[str, Any]:
    """Dense, ring and portable on one of :func:`benchmarks.choice.random_layers`."""
    shape, kernel, inference = layer["shape"], layer["kernel"], layer["inference"]
    made = (sre.SREConv1d, sre.SREConv2d, sre.SREConv3d)[len(shape) - 3]
    own = made(shape[1], layer["out_channels"], kernel, padding=kernel // 2, bias=False, profile=layer["profile"])
    x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16 if mode == "bfloat16" else torch.float32)
    x.requires_grad_(not inference)
    grad = torch.randn(shape[0], layer["out_channels"], *shape[2:], device=bench.device, dtype=x.dtype)
    steps = {}
    for name in (DENSE, RING, PORTABLE):
        asked = asking(own, name).to(bench.device)
        step = layer_step(asked, list(asked.parameters()), x, grad, inference)
        steps[name] = with_kernels(with_precision(step, mode, bench.device), name)
    return {**layer, "shape": list(shape), "mode": mode} | timed(steps, bench)


def _text(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


# --- all of them

PARTS: dict[str, Callable[[Bench, Callable[..., Any]], None]] = {
    "correctness": part_correctness,
    "layers": part_layers,
    "networks": part_networks,
    "training": part_training,
    "constants": part_constants,
}
