"""DICOM: the files of a series become one volume with its place in space, or end in one sentence that says what is wrong.

Stored values are those of MONAI's ``PydicomReader``. Its order of slices is that of the instance numbers, and it knows
nothing of what an enhanced file says of its frames, so order, affine, slope and intercept are found here, from what each
slice or frame says. A volume has the axes (columns, rows, slices), a single image (rows, columns), as displayed.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.data import PydicomReader

from monai_sre.extras import is_installed, require

__all__ = ["DICOM_ENDINGS", "ImageCase", "Plane", "find_cases", "is_dicom", "open_series", "place", "read_series"]

_LOGGER = logging.getLogger(__name__)
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
#: How far a slice may lie from where even gaps put it, as a share of the gap; directions and spacings, of their values.
_TOLERANCE, _ROUNDING = 0.05, 1e-3
#: Where positions are written in tenths of a mm, slices may lie so far off for that alone, but by a third of a gap at most.
_WRITTEN = 0.1
#: Slices that are closer than this, in mm, lie at one place.
_SAME = 1e-3
_MEASURES, _TRANSFORMATION = "PixelMeasuresSequence", "PixelValueTransformationSequence"
_TAGS = ["SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "Rows", "NumberOfFrames", "SOPClassUID"]


class ImageCase(NamedTuple):
    """What inference takes as one image: the path that tells it, its files, and the path that its results are named after."""

    path: Path
    files: tuple[Path, ...]
    named: Path


class Plane(NamedTuple):
    """Where a slice lies, in DICOM's coordinates (left, posterior, superior; mm): ``(2, 3)``, ``(3,)`` and ``(2,)``."""

    name: str
    #: Unit vectors along the columns' index and along the rows' index.
    directions: np.ndarray
    #: Of the centre of its first pixel.
    position: np.ndarray
    #: Between rows, and between columns.
    spacing: np.ndarray


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or by its first bytes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "IM0001"
        >>> _ = path.write_bytes(bytes(128) + b"DICM")
        >>> is_dicom(path), is_dicom(Path("a.dcm")), is_dicom(Path("a.nii.gz"))
        (True, True, False)
    """
    if path.name.lower().endswith(DICOM_ENDINGS):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_cases(paths: Sequence[Path], series: bool) -> list[ImageCase]:
    """What is one image of the files found: the DICOM files of one series in one folder together, each other file alone.

    Such a series is named after its folder, or where that holds more, in it after its number and description; what the
    folder holds is then logged, and so is a series that lies in several folders. DICOM files without an image, such as
    plans, and segmentations are left out with a warning.
    Without pydicom, each file is a case, which will be an error.

    Args:
        paths: of the files.
        series: whether files of a series belong together; for images of two axes each file is one.

    Raises:
        FileNotFoundError: all files are left out.

    Example:
        >>> [case.path.name for case in find_cases([Path("in/b.png"), Path("in/a.nii")], series=True)]
        ['b.png', 'a.nii']
    """
    if not is_installed("pydicom"):
        return [ImageCase(path, (path,), path) for path in paths]
    groups: dict[tuple[Path, str], list[Path]] = {}
    heads: dict[Path, Any] = {}
    left: Counter[str] = Counter()
    for path in paths:
        head = _head(path) if is_dicom(path) else None
        if head is not None and not _is_image(head):
            kind = head.file_meta.get("MediaStorageSOPClassUID")
            left[head.get("Modality") or (kind.name if kind else "unknown")] += 1
            continue
        series_uid = "" if head is None or not series or _frames(head) > 1 else str(head.get("SeriesInstanceUID", ""))
        groups.setdefault((path.parent, series_uid) if series_uid else (path, ""), []).append(path)
        heads[path] = head
    if left:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left.items()))
        if not groups:
            raise FileNotFoundError(f"no image in {paths[0].parent}: the DICOM files are of other kinds, {kinds}")
        _LOGGER.warning("left out %d DICOM files, which are no images: %s", left.total(), kinds)
    folders: dict[str, list[str]] = {}
    for folder, uid in groups:
        folders.setdefault(uid, []).append(str(folder))
    for uid, places in folders.items():
        if uid and len(places) > 1:
            _LOGGER.warning(
                "the series %s lies in %d folders, of which each is taken for a volume; put its files into one: %s",
                *(uid, len(places), ", ".join(places)),
            )
    cases, held, taken = [], Counter(path.parent for path in heads), set[Path]()
    for (folder, uid), files in groups.items():
        if len(files) == 1:
            cases.append(ImageCase(files[0], tuple(files), files[0]))
        elif len(files) == held[folder]:
            cases.append(ImageCase(folder, tuple(files), folder))
        else:
            head = heads[files[0]]
            title = f"series {head.get('SeriesNumber') or ''} {head.get('SeriesDescription') or ''}"
            name = re.sub(r"[^\w]+", "-", title).strip("-")
            named = folder / (f"{name}-{uid}" if folder / name in taken else name)
            taken.add(named)
            cases.append(ImageCase(files[0], tuple(files), named))
            _LOGGER.warning("%s holds several series; %d files are the case %s", folder, len(files), named.name)
    return cases


def _head(path: Path) -> Any:
    """What a file says of itself before its pixels; None where it cannot be read, which is said when it is to be used."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except Exception:  # of many kinds, for damaged files
        return None


