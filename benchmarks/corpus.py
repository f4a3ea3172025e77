"""What becomes of the networks that people use: exact, refused and why, or failed.

    pip install torch torchvision timm segmentation-models-pytorch dynamic-network-architectures  # into an environment apart
    python -m benchmarks.corpus fill [--only PATTERN ...] [--again]
    python -m benchmarks.corpus report

``fill`` converts one network after the other, with random weights, each in a process of its own with a limit of processor
time and of memory, and writes ``benchmarks/results/corpus.json`` after each; networks that are there already are left out.
``report`` writes ``corpus.md``. Some networks (:data:`DEPLOYED`) also take a step of training, are folded and go to ONNX.

The error is the largest of :func:`monai_sre.equivariance_error` in float64, over sizes that the network accepts (odd, even
and unequal ones where it does) and over the symmetries of the grid (all 8 in 2-D, those that generate the 48 in 3-D and for
images of more than 128 pixels a side). Exact: at most 1e-9; networks amplify rounding.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import io
import multiprocessing
import re
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module, metadata
from multiprocessing.connection import Connection
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn

from benchmarks.tables import RESULTS, markdown, read_json
from monai_sre import conversion_report, convert_to_sre, equivariance_error, fold_sre
from monai_sre.convert.trial import Unrounded
from monai_sre.files import write_json
from monai_sre.symmetry.error import tensors_of
from tests.nets.networks import ARCHITECTURES, varied

PACKAGES = ("torch", "monai", "torchvision", "timm", "segmentation-models-pytorch", "dynamic-network-architectures")
#: The largest error that counts as exact.
EXACT = 1e-9
#: Seconds of processor time, and bytes of memory, that a network may take.
SECONDS, BYTES = 150, 8 << 30
#: Sizes to measure at; the first three that the network accepts.
SIZES = {
    2: ((75, 61), (64, 96), (96, 64), (128, 128), (224, 224), (256, 256), (320, 320), (512, 512)),
    3: ((33, 36, 32), (37, 37, 37), (32, 48, 32), (64, 64, 64), (32, 112, 112), (16, 224, 224)),
}


def _names(text: str) -> list[str]:
    return text.split()


TIMM = _names("""
    resnet18 resnet50d resnetblur50 resnetaa50 ecaresnet26t seresnet18 resnext50_32x4d resnet50_gn resnetrs50
    resnetv2_50 resnetv2_50d_evos resnetv2_50d_frn resnetv2_50x1_bit
    res2net50_26w_4s resnest14d skresnet18 legacy_seresnet18 legacy_seresnext26_32x4d tresnet_m
    nf_resnet50 nf_regnet_b0 eca_nfnet_l0 dm_nfnet_f0
    regnetx_002 regnety_002 regnetv_040 regnetz_b16 gernet_s mobileone_s0 repvgg_a0 gcresnet33ts resnext26ts resnet51q
    resnet50_clip lambda_resnet26t bat_resnext26ts botnet26t_256 halonet26t sebotnet33ts_256
    densenet121 densenetblur121d dla34 dla60_res2net dpn48b hrnet_w18_small vovnet39a ese_vovnet19b_dw selecsls42
    cs3darknet_s cspresnet50 cspdarknet53 darknetaa53 cspnext_tiny
    efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 efficientnetv2_rw_t efficientnet_cc_b0_4e efficientnet_blur_b0
    mobilenetv1_100 mobilenetv2_050 mnasnet_050 semnasnet_050 fbnetc_100 spnasnet_100 mixnet_s tf_mixnet_s tinynet_e
    mobilenetv3_small_100 tf_mobilenetv3_small_100 lcnet_050 fbnetv3_b mobilenetv4_conv_small mobilenetv4_conv_blur_medium
    mobilenetv4_hybrid_medium lcnetv2_small hardcorenas_a ghostnet_050 ghostnetv2_100 ghostnetv3_050 repghostnet_050
    rexnet_100 hgnet_tiny hgnetv2_b0 repvit_m1 starnet_s1 fasternet_t0
    convnext_atto convnextv2_atto convmixer_768_32 inception_next_atto mambaout_femto focalnet_tiny_srf rdnet_tiny
    poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18
    edgenext_xx_small xcit_nano_12_p16_224 coat_lite_tiny coatnet_pico_rw_224 maxvit_pico_rw_256 mobilevit_xxs mobilevitv2_050
    efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 levit_conv_128s nextvit_small pvt_v2_b0
    swiftformer_xs shvit_s1 iformer_t csatv2
    inception_v3 inception_v4 inception_resnet_v2 xception41 legacy_xception nasnetalarge pnasnet5large vgg11_bn
