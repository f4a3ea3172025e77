"""Convolution with radially symmetric kernels, as pure functions.

``y = conv(x, K) + bias`` with ``K = weight @ basis``. The *dense algorithm* builds ``K`` and convolves. The *ring algorithm*
(:mod:`monai_sre.ops.ring.convolution`) sums the input over each ring and mixes channels with a matrix product: ``b``
multiply-adds per pair of channels instead of one per tap. Both give the same result to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from monai_sre.ops.arguments import int_tuple
from monai_sre.ops.ring.convolution import ring_available, ring_conv
from monai_sre.ops.ring.cost import choose_algorithm

ALGORITHMS = ("auto", "dense", "ring")
#: Environment variable that overrides the ``algorithm`` of every call.
ALGORITHM_VARIABLE = "MONAI_SRE_ALGORITHM"


def expand_kernel(weight: Tensor, basis: Tensor) -> Tensor:
    """Build the dense kernel ``weight @ basis``.

    Args:
        weight: ring coefficients, shape ``(out_channels, in_channels / groups, b)``.
        basis: shape ``(b, *kernel_size)``.

    Returns:
        Kernel of shape ``(out_channels, in_channels / groups, *kernel_size)``, in the dtype of ``weight``.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> expand_kernel(torch.tensor([[[4.0, 1.0]]]), radial_basis((3, 3)))
        tensor([[[[1., 1., 1.],
                  [1., 4., 1.],
                  [1., 1., 1.]]]])
    """
    return weight.matmul(basis.to(weight.dtype).flatten(1)).unflatten(-1, basis.shape[1:])


def sre_conv(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> Tensor:
    """Convolve with radially symmetric kernels; zero padding.

    Args:
        x: input of shape ``(N, C, *spatial)`` or ``(C, *spatial)``, 1 to 3 spatial axes.
        weight: ring coefficients, shape ``(out_channels, C / groups, b)``.
        basis: fixed kernels, shape ``(b, *kernel_size)``, from :func:`monai_sre.ops.radial_basis`.
        bias: shape ``(out_channels,)``, or ``None``.
        stride: step between outputs, one for all axes or one an axis; so ``padding`` (zeros on both sides) and ``dilation``.
        groups: number of blocks of channels that do not mix.
        algorithm: ``"dense"``, ``"ring"``, or ``"auto"`` for the one estimated to be faster. The environment variable
            ``MONAI_SRE_ALGORITHM`` overrides it. Where a graph is captured (TorchScript, ``torch.compile``,
            ``torch.export``, ONNX) or the ring engine does not serve the device or dtype, the dense algorithm runs.

    Returns:
        What ``torch.nn.functional.conv*d`` gives for ``expand_kernel(weight, basis)``.

    Raises:
        ValueError: a shape or a size does not fit.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3)
        >>> sre_conv(x, weight, radial_basis((5, 5)), padding=2).shape
        torch.Size([2, 6, 9, 9])
    """
    ndim = _check_operands(x, weight, basis)
    return sre_convnd(
        x,
        weight,
        basis,
        bias,
        list(int_tuple("stride", stride, ndim, minimum=1)),
        list(int_tuple("padding", padding, ndim, minimum=0)),
        list(int_tuple("dilation", dilation, ndim, minimum=1)),
        groups,
        check_algorithm(algorithm),
    )


def sre_conv_transpose(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed convolution with radially symmetric kernels (dense algorithm).

    Args:
        x: input of shape ``(N, C, *spatial)`` or ``(C, *spatial)``.
        weight: ring coefficients, shape ``(C, out_channels / groups, b)``, as in ``torch.nn.ConvTranspose*d``.
        basis: fixed kernels, shape ``(b, *kernel_size)``.
        bias: shape ``(out_channels,)``, or ``None``.
        stride: as the other sizes, in the meaning and the order of ``torch.nn.functional.conv_transpose*d``.

    Returns:
        What ``torch.nn.functional.conv_transpose*d`` gives for ``expand_kernel(weight, basis)``.

    Raises:
        ValueError: a shape or a size does not fit.

    Example:
        >>> from monai_sre.ops import radial_basis
        >>> x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 6, 2)
        >>> sre_conv_transpose(x, weight, radial_basis((3, 3)), stride=2, padding=1).shape
        torch.Size([2, 6, 17, 17])
    """
    ndim = _check_operands(x, weight, basis)
    return sre_conv_transposend(
        x,
        weight,
        basis,
        bias,
        list(int_tuple("stride", stride, ndim, minimum=1)),
        list(int_tuple("padding", padding, ndim, minimum=0)),
        list(int_tuple("output_padding", output_padding, ndim, minimum=0)),
        groups,
        list(int_tuple("dilation", dilation, ndim, minimum=1)),
    )


def sre_convnd(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    algorithm: str,
) -> Tensor:
    """:func:`sre_conv` for arguments already checked: what layers call, and what TorchScript compiles."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript leaves a branch out only where this stands alone
        if ring_available(x, weight) and not basis.requires_grad:
            chosen = requested_algorithm(algorithm)
            if chosen == "auto":
                chosen = choose_algorithm(x, weight, basis, stride, padding, dilation, groups)
            if chosen == "ring":
                return ring_conv(x, weight, basis, bias, stride, padding, dilation, groups)
    kernel = expand_kernel(weight, basis)
    if basis.dim() == 2:
        return functional.conv1d(x, kernel, bias, stride, padding, dilation, groups)
    if basis.dim() == 3:
        return functional.conv2d(x, kernel, bias, stride, padding, dilation, groups)
    return functional.conv3d(x, kernel, bias, stride, padding, dilation, groups)


def sre_conv_transposend(
    x: Tensor,
    weight: Tensor,
    basis: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> Tensor:
    """:func:`sre_conv_transpose` for arguments already checked: what layers call, and what TorchScript compiles."""
    kernel = expand_kernel(weight, basis)
    if basis.dim() == 2:
        return functional.conv_transpose1d(x, kernel, bias, stride, padding, output_padding, groups, dilation)
    if basis.dim() == 3:
        return functional.conv_transpose2d(x, kernel, bias, stride, padding, output_padding, groups, dilation)
    return functional.conv_transpose3d(x, kernel, bias, stride, padding, output_padding, groups, dilation)


def check_algorithm(algorithm: str) -> str:
    """Return ``algorithm``, or raise ValueError when it is none of ``ALGORITHMS``."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
    return algorithm


def requested_algorithm(algorithm: str) -> str:
    """``algorithm``, unless the environment variable ``MONAI_SRE_ALGORITHM`` says otherwise."""
    override = os.environ.get(ALGORITHM_VARIABLE)
    if not override:
        return algorithm
    if override not in ALGORITHMS:
        raise ValueError(f"the environment variable {ALGORITHM_VARIABLE} must be one of {ALGORITHMS}, got {override!r}")
    return override


def _check_operands(x: Tensor, weight: Tensor, basis: Tensor) -> int:
    ndim = basis.dim() - 1
    if not 1 <= ndim <= 3:
        raise ValueError(f"basis must have shape (b, *kernel_size) with 1 to 3 spatial axes, got {tuple(basis.shape)}")
    if weight.dim() != 3 or weight.shape[2] != basis.shape[0]:
        raise ValueError(
            f"weight must have 3 axes, the last of the basis' {basis.shape[0]} rings, got shape {tuple(weight.shape)}"
        )
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"x must have {ndim + 1} or {ndim + 2} axes for {ndim} spatial axes, got shape {tuple(x.shape)}"
        )
    return ndim
