"""``apps.json`` gives MONAI Label and MONAI Deploy what they read of a bundle: the map is that of our own inference."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image

from tests.bundles import running
from tests.bundles.inferring import SEGMENTATION, VOLUMES, infer

BUNDLES = {2: SEGMENTATION, 3: VOLUMES}


def source(folder: Path, dims: int) -> tuple[Path, MetaTensor]:
    """An oblong image as a file, and as an application reads it: channels last or none, and not on the bundle's grid."""
    if dims == 2:
        rows, columns = np.indices((72, 90))
        vessel = np.exp(-(((rows - 36 - 15 * np.sin(columns / 15)) / 6) ** 2))
        pixels = (np.array([170, 90, 40]) - vessel[..., None] * [25, 50, 25]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "image.png")
        return folder / "image.png", MetaTensor(torch.from_numpy(pixels), meta={"original_channel_dim": -1})
    volume = np.asarray(nibabel.load(Path(nibabel.__file__).parent / "tests/data/anatomical.nii").dataobj)[:, 8:32]
    affine = np.array([[0, 1.2, 0, 5], [-1, 0, 0, 20], [0, 0, 1.5, -3], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), folder / "image.nii.gz")
    meta = {"original_channel_dim": "no_channel"}
    return folder / "image.nii.gz", MetaTensor(torch.from_numpy(volume.astype(np.float32)), affine=affine, meta=meta)


def wanted(folder: Path, dims: int, path: Path) -> np.ndarray:
    """The map that the bundle's own inference writes."""
    infer(BUNDLES[dims], path, folder / "own", report=False)
    if dims == 2:
        return np.asarray(Image.open(folder / "own/image_seg.png")) // 255
    return np.asarray(nibabel.load(folder / "own/image_seg.nii.gz").dataobj)


def served(config: ConfigParser, item: dict[str, Any], network: torch.nn.Module) -> np.ndarray:
    """What both applications do: transforms of one item, a batch of one through the inferer, transforms of its first item."""
    data = config.get_parsed_content("preprocessing")(item)
    with torch.no_grad():
        found = config.get_parsed_content("inferer")(data["image"][None], network)
    data["pred"] = MetaTensor(found[0], meta=data["image"].meta)
    pred = config.get_parsed_content("postprocessing")(data)["pred"]
    assert pred.shape[0] == 1
    return pred[0].numpy()


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_label(dims: int, tmp_path: Path) -> None:
    """One file of configs, made from both; an image's path, under two names; the device as a text."""
    bundle, (path, _) = BUNDLES[dims], source(tmp_path, dims)
    config = ConfigParser()
    config.read_config(running.config_files(bundle, "inference", "apps"))
    ConfigParser.export_config_file(config.config, str(tmp_path / "inference.json"))
    config = ConfigParser()
    config.read_config(str(tmp_path / "inference.json"))
    config.config.update({"bundle_root": str(bundle), "device": "cpu"})
    network = config.get_parsed_content("network_def", instantiate=True).eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    expected = wanted(tmp_path, dims, path)
    assert len(np.unique(expected)) > 1
    item = {"image": str(path), "image_path": str(path)}
    np.testing.assert_array_equal(served(config, dict(item), network), expected)
    values = [0, 100, 200][:dims]  # of a model whose masks had these; two classes in 2-D, three in 3-D
    config.config["label_values"] = values
    config.parse(reset=True)
    np.testing.assert_array_equal(served(config, item, network), np.array(values)[expected])


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_deploy(dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TorchScript file alone, in another folder: configs and the model's description from within."""
    bundle, (path, image) = BUNDLES[dims], source(tmp_path, dims)
    expected = wanted(tmp_path, dims, path)
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models/model.pt"),
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=[
            str(bundle / "configs/inference.json"),
            str(bundle / "models/model.json"),
            str(bundle / "configs/apps.json"),
        ],
        bundle_root=str(bundle),
        key_in_ckpt="",
    )
    monkeypatch.chdir(tmp_path)
    config = ConfigParser()
    with zipfile.ZipFile("model.ts") as file:
        file.extractall("archive", [name for name in file.namelist() if name.startswith("model/extra/")])
    config.read_meta("archive/model/extra/metadata.json")
    config.read_config([f"archive/model/extra/{name}.json" for name in ("inference", "model", "apps")])
    config.parse()
    shapes = config["_meta_"]["network_data_format"]
    assert (list(shapes["inputs"]), list(shapes["outputs"])) == (["image"], ["pred"])
    np.testing.assert_array_equal(served(config, {"image": image}, torch.jit.load("model.ts")), expected)
