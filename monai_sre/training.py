"""What MONAI's training workflow lacks: a seed for each epoch, a last validation, autocast on any device, exact resuming."""

from __future__ import annotations

from monai_sre.extras import require

require("monai_sre.training")

# ruff: noqa: E402 - what the rest imports is there by now

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from monai.inferers import SimpleInferer
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_map

from monai_sre.data import BatchLoader, EpochLoader, LabelledImages, mix_seed
from monai_sre.description import FILE_NAME, describe, load_description, misfit, settled
from monai_sre.evaluation.metrics import area_under_curve, scalar_metrics
from monai_sre.files import remove_drafts, writable_folder, write_whole
from monai_sre.nets.checkpoints import read_tensors
from monai_sre.ops.arguments import as_flag, int_tuple, listed

_LOGGER = logging.getLogger(__name__)
#: What ``last.pt`` holds the state dicts of.
_PARTS = ("network", "optimizer", "lr_scheduler")
#: Of a description, what may change in a training that goes on.
_FREE = ("data", "roi_size", "window_multiple")
_UNKNOWN_NETWORK = (
    f"{FILE_NAME} cannot hold how this network is made, so evaluation and inference will need the same network_def again. "
    'Write network_def as {"_target_": "monai_sre.description.make_network", "target": class, argument: value, ...}, with '
    "arguments that JSON can hold, and they will not"
)


class EpochSeed:
    """Handler: seeds all random numbers at the start of each epoch, so that a resumed run repeats an uninterrupted one.

    Processes of one training draw different numbers.

    Args:
        seed: of the run.
        loader: a loader of :mod:`monai_sre.data` that is to follow the epochs too.

    Example:
        >>> engine = Engine(lambda engine, batch: torch.rand(1).item())
        >>> EpochSeed(0).attach(engine)
        >>> engine.run([0], max_epochs=1).output == engine.run([0], max_epochs=1).output
        True
    """

    def __init__(self, seed: int, loader: BatchLoader | EpochLoader | None = None) -> None:
        self.seed, self.loader = seed, loader

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        set_determinism(mix_seed(self.seed, engine.state.epoch, idist.get_rank()) % 2**32)
        if self.loader is not None:
            self.loader.set_epoch(engine.state.epoch)


class Validation(ValidationHandler):
    """MONAI's ``ValidationHandler`` every few epochs, and after the last, whose weights are a candidate as others are.

    Args:
        validator: the validation engine.
        interval: epochs from one to the next.

    Example:
        >>> from unittest.mock import Mock
        >>> from monai.engines import Evaluator
        >>> trainer, validator = Engine(lambda *_: None), Mock(spec=Evaluator)
        >>> Validation(validator, interval=3).attach(trainer)
        >>> _ = trainer.run([0], max_epochs=7)
        >>> [call.args[0] for call in validator.run.call_args_list]
        [3, 6, 7]
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch % self.interval == 0 or epoch == engine.state.max_epochs


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under bfloat16 autocast of the input's own device, CPU or GPU; all outputs come back in float32.

    Args:
        enabled: whether to autocast at all: a boolean, or a word such as ``"true"`` from a command line.

    Raises:
        ValueError: ``enabled`` is neither.

    Example:
        >>> net = torch.nn.Linear(4, 2)
        >>> AutocastInferer(enabled=True)(torch.ones(1, 4), net).dtype
        torch.float32
    """

    def __init__(self, enabled: bool | str = True) -> None:
        super().__init__()
        self.enabled = as_flag("amp", enabled)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.enabled):
            return tree_map(_to_float32, super().__call__(inputs, network, *args, **kwargs))


def _to_float32(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) and output.is_floating_point() else output


