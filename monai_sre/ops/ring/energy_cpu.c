/* Energies e = sqrt(sum_k (stencil_k * x)^2 + eps) of every map of x and of every order, zeros outside of x, and their
 * gradient.
 *
 * All stencils are sums of products of a few one-dimensional filters, each even or odd: a filter along x, then one along y,
 * then one along z. So the filtered maps along x, and those along x and y, are shared by all stencils that need them.
 *
 * Some maps at a time are copied into scratch memory, one after the other, with zeros between neighbouring rows, planes
 * and maps. There a tap is one offset for all positions, so the sums run from the first position to the last without a
 * border; those that fall on the zeros between are not used. Nothing but x is kept between forward and backward.
 */
#include <stdint.h>
#include <string.h>
#include <tgmath.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef REAL
#define REAL float
#endif
#ifdef __AVX512F__
#define BLOCK 64 /* positions in registers */
#else
#define BLOCK 32
#endif
#define MOST 32 /* components, and products of filters */
#define INLINE static inline __attribute__((always_inline))
typedef int64_t i64;

/* The field order is that of energy_cpu.py. Triples are z, y, x. */
typedef struct {
    i64 images, channels, group, image_step, grad_step; /* group: channels of one; steps: values between two images */
    i64 size[3], reach[3];                              /* reach: half the stencil */
    i64 filters[3];                                     /* along each axis */
    i64 planes, terms;                                  /* products of filters along y and x; along z, y and x */
    i64 orders, components, together;                   /* together: maps in scratch memory */
    i64 threads, scratch_step;
} Call;

/* Filters have the coefficients of their middle and of one side, and 1 where they are odd, 0 where even. */
typedef struct {
    const REAL *coefficients[3];
    const int32_t *odd[3];
    const int32_t *plane; /* (planes, 2): the filters along x and y */
    const int32_t *term;  /* (terms, 2): the product along y and x, the filter along z */
    const int32_t *order; /* (orders + 1): the first component of each */
    const REAL *mix;      /* (components, terms) */
} Stencils;

typedef struct {
    i64 row, plane, map, from, all; /* steps; the first position inside; values of one of the arrays */
} Layout;

static Layout layout(const Call *c)
{
    Layout l;
    l.row = c->size[2] + c->reach[2]; /* the margin behind a row is that before the next one */
    l.plane = (c->size[1] + c->reach[1]) * l.row;
    l.map = (c->size[0] + c->reach[0]) * l.plane;
    l.from = c->reach[0] * l.plane + c->reach[1] * l.row + c->reach[2];
    l.all = c->together * l.map + 2 * l.from + 2 * BLOCK;
    return l;
}

/* Arrays of scratch memory for one thread. */
i64 energy_arrays(const Call *c, int with_grad)
{
    return 1 + c->orders + c->filters[2] + (c->reach[0] ? c->planes : 0) + (with_grad ? c->terms : 0);
}

/* Values of scratch memory for one thread. */
i64 energy_scratch(const Call *c, int with_grad) { return energy_arrays(c, with_grad) * layout(c).all; }

/* Where a map begins that is one of `orders` of a channel, the orders one after the other in each group of channels. */
INLINE i64 place(const Call *c, i64 channel, i64 order, i64 orders)
{
    return ((channel / c->group * orders + order) * c->group + channel % c->group) * c->size[0] * c->size[1] * c->size[2];
}

/* Copy maps first .. first + count of an order from (or, with `back`, to) arrays whose images are `step` apart. */
static void copy(const Call *c, const Layout *l, REAL *maps, i64 step, i64 order, i64 orders, i64 first, i64 count,
                 REAL *scratch, int back)
{
    for (i64 m = 0; m < count; m++) {
        REAL *map = maps + (first + m) / c->channels * step + place(c, (first + m) % c->channels, order, orders);
        for (i64 z = 0; z < c->size[0]; z++)
            for (i64 y = 0; y < c->size[1]; y++) {
                REAL *inside = scratch + l->from + m * l->map + z * l->plane + y * l->row;
                memcpy(back ? map : inside, back ? inside : map, c->size[2] * sizeof(REAL));
                map += c->size[2];
            }
    }
}

