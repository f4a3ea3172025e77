/* Energies e = sqrt(sum_k (stencil_k * x)^2 + eps) of every map of x, zeros outside of it, and their gradient.
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
#define TOGETHER 5 /* components that share the loads of a tap */
#define INLINE static inline __attribute__((always_inline))
typedef int64_t i64;

/* The field order is that of energy_cpu.py. Triples are z, y, x. */
typedef struct {
    i64 images, channels, image_step, grad_step; /* steps: values between two images of x and grad; outputs have no gaps */
    i64 size[3], reach[3];                       /* reach: half the stencil */
    i64 components, taps, together;              /* together: maps in scratch memory */
    i64 threads, scratch_step;
} Call;

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

/* Values of scratch memory for one thread. */
i64 energy_scratch(const Call *c, int with_grad) { return (with_grad ? 2 + c->components : 2) * layout(c).all; }

/* Copy maps first .. first + count from (or, with `back`, to) arrays whose images are `step` apart. */
static void copy(const Call *c, const Layout *l, REAL *maps, i64 step, i64 first, i64 count, REAL *scratch, int back)
{
    const i64 values = c->size[0] * c->size[1] * c->size[2];
    for (i64 m = 0; m < count; m++) {
        REAL *map = maps + (first + m) / c->channels * step + (first + m) % c->channels * values;
        for (i64 z = 0; z < c->size[0]; z++)
            for (i64 y = 0; y < c->size[1]; y++) {
                REAL *inside = scratch + l->from + m * l->map + z * l->plane + y * l->row;
                memcpy(back ? map : inside, back ? inside : map, c->size[2] * sizeof(REAL));
                map += c->size[2];
            }
    }
}

/* The taps of `count` components at BLOCK positions from p on. */
INLINE void respond(const REAL *p, const int32_t *offset, const REAL *value, i64 taps, i64 components, int count,
                    REAL (*out)[BLOCK])
{
    REAL sum[TOGETHER][BLOCK] = {{0}};
    for (i64 t = 0; t < taps; t++)
        for (int k = 0; k < count; k++)
            for (int i = 0; i < BLOCK; i++)
                sum[k][i] += value[t * components + k] * p[offset[t] + i];
    memcpy(out, sum, count * sizeof *out);
}

/* Energies at BLOCK positions; with `parts` their derivatives by the components, times what `energy` held, the gradient:
 * 0 where that is 0, as it is between the maps, whatever the components are, so that no NaN crosses to the next map. */
static void block(const Call *c, const Layout *l, const REAL *p, const int32_t *offset, const REAL *value, REAL eps,
                  REAL *energy, REAL *parts)
{
    REAL part[TOGETHER][BLOCK], power[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        power[i] = eps;
    for (i64 k = 0; k < c->components; k += TOGETHER) {
        const i64 left = c->components - k, count = left < TOGETHER ? left : TOGETHER;
        if (count == 1) respond(p, offset, value + k, c->taps, c->components, 1, part);
        if (count == 2) respond(p, offset, value + k, c->taps, c->components, 2, part);
        if (count == 3) respond(p, offset, value + k, c->taps, c->components, 3, part);
        if (count == 4) respond(p, offset, value + k, c->taps, c->components, 4, part);
        if (count == 5) respond(p, offset, value + k, c->taps, c->components, 5, part);
        for (i64 j = 0; j < count; j++) {
            for (int i = 0; i < BLOCK; i++)
                power[i] += part[j][i] * part[j][i];
            if (parts) memcpy(parts + (k + j) * l->all, part[j], sizeof part[j]);
        }
    }
    for (int i = 0; i < BLOCK; i++)
        power[i] = sqrt(power[i]);
    if (parts) {
        REAL slope[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            slope[i] = energy[i] / power[i];
        for (i64 k = 0; k < c->components; k++)
            for (int i = 0; i < BLOCK; i++)
                parts[k * l->all + i] = energy[i] == 0 ? 0 : parts[k * l->all + i] * slope[i];
    }
    memcpy(energy, power, sizeof power);
}

/* The transposed taps of all components at BLOCK positions. */
static void gather(const Call *c, const Layout *l, const REAL *parts, const int32_t *offset, const REAL *value, REAL *out)
{
    REAL sum[BLOCK] = {0};
    for (i64 k = 0; k < c->components; k++)
        for (i64 t = 0; t < c->taps; t++) {
            const REAL v = value[t * c->components + k], *p = parts + k * l->all - offset[t];
            if (v == 0) continue;
            for (int i = 0; i < BLOCK; i++)
                sum[i] += v * p[i];
        }
    memcpy(out, sum, sizeof sum);
}

/* offset and value (taps, components): the stencils in scratch memory. Energies go to `out`, unless it is NULL; where the
 * energies have the gradient `grad`, the one by x goes to `slope`.
 */
void energy_run(const Call *c, REAL *x, REAL *grad, REAL *out, REAL *slope, const int32_t *offset, const REAL *value,
                const REAL *eps, REAL *scratch)
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
        REAL *energy = padded + l.all, *parts = energy + l.all;
        memset(padded, 0, c->scratch_step * sizeof(REAL));
#pragma omp for schedule(static)
        for (i64 first = 0; first < maps; first += c->together) {
            const i64 count = maps - first < c->together ? maps - first : c->together;
            const i64 end = l.from + (count - 1) * l.map + (c->size[0] - 1) * l.plane + (c->size[1] - 1) * l.row + c->size[2];
            copy(c, &l, x, c->image_step, first, count, padded, 0);
            if (grad) copy(c, &l, grad, c->grad_step, first, count, energy, 0);
            for (i64 at = l.from; at < end; at += BLOCK)
                block(c, &l, padded + at, offset, value, *eps, energy + at, grad ? parts + at : NULL);
            if (out) copy(c, &l, out, step, first, count, energy, 1);
            if (grad) {
                for (i64 at = l.from; at < end; at += BLOCK)
                    gather(c, &l, parts + at, offset, value, padded + at);
                copy(c, &l, slope, step, first, count, padded, 1);
                memset(padded, 0, 2 * l.all * sizeof(REAL)); /* zeros between the maps again, of x and of the gradient */
            }
        }
    }
}
