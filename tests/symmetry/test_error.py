from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_sre.layers import CentredAvgPool2d, CentredUpsample, SREConv2d, SREConv3d
from monai_sre.nets import SREResNet
from monai_sre.symmetry import culprits, equivariance_error, layer_errors
from monai_sre.symmetry.error import commutation_error, tensors_of
from monai_sre.symmetry.lattice import lattice_symmetries


def smooth_image(*shape: int, sigma: float = 2.0, seed: int = 0) -> Tensor:
    """Noise with the spectrum of a Gaussian of the given width in pixels."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for axis in range(2, len(shape)):
        frequency = torch.fft.fftfreq(shape[axis]).reshape([-1 if dim == axis else 1 for dim in range(len(shape))])
        noise = torch.fft.ifft(
            torch.fft.fft(noise, dim=axis) * torch.exp(-2 * (torch.pi * sigma * frequency) ** 2), dim=axis
        ).real
    return noise / noise.std()


class Nest(nn.Module):
    """A small UNet of sound parts; ``middle`` may be replaced. Returns what a network with several heads might."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            SREConv2d(1, 4, 5, padding=2), nn.ReLU(inplace=True), CentredAvgPool2d(2, ceil_mode=True)
        )
        self.middle: nn.Module = SREConv2d(4, 4, 5, padding=2)
        self.up = CentredUpsample(2)
        self.last = SREConv2d(8, 2, 3, padding=1)
        self.skip = SREConv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        low = self.middle(self.down(x))
        maps = self.last(torch.cat([self.up(low, size=list(x.shape[2:])), self.skip(x)], dim=1))
        return {"maps": [maps, low], "vector": (low.mean(dim=(2, 3)),), "names": "kept", "nothing": None}


@pytest.mark.parametrize("size", [(12, 12), (13, 10), (7, 7)])
def test_lattice_errors_of_an_equivariant_network(size: tuple[int, int]) -> None:
    net = SREResNet(2, 1, 3, width=8).eval()
    errors = equivariance_error(net, torch.randn(2, 1, *size))
    assert list(errors) == list(lattice_symmetries(2))
    assert max(errors.values()) < 1e-5
    assert errors["identity"] == 0
    maps = equivariance_error(net.forward_features, torch.randn(2, 1, *size))
    assert max(maps.values()) < 1e-5


def test_all_48_symmetries_in_3d() -> None:
    errors = equivariance_error(SREConv3d(1, 2, 3, padding=1).double(), torch.randn(1, 1, 4, 5, 6).double())
    assert len(errors) == 48
    assert max(errors.values()) < 1e-12


def test_error_by_hand() -> None:
    """The kernel (1, 0, 0) shifts an image, so a flip moves a one from pixel 1 to pixel 3: two ones differ of one."""
    net = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0]]]))
    x = torch.zeros(1, 1, 5)
    x[0, 0, 2] = 1
    assert equivariance_error(net, x) == {"identity": 0.0, "flip(0)": pytest.approx(2**0.5)}


def test_the_norm_is_euclidean() -> None:
    """Two values of four change places: the root of 2 ** 2 + 2 ** 2 beside that of 1 + 9 + 9 + 1."""
    old = torch.tensor([[[1.0, 3.0, 3.0, 1.0]]])
    new = torch.tensor([[[1.0, 3.0, 1.0, 3.0]]])
    assert commutation_error(old, new, lambda t: t.flip(-1), 1) == pytest.approx((8 / 20) ** 0.5)
    many = commutation_error(old.repeat(50, 2, 1), new.repeat(50, 2, 1), lambda t: t.flip(-1), 1)
    assert many == pytest.approx((8 / 20) ** 0.5)  # however many values there are


