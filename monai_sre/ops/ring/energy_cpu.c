/* Energies e = sqrt(sum_k (stencil_k * x)^2 + eps) of every map of x and of every order, zeros outside of x, their gradient,
 * and their products with a matrix (energy_cpu_mix.h).
 *
 * All stencils are sums of products of a few one-dimensional filters, each even or odd: a filter along x, then one along y,
 * then one along z. So the filtered maps along x, and those along x and y, are shared by all stencils that need them.
 *
 * Some maps at a time are copied into scratch memory, one after the other, with zeros between neighbouring rows, planes
 * and maps. There a tap is one offset for all positions, so the sums run from the first position to the last without a
 * border; those that fall on the zeros between are not used. Nothing but x is kept between forward and backward.
 */
#include "vectors.h"
#include <tgmath.h>

#define BLOCK (STRIPS * LANES) /* positions in registers */
#define MOST 32                /* components, and products of filters */

typedef __typeof__((vec){0} == (vec){0}) mask;

/* The field order is that of energy_cpu.py. Triples are z, y, x. */
typedef struct {
    i64 images, channels, groups, outputs; /* outputs: channels that energies are mixed into */
    i64 size[3], reach[3];                 /* reach: half the stencil */
    i64 filters[3];                        /* along each axis */
    i64 planes, terms;                     /* products of filters along y and x; along z, y and x */
    i64 orders, components;
    i64 together, at_once; /* maps in the scratch memory of a thread; images that are mixed at once */
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

/* Where maps lie: values between two images, groups, orders and channels of a group. Each map is contiguous. */
typedef struct {
    REAL *first;
    i64 image, group, order, channel;
} Maps;

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
    l.all = aligned(c->together * l.map + 2 * l.from + 2 * BLOCK);
    return l;
}

/* Arrays of scratch memory for one thread: maps, energies, gradients by them, products of filters along one axis after the
 * other, and gradients by these. */
i64 energy_arrays(const Call *c, int with_grad)
{
    return 1 + c->orders + c->filters[2] + (c->reach[0] ? c->planes : 0) + (with_grad ? c->orders + c->terms : 0);
}

/* Values of scratch memory for one thread. */
i64 energy_scratch(const Call *c, int with_grad) { return energy_arrays(c, with_grad) * layout(c).all; }

INLINE REAL *map_of(const Call *c, const Maps *m, i64 image, i64 channel, i64 order)
{
    const i64 of_group = c->channels / c->groups;
    return m->first + image * m->image + channel / of_group * m->group + order * m->order + channel % of_group * m->channel;
}

/* Copy maps first .. first + count of an order from (or, with `back`, to) where they lie. */
static void copy(const Call *c, const Layout *l, const Maps *maps, i64 order, i64 first, i64 count, REAL *scratch, int back)
{
    const i64 width = c->size[2];
    for (i64 m = 0; m < count; m++) {
        REAL *map = map_of(c, maps, (first + m) / c->channels, (first + m) % c->channels, order);
        for (i64 z = 0; z < c->size[0]; z++)
            for (i64 y = 0; y < c->size[1]; y++, map += width) {
                REAL *inside = scratch + l->from + m * l->map + z * l->plane + y * l->row;
                const REAL *from = back ? inside : map;
                REAL *to = back ? map : inside;
                i64 i = 0;
                for (; i + LANES <= width; i += LANES)
                    store(to + i, load(from + i));
                for (; i < width; i++)
                    to[i] = from[i];
            }
    }
}

/* sum += one filter at BLOCK positions from p on, its taps `step` apart; with `sign` -1 its transpose. */
INLINE void filter(const REAL *p, i64 step, i64 reach, const REAL *coefficient, int odd, REAL sign, vec sum[STRIPS])
{
    if (odd)
        for (i64 t = 1; t <= reach; t++) {
            const REAL value = sign * coefficient[t];
#pragma GCC unroll 4
            for (int s = 0; s < STRIPS; s++)
                sum[s] += value * (load(p + t * step + s * LANES) - load(p - t * step + s * LANES));
        }
    else {
#pragma GCC unroll 4
        for (int s = 0; s < STRIPS; s++)
            sum[s] += coefficient[0] * load(p + s * LANES);
        for (i64 t = 1; t <= reach; t++)
#pragma GCC unroll 4
            for (int s = 0; s < STRIPS; s++)
                sum[s] += coefficient[t] * (load(p + t * step + s * LANES) + load(p - t * step + s * LANES));
    }
}

