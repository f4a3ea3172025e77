/* Matrix products of ring sums that lie in strips; see ring_cpu.c. */

INLINE void mix_strips(const int wide, const Call *c, const REAL *weight, const REAL *sums, i64 strip_step, i64 depth,
                       int begin, const REAL *bias, i64 tall, i64 channel, const Place *place, REAL *out)
{
    const i64 size = c->out_size[0] * c->out_size[1] * c->out_size[2];
    REAL *to[WIDE];
    vec sum[TALL][WIDE];
    for (int j = 0; j < wide; j++)
        to[j] = out + (place[j].image * c->out_channels + channel) * size + place[j].position;
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) {
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++)
            sum[r][j] = (vec){0};
    }
    multiply(wide, weight, TALL, 1, sums, strip_step, LANES, depth, sum);
    vec done[TALL][WIDE];
    memcpy(done, sum, sizeof(done));
    for (int r = 0; r < least(TALL, tall); r++)
        for (int j = 0; j < wide; j++) {
            REAL *p = to[j] + r * size;
            const vec start = splat(begin && bias ? bias[r] : 0);
            if (place[j].count == LANES)
                store(p, done[r][j] + (begin ? start : load(p)));
            else
                for (i64 i = 0; i < place[j].count; i++)
                    p[i] = done[r][j][i] + (begin ? start[i] : p[i]);
        }
}

/* out = weight . sums + bias for the strips of a tile. */
static void mix_tile(const Call *c, const REAL *weight, const REAL *bias, const REAL *sums, const Place *place,
                     i64 strips, REAL *out)
{
    const i64 maps = c->channels / c->blocks * c->maps, channels = c->out_channels / c->blocks;
    const i64 strip_step = c->channels * c->maps * LANES, rows = ceil_div(channels, TALL);
    const i64 parts = ceil_div(maps, DEPTH), step = ceil_div(maps, parts);
    for (i64 g = 0; g < c->blocks; g++)
        for (i64 k = 0; k < maps; k += step)
            for (i64 s = 0; s < strips; s += WIDE)
                for (i64 r = 0; r < rows; r++) {
                    const REAL *w = weight + ((g * rows + r) * maps + k) * TALL,
                               *v = sums + s * strip_step + (g * maps + k) * LANES;
                    const i64 channel = g * channels + r * TALL, depth = least(step, maps - k),
                              tall = channels - r * TALL;
                    const REAL *b = bias ? bias + channel : NULL;
                    if (strips - s >= 3)
                        mix_strips(3, c, w, v, strip_step, depth, k == 0, b, tall, channel, place + s, out);
                    else if (strips - s == 2)
                        mix_strips(2, c, w, v, strip_step, depth, k == 0, b, tall, channel, place + s, out);
                    else
                        mix_strips(1, c, w, v, strip_step, depth, k == 0, b, tall, channel, place + s, out);
                }
}

/* The other operand of the product over positions, transposed: packed[channel / LANES][position][LANES]. */
static void pack_other(const Call *c, const REAL *other, const Place *place, i64 strips, REAL *packed)
{
    const i64 size = c->out_size[0] * c->out_size[1] * c->out_size[2], channels = c->other_channels / c->blocks;
    for (i64 g = 0; g < c->blocks; g++)
        for (i64 j = 0; j < channels; j += LANES, packed += strips * LANES * LANES) {
            const i64 count = least(LANES, channels - j);
            for (i64 s = 0; s < strips; s++) {
                const REAL *from =
                    other + (place[s].image * c->other_channels + g * channels + j) * size + place[s].position;
                REAL *to = packed + s * LANES * LANES;
                if (count < LANES || place[s].count < LANES) memset(to, 0, LANES * LANES * sizeof(REAL));
                if (count == LANES && place[s].count == LANES)
                    for (int lane = 0; lane < LANES; lane++)
                        for (int i = 0; i < LANES; i++)
                            to[lane * LANES + i] = from[i * size + lane];
                else
                    for (i64 lane = 0; lane < place[s].count; lane++)
                        for (i64 i = 0; i < count; i++)
                            to[lane * LANES + i] = from[i * size + lane];
            }
        }
}

INLINE void add_products(const int wide, const REAL *sums, i64 strip_step, const REAL *packed, i64 packed_step,
                         i64 strips, REAL *total, i64 total_step)
{
    vec sum[TALL][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) {
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++)
            sum[r][j] = (vec){0};
    }
    for (i64 s = 0; s < strips; s++)
        multiply(wide, sums + s * strip_step, 1, LANES, packed + s * LANES * LANES, packed_step, LANES, LANES, sum);
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) {
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) {
            REAL *p = total + r * total_step + j * LANES;
            store(p, load(p) + sum[r][j]);
        }
    }
}

/* total += sums . other^T; total has the maps of a block, rounded up to TALL, as rows and its other channels, rounded
 * up to LANES, as columns. */
static void add_tile(const Call *c, const REAL *sums, const REAL *packed, i64 strips, REAL *total)
{
    const i64 maps = c->channels / c->blocks * c->maps, strip_step = c->channels * c->maps * LANES;
    const i64 wide = ceil_div(c->other_channels / c->blocks, LANES), rows = ceil_div(maps, TALL) * TALL;
    const i64 parts = ceil_div(strips * LANES, DEPTH), step = ceil_div(strips, parts);
    for (i64 g = 0; g < c->blocks; g++)
        for (i64 s = 0; s < strips; s += step)
            for (i64 j = 0; j < wide; j += WIDE)
                for (i64 r = 0; r < maps; r += TALL) {
                    const i64 size = strips * LANES * LANES, count = least(step, strips - s);
                    const REAL *v = sums + s * strip_step + (g * maps + r) * LANES,
                               *b = packed + (g * wide + j) * size + s * LANES * LANES;
                    REAL *to = total + (g * rows + r) * wide * LANES + j * LANES;
                    if (wide - j >= 3)
                        add_products(3, v, strip_step, b, size, count, to, wide * LANES);
                    else if (wide - j == 2)
                        add_products(2, v, strip_step, b, size, count, to, wide * LANES);
                    else
                        add_products(1, v, strip_step, b, size, count, to, wide * LANES);
                }
}

/* Put TALL output channels side by side, the order in which `multiply` reads them; missing ones become 0. */
static void pack_weights(const Call *c, const REAL *weight, REAL *packed)
{
    const i64 maps = c->channels / c->blocks * c->maps, channels = c->out_channels / c->blocks,
              rows = ceil_div(channels, TALL);
#pragma omp parallel for schedule(static) num_threads(c->threads)
    for (i64 panel = 0; panel < c->blocks * rows; panel++) {
        const i64 first = panel % rows * TALL, *step = c->weight_step;
        for (i64 k = 0; k < maps; k++) {
            const REAL *from = weight + panel / rows * step[0] + k / c->maps * step[2] + k % c->maps * step[3];
            for (i64 r = 0; r < TALL; r++)
                packed[(panel * maps + k) * TALL + r] = first + r < channels ? from[(first + r) * step[1]] : 0;
        }
    }
}
