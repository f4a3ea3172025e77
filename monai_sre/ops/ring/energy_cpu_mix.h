/* Energies mixed by a matrix, and the gradients of that; see energy_cpu.c.
 *
 * Some images are taken at once: their energies stand as rows, one per energy, of positions of all these images, so that a
 * small map makes no small product. All threads share the rows and take parts of each step in turn.
 *
 * Groups of channels do not mix. Of one group: `inputs` energies (all orders), `outputs` channels. */

#define COLUMNS 1024 /* positions of one product: those of TALL outputs stay in the first-level cache */
#define SQUARE 4     /* SQUARE x SQUARE sums in registers, of products over positions */

/* Sizes of the shared memory, in values. */
typedef struct {
    i64 size, inputs, outputs, step; /* positions of a map; of a group; between two rows */
    i64 energy, slope, packed, all;  /* where the rows of energies, of the gradient, and the packed matrix begin */
} Shared;

static Shared shared_layout(const Call *c, int with_grad)
{
    Shared m;
    m.size = c->size[0] * c->size[1] * c->size[2];
    m.inputs = c->orders * c->channels / c->groups;
    m.outputs = c->outputs / c->groups;
    m.step = aligned(c->at_once * m.size) + (WIDE + 1) * LANES; /* no power of two: rows would share places of the cache */
    m.energy = 0;
    m.slope = c->groups * m.inputs * m.step;
    m.packed = m.slope + (with_grad ? c->outputs * m.step : 0);
    m.all = m.packed + c->groups * ceil_div(with_grad ? m.inputs : m.outputs, TALL) * TALL * (with_grad ? m.outputs : m.inputs);
    return m;
}

/* Values of the scratch memory of all threads. */
i64 energy_mix_scratch(const Call *c, int with_grad)
{
    return shared_layout(c, with_grad).all + c->threads * (c->scratch_step + TALL * COLUMNS);
}

/* TALL rows of each group's matrix side by side, the order in which `multiply` reads them; missing ones become 0. */
static void pack(const Call *c, const REAL *matrix, i64 rows, i64 depth, i64 row_step, i64 depth_step, i64 group_step,
                 REAL *packed)
{
    const i64 panels = ceil_div(rows, TALL);
#pragma omp for schedule(static)
    for (i64 panel = 0; panel < c->groups * panels; panel++) {
        const i64 first = panel % panels * TALL;
        const REAL *from = matrix + panel / panels * group_step + first * row_step;
        for (i64 k = 0; k < depth; k++)
            for (i64 r = 0; r < TALL; r++)
                packed[(panel * depth + k) * TALL + r] = first + r < rows ? from[r * row_step + k * depth_step] : 0;
    }
}

INLINE void product_part(const int wide, const REAL *matrix, const REAL *rows, i64 step, i64 depth, REAL *out, i64 out_step)
{
    vec sum[TALL][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++)
            sum[r][j] = (vec){0};
    multiply(wide, matrix, TALL, 1, rows, LANES, step, depth, sum);
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++)
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++)
            store(out + r * out_step + j * LANES, sum[r][j]);
}

/* TALL rows of matrix . rows, `strips` vectors of positions. */
static void product(const REAL *matrix, const REAL *rows, i64 step, i64 depth, i64 strips, REAL *out, i64 out_step)
{
    i64 s = 0;
    for (; s + WIDE <= strips; s += WIDE)
        product_part(WIDE, matrix, rows + s * LANES, step, depth, out + s * LANES, out_step);
    for (; s < strips; s++)
        product_part(1, matrix, rows + s * LANES, step, depth, out + s * LANES, out_step);
}

INLINE REAL total_of(vec v)
{
    REAL part[LANES];
    store(part, v);
    for (int half = LANES / 2; half; half /= 2) /* halves, which do not wait for each other */
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return part[0];
}

/* sums[r * sums_step + j] = left row r . right row j, over all positions, for rows that exist; with `more` added to it. */
static void add_square(const REAL *left, i64 tall, const REAL *right, i64 wide, i64 step, i64 length, int more, REAL *sums,
                       i64 sums_step)
{
    vec sum[SQUARE][SQUARE] = {{{0}}};
    const REAL *a[SQUARE], *b[SQUARE];
    for (int k = 0; k < SQUARE; k++)
        a[k] = left + least(k, tall - 1) * step, b[k] = right + least(k, wide - 1) * step;
    for (i64 p = 0; p < length; p += LANES)
#pragma GCC unroll 4
        for (int r = 0; r < SQUARE; r++)
#pragma GCC unroll 4
            for (int j = 0; j < SQUARE; j++)
                sum[r][j] += load(a[r] + p) * load(b[j] + p);
    for (int r = 0; r < least(tall, SQUARE); r++)
        for (int j = 0; j < least(wide, SQUARE); j++) {
            REAL *to = sums + r * sums_step + j;
            *to = (more ? *to : 0) + total_of(sum[r][j]);
        }
}