class Checkpoints:
    """Trainer handler: saves ``last.pt`` every epoch and ``model.pt`` whenever validation improves; resumes; stops early.

    ``model.pt`` is the network's plain state dict, and ``model.json`` beside it says what it is a model of
    (:mod:`monai_sre.description`). ``last.pt`` holds all that a run needs to go on, the best score so far included, so that a
    resumed run never replaces a better ``model.pt``. Each is written whole or not at all, by the first process alone.
    MONAI's ``CheckpointSaver`` and ``EarlyStopHandler`` do the first part, but forget the best score and the patience.

    Args:
        ckpt_dir: folder of the files, created if need be.
        network: the bare network, not wrapped for several processes.
        optimizer: saved and restored.
        lr_scheduler: saved and restored; its handler must be attached before this one.
        evaluator: the validation engine; its handler must be attached before this one.
        metric: the evaluator's metric that ``model.pt`` is chosen by; higher is better.
        description: what ``model.json`` holds beside the epoch and the metrics: the values that the model needs to be used.
            A ``"network"`` of ``None`` is logged as a warning, as evaluation and inference then have to be told.
        resume: go on from ``last.pt``: a boolean, or a word such as ``"true"`` from a command line.
        overwrite: likewise, start anew where the folder holds a training already, and replace it.
        patience: end the training after so many validations without improvement; 0 is never.

    The options of the optimizer and of the schedule are those of the run that resumes: with more epochs, fewer, batches of
    another size, or another learning rate, it goes on along the rates of a run that had them from the start.
    ``ReduceLROnPlateau`` goes on from the rate that it had reached.

    A training that is complete, or was stopped early, has nothing to go on with: resumed, it ends at once, which draws its
    learning curves if they are missing.

    Raises:
        FileNotFoundError: ``resume`` is on and there is no ``last.pt``.
        FileExistsError: the folder holds a training or a model, and neither ``resume`` nor ``overwrite`` is on; or, at the
            end of an epoch, another training has written to the folder, and this one saves nothing more.
        OSError: a file cannot be written; those saved before are as they were.
        TypeError: JSON cannot hold the description.
        ValueError: an argument cannot work; ``last.pt`` is damaged, of another network or optimizer, or of more epochs than
            ``max_epochs``; ``model.json`` is that of other classes, sizes or intensities; the validation data are of one
            class; or, in the training, the metric is NaN.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler,
        evaluator: Engine,
        metric: str,
        description: Mapping[str, Any] | None = None,
        resume: bool | str = False,
        patience: int = 0,
        overwrite: bool | str = False,
    ) -> None:
        self.folder, self.evaluator, self.metric = Path(ckpt_dir), evaluator, metric
        self.parts: dict[str, Any] = dict(zip(_PARTS, (network, optimizer, lr_scheduler), strict=True))
        self.description = dict(description or {})
        self.resume, (self.patience,) = as_flag("resume", resume), int_tuple("early_stopping", patience, 1, minimum=0)
        self.overwrite = as_flag("overwrite", overwrite)
        self.best, self.waited, self._validated = float("-inf"), 0, False
        self._replaced = self.overwrite and not self.resume

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, as the last of its handlers."""
        describe(self.description, 0, {})  # raises now rather than after the first epochs
        if self.description.get("network", "") is None and idist.get_rank() == 0:
            _LOGGER.warning(_UNKNOWN_NETWORK)
        if self.resume:
            self._load(engine)
        elif not self.overwrite and (self.folder / "last.pt").exists():
            raise FileExistsError(
                f"ckpt_dir={str(self.folder)!r} holds a training already: resume=true goes on with it, overwrite=true "
                "replaces it, and another output_dir keeps both"
            )
        elif not self.overwrite and any((self.folder / name).exists() for name in ("model.pt", FILE_NAME)):
            raise FileExistsError(
                f"ckpt_dir={str(self.folder)!r} holds a model already: overwrite=true replaces it, and another output_dir "
                "keeps it"
            )
        validation = getattr(self.evaluator, "data_loader", None)
        _check_masks(getattr(validation, "dataset", None), self.description.get("class_names", ()))
        _check_labels(getattr(engine, "data_loader", None), validation)
        if idist.get_rank() == 0:
            path = writable_folder(self.folder, "ckpt_dir") / FILE_NAME
            if settled(path) != path:
                settled(path).replace(path)
            # Drafts of a process that was killed; that of the description first, as alone it counts.
            for name in (FILE_NAME, "model.pt", "last.pt"):
                remove_drafts(self.folder / name)
        self._last = _identity(self.folder / "last.pt")
        self.evaluator.add_event_handler(Events.COMPLETED, self._mark)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _mark(self, _: Engine) -> None:
        self._validated = True

    def _load(self, engine: Engine) -> None:
        path = self.folder / "last.pt"
        if not path.is_file():
            raise FileNotFoundError(f"resume=True, but ckpt_dir={str(self.folder)!r} holds no last.pt to resume from")
        network, optimizer, scheduler = self.parts.values()
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        state, length = read_tensors(path), engine.state.epoch_length or 1
        try:
            _check_progress(state, length)
            fault = misfit(network, state["network"])
            if fault:
                raise ValueError(f"its network is not this one: {fault}")
            for group, own in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=False):
                if group.keys() - own.keys() and own.keys() - group.keys():
                    raise ValueError(f"its optimizer is no {type(optimizer).__name__}: it has {listed(sorted(group))}")
            optimizer.load_state_dict(state["optimizer"])
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.load_state_dict(state["lr_scheduler"])
        except Exception as error:  # of what is not there, or of another kind
            raise ValueError(f"cannot resume from {path}: {_sentence(error)}") from error
        network.load_state_dict(state["network"])
        self.best, self.waited, epoch = state["best"], state["waited"], state["epoch"]
        self._check_description()
        if epoch > engine.state.max_epochs:
            raise ValueError(
                f"{path} holds a training of {epoch} epochs, more than max_epochs={engine.state.max_epochs}"
            )
        if epoch == engine.state.max_epochs or (self.patience and self.waited >= self.patience):
            _LOGGER.warning("%s: complete at epoch %d; a larger max_epochs or early_stopping goes on", path, epoch)
            engine.add_event_handler(Events.STARTED, self._end, epoch)
        if not isinstance(scheduler, ReduceLROnPlateau):
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update(own)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                for _ in range(_steps_to_do(state, length)):
                    scheduler.step()
        engine.state.epoch = epoch
        engine.state.iteration = epoch * length

    def _check_description(self) -> None:
        """Refuse to go on with other values than those that ``model.json`` holds, but for what only inference needs."""
        path = self.folder / FILE_NAME
        earlier = dict(load_description(path)) if settled(path).is_file() else {}
        for name, value in json.loads(json.dumps(self.description)).items():
            free = name in _FREE or (name == "network" and earlier.get(name) is None)
            if not free and name in earlier and earlier[name] != value:
                raise ValueError(f"{path} has {name}={earlier[name]!r}, and this training {value!r}")

    def _end(self, engine: Engine, epoch: int) -> None:
        engine.state.epoch = epoch  # which ignite has set to 0 where nothing is left to do
        engine.terminate()

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() == 0 and _identity(self.folder / "last.pt") != self._last:
            raise FileExistsError(
                f"another training has written to ckpt_dir={str(self.folder)!r} meanwhile, so this one ends at epoch "
                f"{engine.state.epoch}, which it does not save: give each an output_dir of its own"
            )
        if self._validated:
            self._validated = False
            score = float(self.evaluator.state.metrics[self.metric])
            if math.isnan(score):
                raise ValueError(
                    f"the validation metric {self.metric!r} is NaN at epoch {engine.state.epoch}, so no epoch can be chosen: "
                    "the training has diverged, or the validation data lack a class (or any foreground)"
                )
            self.waited = 0 if score > self.best else self.waited + 1
            if score > self.best:
                self.best = score
                values = describe(self.description, engine.state.epoch, scalar_metrics(self.evaluator.state.metrics))
                self._write({"model.pt": self.parts["network"].state_dict(), FILE_NAME: values})
            if self.patience and self.waited >= self.patience:
                engine.terminate()
        elif self._replaced and idist.get_rank() == 0:  # the model of the training that this one takes the place of
            for name in (FILE_NAME, "model.pt"):
                (self.folder / name).unlink(missing_ok=True)
        self._replaced = False
        state = {name: part.state_dict() for name, part in self.parts.items()}
        progress = {"best": self.best, "waited": self.waited, "epoch": engine.state.epoch}
        self._write({"last.pt": {**state, **progress, "epoch_length": engine.state.epoch_length}})
        self._last = _identity(self.folder / "last.pt")

    def _write(self, files: Mapping[str, Any]) -> None:
        if idist.get_rank() == 0:
            write_whole({self.folder / name: partial(_write_content, content) for name, content in files.items()})


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that has replaced it; None where there is none."""
    found = path.stat() if path.exists() else None
    return None if found is None else (found.st_ino, found.st_mtime_ns)


def _write_content(content: Any, path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    else:
        torch.save(content, path)


def _check_progress(state: Any, length: int) -> None:
    """Raise if ``last.pt`` does not say how far its training has come; one of an earlier version has epochs of ``length``."""
    for name, part in {"content": state, **{name: state[name] for name in _PARTS if isinstance(state, dict)}}.items():
        if not isinstance(part, dict):
            raise ValueError(f"its {name} must be a dictionary, got {type(part).__name__}")
    state.setdefault("epoch_length", length)
    for name, least in (("epoch", 1), ("waited", 0), ("epoch_length", 1)):
        if type(state[name]) is not int or state[name] < least:
            raise ValueError(f"{name} must be a whole number from {least}, got {state[name]!r}")
    if not isinstance(state["best"], float) or math.isnan(state["best"]):
        raise ValueError(f"best must be a number, got {state['best']!r}")
    steps, most = _steps_done(state["lr_scheduler"]), state["epoch"] * state["epoch_length"]
    if type(steps) is not int or not 0 <= steps <= most:
        raise ValueError(f"the steps of its schedule must be a whole number up to {most}, got {steps!r}")


def _steps_done(schedule: Any) -> Any:
    """How often the schedule of a state dict was stepped; one that chains others counts nothing itself."""
    while "last_epoch" not in schedule and "_schedulers" in schedule:
        schedule = schedule["_schedulers"][0]
    return schedule["last_epoch"]


def _steps_to_do(state: Mapping[str, Any], length: int) -> int:
    """How often a schedule is stepped until where ``last.pt`` ends, with so many iterations per epoch now.

    One that was stepped per iteration follows the iterations of now, which are others where batches are.
    """
    steps = int(_steps_done(state["lr_scheduler"]))
    per_iteration = state["epoch_length"] > 1 and steps == state["epoch"] * state["epoch_length"]
    return int(state["epoch"]) * length if per_iteration else steps


def _sentence(error: Exception) -> str:
    """The message of an error in one line; a missing entry has only its name."""
    return f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())


def _check_masks(masks: Any, class_names: Sequence[str]) -> None:
    """Refuse validation masks without any foreground, and warn of classes that none of them has."""
    if not isinstance(masks, CacheDataset):
        return
    found = torch.zeros(max(len(class_names), 2), dtype=torch.bool)
    for index in range(len(masks)):  # the first are in memory already; each process has a share
        label = masks[index].get("label")
        values = torch.arange(len(found)) if label is None else torch.as_tensor(label).unique().long().cpu()
        found[values[values >= 0].clamp(max=len(found) - 1)] = True
        if found.all():
            break
    found = torch.as_tensor(idist.all_reduce(found.int().to(idist.device()))) > 0  # NCCL knows no CPU
    if not found[1:].any():
        raise ValueError("no validation mask has any foreground, so no epoch can be chosen by them")
    lacking = [name for name, there in zip(class_names, found.tolist(), strict=False) if not there]
    if lacking and idist.get_rank() == 0:
        _LOGGER.warning("no validation mask has a pixel of class %s", listed(lacking))


def _check_labels(training: Any, validation: Any) -> None:
    """Refuse validation images that are all of one class, and warn of classes that no image of the training has."""
    for loader in (validation, training):
        data = getattr(loader, "dataset", None)
        if not isinstance(data, LabelledImages):
            continue
        task, names = data.info.task, data.info.class_names
        labels = data.labels.cpu().numpy()
        truth = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
        there = truth.any(axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alike = math.isnan(area_under_curve(np.zeros(truth.shape), labels, task))
        if alike and loader is validation:
            raise ValueError(
                f"all {len(labels)} validation images of {data.info.name!r} have the same class "
                f"({listed([*np.array(names)[there]])}), so no epoch can be chosen by them; some must be of another class"
            )
        if loader is training and not there.all() and idist.get_rank() == 0:
            _LOGGER.warning(
                "none of the %d training images is of class %s", len(labels), listed([*np.array(names)[~there]])
            )
