"""Kernels in Triton for GPUs, called by :mod:`monai_sre.ops.ring.gpu`: sums over rings, mixed where they are formed.

All kernels look at images as ``(N, C, D, H, W)`` of any strides, so channels-first and channels-last are one, and axes that
an image lacks have size 1. A block holds some channels at ``BLOCK_P`` positions, counted over the whole batch, so small maps
fill it too. Its sums over all rings exist in registers alone, in float32, and go straight into a product of matrices.
Sizes are arguments of a call; kernel sizes, strides, padding and dilation are constants of a compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sums(
    image,  # pointer to the images, [positions]
    basis,  # pointer, (B, KD * KH * KW)
    channel,  # [channels]
    channels,  # their number
    stride_c,
    z,  # where the window of a position begins, in steps of the input, [positions]
    y,
    x,
    there,  # whether it is a position, [positions]
    depth,
    height,
    width,
    stride_d,
    stride_h,
    stride_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,  # the power of two from B up
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    ZOOM: tl.constexpr,  # zeros read between neighbours of the input, plus 1
    MIRROR: tl.constexpr,
):
    """Sums of channels over rings around positions, ``[channels, RINGS, positions]``, in float32."""
    ring = tl.arange(0, RINGS)
    columns: tl.constexpr = KERNEL[2]
    taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    total = tl.zeros([BLOCK_C, RINGS, BLOCK_P], tl.float32)
    rows = image[None, None, :] + channel.to(tl.int64)[:, None, None] * stride_c  # as the total is laid out
    for plane in range(KERNEL[0] * KERNEL[1]):
        at_z = z + plane // KERNEL[1] * DILATION[0]
        at_y = y + plane % KERNEL[1] * DILATION[1]
        row_there = there & (at_z >= 0) & (at_y >= 0)
        if ZOOM[0] > 1:
            row_there = row_there & (at_z % ZOOM[0] == 0)
            at_z = at_z // ZOOM[0]
        if ZOOM[1] > 1:
            row_there = row_there & (at_y % ZOOM[1] == 0)
            at_y = at_y // ZOOM[1]
        row_there = row_there & (at_z < depth) & (at_y < height)
        offset = at_z * stride_d + at_y * stride_h
        for column in tl.static_range(columns):
            at_x = x + column * DILATION[2]
            inside = row_there & (at_x >= 0)
            if ZOOM[2] > 1:
                inside = inside & (at_x % ZOOM[2] == 0)
                at_x = at_x // ZOOM[2]
            inside = inside & (at_x < width)
            mask = (channel < channels)[:, None, None] & inside[None, None, :]
            values = tl.load(rows + (offset + at_x * stride_w)[None, None, :], mask=mask, other=0.0).to(tl.float32)
            tap = plane * KERNEL[2] + column
            if MIRROR:
                tap = taps - 1 - tap
            factor = tl.load(basis + ring * taps + tap, mask=ring < B, other=0.0).to(tl.float32)
            total += values * factor[None, :, None]
    return total


@triton.jit
def _scales(basis, B: tl.constexpr, RINGS: tl.constexpr, TAPS: tl.constexpr):
    """Of each ring the power of two above the sum of its taps, as :func:`monai_sre.ops.ring.portable.ring_scales`."""
    ring = tl.arange(0, RINGS)
    total = tl.zeros([RINGS], tl.float32)
    for tap in range(TAPS):
        total += tl.abs(tl.load(basis + ring * TAPS + tap, mask=ring < B, other=0.0).to(tl.float32))
    return tl.exp2(tl.ceil(tl.log2(tl.maximum(total, 1.0))))


@triton.jit
def _product(left, right, total, DTYPE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """``total + left @ right`` of values of ``DTYPE``; Triton's interpreter cannot multiply bfloat16, and widens it."""
    left, right = left.to(DTYPE), right.to(DTYPE)
    if WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def _position(index, depth, height, width):
    """Image, plane, row and column of a position that is counted over the batch."""
    x = index % width
    row = index // width
    y = row % height
    plane = row // height
    return plane // depth, plane % depth, y, x


