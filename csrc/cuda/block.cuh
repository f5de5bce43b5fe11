// A block of threads, the rows that it has and where they lie.
//
// A cluster of blocks takes 16 to 64 rows, each block a part of their columns, each warp every eighth group of 32
// columns in it. Lane 4 r + t of a warp has rows r and r + 8 of each tile and the eight columns 8 t of a group, from
// the first time that they are read to the last: so a row goes from memory to registers (or to shared memory, where
// only its own lane reads it back) in vectors of 16 bytes and never changes hands.
#pragma once

#include <type_traits>

#include "apply.h"
#include "numbers.cuh"

namespace leace_fast::cuda {

enum class Norm { none, rms, layer };

// How rows come to a warp the second time: from shared memory, from global memory again (the L2 cache, as a rule), or
// that number by number, where rows or factors do not lie at addresses of 16 bytes.
enum class Access { held, again, single };

struct Arguments {
  Rows x, residual, y, summed;
  int64_t rows;
  Factors factors;
  NormWeights norm;
  int dim, rank;
  int parts, cluster, row_tiles, groups_per_part;
  Layout layout;
  unsigned long long* unknown;
};

template <typename Number, Norm KIND, Access ACCESS>
struct Block {
  using Row = Number;
  static constexpr Norm NORM = KIND;
  static constexpr bool VECTOR = ACCESS != Access::single, HELD = ACCESS == Access::held;
  static constexpr int TERMS = terms(sizeof(Row));
  // Instructions that cover a chunk of ranks: fewer where registers are needed elsewhere.
  static constexpr int CHUNK = NORM == Norm::none && VECTOR ? rank_chunk(sizeof(Row)) / 8 : 4 / int(sizeof(Row));
  static constexpr int TILES = most_tiles(sizeof(Row), HELD);
  static constexpr int VECTORS = Octet<Row>::VECTORS;

  const Arguments& a;
  const int warp = thread_index() / WARP, lane = thread_index() % WARP;
  const int r = lane / 4, t = lane % 4;
  const int number = a.cluster > 1 ? int(block_index() % a.cluster) : 0;  // in its cluster
  const int64_t first_row = block_index() / a.cluster * a.row_tiles * TILE;

  // Places for rows, filled or not; the parts that this block sums.
  __device__ __forceinline__ int rows() const { return a.row_tiles * TILE; }
  __device__ __forceinline__ int first_part() const { return number; }
  __device__ __forceinline__ int end_part() const { return a.cluster > 1 ? number + 1 : a.parts; }

  // Whether rows are sums of two; written as such before anything else is done with them.
  __device__ __forceinline__ bool adds() const { return NORM != Norm::none && a.residual.data != nullptr; }

  template <typename T>
  __device__ __forceinline__ T* at(int offset) const {
    return reinterpret_cast<T*>(shared_memory() + offset);
  }

  __device__ __forceinline__ bool exists(int row) const { return row < rows() && first_row + row < a.rows; }

  __device__ __forceinline__ Row* row_of(const Rows& rows, int row) const {
    return static_cast<Row*>(rows.data) + (compute_here(first_row) + row) * rows.stride;
  }

  // Where this lane keeps its columns of a row.
  __device__ __forceinline__ Vector* held(int row, int group) const {
    const int local = group - first_part() * a.groups_per_part;
    return at<Vector>(a.layout.tile) + ((local * rows() + row) / 8 * VECTORS) * WARP + lane;
  }

  template <typename Body>
  __device__ __forceinline__ void each_group(int part, Body&& body) const {
    const int all = (a.dim + GROUP - 1) / GROUP, next = (part + 1) * a.groups_per_part;
    const int end = next < all ? next : all;
    for (int group = part * a.groups_per_part + warp; group < end; group += WARPS) body(group);
  }

  // Each row of each tile that this lane has: its place in the block.
  template <typename Body>
  __device__ __forceinline__ void each_row(Body&& body) const {
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
      if (tile < a.row_tiles) {
        body(tile, 0, tile * TILE + r);
        body(tile, 1, tile * TILE + r + 8);
      }
  }

  __device__ __forceinline__ Octet<Row> fetch(int row, int group) const {
    Octet<Row> octet{};
    if constexpr (HELD) {
      const Vector* from = held(row, group);
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) octet.vectors[v] = from[v * WARP];
    } else if (exists(row)) {
      octet = load_octet<VECTOR>(row_of(adds() ? a.summed : a.x, row), group * GROUP + 8 * t, a.dim);
    }
    return octet;
  }

  // Of all blocks of the cluster, in order.
  __device__ __forceinline__ Pair add_parts(const Pair* mine) const {
    if (a.cluster == 1) return *mine;
    Pair sum = *peer(mine, 0);
    for (int p = 1; p < a.cluster; ++p) {
      const Pair part = *peer(mine, p);
      sum.low += part.low;
      sum.high += part.high;
    }
    return sum;
  }
};

}  // namespace leace_fast::cuda
