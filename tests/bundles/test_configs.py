"""What holds for the configs of all bundles: copies are equal, values are written out, MONAI's classes come first."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.utils import instantiate

from tests.bundles.running import BUNDLES

NAMES = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
CONFIGS = sorted(path for path in BUNDLES.glob("*/configs/*.json") if path.name != "metadata.json")


def components(entry: Any) -> Iterator[dict[str, Any]]:
    """All entries of a config that become objects."""
    children = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
    if isinstance(entry, dict) and "_target_" in entry:
        yield entry
    for child in children:
        yield from components(child)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("multi_gpu_*.json", 2 * len(NAMES)),
        ("logging.conf", len(NAMES)),
        ("../LICENSE", len(NAMES)),
        ("apps.json", 2),
    ],
)
def test_copies_are_equal(pattern: str, count: int) -> None:
    texts = [path.read_text() for name in NAMES for path in (BUNDLES / name / "configs").glob(pattern)]
    assert len(texts) == count
    assert len(set(texts)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_check_what_one_does(name: str) -> None:
    one, several = ConfigParser(), ConfigParser()
    files = [BUNDLES / name / "configs" / f"{part}.json" for part in ("train", "multi_gpu_train")]
    one.read_config(files[0])
    several.read_config(files)
    assert several["initialize"][: len(one["initialize"])] == one["initialize"]
    assert len(several["initialize"]) == len(one["initialize"]) + 2


@pytest.mark.parametrize("name", ["hippocampus_segmentation", "retinal_vessel_segmentation"])
def test_inference_prepares_images_as_training_does(name: str) -> None:
    """The steps behind the reader, one by one; those of training are told without what they do to the labels."""

    def of_image(step: dict[str, Any]) -> dict[str, Any]:
        both = step["keys"] == ["image", "label"]
        return {key: value[0] if both and key in ("keys", "mode") else value for key, value in step.items()}

    training, inference = (
        json.loads((BUNDLES / name / "configs" / f"{part}.json").read_text()) for part in ("train", "inference")
    )
    steps = [of_image(step) for step in (*training["geometry"], *training["normalization"])]
    assert inference["preprocessing"]["transforms"][1:] == steps


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_nothing_is_hidden(path: Path) -> None:
    """No rank outside of the overlays for several processes, no parsing of flags, no handler by its number."""
    text = path.read_text()
    assert "rank" not in text or path.name.startswith("multi_gpu")
    for hidden in ("lower()", "str(@", "handlers#0", "handlers#1", "mean_confidence"):
        assert hidden not in text.replace("str(@dataset_name", "")
    assert text.count("\n") <= 300


@pytest.mark.parametrize("dims", [2, 3])
def test_every_value_of_the_augmentation_is_written_out(dims: int) -> None:
    config = json.loads((BUNDLES / f"medmnist_{dims}d_classification/configs/train.json").read_text())
    entries = {entry["_target_"].split(".")[-1]: entry for entry in components(config)}
    for kind in (f"BatchAugment{dims}d", "BatchPreprocess"):
        entry = entries[kind]
        arguments = inspect.signature(instantiate(entry["_target_"], "callable")).parameters
        assert set(arguments) == set(entry) - {"_target_"}
        for name, parameter in arguments.items():  # what the config says is what the class does by itself
            if not str(entry[name]).startswith("@"):
                assert entry[name] == pytest.approx(parameter.default) or list(parameter.default) == entry[name]


@pytest.mark.parametrize("name", NAMES)
def test_most_parts_are_those_of_monai_and_torch(name: str) -> None:
    parts = list(components(json.loads((BUNDLES / name / "configs/train.json").read_text())))
    assert sum(part["_target_"].startswith("monai_sre.") for part in parts) < len(parts) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_user_finds_the_parts_where_monai_has_them(name: str) -> None:
    """The names of ``spleen_ct_segmentation`` in MONAI's model zoo."""
    config = json.loads((BUNDLES / name / "configs/train.json").read_text())
    assert {"network_def", "network", "loss", "optimizer", "lr_scheduler", "train", "validate"} <= config.keys()
    for phase in ("train", "validate"):
        assert {"preprocessing", "dataset", "dataloader", "inferer", "handlers"} <= config[phase].keys()
    assert "trainer" in config["train"]
    assert {"evaluator", "key_metric"} <= config["validate"].keys()


@pytest.mark.parametrize(
    "overlays", [(), ("multi_gpu_train.json",), ("evaluate.json", "multi_gpu_evaluate.json")], ids=str
)
def test_imports_bring_what_expressions_name(overlays: tuple[str, ...]) -> None:
    """In a process that has imported nothing of the package before, as a command line has not."""
    files = [str(BUNDLES / "hippocampus_segmentation/configs" / name) for name in ("train.json", *overlays)]
    program = (
        "from monai.bundle import ConfigParser; p = ConfigParser(); "
        f"p.read_config({files!r}); "
        "p.get_parsed_content('imports'); print(p.get_parsed_content('cache_gib') > 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["True"], done.stderr
