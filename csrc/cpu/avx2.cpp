// The kernels for avx2.
#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>

#include "rows.h"
#include "scratch.h"

#pragma GCC target("avx2,fma,f16c")
#define INSTRUCTION_SET avx2
#define TILE_ROWS 2
#define TILE_RANKS 2
#define TILE_VECTORS 2
#include "kernels.h"
#endif
