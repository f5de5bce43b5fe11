// How an erasure is launched: a pure function of the problem and the device, so that a test without a GPU reads it.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef __CUDACC__
#define LEACE_FAST_BOTH __host__ __device__
#else
#define LEACE_FAST_BOTH
#endif

namespace leace_fast::cuda {

constexpr int WARP = 32;
constexpr int WARPS = 8;  // of a block: each multiplies its own columns
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 16;   // rows of one tensor-core instruction
constexpr int GROUP = 32;  // columns that a warp takes at a time, eight of them in each lane
constexpr int MAX_TILES = 4;
constexpr int MAX_ROWS = MAX_TILES * TILE;
constexpr int MAX_PARTS = 8;  // the largest cluster that every device of compute capability 9 and above can launch


struct Device {
  int capability;  // 80, 90, 100, ...
  int multiprocessors;
  int shared_per_block;  // bytes, once raised by cudaFuncSetAttribute
  int shared_per_multiprocessor;
};

struct Shape {
  int64_t rows, dim, rank;
  int row_bytes;  // of one number: 2 or 4
  bool vector;    // rows and factors lie at addresses of 16 bytes
};

LEACE_FAST_BOTH constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// bfloat16 terms that a float32 is split into: 16 bits for rows of two bytes, all 24 for float32 rows.
LEACE_FAST_BOTH constexpr int terms(int row_bytes) { return row_bytes == 2 ? 2 : 3; }

// Ranks whose sums a warp holds at a time; three terms need the registers.
LEACE_FAST_BOTH constexpr int rank_chunk(int row_bytes) { return row_bytes == 2 ? 32 : 16; }

// Tiles of a block. Sums take registers, and so do three terms, or the addresses of rows that are read again.
LEACE_FAST_BOTH constexpr int most_tiles(int row_bytes, bool hold) { return hold && row_bytes == 2 ? MAX_TILES : 2; }

// Where the arrays of a block lie in its shared memory, in bytes.
struct Layout {
  int partial;    // float [WARPS][TILE][partial_stride]: sums of each warp, one tile at a time
  int sums;       // float [rows][rank_stride]: coordinates from this block's columns; other blocks read it
  int moments;    // float [2][MAX_ROWS]: row sums for the norms; other blocks read it
  int fragments;  // the coordinates as operands of the second product
  int scale;      // float [2][MAX_ROWS]: what the norm subtracts from a row, and multiplies it by
  int erasers;    // int32 [MAX_ROWS]: the eraser of each row
  int leaders;    // int32 [MAX_ROWS]: whether no earlier row has the same
  int tile;       // the rows themselves, each lane's own columns
  int64_t bytes;
  int partial_stride, rank_stride;
  int steps;  // of sixteen ranks, in the second product

  Layout() = default;
  LEACE_FAST_BOTH Layout(int64_t rank, int row_bytes, int row_tiles, int64_t held_groups) {
    const int rows = row_tiles * TILE;
    rank_stride = int(divide_up(rank, 8) * 8);
    const int chunk = rank_stride < rank_chunk(row_bytes) ? rank_stride : rank_chunk(row_bytes);
    partial_stride = chunk + 8;  // rows of a tile then start in different banks
    steps = int(divide_up(rank, 16));
    int64_t offset = 0;
    partial = int(offset), offset += WARPS * TILE * partial_stride * 4;
    sums = int(offset), offset += rows * rank_stride * 4;
    moments = int(offset), offset += 2 * MAX_ROWS * 4;
    fragments = int(offset), offset += row_tiles * steps * terms(row_bytes) * WARP * 16;
    scale = int(offset), offset += 2 * MAX_ROWS * 4;
    erasers = int(offset), offset += MAX_ROWS * 4;
    leaders = int(offset), offset += MAX_ROWS * 4;
    tile = int(offset), offset += held_groups * rows * GROUP * row_bytes;
    bytes = offset;
  }
};

struct Plan {
  int parts;      // the columns are summed in this many parts, added in order: of (dim, dtype) alone
  int cluster;    // blocks that share the rows of a tile, a part each; 1: one block takes all parts
  int row_tiles;  // of sixteen rows, in one block
  bool hold;      // rows stay in shared memory between the two products; otherwise they are read again
  Layout layout;  // and the bytes of shared memory
  int64_t blocks;

  int64_t groups_per_part(int64_t dim) const { return divide_up(divide_up(dim, GROUP), parts); }
};

// Enough parts for 64 rows of one to fill a quarter of a multiprocessor.
inline int parts_of(int64_t dim, int row_bytes) {
  int parts = 1;
  while (parts < MAX_PARTS && divide_up(dim, parts) * row_bytes > 1024) parts *= 2;
  return parts;
}

// What may differ between two plans of one (dim, rank, dtype) is where the work is done, never the order of a sum.
inline Plan make_plan(const Shape& shape, const Device& device) {
  Plan plan{};
  plan.parts = parts_of(shape.dim, shape.row_bytes);
  plan.cluster = device.capability >= 90 ? plan.parts : 1;

  // As many rows for each read of the factors as still leave work for every multiprocessor.
  plan.row_tiles = most_tiles(shape.row_bytes, shape.vector);
  while (plan.row_tiles > 1 &&
         divide_up(shape.rows, plan.row_tiles * TILE) * plan.cluster < device.multiprocessors)
    plan.row_tiles /= 2;

  const auto layout = [&](int row_tiles, bool hold) {
    const int64_t held = plan.groups_per_part(shape.dim) * (plan.parts / plan.cluster);
    return Layout(shape.rank, shape.row_bytes, row_tiles, hold ? held : 0);
  };
  // Two blocks on a multiprocessor: one computes while the other waits for memory. (1 KB of each is the system's.)
  const int budget = device.shared_per_multiprocessor / 2 - 1024;
  int held_tiles = plan.row_tiles;
  while (held_tiles > 1 && layout(held_tiles, true).bytes > budget) held_tiles /= 2;
  plan.hold = shape.vector &&
              layout(held_tiles, true).bytes <= (plan.cluster > 1 ? device.shared_per_block : budget);
  plan.row_tiles = plan.hold ? held_tiles : std::min(plan.row_tiles, most_tiles(shape.row_bytes, false));
  while (plan.row_tiles > 1 && layout(plan.row_tiles, plan.hold).bytes > budget) plan.row_tiles /= 2;
  plan.layout = layout(plan.row_tiles, plan.hold);
  plan.blocks = divide_up(shape.rows, plan.row_tiles * TILE) * plan.cluster;
  return plan;
}

}  // namespace leace_fast::cuda
