"""Options of the bundles: values of every kind, names, and texts that a command line reads as something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_sre.options import check_options

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles/medmnist_2d_classification"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("amp", "maybe", "amp must be true or false, got 'maybe'"),
        ("resume", None, "resume must be true or false, got None"),
        ("max_epochs", 1.5, "max_epochs must be a whole number from 1, got 1.5"),
        ("max_epochs", 0, "max_epochs must be a whole number from 1, got 0"),
        ("max_epochs", True, "max_epochs must be a whole number from 1, got True"),
        ("batch_size", 2.5, "batch_size must be a whole number from 1, got 2.5"),
        ("size", "abc", "size must be a whole number from 1, got 'abc'"),
        ("early_stopping", -1, "early_stopping must be a whole number from 0, got -1"),
        ("num_val", -1, "num_val must be a whole number from 0, got -1"),
        ("num_train", 0, "num_train must be a whole number from 1, got 0"),
        ("every", -1, "every must be a whole number from 0, got -1"),
        ("seed", float("nan"), "seed must be a whole number from 0, got nan"),
        ("learning_rate", -0.1, "learning_rate must be a number from 0, got -0.1"),
        ("weight_decay", "1e-3x", "weight_decay must be a number from 0, got '1e-3x'"),
        ("learning_rate", float("inf"), "learning_rate must be a number from 0, got inf"),
        ("intensity_range", [5, 1], "intensity_range must be None or two increasing numbers such as .*, got .5, 1."),
        ("intensity_range", [0], "intensity_range must be None or two increasing numbers"),
        ("intensity_range", "0,1", "intensity_range must be None or two increasing numbers"),
        (
            "class_names",
            "tumour",
            "class_names must be a list of 2 names or more that differ, such as .*, got 'tumour'",
        ),
        ("class_names", ["a"], "class_names must be a list of 2 names or more that differ"),
        ("class_names", ["1", 1], "class_names must be a list of 2 names or more that differ"),
        (
            "pixdim",
            [1, 0, 1],
            r"pixdim must be None or lengths above 0, one per axis, such as .1,1,2.5., got .1, 0, 1.",
        ),
        ("pixdim", 2, "pixdim must be None or lengths above 0, one per axis, such as .*, got 2"),
        ("spatial_dims", 4, "spatial_dims must be 2 or 3, got 4"),
        ("pixdim", [1, float("nan")], "pixdim must be None or lengths above 0"),
        ("pixdim", "1mm", "pixdim must be None or lengths above 0.*, got '1mm'"),
        ("patch_size", 0, "patch_size must be a whole number from 1 or one per axis, such as .*, got 0"),
        ("patch_size", [36, 5.5], "patch_size must be a whole number from 1 or one per axis"),
        ("patch_size", [], "patch_size must be a whole number from 1 or one per axis"),
        (
            "percentiles",
            [99.5, 0.5],
            "percentiles must be two increasing numbers from 0 to 100 such as .*, got .99.5, 0",
        ),
        ("percentiles", None, "percentiles must be two increasing numbers from 0 to 100"),
        ("percentiles", [0, 101], "percentiles must be two increasing numbers from 0 to 100"),
        ("mean", "half", "mean must be a number or one per channel, got 'half'"),
        ("std", [0.2, 0], "std must be a number above 0 or one per channel, got .0.2, 0."),
        ("output_dir", 2024, "output_dir must be a text, got 2024; write './2024'"),
        ("input", ("Smith", 3), "input must be a text"),
        ("dataset_name", "a\0b", "dataset_name must hold no NUL character"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_options({name: value})


def test_a_voxel_has_a_length_for_each_axis() -> None:
    check_options({"pixdim": [1, 2], "spatial_dims": 2})
    with pytest.raises(ValueError, match=r"pixdim must be None or one length for each of 3 axes, got \[1, 2\]"):
        check_options({"spatial_dims": 3, "pixdim": [1, 2]})
    check_options({"patch_size": [36, 52], "spatial_dims": 2})
    with pytest.raises(
        ValueError, match=r"patch_size must be a whole number or one for each of 3 axes, got \[36, 52\]"
    ):
        check_options({"spatial_dims": 3, "patch_size": [36, 52]})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sweep", [True, "true", "True", "yes", "on", 1, "0", "off", False]),
        ("max_epochs", [1, 10**6]),
        ("early_stopping", [0, 5]),
        ("learning_rate", [0, 0.0, 1e-3, 2]),
        ("intensity_range", [None, [0, 1], (-100.0, 300)]),
        ("class_names", [["no", "yes"], (0, 1, 2)]),
        ("pixdim", [None, [], [1, 1.0, 2.5]]),
        ("spatial_dims", [2, 3]),
        ("input", ["a folder", Path("x"), ["a.png", "b.png"]]),
        ("dataset_name", [None, "breastmnist"]),
        ("num_test", [None, 0, 8]),
        ("num_train", [None, 1, 50]),
        ("every", [0, 5]),
        ("mean", [0, 0.5, [0.5, 0.4, 0.3]]),
        ("patch_size", [1, [36, 52]]),
        ("percentiles", [[0, 100], (0.5, 99.5)]),
    ],
)
def test_right_values_pass(name: str, values: list[Any]) -> None:
    for value in values:
        check_options({name: value})


def command(*words: str) -> list[str]:
    files = str([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    return ["python", "-m", "monai.bundle", "run", "--config_file", files, *words]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["--max_epoch", "3"], {}, "--max_epoch is no option of .*; did you mean --max_epochs"),
        (["--max-epoch=3"], {}, "--max_epoch is no option"),
        (
            ["--class_names", "['grade #1','grade 2']"],
            {},
            r"--class_names \['grade #1','grade 2'\]: a name with '#' cannot",
        ),
        (["--output_dir", "run#2"], {"output_dir": "run"}, "--output_dir run#2: a name with '#' cannot be given"),
        (
            ["--dataset_dir=Smith,John"],
            {"dataset_dir": ("Smith", "John")},
            "--dataset_dir Smith,John: the command line reads .'Smith', 'Jo",
        ),
        (["--output_dir", "None"], {"output_dir": "./output"}, "--output_dir None: .* or './None' for a name"),
        (["--intensity_range", "None"], {}, r"--intensity_range None: the command line drops it; write '\$None'"),
        (["--dataset_dir", "1e3"], {"dataset_dir": "1000.0"}, "--dataset_dir 1e3: the command line reads '1000.0'"),
    ],
)
def test_a_command_line_means_what_was_typed(words: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_options(options, command(*words))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--max_epochs", "3", "--network_def#width", "8", "--validate#dataset#split=val"], {}),
        (["--intensity_range", "$None"], {}),
        (["--output_dir", "./2024"], {"output_dir": "./2024"}),
        (["--dataset_dir", "['a','b']"], {"dataset_dir": ["a", "b"]}),
        (["--output_dir", "$@bundle_root + '/x'"], {"output_dir": "./x"}),
        (["--_meta_#version", "2", "--bundle_root", "."], {}),
    ],
)
def test_a_right_command_line_passes(words: list[str], options: dict[str, Any]) -> None:
    check_options(options, command(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "maybe"], "ValueError: resume must be true or false, got 'maybe'"),
        (["--max_epoch", "1"], "did you mean --max_epochs?"),
        (["--dataset_name", "brestmnist"], "did you mean 'breastmnist'?"),
        (["--dataset_name", "demo_2d", "--dataset_dir", "2024"], "write './2024'"),
        (["--dataset_name", "demo_2d", "--mean", "[0.5,0.5]"], "mean must be a number or one for each of 1 channels"),
        (["--dataset_name", "demo_2d", "--class_names", "['a']"], "class_names must be a list of 2 names or more"),
    ],
)
def test_the_last_line_of_a_command_is_the_cause_and_nothing_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    files = ["--config_file", str(BUNDLE / "configs/train.json"), "--meta_file", str(BUNDLE / "configs/metadata.json")]
    run = [sys.executable, "-m", "monai.bundle", "run", *files, "--output_dir", str(tmp_path / "out"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_is_our_sentence_where_that_of_a_library_lies_behind_it(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes((BUNDLE / "models/model.json").read_bytes())
    (tmp_path / "model.pt").touch()
    run = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(BUNDLE / "configs/inference.json")]
    run += ["--ckpt_dir", str(tmp_path), "--input", str(BUNDLE / "docs")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.stderr.strip().splitlines()[-1] == (
        f"ValueError: {tmp_path / 'model.pt'} cannot be read as weights (EOFError); "
        "expected tensors, as torch.save writes them"
    )


def test_all_options_of_the_configs_have_a_kind() -> None:
    """And those that stand beside them in the configs, but for structures, are checked."""
    for path in sorted((ROOT / "bundles").glob("*/configs/*.json")):
        config = json.loads(path.read_text())
        for name, value in config.get("options", {}).items():
            assert value == f"@{name}"
            assert name in config
