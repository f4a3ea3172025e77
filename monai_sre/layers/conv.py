"""Radially symmetric convolutions as modules: drop-in where ``torch.nn.Conv*d`` stood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_sre.ops.arguments import check_flags, int_tuple
from monai_sre.ops.conv import NO_RINGS, check_algorithm, expand_kernel, exported_ends, sre_conv_nd
from monai_sre.ops.grid import extend_ends
from monai_sre.ops.radial import GAUSSIAN_WIDTH, centred_basis, initial_std, learned_gaussian, radial_basis

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def on_flat(function: Callable[[Tensor], Tensor], module: nn.Module) -> Callable[[Tensor], Tensor]:
    """``function`` as ``Module._apply`` has it, on flat copies of the module's own buffers: they have no memory format."""
    own = [id(buffer) for buffer in module._buffers.values()]
    return lambda t: function(t.flatten()).reshape(t.shape) if id(t) in own else function(t)


def follow_parameters(layer: nn.Module, _: Any) -> None:
    """After a state dict was loaded: constants follow parameters that were assigned, as to a layer on the meta device."""
    given = next(layer.parameters(), None)
    if given is not None and not given.is_meta:
        layer.follow(given)  # type: ignore[operator]


def _with_axis(_: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Before a state dict is loaded: a width that was saved as a scalar."""
    name = f"{prefix}log_width"
    if isinstance(state.get(name), Tensor) and state[name].dim() == 0:
        state[name] = state[name].reshape(1)


class RadialNd(nn.Module):
    """What all radial layers share: arguments, parameters, the basis and its initialisation.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: number of taps, one for all axes or one per axis.
        stride: with the arguments up to ``dtype`` as in the ``torch.nn`` namesake.
        padding: integers, ``"valid"``, or ``"same"``, which is symmetric and so needs odd kernels.
        num_rings: learned coefficients per pair of channels; ``None`` is one per unit of radius.
        profile: how a ring spreads over radii: ``"band"`` (the published kernel), ``"linear"``, ``"gaussian"``,
            ``"isotropic"`` (the least error under rotation by any angle) or ``(name, options)``. With
            ``("gaussian", {"width": 0.7, "learn_width": True})`` the width of all rings is a parameter, ``log_width``, and
            the attribute ``basis`` is what it was at the start. ``None`` is the default, here and for ``orthonormal``.
        circular: whether the kernel ends at the largest ball in its box.
        orthonormal: use an orthonormal basis of the same span: a gradient step then moves the kernel as far as it moves a
            plain convolution. :func:`monai_sre.ops.change_basis` converts weights between the two.
        spacing: voxel size along each spatial axis; the kernel is round in that unit.
        axes: the spatial axes in which the kernel is radially symmetric; ``None`` is all.
        algorithm: ``"dense"``, ``"ring"`` or ``"auto"``, see :func:`monai_sre.ops.sre_conv`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument cannot work; the message names it, its value and what is allowed.
    """

    __jit_unused_properties__ = ("num_rings",)
    spatial_dims: int
    transposed = False
    #: What makes the basis of a geometry.
    make_basis = staticmethod(centred_basis)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_rings: int | None = None,
        profile: str | tuple[str, Mapping[str, Any]] | None = "band",
        circular: bool = True,
        orthonormal: bool | None = False,
        spacing: Sequence[float] | None = None,
        axes: Sequence[int] | None = None,
        algorithm: str = "auto",
    ) -> None:
        super().__init__()
        (self.in_channels,) = int_tuple("in_channels", in_channels, 1, minimum=1)
        (self.out_channels,) = int_tuple("out_channels", out_channels, 1, minimum=1)
        (self.groups,) = int_tuple("groups", groups, 1, minimum=1)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups must divide {name}={channels}, got {groups}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
            raise TypeError(f"dtype must be None or a floating-point torch.dtype, got {dtype!r}")
        check_flags(bias=bias)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        ndim = self.spatial_dims
        self.kernel_size = int_tuple("kernel_size", kernel_size, ndim, minimum=1)
        self.stride = int_tuple("stride", stride, ndim, minimum=1)
        self.dilation = int_tuple("dilation", dilation, ndim, minimum=1)
        self.padding = self._resolve_padding(padding)
        self.padding_mode = padding_mode
        self.algorithm = check_algorithm(algorithm)
        profile = "band" if profile is None else profile
        geometry: dict[str, Any] = {
            "num_rings": num_rings,
            "profile": profile,
            "circular": circular,
            "orthonormal": False if orthonormal is None else orthonormal,
            "spacing": spacing,
            "axes": axes,
        }
        self._geometry = geometry
        buffers = self._exact_buffers()
        # copies: the basis is made again whenever the layer moves; and arrays of numpy and torch would not compare
        if spacing is not None:
            geometry["spacing"] = tuple(float(step) for step in spacing)
        if axes is not None:
            geometry["axes"] = tuple(axes)
        if not isinstance(profile, str):
            geometry["profile"] = (profile[0], dict(profile[1]))
        #: For graphs that are exported, see :func:`monai_sre.ops.conv.sre_conv_nd`.
        self.ends = NO_RINGS
        if not self.transposed and "edge" not in buffers:
            self.ends = exported_ends(buffers["basis"], self.in_channels, self.out_channels, self.groups, algorithm)
        outer, inner = self.out_channels, self.in_channels
        if self.transposed:
            outer, inner = inner, outer
        self.weight = nn.Parameter(
            torch.empty(outer, inner // self.groups, len(buffers["basis"]), device=device, dtype=dtype)
        )
        self.basis: Tensor
        self.squares: Tensor
        self.edge: Tensor
        self.log_width: nn.Parameter | None
        for name, values in buffers.items():
            self.register_buffer(name, values.to(self.weight), persistent=False)
        self.register_load_state_dict_post_hook(follow_parameters)
        # one element on an axis, as torch.distributed shards no scalar
        self.register_parameter("log_width", nn.Parameter(self.weight.new_empty(1)) if "edge" in buffers else None)
        self.register_load_state_dict_pre_hook(_with_axis)
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Refill the basis after a change of dtype or device, or it would stay rounded, or empty after ``to_empty``."""
        super()._apply(on_flat(fn, self), recurse)
        self._fill_basis(self.basis)
        return self

    def follow(self, parameter: Tensor) -> None:
        """Make the constants anew, on the device and in the dtype of a parameter that was assigned to the layer."""
        if (self.basis.device, self.basis.dtype) != (parameter.device, parameter.dtype):
            self._fill_basis(parameter)

    def _exact_buffers(self) -> dict[str, Tensor]:
        """The basis in float64 and, where its width is learned, what :meth:`current_basis` makes it of."""
        buffers = {"basis": self.make_basis(self.kernel_size, **self._geometry)}
        learned = learned_gaussian(self.kernel_size, **self._geometry)
        return buffers if learned is None else {**buffers, "squares": learned[0], "edge": learned[1]}

    def _fill_basis(self, like: Tensor) -> Tensor:
        """Make the buffers anew of the exact basis, which is returned; a graph may still need those that were."""
        buffers = self._exact_buffers()
        for name, values in buffers.items():
            setattr(self, name, values.to(like))
        return buffers["basis"]

    def reset_parameters(self) -> None:
        """Refill basis, weight and bias: uniform weights of :func:`monai_sre.ops.radial.initial_std`, zero bias."""
        std = self._initial_std(self._fill_basis(self.basis))
        bound = (3**0.5 * std).to(device=self.weight.device, dtype=self.weight.dtype)
        with torch.no_grad():
            if self.log_width is not None:
                self.log_width.fill_(math.log(self._geometry["profile"][1].get("width", GAUSSIAN_WIDTH)))
            self.weight.uniform_(-1, 1).mul_(bound)
            if self.bias is not None:
                self.bias.zero_()

    def _resolve_padding(self, padding: str | int | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(padding, str):
            return int_tuple("padding", padding, self.spatial_dims, minimum=0)
        if padding == "valid":
            return (0,) * self.spatial_dims
        if padding != "same":
            raise ValueError(f"padding must be 'same', 'valid', or integers >= 0, got {padding!r}")
        if any(step != 1 for step in self.stride):
            raise ValueError(f"padding='same' needs stride 1, got stride={self.stride}")
        spans = [step * (length - 1) for length, step in zip(self.kernel_size, self.dilation, strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError(
                f"kernel_size must be odd along every axis, got {self.kernel_size}: padding='same' is symmetric"
            )
        return tuple(span // 2 for span in spans)

    def _initial_std(self, basis: Tensor) -> Tensor:
        return initial_std(basis, self.in_channels // self.groups)

    def current_basis(self) -> Tensor:
        """The basis, shape ``(b, *kernel_size)``: fixed, or at the width learned by now."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
            if self.basis.is_meta and not self.weight.is_meta:  # torch itself would return memory as it finds it
                raise ValueError(
                    "basis is on the meta device, without values; to_empty(device=...) of the layer makes it"
                )
        if self.log_width is None:
            return self.basis
        return self.edge * torch.exp(-0.5 * self.squares / torch.exp(self.log_width).square())

    @torch.jit.unused
    def kernel(self) -> Tensor:
        """The dense kernel, in the layout of the ``torch.nn`` namesake's weight; differentiable."""
        return expand_kernel(self.weight, self.current_basis())

    @property
    def num_rings(self) -> int:
        """Number of learned coefficients per pair of channels."""
        return self.weight.shape[2]

    def extra_repr(self) -> str:
        """Every argument that differs from its default, in the manner of ``torch.nn``."""
        defaults = {"stride": 1, "padding": 0, "far_padding": 0, "dilation": 1, "output_padding": 0}
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, num_rings={self.num_rings}"]
        for name, default in defaults.items():
            value = getattr(self, name, (default,))
            parts += [f"{name}={value}"] if any(item != default for item in value) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        shown = {"profile": "band", "circular": True, "orthonormal": False, "spacing": None, "axes": None}
        parts += [f"{name}={self._geometry[name]!r}" for name, usual in shown.items() if self._geometry[name] != usual]
        parts += [f"algorithm={self.algorithm}"] if self.algorithm != "auto" else []
        return ", ".join(parts)


class SREConvNd(RadialNd):
    """Convolutions with odd kernels, on the grid of ``torch.nn``.

    Strides above 1 sample a grid that is off centre at most sizes, so that the layer alone no longer commutes with rotations;
    :mod:`monai_sre.layers.centred` and :mod:`monai_sre.layers.pool` do.
    """

    make_basis = staticmethod(radial_basis)

    def forward(self, x: Tensor) -> Tensor:
        padding = list(self.padding)
        if self.padding_mode != "zeros":
            x = extend_ends(x, padding, self.padding_mode)
            padding = [0] * len(padding)
        basis, stride, dilation = self.current_basis(), list(self.stride), list(self.dilation)
        return sre_conv_nd(
            x, self.weight, basis, self.bias, stride, padding, dilation, self.groups, self.algorithm, self.ends
        )


class SREConv1d(SREConvNd):
    """1-D convolution whose kernels are even functions; arguments as :class:`SREConv2d`.

    Shape:
        ``(N, in_channels, L)`` or ``(in_channels, L)`` to the shape that ``torch.nn.Conv1d`` gives.

    Example:
        >>> SREConv1d(2, 4, 5, padding="same")(torch.randn(3, 2, 20)).shape
        torch.Size([3, 4, 20])
    """

    spatial_dims = 1


class SREConv2d(SREConvNd):
    """2-D convolution whose kernels depend only on the distance from their centre.

    Equals ``torch.nn.Conv2d`` with the kernel :meth:`kernel`. At stride 1 and with symmetric padding it commutes with the
    rotations by 90 degrees and the flips. Source: Du et al., "SRE-Conv", ISBI 2025, arXiv 2501.09753.

    Shape:
        ``(N, in_channels, H, W)`` or ``(in_channels, H, W)`` to the shape that ``torch.nn.Conv2d`` gives. ``weight`` is
        ``(out_channels, in_channels / groups, num_rings)``.

    Example:
        >>> layer = SREConv2d(3, 8, 9, padding=4)
        >>> x = torch.randn(1, 3, 31, 24)
        >>> torch.allclose(layer(x.rot90(1, (2, 3))), layer(x).rot90(1, (2, 3)), atol=1e-5)
        True
    """

    spatial_dims = 2


class SREConv3d(SREConvNd):
    """3-D convolution whose kernels depend only on the distance from their centre; arguments as :class:`SREConv2d`.

    Shape:
        ``(N, in_channels, D, H, W)`` or ``(in_channels, D, H, W)`` to the shape that ``torch.nn.Conv3d`` gives.

    Example:
        >>> layer = SREConv3d(1, 4, (3, 7, 7), padding="same", spacing=(5.0, 1.0, 1.0))  # round in millimetres
        >>> layer(torch.randn(1, 1, 8, 32, 32)).shape
        torch.Size([1, 4, 8, 32, 32])
    """

    spatial_dims = 3
