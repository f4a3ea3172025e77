"""Class maps of image files, each on the grid of its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Invertd, InvertibleTransform
from monai.utils import convert_to_tensor
from PIL import Image

from monai_sre.data.files import note_output
from monai_sre.evaluation.nifti import save_like
from monai_sre.evaluation.predictions import FileTable
from monai_sre.evaluation.windows import FileInferer

#: Endings of the inputs, the longer first where one ends in another, and of their class maps.
_ENDINGS = {".nii.gz": ".nii.gz", ".nii": ".nii.gz", ".npy": ".npy", ".npz": ".npy"}


class SegmentationWriter(FileTable):
    """Evaluator handler for inference: a class map a file on the file's own grid, and ``segmentations.csv``.

    NIfTI files get ``NAME_seg.nii.gz`` with their header and affine, arrays ``NAME_seg.npy``, pictures ``NAME_seg.png``,
    in which two classes are 0 and 255. A file that cannot be read, that the network cannot take, or whose map cannot be
    written, has the reason in the table, and the others go on.

    Args:
        output_dir: folder of the files, created if need be; folders below that of the inputs are repeated in it.
        preprocessing: the transforms of the input: what they did to the grid is undone.
        class_names: one a class; the table holds the share of pixels of each but the background.
        inferer: that of the evaluator, if it is a :class:`monai_sre.evaluation.FileInferer`.

    Raises:
        OSError: the folder cannot be written to; found out before any inference.
    """

    def __init__(
        self,
        output_dir: str | Path,
        preprocessing: InvertibleTransform,
        class_names: Sequence[str] = ("background", "foreground"),
        inferer: FileInferer | None = None,
    ) -> None:
        super().__init__(Path(output_dir) / "segmentations.csv")
        self.class_names, self.inferer = class_names, inferer
        self.invert = Invertd("score", preprocessing, orig_keys="image", nearest_interp=False)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        images, scores = decollate_batch(batch["image"]), decollate_batch(output["score"])
        for index, (image, score) in enumerate(zip(images, scores, strict=True)):
            path, name, error = (batch[key][index] for key in ("path", "name", "error"))
            row: dict[str, Any] = {"file": path, "output": ""}
            if not error and self.inferer is not None and self.inferer.error:
                error = f"{path}: the network cannot take it: {self.inferer.error}"
            elif not error and not bool(score.isfinite().all()):
                error = f"{path}: the network gives NaN"
            shares = {f"share of {title}": "" for title in self.class_names[1:]}
            if not error:
                try:
                    classes = self._on_own_grid(image, score)
                    row["output"] = str(self._save(classes, path, name))
                    shares = {key: f"{(classes == value).mean():.6f}" for value, key in enumerate(shares, start=1)}
                except Exception as problem:  # each writer has its own exceptions
                    error = f"{path}: its map cannot be written: {problem}"
            self.rows.append({**row, **shares, "error": error})

    def _on_own_grid(self, image: torch.Tensor, score: torch.Tensor) -> np.ndarray:
        """The class of the highest score at each pixel of the file; one class after the other, which spares memory."""
        inverse = isinstance(image, MetaTensor) and bool(image.applied_operations)
        best, classes = torch.empty(0), np.empty(0, dtype=np.uint8)
        for index in range(len(score)):
            part = score[index : index + 1]
            if inverse:
                part = self.invert({"image": image, "score": MetaTensor(part)})["score"]
            part = convert_to_tensor(part)[0].cpu()
            if index == 0:
                best, classes = part, np.zeros(part.shape, dtype=np.uint8)
            else:
                classes[(part > best).numpy()] = index
                best = torch.maximum(best, part)
        return classes

    def _save(self, classes: np.ndarray, source: str, name: str) -> Path:
        ending = next((_ENDINGS[end] for end in _ENDINGS if name.lower().endswith(end)), ".png")
        target = self.claim(name, f"_seg{ending}", source)
        if target.suffix == ".npy":
            np.save(target, classes)
        elif target.suffix == ".png":
            visible = 255 if len(self.class_names) == 2 else 1
            Image.fromarray((classes * visible).T).save(target)  # MONAI reads columns first
        else:
            save_like(classes, nibabel.load(source), target)
        note_output(target, self.path.parent)
        return target
