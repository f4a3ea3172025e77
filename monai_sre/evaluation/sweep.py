"""The same test set under a list of rotations and flips: scores under each, and how often a decision changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_sre.data.geometry import background_value, check_cubes, voxel_size
from monai_sre.data.info import MULTI_LABEL, TASKS
from monai_sre.evaluation.figures import draw_sweep
from monai_sre.evaluation.metrics import (
    MAP_METRICS,
    NAN,
    accuracy,
    area_under_curve,
    as_arrays,
    check_metrics,
    check_scores,
    gather_items,
    map_scores,
    nan_mean,
    probabilities,
)
from monai_sre.evaluation.transformations import (
    PROTOCOL_WORDS,
    PROTOCOLS,
    Transformation,
    angle_of,
    protocol_name,
    sweep_transformations,
)
from monai_sre.evaluation.windows import pad_around
from monai_sre.files import writable_folder, write_arrays, write_csv, write_json
from monai_sre.ops.arguments import as_flag
from monai_sre.symmetry.error import undisturbed

#: The task of networks that give class maps, beside MedMNIST's names.
SEGMENTATION = "segmentation"
#: The Dice of the truth with itself, turned and back.
RESAMPLED = "Dice of the truth, turned and back"
_Network = Callable[[Tensor], Tensor]
#: What is gathered of each transformation, image by image.
_Items = dict[str, list[Any]]


@dataclass
class SweepResult:
    """Scores of one network under each transformation.

    Args:
        rows: per transformation its name (``"transformation"``) and its metrics, the identity first.
        consistency: share of images whose decision is the same under all transformations; of class maps, the mean Dice
            between the map of the transformed image and the transformed map, the identity left out.
        images: what the scores are made of, for T transformations and N images in the data set's order:
            ``"transformations"``, the names, ``(T,)``; ``"scores"``, ``(T, N, num_classes)`` probabilities with
            ``"labels"``, ``(N,)`` or ``(N, num_classes)``; of class maps, ``"scores"`` are ``(T, N, M)``, the values of
            ``"metrics"``, ``(M,)``, the last of which is ``"consistency"``.
    """

    rows: list[dict[str, Any]]
    consistency: float
    images: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, the leading one first."""
        return [name for name in self.rows[0] if name != "transformation"]

    def by_angle(self, metric: str) -> dict[float, list[float]]:
        """Values under the rotations by multiples of a step: in 3-D, of each axis."""
        found: dict[float, list[float]] = {}
        for row in self.rows:
            angle = angle_of(row["transformation"])
            if angle is not None:
                found.setdefault(angle, []).append(row[metric])
        return found

    def summary(self, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Upright scores; mean, standard deviation and minimum over all rotations by ``step``, the identity included.

        Flips are apart; of orientations and random rotations, where there are some, the mean and the minimum are there too.
        """
        values: dict[str, float] = {}
        for metric in self.metrics if metrics is None else metrics:
            swept = np.concatenate(list(self.by_angle(metric).values()))
            values |= {
                f"{metric} upright": self.rows[0][metric],
                f"{metric} mean": float(swept.mean()),
                f"{metric} std": float(swept.std()),
                f"{metric} min": float(swept.min()),
            }
            for kind in ("orientation", "random"):
                more = [row[metric] for row in self.rows if row["transformation"].startswith(kind)]
                if more:
                    values |= {
                        f"{metric} {kind} mean": float(np.mean(more)),
                        f"{metric} {kind} min": float(np.min(more)),
                    }
        return {**values, "consistency": self.consistency}


def _class_items(
    batch: Mapping[str, Tensor], moves: Mapping[str, Transformation], network: _Network, task: str
) -> _Items:
    """Of each transformation the scores and the labels of the batch."""
    logits = torch.stack([network(move(batch["image"])) for move in moves.values()])
    labels = batch["label"].cpu().numpy()  # after all logits, for which a GPU does not wait in between
    scores = [probabilities(each, task).numpy() for each in logits.cpu()]
    labels = check_scores(scores[0], labels, task)
    return {name: list(zip(each, labels, strict=True)) for name, each in zip(moves, scores, strict=True)}


def _class_result(items: _Items, task: str, class_names: Sequence[str] | None = None) -> SweepResult:
    rows, decisions, found = [], [], []
    for name, images in items.items():
        scores, labels = (np.stack(part) for part in zip(*images, strict=True))
        found.append(scores)
        area = area_under_curve(scores, labels, task, class_names or ())
        rows.append({"transformation": name, "ACC": accuracy(scores, labels, task), "AUC": area})
        decisions.append(scores > 0.5 if task == MULTI_LABEL else scores.argmax(axis=1)[:, None])
    arrays = {"transformations": np.array(list(items)), "scores": np.stack(found).astype(np.float32), "labels": labels}
    return SweepResult(rows, float((np.stack(decisions) == decisions[0]).all(axis=(0, 2)).mean()), arrays)


def _map_items(
    batch: Mapping[str, Tensor],
    moves: Mapping[str, Transformation],
    network: _Network,
    _: str,
    *,
    metrics: Sequence[str],
    class_names: Sequence[str] | None,
    resampling: bool,
) -> _Items:
    """Of each transformation and image its scores, and the Dice to the upright map, transformed; NaN for the identity."""
    images, labels = (convert_to_tensor(batch[key]) for key in ("image", "label"))
    whole, upright, items = (images, labels), torch.empty(0), _Items()
    padded = as_cube(images, background_value(images)), as_cube(labels, -1.0)
    for name, move in moves.items():
        image, label = whole if move.keeps_the_grid else padded
        score = probabilities(network(move(image)), "multi-class").cpu()
        if score.dim() != image.dim() or score.shape[1] < 2:
            raise ValueError(f"network must return maps (N, num_classes, *spatial), got shape {tuple(score.shape)}")
        if name == "0":
            upright = torch.where(label.cpu() >= 0, score.argmax(dim=1, keepdim=True), -1).float()
        decided = upright if move.keeps_the_grid else as_cube(upright, -1.0)
        truth, expected = move.on_classes(label).cpu(), move.on_classes(decided)
        items[name] = []
        for index in range(len(score)):
            row = map_scores(
                *as_arrays(score[index], truth[index]), metrics, voxel_size(batch["image"], index), class_names
            )
            if resampling:
                own, back = label[index].cpu(), move.inverse.on_classes(truth[index : index + 1])[0]
                row[RESAMPLED] = map_scores(_one_hot(back, score.shape[1]), as_arrays(own, own)[1], ("Dice",))["Dice"]
            same = (
                map_scores(*as_arrays(score[index], expected[index]), metrics=("Dice",))["Dice"] if name != "0" else NAN
            )
            items[name].append({**row, "consistency": same})
    return items


def _one_hot(classes: Tensor, count: int) -> np.ndarray:
    """A class map ``(1, *spatial)`` as scores of its classes; what is outside is background."""
    return np.stack([(classes[0].clamp(min=0) == index).numpy() for index in range(count)]).astype(np.float32)


def _map_result(items: _Items, _: str) -> SweepResult:
    *metrics, same = items["0"][0]
    rows = [
        {"transformation": name, **{metric: nan_mean([row[metric] for row in images]) for metric in metrics}}
        for name, images in items.items()
    ]
    scores = [[list(row.values()) for row in images] for images in items.values()]
    arrays = {
        "transformations": np.array(list(items)),
        "scores": np.array(scores, dtype=np.float32),
        "metrics": np.array([*metrics, same]),
    }
    return SweepResult(rows, nan_mean([row[same] for images in items.values() for row in images]), arrays)


def as_cube(x: Tensor, fill: Tensor | float) -> Tensor:
    """Pad all spatial axes to the longest one; where that is an odd number of pixels, one more at the end."""
    return pad_around(x - fill, [max(x.shape[2:]) - length for length in x.shape[2:]]) + fill


@torch.no_grad()
def rotation_sweep(
    network: _Network,
    batches: Iterable[Mapping[str, Tensor]],
    transformations: Mapping[str, Transformation],
    task: str,
    inferer: Callable[..., Tensor] | None = None,
    device: torch.device | str | None = None,
    metrics: Sequence[str] = MAP_METRICS[:4],
    class_names: Sequence[str] | None = None,
    resampling: bool = False,
) -> SweepResult:
    """Evaluate a network on the same batches under each transformation.

    Of several processes (``ignite.distributed``) each calls this with its share of the data; all get the scores of the whole.

    Class maps are transformed with their images (nearest value; what enters from outside does not count): by flips and
    multiples of 90 degrees as they are, so that the scores upright are those of an evaluation, and by other angles after both
    were padded to squares, so that less is lost.

    Args:
        network: from images to logits: ``(N, num_classes)``, or ``(N, num_classes, *spatial)`` for class maps; a module is
            put into eval mode for the time.
        batches: ``{"image": normalised (N, C, *spatial), "label"}``, gone through once.
        transformations: from :func:`sweep_transformations`.
        task: MedMNIST's name of the kind of task, or ``"segmentation"``: labels are then class maps ``(N, 1, *spatial)``, of
            which values below 0 do not count.
        inferer: a MONAI inferer to call the network through.
        device: where to move the batches; ``None`` leaves them where they are.
        metrics: of class maps, those of :func:`class_scores`; the first leads.
        class_names: one per class, for warnings; of class maps, scores of each class are then there too, see
            :func:`map_scores`.
        resampling: of class maps, add what is left of the truth itself, turned and back: its Dice.

    Raises:
        ValueError: an argument is not one of those above, there is no image, or what the network returns or the labels do
            not fit the task; or the images are volumes whose affine says that their voxels are no cubes: rotated by anything
            but their symmetries, they would be sheared.

    Example:
        >>> batch = {"image": torch.randn(8, 1, 6, 6), "label": torch.tensor([0, 1] * 4)}
        >>> net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> rotation_sweep(net, [batch], sweep_transformations(2, step=90), "binary-class").consistency
        1.0
    """
    if task not in (*TASKS, SEGMENTATION):
        raise ValueError(f"task must be one of {(*TASKS, SEGMENTATION)}, got {task!r}")
    if next(iter(transformations), None) != "0":
        raise ValueError(f"transformations must begin with the identity, '0', got {list(transformations)}")
    call = network if inferer is None else partial(inferer, network=network)
    maps: dict[str, Any] = {"metrics": check_metrics(metrics), "class_names": class_names, "resampling": resampling}
    gather: Callable[..., _Items] = partial(_map_items, **maps) if task == SEGMENTATION else _class_items
    named = partial(_class_result, class_names=class_names)
    summarise: Callable[..., SweepResult] = _map_result if task == SEGMENTATION else named
    own: _Items = {name: [] for name in transformations}
    with undisturbed(network, training=False):
        for batch in batches:
            if len(batch["image"]) == 0:
                continue
            _check_grids(batch["image"])
            kept: dict[str, Any] = {"device": device, "track_meta": task == SEGMENTATION}  # the size of a voxel
            batch = {key: convert_to_tensor(batch[key], **kept) for key in ("image", "label")}
            for name, found in gather(batch, transformations, call, task).items():
                own[name] += found
    images = gather_items(list(zip(*own.values(), strict=True)))
    if not images:
        raise ValueError("batches must hold at least one image, got none")
    return summarise({name: list(each) for name, each in zip(own, zip(*images, strict=True), strict=True)}, task)


def _check_grids(images: Tensor) -> None:
    for index in range(len(images)):
        check_cubes(voxel_size(images, index), "a sweep")


class RotationSweep:
    """Evaluator handler: after an evaluation, the same data under rotations and flips.

    Leaves ``sweep_<protocol>.csv``, ``.json`` and ``.png`` in ``output_dir``, and in ``.npz``, for :func:`numpy.load`, the
    ``images`` of :class:`SweepResult`: what each single image was given under each transformation. Of several processes
    all take part, and the first writes.

    Args:
        output_dir: folder of the files, created if need be.
        network: from images to logits.
        loader: the evaluator's own loader of normalised batches.
        task: MedMNIST's name of the kind of task, or ``"segmentation"``.
        spatial_dims: 2 or 3.
        protocols: which of ``"bilinear_background"`` and ``"nearest_zero"``.
        step: degrees between rotations; ``None`` is 10 in 2-D and 30 in 3-D.
        inferer: with ``device``, see :func:`rotation_sweep`.
        enabled: whether to do anything; words such as ``"true"`` and ``"no"`` are understood.
        orientations: with ``random_rotations``, see :func:`sweep_transformations`; orientations take the place of the flips.
        metrics: with ``class_names`` and ``resampling``, see :func:`rotation_sweep`.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        loader: Iterable[Mapping[str, Tensor]],
        task: str,
        spatial_dims: int,
        protocols: Iterable[str] = tuple(PROTOCOLS),
        step: float | None = None,
        inferer: Callable[..., Tensor] | None = None,
        device: torch.device | str | None = None,
        enabled: bool | str = True,
        orientations: bool = False,
        random_rotations: int = 0,
        metrics: Sequence[str] = MAP_METRICS[:4],
        class_names: Sequence[str] | None = None,
        resampling: bool = False,
    ) -> None:
        self.output_dir, self.network, self.loader, self.task = Path(output_dir), network, loader, task
        self.inferer, self.device, self.enabled = inferer, device, as_flag("sweep", enabled)
        more: dict[str, Any] = {
            "flips": not orientations,
            "orientations": orientations,
            "random_rotations": random_rotations,
        }
        self.sweeps = {
            protocol_name(name): sweep_transformations(spatial_dims, name, step, **more) for name in protocols
        }
        self.maps: dict[str, Any] = {
            "metrics": check_metrics(metrics),
            "class_names": class_names,
            "resampling": resampling,
        }

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.COMPLETED, self._run)
        elif earlier := sorted(self.output_dir.glob("sweep_*.json")):
            engine.logger.warning(f"{earlier[0]} is of an earlier evaluation; this one sweeps nothing")

    def _start(self, _: Engine) -> None:
        if idist.get_rank() == 0:
            writable_folder(self.output_dir)
        first = next(iter(self.loader), None)  # what cannot be swept is said before the evaluation, not behind it
        if first is not None:
            _check_grids(first["image"])

    def _run(self, engine: Engine) -> None:
        for protocol, transformations in self.sweeps.items():
            result = rotation_sweep(
                self.network, self.loader, transformations, self.task, self.inferer, self.device, **self.maps
            )
            if idist.get_rank() > 0:
                continue
            path = self.output_dir / f"sweep_{protocol}.csv"
            write_csv(path, result.rows)
            write_arrays(path.with_suffix(".npz"), result.images)
            write_json(path.with_suffix(".json"), {"protocol": protocol, **result.summary(), "rows": result.rows})
            draw_sweep(
                {"this network": result}, path.with_suffix(".png"), title=f"rotated images: {PROTOCOL_WORDS[protocol]}"
            )
            shown = ", ".join(f"{name} {value:.4f}" for name, value in result.summary(result.metrics[:1]).items())
            engine.logger.info(f"sweep {protocol}: {shown}")
