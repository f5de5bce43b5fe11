// The kernels for any processor of this architecture.
#include <cmath>
#include <cstdint>

#include "rows.h"
#include "scratch.h"

#define INSTRUCTION_SET baseline
#define TILE_ROWS 2
#define TILE_RANKS 1
#define TILE_VECTORS 1
#include "kernels.h"
