"""The check of converted networks: what it must see, what it must not refuse, and what it cannot judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional

from monai_sre import conversion_report, convert_to_sre, equivariance_error
from monai_sre.convert import trial
from monai_sre.symmetry import lattice_generators


class Custom(nn.Module):
    """Some convolutions of stride 2 (``stems``), and a ``forward`` of the test's own."""

    def __init__(
        self, forward: Callable[[nn.Module, Tensor], Any], stems: int = 1, stride: int = 2, dims: int = 2
    ) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.body = nn.Sequential(*(conv(4 if stem else 1, 4, 3, stride, 1) for stem in range(stems)))
        self.forward = lambda x: forward(self, x)  # type: ignore[method-assign]


def pooled_by_hand(net: Any, x: Tensor) -> Tensor:
    x = net.body(x)
    pool: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.dim() - 3]
    return pool(x, 2).flatten(2).mean(2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stems", [1, 2, 3])
def test_a_pool_off_centre_is_seen_at_every_depth(dims: int, stems: int) -> None:
    """Which maps are even or odd depends on the depth: a size that tells at stride 2 need not at stride 4."""
    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(Custom(pooled_by_hand, stems, dims=dims))


def test_a_pool_off_centre_is_seen_from_a_given_size() -> None:
    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(Custom(pooled_by_hand, 3), verify=(1, 1, 28, 28))


def test_a_pool_off_centre_is_seen_in_what_takes_multiples_of_4() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        deep = net.body(x)
        up = functional.interpolate(deep, scale_factor=4.0)
        return (up[:, :1] + x) * functional.max_pool2d(deep, 2).mean()

    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(Custom(forward, 2))


def test_outputs_that_do_not_respond_are_no_proof() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return functional.relu(functional.max_pool2d(net.body(x), 2).mean(1) - 1e3)

    with pytest.raises(ValueError, match=r"cannot be checked, as its outputs are the same .* give verify an input"):
        convert_to_sre(Custom(forward))
    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(Custom(forward), verify=1e5 * torch.randn(1, 1, 36, 42))
    kept = convert_to_sre(Custom(forward), strict=False)
    assert "cannot be checked" in conversion_report(kept).refused[0].after


def test_outputs_in_objects_are_compared() -> None:
    @dataclasses.dataclass
    class Output:
        logits: Tensor

    class Plain:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    for kind in (Output, Plain):
        with pytest.raises(ValueError, match="does not commute"):
            convert_to_sre(Custom(lambda net, x, kind=kind: kind(net.body(x).cumsum(2))))  # type: ignore[misc]
        report = conversion_report(convert_to_sre(Custom(lambda net, x, kind=kind: kind(net.body(x)))))  # type: ignore[misc]
        assert 0 < max(report.errors.values()) < 1e-9
    with pytest.raises(ValueError, match="returns no tensor"):
        convert_to_sre(Custom(lambda net, x: str(net.body(x).shape)))


def test_random_numbers_are_told_from_asymmetry() -> None:
    encoder = nets.AutoencoderKL(
        2,
        1,
        1,
        num_res_blocks=(1, 1),
        channels=(8, 8),
        attention_levels=(False, False),
        latent_channels=2,
        norm_num_groups=4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    with pytest.raises(ValueError, match=r"cannot be checked, as it draws random numbers in eval mode"):
        convert_to_sre(encoder)
    converted: Any = convert_to_sre(encoder, verify=False).eval()
    x = torch.randn(1, 1, 30, 26)
    with torch.no_grad():
        out, turned = (converted.decode(converted.encode(image)[0]) for image in (x, x.rot90(1, (2, 3))))
    torch.testing.assert_close(turned, out.rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)


def test_frozen_filters_stay_what_they_are() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return functional.conv2d(net.body(x), net.mean, groups=4)

    net = Custom(forward)
    net.mean = nn.Parameter(torch.full((4, 1, 3, 3), 1 / 9), requires_grad=False)
    assert max(conversion_report(convert_to_sre(net)).errors.values()) < 1e-9


def test_the_size_that_monai_declares_may_lack_channels() -> None:
    with pytest.raises(ValueError, match=r"final\.0 \(Flatten\): it does not commute"):
        convert_to_sre(nets.Classifier((1, 32, 32), 2, (4, 8), (2, 2)))


def test_arguments_in_lists_and_dictionaries() -> None:
    def added(net: Any, images: Any) -> Tensor:
        first, second = images.values() if isinstance(images, dict) else images
        return net.body(first + second)  # type: ignore[no-any-return]

    images = [torch.randn(1, 1, 9, 12), torch.randn(1, 1, 9, 12)]
    for argument in (images, {"a": images[0], "b": images[1]}):
        assert max(conversion_report(convert_to_sre(Custom(added), verify=(argument,))).errors.values()) < 1e-9
    with pytest.raises(TypeError, match=r"verify must be an example input, its shape .* got dict"):
        convert_to_sre(Custom(added), verify={"image": images[0]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"in float64; it raises RuntimeError: .*channels"):
        convert_to_sre(Custom(added), verify=((torch.randn(1, 2, 9, 12),) * 2,))


def test_casts_to_a_shorter_type_do_not_hide_an_error() -> None:
    """They would round, by more than what a position table of small values adds."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        return x * x.square().float().mean((2, 3), keepdim=True).to(torch.float16).to(x.dtype)

    report = conversion_report(convert_to_sre(Custom(forward)))
    assert max(report.errors.values()) < 1e-14


def test_a_network_that_takes_no_input_says_why() -> None:
    class Picky(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 50:
                raise RuntimeError("fifty columns, please")
            return super().forward(x)

    def picky() -> nn.Module:
        return Picky(nn.Conv2d(1, 2, 3, padding=1))

    with pytest.raises(
        ValueError, match=r"no input was found .* \(1, 1, 256, 256\), in float64, raises RuntimeError: fifty columns"
    ):
        convert_to_sre(picky())
    declared = picky()
    declared.in_shape = (1, 50, 50)
    report = conversion_report(convert_to_sre(declared))
    assert report.input_shape == (1, 1, 50, 50)


class Shared(nn.Module):
    """One layer under two names, a parameter in two layers, a buffer of each kind, and a parameter of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.again = self.first
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 1, 1, bias=False)
        self.copy = nn.Conv2d(4, 1, 1, bias=False)
        self.copy.weight = self.last.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # as if it counted
        return self.last(self.norm(self.again(x))) + self.copy(self.first(x)) + self.frozen.sum()


def test_prepared_networks_are_what_they_were_afterwards() -> None:
    """The same tensors with the same values, also when the trial fails; inside, all is float64 and nothing is constant."""
    network = Shared().half().train()
    network.norm.eval()
    held = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    values = {
        name: (tensor.data_ptr(), tensor.clone(), tensor.dtype, tensor.requires_grad) for name, tensor in held.items()
    }

    def fails() -> None:
        assert {p.dtype for p in network.parameters()} == {torch.float64}
        assert len(set(network.norm.weight.tolist())) == 4
        assert network.copy.weight is network.last.weight
        assert not any(module.training for module in network.modules())
        first, second = (trial.run(network, (torch.ones(1, 1, 5, 5, dtype=torch.float64),)) for _ in range(2))
        assert torch.equal(first, second)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), trial.prepared(network):
        fails()
    now = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    assert list(now) == list(held)
    for name, tensor in now.items():
        assert tensor is held[name], name
        pointer, value, dtype, flag = values[name]
        assert (tensor.data_ptr(), tensor.dtype, tensor.requires_grad) == (pointer, dtype, flag), name
        assert torch.equal(tensor, value), name
    assert network.training
    assert not network.norm.training
    network(torch.randn(2, 1, 5, 5).half()).sum().backward()


def test_what_a_forward_keeps_of_the_trial_is_put_back() -> None:
    """As DynUNet keeps its deep supervision: the user's maps, with their graph, and no map of the trial."""

    def forward(net: Any, x: Tensor) -> Tensor:
        net.heads[0] = net.last = net.body(x)
        net.seen.append(x)
        net.size = x.shape[2:]
        return net.last  # type: ignore[no-any-return]

    network = Custom(forward)
    network.heads, network.seen, network.last = [torch.zeros(1)], [], None
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    heads, last = network.heads, network.last
    convert_to_sre(network)
    assert network.heads is heads
    assert heads[0] is last is network.last
    assert [tuple(x.shape) for x in network.seen] == [(2, 1, 8, 8)]
    assert network.size == (8, 8)


def test_the_check_blames_the_innermost_module() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.ReLU(), nn.Sequential(nn.MaxPool2d(2))))
    report = conversion_report(convert_to_sre(nn.Conv2d(1, 1, 1)))
    report.entries, report.errors = [], {}
    with trial.prepared(network):
        arguments, _ = trial.find_input(network, 2)
        assert arguments is not None
        trial.check(network, report, lattice_generators(2), trial.examples(network, arguments, 2), 2)
    assert [(entry.name, entry.before) for entry in report.refused] == [("1.1.0", "MaxPool2d")]


