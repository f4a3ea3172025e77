"""Reading image files: pictures, NIfTI, npy and npz become tensors of one convention, or end in one sentence.

Every value of a file is read, as uint8 or float32, or the file is refused: Pillow, which would cut 16-bit colours to 8 bits
and wrap or drop what else it does not know, reads what it can hold, and tifffile the other TIFFs. Pictures may have as many
pixels as Pillow allows, 178,956,970, or as the environment variable ``MONAI_SRE_MAX_PIXELS`` says.

The convention of axes, here and wherever images are used:

* A picture is ``(C, rows, columns)`` as it is displayed, turned as its EXIF orientation says. That is the layout of PyTorch
  and of MedMNIST's npz files, and of MONAI's ``PILReader(reverse_indexing=False)``.
* An array is as it was stored, ``(*spatial)`` or ``(*spatial, C)``.
* NIfTI keeps its own axes; those behind the network's are channels: the fourth, and for images of two axes the third.
  Metres and microns, where its header says so, become mm.
* A DICOM image is a picture, ``(C, rows, columns)``; a series, or a file of several frames, has the axes (columns, rows,
  slices). See :mod:`monai_sre.data.dicom`.

Axes of one voxel are dropped where there are more than the network has, so a slice of any direction is an image. The
``affine`` of the tensor says where its axes lie in space. That of an array is the identity; in a picture's, the columns are
the first axis of space, as in MONAI. MONAI takes an image of two axes to lie across the third axis of space, so for slices of
other directions space is turned until they do: of a coronal one, its first two axes are right and superior. Where the axes
of the file lie is in the metadata, as ``original_affine``.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader, NumpyReader, PILReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from PIL import Image, ImageOps
from tifffile import TiffFile
from torch import Tensor

from monai_sre.data.dicom import DICOM_ENDINGS, is_dicom, read_series

__all__ = ["IMAGE_ENDINGS", "PICTURE_ENDINGS", "ReadImaged", "is_array", "is_foreign", "is_nifti", "own_affine", "stem"]

#: Array, affine of its spatial axes, and whether its last axis is that of the channels (None: the number of axes tells).
_Content = tuple[np.ndarray, np.ndarray, bool | None]
_MODES = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
#: Formats of which several pages are several images; in others they are previews of the first.
_PAGED = ("TIFF", "GIF", "WEBP", "PNG")
#: Modes of Pillow whose values have more than 8 bits.
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
logging.getLogger("tifffile").setLevel(
    logging.CRITICAL
)  # of a damaged file it logs every tag; we say it in one sentence
_MAX_PIXELS = "MONAI_SRE_MAX_PIXELS"
#: The mm of NIfTI's other units.
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_NIFTI, _ARRAYS = (".nii", ".nii.gz"), (".npy", ".npz")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2", ".ppm", ".pgm")
#: Endings of medical images of other kinds.
_FOREIGN = (".mha", ".mhd", ".nrrd", ".nhdr", ".mgh", ".mgz", ".hdr", ".img")


class ReadImaged(MapTransform):
    """Read image files as ``MetaTensor`` of shape ``(C, *spatial)``, and refuse what the network cannot take.

    The axes are those of the convention at the top of this module. 8-bit data stay uint8, all others become float32. A grey
    file feeds a network of three channels, and an image of three equal channels one of a single channel. What fails is
    one sentence that names the file; MONAI's ``LoadImaged`` would list what each of its readers says.

    An application that reads files itself, such as MONAI Deploy, gives the image in place of a path: a ``MetaTensor`` whose
    ``original_channel_dim`` says where the channels are, as MONAI's readers write it; without it the axes are those of an
    array.

    Args:
        keys: of the paths; the DICOM files of one series are a list of paths, or a folder; or of the images themselves.
        spatial_dims: number of spatial axes, 2 or 3; None: those of the file.
        num_channels: channels that the network takes, one number for all keys or one per key; None: any.
        as_classes: likewise, a mask: refuse whole numbers that float32 would round, and keep the entries of a palette, which
            are class numbers, unless all its colours are grey; otherwise palettes, and transparency, become RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or not whole, or has other axes or channels, no pixels, values that are not finite in
            float32, or a singular affine.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.npy"
        >>> np.save(path, np.zeros((4, 6), dtype=np.uint8))
        >>> image = ReadImaged("image", spatial_dims=2, num_channels=3)({"image": path})["image"]
        >>> image.shape, image.dtype
        (torch.Size([3, 4, 6]), torch.uint8)
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int | None,
        num_channels: int | Sequence[int | None] | None = None,
        as_classes: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__(keys)
        if spatial_dims not in (None, 2, 3):
            raise ValueError(f"spatial_dims must be 2, 3 or None, got {spatial_dims!r}")
        self.spatial_dims = spatial_dims
        self.num_channels = ensure_tuple_rep(num_channels, len(self.keys))
        self.as_classes = ensure_tuple_rep(as_classes, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, channels, as_classes in self.key_iterator(d, self.num_channels, self.as_classes):
            if isinstance(d[key], Tensor):
                content, meta = _given(MetaTensor(d[key]))
                d[key] = self._checked(f"the image {key!r}", content, channels, as_classes, meta)
                continue
            files = [Path(path) for path in (d[key] if isinstance(d[key], (list, tuple)) else [d[key]])]
            if files[0].is_dir():
                files = [path for path in sorted(files[0].iterdir()) if is_dicom(path)] or files
            d[key] = self._read(files, channels, as_classes)
        return d

    def _read(self, files: Sequence[Path], num_channels: int | None, as_classes: bool) -> Tensor:
        path = files[0]
        if path.is_dir():
            raise ValueError(f"{path} is a folder without DICOM files; expected an image")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; expected an image")
        if is_foreign(path):
            raise ValueError(f"{path} is MetaImage, NRRD, MGH or Analyze, which are not read; convert it to NIfTI")
        as_series = is_dicom(path)
        if len(files) > 1 and not as_series:
            raise ValueError(f"{path} is one of {len(files)} files of an image; only those of a DICOM series are read")
        try:
            content = read_series(files) if as_series else _opener(path)(path, as_classes)
        except ImportError as error:
            raise ValueError(str(error)) from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: {error} {_MAX_PIXELS}=N in the environment allows N pixels") from error
        except Exception as error:  # each reader has its own exceptions for a damaged file
            raise ValueError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from error
        meta = {"filename_or_obj": str(path), "space": "RAS"}
        return self._checked(path, content, num_channels, as_classes, meta)

    def _checked(
        self, path: Path | str, content: _Content, num_channels: int | None, as_classes: bool, meta: dict[str, Any]
    ) -> Tensor:
        array, affine, has_channels = content
        if array.dtype.kind not in "buif":
            raise ValueError(f"{path} holds {array.dtype} values; expected numbers")
        if array.size == 0:
            raise ValueError(f"{path} is empty: shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path} holds NaN or infinite values; every pixel must be finite")
        if array.dtype.kind == "f" and np.abs(array).max() > np.finfo(np.float32).max:
            raise ValueError(f"{path} holds values up to {np.abs(array).max():.3g}, beyond those of float32")
        if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < len(affine):
            raise ValueError(f"{path} has a singular affine, {affine.tolist()}, so that its voxels have no place")
        shape = array.shape
        array, affine = _channels_first(path, array, affine, has_channels, self.spatial_dims)
        meta["original_affine"] = affine
        affine = _in_plane(affine) if array.ndim == 3 else affine
        array = _in_float32(path, array, as_classes)
        image = _with_channels(path, torch.from_numpy(array.copy()), num_channels, shape)
        meta["spatial_shape"] = np.asarray(image.shape[1:])
        return MetaTensor(image, affine=torch.from_numpy(affine), meta=meta)


def _in_float32(path: Path | str, array: np.ndarray, as_classes: bool) -> np.ndarray:
    """uint8 as it is, all else as float32, which may not round whole numbers of classes."""
    found = np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32)
    if as_classes and array.dtype.kind in "ui" and array.dtype.itemsize > 2:
        with np.errstate(invalid="ignore"):  # beyond the integers of its type a number is another, too
            rounded = found.astype(array.dtype) != array
        if rounded.any():
            raise ValueError(f"{path} holds {array[rounded].flat[0]}, which float32 would round; renumber its classes")
    return found


