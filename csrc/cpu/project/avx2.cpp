// The kernels for avx2.
#include <cmath>
#include <cstdint>

#include "../common/scratch.h"
#include "kernels.h"

#ifdef LEACE_FAST_X86
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define INSTRUCTION_SET avx2
#define VECTOR_BYTES 32
#define TILE_ROWS 4
#define TILE_RANKS 3
#define TILE_VECTORS 3
#define ONE_ROW_RANKS 8
#define SMALL_FACTORS (128 << 10)
#include "kernels.inl"
#endif
