"""The parts of the benchmark of volumes that could spoil its tables unseen."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.bundles import HIPPOCAMPUS, Model, network_of, source_of
from benchmarks.cells import BACKGROUND, _cell, choose, fill, read_cells, table_of
from benchmarks.volumes import MODELS, STUDY
from monai_sre.symmetry.lattice import lattice_symmetries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small volumes of two boxes, listed as the Decathlon does."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    entries = []
    for number in range(10):
        label = np.zeros((12, 14, 12), dtype=np.uint8)
        label[3:9, 3:7, 3:9], label[3:9, 7:11, 3:9] = 1, 2
        image = (50.0 * label + rng.normal(0, 5, label.shape)).astype(np.float32)
        entries.append({key: f"{number}_{key}.nii.gz" for key in ("image", "label")})
        for key, values in (("image", image), ("label", label)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{number}_{key}.nii.gz")
    content = {"labels": ["background", "Anterior", "Posterior"], "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.averaged])
def test_each_model_has_the_symmetry_that_its_title_says(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    network = network_of(source_of(HIPPOCAMPUS, str(folder)), MODELS[name]).eval()
    x, moves = torch.randn(1, 1, 12, 16, 12), lattice_symmetries(3)
    with torch.no_grad():
        upright = network(x)
        assert upright.shape == (1, 3, 12, 16, 12)
        held = {
            move: bool(torch.allclose(network(moves[move](x)), moves[move](upright), atol=1e-3))
            for move in ("rot90(0,2)", "flip(1)", "rot90(0,1)")
        }
    whole = name in ("converted", "sre", "harmonic", "rounder", "wide", "margins", "rounder-margins")
    assert held == {"rot90(0,2)": whole or name == "in-plane", "flip(1)": whole, "rot90(0,1)": whole}


def test_cells_hold_both_evaluations_and_tables_what_was_measured(folder: Path, tmp_path: Path) -> None:
    """The scores upright are those of all test volumes, the sweep's of the first; what an average leaves out stays empty."""
    small: dict[str, Any] = {"network_def#filters": [4, 8, 8], "patch_size": 12}
    models = {
        "plain": replace(MODELS["plain"], settings=small),
        "plain-averaged": MODELS["plain-averaged"],
        "other": Model("other", ("plain.json",), small),
    }
    study = replace(STUDY, models=models, results=tmp_path, swept=1, step=180, more_columns=lambda _: {})
    for name in models:
        chosen = argparse.Namespace(dataset=HIPPOCAMPUS, model=name, seed=0, size=28, epochs=1, learning_rate=0.01)
        chosen.validation_only, chosen.dataset_dir, chosen.work = name == "other", str(folder), str(tmp_path / "work")
        fill(study, chosen)
    cells = {
        name: json.loads((tmp_path / f"volumes/hippocampus_{name}_lr0.01_1_0.json").read_text()) for name in models
    }
    assert cells["plain"]["upright"]["num_images"] == 2
    names = [row["transformation"] for row in cells["plain"]["sweep"]["bilinear_background"]["rows"]]
    assert len(names) == 1 + 3 + 47 + 12
    averaged = cells["plain-averaged"]["sweep"]["bilinear_background"]["rows"]
    assert [row["transformation"] for row in averaged][::3] == ["0", "flip 2", "random 3"]
    assert "sweep" not in cells["other"]
    found = {model: members for (_, model), members in choose(read_cells(study.cells, list(models)), "dice").items()}
    lines = table_of(study, HIPPOCAMPUS, {name: found[name] for name in ("plain", "plain-averaged")})
    place = lines[0].split(" | ").index("mean over 47 other orientations")
    assert float(lines[2].split(" | ")[place].split()[0]) == pytest.approx(
        cells["plain"]["sweep"]["bilinear_background"]["Dice orientation mean"], abs=6e-4
    )
    assert lines[3].split(" | ")[place] == ""


def test_the_identity_alone_is_no_mean_over_angles() -> None:
    swept = {"rows": [{"transformation": "0"}, {"transformation": "flip 0"}], "Dice upright": 0.9, "Dice mean": 0.9}
    members = [{"sweep": {BACKGROUND: swept}}]
    shown = {part: _cell(members, ("sweep", BACKGROUND, f"Dice {part}")) for part in ("upright", "mean")}
    assert shown == {"upright": "0.900", "mean": ""}
    swept["rows"].append({"transformation": "45 about axis 0"})
    assert _cell(members, ("sweep", BACKGROUND, "Dice mean")) == "0.900"
