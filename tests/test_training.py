"""Seeds, autocast and checkpoints apart from any bundle."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim import lr_scheduler as schedules

import monai_sre
from monai_sre.data import BatchLoader, DatasetInfo, LabelledImages
from monai_sre.description import load_description, make_network, network_entry
from monai_sre.nets import SREUNet
from monai_sre.training import AutocastInferer, Checkpoints, EpochSeed


def run_epochs(
    folder: Path,
    scores: list[float],
    resume: bool = False,
    patience: int = 0,
    others: dict[str, Any] | None = None,
    description: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[Engine, Checkpoints]:
    """Train a one-weight network whose weight counts its steps, and validate with the given scores."""
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.zero_()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    def step(_: Engine, __: object) -> None:
        network.weight.data += 1

    trainer, validator = Engine(step), Engine(lambda _, batch: batch)
    trainer.state.max_epochs, trainer.state.epoch_length = len(scores), 1
    validator.add_event_handler(
        Events.COMPLETED,
        lambda engine: engine.state.metrics.update(score=scores[trainer.state.epoch - 1], **(others or {})),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: validator.run([0]))
    description = description or {"size": 28}
    saver = Checkpoints(
        folder, network, optimizer, scheduler, validator, "score", description, resume, patience, overwrite
    )
    saver.attach(trainer)
    trainer.ended = []  # type: ignore[attr-defined]
    trainer.add_event_handler(Events.COMPLETED, lambda engine: engine.ended.append(engine.state.epoch))
    trainer.run([0], max_epochs=len(scores))
    return trainer, saver


def saved_weight(folder: Path, name: str = "model.pt") -> float:
    state = torch.load(folder / name, weights_only=True)
    return float((state["network"] if name == "last.pt" else state)["weight"])


def test_model_is_that_of_the_best_epoch_and_last_that_of_the_last(tmp_path: Path) -> None:
    run_epochs(tmp_path, [0.1, 0.9, 0.5])
    assert saved_weight(tmp_path) == 2.0
    assert saved_weight(tmp_path, "last.pt") == 3.0
    assert not list(tmp_path.glob("*.tmp"))


def test_a_resumed_run_never_replaces_a_better_model(tmp_path: Path) -> None:
    run_epochs(tmp_path, [0.1, 0.9])
    trainer, _ = run_epochs(tmp_path, [0.1, 0.9, 0.5, 0.6], resume=True)
    assert trainer.state.iteration == 4
    assert saved_weight(tmp_path) == 2.0
    assert saved_weight(tmp_path, "last.pt") == 4.0


def test_patience_ends_the_training_and_is_remembered(tmp_path: Path) -> None:
    trainer, _ = run_epochs(tmp_path / "whole", [0.5, 0.4, 0.3, 0.2, 0.1], patience=2)
    assert trainer.state.epoch == 3
    run_epochs(tmp_path / "parts", [0.5, 0.4], patience=2)
    trainer, _ = run_epochs(tmp_path / "parts", [0.5, 0.4, 0.3, 0.2, 0.1], resume=True, patience=2)
    assert trainer.state.epoch == 3


def test_the_description_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    run_epochs(tmp_path, [0.1, 0.9, 0.5])
    saved = json.loads((tmp_path / "model.json").read_text())
    assert saved == {
        "monai_sre_version": monai_sre.__version__,
        "size": 28,
        "epoch": 2,
        "metrics": {"score": 0.9},
    }


def test_metrics_that_are_no_number_are_no_part_of_the_description(tmp_path: Path) -> None:
    run_epochs(tmp_path, [0.1], others={"matrix": torch.eye(2), "loss": torch.tensor(0.25), "names": ["a"]})
    assert json.loads((tmp_path / "model.json").read_text())["metrics"] == {"score": 0.1, "loss": 0.25}


def test_a_description_that_json_cannot_hold_ends_training_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got device=device"):
        run_epochs(tmp_path / "out", [0.1], description={"device": torch.device("cpu")})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("network", "warned"),
    [(nn.Linear(1, 1), True), (make_network("torch.nn.Linear", in_features=1, out_features=1), False)],
)
def test_a_network_that_cannot_be_described_is_said_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, network: nn.Module, warned: bool
) -> None:
    run_epochs(tmp_path, [0.1], description={"network": network_entry(network)})
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.startswith("model.json cannot hold how this network is made") for message in messages] == [
        True
    ] * warned


@pytest.mark.parametrize("word", ["maybe", "", "2", "None"])
def test_resume_takes_no_other_word_than_yes_and_no(tmp_path: Path, word: str) -> None:
    run_epochs(tmp_path, [0.1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"resume must be true or false, got {word!r}"):
        run_epochs(tmp_path, [0.1, 0.2], resume=word)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("word", ["yes", "True", "on", "1"])
def test_resume_takes_the_words_for_yes(tmp_path: Path, word: str) -> None:
    run_epochs(tmp_path, [0.1])
    trainer, _ = run_epochs(tmp_path, [0.1, 0.2], resume=word)  # type: ignore[arg-type]
    assert (trainer.state.epoch, saved_weight(tmp_path)) == (2, 2.0)


@pytest.mark.parametrize("patience", [-1, 1.5, "two"])
def test_wrong_patience(tmp_path: Path, patience: object) -> None:
    with pytest.raises((TypeError, ValueError), match="early_stopping must be an integer >= 0"):
        run_epochs(tmp_path, [0.1], patience=patience)  # type: ignore[arg-type]


def test_a_new_training_replaces_no_other_one_untold(tmp_path: Path) -> None:
    run_epochs(tmp_path, [0.1, 0.9])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds a training already: resume=true goes on with it, overwrite=true"):
        run_epochs(tmp_path, [0.5])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run_epochs(tmp_path, [0.5], overwrite=True)
    assert saved_weight(tmp_path) == saved_weight(tmp_path, "last.pt") == 1.0


def test_a_model_alone_is_replaced_by_no_training_untold(tmp_path: Path) -> None:
    """As in a bundle's own ``models``, or where ``last.pt`` was deleted to save space."""
    run_epochs(tmp_path, [0.1, 0.9])
    (tmp_path / "last.pt").unlink()
    with pytest.raises(FileExistsError, match="holds a model already: overwrite=true replaces it"):
        run_epochs(tmp_path, [0.5])
    assert saved_weight(tmp_path) == 2.0


