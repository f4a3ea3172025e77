"""Class-activation maps: values, symmetry, grids, and the files that a prediction leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_sre.data import BatchPreprocess, DatasetInfo, FileImages, Grid
from monai_sre.evaluation import AddScores, ClassActivation, PredictionWriter
from monai_sre.nets import SREResNet
from monai_sre.ops.pool import centred_upsample
from monai_sre.symmetry import lattice_symmetries


def network(dims: int, **options: Any) -> SREResNet:
    return SREResNet(dims, 1, 3, **{"width": 4, "kernel_size": 3, "conv": "harmonic", **options}).eval()


# Maps -----------------------------------------------------------------------------------------------------------------


def test_a_map_is_the_linear_layer_at_each_place() -> None:
    net, x, classes = network(2), torch.randn(3, 1, 21, 30), torch.tensor([2, 0, 2])
    features = net.forward_features(x)[-1]
    expected = torch.einsum("nc...,nc->n...", features, net.fc.weight[classes]) + net.fc.bias[classes, None, None]
    torch.testing.assert_close(ClassActivation(net)(x, classes), expected)


def test_of_plain_networks_the_mean_is_the_logit_too() -> None:
    net = ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=2, n_input_channels=1, num_classes=3).eval()
    x = torch.randn(2, 1, 64, 40)
    maps = ClassActivation(net, "layer4")(x, torch.tensor([1, 1]))
    torch.testing.assert_close(maps.mean((1, 2)), net(x)[:, 1])


@pytest.mark.parametrize(
    ("dims", "size", "options"),
    [(2, (28, 35), {}), (3, (14, 11, 17), {"strides": (2, 2, 1, 2)}), (2, (33, 24), {"max_pool": True})],
)
def test_maps_on_the_grid_of_the_image_turn_with_it(dims: int, size: tuple[int, ...], options: dict[str, Any]) -> None:
    activation, x, classes = ClassActivation(network(dims, **options)), torch.randn(1, 1, *size), torch.tensor([1])

    def resampled(image: Tensor) -> Tensor:
        grid = Grid(tuple(image.shape[2:]), np.eye(4))
        return torch.from_numpy(activation.resample(activation(image, classes)[0], grid, grid))

    upright = resampled(x)
    assert float(upright.std()) > 1e-3
    for symmetry in lattice_symmetries(dims).values():
        torch.testing.assert_close(resampled(symmetry(x)), symmetry(upright), atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_pool", [False, True])
def test_pixels_of_the_map_lie_where_the_network_samples(max_pool: bool) -> None:
    """On a centred grid as fine as its strides say, not stretched to the size of the image."""
    activation = ClassActivation(network(2, max_pool=max_pool))
    step, values = (16, torch.randn(2, 3)) if max_pool else (8, torch.randn(4, 5))
    grid = Grid((28, 35), np.eye(4))
    expected = centred_upsample(values[None, None], step, [28, 35])[0, 0]
    torch.testing.assert_close(torch.from_numpy(activation.resample(values, grid, grid)), expected)


@pytest.mark.parametrize("name", ["stages.4", "layer4", ""])
def test_a_layer_that_the_network_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}'; its modules are conv1, .*stages\.3"):
        ClassActivation(network(2), name)
    with pytest.raises(ValueError, match="linear layer 'fc' of Sequential"):
        ClassActivation(nn.Sequential(nn.Conv2d(1, 2, 3)), "0")


# Files ----------------------------------------------------------------------------------------------------------------


def predict(
    source: Path, target: Path, net: SREResNet, maps: bool = True, task: str = "multi-class"
) -> PredictionWriter:
    info = DatasetInfo("toy", net.spatial_dims, 16, task, 1, 3, ("a", "b", "c"))
    writer = PredictionWriter(target, info, ClassActivation(net) if maps else None)

    def process(engine: Engine, batch: Any) -> Any:
        engine.state.batch = batch
        with torch.no_grad():
            return AddScores(task)({"image": batch["image"], "pred": net(batch["image"])})

    engine = Engine(process)
    writer.attach(engine)
    engine.run(DataLoader(FileImages(source, info, BatchPreprocess(None)), batch_size=2))
    return writer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_file_that_can_be_read_has_its_map_and_predictions_stay(tmp_path: Path) -> None:
    source, rng, net = tmp_path / "in", np.random.default_rng(0), network(2)
    (source / "sub").mkdir(parents=True)
    arrays = {name: rng.random((16, 12)) for name in ("a.npy", "sub/a.npy", "d.npy")}
    for name, array in {**arrays, "b.npy": np.full((16, 16), np.nan), "sub/c.npy": rng.random((16,) * 3)}.items():
        np.save(source / name, array)
    np.savez(source / "d.npz", arrays["d.npy"])  # its map would have the name of another
    writer = predict(source, tmp_path / "maps", net)
    predict(source, tmp_path / "none", net, maps=False)
    assert [path.name for path in (tmp_path / "none").rglob("*")] == ["predictions.csv"]
    written = {str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.nii.gz")}
    assert written == {"a_activation.nii.gz", "sub/a_activation.nii.gz", "d_activation.nii.gz"}
    for row, other in zip(rows(tmp_path / "maps"), rows(tmp_path / "none"), strict=True):
        assert {key: row[key] for key in other if key != "error"} == {
            key: other[key] for key in other if key != "error"
        }
        name = str(Path(row["file"]).relative_to(source))
        if name == "d.npz":
            assert "is that of another file already" in row["error"]
        else:
            assert row["error"] == other["error"]
        assert bool(row["activation"]) == (name in arrays)
        if name in arrays:
            image = nibabel.load(row["activation"])
            assert np.array_equal(image.affine, np.eye(4))
            assert image.get_data_dtype() == np.float32
            x = torch.from_numpy(arrays[name]).float()[None, None]
            border = torch.cat([x[0, 0, 0], x[0, 0, -1], x[0, 0, 1:-1, 0], x[0, 0, 1:-1, -1]]).median()
            x = (nn.functional.pad(x - border, [2, 2]) + border) * 2 - 1  # to a square of 16
            (features,) = net.forward_features(x)[-1]
            values = torch.einsum("c...,c->...", features, net.fc.weight[int(row["class"])])
            expected = centred_upsample(values[None, None] + net.fc.bias[int(row["class"])], 8, [16, 16])[0, 0, :, 2:14]
            np.testing.assert_allclose(np.asarray(image.dataobj), expected.detach(), atol=1e-5)
    with pytest.raises(SystemExit, match=r"^3 of 6 files could not be used"):
        writer.finish()


def test_of_many_labels_the_map_is_that_of_the_most_probable(tmp_path: Path) -> None:
    net = network(2)
    nn.init.zeros_(net.fc.weight)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((16, 16)))
    for bias, decided in (([-3.0, -1.0, -2.0], ""), ([1.0, 3.0, 2.0], "0 1 2")):
        net.fc.bias.data = torch.tensor(bias)
        predict(tmp_path / "a.npy", tmp_path, net, task="multi-label, binary-class")
        (row,) = rows(tmp_path)
        assert row["class"] == decided
        np.testing.assert_allclose(nibabel.load(row["activation"]).dataobj, np.full((16, 16), bias[1]), atol=1e-6)


@pytest.mark.parametrize("channels", [(), (1,)])
def test_volumes_keep_grid_affine_and_header(tmp_path: Path, channels: tuple[int, ...]) -> None:
    affine = np.array([[0.1, 0.2, -2.9, 40.0], [-1.1, 0.3, 0.2, -7.0], [0.2, -2.0, 0.3, 12.5], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).integers(0, 900, (16, 9, 7, *channels), dtype=np.int16)
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = b"of the scanner"
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    nibabel.save(image, tmp_path / "a.nii.gz")
    predict(tmp_path / "a.nii.gz", tmp_path / "out", network(3))
    source, written = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "out/a_activation.nii.gz")
    assert written.shape == (16, 9, 7)
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    for key in ("descrip", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"):
        assert np.array_equal(written.header[key], source.header[key]), key
    np.testing.assert_allclose(written.header.get_qform(), source.header.get_qform(), atol=1e-6)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms()[:3], atol=1e-6)
    assert written.get_data_dtype() == np.float32
    assert np.isfinite(np.asarray(written.dataobj)).all()