@triton.jit
def ring_conv(
    image,
    weight,  # (out_channels, channels, B) of any strides but the last
    basis,
    bias,
    out,
    positions,  # N * out_depth * out_height * out_width
    channels,
    out_channels,
    depth,
    height,
    width,
    out_depth,
    out_height,
    out_width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    out_n,
    out_c,
    out_d,
    out_h,
    out_w,
    weight_o,
    weight_i,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ZOOM: tl.constexpr,
    MIRROR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Sums over rings, mixed: each program forms the sums of its positions in pieces and multiplies them where they are."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    ring = tl.arange(0, RINGS)
    there = index < positions
    n, z, y, x = _position(index, out_depth, out_height, out_width)
    images = image + n.to(tl.int64) * stride_n
    dtype: tl.constexpr = image.dtype.element_ty
    scaled: tl.constexpr = dtype == tl.float16
    if scaled:
        scale = _scales(basis, B, RINGS, KERNEL[0] * KERNEL[1] * KERNEL[2])
    total = tl.zeros([BLOCK_O, BLOCK_P], tl.float32)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        sums = _sums(
            images,
            basis,
            channel,
            channels,
            stride_c,
            z * STRIDE[0] - PADDING[0],
            y * STRIDE[1] - PADDING[1],
            x * STRIDE[2] - PADDING[2],
            there,
            depth,
            height,
            width,
            stride_d,
            stride_h,
            stride_w,
            B,
            RINGS,
            BLOCK_C,
            BLOCK_P,
            KERNEL,
            DILATION,
            ZOOM,
            MIRROR,
        )
        known = (row < out_channels)[:, None, None] & (channel < channels)[None, :, None] & (ring < B)[None, None, :]
        place = row[:, None, None] * weight_o + channel[None, :, None] * weight_i + ring[None, None, :]
        mixer = tl.load(weight + place, mask=known, other=0.0)
        if scaled:
            mixer = mixer.to(tl.float32) * scale[None, None, :]
            sums = sums / scale[None, :, None]
        mixer = tl.reshape(mixer, [BLOCK_O, BLOCK_C * RINGS])
        sums = tl.reshape(sums, [BLOCK_C * RINGS, BLOCK_P])
        total = _product(mixer, sums, total, dtype, PRECISION, WIDEN)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < out_channels, other=0.0).to(tl.float32)[:, None]
    place = n.to(tl.int64) * out_n + z * out_d + y * out_h + x * out_w
    mask = (row < out_channels)[:, None] & there[None, :]
    tl.store(out + place[None, :] + row.to(tl.int64)[:, None] * out_c, total.to(dtype), mask=mask)


