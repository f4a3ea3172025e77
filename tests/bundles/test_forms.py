"""The forms that MONAI asks of every bundle: metadata, properties, loading and export by its own commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from PIL import Image
from torch import nn

from monai_sre import load_network
from monai_sre.description import load_description
from tests.bundles.inferring import BUNDLES, CLASSIFICATION, SEGMENTATION, VOLUMES
from tests.bundles.running import config_files

every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def metadata_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs/metadata.json").read_text())
    return content


def forms(bundle: Path, config: str) -> dict[str, Any]:
    """What the commands of ``monai.bundle`` are told of a bundle."""
    return {
        "meta_file": str(bundle / "configs/metadata.json"),
        "config_file": config_files(bundle, config)[0],
        "bundle_root": str(bundle),
    }


@every_bundle
def test_metadata_is_valid(tmp_path: Path, bundle: Path) -> None:
    copy = tmp_path / "schema.json"
    copy.write_bytes((Path(__file__).parent / "meta_schema_20240725.json").read_bytes())
    monai.bundle.verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(copy))
    metadata = metadata_of(bundle)
    assert metadata["version"] in metadata["changelog"]


@every_bundle
def test_metadata_and_description_say_the_same(bundle: Path) -> None:
    metadata, model = metadata_of(bundle), load_description(bundle / "models/model.json")
    image, pred = (metadata["network_data_format"][kind] for kind in ("inputs", "outputs"))
    assert image["image"]["num_channels"] == model["num_channels"]
    assert list(pred["pred"]["channel_def"].values()) == model["class_names"]
    assert pred["pred"]["num_channels"] == len(model["class_names"])
    for name, value in model["metrics"].items():
        assert metadata["eval_metrics"][name] == value
    if bundle in CLASSIFICATION.values():
        assert image["image"]["spatial_shape"] == [model["image_size"]] * model["spatial_dims"]


@every_bundle
def test_network_fits_the_metadata(bundle: Path) -> None:
    """At sizes of which a graph can be made: none that the metadata leave open, for which MONAI takes one pixel."""
    for kind in metadata_of(bundle)["network_data_format"]["inputs"].values():
        assert all(isinstance(length, int) for length in kind["spatial_shape"])
    monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", **forms(bundle, "inference"))


def data(bundle: Path, folder: Path) -> dict[str, Any]:
    """Data to train on that are made in no time."""
    if bundle in CLASSIFICATION.values():
        return {"dataset_name": f"demo_{load_description(bundle / 'models/model.json')['spatial_dims']}d"}
    random = np.random.default_rng(0)
    if bundle == VOLUMES:
        return volumes(folder, random)
    for number in range(3):
        for kind, shape in (("images", (16, 16, 3)), ("labels1", (16, 16))):
            (folder / kind).mkdir(exist_ok=True)
            values = random.integers(0, 2, shape, dtype=np.uint8) * 255
            Image.fromarray(values).save(folder / kind / f"{number}{'.jpg' if kind == 'images' else '_1stHO.png'}")
    return {"dataset_dir": str(folder), "num_val": 1, "num_test": 1, "batch_size": 1, "field_threshold": 0}


def volumes(folder: Path, random: np.random.Generator) -> dict[str, Any]:
    """Five volumes of noise with a list as the Decathlon's."""
    entries = []
    for number in range(5):
        entries.append({"image": f"{number}_image.nii.gz", "label": f"{number}_label.nii.gz"})
        for name in entries[-1].values():
            values = random.integers(0, 3, (12, 12, 12)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name)
    content = {"labels": ["background", "Anterior", "Posterior"], "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return {"dataset_dir": str(folder)}


@every_bundle
@pytest.mark.parametrize("phase", ["train", "inference"])
def test_all_properties_resolve(tmp_path: Path, bundle: Path, phase: str) -> None:
    if phase == "train":
        options = {**data(bundle, tmp_path), "max_epochs": 1}
        left_out = {"train_dataset_data", "val_dataset_data"}  # named by dataset_name or dataset_dir instead
        left_out |= {"train_key_metric", "train_postprocessing"}  # which nobody reads
    else:
        shape = (12,) * load_description(bundle / "models/model.json")["spatial_dims"]
        np.save(tmp_path / "image.npy", np.zeros(shape, dtype=np.uint8))
        options, left_out = {"input": str(tmp_path)}, {"key_metric"}  # there is no truth to measure against
        if "segmentation" in bundle.name:
            left_out.add("postprocessing")  # the writer's, one class at a time; other programs take that of apps.json
    workflow = create_workflow(
        "ConfigWorkflow",
        workflow_type="train" if phase == "train" else "infer",
        logging_file=str(bundle / "configs/logging.conf"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        **forms(bundle, phase),
        **options,
    )
    assert workflow is not None
    assert workflow.check_properties() == []
    for name in set(workflow.properties) - left_out:
        assert getattr(workflow, name) is not None, name
    workflow.finalize()


@every_bundle
def test_bundle_load(bundle: Path) -> None:
    network = monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent), source="monaihosting", device="cpu")
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    loaded = network.state_dict() if isinstance(network, nn.Module) else network
    torch.testing.assert_close(dict(loaded), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("bundle", "shape", "use_trace"),
    [
        (CLASSIFICATION[2], (1, 32, 32), False),
        (CLASSIFICATION[2], (1, 32, 32), True),
        (CLASSIFICATION[3], (1, 28, 28, 28), False),
        (SEGMENTATION, (3, 21, 30), False),
        (VOLUMES, (1, 21, 30, 16), False),
    ],
    ids=["2-D scripted", "2-D traced", "3-D", "vessels", "hippocampus"],
)
def test_torchscript_export(bundle: Path, shape: tuple[int, ...], use_trace: bool, tmp_path: Path) -> None:
    target = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(bundle / "models/model.pt"),
        key_in_ckpt="",
        use_trace=use_trace,
        input_shape=[1, *shape],
        **forms(bundle, "inference"),
    )
    x = torch.randn(2, *shape)
    wanted = load_network(bundle / "models/model.pt")(x)
    torch.testing.assert_close(
        torch.jit.load(str(target))(x), wanted, rtol=1e-4, atol=1e-5 * max(1, float(wanted.abs().max()))
    )


