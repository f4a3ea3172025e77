"""How samples come in: data sets as tensors, whole-batch loading, augmentation and rotation."""

from monai_sre.data.augment import BatchAugment2d, BatchAugment3d, BatchPreprocess
from monai_sre.data.datalist import datalist_info, load_datalist, read_image, scale_to_unit
from monai_sre.data.dataset import BatchLoader, DatasetInfo, LabelledImages, mix_seed
from monai_sre.data.demo import demo_arrays, demo_info
from monai_sre.data.files import FileImages, file_grids, find_images
from monai_sre.data.geometry import background_value, flip_batch, random_rotations, resize_batch, rotate_batch
from monai_sre.data.grids import Grid
from monai_sre.data.inputs import TransformedFiles
from monai_sre.data.loader import EpochLoader
from monai_sre.data.maps import CheckImaged, ClassMapd, FieldOfViewd, IgnoreOutsided, NormalizeFieldd, ReadImaged
from monai_sre.data.medmnist import dataset_info, load_dataset, medmnist_flags
from monai_sre.data.pairs import find_pairs, load_pairs

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
    "mix_seed",
    "random_rotations",
    "read_image",
    "resize_batch",
    "rotate_batch",
    "scale_to_unit",
]
