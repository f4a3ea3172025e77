/* The compiled half of convolution.py: sums of images over the taps of a fixed basis, multiplied while still in cache.
 *
 * A plan (plan.py) has sorted the taps into sets that are always summed together, axis by axis:
 *   columns  u_a[y, x]    = sum of the padded row y at x + tap, tap in column set a
 *   rows     q_s[z, y, x] = sum of u_a[y + tap, x],             (tap, a) in row set s
 *   groups   h_g[z, y, x] = sum of q_s[z + tap, y, x],          (tap, s) in group g      (flat kernels stop at rows)
 *   mix      S_r          = sum of coefficient * h_g                                     (bands need none: S_r = h_r)
 * Only columns cross the ends of a row, so only they need padded rows; afterwards each shift is one offset into a
 * plain array and the loops run over whole planes. Strides keep this true by dealing rows and columns into `stride`
 * separate blocks.
 *
 * Each thread works on tiles: some images, planes and rows, all channels. The sums of a tile lie in strips of LANES
 * positions, S[strip][map][LANES], which is the order in which the products read them:
 *   out[o]       = weight[o] . S + bias      (a product over maps)
 *   total[m, j] += S[m] . other[j]           (a product over positions)
 *
 * Compiled once for REAL=float and once for REAL=double. */
#define _DEFAULT_SOURCE
#include "ring_cpu.h"
#include "ring_cpu_sums.h"
#include "ring_cpu_products.h"

i64 ring_scratch(const Call *c) { return ceil_div(layout(c).all, 64) * 64 + 64; }
i64 ring_lanes(void) { return LANES; }
i64 ring_mixed(void) { return MIXED; }
i64 ring_weights(const Call *c) /* elements of the packed weights */
{
    return c->blocks * ceil_div(c->out_channels / c->blocks, TALL) * TALL * (c->channels / c->blocks * c->maps);
}

static void run_tile(const Call *c, const Layout *l, const Plan *plan, i64 index, const REAL *x, const REAL *weight,
                     const REAL *bias, REAL *out, const REAL *other, REAL *scratch)
{
    const i64 parts[2] = {ceil_div(c->out_size[0], c->tile[1]), ceil_div(c->out_size[1], c->tile[2])};
    const i64 y = index % parts[1] * c->tile[2], z = index / parts[1] % parts[0] * c->tile[1];
    const i64 image = index / parts[1] / parts[0] * c->tile[0], images = least(c->tile[0], c->images - image);
    const i64 height = least(c->tile[2], c->out_size[1] - y), all_depth = least(c->tile[1], c->out_size[0] - z);
    const i64 depth = plan->matrix ? 1 : all_depth; /* a matrix sums all planes of a small map at once */
    const i64 length = (plan->matrix ? all_depth : 1) * height * c->out_size[2], strips = ceil_div(length, LANES);
    const i64 maps = c->channels * c->maps;
    const i64 in_count = c->in_size[0] * c->in_size[1] * c->in_size[2];
    REAL *sums = scratch + l->sums;
    Place *place = word(scratch + l->places);
    for (i64 n = 0, s = 0; n < images; n++) {
        for (i64 d = 0; d < depth; d++)
            for (i64 p = 0; p < length; p += LANES, s++) {
                place[s].image = image + n;
                place[s].position = ((z + d) * c->out_size[1] + y) * c->out_size[2] + p;
                place[s].count = least(LANES, length - p);
            }
        for (i64 channel = 0; channel < c->channels; channel++) {
            const REAL *volume = x + ((image + n) * c->channels + channel) * in_count;
            REAL *to = sums + (n * depth * strips * maps + channel * c->maps) * LANES;
            if (plan->matrix)
                sum_small(c, plan, volume, in_count, strips, to, maps * LANES);
            else
                sum_box(c, l, plan, volume, z, depth, y, height, scratch, to, maps * LANES);
        }
    }
    const i64 all = images * depth * strips;
    if (out) mix_tile(c, weight, bias, sums, place, all, out);
    if (other) {
        pack_other(c, other, place, all, scratch + l->other);
        add_tile(c, sums, scratch + l->other, all, scratch + l->total);
    }
}

