// The kernels for any processor of this architecture.
#include <cmath>
#include <cstdint>

#include "../common/scratch.h"
#include "kernels.h"

#define INSTRUCTION_SET baseline
#define VECTOR_BYTES 16
#define TILE_ROWS 2
#define TILE_RANKS 4
#define TILE_VECTORS 4
#define ONE_ROW_RANKS 4
#define SMALL_FACTORS (128 << 10)
#include "kernels.inl"