def test_what_is_a_map_and_what_a_vector() -> None:
    """By the number of axes alone: maps turn, vectors stay, and maps without channels may do either."""
    x = torch.randn(1, 1, 6, 9)
    outputs = {
        "map": lambda image: image.square(),
        "map with more axes": lambda image: image[:, None].exp(),
        "map without channels": lambda image: image.mean(1),
        "map of classes": lambda image: (image > 0).long().sum(1),
        "complex map": lambda image: torch.complex(image, image.square()),
        "vector": lambda image: image.flatten(1).sort(1).values[:, :5],
        "scalar": lambda image: image.max(),
        "vectors": lambda image: image.flatten(2).sort(2).values,
    }
    for name, function in outputs.items():
        assert max(equivariance_error(function, x).values()) < 1e-6, name
    broken = {
        "map": lambda image: image.cumsum(2),
        "map without channels": lambda image: image.mean(1).cumsum(1),
        "map of classes": lambda image: (image.cumsum(2) > 0).long().sum(1),
        "complex map": lambda image: torch.complex(image, image.cumsum(3)),
        "vector": lambda image: image.flatten(1),
        "vectors": lambda image: image.flatten(2),
    }
    for name, function in broken.items():
        assert max(equivariance_error(function, x).values()) > 0.1, name
    logits = torch.randn(3, 7)  # of a network in 1-D: not maps without channels
    assert commutation_error(logits, logits.flip(-1), lambda t: t.flip(-1), 1) > 0.1


def test_outputs_in_objects_are_found() -> None:
    class Output:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    first, second, third = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    found = tensors_of([Output(logits=first, parts={"inner": Output(more=(second, "name"))}), third, None])
    assert [id(tensor) for tensor in found] == [id(first), id(second), id(third)]


def test_what_is_not_finite_or_missing_is_infinitely_wrong() -> None:
    def flip(tensor: Tensor) -> Tensor:
        return tensor.flip(-1)

    x = torch.ones(1, 1, 4)
    for other in (x * torch.nan, x / 0, x[..., :3], (x, x)):
        assert commutation_error(x, other, flip, 1) == float("inf")
    assert commutation_error(x * torch.nan, x * torch.nan, flip, 1) == float("inf")
    assert commutation_error(torch.zeros(1, 1, 0), torch.zeros(1, 1, 0), flip, 1) == 0


def test_modules_in_place_leave_the_input_alone() -> None:
    net = nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.AvgPool2d(3, 1, 1))
    x = torch.randn(1, 1, 9, 9)
    before = x.clone()
    assert max(equivariance_error(net, x).values()) < 1e-6
    assert max(max(errors.values()) for errors in layer_errors(net, x, "lattice").values()) < 1e-6
    assert torch.equal(x, before)


def test_angles_of_numpy() -> None:
    net, x = CentredAvgPool2d(2), torch.randn(1, 1, 12, 12)
    assert equivariance_error(net, x, np.array([30, 45])) == equivariance_error(net, x, [30, 45])


def test_nested_outputs_and_the_worst_of_them() -> None:
    net, x = Nest(), torch.randn(1, 1, 12, 9)
    assert max(equivariance_error(net, x).values()) < 1e-5
    net.last = nn.Conv2d(8, 2, 3, padding=1)
    whole = equivariance_error(net, x, "rot90(0,1)")["rot90(0,1)"]
    maps = equivariance_error(lambda image: net(image)["maps"][0], x, "rot90(0,1)")["rot90(0,1)"]
    assert whole == pytest.approx(maps)
    assert whole > 0.1
    assert equivariance_error(lambda image: net(image)["vector"], x, "rot90(0,1)")["rot90(0,1)"] < 1e-5


@pytest.mark.parametrize("place", ["stages.0.0.conv1", "stages.1.0.conv2", "stages.3.1.conv2", "conv1"])
@pytest.mark.parametrize("transforms", ["generators", ("rot90(0,1)", "flip(1)")])
def test_finds_the_plain_convolution_in_a_resnet(place: str, transforms: Any) -> None:
    net = SREResNet(2, 1, 3, width=8)
    old = net.get_submodule(place)
    parent, _, name = place.rpartition(".")
    planted = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    setattr(net.get_submodule(parent), name, planted)
    errors = layer_errors(net, torch.randn(2, 1, 16, 15), transforms)
    assert culprits(errors) == [place]
    assert errors[""]  # the network as a whole is in the table