def test_an_overwritten_training_leaves_no_model_beside_the_new_one(tmp_path: Path) -> None:
    """It is validated for the first time after its second epoch, and stops before that."""
    run_epochs(tmp_path, [0.1, 0.9])
    trainer, validator = Engine(lambda *_: None), Engine(lambda *_: None)
    network = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    saver = Checkpoints(
        tmp_path, network, optimizer, schedules.ConstantLR(optimizer), validator, "score", overwrite=True
    )
    saver.attach(trainer)
    assert saved_weight(tmp_path) == 2.0  # there until the new one has something to save
    trainer.run([0], max_epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt"]


def test_of_two_trainings_in_one_folder_one_goes_on(tmp_path: Path) -> None:
    class Meanwhile(list[float]):
        def __getitem__(self, epoch: Any) -> Any:
            if epoch == 1:  # validated before the second epoch is saved
                run_epochs(tmp_path, [0.5, 0.6, 0.7], overwrite=True)
            return super().__getitem__(epoch)

    with pytest.raises(FileExistsError, match=r"another training has written to ckpt_dir=.* ends at epoch 2, which"):
        run_epochs(tmp_path, Meanwhile([0.1, 0.9]))
    assert saved_weight(tmp_path) == saved_weight(tmp_path, "last.pt") == 3.0  # of the other one


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, name: value}


def weight(value: torch.Tensor, name: str = "weight") -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, "network": {name: value}}


