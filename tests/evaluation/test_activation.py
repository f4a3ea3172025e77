"""Class-activation maps: values, symmetry, and where their pixels lie."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from monai_sre.evaluation import ClassActivation
from monai_sre.nets import SREResNet
from monai_sre.symmetry import lattice_symmetries


def network(dims: int, **options: Any) -> SREResNet:
    return SREResNet(dims, 1, 3, **{"width": 4, "kernel_size": 3, "conv": "harmonic", **options}).eval()


def plain() -> ResNet:
    return ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=2, n_input_channels=1, num_classes=3).eval()


def interpolated(values: Tensor, step: int, size: Sequence[int]) -> Tensor:
    """A 2-D map whose pixels lie ``step`` apart around the centre of a grid of that size, interpolated along each axis."""
    found = values.detach().numpy()
    for axis, length in enumerate(size):
        places = (np.arange(length) - (length - 1) / 2) / step + (found.shape[axis] - 1) / 2
        found = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, found)
    return torch.from_numpy(found).float()


# Maps -----------------------------------------------------------------------------------------------------------------


def test_a_map_is_the_linear_layer_at_each_place() -> None:
    net, x, classes = network(2), torch.randn(3, 1, 21, 30), torch.tensor([2, 0, 2])
    features = net.forward_features(x)[-1]
    expected = torch.einsum("nc...,nc->n...", features, net.fc.weight[classes]) + net.fc.bias[classes, None, None]
    torch.testing.assert_close(ClassActivation(net)(x, classes), expected)


def test_relative_to_the_others_the_mean_of_a_map_speaks_for_the_decision() -> None:
    """Whatever is added to all logits, which the probabilities do not show."""
    net, x = network(2), torch.randn(4, 1, 28, 28)
    net.fc.bias.data -= 100
    logits = net(x)
    decided = logits.argmax(dim=1)
    means = ClassActivation(net, relative=True)(x, decided).mean((1, 2))
    best = logits.amax(dim=1)
    torch.testing.assert_close(means, best - (logits.sum(dim=1) - best) / 2, atol=1e-4, rtol=1e-4)
    assert (means > 0).all()


def test_of_plain_networks_the_mean_is_the_logit_too() -> None:
    net = plain()
    x = torch.randn(2, 1, 64, 40)
    maps = ClassActivation(net)(x, torch.tensor([1, 1]))
    torch.testing.assert_close(maps.mean((1, 2)), net(x)[:, 1])


@pytest.mark.parametrize(
    ("dims", "size", "options"),
    [(2, (28, 35), {}), (3, (14, 11, 17), {"strides": (2, 2, 1, 2)}), (2, (33, 24), {"max_pool": True})],
)
def test_maps_on_the_grid_of_the_image_turn_with_it(dims: int, size: tuple[int, ...], options: dict[str, Any]) -> None:
    activation, x, classes = ClassActivation(network(dims, **options)), torch.randn(1, 1, *size), torch.tensor([1])

    def resampled(image: Tensor) -> Tensor:
        return activation.resample(activation(image, classes), image.shape[2:])

    upright = resampled(x)
    assert float(upright.std()) > 1e-3
    for symmetry in lattice_symmetries(dims).values():
        torch.testing.assert_close(resampled(symmetry(x)), symmetry(upright), atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_pool", [False, True])
def test_pixels_of_the_map_lie_where_the_network_samples(max_pool: bool) -> None:
    """On a centred grid as fine as its strides say, not stretched to the size of the image."""
    activation = ClassActivation(network(2, max_pool=max_pool))
    step, values = (16, torch.randn(2, 3)) if max_pool else (8, torch.randn(4, 5))
    torch.testing.assert_close(activation.resample(values[None], (28, 35))[0], interpolated(values, step, (28, 35)))


def test_maps_of_networks_without_a_reduction_fill_the_image() -> None:
    activation, values = ClassActivation(plain()), torch.randn(1, 4, 5)
    expected = nn.functional.interpolate(values[None], (28, 35), mode="bilinear")[0]
    torch.testing.assert_close(activation.resample(values, (28, 35)), expected)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_stays_as_it_was(training: bool) -> None:
    """No hook, which could not be pickled, and each module in its own mode; also where the forward pass fails."""
    net = network(2).train(training)
    net.stages[0].train(not training)
    modes = [module.training for module in net.modules()]
    activation = ClassActivation(net)
    activation(torch.randn(1, 1, 16, 16), torch.tensor([1]))
    with pytest.raises(ValueError, match="x must have shape"):
        activation(torch.randn(1, 2, 16, 16), torch.tensor([1]))
    assert not any(module._forward_hooks for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    pickle.dumps(net)
    torch.jit.script(net.eval())


@pytest.mark.parametrize("name", ["stages.4", "layer4", ""])
def test_a_layer_that_the_network_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}'; its modules are conv1, .*stages\.3"):
        ClassActivation(network(2), name)
    with pytest.raises(ValueError, match="linear layer 'fc' of Sequential"):
        ClassActivation(nn.Sequential(nn.Conv2d(1, 2, 3)), "0")
