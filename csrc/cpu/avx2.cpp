// The kernels for avx2.
#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>

#include "rows.h"
#include "scratch.h"

#pragma GCC target("avx2,fma,f16c")
#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#define TILE_ROWS 4
#define TILE_RANKS 3
#define TILE_VECTORS 3
#define ONE_ROW_RANKS 8
#define SMALL_FACTORS (128 << 10)
#include "kernels.h"
#endif
