/* Ring sums of one channel of an image, written strip by strip; see ring_cpu.c. */

/* Set m of positions p .. p + LANES goes to dst + p / LANES * strip_step + m * set_step, with zeros past `length`. */
INLINE void combine(const REAL *src, const Stage *stage, i64 length, REAL *dst, i64 strip_step, i64 set_step)
{
    const int32_t *start = stage->start;
    const i64 *offset = stage->offset, sets = stage->sets;
    i64 p = 0;
    for (; p + UNROLL * LANES <= length; p += UNROLL * LANES, dst += UNROLL * strip_step)
        for (i64 m = 0; m < sets; m++) {
            vec sum[UNROLL];
            const i64 *end = offset + start[m + 1];
            const i64 *t = offset + start[m];
            for (int k = 0; k < UNROLL; k++)
                sum[k] = load(src + p + *t + k * LANES);
            for (t++; t < end; t++)
                for (int k = 0; k < UNROLL; k++)
                    sum[k] += load(src + p + *t + k * LANES);
            for (int k = 0; k < UNROLL; k++)
                store(dst + m * set_step + k * strip_step, sum[k]);
        }
    for (; p < length; p += LANES, dst += strip_step)
        for (i64 m = 0; m < sets; m++) {
            vec sum = {0};
            for (int t = start[m]; t < start[m + 1]; t++)
                sum += load(src + p + offset[t]);
            for (i64 lane = length - p; lane < LANES; lane++)
                sum[lane] = 0;
            store(dst + m * set_step, sum);
        }
}

/* `rings` rings from the groups that they mix, over `strips` (both constants when inlined) strips: each group is summed
 * in registers and added to all of them. */
