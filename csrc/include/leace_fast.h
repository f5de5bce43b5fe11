/* The kernels of leace-fast behind plain pointers: C, no dependency. Compile every .cpp below csrc/cpu as C++17 or
 * later with any options (instruction sets are chosen when it runs) and link them in.
 *
 *     y = x - ((x - mean) right') left'         row by row: `right` reads the concept, `left` takes it away
 *
 * Rows are float32, float64, bfloat16 or float16; all else is in the compute dtype: float64 for float64 rows, and
 * float32 for all others. A result is rounded once. The bits of a row of the result depend on that row and on its
 * eraser alone: not on its neighbours, the number of rows, the number of threads or `index`.
 *
 * Strides are in elements, from one row to the next; the numbers within a row are next to each other. Every function
 * may be called from any thread.
 */
#ifndef LEACE_FAST_H
#define LEACE_FAST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum leace_fast_dtype {
  LEACE_FAST_FLOAT32,
  LEACE_FAST_FLOAT64,
  LEACE_FAST_BFLOAT16,
  LEACE_FAST_FLOAT16
} leace_fast_dtype;

typedef enum leace_fast_status {
  LEACE_FAST_OK,
  LEACE_FAST_BAD_INDEX, /* `index` holds a number below -1, or of no eraser; nothing has been written */
  LEACE_FAST_BAD_DTYPE, /* nothing has been written */
  LEACE_FAST_NO_MEMORY, /* y is not complete */
  LEACE_FAST_BAD_CPU    /* see leace_fast_instruction_set; nothing has been written */
} leace_fast_status;

/* Erasers of one width and rank, in the compute dtype, dense. */
typedef struct leace_fast_factors {
  const void* left_t; /* (erasers, rank, dim): the transposes of `left` */
  const void* right;  /* (erasers, rank, dim) */
  const void* mean;   /* (erasers, dim), or NULL for zeros */
  int64_t dim;
  int64_t rank;
  int64_t erasers; /* 1 where there is no `index` */
  /* NULL, or what leace_fast_pack made of these factors: faster for rows of 16-bit numbers without a norm, and not used
   * for others. The bits of a row then differ from those without, and errors are as small. */
  const void* packed;
} leace_fast_factors;

/* (row - centre) / sqrt(mean square of that + eps) * (weight + weight_offset) + bias, in the compute dtype. */
typedef struct leace_fast_norm {
  int layer;          /* 1: layer norm, the centre is the mean of the row. 0: RMS norm, the centre is zero */
  const void* weight; /* (dim) in the compute dtype, or NULL for ones, without an offset */
  const void* bias;   /* (dim) in the compute dtype, or NULL for zeros */
  double eps;
  double weight_offset; /* 1 in Gemma, else 0 */
} leace_fast_norm;

/* Calls body(b, e, context) for ranges that cover begin..end, each of at least `grain` if that can be, on any
 * threads, and returns when all are done. NULL in the functions below stands for one call on the caller's thread. */
typedef void (*leace_fast_body)(int64_t begin, int64_t end, void* context);
typedef void (*leace_fast_parallel_for)(int64_t begin, int64_t end, int64_t grain, leace_fast_body body,
                                        void* context);

/* Erase rows of x into y, which may be x itself with the same stride.
 *
 * index: NULL, or for each row the number of its eraser, and -1 for none: that row is copied bit by bit. */
leace_fast_status leace_fast_project(leace_fast_dtype dtype, const void* x, int64_t x_stride, void* y,
                                     int64_t y_stride, int64_t rows, const leace_fast_factors* factors,
                                     const int64_t* index, leace_fast_parallel_for parallel_for);

/* The bytes of packed factors, and the packing of float32 factors into memory aligned to 64 bytes. The size is 0 where
 * the processor or the rank makes no use of it: then `packed` must be NULL. Packed factors belong to the process that
 * made them. */
int64_t leace_fast_packed_size(int64_t dim, int64_t rank, int64_t erasers);
void leace_fast_pack(const leace_fast_factors* factors, void* packed);

/* Add `residual` to x, norm the rounded sum, erase the norm, in one pass over each row.
 *
 * residual, summed: both NULL, or rows of x's dtype; x + residual is written to `summed`, which may be either.
 * y must be neither x nor residual. index: as above; rows without an eraser are normed all the same. */
leace_fast_status leace_fast_add_norm_project(leace_fast_dtype dtype, const void* x, int64_t x_stride,
                                              const void* residual, int64_t residual_stride, void* summed,
                                              int64_t summed_stride, void* y, int64_t y_stride, int64_t rows,
                                              const leace_fast_norm* norm, const leace_fast_factors* factors,
                                              const int64_t* index, leace_fast_parallel_for parallel_for);

/* The instruction set in use: "baseline", "avx2", "avx512", "avx512bf16" or "amx"; LEACE_FAST_CPU in the environment,
 * one of these names, holds it to a lesser one. It is chosen in the first call of any function. NULL where
 * LEACE_FAST_CPU names none that is compiled and that this processor has: then nothing is packed, and all else returns
 * LEACE_FAST_BAD_CPU. */
const char* leace_fast_instruction_set(void);

#ifdef __cplusplus
}
#endif

#endif
