"""Results of inference as files: a table with one row per file, and maps on the grid of each file."""

from __future__ import annotations

import csv
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor, PILWriter, decollate_batch
from monai.transforms import Invertd, InvertibleTransform
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from monai_sre.data.dicom import is_dicom
from monai_sre.data.inference import earlier_outputs, note_output
from monai_sre.data.info import MULTI_LABEL, TASKS
from monai_sre.data.masks import check_label_values
from monai_sre.data.reader import ReadImaged, is_nifti, own_affine, stem
from monai_sre.evaluation.activation import ClassActivation
from monai_sre.evaluation.dicom_seg import save_dicom_seg
from monai_sre.evaluation.page import COLOURS, Measure, RunPage, draw_planes
from monai_sre.evaluation.windows import FileInferer
from monai_sre.extras import require
from monai_sre.files import writable_folder, write_whole
from monai_sre.ops.arguments import as_flag, cause_of, listed

__all__ = ["FileTable", "PredictionWriter", "SegmentationWriter", "save_map"]

_LOGGER = logging.getLogger(__name__)
#: Probabilities of two classes that are closer than this are said on the page.
_CLOSE = 0.1
#: Endings of the inputs, the longer first where one ends in another, and of their class maps.
_ENDINGS = {".nii.gz": ".nii.gz", ".nii": ".nii.gz", ".npy": ".npy", ".npz": ".npy"}