def test_numbers_of_spatial_axes() -> None:
    assert trial.spatial_dims_of(nn.Sequential(nn.Linear(2, 2), nn.AvgPool3d(2))) == 3
    with pytest.raises(ValueError, match=r"of one number of spatial axes, got none in Linear"):
        trial.spatial_dims_of(nn.Linear(2, 2))
    both = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Conv3d(1, 1, 1))
    with pytest.raises(ValueError, match=r"of one number of spatial axes, got \[1, 3\] in Sequential"):
        trial.spatial_dims_of(both)
    for verify in (torch.zeros(1, 1, 8), (1, 1, 8), (torch.zeros(1, 1, 8), 3)):
        assert trial.spatial_dims_of(both, verify) == 1


def test_stencils_are_exact_inside() -> None:
    """In float32 they are rounded, and energies of order 2 in 3-D then symmetric to 1e-8 only."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    report = conversion_report(convert_to_sre(network, conv="harmonic", init="reset"))
    assert max(report.errors.values()) < 1e-12
    stencils = [buffer for name, buffer in network.named_buffers() if name.endswith("stencils")]
    assert stencils
    assert {buffer.dtype for buffer in stencils} == {torch.float32}


def test_weights_of_nan_are_named_as_such() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    nn.init.constant_(network[0].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be checked, as its outputs are NaN"):
        convert_to_sre(network)


class WithTable(nn.Module):
    """Adds a table of positions to one channel in a hundred million, as a residual branch of little weight does."""

    def __init__(self, share: float, caches: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.table = Table(caches)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.share * self.table(x)


class Table(nn.Module):
    def __init__(self, caches: bool) -> None:
        super().__init__()
        self.pos_bias = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.caches, self.known = caches, dict[str, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if self.caches and not self.training:
            return x * self.known.setdefault(str(x.device), self.pos_bias * 2)
        return x * self.pos_bias * 2


@pytest.mark.parametrize("share", [1.0, 1e-7])
@pytest.mark.parametrize("caches", [False, True])
def test_a_table_of_positions_is_named_however_little_it_weighs(share: float, caches: bool) -> None:
    network = WithTable(share, caches).eval()
    x = torch.randn(1, 1, 8, 8)
    before = network(x)
    with pytest.raises(ValueError, match=r"table \(Table\): it does not commute .*; positions enter by pos_bias"):
        convert_to_sre(network, verify=(1, 1, 8, 8))
    assert torch.equal(network(x), before)  # what it had kept is there again


def test_a_flattened_map_of_one_pixel_is_no_proof() -> None:
    """At the first size, 37 x 46, the map in front of the head is one pixel; the head reads positions of larger ones."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.pool(functional.max_pool2d(net.body(x), 2)).flatten(1))

    network = Custom(forward, 5)
    network.pool, network.head = nn.AdaptiveAvgPool2d(2), nn.Linear(16, 2)
    with pytest.raises(ValueError, match="does not commute"):
        convert_to_sre(network)


def test_an_input_is_found_where_something_stands_before_the_first_convolution() -> None:
    class Stacked(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, x.square()], dim=1))

    report = conversion_report(convert_to_sre(Stacked(nn.Conv2d(6, 2, 3, padding=1))))
    assert report.input_shape == (1, 3, 37, 46)


@pytest.mark.parametrize("held", [True, False])
def test_kernels_that_are_no_parameters_are_in_float64_in_the_trial(held: bool) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        kernel = net.kernel if held else torch.ones(4, 1, 3, 3, device=x.device) / 9
        return functional.conv2d(net.body(x).type(kernel.dtype), kernel, groups=4)

    network, x = Custom(forward), torch.randn(1, 1, 9, 12)
    network.kernel = kernel = torch.ones(4, 1, 3, 3) / 9
    assert max(equivariance_error(convert_to_sre(network).eval(), x).values()) < 1e-5
    assert network.kernel is kernel
    assert torch.get_default_dtype() == torch.float32