def _given(image: MetaTensor) -> tuple[_Content, dict[str, Any]]:
    """What an application has read, and its metadata; ``original_channel_dim`` is a number, or NaN or a text for none."""
    array, meta = image.numpy(), {name: value for name, value in image.meta.items() if name != "affine"}
    channel_dim = meta.pop("original_channel_dim", None)
    has_channels = None if channel_dim is None else channel_dim in range(-array.ndim, array.ndim)
    if has_channels:
        array = np.moveaxis(array, int(channel_dim), -1)
    return (array, np.asarray(image.affine, dtype=np.float64), has_channels), meta


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return str(path).lower().endswith(_NIFTI)


def is_array(path: str | Path) -> bool:
    """Whether a file is an array of numpy, by its name."""
    return str(path).lower().endswith(_ARRAYS)


def is_foreign(path: Path) -> bool:
    """Whether a file is a medical image of a kind that is not read, by its name."""
    return path.name.lower().endswith(_FOREIGN) and not path.name.lower().endswith(IMAGE_ENDINGS)


def own_affine(image: Tensor) -> np.ndarray:
    """The affine of the axes of an image's file, float64: its ``original_affine``, or where none is kept, its affine."""
    meta = getattr(image, "meta", {})
    return np.asarray(meta.get("original_affine", getattr(image, "affine", np.eye(4))), dtype=np.float64)