INLINE void clear(vec sum[STRIPS], REAL value)
{
#pragma GCC unroll 4
    for (int s = 0; s < STRIPS; s++)
        sum[s] = splat(value);
}

INLINE void put(REAL *to, const vec sum[STRIPS])
{
#pragma GCC unroll 4
    for (int s = 0; s < STRIPS; s++)
        store(to + s * LANES, sum[s]);
}

/* One component at BLOCK positions. */
INLINE void component(const Call *c, const REAL *mix, vec (*product)[STRIPS], vec sum[STRIPS])
{
    clear(sum, 0);
    for (i64 t = 0; t < c->terms; t++) {
        if (mix[t] == 0) continue;
#pragma GCC unroll 4
        for (int s = 0; s < STRIPS; s++)
            sum[s] += mix[t] * product[t][s];
    }
}

/* Energies of all orders at BLOCK positions, of products of filters that are at hand. With `slopes` also the gradient by the
 * products, from `grad`, the one by the energies: 0 where that is 0, as it is between the maps, whatever the components are,
 * so that no NaN crosses to the next map. */
INLINE void energies(const Call *c, const Stencils *st, i64 all, vec (*product)[STRIPS], REAL eps, REAL *energy,
                     const REAL *grad, REAL *slopes)
{
    vec part[MOST][STRIPS];
    for (i64 o = 0; o < c->orders; o++, energy += all, grad += slopes ? all : 0) {
        vec power[STRIPS];
        clear(power, eps);
        for (i64 k = st->order[o]; k < st->order[o + 1]; k++) {
            vec sum[STRIPS];
            component(c, st->mix + k * c->terms, product, sum);
#pragma GCC unroll 4
            for (int s = 0; s < STRIPS; s++)
                power[s] += sum[s] * sum[s];
            if (slopes) put((REAL *)part[k], sum);
        }
        put(energy, power);
        for (int i = 0; i < BLOCK; i++)
            energy[i] = sqrt(energy[i]);
        if (!slopes) continue;
#pragma GCC unroll 4
        for (int s = 0; s < STRIPS; s++) {
            const vec by = load(grad + s * LANES), ratio = by / load(energy + s * LANES);
            const mask some = by != 0;
            for (i64 k = st->order[o]; k < st->order[o + 1]; k++)
                part[k][s] = (vec)(some & (mask)(part[k][s] * ratio));
        }
    }
    for (i64 t = 0; slopes && t < c->terms; t++, slopes += all) {
        vec sum[STRIPS];
        clear(sum, 0);
        for (i64 k = 0; k < c->components; k++) {
            const REAL value = st->mix[k * c->terms + t];
            if (value == 0) continue;
#pragma GCC unroll 4
            for (int s = 0; s < STRIPS; s++)
                sum[s] += value * part[k][s];
        }
        put(slopes, sum);
    }
}

/* The filter along z, y or x that is number f of its axis. */
#define FILTER(p, step, axis, f, sign, sum)                                                                                   \
    filter(p, step, c->reach[axis], st->coefficients[axis] + (f) * (c->reach[axis] + 1), st->odd[axis][f], sign, sum)

/* Energies of the maps in `x`, from position l->from to `end`; arrays as energy_arrays counts them. */
static void forward(const Call *c, const Layout *l, const Stencils *st, i64 end, REAL eps, const REAL *x, REAL *energy,
                    const REAL *grad, REAL *rows, REAL *planes, REAL *slopes)
{
    const i64 *r = c->reach, deep = r[0] * l->plane, wide = deep + r[1] * l->row;
    vec sum[STRIPS];
    for (i64 at = l->from - wide; at < end + wide; at += BLOCK)
        for (i64 f = 0; f < c->filters[2]; f++) {
            clear(sum, 0);
            FILTER(x + at, 1, 2, f, 1, sum);
            put(rows + f * l->all + at, sum);
        }
    for (i64 at = l->from - deep; r[0] && at < end + deep; at += BLOCK)
        for (i64 p = 0; p < c->planes; p++) {
            clear(sum, 0);
            FILTER(rows + st->plane[2 * p] * l->all + at, l->row, 1, st->plane[2 * p + 1], 1, sum);
            put(planes + p * l->all + at, sum);
        }
    for (i64 at = l->from; at < end; at += BLOCK) {
        vec product[MOST][STRIPS];
        for (i64 t = 0; t < c->terms; t++) {
            const i64 p = st->term[2 * t];
            clear(sum, 0);
            if (r[0])
                FILTER(planes + p * l->all + at, l->plane, 0, st->term[2 * t + 1], 1, sum);
            else
                FILTER(rows + st->plane[2 * p] * l->all + at, l->row, 1, st->plane[2 * p + 1], 1, sum);
            put((REAL *)product[t], sum);
        }
        energies(c, st, l->all, product, eps, energy + at, grad + at, slopes ? slopes + at : NULL);
    }
}