class FileTable(ABC):
    """Evaluator handler: a CSV with one row per file, and at the end a summary of those that could not be used.

    Args:
        path: of the CSV; its folder is created if need be.
        preprocessing: the transforms of the input, whose inverse brings maps back onto the grid of the file; None: the
            input is as the file holds it.
        page: the page to look at that is written beside it; None: none.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
    """

    def __init__(self, path: Path, preprocessing: InvertibleTransform | None, page: RunPage | None = None) -> None:
        self.path, self.page = path, page
        self.rows: list[dict[str, Any]] = []
        self._claimed: set[Path] = set()
        self._written = 0
        self._earlier: set[Path] = set()
        self._invert = None
        if preprocessing is not None:
            self._invert = Invertd("map", preprocessing, orig_keys="image", nearest_interp=False)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batches hold ``"path"`` and ``"error"``, and whose output is that of a bundle."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._append)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def finish(self) -> None:
        """Log a summary; ends the process with exit code 1 if a file could not be used.

        Raises:
            SystemExit: with a message that lists the files in question.
        """
        bad = [row for row in self.rows if row["error"]]
        _LOGGER.info("%d of %d files predicted -> %s", len(self.rows) - len(bad), len(self.rows), self.path)
        if bad:
            named = listed([f"  {row['error']}" for row in bad], 20, "\n")
            raise SystemExit(f"{len(bad)} of {len(self.rows)} files could not be used, see {self.path}:\n{named}")

    def claim(self, name: str, ending: str) -> Path:
        """Where to write what belongs to an input file, in the input's folder below that of the table.

        It is ``STEM`` + ``ending``; of a second file of that stem, with another ending, its whole name + ``ending``.

        Args:
            name: of the input file, from the folder that holds all inputs.
            ending: of the path.

        Raises:
            OSError: another file has claimed that path, what lies there was written by no inference, or was changed since,
                or its folder cannot be created.
        """
        target = self.path.parent / f"{stem(name)}{ending}"
        if target in self._claimed:
            target = self.path.parent / f"{name}{ending}"
        if target in self._claimed:
            raise OSError(f"{target} is that of another file already")
        if target.exists() and target.resolve() not in self._earlier:
            raise OSError(
                f"{target} is there, and no inference wrote it, or it was changed since; move it, or take another output_dir"
            )
        self._claimed.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def on_own_grid(self, image: Tensor, values: Tensor) -> Tensor:
        """Bring a map ``(C, *spatial)`` from the grid of the network's input, with its metadata, onto that of the file."""
        found = MetaTensor(convert_to_tensor(values), meta=dict(getattr(image, "meta", {})))
        if self._invert is not None and getattr(image, "applied_operations", None):
            found = self._invert({"image": image, "map": found})["map"]
        return found.cpu()

    def save(self, write: Callable[[Path], object], name: str, ending: str) -> Path:
        """Let a file be written where it belongs, and note it as an output.

        Raises:
            OSError: see :meth:`claim`; or it cannot be written, and is not there.
        """
        target = self.claim(name, ending)
        write_whole({target: write})
        try:
            note_output(target, self.path.parent)
        except OSError:
            target.unlink()  # which would be an input from now on
            raise
        return target

    def _start(self, _: Engine) -> None:
        self.rows, self._claimed, self._written = [], set(), 0
        writable_folder(self.path.parent)
        self._earlier = earlier_outputs(self.path.parent)
        with self.path.open("a"):  # found out now; what it holds is replaced by the first row
            pass
        if self.page is not None:
            self.page.start()

    def _append(self, _: Engine) -> None:
        """Add the newest rows to the file: whatever stops the run, it holds all files so far."""
        try:
            mode = "a" if self._written else "w"
            with self.path.open(mode, newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                if self._written == 0:
                    writer.writeheader()
                writer.writerows(self.rows[self._written :])
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error
        self._written = len(self.rows)
        if self.page is not None:
            self.page.flush()

    def _close(self, _: Engine) -> None:
        if self.page is not None:
            good = sum(not row["error"] for row in self.rows)
            self.page.finish(f"{good} of {len(self.rows)} images could be used. The table of all is {self.path.name}.")

    def _show(
        self,
        batch: Mapping[str, Any],
        index: int,
        measures: Sequence[Measure],
        warnings: Sequence[str],
        **layers: np.ndarray | None,
    ) -> None:
        """Add the newest row to the page; the picture is that of the files, on whose grid the layers lie."""
        if self.page is None:
            return
        row, picture = self.rows[-1], None
        if self.page.wants_pictures and not row["error"]:
            paths = [Path(path) for path in batch["files"][index].split("\0")]
            try:
                image = ReadImaged("image", batch["image"].dim() - 2)({"image": paths})["image"]
                picture = draw_planes(image.numpy(), image.affine.numpy(), **layers, sides=_has_sides(paths[0]))
            except Exception as problem:  # of each kind of file its own; the results stand
                warnings = [*warnings, f"no picture: {_cause(problem)}"]
        self.page.add(batch["name"][index], row["file"], measures, picture, warnings, row["error"])

    @abstractmethod
    def _collect(self, engine: Engine) -> None:
        """Add the rows of one batch to ``rows``."""


class PredictionWriter(FileTable):
    """Evaluator handler: ``predictions.csv`` with one row per file: path, class, its name, probabilities, error.

    For a multi-label task the class is the list of labels above 0.5. On request each file also gets a class-activation map of
    its class (multi-label: of the most probable label) as ``NAME_activation.nii.gz``, float32, on the file's own grid, NIfTI
    with its header: above 0 speaks for the class. A file whose map cannot be made or written has the reason in the table, and
    the others go on. ``report.html`` shows each image with its probabilities and its map, on request.

    Args:
        output_dir: folder of the files, created if need be; for maps, folders below that of the inputs are repeated in it.
        task: one of :data:`monai_sre.data.info.TASKS`.
        class_names: one name per class.
        activation_maps: whether to write the maps.
        network: that of the evaluator, for the maps.
        target_layer: see :class:`ClassActivation`.
        preprocessing: the transforms of the input: what they did to the grid is undone.
        report: whether to write the page.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
        ValueError: the task is unknown, ``activation_maps`` or ``report`` is no yes or no, the network has no such layer or
            is missing; or, at inference, it does not give one score per class name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        task: str,
        class_names: Sequence[str],
        activation_maps: bool | str = False,
        network: nn.Module | None = None,
        target_layer: str | None = None,
        preprocessing: InvertibleTransform | None = None,
        report: bool | str = False,
    ) -> None:
        note = "Bars are probabilities. "
        if as_flag("activation_maps", activation_maps):
            note += "In the second copy, red speaks for the class decided for, blue against it. "
        page = _page(output_dir, report, "Classes", note)
        super().__init__(Path(output_dir) / "predictions.csv", preprocessing, page)
        if task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {task!r}")
        self.task, self.class_names = task, [str(name) for name in class_names]
        self.activation = None
        if as_flag("activation_maps", activation_maps):
            if network is None:
                raise ValueError("activation_maps needs the network, got network=None")
            self.activation = ClassActivation(network, target_layer, relative=task != MULTI_LABEL)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        scores = output["score"].cpu().numpy()
        _check_names(self.class_names, scores.shape[1])
        images = decollate_batch(output["image"]) if self.activation is not None else [None] * len(scores)
        columns = [batch[key] for key in ("path", "name", "error")]
        for index, (image, score, path, name, error) in enumerate(zip(images, scores, *columns, strict=True)):
            if not error and not np.isfinite(score).all():
                error = f"{path}: the network gives NaN"
            row: dict[str, Any] = {"file": path, "class": "", "name": ""}
            chosen = np.flatnonzero(score > 0.5) if self.task == MULTI_LABEL else [int(score.argmax())]
            measures, warnings, heat = list[Measure](), list[str](), None
            if not error:
                row["class"] = " ".join(str(number) for number in chosen)
                row["name"] = "; ".join(self.class_names[number] for number in chosen)
                pairs = zip(self.class_names, map(float, score), strict=True)
                measures = [Measure(title, [f"{value:.3f}"], bar=value) for title, value in pairs]
                first, second = sorted((*score, 0.0))[-1:-3:-1]
                if self.task != MULTI_LABEL and first - second < _CLOSE:
                    warnings = [f"the two most probable classes are within {_CLOSE} of each other"]
            shown = ["" if error else f"{value:.6f}" for value in score]
            row |= {f"p({title})": value for title, value in zip(self.class_names, shown, strict=True)}
            if self.activation is not None:
                row["activation"] = ""
                if not error:
                    try:
                        heat = self._activation(image, int(score.argmax()))[0].numpy()
                        write = partial(save_map, heat, Path(path), affine=own_affine(image))
                        row["activation"] = str(self.save(write, name, "_activation.nii.gz"))
                    except Exception as problem:  # each transform and writer has its own
                        error = f"{path}: its activation map cannot be written: {_cause(problem)}"
            self.rows.append(row | {"error": error})
            self._show(batch, index, measures, warnings, heat=heat)

    def _activation(self, image: Tensor, decided: int) -> Tensor:
        """The map of a class ``(1, *spatial)``, on the grid of the file."""
        assert self.activation is not None
        seen = convert_to_tensor(image)
        maps = self.activation(seen[None], torch.tensor([decided], device=seen.device))
        return self.on_own_grid(image, self.activation.resample(maps.float(), seen.shape[1:]))


class SegmentationWriter(FileTable):
    """Evaluator handler for inference: one class map per file on the file's own grid, and ``segmentations.csv``.

    NIfTI files get ``NAME_seg.nii.gz`` with their header and affine, DICOM the same with the affine of the series, arrays
    ``NAME_seg.npy``, pictures ``NAME_seg.png``, in which two classes are 0 and 255. On request, DICOM also gets
    ``NAME_seg.dcm``, a DICOM SEG that refers to the series, and ``report.html`` shows each image with the outlines of what is
    found. Of volumes whose files tell the size of a voxel, the table has the ml of each class, by the unit mm. A file that
    cannot be read, that the network cannot take, or whose map cannot be
    written, has the reason in the table, and the others go on.

    It reads the network's logits, ``"pred"``, and makes the probabilities of one class after the other, so that a volume
    takes little more memory than these logits.

    Args:
        output_dir: folder of the files, created if need be; folders below that of the inputs are repeated in it.
        preprocessing: the transforms of the input: what they did to the grid is undone.
        class_names: one name per class; the table holds the share of pixels of each but the background.
        inferer: that of the evaluator, if it is a :class:`monai_sre.evaluation.FileInferer`.
        report: whether to write the page.
        dicom_seg: whether to write DICOM SEG, which needs the extra ``dicom``.
        label_values: the value of each class in the maps, the background's first, whole numbers; None: the class numbers. A
            DICOM SEG numbers its segments from 1.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
        ImportError: the extra is missing.
        ValueError: ``report`` or ``dicom_seg`` is no yes or no, there is not one label value per class, each another; or, at
            inference, the network does not give one score per class name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        preprocessing: InvertibleTransform,
        class_names: Sequence[str] = ("background", "foreground"),
        inferer: FileInferer | None = None,
        report: bool | str = False,
        dicom_seg: bool | str = False,
        label_values: Sequence[int] | None = None,
    ) -> None:
        page = _page(output_dir, report, "Segmentations", "Outlines have the colours of the classes. ")
        super().__init__(Path(output_dir) / "segmentations.csv", preprocessing, page)
        self.class_names, self.inferer = [str(name) for name in class_names], inferer
        self.values: np.ndarray | None = None
        if label_values is not None:
            values = check_label_values(label_values, len(class_names))
            self.values = np.array(values, dtype=np.result_type(*map(np.min_scalar_type, values)))
        self.dicom_seg = as_flag("dicom_seg", dicom_seg)
        if self.dicom_seg:
            require("dicom_seg=True", "pydicom highdicom", "dicom")

    def finish(self) -> None:
        """As that of a table; and say which files have no DICOM SEG, as they are no DICOM."""
        other = [row["file"] for row in self.rows if self.dicom_seg and not row["error"] and not row["dicom"]]
        if other:
            _LOGGER.warning("%d files are no DICOM, so they have no DICOM SEG: %s", len(other), listed(other))
        super().finish()

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        images, found = decollate_batch(batch["image"]), decollate_batch(output["pred"])
        for index, (image, logits) in enumerate(zip(images, found, strict=True)):
            path, name, error = (batch[key][index] for key in ("path", "name", "error"))
            row: dict[str, Any] = {"file": path, "output": ""} | ({"dicom": ""} if self.dicom_seg else {})
            if not error and self.inferer is not None and self.inferer.error:
                error = f"{path}: the network cannot take it: {self.inferer.error}"
            elif not error and not all(bool(part.isfinite().all()) for part in logits):
                error = f"{path}: the network gives NaN"
            titles = self.class_names[1:]
            sizes = {f"share of {title}": "" for title in titles}
            sizes |= {f"ml of {title}": "" for title in titles if image.dim() == 4}
            classes, measures, warnings = None, list[Measure](), list[str]()
            if not error:
                _check_names(self.class_names, len(logits))
                files = [Path(file) for file in batch["files"][index].split("\0")]
                try:
                    classes, affine = self._classes(image, logits), own_affine(image)
                    measures, warnings = self._measure(classes, affine, files[0], sizes)
                    row["output"] = str(self._save(classes, affine, path, name, files[0]))
                    if self.dicom_seg and is_dicom(files[0]):
                        write = partial(save_dicom_seg, classes, files, self.class_names)
                        row["dicom"] = str(self.save(write, name, "_seg.dcm"))
                except Exception as problem:  # each transform and writer has its own
                    what = "DICOM SEG" if row["output"] else "map"
                    error = f"{path}: its {what} cannot be written: {_cause(problem)}"
            self.rows.append({**row, **sizes, "error": error})
            self._show(batch, index, measures, warnings, classes=classes)

    def _classes(self, image: Tensor, logits: Tensor) -> np.ndarray:
        """The most probable class at each pixel of the file; one class at a time, to spare memory."""
        best, classes = torch.empty(0), np.empty(0, dtype=np.uint8)
        total = logits[0].clone()  # of the exponentials of all, as a logarithm
        for part in logits[1:]:
            torch.logaddexp(total, part, out=total)
        for index in range(len(logits)):
            part = convert_to_tensor(self.on_own_grid(image, (logits[index : index + 1] - total).exp_()))[0]
            if index == 0:
                best, classes = part, np.zeros(part.shape, dtype=np.uint8)
            else:
                classes[(part > best).numpy()] = index
                best = torch.maximum(best, part)
        return classes

    def _measure(
        self, classes: np.ndarray, affine: np.ndarray, file: Path, sizes: dict[str, str]
    ) -> tuple[list[Measure], list[str]]:
        """Fill in the sizes, and say the same for the page, with what to be aware of."""
        measures: list[Measure] = []
        warnings: list[str] = []
        voxel = None
        if classes.ndim == 3 and _in_space(file):
            voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        for value, title in enumerate(self.class_names[1:], start=1):
            where = classes == value
            count = int(where.sum())
            sizes[f"share of {title}"] = f"{count / classes.size:.6f}"
            shown = [f"{100 * count / classes.size:.2f} %"]
            if voxel is not None:
                sizes[f"ml of {title}"] = f"{count * voxel:.4f}"
                shown = [f"{count * voxel:.3f} ml", *shown]
            measures.append(Measure(title, shown, COLOURS[(value - 1) % len(COLOURS)]))
            if count == 0:
                warnings.append(f"no {title} was found")
            elif classes.ndim == 3 and any(where.take([0, -1], axis).any() for axis in range(3)):
                warnings.append(f"{title} reaches the edge of the image")
        return measures, warnings

    def _save(self, classes: np.ndarray, affine: np.ndarray, source: str, name: str, file: Path) -> Path:
        default = ".nii.gz" if is_dicom(file) else ".png"
        ending = next((_ENDINGS[end] for end in _ENDINGS if name.lower().endswith(end)), default)
        if self.values is not None:
            classes = self.values[classes]
            if ending == ".png" and classes.dtype != np.uint8:
                raise ValueError(f"a picture holds values from 0 to 255, and label_values are {self.values.tolist()}")
        elif ending == ".png" and len(self.class_names) == 2:
            classes = classes * np.uint8(255)
        return self.save(partial(save_map, classes, Path(source), affine=affine), name, f"_seg{ending}")