INLINE void mix_part(const int rings, const int strips, const REAL *src, const Stage *group, const Plan *plan,
                     i64 block, i64 length, REAL *dst, i64 strip_step)
{
    vec ring[MIXED][STRIPS] = {{{0}}};
    const REAL *weight = plan->mix_weight + plan->mix.start[block] * MIXED;
    for (int t = plan->mix.start[block]; t < plan->mix.start[block + 1]; t++, weight += MIXED) {
        const int set = plan->mix.source[t];
        const i64 *o = group->offset + group->start[set], *end = group->offset + group->start[set + 1];
        vec sum[STRIPS];
#pragma GCC unroll 8
        for (int k = 0; k < strips; k++)
            sum[k] = load(src + *o + k * LANES);
        for (o++; o < end; o++) {
#pragma GCC unroll 8
            for (int k = 0; k < strips; k++)
                sum[k] += load(src + *o + k * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rings; r++) {
#pragma GCC unroll 8
            for (int k = 0; k < strips; k++)
                ring[r][k] += weight[r] * sum[k];
        }
    }
    const i64 count = plan->mix.sets - block * MIXED;
#pragma GCC unroll 8
    for (int r = 0; r < rings; r++) {
#pragma GCC unroll 8
        for (int k = 0; k < strips; k++) {
            for (i64 lane = length - k * LANES; lane < LANES; lane++)
                ring[r][k][lane] = 0;
            if (r < count) store(dst + k * strip_step + r * LANES, ring[r][k]);
        }
    }
}

/* The last sums of one plane and, for smooth profiles, their mixture. */
static void finish(const Plan *plan, const REAL *src, const Stage *stage, i64 length, REAL *dst, i64 strip_step)
{
    if (!plan->mix_weight) {
        combine(src, stage, length, dst, strip_step, LANES);
        return;
    }
    for (i64 p = 0; p < length;) {
        const int strips = length - p >= STRIPS * LANES ? STRIPS : 1;
        for (i64 block = 0; block * MIXED < plan->mix.sets; block++) {
            REAL *to = dst + p / LANES * strip_step + block * MIXED * LANES;
            const i64 rings = plan->mix.sets - block * MIXED;
            if (strips == 1)
                mix_part(MIXED, 1, src + p, stage, plan, block, length - p, to, strip_step);
            else if (rings <= 3)
                mix_part(3, STRIPS, src + p, stage, plan, block, STRIPS * LANES, to, strip_step);
            else if (rings == 4)
                mix_part(4, STRIPS, src + p, stage, plan, block, STRIPS * LANES, to, strip_step);
            else
                mix_part(MIXED, STRIPS, src + p, stage, plan, block, STRIPS * LANES, to, strip_step);
        }
        p += strips * LANES;
    }
}

/* Index of the row or plane of the input that lies at `at` of the zoomed input, or -1. */
INLINE i64 input_index(i64 at, i64 zoom, i64 size)
{
    if (zoom == 1) return at < 0 || at >= size ? -1 : at;
    return at < 0 || at % zoom || at / zoom >= size ? -1 : at / zoom;
}

/* Copy the rows of a plane that a tile reads, from row `first` of its padded input on, columns dealt into `stride`
 * blocks. The zeros around them, and the row of zeros behind them, were written once for all planes. */
static void pad_rows(const Call *c, const Layout *l, const REAL *plane, i64 first, REAL *padded, const REAL **row)
{
    const i64 left = c->padding[2], size = l->padded_block, rows = l->row_count, width = c->in_size[2],
              height = c->in_size[1];
    const i64 from = left < 0 ? -left : 0, head = left > 0 ? left : 0, count = least(width - from, size - head);
    const i64 sx = c->stride[2], zoom = c->zoom[2], zoom_y = c->zoom[1], deal = l->padded_width;
    for (i64 i = 0; i < rows; i++) {
        const i64 y = input_index(first + i, zoom_y, height);
        row[i] = padded + (y < 0 ? rows : i) * size;
        if (y < 0) continue;
        const REAL *in = plane + y * width;
        REAL *to = padded + i * size;
        if (sx == 1 && zoom == 1) {
            i64 x = 0;
            for (; x + LANES <= count; x += LANES)
                store(to + head + x, load(in + from + x));
            for (; x < count; x++)
                to[head + x] = in[from + x];
        } else
            for (i64 x = 0; x < width; x++) {
                const i64 at = x * zoom + left;
                if (at >= 0 && at < size) to[at % sx * deal + at / sx] = in[x];
            }
    }
}

/* One column set over all rows. `terms` (0: any number) and `wide` (vectors per row, 0: any) are constants when inlined.
 */
INLINE void sum_column(const Call *c, const Layout *l, const int terms, const i64 wide, const REAL *const *row,
                       const i64 *offset, int any_terms, REAL *u)
{
    const i64 width = c->out_size[2], end = wide ? wide * LANES : width, sy = c->stride[1], rows = l->row_count;
    const i64 block = l->block_rows * width + LANES, near = offset[0], far = offset[terms == 2];
    for (i64 i = 0; i < rows; i++) {
        const REAL *from = row[i];
        REAL *to = sy == 1 ? u + i * width : u + i % sy * block + i / sy * width;
#pragma GCC unroll 2
        for (i64 x = 0; x < end; x += LANES) {
            vec sum = load(from + near + x);
            if (terms == 2) sum += load(from + far + x);
            for (int t = 1; terms == 0 && t < any_terms; t++)
                sum += load(from + offset[t] + x);
            store(to + x, sum);
        }
    }
}

/* Column sums of the rows of a plane that a tile reads, from row `first` of its padded input on. */
static void sum_columns(const Call *c, const Layout *l, const Stage *column, const REAL *plane, i64 first,
                        REAL *padded, const REAL **row, REAL *u)
{
    const i64 width = c->out_size[2];
    const i64 factors = c->kernel[2] * c->stride[2] * c->zoom[2] * c->stride[1] * c->zoom[1];
    if (factors == 1 && !c->padding[2]) { /* nothing to sum: copy */
        const i64 head = least(first < 0 ? -first : 0, l->row_count);
        i64 count = least(c->in_size[1] - first, l->row_count) - head;
        if (count < 0) count = 0;
        memset(u, 0, head * width * sizeof(REAL));
        memcpy(u + head * width, plane + (first + head) * width, count * width * sizeof(REAL));
        memset(u + (head + count) * width, 0, (l->row_count - head - count) * width * sizeof(REAL));
        return;
    }
    pad_rows(c, l, plane, first, padded, row);
    for (i64 a = 0; a < column->sets; a++, u += l->map_size) {
        const int terms = column->start[a + 1] - column->start[a];
        const i64 *offset = column->offset + column->start[a];
        if (terms == 1 && width <= LANES)
            sum_column(c, l, 1, 1, row, offset, terms, u);
        else if (terms == 2 && width <= LANES)
            sum_column(c, l, 2, 1, row, offset, terms, u);
        else if (terms == 1 && width <= 2 * LANES)
            sum_column(c, l, 1, 2, row, offset, terms, u);
        else if (terms == 2 && width <= 2 * LANES)
            sum_column(c, l, 2, 2, row, offset, terms, u);
        else if (terms == 1)
            sum_column(c, l, 1, 0, row, offset, terms, u);
        else if (terms == 2)
            sum_column(c, l, 2, 0, row, offset, terms, u);
        else
            sum_column(c, l, 0, 0, row, offset, terms, u);
    }
}

/* Ask for the rows of a plane that will be read next: they may come from far, and the processor cannot guess where. */
INLINE void prefetch_rows(const Call *c, const Layout *l, const REAL *plane, i64 first)
{
    const i64 width = c->in_size[2], from = first < 0 ? 0 : first / c->zoom[1];
    const i64 end = least((first + l->row_count - 1) / c->zoom[1] + 1, c->in_size[1]);
    for (i64 p = from * width; p < end * width; p += 64 / (i64)sizeof(REAL))
        __builtin_prefetch(plane + p, 0, 2);
}

/* Sums of one channel of one image over planes z .. z + depth and rows y .. y + height, into strips from `dst`. */
static void sum_box(const Call *c, const Layout *l, const Plan *plan, const REAL *volume, i64 z, i64 depth, i64 y,
                    i64 height, REAL *scratch, REAL *dst, i64 strip_step)
{
    const i64 length = height * c->out_size[2], plane_step = c->rows * l->plane_map, deep = c->kernel[0] > 1;
    const i64 strips = ceil_div(length, LANES),
              count = (depth - 1) * c->stride[0] + (c->kernel[0] - 1) * c->dilation[0] + 1;
    const i64 first = y * c->stride[1] - c->padding[1];
    REAL *padded = scratch, *u = scratch + l->u, *q = scratch + l->q;
    const REAL **row = word(scratch + l->row);
    for (i64 i = 0; i < count; i++) {
        i64 plane = input_index(z * c->stride[0] - c->padding[0] + i, c->zoom[0], c->in_size[0]);
        REAL *to = dst + i / c->stride[0] * strips * strip_step;
        if (!deep && i % c->stride[0]) continue;
        const i64 next = input_index(z * c->stride[0] - c->padding[0] + i + 1, c->zoom[0], c->in_size[0]);
        if (next >= 0 && i + 1 < count) prefetch_rows(c, l, volume + next * c->in_size[1] * c->in_size[2], first);
        if (plane < 0 && deep)
            memset(q + i * plane_step, 0, plane_step * sizeof(REAL));
        else if (plane < 0)
            for (i64 s = 0; s < strips; s++)
                memset(to + s * strip_step, 0, c->maps * LANES * sizeof(REAL));
        else {
            sum_columns(c, l, &plan->column, volume + plane * c->in_size[1] * c->in_size[2], first, padded, row, u);
            if (deep)
                combine(u, &plan->row, length, q + i * plane_step, LANES, l->plane_map);
            else
                finish(plan, u, &plan->row, length, to, strip_step);
        }
    }
    /* some positions of all planes after the other: each plane is read for several outputs, so it should stay in L1 */
    for (i64 p = 0; deep && p < length; p += UNROLL * LANES)
        for (i64 i = 0; i < depth; i++)
            finish(plan, q + i * c->stride[0] * plane_step + p, &plan->group, least(length - p, UNROLL * LANES),
                   dst + (i * strips + p / LANES) * strip_step, strip_step);
}

/* Sums of one channel of a small map: a product with a constant matrix. Its zeros spread what is not finite over all sums,
 * so one of them tells whether to take the product anew, without the zeros. */
static void sum_small(const Call *c, const Plan *plan, const REAL *in, i64 in_count, i64 strips, REAL *dst,
                      i64 strip_step)
{
    const i64 step = c->maps * strips * LANES;
    for (i64 s = 0; s < strips; s++)
        for (i64 r = 0; r < c->maps; r++) {
            const REAL *row = plan->matrix + (r * strips + s) * LANES;
            vec sum[4] = {{0}};
            i64 p = 0;
            for (; p + 4 <= in_count; p += 4)
                for (int k = 0; k < 4; k++)
                    sum[k] += in[p + k] * load(row + (p + k) * step);
            for (; p < in_count; p++)
                sum[0] += in[p] * load(row + p * step);
            store(dst + s * strip_step + r * LANES, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        }
    if (dst[0] - dst[0] == 0) return;
    for (i64 s = 0; s < strips; s++)
        for (i64 i = 0; i < c->maps * LANES; i++) {
            REAL sum = 0;
            for (i64 p = 0; p < in_count; p++) {
                const REAL m = plan->matrix[p * step + (i / LANES * strips + s) * LANES + i % LANES];
                if (m != 0) sum += in[p] * m;
            }
            dst[s * strip_step + i] = sum;
        }
}