@triton.jit
def ring_weight_gradient(
    grad,
    image,
    basis,
    out,  # (splits, out_channels, channels, B), float32
    positions,
    channels,
    out_channels,
    depth,
    height,
    width,
    out_depth,
    out_height,
    out_width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    grad_n,
    grad_c,
    grad_d,
    grad_h,
    grad_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of the output's gradient with the sums, which are formed again; each split adds up every so-manieth block."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    ring = tl.arange(0, RINGS)
    dtype: tl.constexpr = image.dtype.element_ty
    scaled: tl.constexpr = dtype == tl.float16
    if scaled:
        scale = _scales(basis, B, RINGS, KERNEL[0] * KERNEL[1] * KERNEL[2])
    total = tl.zeros([BLOCK_O, BLOCK_C * RINGS], tl.float32)
    for start in range(tl.program_id(2) * BLOCK_P, positions, tl.num_programs(2) * BLOCK_P):
        index = start + tl.arange(0, BLOCK_P)
        there = index < positions
        n, z, y, x = _position(index, out_depth, out_height, out_width)
        sums = _sums(
            image + n.to(tl.int64) * stride_n,
            basis,
            channel,
            channels,
            stride_c,
            z * STRIDE[0] - PADDING[0],
            y * STRIDE[1] - PADDING[1],
            x * STRIDE[2] - PADDING[2],
            there,
            depth,
            height,
            width,
            stride_d,
            stride_h,
            stride_w,
            B,
            RINGS,
            BLOCK_C,
            BLOCK_P,
            KERNEL,
            DILATION,
            (1, 1, 1),
            False,
        )
        if scaled:
            sums = sums / scale[None, :, None]
        place = n.to(tl.int64) * grad_n + z * grad_d + y * grad_h + x * grad_w
        slopes = tl.load(
            grad + place[None, :] + row.to(tl.int64)[:, None] * grad_c,
            mask=(row < out_channels)[:, None] & there[None, :],
            other=0.0,
        )
        flat = tl.trans(tl.reshape(sums, [BLOCK_C * RINGS, BLOCK_P]))
        total = _product(slopes, flat, total, dtype, PRECISION, WIDEN)
    found = tl.reshape(total, [BLOCK_O, BLOCK_C, RINGS])
    if scaled:
        found = found * scale[None, None, :]
    known = (row < out_channels)[:, None, None] & (channel < channels)[None, :, None] & (ring < B)[None, None, :]
    split = tl.program_id(2).to(tl.int64) * out_channels
    place = ((split + row)[:, None, None] * channels + channel[None, :, None]) * B + ring[None, None, :]
    tl.store(out + place, found, mask=known)


@triton.jit
def ring_sums(
    image,
    basis,
    out,  # (N, channels * B, out_depth * out_height * out_width), contiguous
    positions,
    channels,
    depth,
    height,
    width,
    out_depth,
    out_height,
    out_width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ZOOM: tl.constexpr,
    MIRROR: tl.constexpr,
):
    """Sums over rings, written out for a product by cuBLAS; in float16 divided by the power of two of :func:`_scales`."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    ring = tl.arange(0, RINGS)
    there = index < positions
    n, z, y, x = _position(index, out_depth, out_height, out_width)
    sums = _sums(
        image + n.to(tl.int64) * stride_n,
        basis,
        channel,
        channels,
        stride_c,
        z * STRIDE[0] - PADDING[0],
        y * STRIDE[1] - PADDING[1],
        x * STRIDE[2] - PADDING[2],
        there,
        depth,
        height,
        width,
        stride_d,
        stride_h,
        stride_w,
        B,
        RINGS,
        BLOCK_C,
        BLOCK_P,
        KERNEL,
        DILATION,
        ZOOM,
        MIRROR,
    )
    if image.dtype.element_ty == tl.float16:
        sums = sums / _scales(basis, B, RINGS, KERNEL[0] * KERNEL[1] * KERNEL[2])[None, :, None]
    size = out_depth * out_height * out_width
    rows = (n.to(tl.int64) * channels)[None, None, :] + channel[:, None, None]
    place = (rows * B + ring[None, :, None]) * size + (index % size)[None, None, :]
    mask = (channel < channels)[:, None, None] & (ring < B)[None, :, None] & there[None, None, :]
    tl.store(out + place, sums.to(image.dtype.element_ty), mask=mask)


@triton.jit
def _energy(values, eps, component, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Root of the sum of squares of one order's components, ``[channels, positions]``, and which components these are."""
    own = ((component >= FIRST) & (component < LAST))[None, :, None]
    return tl.sqrt(tl.sum(tl.where(own, values * values, 0.0), axis=1) + eps), own


@triton.jit
def _mixer(
    weight,  # (out_channels, orders * group), contiguous
    row,
    channel,
    out_channels,
    channels,
    group,  # channels of a group, whose orders stand one after the other
    ORDERS: tl.constexpr,
    ORDER: tl.constexpr,
):
    """Weights of one order's energies, ``[row, channel]``, 0 between groups."""
    same = (row // (out_channels // (channels // group)))[:, None] == (channel // group)[None, :]
    known = same & (row < out_channels)[:, None] & (channel < channels)[None, :]
    place = row[:, None] * (ORDERS * group) + (ORDER * group + channel % group)[None, :]
    return tl.load(weight + place, mask=known, other=0.0)


@triton.jit
def add_energies(
    radial,
    image,
    stencils,  # (B, taps): the components of all orders
    weight,
    bias,
    out,
    positions,
    channels,
    out_channels,
    group,
    eps,
    depth,
    height,
    width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    radial_n,
    radial_c,
    radial_d,
    radial_h,
    radial_w,
    out_n,
    out_c,
    out_d,
    out_h,
    out_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    STARTS: tl.constexpr,  # the first component of each order, and B
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Radial maps plus mixed energies, which exist in registers alone."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    component = tl.arange(0, RINGS)
    orders: tl.constexpr = len(STARTS) - 1
    there = index < positions
    n, z, y, x = _position(index, depth, height, width)
    mask = (row < out_channels)[:, None] & there[None, :]
    place = n.to(tl.int64) * radial_n + z * radial_d + y * radial_h + x * radial_w
    total = tl.load(radial + place[None, :] + row.to(tl.int64)[:, None] * radial_c, mask=mask, other=0.0).to(tl.float32)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        values = _sums(
            image + n.to(tl.int64) * stride_n,
            stencils,
            channel,
            channels,
            stride_c,
            z - KERNEL[0] // 2,
            y - KERNEL[1] // 2,
            x - KERNEL[2] // 2,
            there,
            depth,
            height,
            width,
            stride_d,
            stride_h,
            stride_w,
            B,
            RINGS,
            BLOCK_C,
            BLOCK_P,
            KERNEL,
            (1, 1, 1),
            (1, 1, 1),
            False,
        )
        for order in tl.static_range(orders):
            energy, _ = _energy(values, eps, component, STARTS[order], STARTS[order + 1])
            mixer = _mixer(weight, row, channel, out_channels, channels, group, orders, order)
            total = _product(mixer, energy, total, weight.dtype.element_ty, PRECISION, WIDEN)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < out_channels, other=0.0).to(tl.float32)[:, None]
    place = n.to(tl.int64) * out_n + z * out_d + y * out_h + x * out_w
    tl.store(out + place[None, :] + row.to(tl.int64)[:, None] * out_c, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def energies(
    image,
    stencils,
    grad,  # of the energies, laid out as they are; or where these are mixed, of what they are mixed to
    weight,
    out,  # (N, orders * channels, D * H * W), contiguous, those of a group of channels beside each other
    slopes,  # (N, channels * B, D * H * W), contiguous
    positions,
    channels,
    out_channels,
    group,
    eps,
    depth,
    height,
    width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    grad_n,
    grad_c,
    grad_d,
    grad_h,
    grad_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
    STARTS: tl.constexpr,
    WITH_SLOPES: tl.constexpr,
    MIXED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Energies of all orders and, with slopes, the gradient by the components, which exist in registers alone otherwise."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    component = tl.arange(0, RINGS)
    there = index < positions
    n, z, y, x = _position(index, depth, height, width)
    values = _sums(
        image + n.to(tl.int64) * stride_n,
        stencils,
        channel,
        channels,
        stride_c,
        z - KERNEL[0] // 2,
        y - KERNEL[1] // 2,
        x - KERNEL[2] // 2,
        there,
        depth,
        height,
        width,
        stride_d,
        stride_h,
        stride_w,
        B,
        RINGS,
        BLOCK_C,
        BLOCK_P,
        KERNEL,
        (1, 1, 1),
        (1, 1, 1),
        False,
    )
    size = depth * height * width
    at = (index % size)[None, :]
    orders: tl.constexpr = len(STARTS) - 1
    mask = (channel < channels)[:, None] & there[None, :]
    factors = tl.zeros([BLOCK_C, RINGS, BLOCK_P], tl.float32)
    place = n.to(tl.int64) * grad_n + z * grad_d + y * grad_h + x * grad_w
    for order in tl.static_range(orders):
        energy, own = _energy(values, eps, component, STARTS[order], STARTS[order + 1])
        into = (channel // group * orders + order) * group + channel % group
        rows = (n.to(tl.int64) * orders * channels)[None, :] + into[:, None]
        tl.store(out + rows * size + at, energy.to(out.dtype.element_ty), mask=mask)
        if WITH_SLOPES:
            if MIXED:
                by_energy = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
                for start in range(0, out_channels, BLOCK_O):
                    row = start + tl.arange(0, BLOCK_O)
                    mixer = tl.trans(_mixer(weight, row, channel, out_channels, channels, group, orders, order))
                    slope = tl.load(
                        grad + place[None, :] + row.to(tl.int64)[:, None] * grad_c,
                        mask=(row < out_channels)[:, None] & there[None, :],
                        other=0.0,
                    )
                    by_energy = _product(mixer, slope, by_energy, weight.dtype.element_ty, PRECISION, WIDEN)
            else:
                by_energy = tl.load(
                    grad + place[None, :] + into.to(tl.int64)[:, None] * grad_c, mask=mask, other=0.0
                ).to(tl.float32)
            factors += tl.where(own, (by_energy / energy)[:, None, :], 0.0)
    if WITH_SLOPES:
        rows = (n.to(tl.int64) * channels)[None, None, :] + channel[:, None, None]
        target = (rows * B + component[None, :, None]) * size + at[:, None, :]
        kept = mask[:, None, :] & (component < B)[None, :, None]
        tl.store(slopes + target, (values * factors).to(slopes.dtype.element_ty), mask=kept)


@triton.jit
def energy_gradient(
    slopes,  # (N, channels * B, D * H * W), contiguous
    stencils,
    out,
    positions,
    channels,
    depth,
    height,
    width,
    stride_n,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    B: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KERNEL: tl.constexpr,
):
    """The gradient by the maps: mirrored stencils on the gradients by their components, added up."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    component = tl.arange(0, RINGS)
    there = index < positions
    n, z, y, x = _position(index, depth, height, width)
    columns: tl.constexpr = KERNEL[2]
    taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    rows = (n.to(tl.int64) * channels)[None, None, :] + channel[:, None, None]
    place = (rows * B + component[None, :, None]) * (depth * height * width)
    known = (channel < channels)[:, None, None] & (component < B)[None, :, None]
    total = tl.zeros([BLOCK_C, RINGS, BLOCK_P], tl.float32)
    for plane in range(KERNEL[0] * KERNEL[1]):
        at_z = z + plane // KERNEL[1] - KERNEL[0] // 2
        at_y = y + plane % KERNEL[1] - KERNEL[1] // 2
        row_there = there & (at_z >= 0) & (at_z < depth) & (at_y >= 0) & (at_y < height)
        for column in tl.static_range(columns):
            at_x = x + column - KERNEL[2] // 2
            inside = row_there & (at_x >= 0) & (at_x < width)
            at = (at_z * height + at_y) * width + at_x
            values = tl.load(slopes + place + at[None, None, :], mask=known & inside[None, None, :], other=0.0)
            tap = taps - 1 - (plane * KERNEL[2] + column)
            factor = tl.load(stencils + component * taps + tap, mask=component < B, other=0.0).to(tl.float32)
            total += values.to(tl.float32) * factor[None, :, None]
    found = tl.sum(total, axis=1)
    place = n.to(tl.int64) * stride_n + z * stride_d + y * stride_h + x * stride_w
    mask = (channel < channels)[:, None] & there[None, :]
    at = place[None, :] + channel.to(tl.int64)[:, None] * stride_c
    tl.store(out + at, found.to(out.dtype.element_ty), mask=mask)
