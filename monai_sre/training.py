"""What MONAI's training workflow lacks: seeds for each epoch, autocast on any device, checkpoints that resume exactly."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import SimpleInferer
from monai.utils import set_determinism
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_map

from monai_sre.data.loaders import BatchLoader, mix_seed
from monai_sre.ops.arguments import as_flag


class EpochSeed:
    """Handler: seeds all random numbers at the start of each epoch, so that a resumed run repeats an uninterrupted one.

    Args:
        seed: of the run.
        rank: of this process; ranks draw different numbers.
        loader: a :class:`monai_sre.data.BatchLoader` that is to follow the epochs too.

    Example:
        >>> engine = Engine(lambda engine, batch: torch.rand(1).item())
        >>> EpochSeed(0).attach(engine)
        >>> engine.run([0], max_epochs=1).output == engine.run([0], max_epochs=1).output
        True
    """

    def __init__(self, seed: int, rank: int = 0, loader: BatchLoader | None = None) -> None:
        self.seed, self.rank, self.loader = seed, rank, loader

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        set_determinism(mix_seed(self.seed, engine.state.epoch, self.rank) % 2**32)
        if self.loader is not None:
            self.loader.set_epoch(engine.state.epoch)


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under bfloat16 autocast of the input's own device, CPU or GPU; all outputs come back in float32.

    Args:
        enabled: whether to autocast at all.

    Example:
        >>> net = torch.nn.Linear(4, 2)
        >>> AutocastInferer(enabled=True)(torch.ones(1, 4), net).dtype
        torch.float32
    """

    def __init__(self, enabled: bool | str = True) -> None:
        super().__init__()
        self.enabled = as_flag("amp", enabled)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.enabled):
            return tree_map(_wide, super().__call__(inputs, network, *args, **kwargs))


def _wide(output: Any) -> Any:
    return output.float() if isinstance(output, torch.Tensor) and output.is_floating_point() else output


class Checkpoints:
    """Trainer handler: saves ``last.pt`` every epoch and ``model.pt`` whenever validation improves; resumes; stops early.

    ``model.pt`` is the network's plain state dict. ``last.pt`` holds all that a run needs to go on, the best score so far
    included, so that a resumed run never replaces a better ``model.pt``. Both are written whole or not at all.

    Args:
        ckpt_dir: folder of both files, created if need be.
        network: the bare network, not wrapped for several processes.
        optimizer: saved and restored.
        lr_scheduler: saved and restored; its handler must be attached before this one.
        evaluator: the validation engine; its handler must be attached before this one.
        metric: the evaluator's metric that ``model.pt`` is chosen by; higher is better.
        resume: go on from ``last.pt``.
        patience: end the training after so many validations without improvement; 0 is never.
        rank: rank of this process; only rank 0 writes.

    The options of the optimizer and of the schedule are those of the run that resumes: with more epochs, fewer, or another
    learning rate, it goes on along the rates of a run that had them from the start. ``ReduceLROnPlateau`` goes on from the
    rate that it had reached.

    Raises:
        FileNotFoundError: ``resume`` is on and there is no ``last.pt``.
        ValueError: ``last.pt`` cannot be read or is of another network, or the training it holds is complete; or, in the
            training, the metric is NaN.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine,
        metric: str,
        resume: bool = False,
        patience: int = 0,
        rank: int = 0,
    ) -> None:
        self.folder, self.evaluator, self.metric = Path(ckpt_dir), evaluator, metric
        self.parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.resume, self.patience, self.rank = resume, patience, rank
        self.best, self.waited, self._validated = float("-inf"), 0, False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, as the last of its handlers."""
        if self.resume:
            self._load(engine)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.evaluator.add_event_handler(Events.COMPLETED, self._mark)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _mark(self, _: Engine) -> None:
        self._validated = True

    def _load(self, engine: Engine) -> None:
        path = self.folder / "last.pt"
        if not path.is_file():
            raise FileNotFoundError(f"resume=True, but ckpt_dir={str(self.folder)!r} holds no last.pt to resume from")
        scheduler, optimizer = self.parts["lr_scheduler"], self.parts["optimizer"]
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.parts["network"].load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.load_state_dict(state["lr_scheduler"])
            self.best, self.waited, epoch = state["best"], state["waited"], state["epoch"]
        except Exception as error:
            raise ValueError(f"cannot resume from {path}: it is damaged or of another network ({error})") from error
        if epoch >= engine.state.max_epochs:
            raise ValueError(f"{path} holds a training that is complete at epoch {epoch}; give a larger max_epochs")
        if not isinstance(scheduler, ReduceLROnPlateau):
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update(own)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                for _ in range(_steps_done(state["lr_scheduler"])):
                    scheduler.step()
        engine.state.epoch = epoch
        engine.state.iteration = epoch * engine.state.epoch_length

    def _save(self, engine: Engine) -> None:
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
                self._write(self.parts["network"].state_dict(), "model.pt")
            if self.patience and self.waited >= self.patience:
                engine.terminate()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self._write({**state, "best": self.best, "waited": self.waited, "epoch": engine.state.epoch}, "last.pt")

    def _write(self, content: Any, name: str) -> None:
        if self.rank == 0:
            draft = self.folder / f"{name}.tmp"
            torch.save(content, draft)
            draft.replace(self.folder / name)


def _steps_done(schedule: dict[str, Any]) -> int:
    """How often the schedule of a state dict was stepped; one that chains others counts nothing itself."""
    return int(schedule["last_epoch"]) if "last_epoch" in schedule else _steps_done(schedule["_schedulers"][0])


def process_rank() -> int:
    """Rank of this process as ``torchrun`` tells it, 0 elsewhere."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Number of processes as ``torchrun`` tells it, 1 elsewhere."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_tensorboard() -> bool:
    """Whether TensorBoard logs can be written here."""
    return importlib.util.find_spec("tensorboard") is not None