/* The gradient by x, written to `out`, from that by the products of filters. */
static void backward(const Call *c, const Layout *l, const Stencils *st, i64 end, const REAL *slopes, REAL *planes, REAL *rows,
                     REAL *out)
{
    const i64 *r = c->reach, tall = r[1] * l->row;
    const REAL *source = r[0] ? planes : slopes;
    vec sum[STRIPS];
    for (i64 at = l->from - tall - r[2]; r[0] && at < end + tall + r[2]; at += BLOCK)
        for (i64 p = 0; p < c->planes; p++) {
            clear(sum, 0);
            for (i64 t = 0; t < c->terms; t++) {
                const i64 z = st->term[2 * t + 1];
                if (st->term[2 * t] == p) FILTER(slopes + t * l->all + at, l->plane, 0, z, -1, sum);
            }
            put(planes + p * l->all + at, sum);
        }
    for (i64 at = l->from - r[2]; at < end + r[2]; at += BLOCK)
        for (i64 f = 0; f < c->filters[2]; f++) {
            clear(sum, 0);
            for (i64 p = 0; p < c->planes; p++)
                if (st->plane[2 * p] == f) FILTER(source + p * l->all + at, l->row, 1, st->plane[2 * p + 1], -1, sum);
            put(rows + f * l->all + at, sum);
        }
    for (i64 at = l->from; at < end; at += BLOCK) {
        clear(sum, 0);
        for (i64 f = 0; f < c->filters[2]; f++)
            FILTER(rows + f * l->all + at, 1, 2, f, -1, sum);
        put(out + at, sum);
    }
}

/* Maps first .. first + together of all images: their energies, unless `out` has no place for them, and, where it has the
 * gradient by these, that by the maps. `own`: scratch memory of this thread, zeros between the maps. */
static void run_maps(const Call *c, const Layout *l, const Stencils *st, i64 first, REAL eps, const Maps *x, const Maps *grad,
                     const Maps *out, const Maps *slope, i64 maps, REAL *own)
{
    REAL *energy = own + l->all, *by = energy + c->orders * l->all, *rows = by + (grad->first ? c->orders : 0) * l->all;
    REAL *planes = rows + c->filters[2] * l->all, *slopes = planes + (c->reach[0] ? c->planes : 0) * l->all;
    const i64 count = least(c->together, maps - first);
    const i64 end = l->from + (count - 1) * l->map + (c->size[0] - 1) * l->plane + (c->size[1] - 1) * l->row + c->size[2];
    copy(c, l, x, 0, first, count, own, 0);
    for (i64 o = 0; grad->first && o < c->orders; o++)
        copy(c, l, grad, o, first, count, by + o * l->all, 0);
    forward(c, l, st, end, eps, own, energy, by, rows, planes, grad->first ? slopes : NULL);
    for (i64 o = 0; out->first && o < c->orders; o++)
        copy(c, l, out, o, first, count, energy + o * l->all, 1);
    if (grad->first) {
        backward(c, l, st, end, slopes, planes, rows, energy);
        copy(c, l, slope, 0, first, count, energy, 1);
    }
}

#include "energy_cpu_mix.h"

/* Energies go to `out`, unless it is NULL, the orders of a channel one after the other in its group; where they have the
 * gradient `grad`, the one by x goes to `slope`. Without an axis z, each product along y and x is a term.
 */
void energy_run(const Call *c, const Stencils *st, const Maps *x, const Maps *grad, const Maps *out, const Maps *slope,
                double eps, REAL *scratch)
{
    const Layout l = layout(c);
    const i64 maps = c->images * c->channels;
#pragma omp parallel num_threads(c->threads)
    {
        REAL *own = scratch + THREAD * c->scratch_step;
        memset(own, 0, c->scratch_step * sizeof(REAL));
#pragma omp for schedule(static)
        for (i64 first = 0; first < maps; first += c->together)
            run_maps(c, &l, st, first, eps, x, grad, out, slope, maps, own);
    }
}
