/* Vectors of the processor at hand, and the matrix product in registers that all C sources share. */
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#define TEAM omp_get_num_threads()
#else
#define THREAD 0
#define TEAM 1
#endif

#ifndef REAL
#define REAL float
#endif
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TALL 8 /* TALL x WIDE sums in registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define TALL 4
#else
#define VECTOR_BYTES 16
#define TALL 4
#endif
#define WIDE 3
#define LANES ((int)(VECTOR_BYTES / sizeof(REAL)))
#define STRIPS (VECTOR_BYTES == 64 ? 4 : 2) /* vectors of positions in registers */
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef int64_t i64;

INLINE vec load(const REAL *p) { return *(const vec *)p; }
INLINE void store(REAL *p, vec v) { *(vec *)p = v; }
INLINE vec splat(REAL a) { return a - (vec){0}; }
INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE i64 aligned(i64 a) { return ceil_div(a, LANES) * LANES; } /* a load across two cache lines costs two */

/* sum[r][j] += sum over k of a[k * a_next + r * a_row] * b[j * b_step + k * b_next ..], all sums in registers;
 * `wide` is a constant when inlined. */
INLINE void multiply(const int wide, const REAL *a, i64 a_next, i64 a_row, const REAL *b, i64 b_step, i64 b_next, i64 depth,
                     vec sum[TALL][WIDE])
{
    for (i64 k = 0; k < depth; k++) {
        vec right[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++)
            right[j] = load(b + j * b_step + k * b_next);
#pragma GCC unroll 8
        for (int r = 0; r < TALL; r++) {
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++)
                sum[r][j] += a[k * a_next + r * a_row] * right[j];
        }
    }
}