def stem(name: str) -> str:
    """The name of an image without the ending that says its kind; other dots are part of it, as in DICOM's numbers.

    Example:
        >>> stem("sub/a.nii.gz"), stem("1.2.840"), stem("1.2.840.dcm")
        ('sub/a', '1.2.840', '1.2.840')
    """
    endings = (end for end in sorted((*IMAGE_ENDINGS, *DICOM_ENDINGS), key=len)[::-1] if name.lower().endswith(end))
    return name[: -len(next(endings, "")) or None]


def _nifti(path: Path, _: bool) -> _Content:
    reader = NibabelReader()
    opened: Any = reader.read(path)
    stated: Any = nibabel.load(path)
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:  # nibabel leaves out the last bytes, which tell whether the others are damaged
            opened = correct_nifti_header_if_necessary(type(opened).from_bytes(file.read()))
    array, meta = reader.get_data(opened)  # in place of an affine that is not finite it takes another
    affine = np.array(meta["affine"] if np.isfinite(stated.affine).all() else stated.affine, dtype=np.float64)
    affine[:3] *= millimetres(opened.header)
    return array, affine, None


def millimetres(header: Any) -> float:
    """The mm of a NIfTI header's unit of length."""
    return _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)


def _array(path: Path, _: bool) -> _Content:
    opened = NumpyReader().read(path)
    if isinstance(opened, list):
        raise ValueError(f"it holds {len(opened)} arrays; expected one image")
    return np.asarray(opened), np.eye(4), None


