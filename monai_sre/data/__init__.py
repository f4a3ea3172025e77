"""How samples come in: data sets as tensors, whole-batch loading, augmentation and rotation."""

from .augment import BatchAugment2d, BatchAugment3d, BatchPreprocess
from .datalist import datalist_info, load_datalist, read_image, scale_to_unit
from .dataset import BatchLoader, DatasetInfo, LabelledImages
from .demo import demo_arrays, demo_info
from .files import FileImages, file_grids, find_images
from .geometry import background_value, flip_batch, random_rotations, resize_batch, rotate_batch
from .grids import Grid
from .inputs import TransformedFiles
from .loader import EpochLoader
from .maps import CheckImaged, ClassMapd, FieldOfViewd, IgnoreOutsided, NormalizeFieldd, ReadImaged
from .medmnist import dataset_info, load_dataset, medmnist_flags
from .pairs import find_pairs, load_pairs

__all__ = [
    "BatchAugment2d",
    "BatchAugment3d",
    "BatchLoader",
    "BatchPreprocess",
    "CheckImaged",
    "ClassMapd",
    "DatasetInfo",
    "EpochLoader",
    "FieldOfViewd",
    "FileImages",
    "Grid",
    "IgnoreOutsided",
    "LabelledImages",
    "NormalizeFieldd",
    "ReadImaged",
    "TransformedFiles",
    "background_value",
    "datalist_info",
    "dataset_info",
    "demo_arrays",
    "demo_info",
    "file_grids",
    "find_images",
    "find_pairs",
    "flip_batch",
    "load_datalist",
    "load_dataset",
    "load_pairs",
    "medmnist_flags",
    "random_rotations",
    "read_image",
    "resize_batch",
    "rotate_batch",
    "scale_to_unit",
]
