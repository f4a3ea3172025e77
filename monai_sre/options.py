"""The options of a bundle: of which kind each is, checked in one place before anything is read, trained or overwritten."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, run

from monai_sre.ops.arguments import as_flag, cause_of


def check_options(options: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
    """Refuse values that an option cannot have, and on a command line, names that no config has.

    Args:
        options: names and values. :data:`KINDS` says what each may be.
        command: the command line; ``None`` is that of this process, if it is ``python -m monai.bundle run``. A text on it
            must mean what was typed: ``--output_dir 2024`` is a number to MONAI's command line, and ``run#2`` is ``run``;
            it drops what is None.

    Raises:
        ValueError: a value is not of its kind, or a name is unknown; the message names the option and what it takes.

    Example:
        >>> check_options({"amp": "yes", "max_epochs": 1.5})
        Traceback (most recent call last):
        ValueError: max_epochs must be a whole number from 1, got 1.5
    """
    if command is None and _is_bundle_run(sys.orig_argv):
        command = sys.orig_argv
    for name, value in options.items():
        KINDS[name](name, value)
    dims = options.get("spatial_dims")
    for name, several in (("pixdim", "None or one length"), ("patch_size", "a whole number or one")):
        value = options.get(name)
        if dims and isinstance(value, (list, tuple)) and value and len(value) != dims:
            raise ValueError(f"{name} must be {several} for each of {dims} axes, got {value!r}")
    if command is not None:
        _check_command(command, {name: value for name, value in options.items() if KINDS[name] is _text})


def check_class_names(class_names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names of classes that are not those of the data, or of the model: an output would be called by another's name.

    Args:
        class_names: the option.
        known: of the data or the model; where these are the numbers of the classes, as many others are taken.

    Raises:
        ValueError: it is no list of names, or they differ; the message names both.

    Example:
        >>> check_class_names(["no", "yes"], ["0", "1"])
        >>> check_class_names(["malignant", "benign"], ["benign", "malignant"])
        Traceback (most recent call last):
        ValueError: class_names must be ['benign', 'malignant'], in this order, got ['malignant', 'benign']
    """
    _names("class_names", class_names)
    names, theirs = ([str(name) for name in each] for each in (class_names, known))
    numbered = theirs == [str(number) for number in range(len(theirs))]
    if len(names) != len(theirs) or not (numbered or names == theirs):
        wanted = f"{len(theirs)} names" if numbered else f"{theirs}, in this order"
        raise ValueError(f"class_names must be {wanted}, got {names}")


def check_channels(num_channels: int, **options: float | Sequence[float]) -> None:
    """Refuse lists that do not hold a number for each channel of the data.

    Raises:
        ValueError: one does not; the message names the option.

    Example:
        >>> check_channels(3, mean=0.5, std=[0.2, 0.3])
        Traceback (most recent call last):
        ValueError: std must be a number or one for each of 3 channels, got [0.2, 0.3]
    """
    for name, value in options.items():
        if isinstance(value, (list, tuple)) and len(value) not in (1, num_channels):
            raise ValueError(f"{name} must be a number or one for each of {num_channels} channels, got {value!r}")


def turned(rotation: bool | str, pixdim: Sequence[float] | None) -> bool:
    """Whether images are rotated at random in training, which turns the grid and so needs voxels that are cubes.

    Args:
        rotation: the option.
        pixdim: the size of a voxel that images are resampled to; None: they are not.

    Raises:
        ValueError: ``rotation`` is no yes or no, or it is one, and the sides of a voxel differ.

    Example:
        >>> turned("false", [1, 1, 4]), turned(True, [1, 1, 1])
        (False, True)
        >>> turned("true", [1, 1, 4])
        Traceback (most recent call last):
        ValueError: rotation=True rotates the grid of voxels, which must be cubes; these are 1 x 1 x 4 mm
    """
    found = as_flag("rotation", rotation)
    if found:
        from monai_sre.data.geometry import check_cubes  # which needs what a bare installation lacks

        check_cubes(pixdim, "rotation=True")
    return found


def explain_errors() -> None:
    """Let ``python -m monai.bundle run`` end with the sentence that says what went wrong, which MONAI's own errors wrap."""
    if _is_bundle_run(sys.orig_argv):
        sys.excepthook = _end_with_the_cause


def _number(name: str, value: Any, least: float, whole: bool) -> None:
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < least:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {least:g}, got {value!r}")


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item) for item in value
    )


def _range(name: str, value: Any) -> None:
    if value is not None and not (_numbers(value) and len(value) == 2 and value[0] < value[1]):
        raise ValueError(f"{name} must be None or two increasing numbers such as [-100,300], got {value!r}")


def _percentiles(name: str, value: Any) -> None:
    if not (_numbers(value) and len(value) == 2 and 0 <= value[0] < value[1] <= 100):
        raise ValueError(f"{name} must be two increasing numbers from 0 to 100 such as [0.5,99.5], got {value!r}")


def _sides(name: str, value: Any) -> None:
    """Of a patch."""
    for side in value if isinstance(value, (list, tuple)) and value else [value]:
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise ValueError(f"{name} must be a whole number from 1 or one per axis, such as [36,52,36], got {value!r}")