DAMAGED: dict[str, tuple[Any, str]] = {
    "empty": (b"", "cannot be read as weights"),
    "text": (b"no checkpoint", "cannot be read as weights"),
    "half": (lambda content: content[: len(content) // 2], "cannot be read as weights"),
    "one byte": (lambda content: content.replace(b"\x00\x00\x00@", b"\x00\x00\x00A", 1), "cannot be read as weights"),
    "pickle": (lambda state: {**state, "best": Path("x")}, "cannot be read as weights"),
    "list": (lambda state: [1], "its content must be a dictionary, got list"),
    "no network": (without("network"), "it has no 'network'"),
    "no optimizer": (without("optimizer"), "it has no 'optimizer'"),
    "no schedule": (without("lr_scheduler"), "it has no 'lr_scheduler'"),
    "no best": (without("best"), "it has no 'best'"),
    "no epoch": (without("epoch"), "it has no 'epoch'"),
    "epoch x": (with_("epoch", "x"), "epoch must be a whole number from 1, got 'x'"),
    "epoch -3": (with_("epoch", -3), "epoch must be a whole number from 1, got -3"),
    "epoch NaN": (with_("epoch", float("nan")), "epoch must be a whole number from 1, got nan"),
    "epoch 1.5": (with_("epoch", 1.5), "epoch must be a whole number from 1, got 1.5"),
    "epoch true": (with_("epoch", True), "epoch must be a whole number from 1, got True"),
    "waited -1": (with_("waited", -1), "waited must be a whole number from 0, got -1"),
    "best NaN": (with_("best", float("nan")), "best must be a number, got nan"),
    "best text": (with_("best", "0.9"), "best must be a number, got '0.9'"),
    "schedule 10^12": (
        with_("lr_scheduler", {"last_epoch": 10**12}),
        "must be a whole number up to 2, got 1000000000000",
    ),
    "schedule x": (with_("lr_scheduler", {"last_epoch": "x"}), "must be a whole number up to 2, got 'x'"),
    "length 0": (with_("epoch_length", 0), "epoch_length must be a whole number from 1, got 0"),
    "schedule empty": (with_("lr_scheduler", {}), "it has no 'last_epoch'"),
    "schedule list": (with_("lr_scheduler", [1]), "its lr_scheduler must be a dictionary, got list"),
    "shape": (weight(torch.ones(2, 1)), "weight has shape (2, 1), the network's is (1, 1)"),
    "name": (weight(torch.ones(1, 1), "kernel"), "weight is not in it; and 1 more differences"),
    "integers": (weight(torch.ones(1, 1, dtype=torch.int64)), "weight holds torch.int64"),
    "no tensor": (weight("x"), "it must hold a state dict of tensors"),  # type: ignore[arg-type]
    "optimizer empty": (with_("optimizer", {}), "it has no 'param_groups'"),
    "optimizer text": (with_("optimizer", "x"), "its optimizer must be a dictionary, got str"),
    "no groups": (with_("optimizer", {"state": {}, "param_groups": []}), "different number of parameter groups"),
    "other optimizer": (
        with_("optimizer", torch.optim.Adam([torch.nn.Parameter(torch.ones(1, 1))]).state_dict()),
        "its optimizer is no SGD: it has amsgrad; betas; ",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(tmp_path: Path, damage: Any, message: str) -> None:
    run_epochs(tmp_path, [0.1, 0.9])
    path = tmp_path / "last.pt"
    content = path.read_bytes()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        try:
            torch.save(damage(torch.load(path, weights_only=True)), path)
        except (AttributeError, TypeError):
            path.write_bytes(damage(content))
    assert path.read_bytes() != content
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"last\.pt") as caught:
        run_epochs(tmp_path, [0.1, 0.9, 0.5], resume=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"class_names": ["a", "c"]}, r"model\.json has class_names=\['a', 'b'\], and this training \['a', 'c'\]"),
        ({"size": 32}, r"model\.json has size=28, and this training 32"),
        ({"intensity_range": [0, 9]}, r"model\.json has intensity_range=None, and this training \[0, 9\]"),
        ({"data": "elsewhere.json", "roi_size": 64}, ""),
    ],
    ids=["classes", "size", "intensities", "what may change"],
)
def test_a_training_does_not_go_on_as_another(tmp_path: Path, changes: dict[str, Any], refused: str) -> None:
    values = {"class_names": ("a", "b"), "size": 28, "intensity_range": None, "data": "mine.json", "roi_size": 32}
    run_epochs(tmp_path, [0.1], description=values)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if refused:
        with pytest.raises(ValueError, match=refused):
            run_epochs(tmp_path, [0.1, 0.2], description={**values, **changes}, resume=True)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    else:
        run_epochs(tmp_path, [0.1, 0.2], description={**values, **changes}, resume=True)
        assert load_description(tmp_path / "model.pt")["data"] == "elsewhere.json"


