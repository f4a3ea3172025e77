"""Kernels in Triton for GPUs, called by :mod:`monai_sre.ops.ring.gpu`: sums over rings by tensor cores, used where they are.

A program takes a tile of positions in some images. Their sums over a ring are a product of matrices: the values of the tile's
*window*, which holds all taps of all its positions, times a *table* that says which tap of the ring, if any, a place of the
window is to a position. The table is the same for all tiles, and serves any stencil, stride, dilation and padding. So each
value is read once per tile instead of once per tap, and the sums exist in registers alone, in float32, on their way into the
product that mixes channels.

All kernels look at images as ``(N, C, D, H, W)`` of any strides, so channels-first and channels-last are one, and axes that
an image lacks have size 1. ``size`` and ``strides`` are tuples of these; ``F`` is a :class:`monai_sre.ops.ring.gpu.Frame`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _along(program, length, TILE: tl.constexpr, ZOOM: tl.constexpr):
    """Of an axis: the rest of a program's number, the first position of its tile in steps of ``ZOOM``, and the phase."""
    tiles = tl.cdiv(length, TILE * ZOOM)
    return program // ZOOM // tiles, program // ZOOM % tiles * TILE, program % ZOOM


@triton.jit
def _tile(program, size, F: tl.constexpr):
    """The first image of a program's tile, where the tile begins along each axis, and its phases."""
    rest, x, phase_x = _along(program, size[2], F.TILE[2], F.ZOOM[2])
    rest, y, phase_y = _along(rest, size[1], F.TILE[1], F.ZOOM[1])
    rest, z, phase_z = _along(rest, size[0], F.TILE[0], F.ZOOM[0])
    return rest * F.BLOCK_I, (z, y, x), (phase_z, phase_y, phase_x)


@triton.jit
def _split(place, LENGTHS: tl.constexpr):
    """Plane, row and column of places that are counted through a box."""
    return place // (LENGTHS[1] * LENGTHS[2]), place // LENGTHS[2] % LENGTHS[1], place % LENGTHS[2]


@triton.jit
def _positions(program, images, size, F: tl.constexpr):
    """Image, plane, row and column of a program's positions, and which exist; ``[BLOCK_I * BLOCK_P]``, image by image."""
    image, begin, phase = _tile(program, size, F)
    spot = tl.arange(0, F.BLOCK_I * F.BLOCK_P)
    z, y, x = _split(spot % F.BLOCK_P, F.TILE)
    n = image + spot // F.BLOCK_P
    z = (begin[0] + z) * F.ZOOM[0] + phase[0]
    y = (begin[1] + y) * F.ZOOM[1] + phase[1]
    x = (begin[2] + x) * F.ZOOM[2] + phase[2]
    return n, z, y, x, (n < images) & (z < size[0]) & (y < size[1]) & (x < size[2])


@triton.jit
def _at(pointer, row, n, z, y, x, strides):
    """Where the values of channels, or of output channels, at positions lie; ``[rows, positions]``."""
    place = n.to(tl.int64) * strides[0] + z * strides[2] + y * strides[3] + x * strides[4]
    return pointer + place[None, :] + row.to(tl.int64)[:, None] * strides[1]


@triton.jit
def _product(left, right, total, F: tl.constexpr):
    """``total + left @ right`` of values of one dtype; Triton's interpreter cannot multiply bfloat16, and widens it."""
    if F.WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=F.PRECISION)


@triton.jit
def _zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found += (tl.zeros([ROWS, COLUMNS], tl.float32),)
    return found


@triton.jit
def _rings(values, table, sums, COUNT: tl.constexpr, F: tl.constexpr):
    """Sums of all rings, with what a piece of the window adds."""
    found = ()
    for ring in tl.static_range(COUNT):
        found += (_product(values, tl.load(table + ring * F.BLOCK_P), sums[ring], F),)
    return found