/* One filter at BLOCK positions from p on, its taps `step` apart. */
INLINE void filter(const REAL *p, i64 step, i64 reach, const REAL *coefficient, int odd, REAL *out)
{
    REAL sum[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        sum[i] = odd ? 0 : coefficient[0] * p[i];
    for (i64 t = 1; t <= reach; t++)
        for (int i = 0; i < BLOCK; i++)
            sum[i] += coefficient[t] * (odd ? p[i + t * step] - p[i - t * step] : p[i + t * step] + p[i - t * step]);
    memcpy(out, sum, sizeof sum);
}

/* The transpose of a filter, added to what `out` holds. */
INLINE void unfilter(const REAL *p, i64 step, i64 reach, const REAL *coefficient, int odd, REAL *out)
{
    REAL sum[BLOCK];
    filter(p, step, reach, coefficient, odd, sum);
    for (int i = 0; i < BLOCK; i++)
        out[i] += odd ? -sum[i] : sum[i];
}

/* Energies of all orders at BLOCK positions, of products of filters that are at hand. With `slopes` the arrays of energies
 * hold the gradient by them, and the gradient by the products goes to `slopes`: 0 where that is 0, as it is between the
 * maps, whatever the components are, so that no NaN crosses to the next map. */
static void block(const Call *c, const Stencils *s, i64 all, REAL (*product)[BLOCK], REAL eps, REAL *energy, REAL *slopes)
{
    REAL part[MOST][BLOCK];
    for (i64 o = 0; o < c->orders; o++, energy += all) {
        REAL power[BLOCK], ratio[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            power[i] = eps;
        for (i64 k = s->order[o]; k < s->order[o + 1]; k++) {
            REAL sum[BLOCK] = {0};
            for (i64 t = 0; t < c->terms; t++) {
                const REAL value = s->mix[k * c->terms + t];
                if (value == 0) continue;
                for (int i = 0; i < BLOCK; i++)
                    sum[i] += value * product[t][i];
            }
            for (int i = 0; i < BLOCK; i++)
                power[i] += sum[i] * sum[i];
            memcpy(part[k], sum, sizeof sum);
        }
        for (int i = 0; i < BLOCK; i++)
            power[i] = sqrt(power[i]);
        if (slopes) {
            for (int i = 0; i < BLOCK; i++)
                ratio[i] = energy[i] / power[i];
            for (i64 k = s->order[o]; k < s->order[o + 1]; k++)
                for (int i = 0; i < BLOCK; i++)
                    part[k][i] = energy[i] == 0 ? 0 : part[k][i] * ratio[i];
        }
        memcpy(energy, power, sizeof power);
    }
    for (i64 t = 0; slopes && t < c->terms; t++, slopes += all) {
        REAL sum[BLOCK] = {0};
        for (i64 k = 0; k < c->components; k++) {
            const REAL value = s->mix[k * c->terms + t];
            if (value == 0) continue;
            for (int i = 0; i < BLOCK; i++)
                sum[i] += value * part[k][i];
        }
        memcpy(slopes, sum, sizeof sum);
    }
}

/* Energies of the maps in `x`, from position l->from to `end`; arrays as energy_arrays counts them. */
static void forward(const Call *c, const Layout *l, const Stencils *s, i64 end, REAL eps, const REAL *x, REAL *energy,
                    REAL *rows, REAL *planes, REAL *slopes)
{
    const i64 *r = c->reach, deep = r[0] * l->plane, wide = deep + r[1] * l->row;
    for (i64 at = l->from - wide; at < end + wide; at += BLOCK)
        for (i64 f = 0; f < c->filters[2]; f++)
            filter(x + at, 1, r[2], s->coefficients[2] + f * (r[2] + 1), s->odd[2][f], rows + f * l->all + at);
    for (i64 at = l->from - deep; r[0] && at < end + deep; at += BLOCK)
        for (i64 p = 0; p < c->planes; p++) {
            const i64 f = s->plane[2 * p + 1];
            filter(rows + s->plane[2 * p] * l->all + at, l->row, r[1], s->coefficients[1] + f * (r[1] + 1), s->odd[1][f],
                   planes + p * l->all + at);
        }
    for (i64 at = l->from; at < end; at += BLOCK) {
        REAL product[MOST][BLOCK];
        for (i64 t = 0; t < c->terms; t++) {
            const i64 p = s->term[2 * t], y = s->plane[2 * p + 1], z = s->term[2 * t + 1];
            if (r[0])
                filter(planes + p * l->all + at, l->plane, r[0], s->coefficients[0] + z * (r[0] + 1), s->odd[0][z], product[t]);
            else
                filter(rows + s->plane[2 * p] * l->all + at, l->row, r[1], s->coefficients[1] + y * (r[1] + 1), s->odd[1][y],
                       product[t]);
        }
        block(c, s, l->all, product, eps, energy + at, slopes ? slopes + at : NULL);
    }
}

/* The gradient by x, written to `x`, from that by the products of filters. */
static void backward(const Call *c, const Layout *l, const Stencils *s, i64 end, const REAL *slopes, REAL *planes, REAL *rows,
                     REAL *x)
{
    const i64 *r = c->reach, tall = r[1] * l->row;
    for (i64 at = l->from - tall - r[2]; r[0] && at < end + tall + r[2]; at += BLOCK) {
        REAL sum[MOST][BLOCK];
        memset(sum, 0, c->planes * sizeof *sum);
        for (i64 t = 0; t < c->terms; t++) {
            const i64 z = s->term[2 * t + 1];
            unfilter(slopes + t * l->all + at, l->plane, r[0], s->coefficients[0] + z * (r[0] + 1), s->odd[0][z],
                     sum[s->term[2 * t]]);
        }
        for (i64 p = 0; p < c->planes; p++)
            memcpy(planes + p * l->all + at, sum[p], sizeof *sum);
    }
    for (i64 at = l->from - r[2]; at < end + r[2]; at += BLOCK) {
        REAL sum[MOST][BLOCK];
        memset(sum, 0, c->filters[2] * sizeof *sum);
        for (i64 p = 0; p < c->planes; p++) {
            const i64 y = s->plane[2 * p + 1];
            unfilter((r[0] ? planes : slopes) + p * l->all + at, l->row, r[1], s->coefficients[1] + y * (r[1] + 1),
                     s->odd[1][y], sum[s->plane[2 * p]]);
        }
        for (i64 f = 0; f < c->filters[2]; f++)
            memcpy(rows + f * l->all + at, sum[f], sizeof *sum);
    }
    for (i64 at = l->from; at < end; at += BLOCK) {
        REAL sum[BLOCK] = {0};
        for (i64 f = 0; f < c->filters[2]; f++)
            unfilter(rows + f * l->all + at, 1, r[2], s->coefficients[2] + f * (r[2] + 1), s->odd[2][f], sum);
        memcpy(x + at, sum, sizeof sum);
    }
}

/* Energies go to `out`, unless it is NULL, the orders of a channel one after the other in its group; where they have the
 * gradient `grad`, laid out alike, the one by x goes to `slope`. Without an axis z, each product along y and x is a term.
 */
void energy_run(const Call *c, const Stencils *s, REAL *x, REAL *grad, REAL *out, REAL *slope, const REAL *eps, REAL *scratch)
{
    const Layout l = layout(c);
    const i64 maps = c->images * c->channels, step = c->channels * c->size[0] * c->size[1] * c->size[2];
#pragma omp parallel num_threads(c->threads)
    {
#ifdef _OPENMP
        REAL *padded = scratch + omp_get_thread_num() * c->scratch_step;
#else
        REAL *padded = scratch;
#endif
        REAL *energy = padded + l.all, *rows = energy + c->orders * l.all, *planes = rows + c->filters[2] * l.all;
        REAL *slopes = planes + (c->reach[0] ? c->planes : 0) * l.all;
        memset(padded, 0, c->scratch_step * sizeof(REAL));
#pragma omp for schedule(static)
        for (i64 first = 0; first < maps; first += c->together) {
            const i64 count = maps - first < c->together ? maps - first : c->together;
            const i64 end = l.from + (count - 1) * l.map + (c->size[0] - 1) * l.plane + (c->size[1] - 1) * l.row + c->size[2];
            copy(c, &l, x, c->image_step, 0, 1, first, count, padded, 0);
            for (i64 o = 0; grad && o < c->orders; o++)
                copy(c, &l, grad, c->grad_step, o, c->orders, first, count, energy + o * l.all, 0);
            forward(c, &l, s, end, *eps, padded, energy, rows, planes, grad ? slopes : NULL);
            for (i64 o = 0; out && o < c->orders; o++)
                copy(c, &l, out, c->orders * step, o, c->orders, first, count, energy + o * l.all, 1);
            if (grad) {
                backward(c, &l, s, end, slopes, planes, rows, padded);
                copy(c, &l, slope, step, 0, 1, first, count, padded, 1);
                /* zeros between the maps again, of x and of the gradients */
                memset(padded, 0, (1 + c->orders) * l.all * sizeof(REAL));
            }
        }
    }
}