def test_a_complete_training_resumes_to_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one that was killed before its picture: no epoch is trained, and all that runs at the end does."""
    run_epochs(tmp_path, [0.1, 0.9])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    trainer, _ = run_epochs(tmp_path, [0.1, 0.9], resume=True)
    assert trainer.state.epoch == 2
    assert trainer.ended == [2]  # type: ignore[attr-defined]
    assert "last.pt: complete at epoch 2; a larger max_epochs or early_stopping goes on" in caplog.text
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="holds a training of 2 epochs, more than max_epochs=1"):
        run_epochs(tmp_path, [0.1], resume=True)


def test_a_training_that_was_stopped_early_resumes_to_its_end(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.3, 0.9]
    run_epochs(tmp_path, scores, patience=2)
    trainer, _ = run_epochs(tmp_path, scores, patience=2, resume=True)
    assert (trainer.state.epoch, saved_weight(tmp_path)) == (3, 1.0)
    trainer, _ = run_epochs(tmp_path, scores, patience=3, resume=True)
    assert (trainer.state.epoch, saved_weight(tmp_path)) == (4, 4.0)


def test_an_end_between_weights_and_description_leaves_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is killed after the weights got their name, and goes on."""
    rename = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target.name == "model.json" and saved_weight(tmp_path) == 2.0:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run_epochs(tmp_path, [0.1, 0.9])
    monkeypatch.undo()
    assert saved_weight(tmp_path) == 2.0
    assert json.loads((tmp_path / "model.json").read_text())["epoch"] == 1
    assert load_description(tmp_path / "model.pt")["epoch"] == 2
    run_epochs(tmp_path, [0.1, 0.05], resume=True)  # where the same epoch scores otherwise
    assert (
        load_description(tmp_path / "model.pt")["epoch"] == json.loads((tmp_path / "model.json").read_text())["epoch"]
    )
    assert saved_weight(tmp_path) == 2.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "model.json", "model.pt"]


def killed_at(step: int, folder: Path, scores: list[float]) -> None:
    """Train, and end the process before it settles a draft on the disk, or gives it its name, after that many such steps."""
    left = iter(range(step, -1, -1))
    for place, name in ((os, "fsync"), (Path, "replace")):
        real = getattr(place, name)

        def counted(*arguments: Any, real: Any = real) -> Any:
            return real(*arguments) if next(left) else os._exit(9)

        setattr(place, name, counted)
    run_epochs(folder, scores)


def test_a_kill_at_any_step_of_a_save_loses_nothing(tmp_path: Path) -> None:
    scores = [0.1, 0.9, 0.5, 0.95]  # the weight of the network is the number of its epoch
    run_epochs(tmp_path / "whole", scores)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.json")}
    for step in range(3 * 8 + 2):  # three epochs with a new model, whose two files have a step more, and one without
        folder = tmp_path / str(step)
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(step, folder, scores))
        process.start()
        process.join()
        assert process.exitcode == 9
        if (folder / "model.pt").exists():
            assert load_description(folder / "model.pt")["epoch"] == saved_weight(folder)
        begun = (folder / "last.pt").exists()  # else the model of the first epoch may be there alone
        run_epochs(folder, scores, resume=begun, overwrite=not begun)
        assert (saved_weight(folder), saved_weight(folder, "last.pt")) == (4.0, 4.0)
        assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == whole
        assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "model.json", "model.pt"]


def test_a_folder_of_checkpoints_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OSError, match=r"ckpt_dir='.*models' is no folder that can be written to: "):
        run_epochs(tmp_path / "models", [0.1])


TASKS = {
    "binary-class": ([[0, 1, 0], [1, 1, 1]], "c1"),
    "multi-class": ([[0, 1, 2], [2, 2, 2]], "c2"),
    "multi-label, binary-class": ([[[0, 1], [1, 0], [1, 1]], [[1, 0], [1, 0], [1, 0]]], "c0"),
}