def _picture(path: Path, as_classes: bool) -> _Content:
    stated = os.environ.get(_MAX_PIXELS)
    if stated:
        if not stated.isdecimal():
            raise ValueError(f"{_MAX_PIXELS} must be a number of pixels, got {stated!r}")
        Image.MAX_IMAGE_PIXELS = -(-int(stated) // 2)  # Pillow refuses twice as many
    with path.open("rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    array = _deep_tiff(path, as_classes) if is_tiff else None
    if array is None:
        reader = PILReader(converter=partial(_as_displayed, palette=as_classes), reverse_indexing=False)
        array, _ = reader.get_data(reader.read(path))
    return array, np.eye(4)[:, [1, 0, 2, 3]], array.ndim == 3


def _deep_tiff(path: Path, as_classes: bool) -> np.ndarray | None:
    """The values of a TIFF that Pillow would not read whole; None where it does."""
    with TiffFile(path) as file:
        page: Any = file.pages.first
        colours, extra, bits = page.photometric.name, page.extrasamples, int(np.max(page.bitspersample))
        unsigned = page.sampleformat in (1, 4)
        pages = max(len(file.pages), (file.imagej_metadata or {}).get("images", 1))
        if pages > 1:
            raise ValueError(f"it holds {pages} pages; expected one image (save volumes as NIfTI)")
        if bits <= 8 and unsigned and 0 not in extra:
            return None
        if page.samplesperpixel == 1 and colours == "MINISBLACK" and page.dtype in ("u2", "i2", "i4", "f4"):
            return None
        orientation, size = page.tags.valueof("Orientation", 1), page.imagewidth * page.imagelength
        plain = colours in ("MINISBLACK", "RGB") or (colours == "MINISWHITE" and unsigned)
        if not plain or orientation != 1 or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(
                f"it holds {page.dtype} as {colours} of axes {page.axes} and orientation {orientation}; save it upright, in "
                "grey or RGB"
            )
        if size > 2 * (Image.MAX_IMAGE_PIXELS or size):
            raise Image.DecompressionBombError(f"Image size ({size} pixels) exceeds the limit.")
        array = page.asarray()
    array = 2**bits - 1 - array if colours == "MINISWHITE" else array
    array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
    alpha = [] if as_classes else [index - len(extra) for index, kind in enumerate(extra) if kind in (1, 2)]
    return np.delete(array, alpha, axis=-1) if alpha else array


def _check_depth(picture: Any) -> None:
    """Refuse colours of more than 8 bits, of which Pillow keeps 8."""
    bits, stored = 8, picture.tile[0].args if picture.tile else ""
    if picture.format == "PPM" and isinstance(stored, tuple):
        bits = int(stored[1]).bit_length()
    elif picture.format == "JPEG2000":
        with open(picture.filename, "rb") as file:
            head = file.read(1 << 16)
        bits = (head[head.find(b"\xff\x4f\xff\x51") + 42] & 127) + 1
    elif str(stored).endswith((";16", ";16B", ";16L", ";16N")) and picture.format in ("PNG", "SGI"):
        bits = 16
    if bits > 8 and picture.mode not in _DEEP:
        raise ValueError(f"it has colours of {bits} bits, of which 8 would be read; save it as TIFF or npy")


#: How files are opened, by their endings.
_OPENERS: dict[tuple[str, ...], Callable[[Path, bool], _Content]] = {
    _NIFTI: _nifti,
    _ARRAYS: _array,
    PICTURE_ENDINGS: _picture,
}
#: Endings of the files that are images.
IMAGE_ENDINGS = tuple(ending for endings in _OPENERS for ending in endings)


def _opener(path: Path) -> Callable[[Path, bool], _Content]:
    name = path.name.lower()
    return next((opener for endings, opener in _OPENERS.items() if name.endswith(endings)), _picture)


def _as_displayed(picture: Any, palette: bool) -> Any:
    """A picture turned as its EXIF orientation says; palettes and transparency become RGB.

    With ``palette``, as masks need it, the entries of a palette stay, unless all its colours are grey, and a transparency
    that is the same everywhere is dropped.
    """
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format in _PAGED:
        raise ValueError(f"it holds {pages} pages; expected one image (save volumes as NIfTI)")
    if picture.mode == "LAB":
        raise ValueError("its colours are LAB; save it as RGB")
    _check_depth(picture)
    if picture.format == "PPM" and picture.mode == "I" and isinstance(picture.tile[0].args, tuple):
        largest = picture.tile[0].args[1]  # Pillow scales it to 65535
        return Image.fromarray(np.rint(np.asarray(picture) * (largest / 65535)).astype(np.int32))
    picture = ImageOps.exif_transpose(picture)
    if not palette:
        return picture.convert(_MODES[picture.mode]) if picture.mode in _MODES else picture
    if picture.mode == "P":
        red, green, blue = (np.asarray(channel) for channel in picture.convert("RGB").split())
        return picture.convert("L") if np.array_equal(red, green) and np.array_equal(red, blue) else picture
    if picture.mode in ("LA", "RGBA") and len(set(picture.getchannel("A").getextrema())) == 1:
        return picture.convert(picture.mode[:-1])
    return picture


def _channels_first(
    path: Path | str, array: np.ndarray, affine: np.ndarray, has_channels: bool | None, spatial_dims: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The array as ``(C, *spatial)``, without axes of one voxel beyond ``spatial_dims``, and the affine of what is left."""
    shape = array.shape
    wanted = spatial_dims or _own_axes(path, shape, has_channels)
    if has_channels is None:
        space = min(array.ndim, 3)
        for axis in reversed(range(3, array.ndim)):
            array = array.squeeze(axis) if array.shape[axis] == 1 else array
        for axis in reversed(range(space)):
            if array.shape[axis] == 1 and space > wanted:
                array, space = array.squeeze(axis), space - 1
                affine = np.insert(np.delete(affine, axis, 1), 2, affine[:, axis], 1)
        has_channels = array.ndim == wanted + 1
    found = array.ndim - has_channels
    if found != wanted:
        raise ValueError(f"{path} has {found} spatial axes, shape {shape}; the network takes images of {wanted}")
    return np.moveaxis(array, -1, 0) if has_channels else array[None], affine


def _in_plane(affine: np.ndarray) -> np.ndarray:
    """The affine of an image of two axes in a space that is turned, no further than need be, so that it lies across z."""
    if len(affine) < 4 or not affine[2, :2].any():
        return affine
    sides = np.linalg.qr(affine[:3, :2])[0]
    normal = np.cross(*sides.T)
    axis = int(np.abs(normal).argmax())
    left, _, right = np.linalg.svd(np.delete(sides, axis, 0))  # their product is the nearest orthogonal matrix
    turn = np.eye(4)
    turn[:2, :3], turn[2, :3] = left @ right @ sides.T, normal * np.sign(normal[axis])
    return turn @ affine


def _own_axes(path: Path | str, shape: tuple[int, ...], has_channels: bool | None) -> int:
    """Number of spatial axes of a file; of an array, a last axis of 1, 3 or 4 is that of the channels."""
    if has_channels is not None:
        return len(shape) - has_channels
    if is_nifti(path):
        return max(2, sum(length > 1 for length in shape[:3]))
    axes = len(shape) - (len(shape) in (3, 4) and shape[-1] in (1, 3, 4))
    if axes not in (2, 3):
        raise ValueError(f"{path} has shape {shape}; expected a 2-D image or a 3-D volume")
    return axes


def _with_channels(path: Path | str, image: Tensor, num_channels: int | None, shape: tuple[int, ...]) -> Tensor:
    """A grey image repeated, or one of equal colours reduced, to the channels that the network takes."""
    channels = image.shape[0]
    if num_channels is None or channels == num_channels:
        return image
    if channels == 1:
        return image.repeat(num_channels, *[1] * (image.dim() - 1))
    if num_channels == 1 and channels == 3 and image.dim() == 3 and bool((image == image[:1]).all()):
        return image[:1].clone()
    raise ValueError(f"{path} has {channels} channels; the network takes {num_channels} (the file has shape {shape})")