@pytest.mark.parametrize("angle", [None, 30])
def test_finds_the_culprit_in_a_nest(angle: int | None) -> None:
    net = Nest()
    transforms, tolerance = ("generators", 1e-4) if angle is None else (angle, 0.2)
    x = smooth_image(1, 1, 48, 48, sigma=3.0)
    assert culprits(layer_errors(net, x, transforms), tolerance) == []
    torch.manual_seed(0)
    net.middle = nn.Conv2d(4, 4, 5, padding=2)
    assert culprits(layer_errors(net, x, transforms), tolerance) == ["middle"]


class Tokens(nn.Module):
    """Maps with channels last, flattened to a row of positions behind; one of the modules on the way is off centre."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 3), nn.GELU())
        self.pool = nn.AvgPool2d(2) if broken == "pool" else nn.Identity()
        self.rows = nn.Flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.movedim(1, -1))
        x = self.pool(self.mlp(x).movedim(-1, 1))
        return self.rows(x).mean(2)


@pytest.mark.parametrize("symmetry", ["flip(0)", "rot90(0,1)", "rot180(0,1)"])
@pytest.mark.parametrize("broken", ["", "pool"])
def test_maps_with_channels_last_and_rows_of_positions_are_sound(broken: str, symmetry: str) -> None:
    errors = layer_errors(Tokens(broken), torch.randn(1, 3, 7, 9), symmetry)
    assert culprits(errors)[:1] == ([broken] if broken else [])


def test_finds_two_culprits_and_operations_without_a_module() -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sound = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.sound(x.clone()).flatten(2).roll(1, 2).unflatten(2, x.shape[2:])

    net = nn.Sequential(nn.MaxPool2d(2), nn.Tanh(), Flattening(), nn.LeakyReLU(0.5, inplace=True))
    assert culprits(layer_errors(net, torch.randn(1, 2, 9, 9))) == ["0", "2"]
    fixed = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9 * 7, 3))
    errors = layer_errors(fixed, torch.randn(1, 2, 9, 7))
    assert culprits(errors) == ["1"]
    assert "2" not in errors  # behind the flattening there is nothing to turn


def test_a_module_that_cannot_take_turned_maps() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 2, 6, 4) + x

    errors = layer_errors(nn.Sequential(Fixed()), torch.randn(1, 2, 6, 4))
    assert errors["0"]["rot90(0,1)"] == float("inf")


def test_leaves_the_network_as_it_was() -> None:
    net = SREResNet(2, 1, 3, width=8, dropout_prob=0.5)
    net.stages[0].eval()
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for training in (False, True):
        random = torch.random.get_rng_state()
        equivariance_error(net, torch.randn(2, 1, 8, 8, generator=torch.Generator()), training=training)
        layer_errors(net, torch.randn(2, 1, 8, 8, generator=torch.Generator()), training=training)
        assert torch.equal(random, torch.random.get_rng_state())
    assert modes == {name: module.training for name, module in net.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_batch_statistics_on_request() -> None:
    net = nn.Sequential(SREConv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    x = 5 + torch.randn(4, 1, 9, 9)
    assert max(equivariance_error(net, x, training=True).values()) < 1e-5
    assert max(equivariance_error(net, x).values()) < 1e-5


def test_angles_of_a_radial_layer_against_a_plain_one() -> None:
    """An analytic anchor: a Gaussian blur commutes with rotation but for its sampling, which is below 1e-3 at width 1."""
    radius = torch.arange(-4.0, 5.0)
    row = torch.exp(-0.5 * radius**2)
    blur = nn.Conv2d(1, 1, 9, padding=4, bias=False)
    shear = nn.Conv2d(1, 1, 9, padding=4, bias=False)
    with torch.no_grad():
        blur.weight.copy_((row[:, None] * row[None, :])[None, None])
        shear.weight.copy_((row[:, None] * (radius == 0))[None, None])  # blurs along one axis alone
    x = smooth_image(1, 1, 64, 64, sigma=2.0)
    errors = equivariance_error(blur, x, (15, 30.0, 45))
    assert list(errors) == ["15 deg", "30 deg", "45 deg"]
    assert max(errors.values()) < 2e-3
    assert equivariance_error(shear, x, 45)["45 deg"] > 0.05
    assert equivariance_error(blur, x, 45, interpolation="bilinear")["45 deg"] > errors["45 deg"]
    assert equivariance_error(blur, x, 90)["90 deg"] < 1e-6


def test_angles_in_3d_are_about_each_axis() -> None:
    class AlongFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - torch.nn.functional.avg_pool3d(x, (5, 1, 1), 1, (2, 0, 0))

    errors = equivariance_error(AlongFirst(), smooth_image(1, 1, 20, 20, 20), 30)
    assert list(errors) == ["30 deg (0,1)", "30 deg (0,2)", "30 deg (1,2)"]
    assert errors["30 deg (1,2)"] < 1e-3  # the plane in which the filter does nothing
    assert min(errors["30 deg (0,1)"], errors["30 deg (0,2)"]) > 0.1


def test_angles_of_maps_of_reduced_size() -> None:
    x = smooth_image(1, 1, 65, 65, sigma=5.0)
    pool = CentredAvgPool2d(3, stride=2, padding=1)
    assert equivariance_error(pool, x, 45)["45 deg"] < 0.01
    assert equivariance_error(nn.AvgPool2d(2), smooth_image(1, 1, 65, 65, sigma=5.0), 45)["45 deg"] > 0.03


def test_custom_transformations() -> None:
    errors = equivariance_error(nn.ReLU(), torch.randn(1, 1, 4, 4, 4), lattice_symmetries(3, axes=(1, 2)))
    assert len(errors) == 8
    shift = equivariance_error(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        torch.randn(1, 1, 8, 8),
        {"shift": lambda image: image.roll(3, -1)},
    )
    assert shift["shift"] < 1e-5


def test_changed_shapes_and_vanishing_outputs() -> None:
    x = torch.randn(1, 1, 8, 5)
    assert equivariance_error(nn.MaxPool2d((2, 1)), x, "rot90(0,1)")["rot90(0,1)"] == float("inf")
    assert equivariance_error(lambda image: 0 * image, x, "rot90(0,1)")["rot90(0,1)"] == 0
    corner = equivariance_error(lambda image: image[..., :1, :1] * 0 + (image[..., 0, 0] > 1.5), _one(), "flip(0)")
    assert corner["flip(0)"] == float("inf")


def _one() -> Tensor:
    x = torch.zeros(1, 1, 3, 3)
    x[..., 2, 0] = 2
    return x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": "rot45"}, "transforms must be 'lattice', 'generators', one of .*got 'rot45'"),
        ({"transforms": [True]}, "got True"),
        ({"interpolation": "cubic"}, "interpolation must be one of .*'cubic'"),
        ({"margin": 1.0}, "margin must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equivariance_error(nn.ReLU(), torch.randn(1, 1, 4, 4), **options)


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, \*spatial\)"):
        equivariance_error(nn.ReLU(), torch.randn(4, 4))
    with pytest.raises(ValueError, match=r"x must hold at least one value, got shape \(0, 1, 4, 4\)"):
        equivariance_error(nn.ReLU(), torch.randn(0, 1, 4, 4))
    with pytest.raises(ValueError, match="transforms"):
        equivariance_error(nn.ReLU(), torch.randn(1, 1, 4), 15)
    with pytest.raises(ValueError, match="got no tensor"):
        equivariance_error(lambda image: None, torch.randn(1, 1, 4, 4))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must hold floating-point numbers, got torch\.uint8"):
        equivariance_error(lambda image: image.float(), torch.ones(1, 1, 8, 8, dtype=torch.uint8), 30)


def test_a_module_that_asserts_its_size_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2:] == (6, 8)
            return x

    net = nn.Sequential(nn.ReLU(), Fixed())
    errors = layer_errors(net, torch.randn(1, 1, 6, 8), "rot90(0,1)")
    assert errors["1"] == {"rot90(0,1)": float("inf")}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_a_network_counts_is_put_back_and_the_rest_untouched(training: bool, in_place: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.layer = SREConv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls.add_(1) if in_place else self.calls + 1
            out: Tensor = self.layer(x)
            return out

    network, x = Counting(), torch.randn(1, 1, 5, 5)
    loss = network(x).sum()
    equivariance_error(network, x, training=training)
    assert network.calls == 1
    loss.backward()  # its graph still has its constants