""")
#: Without the tables of positions that they are refused for.
WITHOUT_POSITIONS: dict[str, dict[str, Any]] = {
    "edgenext_xx_small": {"use_pos_emb": (False,) * 4},
    "xcit_nano_12_p16_224": {"use_pos_embed": False},
}
#: Trained for a step, folded and run by ONNX Runtime.
DEPLOYED = ("smp Unet resnet18",)
#: What a network may have besides grids, pads and pools that cannot be made symmetric, by words of its refusal.
OBSTACLES = {
    "tables of positions, windows": r"position embedding|positions enter by",
    "a flattened map in front of the head": "makes features of positions",
    "positions turned into channels, or channels into positions": "positions into channels|rows of channels",
    "pools or convolutions along flattened positions": "along positions in a row",
    "kernels of unequal sides that change the size": "kernel_size=.* differs",
    "random numbers in eval mode": "draws random numbers",
}
TORCHVISION = _names("""
    alexnet vgg11_bn resnet18 resnext50_32x4d densenet121 squeezenet1_1 googlenet inception_v3 mobilenet_v2
    mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny maxvit_t
    fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
""")
TORCHVISION_3D = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
SMP_ENCODERS = (
    "resnet18",
    "timm-resnest14d",
    "mobilenet_v2",
    "efficientnet-b0",
    "timm-regnetx_002",
    "tu-convnext_atto",
)
SMP_DECODERS = _names("Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus PAN UPerNet Segformer DPT")


@dataclass(frozen=True)
class Network:
    """One network of the corpus.

    Attributes:
        name: with the package in front.
        build: makes it, with random weights.
        spatial_dims: number of its spatial axes.
        options: of the conversion.
    """

    name: str
    build: Callable[[], nn.Module]
    spatial_dims: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of its input."""
        return 1 if self.name.startswith(("MONAI", "nnU-Net")) else 3