def _per_channel(name: str, value: Any, positive: bool) -> None:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not _numbers(values) or (positive and min(values) <= 0):
        raise ValueError(f"{name} must be a number{' above 0' if positive else ''} or one per channel, got {value!r}")


def _names(name: str, value: Any) -> None:
    good = isinstance(value, (list, tuple)) and all(isinstance(item, (str, int)) for item in value)
    if not good or len(value) < 2 or len({str(item) for item in value}) < len(value):
        raise ValueError(f"{name} must be a list of 2 names or more that differ, such as ['no','yes'], got {value!r}")


def _lengths(name: str, value: Any) -> None:
    """Of a voxel; none, where volumes are not resampled."""
    lengths = [] if value is None else value
    if not isinstance(lengths, (list, tuple)) or not all(
        isinstance(length, (int, float)) and not isinstance(length, bool) and 0 < length < math.inf
        for length in lengths
    ):
        raise ValueError(f"{name} must be None or lengths above 0, one per axis, such as [1,1,2.5], got {value!r}")


def _dims(name: str, value: Any) -> None:
    if value not in (2, 3):
        raise ValueError(f"{name} must be 2 or 3, got {value!r}")


def _text(name: str, value: Any) -> None:
    items = value if isinstance(value, (list, tuple)) else [value]
    if not all(item is None or isinstance(item, (str, Path)) for item in items):
        raise ValueError(f"{name} must be a text, got {value!r}; write './{value}' for a file or folder of that name")
    if any("\0" in str(item) for item in items):
        raise ValueError(f"{name} must hold no NUL character, got {value!r}")


def _unless_none(check: Callable[[str, Any], object], name: str, value: Any) -> None:
    if value is not None:
        check(name, value)


_from_0 = partial(_number, least=0, whole=True)
_from_1 = partial(_number, least=1, whole=True)
#: What each option of a bundle may be: a function of its name and value that raises.
KINDS: dict[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("activation_maps", "amp", "dicom_seg", "overwrite", "report", "resume"), as_flag),
    **dict.fromkeys(("rotation", "sweep"), as_flag),
    **dict.fromkeys(("batch_size", "image_size", "max_epochs", "num_channels", "patches_per_image"), _from_1),
    **dict.fromkeys(("size", "val_interval"), _from_1),
    **dict.fromkeys(("early_stopping", "every", "num_workers", "seed"), _from_0),
    **dict.fromkeys(("num_test", "num_val"), partial(_unless_none, _from_0)),
    "num_train": partial(_unless_none, _from_1),
    **dict.fromkeys(
        ("cache_gib", "field_threshold", "learning_rate", "margins", "weight_decay"),
        partial(_number, least=0, whole=False),
    ),
    "class_names": _names,
    "intensity_range": _range,
    "mean": partial(_per_channel, positive=False),
    "patch_size": _sides,
    "percentiles": _percentiles,
    "pixdim": _lengths,
    "spatial_dims": _dims,
    "std": partial(_per_channel, positive=True),
    **dict.fromkeys(("ckpt_dir", "dataset_dir", "dataset_name", "input", "output_dir"), _text),
}


#: Options that may be lists of names or of files.
_LISTS_OF_TEXTS = ("class_names", "input")


def _is_bundle_run(words: Sequence[str]) -> bool:
    return "monai.bundle" in words and "run" in words[words.index("monai.bundle") :]


def given_options(words: Sequence[str]) -> dict[str, str]:
    """The options on a command line, as they were typed.

    Example:
        >>> given_options(["--size", "28", "--amp=true"])
        {'size': '28', 'amp': 'true'}
    """
    found: dict[str, str] = {}
    for word, follower in zip(words, [*words, ""][1:], strict=True):
        match = re.fullmatch(r"--?([A-Za-z_][\w#:\-]*)(?:=(.*))?", word, flags=re.DOTALL)
        if match:
            found[match[1].replace("-", "_")] = follower if match[2] is None else match[2]
    return found


def _check_command(words: Sequence[str], texts: Mapping[str, Any]) -> None:
    given = given_options(words[words.index("run") :])
    if "args_file" in given or "config_file" not in given:  # what stands in the file is not known here
        return
    files = given["config_file"]
    names = ast.literal_eval(files) if files.startswith(("[", "(")) else files.split(",")
    known = {*ConfigParser.load_config_files(names), *inspect.signature(run).parameters, "_meta_"} - {"override"}
    for name, typed in given.items():
        root = re.split("#|::", name)[0]
        if root not in known:
            close = difflib.get_close_matches(root, known, 1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise ValueError(f"--{name} is no option of {files}{hint}")
        if typed == "None":
            raise ValueError(
                f"--{name} None: the command line drops it; write '$None', or './None' for a name in this folder"
            )
        value = texts.get(name, typed)
        named = root in _LISTS_OF_TEXTS and "#" in typed and not typed.startswith(("$", "@", "%"))
        if not named and (typed.startswith(("$", "@", "%", "[", "(")) or str(value) == typed):
            continue
        if "#" in typed:
            raise ValueError(f"--{name} {typed}: a name with '#' cannot be given to a bundle; rename it, or link to it")
        raise ValueError(
            f"--{name} {typed}: the command line reads {value!r}; write './{typed}' for a name in this folder"
        )


def _end_with_the_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    error = cause_of(error)
    print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
