// The kernels for avx512.
#include <cmath>
#include <cstdint>

#include "../common/scratch.h"
#include "kernels.h"

#ifdef LEACE_FAST_X86
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")
#define INSTRUCTION_SET avx512
#define VECTOR_BYTES 64
#define TILE_ROWS 6
#define TILE_RANKS 4
#define TILE_VECTORS 4
#define ONE_ROW_RANKS 8
#define SMALL_FACTORS (256 << 10)
#include "kernels.inl"
#endif