def corpus() -> Iterator[Network]:
    """All networks, those of a package after another's."""
    timm, vision, smp = (import_module(name) for name in ("timm", "torchvision", "segmentation_models_pytorch"))
    for name in TIMM:
        yield Network(f"timm {name}", partial(timm.create_model, name, num_classes=10))
    for name, options in WITHOUT_POSITIONS.items():
        yield Network(f"timm {name} without positions", partial(timm.create_model, name, num_classes=10, **options))
    for name in (*TORCHVISION, *TORCHVISION_3D):
        kwargs = {"weights": None, "num_classes": 10}
        kwargs |= {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
        kwargs |= {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        build = partial(vision.models.get_model, name, **kwargs)
        video = name in TORCHVISION_3D  # of two axes in space and one in time
        yield Network(f"torchvision {name}", build, 3 if video else 2, {"axes": (1, 2)} if video else {})
    for encoder in SMP_ENCODERS:
        yield Network(f"smp Unet {encoder}", partial(smp.Unet, encoder, encoder_weights=None, classes=2))
    for decoder in SMP_DECODERS[1:]:
        encoder = {"Segformer": "mit_b0", "DPT": "tu-vit_tiny_patch16_224"}.get(decoder, "resnet18")
        build = partial(getattr(smp, decoder), encoder, encoder_weights=None, classes=2)
        yield Network(f"smp {decoder} {encoder}", build)
    for architecture in ARCHITECTURES:
        for dims in architecture.sizes:
            yield Network(f"MONAI {architecture.name} {dims}-D", partial(architecture.build, dims), dims)
    for name, build_of in MONAI.items():
        for dims in (2, 3):
            yield Network(f"MONAI {name} {dims}-D", partial(build_of, dims), dims)
    yield from nnunet()


MONAI: dict[str, Callable[[int], nn.Module]] = {
    "BasicUNet++": lambda d: nets.BasicUNetPlusPlus(d, 1, 2, features=(4, 4, 8, 8, 16, 4)),
    "MedNeXt-S": lambda d: nets.MedNeXt(d, 8, 1, 2, kernel_size=3, use_residual_connection=True),
    "SegResNetDS": lambda d: nets.SegResNetDS(d, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1, 1)),
    "RegUNet": lambda d: nets.RegUNet(d, 1, 4, depth=2, out_channels=d, extract_levels=(0, 1, 2)),
    "VoxelMorphUNet": lambda d: nets.VoxelMorphUNet(d, 2, 8, (4, 4, 8, 8), (8, 8)),
    "AutoencoderKL": lambda d: nets.AutoencoderKL(
        d, channels=(8, 8), num_res_blocks=(1, 1), attention_levels=(False, False), latent_channels=2, norm_num_groups=4
    ),
    "VQVAE": lambda d: nets.VQVAE(
        d,
        1,
        1,
        channels=(8, 8),
        num_res_layers=1,
        num_res_channels=(8, 8),
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
    ),
    "PatchDiscriminator": lambda d: nets.PatchDiscriminator(d, 8, 1),
    "UNETR": lambda d: nets.UNETR(1, 2, (32,) * d, 8, 48, 96, 4, spatial_dims=d),
    "SwinUNETR": lambda d: nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=d),
    "ViT": lambda d: nets.ViT(1, (32,) * d, (8,) * d, 48, 96, 2, 4, classification=True, spatial_dims=d),
}


def nnunet() -> Iterator[Network]:
    """As nnU-Net plans them, narrow: kernels of 3, and an image of thick slices."""
    unet = import_module("dynamic_network_architectures.architectures.unet")
    for dims in (2, 3):
        conv, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "InstanceNorm"))
        for thick in (False, True)[: dims - 1]:
            stages = 4
            kernels = [
                [1 if thick and stage < 2 and axis == 0 else 3 for axis in range(dims)] for stage in range(stages)
            ]
            strides = [[1 if stage == 0 else min(k, 2) for k in kernels[stage]] for stage in range(stages)]
            for kind, blocks in (
                ("PlainConvUNet", {"n_conv_per_stage": 2}),
                ("ResidualEncoderUNet", {"n_blocks_per_stage": 1}),
            ):
                build = partial(
                    getattr(unet, kind),
                    input_channels=1,
                    n_stages=stages,
                    features_per_stage=[4, 8, 16, 16],
                    conv_op=conv,
                    kernel_sizes=kernels,
                    strides=strides,
                    num_classes=2,
                    n_conv_per_stage_decoder=1,
                    conv_bias=True,
                    norm_op=norm,
                    norm_op_kwargs={"eps": 1e-5, "affine": True},
                    nonlin=nn.LeakyReLU,
                    nonlin_kwargs={"inplace": True},
                    **blocks,
                )
                options = {"axes": (1, 2)} if thick else {}
                yield Network(f"nnU-Net {kind} {dims}-D{' thick slices' if thick else ''}", build, dims, options)


def examine(network: Network) -> dict[str, Any]:
    """What becomes of one network."""
    torch.manual_seed(0)
    module = varied(network.build()).double()
    for parameter in module.parameters():  # a table of zeros would hide that it breaks the symmetry
        if parameter.requires_grad and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    row: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in module.parameters())}
    original = copy.deepcopy(module).eval()  # some keep in eval mode what they have computed
    inputs, shapes = [], []
    for size in SIZES[network.spatial_dims]:
        x = torch.randn(1, network.channels, *size, dtype=torch.float64)
        try:
            with Unrounded():
                shapes.append(_shapes(original, x))
        except Exception:  # a size that does not suit it, whatever it raises
            continue
        inputs.append(x)
        if len(inputs) == 3 or (inputs and size[0] >= 128):
            break
    row["sizes"] = [list(x.shape[2:]) for x in inputs]
    verify: Any = True if len(inputs) != 1 else inputs[0]
    del original
    try:
        converted = convert_to_sre(module, verify=verify, **network.options).eval()
    except (ValueError, TypeError) as error:
        return {**row, "state": "refused", "why": reasons(str(error))}
    report = conversion_report(converted)
    row["replaced"] = len(report.replaced)
    with Unrounded():
        row |= judged(converted, inputs, shapes, network.options)
    return {**row, **deployed(converted.float(), inputs)} if network.name in DEPLOYED else row


