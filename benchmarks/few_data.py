"""How much data a network needs: trainings on parts of the training sets; see :mod:`benchmarks.cells`.

    python -m benchmarks.few_data fill --dataset breastmnist --model ours-10 --seed 0 --dataset_dir DIR --work DIR
    python -m benchmarks.few_data report

The number behind a model's name is the percent of the images that it is trained on, of the hippocampus the number of volumes.
Parts are nested, drawn by the seed, with the classes in their shares (``num_train`` of the bundles); a training takes as many
steps as on the whole set, with the learning rate chosen there. The whole set's cells are those of :mod:`benchmarks.accuracy`
and :mod:`benchmarks.volumes`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks import accuracy, volumes
from benchmarks.bundles import HIPPOCAMPUS, Model
from benchmarks.cells import Study, Task, choose, fill, main, read_cells

PARTS = (5, 10, 25, 50)
#: Epochs of the whole set.
EPOCHS = {"breastmnist": 40, "pneumoniamnist": 5, "adrenalmnist3d": 15, HIPPOCAMPUS: 10}


def _parts(models: dict[str, Model], ours: str) -> dict[str, Model]:
    """Three networks on each part of the training set."""
    named = {"plain": models["plain"], "plain-turned": models["plain-turned"], "ours": models[ours]}
    return {f"{name}-{few}": replace(model, few=few) for name, model in named.items() for few in PARTS}


STUDY = Study(
    "few_data", _parts(accuracy.MODELS, "harmonic"), metric="auc", scores=accuracy.STUDY.scores, epochs=EPOCHS
)
VOLUMES = Study(
    "few_data", _parts(volumes.MODELS, "margins"), metric="dice", scores=volumes.STUDY.scores, step=45, swept=8,
    epochs=EPOCHS,
)  # fmt: skip


def whole_set(dataset: str) -> tuple[Study, dict[str, str]]:
    """The study whose cells are of the whole training set, and how it calls the three networks."""
    names = {"plain": "plain", "plain-turned": "plain-turned"}
    if dataset == HIPPOCAMPUS:
        return volumes.STUDY, {**names, "ours": "margins"}
    return accuracy.STUDY, {**names, "ours": "harmonic"}


def fill_part(_: Study, chosen: argparse.Namespace) -> None:
    """Train and evaluate one cell with the learning rate of the whole set."""
    study, names = whole_set(chosen.dataset)
    task, network = Task(chosen.dataset, EPOCHS[chosen.dataset]), names[chosen.model.rpartition("-")[0]]
    cells = choose(read_cells(study.cells, list(study.models)), study.metric)[task, network]
    chosen.learning_rate = chosen.learning_rate or cells[0]["learning_rate"]
    fill(VOLUMES if chosen.dataset == HIPPOCAMPUS else STUDY, chosen)


if __name__ == "__main__":
    main(STUDY, __doc__, filler=fill_part)
