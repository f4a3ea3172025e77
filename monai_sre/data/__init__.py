"""How samples come in: one reader, sources of data, whole-batch loading, augmentation and rotation."""

from __future__ import annotations

from monai_sre.extras import require

require("monai_sre.data")

# ruff: noqa: E402 - what the rest imports is there by now

from monai_sre.data.augment import BatchAugment2d, BatchAugment3d, BatchPreprocess
from monai_sre.data.datalist import datalist_info, load_datalist
from monai_sre.data.demo import demo_arrays, demo_info
from monai_sre.data.geometry import (
    background_value,
    flip_batch,
    random_rotations,
    resize_batch,
    rotate_batch,
    turn_volumes,
)
from monai_sre.data.inference import ImageFiles, find_images
from monai_sre.data.info import DatasetInfo
from monai_sre.data.loaders import BatchLoader, EpochLoader, LabelledImages, mix_seed
from monai_sre.data.masks import ClassMapd, FieldOfViewd, IgnoreOutsided, NormalizeFieldd
from monai_sre.data.medmnist import medmnist_flags
from monai_sre.data.memory import free_gib, volumes_in
from monai_sre.data.pairs import find_pairs, find_source, load_pairs, pair_classes
from monai_sre.data.reader import ReadImaged
from monai_sre.data.sources import dataset_info, load_dataset
from monai_sre.data.transforms import CubicVoxelsd, FitSquared, RandMargind, ScaleToUnitd, fit_images, scale_to_unit

__all__ = [
    "BatchAugment2d",
    "BatchAugment3d",
    "BatchLoader",
    "BatchPreprocess",
    "ClassMapd",
    "CubicVoxelsd",
    "DatasetInfo",
    "EpochLoader",
    "FieldOfViewd",
    "FitSquared",
    "IgnoreOutsided",
    "ImageFiles",
    "LabelledImages",
    "NormalizeFieldd",
    "RandMargind",
    "ReadImaged",
    "ScaleToUnitd",
    "background_value",
    "datalist_info",
    "dataset_info",
    "demo_arrays",
    "demo_info",
    "find_images",
    "find_pairs",
    "find_source",
    "fit_images",
    "flip_batch",
    "free_gib",
    "load_datalist",
    "load_dataset",
    "load_pairs",
    "medmnist_flags",
    "mix_seed",
    "pair_classes",
    "random_rotations",
    "resize_batch",
    "rotate_batch",
    "scale_to_unit",
    "turn_volumes",
    "volumes_in",
]
