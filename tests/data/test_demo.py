"""The embedded demo data: layout, disjoint regions, orientation, and that they can be learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_sre.data import demo as demo_module
from monai_sre.data import demo_arrays, demo_info, load_dataset


@pytest.mark.parametrize(("name", "dims", "classes"), [("demo_2d", 2, 6), ("demo_3d", 3, 3)])
def test_layout_is_medmnists(name: str, dims: int, classes: int) -> None:
    arrays, info = demo_arrays(name), demo_info(name)
    assert sorted(arrays) == sorted(f"{s}_{k}" for s in ("train", "val", "test") for k in ("images", "labels"))
    assert (info.spatial_dims, info.num_classes, info.num_channels, info.task) == (dims, classes, 1, "multi-class")
    for split in ("train", "val", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        assert images.dtype == labels.dtype == np.uint8
        assert images.shape == (len(labels), *[28] * dims)
        assert labels.shape == (len(images), 1)
        assert len(set(np.bincount(labels[:, 0], minlength=classes))) == 1  # balanced
        assert images.reshape(len(images), -1).std(1).min() > 5  # no empty patch
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)  # no patch twice


def test_the_same_on_every_call_and_open_as_a_data_set() -> None:
    first = demo_arrays("demo_2d", 16)
    demo_arrays.cache_clear()
    second = demo_arrays("demo_2d", 16)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    data = load_dataset("demo_3d", split="test", size=12)
    assert data.images.shape == (120, 1, 12, 12, 12)
    assert data.labels.bincount().tolist() == [40, 40, 40]


@pytest.mark.parametrize("dims", [2, 3])
def test_no_source_pixel_serves_two_splits(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record every sampling grid: the pixels that linear interpolation touches must be disjoint."""
    used: dict[tuple[int, str], set] = {}
    names = list(demo_module._PICTURES if dims == 2 else demo_module._VOLUMES)
    current: list = []
    real_sample, real_cut = torch.nn.functional.grid_sample, demo_module._cut

    def spy_cut(source, boxes, count, size, turned, random):  # type: ignore[no-untyped-def]
        current[:] = [source.shape, []]
        patches = real_cut(source, boxes, count, size, turned, random)
        touched = used.setdefault((len(used) % len(names), ("train", "val", "test")[len(used) // len(names)]), set())
        for grid in current[1]:
            index = (grid.reshape(-1, dims).flip(-1).numpy() + 1) * np.array(source.shape) / 2 - 0.5
            assert index.min() >= -1e-9
            assert np.all(index.max(0) <= np.array(source.shape) - 1 + 1e-9)
            for corner in np.ndindex(*[2] * dims):
                near = np.where(np.array(corner) == 1, np.ceil(index - 1e-9), np.floor(index + 1e-9)).astype(int)
                touched.update(np.unique(np.ravel_multi_index(tuple(near.T), tuple(source.shape))).tolist())
        return patches

    def spy_sample(x, grid, *args, **kwargs):  # type: ignore[no-untyped-def]
        current[1].append(grid)
        return real_sample(x, grid, *args, **kwargs)

    monkeypatch.setattr(demo_module, "_cut", spy_cut)
    monkeypatch.setattr(demo_module.functional, "grid_sample", spy_sample)
    demo_arrays.__wrapped__("demo_2d" if dims == 2 else "demo_3d", 28 if dims == 2 else 10)
    assert len(used) == 3 * len(names)
    for name in range(len(names)):
        train, val, test = (used[name, split] for split in ("train", "val", "test"))
        assert min(len(train), len(val), len(test)) > 500
        assert not train & val
        assert not train & test
        assert not val & test


def test_training_is_upright_and_the_test_is_turned() -> None:
    """The structure tensor of the bricks points one way in training and all ways in the test."""
    arrays = demo_arrays("demo_2d")

    def directions(split: str) -> np.ndarray:
        images = arrays[f"{split}_images"][arrays[f"{split}_labels"][:, 0] == 0].astype(float)
        rows, columns = np.gradient(images, axis=(1, 2))
        return 0.5 * np.arctan2(2 * (rows * columns).sum((1, 2)), (columns**2 - rows**2).sum((1, 2)))

    def concentration(angles: np.ndarray) -> float:  # 1: all the same, 0: uniform
        return float(np.abs(np.exp(2j * angles).mean()))

    assert concentration(directions("train")) > 0.8
    assert concentration(directions("test")) < 0.35


def test_names_and_sizes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="demo_4d"):
        demo_info("demo_4d")
    with pytest.raises(ValueError, match="size must be at least 8, got 4"):
        demo_arrays("demo_2d", 4)
    monkeypatch.setitem(demo_module._PICTURES, "brick", ("no_such.png", None, (1, 1)))
    with pytest.raises(FileNotFoundError, match=r"no_such\.png.*scikit-image"):
        demo_arrays.__wrapped__("demo_2d", 28)