@pytest.mark.parametrize(("task", "labels", "name"), [(task, *rest) for task, rest in TASKS.items()], ids=TASKS)
def test_validation_of_one_class_is_refused_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str, labels: list[Any], name: str
) -> None:
    names = tuple(f"c{number}" for number in range(3 if task == "multi-class" else 2))
    info = DatasetInfo("toy", 2, 4, task, 1, len(names), names)
    good, bad = (BatchLoader(LabelledImages(torch.zeros(3, 1, 4, 4), torch.tensor(each), info)) for each in labels)

    def attach(training: BatchLoader, validation: BatchLoader, folder: Path) -> None:
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        trainer, validator = (Engine(lambda *_: None) for _ in range(2))
        trainer.data_loader, validator.data_loader = training, validation  # type: ignore[attr-defined]
        schedule = schedules.ConstantLR(optimizer)
        Checkpoints(folder, network, optimizer, schedule, validator, "val_auc").attach(trainer)

    with pytest.raises(ValueError, match=rf"^all 3 validation images of 'toy' have the same class \({name}\)"):
        attach(good, bad, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    attach(good, good, tmp_path / "models")
    assert not caplog.records
    attach(bad, good, tmp_path / "models")
    missing = "; ".join(each for each in names if each != name)
    assert caplog.messages == [f"none of the 3 training images is of class {missing}"]


def test_validation_masks_without_foreground_are_refused_before_the_first_step(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for value in (1, 0):
        trainer, validator = (Engine(lambda *_: None) for _ in range(2))
        masks = CacheDataset(  # without names of classes, any number above 0 is foreground
            [{"label": torch.full((1, 2, 2), -value)}, {"label": torch.eye(2)[None] * 2 * value}], progress=False
        )
        validator.data_loader = DataLoader(masks)  # type: ignore[attr-defined]
        saver = Checkpoints(
            tmp_path / str(value), network, optimizer, schedules.ConstantLR(optimizer), validator, "dice"
        )
        if value:
            saver.attach(trainer)
        else:
            with pytest.raises(ValueError, match="no validation mask has any foreground"):
                saver.attach(trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_classes_that_no_validation_mask_has_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where maps hold 0 and 2 for two of three names; what is below 0 does not count."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    names = {"class_names": ["background", "liver", "tumour", "vein"]}
    for values, messages in (
        ([0, 2], ["no validation mask has a pixel of class liver; vein"]),
        ([0, 1, 2, 3], []),
    ):
        caplog.clear()
        trainer, validator = (Engine(lambda *_: None) for _ in range(2))
        masks = CacheDataset([{"label": torch.tensor([[-1.0, value]])} for value in values], progress=False)
        validator.data_loader = DataLoader(masks)  # type: ignore[attr-defined]
        Checkpoints(tmp_path, network, optimizer, schedules.ConstantLR(optimizer), validator, "dice", names).attach(
            trainer
        )
        assert caplog.messages == messages


def test_nothing_is_chosen_by_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'score' is NaN at epoch 2"):
        run_epochs(tmp_path, [0.5, float("nan"), 0.7])
    assert saved_weight(tmp_path) == saved_weight(tmp_path, "last.pt") == 1.0


def ramp_then_fall(optimizer: torch.optim.Optimizer, epochs: int) -> schedules.LRScheduler:
    parts = [schedules.LinearLR(optimizer, 0.1, total_iters=epochs // 2), schedules.ExponentialLR(optimizer, 0.5)]
    return schedules.SequentialLR(optimizer, parts, [epochs // 2])


@pytest.mark.parametrize(("first", "whole"), [(4, 8), (4, 4), (4, 6)])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer, epochs: schedules.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=0.1),
        lambda optimizer, epochs: schedules.LinearLR(optimizer, 0.1, total_iters=epochs),
        lambda optimizer, epochs: schedules.MultiStepLR(optimizer, [epochs // 2, epochs - 1]),
        lambda optimizer, epochs: schedules.OneCycleLR(optimizer, 1.0, total_steps=epochs + 1),
        lambda optimizer, epochs: WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=epochs),
        ramp_then_fall,
        lambda optimizer, epochs: schedules.ChainedScheduler([ramp_then_fall(optimizer, epochs)]),
    ],
    ids=["cosine", "linear", "steps", "one cycle", "warmup", "sequential", "chained"],
)
def test_a_longer_run_goes_on_along_its_own_learning_rates(
    tmp_path: Path, first: int, whole: int, schedule: Callable[[torch.optim.Optimizer, int], schedules.LRScheduler]
) -> None:
    rates: dict[str, list[float]] = {}

    def train(name: str, epochs: int, stop: int, resume: bool = False) -> None:
        network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
        scheduler = schedule(optimizer, epochs)

        def step(_: Engine, __: object) -> None:
            rates.setdefault(name, []).append(optimizer.param_groups[0]["lr"])
            optimizer.step()

        trainer = Engine(step)
        trainer.state.max_epochs, trainer.state.epoch_length = epochs, 1
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: scheduler.step())
        Checkpoints(tmp_path / name, network, optimizer, scheduler, Engine(step), "score", resume=resume).attach(
            trainer
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda engine: engine.terminate())
        trainer.run([0], max_epochs=epochs)

    train("whole", whole, whole)
    train("parts", first, 3)
    train("parts", whole, whole, resume=True)
    assert rates["parts"][3:] == rates["whole"][3:]
    assert len(rates["parts"]) == whole


@pytest.mark.parametrize("per_iteration", [True, False], ids=["per iteration", "per epoch"])
def test_a_training_that_goes_on_with_other_batches_follows_its_own_rates(tmp_path: Path, per_iteration: bool) -> None:
    """Half as many steps per epoch, of twice the images: the rates of a run that had such batches from the start."""

    def train(folder: str, length: int, resume: bool = False, stop: int = 8) -> dict[int, float]:
        network, found = torch.nn.Linear(1, 1), {}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        scheduler = schedules.CosineAnnealingLR(optimizer, T_max=8 * (length if per_iteration else 1))
        trainer = Engine(lambda *_: optimizer.step())
        trainer.state.max_epochs, trainer.state.epoch_length = 8, length
        LrScheduleHandler(scheduler, print_lr=False, epoch_level=not per_iteration).attach(trainer)
        Checkpoints(
            tmp_path / folder, network, optimizer, scheduler, Engine(lambda *_: 0), "score", resume=resume
        ).attach(trainer)
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED,
            lambda engine: found.update({engine.state.epoch: optimizer.param_groups[0]["lr"]}),
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda engine: engine.terminate())
        trainer.run(range(length), max_epochs=8)
        return found

    train("parts", 6, stop=4)
    whole, rest = train("whole", 3), train("parts", 3, resume=True)
    assert list(rest) == [5, 6, 7, 8]
    assert rest == {epoch: pytest.approx(whole[epoch]) for epoch in rest}


def test_a_schedule_on_plateaus_resumes_at_its_rate(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1)

    def saver(resume: bool) -> tuple[Checkpoints, schedules.ReduceLROnPlateau]:
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scheduler = schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return Checkpoints(
            tmp_path, network, optimizer, scheduler, Engine(lambda *_: 0), "score", resume=resume
        ), scheduler

    first, scheduler = saver(False)
    trainer = Engine(lambda *_: scheduler.step(1.0))
    first.attach(trainer)
    trainer.run([0], max_epochs=3)
    second, resumed = saver(True)
    trainer = Engine(lambda *_: 0)
    trainer.state.max_epochs, trainer.state.epoch_length = 4, 1
    second.attach(trainer)
    assert resumed.optimizer.param_groups[0]["lr"] == scheduler.optimizer.param_groups[0]["lr"] == 0.25


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    trainer, validator = Engine(lambda _, batch: batch), Engine(lambda _, batch: batch)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    Checkpoints(tmp_path, network, optimizer, scheduler, validator, "score").attach(trainer)
    trainer.run([0])
    assert list(tmp_path.iterdir()) == []


def test_epoch_seed_depends_on_seed_epoch_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        engine = Engine(lambda _, __: drawn.add(float(torch.rand(1))))
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        EpochSeed(seed).attach(engine)
        engine.run([0], max_epochs=2)
    assert len(drawn) == 6


def test_autocast_computes_in_bfloat16_and_returns_float32() -> None:
    seen = []

    class Probe(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    x = torch.ones(2, 3)
    assert AutocastInferer(True)(x, Probe(3, 4)).dtype == torch.float32
    assert AutocastInferer(False)(x, Probe(3, 4)).dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_takes_networks_of_several_outputs(enabled: bool) -> None:
    net = SREUNet(2, 1, 2, channels=(4, 8, 8), strides=(2, 2), deep_supervision=True)
    outputs = AutocastInferer(enabled)(torch.randn(1, 1, 16, 16), net)
    assert len(outputs) > 1
    assert {out.dtype for out in outputs} == {torch.float32}