def onnx_export(bundle: Path, target: Path, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """By MONAI's command; what the file gives."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(bundle / "models/model.pt"),
        key_in_ckpt="",
        use_trace=True,
        **options,
        **forms(bundle, "inference"),
    )
    session = onnxruntime.InferenceSession(str(target))
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_onnx_export(tmp_path: Path) -> None:
    """At the size that the metadata say."""
    found, x = onnx_export(CLASSIFICATION[2], tmp_path / "model.onnx"), torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(
        found(x), load_network(CLASSIFICATION[2] / "models/model.pt")(x).detach(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("ndim", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_onnx_of_any_size(ndim: int, tmp_path: Path) -> None:
    """By the command of the bundles' pages; in 2-D the graph holds depthwise convolutions, not the dense kernels.

    Of volumes it sums along one axis after the other: ``tests/convert/test_fold.py``.
    """
    axes = {"dynamic_axes": {"x": dict(zip((0, 2, 3, 4)[: ndim + 1], ("batch", "x", "y", "z"), strict=False))}}
    target = tmp_path / "model.onnx"
    graph = onnx_export(CLASSIFICATION[ndim], target, input_shape=[2, 1, *[32] * ndim], converter_kwargs=axes)
    network = load_network(CLASSIFICATION[ndim] / "models/model.pt")
    for size in ((28, 28, 28), (33, 40, 21)):
        x = torch.randn(3, 1, *size[:ndim])
        torch.testing.assert_close(graph(x), network(x).detach(), rtol=1e-3, atol=1e-3)
    groups = [
        attribute.i
        for node in pytest.importorskip("onnx").load(str(target)).graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group"
    ]
    assert (max(groups) > 16) == (ndim == 2)


def test_exports_of_maps_serve_any_size(tmp_path: Path) -> None:
    """By the command of the bundle's page, and traced."""
    axes = {"dynamic_axes": {"x": {0: "batch", 2: "rows", 3: "columns"}}}
    graph = onnx_export(SEGMENTATION, tmp_path / "model.onnx", input_shape=[2, 3, 64, 64], converter_kwargs=axes)
    network = load_network(SEGMENTATION / "models/model.pt")
    traced = torch.jit.trace(network, torch.randn(1, 3, 24, 24))
    for size in ((33, 48), (7, 6), (130, 99)):
        x = torch.randn(1, 3, *size)
        for found in (graph(x), traced(x)):
            torch.testing.assert_close(found, network(x), rtol=1e-3, atol=1e-3)