@torch.no_grad()  # with its graph, what some keep of their last run could not be copied
def judged(converted: nn.Module, inputs: list[Tensor], shapes: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """The errors of a converted network."""
    row: dict[str, Any] = {}
    report = conversion_report(converted)
    row["error"] = max([*report.errors.values(), *(error_at(converted, x, options) for x in inputs)])
    if [_shapes(converted, x) for x in inputs] != shapes:
        return {**row, "state": "failed", "why": ["the shapes of its outputs have changed"]}
    if inputs:
        out = tensors_of(converted(inputs[0]))
        again = tensors_of(fold_sre(copy.deepcopy(converted))(inputs[0]))
        gaps = [float((a - b).norm() / a.norm()) for a, b in zip(out, again, strict=True) if a.is_floating_point()]
        row["folded"] = max(gaps)
    exact = row["error"] <= EXACT and row.get("folded", 0.0) <= EXACT
    return {**row, "state": "exact" if exact else "failed"}


def deployed(network: nn.Module, inputs: list[Tensor]) -> dict[str, Any]:
    """Losses before and after a step of training; then the relative differences of ONNX Runtime's outputs. In float32."""
    import onnxruntime

    x, *others = (image.float() for image in inputs)
    target = torch.zeros_like(network(x))
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    losses = []
    network.train()
    for _ in range(2):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(network(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    folded, file = fold_sre(copy.deepcopy(network.eval())), io.BytesIO()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    torch.onnx.export(folded, (x,), file, input_names=["x"], dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    gaps = {}
    for image in (x, *others):
        with torch.no_grad():
            expected = network(image)
        gap = (torch.from_numpy(session.run(None, {"x": image.numpy()})[0]) - expected).norm() / expected.norm()
        gaps["x".join(map(str, image.shape[2:]))] = float(gap)
    return {"losses": losses, "onnx": gaps, "onnx_bytes": len(file.getvalue())}


@torch.no_grad()
def error_at(network: nn.Module, x: Tensor, options: dict[str, Any]) -> float:
    """The largest relative error under the symmetries that the network is to have."""
    few = x.dim() == 5 or max(x.shape[2:]) > 128
    transforms: Any = "generators" if few else "lattice"
    if "axes" in options:
        transforms = {"rot90": lambda t: t.rot90(1, (-2, -1)), "flip": lambda t: t.flip(-1)}
    return max(equivariance_error(network, x, transforms).values())


@torch.no_grad()
def _shapes(network: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tensors_of(network(x))]


def reasons(message: str) -> list[str]:
    """The lines of a refusal, with the paths of packages cut short."""
    message = re.sub(r"/[^\s():]*/site-packages/", "", message)
    lines = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    return lines or [message]


def alone(network: Network) -> dict[str, Any]:
    """:func:`examine` in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    started = time.monotonic()
    process = context.Process(target=_child, args=(network, theirs))
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = ours.recv()
    except EOFError:
        row = {"state": "failed", "why": [f"it took more than {SECONDS} s of processor time, or ended by itself"]}
    process.join()
    return {"network": network.name, **row, "wall_s": round(time.monotonic() - started, 1)}


def _child(network: Network, answer: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    begun = time.process_time()
    try:
        row = examine(network)
    except BaseException as error:
        row = {"state": "failed", "why": [f"{type(error).__name__}: {error}"[:500]]}
    answer.send({**row, "seconds": round(time.process_time() - begun, 1)})


def fill(patterns: Sequence[str], again: bool) -> None:
    """Examine what is not there yet, or what is chosen."""
    path = RESULTS / "corpus.json"
    rows = {row["network"]: row for row in read_json(path, {"rows": []})["rows"]}
    networks = list(corpus())
    for network in networks:
        chosen = not patterns or any(fnmatch.fnmatch(network.name, pattern) for pattern in patterns)
        if not chosen or (network.name in rows and not again):
            continue
        rows[network.name] = row = alone(network)
        print(
            row["network"], row["state"], row.get("error", ""), row.get("why", [""])[0][:200], row["wall_s"], flush=True
        )
        order = {each.name: index for index, each in enumerate(networks)}
        kept = sorted((row for name, row in rows.items() if name in order), key=lambda row: order[row["network"]])
        versions = {name: metadata.version(name) for name in PACKAGES}
        write_json(path, {"versions": versions, "rows": kept})


def table(content: dict[str, Any]) -> str:
    """The rows in Markdown, with a summary by package before them."""
    rows = content["rows"]
    states = ("exact", "refused", "failed")
    counts = Counter((row["network"].split()[0], row["state"]) for row in rows)
    packages = list(dict.fromkeys(row["network"].split()[0] for row in rows))
    summary = [[name, *(str(counts[name, state]) for state in states)] for name in packages]
    summary.append(["all", *(str(sum(row["state"] == state for row in rows)) for state in states)])
    lines = [
        "# What becomes of the networks that people use",
        "",
        ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + "; random weights, float64.",
        "Error: the largest over the sizes and the symmetries of the grid; folded: of the outputs after `fold_sre`.",
        "",
        markdown(["package", *states], summary),
        obstacles(rows),
        "A step of training (SGD, float32), then `fold_sre`, `torch.onnx.export`, and ONNX Runtime at each size: the",
        "relative difference of its outputs from those of the converted network.",
        "",
        markdown(["network", "loss before", "after", "differences in ONNX Runtime", "MB"], exported(rows)),
    ]
    cells = []
    for row in rows:
        sizes = ", ".join("x".join(map(str, size)) for size in row.get("sizes", []))
        errors = [f"{row[key]:.0e}" if key in row else "" for key in ("error", "folded")]
        why = row.get("why", [])
        text = why[0].replace("|", "/") + (f" (and {len(why) - 1} more)" if len(why) > 1 else "") if why else ""
        cells.append([row["network"], sizes, row["state"], *errors, text])
    lines.append(markdown(["network", "sizes", "", "error", "folded", "why"], cells))
    return "\n".join(lines)


def obstacles(rows: Sequence[dict[str, Any]]) -> str:
    """How many networks have an obstacle besides grids, pads and pools, and how many of the others are exact."""
    found: Counter[str] = Counter()
    for row in rows:
        if row["state"] == "refused":
            why = " ".join(row["why"])
            found[next((name for name, words in OBSTACLES.items() if re.search(words, why)), "")] += 1
    more = sum(count for name, count in found.items() if name)
    exact = sum(row["state"] == "exact" for row in rows)
    lines = [
        f"{more} networks have obstacles besides grids, pads and pools; of the other {len(rows) - more}, {exact} are exact.",
        "",
        markdown(["obstacle", "networks"], [[name, str(found[name])] for name in OBSTACLES]),
    ]
    return "\n".join(lines)


def exported(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The cells of those of :data:`DEPLOYED`."""
    return [
        [
            row["network"],
            *(f"{loss:.4g}" for loss in row["losses"]),
            ", ".join(f"{size}: {gap:.0e}" for size, gap in row["onnx"].items()),
            f"{row['onnx_bytes'] / 1e6:.0f}",
        ]
        for row in rows
        if "onnx" in row
    ]


def main() -> None:
    """Fill or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fill", "report"))
    parser.add_argument("--only", nargs="*", default=[], help="patterns of names, such as 'timm res*'")
    parser.add_argument("--again", action="store_true", help="also those that are there already")
    chosen = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if chosen.what == "fill":
        fill(chosen.only, chosen.again)
    (RESULTS / "corpus.md").write_text(table(read_json(RESULTS / "corpus.json")))


if __name__ == "__main__":
    main()
