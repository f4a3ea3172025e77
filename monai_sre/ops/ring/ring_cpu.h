/* Types of ring_cpu.c: the description of a call, the layout of scratch memory. */
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#include "vectors.h"

#define MIXED 6   /* rings mixed at a time, over STRIPS strips: sums in registers */
#define UNROLL 8  /* independent sums in flight: enough to hide the latency of an addition */
#define DEPTH 224 /* maps that a product takes at a time, so that WIDE strips of them stay in the first-level cache */

/* What one call does; the field order is that of cpu.py. Triples are z, y, x. */
typedef struct {
    i64 images, channels, out_channels, other_channels, blocks; /* blocks: groups of channels that do not mix */
    i64 in_size[3], out_size[3], stride[3], padding[3], dilation[3];
    i64 zoom[3], kernel[3];          /* zoom - 1 zeros are read between neighbours of the input */
    i64 tile[3];                     /* images, planes and rows of a tile */
    i64 columns, rows, groups, maps; /* sizes of the stages; maps: of one channel */
    i64 weight_step[4], total_step[4]; /* between blocks, rows, columns and maps; rows of `total` are channels of x */
    i64 threads, scratch_step;
} Call;

typedef struct {
    const int32_t *start, *tap, *source;
    i64 sets;
    i64 *offset;
} Stage;

typedef struct {
    Stage column, row, group, mix;
    const REAL *mix_weight;
    const REAL *matrix; /* all sums of a small map at once: (positions in, maps, positions out rounded up to LANES) */
} Plan;

/* Sizes in the scratch memory of one thread, in elements. */
typedef struct {
    i64 row_count, padded_width, padded_block, block_rows, map_size, planes, plane_map, strips;
    i64 u, q, sums, other, total, places, row, all;
} Layout;

static Layout layout(const Call *c)
{
    Layout l;
    i64 maps = c->channels * c->maps, other = aligned(c->other_channels / c->blocks);
    l.row_count = (c->tile[2] - 1) * c->stride[1] + (c->kernel[1] - 1) * c->dilation[1] + 1;
    l.padded_width = aligned(c->out_size[2] + (c->kernel[2] - 1) * c->dilation[2] / c->stride[2] + LANES);
    l.padded_block = l.padded_width * c->stride[2];
    l.block_rows = ceil_div(l.row_count, c->stride[1]);
    l.map_size = aligned(l.block_rows * c->stride[1] * c->out_size[2]) + (c->stride[1] + 1 + UNROLL) * LANES;
    l.planes = (c->tile[1] - 1) * c->stride[0] + (c->kernel[0] - 1) * c->dilation[0] + 1;
    l.plane_map = aligned(c->tile[2] * c->out_size[2]) + UNROLL * LANES;
    l.strips = c->tile[0] * c->tile[1] * ceil_div(c->tile[2] * c->out_size[2], LANES) + WIDE;
    l.u = (l.row_count + 1) * l.padded_block + 2 * UNROLL * LANES; /* padded rows come first, and a row of zeros */
    l.q = l.u + c->columns * l.map_size + 2 * UNROLL * LANES;
    l.sums = l.q + (c->kernel[0] > 1 ? l.planes * c->rows * l.plane_map + UNROLL * LANES : 0);
    l.other = l.sums + (l.strips * maps + TALL) * LANES;
    l.total = l.other + (c->other_channels ? l.strips * LANES * other * c->blocks : 0);
    l.places = l.total + (c->other_channels ? (maps + TALL * c->blocks) * other : 0);
    l.row = l.places + l.strips * 3 * (i64)(sizeof(i64) / sizeof(REAL)) + LANES;
    l.all = l.row + l.row_count * (i64)(sizeof(REAL *) / sizeof(REAL)) + LANES;
    return l;
}

typedef struct {
    i64 image, position, count; /* what a strip holds: positions of an image */
} Place;

/* The first place at or after `at` where an integer or a pointer may lie. */
INLINE void *word(REAL *at) { return (void *)(((uintptr_t)at + 7) & ~(uintptr_t)7); }
