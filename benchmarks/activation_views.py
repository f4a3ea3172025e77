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
from monai.bundle import run
from torch import nn

from monai_sre.data import BatchPreprocess, load_dataset
from monai_sre.description import load_description
from monai_sre.evaluation import draw_activations

BUNDLE = Path(__file__).parents[1] / "bundles" / "medmnist_2d_classification"
OUT = BUNDLE / "docs" / "activation_views.png"
MALIGNANT = 0


def network(weights: Path) -> nn.Module:
    """The network that the description beside the weights names, with these."""
    found = load_description(weights.with_name("model.json")).network()
    found.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return found.eval()


def train_plain(dataset_dir: Path, folder: Path) -> Path:
    """Train the plain network as the table of accuracies does, and return the path of its weights."""
    run(
        config_file=[str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "plain")],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        bundle_root=str(BUNDLE),
        dataset_dir=str(dataset_dir),
        output_dir=str(folder),
        progress=False,
        tensorboard=False,
    )
    return folder / "models" / "model.pt"


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder with breastmnist.npz")
    parser.add_argument(
        "--plain",
        type=Path,
        help="weights of the plain network, as train.json with plain.json saves them with model.json",
    )
    options = parser.parse_args()
    test = load_dataset("breastmnist", str(options.dataset_dir), "test", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        plain = network(options.plain or train_plain(options.dataset_dir, Path(folder)))
    sre = network(BUNDLE / "models" / "model.pt")
    images = BatchPreprocess(32)(test.images)
    with torch.no_grad():
        decided = torch.stack([model(images).argmax(dim=1) for model in (sre, plain)])
    right = (decided == MALIGNANT).all(dim=0) & (test.labels == MALIGNANT)
    number = int(right.nonzero()[0])
    print(f"test image {number}: the first malignant one of {int(right.sum())} that both networks decide rightly")
    networks = {"SRE": (sre, "stages.0", "stages.3"), "plain": (plain, "layer1", "layer4")}
    draw_activations(networks, images[number], OUT, class_names=test.info.class_names)


if __name__ == "__main__":
    main()