INLINE REAL sum_of(const REAL *p, i64 count)
{
    vec sum[STRIPS] = {{0}};
    REAL total = 0;
    i64 i = 0;
    for (; i + BLOCK <= count; i += BLOCK)
#pragma GCC unroll 4
        for (int s = 0; s < STRIPS; s++)
            sum[s] += load(p + i + s * LANES);
    for (; i < count; i++)
        total += p[i];
    for (int s = 0; s < STRIPS; s++)
        total += total_of(sum[s]);
    return total;
}

/* One step for `images` images from `image` on. */
typedef struct {
    i64 image, images, length; /* length: positions */
    Maps energies, x, slope;
} Part;

static Part part_of(const Call *c, const Shared *m, i64 image, REAL *energy, Maps x, Maps slope)
{
    const i64 of_group = c->channels / c->groups;
    Part p = {image, least(c->at_once, c->images - image), 0, {energy, m->size, m->inputs * m->step, of_group * m->step, m->step},
              x, slope};
    p.length = p.images * m->size;
    p.x.first += image * x.image;
    if (slope.first) p.slope.first += image * slope.image;
    return p;
}

/* out = radial + matrix . energies(x) + bias. `radial` and `out`: channels of each group beside each other. */
void energy_add(const Call *c, const Stencils *st, const Maps *x, const Maps *radial, const REAL *matrix, const REAL *bias,
                const Maps *out, double eps, REAL *scratch)
{
    const Layout l = layout(c);
    const Shared m = shared_layout(c, 0);
    const i64 panels = ceil_div(m.outputs, TALL);
    const Maps none = {NULL, 0, 0, 0, 0};
#pragma omp parallel num_threads(c->threads)
    {
        REAL *own = scratch + m.all + THREAD * (c->scratch_step + TALL * COLUMNS), *mixed = own + c->scratch_step;
        memset(own, 0, c->scratch_step * sizeof(REAL));
        pack(c, matrix, m.outputs, m.inputs, m.inputs, 1, m.outputs * m.inputs, scratch + m.packed);
        for (i64 image = 0; image < c->images; image += c->at_once) {
            const Part p = part_of(c, &m, image, scratch + m.energy, *x, none);
            const i64 maps = p.images * c->channels, blocks = ceil_div(p.length, COLUMNS);
#pragma omp for schedule(static)
            for (i64 first = 0; first < maps; first += c->together)
                run_maps(c, &l, st, first, eps, &p.x, &none, &p.energies, &none, maps, own);
#pragma omp for schedule(static)
            for (i64 unit = 0; unit < c->groups * blocks * panels; unit++) {
                const i64 panel = unit % panels, from = unit / panels % blocks * COLUMNS, group = unit / panels / blocks;
                const i64 to = least(from + COLUMNS, p.length);
                product(scratch + m.packed + (group * panels + panel) * m.inputs * TALL,
                        scratch + m.energy + group * m.inputs * m.step + from, m.step, m.inputs, ceil_div(to - from, LANES), mixed,
                        COLUMNS);
                for (i64 r = 0; r < least(TALL, m.outputs - panel * TALL); r++) {
                    const i64 channel = panel * TALL + r;
                    const REAL start = bias ? bias[group * m.outputs + channel] : 0;
                    for (i64 at = from, next; at < to; at = next) {
                        next = least(to, (at / m.size + 1) * m.size); /* the end of this image */
                        const i64 n = p.image + at / m.size, place = at % m.size;
                        const REAL *add = mixed + r * COLUMNS + at - from,
                                   *base = radial->first + n * radial->image + group * radial->group + channel * m.size + place;
                        REAL *result = out->first + n * out->image + group * out->group + channel * m.size + place;
                        for (i64 i = 0; i < next - at; i++)
                            result[i] = base[i] + add[i] + start;
                    }
                }
            }
        }
    }
}