@triton.jit
def _sums(
    image,
    table,  # of one ring or all, from the first one that is wanted on
    start,  # the first channel
    program,
    images,
    channels,
    size,
    strides,
    out_size,
    COUNT: tl.constexpr,  # how many rings
    F: tl.constexpr,
):
    """Of each ring the sums, ``[BLOCK_I * BLOCK_C, BLOCK_P]``, in float32."""
    first, begin, phase = _tile(program, out_size, F)
    line = tl.arange(0, F.BLOCK_I * F.BLOCK_C)
    n, channel = first + line // F.BLOCK_C, start + line % F.BLOCK_C
    known = (n < images) & (channel < channels)
    lines = image + n.to(tl.int64) * strides[0] + channel.to(tl.int64) * strides[1]
    length: tl.constexpr = F.WINDOW[0] * F.WINDOW[1] * F.WINDOW[2]
    whole: tl.constexpr = (length + F.BLOCK_K - 1) // F.BLOCK_K * F.BLOCK_K
    table += ((phase[0] * F.ZOOM[1] + phase[1]) * F.ZOOM[2] + phase[2]) * (whole * F.B * F.BLOCK_P)
    sums = _zeros(COUNT, F.BLOCK_I * F.BLOCK_C, F.BLOCK_P)
    for piece in range(0, whole, F.BLOCK_K):
        place = piece + tl.arange(0, F.BLOCK_K)
        z, y, x = _split(place, F.WINDOW)
        z += begin[0] * F.STRIDE[0] + F.FIRST[0]
        y += begin[1] * F.STRIDE[1] + F.FIRST[1]
        x += begin[2] * F.STRIDE[2] + F.FIRST[2]
        inside = (place < length) & (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
        offset = z * strides[2] + y * strides[3] + x * strides[4]
        values = tl.load(lines[:, None] + offset[None, :], mask=known[:, None] & inside[None, :], other=0.0)
        own = table + place[:, None] * (F.B * F.BLOCK_P) + tl.arange(0, F.BLOCK_P)[None, :]
        sums = _rings(values, own, sums, COUNT, F)
    return sums


@triton.jit
def _by_channel(sums, F: tl.constexpr):
    """``[BLOCK_C, BLOCK_I * BLOCK_P]``, the positions as :func:`_positions` counts them."""
    if F.BLOCK_I > 1:
        sums = tl.permute(tl.reshape(sums, [F.BLOCK_I, F.BLOCK_C, F.BLOCK_P]), (1, 0, 2))
        sums = tl.reshape(sums, [F.BLOCK_C, F.BLOCK_I * F.BLOCK_P])
    return sums


@triton.jit
def tables(
    basis,  # (B, taps)
    out,  # (phases, pieces of a window * BLOCK_K, B, BLOCK_P)
    MIRROR: tl.constexpr,
    F: tl.constexpr,
):
    """The table of a layer: what a place of a window, where a tap meets a position, is multiplied with for it."""
    whole = tl.num_programs(0) * F.BLOCK_K
    place = tl.program_id(0) * F.BLOCK_K + tl.arange(0, F.BLOCK_K)
    spot = tl.arange(0, F.BLOCK_P)
    ring, phases = tl.program_id(1), _split(tl.program_id(2), F.ZOOM)
    window, position = _split(place, F.WINDOW), _split(spot, F.TILE)
    meets = (place < F.WINDOW[0] * F.WINDOW[1] * F.WINDOW[2])[:, None] & (spot >= 0)[None, :]
    tap = 0
    for axis in tl.static_range(3):
        begin = (position[axis] * F.ZOOM[axis] + phases[axis]) * F.STRIDE[axis] - F.PADDING[axis]
        away = ((window[axis] + F.FIRST[axis]) * F.ZOOM[axis])[:, None] - begin[None, :]
        meets = meets & (away >= 0) & (away % F.DILATION[axis] == 0) & (away < F.KERNEL[axis] * F.DILATION[axis])
        tap = tap * F.KERNEL[axis] + away // F.DILATION[axis]
    taps: tl.constexpr = F.KERNEL[0] * F.KERNEL[1] * F.KERNEL[2]
    if MIRROR:
        tap = taps - 1 - tap
    values = tl.load(basis + ring * taps + tap, mask=meets, other=0.0)
    row = (tl.program_id(2) * whole + place) * F.B + ring
    tl.store(out + row[:, None] * F.BLOCK_P + spot[None, :], values.to(out.dtype.element_ty))


@triton.jit
def _shift(bias, row, rows, total, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit
def ring_conv(
    image,
    weight,  # (B, out_channels, channels), contiguous
    table,
    bias,
    out,
    images,
    channels,
    out_channels,
    size,
    out_size,
    strides,
    out_strides,
    HAS_BIAS: tl.constexpr,
    F: tl.constexpr,
):
    """Sums over rings, mixed by the program that forms them."""
    program = tl.program_id(0)
    n, z, y, x, there = _positions(program, images, out_size, F)
    row = tl.program_id(1) * F.BLOCK_O + tl.arange(0, F.BLOCK_O)
    rings: tl.constexpr = F.B
    total = _zeros(1, F.BLOCK_O, F.BLOCK_I * F.BLOCK_P)[0]
    for start in range(0, channels, F.BLOCK_C):
        channel = start + tl.arange(0, F.BLOCK_C)
        sums = _sums(image, table, start, program, images, channels, size, strides, out_size, F.B, F)
        own = weight + row[:, None] * channels + channel[None, :]
        known = (row < out_channels)[:, None] & (channel < channels)[None, :]
        for ring in tl.static_range(rings):
            mixer = tl.load(own + ring * out_channels * channels, mask=known, other=0.0)
            total = _product(mixer, _by_channel(sums[ring].to(mixer.dtype), F), total, F)
    total = _shift(bias, row, out_channels, total, HAS_BIAS)
    mask = (row < out_channels)[:, None] & there[None, :]
    tl.store(_at(out, row, n, z, y, x, out_strides), total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _slopes(slopes, grad, sums, F: tl.constexpr):
    found = ()
    rings: tl.constexpr = F.B
    for ring in tl.static_range(rings):
        flat = _by_channel(sums[ring].to(grad.dtype), F)
        found += (_product(grad, tl.trans(flat), slopes[ring], F),)
    return found


@triton.jit
def ring_weight_gradient(
    grad,
    image,
    table,
    out,  # (splits, B, out_channels, channels), float32
    images,
    channels,
    out_channels,
    tiles,
    size,
    out_size,
    strides,
    grad_strides,
    F: tl.constexpr,
):
    """Products of the output's gradient with the sums, which are formed again; each split adds up every so-manieth tile."""
    start = tl.program_id(0) * F.BLOCK_C
    channel = start + tl.arange(0, F.BLOCK_C)
    row = tl.program_id(1) * F.BLOCK_O + tl.arange(0, F.BLOCK_O)
    rings: tl.constexpr = F.B
    found = _zeros(F.B, F.BLOCK_O, F.BLOCK_C)
    for program in range(tl.program_id(2), tiles, tl.num_programs(2)):
        sums = _sums(image, table, start, program, images, channels, size, strides, out_size, F.B, F)
        n, z, y, x, there = _positions(program, images, out_size, F)
        mask = (row < out_channels)[:, None] & there[None, :]
        found = _slopes(found, tl.load(_at(grad, row, n, z, y, x, grad_strides), mask=mask, other=0.0), sums, F)
    known = (row < out_channels)[:, None] & (channel < channels)[None, :]
    for ring in tl.static_range(rings):
        line = (tl.program_id(2).to(tl.int64) * rings + ring) * out_channels + row
        tl.store(out + line[:, None] * channels + channel[None, :], found[ring], mask=known)


@triton.jit
def _energy(values, eps, FIRST: tl.constexpr, LAST: tl.constexpr, F: tl.constexpr):
    """Root of the sum of squares of one order's components, ``[BLOCK_C, BLOCK_I * BLOCK_P]``."""
    total = eps
    for component in tl.static_range(FIRST, LAST):
        total += values[component] * values[component]
    return _by_channel(tl.sqrt(total), F)


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
    table,  # of the components of all orders
    weight,
    bias,
    out,
    images,
    channels,
    out_channels,
    group,
    eps,
    size,
    strides,
    radial_strides,
    out_strides,
    STARTS: tl.constexpr,  # the first component of each order, and B
    HAS_BIAS: tl.constexpr,
    F: tl.constexpr,
):
    """Radial maps plus mixed energies, which exist in registers alone."""
    program = tl.program_id(0)
    n, z, y, x, there = _positions(program, images, size, F)
    row = tl.program_id(1) * F.BLOCK_O + tl.arange(0, F.BLOCK_O)
    mask = (row < out_channels)[:, None] & there[None, :]
    total = tl.load(_at(radial, row, n, z, y, x, radial_strides), mask=mask, other=0.0).to(tl.float32)
    orders: tl.constexpr = len(STARTS) - 1
    for start in range(0, channels, F.BLOCK_C):
        values = _sums(image, table, start, program, images, channels, size, strides, size, F.B, F)
        for order in tl.static_range(orders):
            energy = _energy(values, eps, STARTS[order], STARTS[order + 1], F)
            channel = start + tl.arange(0, F.BLOCK_C)
            mixer = _mixer(weight, row, channel, out_channels, channels, group, orders, order)
            total = _product(mixer, energy.to(mixer.dtype), total, F)
    total = _shift(bias, row, out_channels, total, HAS_BIAS)
    tl.store(_at(out, row, n, z, y, x, out_strides), total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store_slopes(target, step, values, factor, mask, FIRST: tl.constexpr, LAST: tl.constexpr, F: tl.constexpr):
    """Write the gradients by one order's components; gives where those of the next one lie."""
    for component in tl.static_range(FIRST, LAST):
        slope = _by_channel(values[component], F) * factor
        tl.store(target, slope.to(target.dtype.element_ty), mask=mask)
        target += step
    return target


@triton.jit
def energies(
    image,
    table,
    grad,  # of the energies, laid out as they are; or where these are mixed, of what they are mixed to
    weight,
    out,  # (N, orders * channels, D, H, W), those of a group of channels beside each other
    slopes,  # (N, channels, B, D, H, W), contiguous
    images,
    channels,
    out_channels,
    group,
    eps,
    size,
    strides,
    grad_strides,
    out_strides,
    slope_strides,
    STARTS: tl.constexpr,
    WITH_SLOPES: tl.constexpr,
    MIXED: tl.constexpr,
    F: tl.constexpr,
):
    """Energies of all orders and, with slopes, the gradient by the components, which exist in registers alone otherwise."""
    program, start = tl.program_id(0), tl.program_id(1) * F.BLOCK_C
    channel = start + tl.arange(0, F.BLOCK_C)
    n, z, y, x, there = _positions(program, images, size, F)
    values = _sums(image, table, start, program, images, channels, size, strides, size, F.B, F)
    mask = (channel < channels)[:, None] & there[None, :]
    orders: tl.constexpr = len(STARTS) - 1
    target = _at(slopes, channel, n, z, y, x, slope_strides)
    for order in tl.static_range(orders):
        energy = _energy(values, eps, STARTS[order], STARTS[order + 1], F)
        into = (channel // group * orders + order) * group + channel % group
        tl.store(_at(out, into, n, z, y, x, out_strides), energy.to(out.dtype.element_ty), mask=mask)
        if WITH_SLOPES:
            if MIXED:
                by_energy = _zeros(1, F.BLOCK_C, F.BLOCK_I * F.BLOCK_P)[0]
                for first in range(0, out_channels, F.BLOCK_O):
                    row = first + tl.arange(0, F.BLOCK_O)
                    mixer = tl.trans(_mixer(weight, row, channel, out_channels, channels, group, orders, order))
                    known = (row < out_channels)[:, None] & there[None, :]
                    slope = tl.load(_at(grad, row, n, z, y, x, grad_strides), mask=known, other=0.0)
                    by_energy = _product(mixer, slope, by_energy, F)
            else:
                by_energy = tl.load(_at(grad, into, n, z, y, x, grad_strides), mask=mask, other=0.0).to(tl.float32)
            pixels = size[0] * size[1] * size[2]
            target = _store_slopes(
                target, pixels, values, by_energy / energy, mask, STARTS[order], STARTS[order + 1], F
            )


@triton.jit
def energy_gradient(
    slopes,  # (N, channels, B, D, H, W), contiguous
    table,  # of the mirrored components
    out,
    images,
    channels,
    size,
    strides,
    out_strides,
    F: tl.constexpr,
):
    """The gradient by the maps: mirrored stencils on the gradients by their components, added up."""
    program, start = tl.program_id(0), tl.program_id(1) * F.BLOCK_C
    n, z, y, x, there = _positions(program, images, size, F)
    total = _zeros(1, F.BLOCK_I * F.BLOCK_C, F.BLOCK_P)[0]
    for _ in range(F.B):
        total += _sums(slopes, table, start, program, images, channels, size, strides, size, 1, F)[0]
        slopes += size[0] * size[1] * size[2]
        table += F.BLOCK_P
    channel = start + tl.arange(0, F.BLOCK_C)
    mask = (channel < channels)[:, None] & there[None, :]
    found = _by_channel(total, F).to(out.dtype.element_ty)
    tl.store(_at(out, channel, n, z, y, x, out_strides), found, mask=mask)
