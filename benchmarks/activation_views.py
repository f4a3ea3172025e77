"""Picture: what the shipped 2-D network and a plain one see in a test image of BreastMNIST and in its rotated copies.

    python -m benchmarks.activation_views --dataset_dir DIR [--plain PATH]

The image is the first malignant one of the test set that both networks decide rightly. The plain network, a ResNet18 of
3 x 3 kernels as wide as the shipped one, is trained first (100 epochs, some minutes) unless ``--plain`` names the weights of
such a training. The feature maps are those of the first stage. All maps are laid around the centre of the image, as usual;
the strides of the plain network sample a grid that lies almost half a step off that centre.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.accuracy import MODELS
from benchmarks.bundles import source_of, train
from monai_sre import load_network
from monai_sre.data import BatchPreprocess, load_dataset
from monai_sre.evaluation import draw_activations

DATASET, MALIGNANT = "breastmnist", 0


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with breastmnist.npz")
    parser.add_argument(
        "--plain", type=Path, help="weights of the plain network, as train.json with plain.json saves them"
    )
    options = parser.parse_args()
    test, source = load_dataset(DATASET, str(options.dataset_dir), "test", progress=False), source_of(DATASET)
    with tempfile.TemporaryDirectory() as folder:
        if options.plain is None:
            train(source_of(DATASET, str(options.dataset_dir)), MODELS["plain"], {}, Path(folder))
        plain = load_network(options.plain or Path(folder) / "models" / "model.pt")
    sre = load_network(source.bundle / "models" / "model.pt")
    images = BatchPreprocess(32)(test.images)
    with torch.no_grad():
        decided = torch.stack([model(images).argmax(dim=1) for model in (sre, plain)])
    right = (decided == MALIGNANT).all(dim=0) & (test.labels == MALIGNANT)
    number = int(right.nonzero()[0])
    print(f"test image {number}: the first malignant one of {int(right.sum())} that both networks decide rightly")
    networks = {"SRE": (sre, "stages.0", "stages.3"), "plain": (plain, "layer1", "layer4")}
    draw_activations(
        networks, images[number], source.bundle / "docs" / "activation_views.png", class_names=test.info.class_names
    )


if __name__ == "__main__":
    main()