/* Gradients from `grad`, that of the output: by x to `slope` (none where its first is NULL), by the matrix and the bias to `by_matrix`
 * and `by_bias` (unless NULL), and `grad` itself to `radial`, the one by the radial part (none where its first is
 * NULL). */
void energy_add_gradients(const Call *c, const Stencils *st, const Maps *x, const Maps *grad, const REAL *matrix, const Maps *slope,
                          const Maps *radial, REAL *by_matrix, REAL *by_bias, double eps, REAL *scratch)
{
    const Layout l = layout(c);
    const Shared m = shared_layout(c, 1);
    const i64 panels = ceil_div(m.inputs, TALL), tall = ceil_div(m.outputs, SQUARE), wide = ceil_div(m.inputs, SQUARE);
    const Maps none = {NULL, 0, 0, 0, 0};
#pragma omp parallel num_threads(c->threads)
    {
        REAL *own = scratch + m.all + THREAD * (c->scratch_step + TALL * COLUMNS), *mixed = own + c->scratch_step;
        memset(own, 0, c->scratch_step * sizeof(REAL));
        pack(c, matrix, m.inputs, m.outputs, 1, m.inputs, m.outputs * m.inputs, scratch + m.packed);
        for (i64 image = 0; image < c->images; image += c->at_once) {
            const Part p = part_of(c, &m, image, scratch + m.energy, *x, *slope);
            const i64 maps = p.images * c->channels, blocks = ceil_div(p.length, COLUMNS), length = aligned(p.length);
            const Maps by = slope->first ? p.energies : none;
#pragma omp for schedule(static) nowait
            for (i64 row = 0; row < c->groups * m.inputs; row++) /* products run over whole vectors */
                for (i64 i = p.length; i < length; i++)
                    scratch[m.energy + row * m.step + i] = 0;
#pragma omp for schedule(static)
            for (i64 channel = 0; channel < c->outputs; channel++) { /* the gradient as rows */
                const i64 group = channel / m.outputs, of_group = channel % m.outputs;
                REAL *row = scratch + m.slope + channel * m.step;
                REAL total = by_bias && image ? by_bias[channel] : 0;
                for (i64 n = 0; n < p.images; n++) {
                    const REAL *from = grad->first + (image + n) * grad->image + channel * m.size;
                    REAL *copied = radial->first ? radial->first + (image + n) * radial->image + group * radial->group + of_group * m.size : NULL;
                    for (i64 i = 0; i < m.size; i++)
                        row[n * m.size + i] = from[i];
                    if (copied)
                        for (i64 i = 0; i < m.size; i++)
                            copied[i] = from[i];
                    if (by_bias) total += sum_of(from, m.size);
                }
                for (i64 i = p.length; i < length; i++)
                    row[i] = 0;
                if (by_bias) by_bias[channel] = total;
            }
            if (slope->first) {
#pragma omp for schedule(static)
                for (i64 unit = 0; unit < c->groups * blocks * panels; unit++) {
                    const i64 panel = unit % panels, from = unit / panels % blocks * COLUMNS, group = unit / panels / blocks;
                    const i64 strips = ceil_div(least(from + COLUMNS, p.length) - from, LANES);
                    product(scratch + m.packed + (group * panels + panel) * m.outputs * TALL,
                            scratch + m.slope + group * m.outputs * m.step + from, m.step, m.outputs, strips, mixed, COLUMNS);
                    for (i64 r = 0; r < least(TALL, m.inputs - panel * TALL); r++)
                        memcpy(scratch + m.energy + (group * m.inputs + panel * TALL + r) * m.step + from, mixed + r * COLUMNS,
                               strips * LANES * sizeof(REAL));
                }
            }
#pragma omp for schedule(static)
            for (i64 first = 0; first < maps; first += c->together) /* energies take the place of the gradient by them */
                run_maps(c, &l, st, first, eps, &p.x, &by, by_matrix ? &p.energies : &none, &p.slope, maps, own);
            if (by_matrix) {
#pragma omp for schedule(static)
                for (i64 unit = 0; unit < c->groups * tall * wide; unit++) {
                    const i64 j = unit % wide * SQUARE, r = unit / wide % tall * SQUARE, group = unit / wide / tall;
                    REAL *energy = scratch + m.energy + (group * m.inputs + j) * m.step;
                    add_square(scratch + m.slope + (group * m.outputs + r) * m.step, m.outputs - r, energy, m.inputs - j, m.step,
                               length, image > 0, by_matrix + (group * m.outputs + r) * m.inputs + j, m.inputs);
                }
            }
        }
    }
}
