"""Where energies pay: validation AUC against the cost of a training step, for networks of one width; see :mod:`benchmarks.cells`.

python -m benchmarks.studies.front fill --validation_only --dataset breastmnist --model first-stage --seed 0 --dataset_dir DIR --work DIR
python -m benchmarks.studies.front costs --dataset_dir DIR --work DIR
python -m benchmarks.studies.front report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.accuracy import EPOCHS, RADIAL
from benchmarks.bundles import Model
from benchmarks.cells import Study, main

_ORDER_1 = ["harmonic", {"orders": [1]}]
#: The stem behind a stride, in place of the first stage's, as in the plain network in 3-D.
_STRIDED = {"network_def#stem_stride": 2, "network_def#strides": [1, 2, 2, 2]}


def _form(title: str, conv: Any, **more: Any) -> Model:
    settings = {**RADIAL, "network_def#conv": conv, **{f"network_def#{key}": value for key, value in more.items()}}
    return Model(title, (), settings)


def _forms() -> dict[str, Model]:
    forms = {
        "everywhere": _form("energies in every layer", "harmonic"),
        "order-1": _form("energies of order 1 in every layer", _ORDER_1),
        "two-stages": _form("energies in the stem and two stages", ["harmonic"] * 2 + ["radial"] * 2),
        "two-stages-1": _form("energies of order 1 in the stem and two stages", [_ORDER_1] * 2 + ["radial"] * 2),
        "one-stage": _form("energies in the stem and the first stage", ["harmonic"] + ["radial"] * 3),
        "late-1": _form("energies of order 1 in the last three stages", ["radial"] + [_ORDER_1] * 3),
        "kernel-3-1": _form("kernels of 3, energies of order 1 in every layer", _ORDER_1, kernel_size=3),
        "none": _form("no energies", "radial"),
    }
    strided = {
        f"{name}-strided": Model(f"{model.title}, stem of stride 2", (), model.settings | _STRIDED)
        for name, model in forms.items()
    }
    return forms | strided


STUDY = Study(
    "front",
    _forms(),
    metric="auc",
    scores=("ACC", "AUC"),
    split="val",
    epochs=EPOCHS,
    results=Path(__file__).with_name("results"),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