def _in_space(path: Path) -> bool:
    """Whether a file says how large its voxels are."""
    return is_nifti(path) or is_dicom(path)


def _has_sides(path: Path) -> bool:
    """Whether a file says which side is right: NIfTI only by a code that is not 0."""
    if not is_nifti(path):
        return is_dicom(path)
    header: Any = nibabel.load(path).header
    return bool(header["sform_code"] or header["qform_code"])


def _page(output_dir: str | Path, report: bool | str, title: str, note: str) -> RunPage | None:
    return RunPage(Path(output_dir) / "report.html", title, note) if as_flag("report", report) else None


def save_map(values: np.ndarray, source: Path, target: Path, affine: np.ndarray | None = None) -> None:
    """Write a map of an image file: as an array, a picture, or NIfTI with the affine and the header of a NIfTI image.

    MONAI's ``NibabelWriter`` would set the codes of the header anew and knows NIfTI-1 alone, so nibabel writes these.

    Args:
        values: shape ``(*spatial)``, the axes as :class:`monai_sre.data.ReadImaged` gives them; the file has their dtype.
        source: the image.
        target: of the map; the ending says which kind of file.
        affine: ``(4, 4)``, of a map of an image that is no NIfTI; None: the identity.

    Example:
        >>> import nibabel, tempfile
        >>> source = Path(tempfile.mkdtemp()) / "a.nii"
        >>> nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 5), dtype=np.float32), np.diag([2.0, 3.0, 4.0, 1.0])), source)
        >>> save_map(np.ones((4, 3, 2), dtype=np.uint8), source, source.with_name("a_seg.nii.gz"))
        >>> written = nibabel.load(source.with_name("a_seg.nii.gz"))
        >>> written.shape, written.affine.diagonal().tolist(), written.get_data_dtype()
        ((4, 3, 2), [2.0, 3.0, 4.0, 1.0], dtype('uint8'))
    """
    if target.suffix == ".npy":
        np.save(target, values)
    elif target.suffix == ".png":
        writer = PILWriter(output_dtype=np.uint8, scale=None)
        writer.set_data_array(values, channel_dim=None)
        writer.write(target, reverse_indexing=False)
    else:
        place = np.eye(4) if affine is None else affine
        image: Any = nibabel.load(source) if is_nifti(source) else nibabel.Nifti1Image(values, place)
        if source.is_dir() or is_dicom(source):  # of a series
            image.header.set_xyzt_units("mm")
        if values.size == int(np.prod(image.shape[:3])):  # axes of one voxel were dropped
            values = values.reshape(image.shape[:3])
        header = image.header.copy()
        header.set_data_dtype(values.dtype)
        header["cal_min"] = header["cal_max"] = 0
        kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        nibabel.save(kind(values, image.affine, header), target)


def _check_names(class_names: Sequence[str], count: int) -> None:
    if len(class_names) != count:
        raise ValueError(f"class_names must be {count} names, as the network says, got {list(class_names)}")


def _cause(problem: BaseException) -> str:
    """One line of what went wrong, without what MONAI says of its transforms."""
    problem = cause_of(problem)
    return " ".join(f"{type(problem).__name__}: {problem}".split())