def _is_image(dataset: Any) -> bool:
    return "Rows" in dataset and dataset.get("Modality") != "SEG"


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def read_series(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read the files of one series, or one file.

    Args:
        files: in any order; of a folder, see :func:`find_cases`.

    Returns:
        The values, of shape ``(columns, rows, slices)`` or, of one image, ``(rows, columns)``, and behind these the channels
        of a coloured one; the affine ``(4, 4)`` from these axes (of one image: and that across it) to right, anterior and
        superior in mm; and whether there are channels. The lightest value of ``MONOCHROME1`` is the darkest displayed, and is
        turned round.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: a file holds no image or one that no installed decoder decompresses, or has a palette, or the slices make
            no volume: of other sizes, directions or spacings, at one place, without a place, or with missing or uneven gaps.
    """
    datasets, order, affine = open_series(files, stop_before_pixels=False)
    coloured = int(datasets[0].get("SamplesPerPixel") or 1) > 1
    for file, dataset in zip(files, datasets, strict=True):
        _decode(file, dataset)
    scales = np.array([_scale(item) for dataset in datasets for item in _of_frames(dataset, _TRANSFORMATION)])
    for dataset in datasets:
        for keyword in {"RescaleSlope", "RescaleIntercept"} & set(dataset.dir()):
            delattr(dataset, keyword)  # by which the reader would scale, before what is inverted is turned round
    reader = PydicomReader(swap_ij=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is read of the place of the frames of a file, which it does not know
        if len(datasets) > 1:
            ordered = [datasets[index] for index in order]
            for number, dataset in enumerate(ordered, start=1):
                dataset.InstanceNumber = number  # by which the reader sorts
            reader.has_series, reader.filenames = True, [[str(files[index]) for index in order]]  # type: ignore[list-item]
            stack = np.moveaxis(reader.get_data(ordered)[0], -1, 0)
        else:
            reader.has_series, reader.filenames = False, [str(files[0])]
            stack = reader.get_data(datasets[0])[0]
            stack = stack[order] if len(order) > 1 else stack[None]
    if datasets[0].get("PhotometricInterpretation") == "MONOCHROME1":
        stack = _turned_round(stack, datasets[0])
    if (scales != (1, 0)).any():
        slopes, offsets = scales[order].T.astype(np.float32).reshape(2, -1, *[1] * (stack.ndim - 1))
        stack = stack.astype(np.float32) * slopes + offsets
    if len(order) == 1:
        return stack[0], affine[:, [1, 0, 2, 3]], coloured
    return np.swapaxes(np.moveaxis(stack, 0, 2), 0, 1), affine, coloured


def open_series(files: Sequence[Path], stop_before_pixels: bool = True) -> tuple[list[Any], list[int], np.ndarray]:
    """Open the files of one series: their data sets in the order given, and what :func:`place` says of its slices."""
    require(f"{files[0]}, which is DICOM,", "pydicom", "dicom")
    from pydicom import dcmread

    datasets = []
    for file in files:
        try:
            datasets.append(dcmread(file, stop_before_pixels=stop_before_pixels))
        except Exception as error:  # of many kinds, for damaged files
            raise ValueError(
                f"{file.name} is no DICOM file that can be read: {type(error).__name__}: {error}"
            ) from error
        if not _is_image(datasets[-1]):
            raise ValueError(f"{file.name} holds no image (modality {datasets[-1].get('Modality') or 'not said'})")
    if len(files) == 1 and _frames(datasets[0]) > 1:
        frames = _planes("frame", datasets[0])
        found = [plane for plane in frames if plane is not None]
        if len(found) != _frames(datasets[0]):
            raise ValueError(f"its {_frames(datasets[0])} frames do not say where they lie, so they are no volume")
        return datasets, *place(found)
    series = Counter(str(dataset.get("SeriesInstanceUID", "unknown")) for dataset in datasets)
    if len(series) > 1:
        listed = ", ".join(f"{uid} ({count} files)" for uid, count in sorted(series.items()))
        raise ValueError(f"{files[0].parent} holds {len(series)} series, {listed}; put each into a folder of its own")
    planes = []
    for file, dataset in zip(files, datasets, strict=True):
        planes.append(_planes(file.name, dataset)[0])
        sizes = [(each.Rows, each.Columns, _frames(each)) for each in (datasets[0], dataset)]
        if sizes[0] != sizes[1] or (len(files) > 1 and sizes[1][2] > 1):
            what = [f"{rows} x {columns} x {frames}" for rows, columns, frames in sizes]
            raise ValueError(
                f"its slices are of several sizes: {files[0].name} has {what[0]} pixels, {file.name} {what[1]}"
            )
    if len(files) == 1 and planes[0] is None:
        rows, columns = map(float, _of_frames(datasets[0], _MEASURES)[0].get("PixelSpacing") or (1, 1))
        return datasets, [0], np.diag([columns, rows, 1.0, 1.0])
    missing = [file.name for file, plane in zip(files, planes, strict=True) if plane is None]
    if missing:
        raise ValueError(
            f"{missing[0]} and {len(missing) - 1} other files do not say where they lie, so they are no volume"
        )
    return datasets, *place([plane for plane in planes if plane is not None])


def _of_frames(dataset: Any, group: str) -> list[Any]:
    """What holds the elements of a functional group, for each frame: its own item, that of all, or the data set itself."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [{}]
    return [(frame.get(group) or shared.get(group) or [dataset])[0] for frame in frames]


def _planes(name: str, dataset: Any) -> list[Plane | None]:
    """Of the frames of a file, numbered where there are several; None where one does not say where it lies."""
    items = [_of_frames(dataset, group) for group in ("PlanePositionSequence", "PlaneOrientationSequence", _MEASURES)]
    planes = list[Plane | None]()
    for number, (position, orientation, measures) in enumerate(zip(*items, strict=True), start=1):
        found = (
            position.get("ImagePositionPatient"),
            orientation.get("ImageOrientationPatient"),
            measures.get("PixelSpacing"),
        )
        if not all(found):
            planes.append(None)
            continue
        where, directions, between = (np.array([float(value) for value in each]) for each in found)
        title = f"{name} {number}" if len(items[0]) > 1 else name
        planes.append(Plane(title, directions.reshape(2, 3), where, between))
    return planes


def place(planes: Sequence[Plane]) -> tuple[list[int], np.ndarray]:
    """The order of slices along the direction across them, and the affine ``(4, 4)`` of the volume that they make.

    The axes are (columns, rows, slices); space is right, anterior and superior, in mm. Gaps may be oblique, as with a tilted
    gantry.

    Raises:
        ValueError: the slices have several directions or spacings, lie at one place, or their gaps are uneven.

    Example:
        >>> planes = [Plane(f"{z}", np.eye(3)[:2], np.array([0, 0, 2.5 * z]), np.ones(2)) for z in (2, 0, 1)]
        >>> order, affine = place(planes)
        >>> order, affine.diagonal().tolist()
        ([1, 2, 0], [-1.0, -1.0, 2.5, 1.0])
        >>> place([planes[0], planes[1], planes[2]._replace(position=np.array([0, 0, 2.0]))])
        Traceback (most recent call last):
        ValueError: its slices lie from 2 to 3 mm apart; the gaps of a volume are even
    """
    first = planes[0]
    across = np.cross(*first.directions)
    for plane in planes:
        if not np.allclose(plane.directions, first.directions, rtol=0, atol=_ROUNDING):
            raise ValueError(f"its slices have several orientations: those of {first.name} and {plane.name} differ")
        if not np.allclose(plane.spacing, first.spacing, rtol=_ROUNDING, atol=0):
            raise ValueError(
                f"its slices have several pixel spacings: {first.name} has {first.spacing.tolist()} mm, "
                f"{plane.name} {plane.spacing.tolist()}"
            )
    positions = np.stack([plane.position for plane in planes])
    depth = positions @ across
    order = np.argsort(depth, kind="stable")
    step = across
    if len(planes) > 1:
        _check_gaps([planes[index].name for index in order], np.diff(depth[order]))
        line = np.linspace(positions[order[0]], positions[order[-1]], len(planes))
        step = line[1] - line[0]
        if np.abs(positions[order] - line).max() > _allowed(float(np.linalg.norm(step))):
            raise ValueError("its slices do not lie behind each other on one line, so they are no volume")
    affine = np.eye(4)
    affine[:3] = np.stack([*(first.directions * first.spacing[::-1, None]), step, positions[order[0]]], axis=1)
    return order.tolist(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _allowed(gap: float) -> float:
    """How far from its even place a slice may lie, in mm, and a bit for the rounding of floating point numbers."""
    return max(_TOLERANCE * gap, min(_WRITTEN, gap / 3)) + 1e-6


def _check_gaps(names: Sequence[str], gaps: np.ndarray) -> None:
    close = gaps < _SAME
    if close.any():
        index = int(np.flatnonzero(close)[0])
        raise ValueError(
            f"{close.sum()} of its {len(names)} slices lie where another lies, such as {names[index + 1]} at "
            f"{names[index]}; expected one volume, of one time, echo or direction"
        )
    steps = gaps / np.median(gaps)
    missing = int((np.rint(steps) - 1).sum())
    if missing > 0 and np.abs(steps - np.rint(steps)).max() < 2 * _TOLERANCE:
        index = int(np.argmax(steps))
        raise ValueError(
            f"{missing} of its slices {'is' if missing == 1 else 'are'} missing: between {names[index]} and "
            f"{names[index + 1]} is a gap of {gaps[index]:.4g} mm, between others {np.median(gaps):.4g}"
        )
    depth = np.concatenate([[0], np.cumsum(gaps)])
    if np.abs(depth - np.linspace(0, depth[-1], len(depth))).max() > _allowed(float(gaps.mean())):
        raise ValueError(
            f"its slices lie from {gaps.min():.4g} to {gaps.max():.4g} mm apart; the gaps of a volume are even"
        )


def _decode(file: Path, dataset: Any) -> None:
    """Decompress the pixels, which pydicom keeps for who asks next, or say why that fails."""
    from pydicom.pixels import get_decoder

    if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        raise ValueError(f"{file.name} holds no pixels")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise ValueError(f"{file.name} has colours of a palette; save it in grey or RGB")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    compressed = syntax is not None and not syntax.is_private and syntax.is_encapsulated
    if compressed and not get_decoder(syntax).is_available:
        raise ValueError(
            f"{file.name} is compressed as {syntax.name}, for which no decoder is installed: "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        )
    try:
        dataset.pixel_array  # noqa: B018
    except Exception as error:  # each decoder has its own
        how = f" from {syntax.name}" if compressed else ""
        raise ValueError(
            f"the pixels of {file.name} cannot be decoded{how}: {type(error).__name__}: {error}"
        ) from error


def _scale(item: Any) -> tuple[float, float]:
    """Slope and intercept; what is empty or not there changes nothing."""
    slope, intercept = (item.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return 1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept)


def _turned_round(stack: np.ndarray, dataset: Any) -> np.ndarray:
    low = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
    return 2 * low + 2**dataset.BitsStored - 1 - stack