/* Tap offsets, which depend on the sizes of this call. Returns the memory to free, or NULL. */
static i64 *place_taps(const Call *c, const Layout *l, Plan *plan)
{
    const i64 counts[3] = {plan->column.start[c->columns], plan->row.start[c->rows], plan->group.start[c->groups]};
    i64 *memory = malloc((counts[0] + counts[1] + counts[2]) * sizeof(i64));
    if (!memory) return NULL;
    plan->column.offset = memory;
    plan->row.offset = memory + counts[0];
    plan->group.offset = memory + counts[0] + counts[1];
    for (i64 t = 0; t < counts[0]; t++) {
        i64 d = plan->column.tap[t] * c->dilation[2];
        plan->column.offset[t] = d % c->stride[2] * l->padded_width + d / c->stride[2];
    }
    for (i64 t = 0; t < counts[1]; t++) {
        i64 d = plan->row.tap[t] * c->dilation[1], block = d % c->stride[1];
        plan->row.offset[t] = plan->row.source[t] * l->map_size +
                              (block * l->block_rows + d / c->stride[1]) * c->out_size[2] + block * LANES;
    }
    for (i64 t = 0; t < counts[2]; t++)
        plan->group.offset[t] = (plan->group.tap[t] * c->dilation[0] * c->rows + plan->group.source[t]) * l->plane_map;
    return memory;
}

/* Ask for pages of 2 MiB where a large result is about to be written for the first time: 512 times fewer page faults. */
static void use_large_pages(REAL *data, i64 count)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, from = ((uintptr_t)data + page - 1) & ~(page - 1);
    const uintptr_t to = (uintptr_t)(data + count) & ~(page - 1);
    if (to >= from + 8 * page) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)data, (void)count;
#endif
}

/* One pass over x: out = weight . sums(x) + bias where `out` is given, total = sums(x) . other^T where `other` is.
 * Weights and total lie as their steps say.
 * `scratch` has threads * scratch_step elements, `packed` those of ring_weights. Returns 0, or 1 when memory ran out.
 */
int ring_run(const Call *c, const REAL *x, const REAL *weight, const REAL *bias, REAL *out, const REAL *other,
             REAL *total, REAL *scratch, REAL *packed, const int32_t *const *stages, const REAL *mix_weight,
             const REAL *matrix)
{
    const Layout l = layout(c);
    Plan plan = {{stages[0], stages[1], NULL, c->columns, NULL},
                 {stages[2], stages[3], stages[4], c->rows, NULL},
                 {stages[5], stages[6], stages[7], c->groups, NULL},
                 {stages[8], NULL, stages[9], c->maps, NULL},
                 mix_weight,
                 matrix};
    i64 *memory = place_taps(c, &l, &plan);
    if (!memory) return 1;
    if (out) {
        pack_weights(c, weight, packed);
        use_large_pages(out, c->images * c->out_channels * c->out_size[0] * c->out_size[1] * c->out_size[2]);
    }
    const i64 tiles =
        ceil_div(c->images, c->tile[0]) * ceil_div(c->out_size[0], c->tile[1]) * ceil_div(c->out_size[1], c->tile[2]);
    const i64 maps = c->channels / c->blocks * c->maps, rows = ceil_div(maps, TALL) * TALL,
              channels = c->other_channels / c->blocks;
    const i64 width = aligned(channels);
#pragma omp parallel num_threads(c->threads)
    {
        const i64 team = TEAM;
        REAL *own = scratch + THREAD * c->scratch_step;
        memset(own, 0, l.u * sizeof(REAL));
        if (other) memset(own + l.total, 0, c->blocks * rows * width * sizeof(REAL));
#pragma omp for schedule(static)
        for (i64 tile = 0; tile < tiles; tile++)
            run_tile(c, &l, &plan, tile, x, packed, bias, out, other, own);
        if (other) {
#pragma omp for schedule(static)
            for (i64 row = 0; row < c->blocks * maps; row++) {
                const i64 *step = c->total_step, block = row / maps, map = row % maps;
                const REAL *part = scratch + l.total + (block * rows + map) * width;
                REAL *to = total + block * step[0] + map / c->maps * step[1] + map % c->maps * step[3];
                for (i64 j = 0; j < channels; j++) {
                    REAL sum = 0;
                    for (i64 t = 0; t < team; t++)
                        sum += part[t * c->scratch_step + j];
                    to[j * step[2]] = sum;
                }
            }
        }
    }
    free(memory);
    return 0;
}
