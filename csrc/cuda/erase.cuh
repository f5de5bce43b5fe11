// The kernel: y = h - ((h - mean) R') L' for rows h = x, or h = norm(x + residual).
//
// A cluster of blocks takes 16 to 64 rows, each block a part of their columns, each warp every eighth group of 32
// columns in it. Lane 4 r + t of a warp has rows r and r + 8 of each tile and the eight columns 8 t of a group: in
// the first product as operand a, in the second as sum. For that the columns are numbered differently inside the
// instructions: depth 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of half s of the first product are columns 8 t + 4 s and on, and
// column n of instruction q of the second is column 4 n + q. So a row goes from memory to registers (or to shared
// memory, where only its own lane reads it back) in vectors of 16 bytes and never changes hands.
//
// What a warp sums is determined by (dim, rank, dtype), warps are added in order, then parts in order: a row's
// bits do not depend on its neighbours, on the count of rows or on how many blocks there are.
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

constexpr int NO_ERASER = -1, UNKNOWN = -2, NO_ROW = -3;

template <typename Row, Norm NORM, Access ACCESS>
struct Eraser {
  static constexpr bool VECTOR = ACCESS != Access::single, HELD = ACCESS == Access::held;
  static constexpr int TERMS = terms(sizeof(Row));
  // Instructions that cover a chunk of ranks: fewer where registers are needed elsewhere.
  static constexpr int CHUNK = NORM == Norm::none && VECTOR ? rank_chunk(sizeof(Row)) / 8 : 4 / int(sizeof(Row));
  static constexpr int TILES = most_tiles(sizeof(Row), HELD);
  static constexpr int VECTORS = Octet<Row>::VECTORS;

  const Arguments& a;
  const int warp = thread_index() / WARP, lane = thread_index() % WARP;
  const int r = lane / 4, t = lane % 4;
  const int block = a.cluster > 1 ? int(block_index() % a.cluster) : 0;  // in its cluster
  const int64_t first_row = block_index() / a.cluster * a.row_tiles * TILE;

  // Places for rows, filled or not; the parts that this block sums.
  __device__ __forceinline__ int rows() const { return a.row_tiles * TILE; }
  __device__ __forceinline__ int first_part() const { return block; }
  __device__ __forceinline__ int end_part() const { return a.cluster > 1 ? block + 1 : a.parts; }

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
      const bool summed = NORM != Norm::none && a.residual.data != nullptr;
      octet = load_octet<VECTOR>(row_of(summed ? a.summed : a.x, row), group * GROUP + 8 * t, a.dim);
    }
    return octet;
  }

  // Reads x and the residual, writes their sum, and keeps the rows if they are to be held.
  __device__ __forceinline__ void load_rows() const {
    if constexpr (HELD || NORM != Norm::none) {
      const bool add = NORM != Norm::none && a.residual.data != nullptr;
      for (int part = first_part(); part < end_part(); ++part)
        each_group(part, [&](int group) {
          // Some rows at a time: their reads are all on their way before the first is used.
          constexpr int BATCH = TILES < 8 / int(sizeof(Row)) ? TILES : 8 / int(sizeof(Row));
#pragma unroll
          for (int first = 0; first < TILES; first += BATCH)
            if (first < a.row_tiles && (HELD || add)) load_batch<BATCH>(first, group, add);
        });
    }
  }

  template <int BATCH>
  __device__ __forceinline__ void load_batch(int first, int group, bool add) const {
    const int dim = a.dim, column = group * GROUP + 8 * t;
    Octet<Row> octets[2 * BATCH] = {}, residuals[2 * BATCH] = {};
    const auto place = [&](int i) { return first * TILE + 8 * i + r; };
#pragma unroll
    for (int i = 0; i < 2 * BATCH; ++i)
      if (exists(place(i))) octets[i] = load_octet<VECTOR>(row_of(a.x, place(i)), column, dim);
    if (add) {
#pragma unroll
      for (int i = 0; i < 2 * BATCH; ++i)
        if (exists(place(i)))
          residuals[i] = load_octet<VECTOR>(row_of(a.residual, place(i)), column, dim);
#pragma unroll
      for (int i = 0; i < 2 * BATCH; ++i) {
        float sums[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[j] = octets[i].get(j) + residuals[i].get(j);
        octets[i].set(sums);
        if (exists(place(i)))
          store_octet<VECTOR>(octets[i], row_of(a.summed, place(i)), column, dim);
      }
    }
    if constexpr (HELD) {
#pragma unroll
      for (int i = 0; i < 2 * BATCH; ++i) {
        if (place(i) >= rows()) continue;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) held(place(i), group)[v * WARP] = octets[i].vectors[v];
      }
    }
  }

  // Which eraser each row has, and which rows are the first to have theirs.
  __device__ __forceinline__ void read_index() const {
    int32_t* erasers = at<int32_t>(a.layout.erasers);
    const int row = thread_index();
    if (row < rows()) {
      int eraser = 0;
      if (!exists(row)) {
        eraser = NO_ROW;
      } else if (a.factors.index != nullptr) {
        const int64_t index = a.factors.index[first_row + row];
        eraser = index >= 0 && index < a.factors.erasers ? int(index) : index == -1 ? NO_ERASER : UNKNOWN;
        if (eraser == UNKNOWN && block == 0) add_one(a.unknown);
      }
      erasers[row] = eraser;
    }
    sync_block();
    if (row < rows()) {
      bool leads = a.factors.index != nullptr ? erasers[row] >= 0 : row == 0;
      if (a.factors.index != nullptr)
        for (int earlier = 0; earlier < row; ++earlier) leads = leads && erasers[earlier] != erasers[row];
      at<int32_t>(a.layout.leaders)[row] = leads;
    }
    sync_block();
  }

  // --- the norms ---

  // The sum over each whole row of what `value` gives for one number; `slot` 0 and 1 are separate in memory.
  template <typename Value>
  __device__ __forceinline__ float sum_rows(int slot, Value&& value) const {
    float* sums = at<float>(a.layout.moments) + slot * MAX_ROWS;
    float* partial = at<float>(a.layout.partial);  // [WARPS][MAX_ROWS]
    for (int part = first_part(); part < end_part(); ++part) {
      float mine[TILES][2] = {};
      each_group(part, [&](int group) {
        each_row([&](int tile, int half, int row) {
          const Octet<Row> octet = fetch(row, group);
          const int column = group * GROUP + 8 * t;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (VECTOR ? column < a.dim : column + i < a.dim)
              mine[tile][half] += value(row, octet.get(i));
        });
      });
      each_row([&](int tile, int half, int row) {
        float sum = mine[tile][half];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (t == 0) partial[warp * MAX_ROWS + row] = sum;
      });
      sync_block();
      if (thread_index() < rows()) {
        float sum = partial[thread_index()];
        for (int w = 1; w < WARPS; ++w) sum += partial[w * MAX_ROWS + thread_index()];
        sums[thread_index()] = part > first_part() ? sums[thread_index()] + sum : sum;
      }
      sync_block();
    }
    if (a.cluster > 1) cluster_arrive(), cluster_wait();
    Pair pair{};
    if (thread_index() < rows()) pair = add_parts(reinterpret_cast<Pair*>(sums) + thread_index() / 2);
    return thread_index() % 2 ? pair.high : pair.low;  // of row `thread_index()`
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

  // What a row's numbers are normalised by.
  __device__ __forceinline__ void measure_rows() const {
    if constexpr (NORM != Norm::none) {
      float* subtract = at<float>(a.layout.scale);
      float* multiply = subtract + MAX_ROWS;
      const float dim = float(a.dim);
      if (thread_index() < MAX_ROWS) subtract[thread_index()] = 0.0f;
      if constexpr (NORM == Norm::layer) {
        const float sum = sum_rows(1, [](int, float x) { return x; });
        if (thread_index() < rows()) subtract[thread_index()] = divide(sum, dim);
        sync_block();
      }
      const float squares = sum_rows(0, [&](int row, float x) {
        const float centred = NORM == Norm::layer ? x - subtract[row] : x;
        return centred * centred;
      });
      if (thread_index() < rows())
        multiply[thread_index()] = divide(1.0f, square_root(divide(squares, dim) + a.norm.eps));
      sync_block();
    }
  }

  template <int COUNT>
  struct Weights {
    float weight[COUNT], bias[COUNT];
  };

  template <int COUNT>
  __device__ __forceinline__ void load_weights(const void* from, float absent, int column,
                                               float (&out)[COUNT]) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      out[i] = absent;
      if (from == nullptr || column + i >= a.dim) continue;
      out[i] = a.norm.float32 ? static_cast<const float*>(from)[column + i]
                              : widen(static_cast<const Row*>(from)[column + i]);
    }
  }

  template <int COUNT>
  __device__ __forceinline__ Weights<COUNT> weights(int column) const {
    Weights<COUNT> w{};
    if constexpr (NORM != Norm::none) {
      load_weights(a.norm.weight, 1.0f - a.norm.weight_offset, column, w.weight);
#pragma unroll
      for (int i = 0; i < COUNT; ++i) w.weight[i] += a.norm.weight_offset;
      if constexpr (NORM == Norm::layer) load_weights(a.norm.bias, 0.0f, column, w.bias);
    }
    return w;
  }

  template <int COUNT>
  __device__ __forceinline__ float normalised(float x, int row, const Weights<COUNT>& w, int i) const {
    if constexpr (NORM == Norm::none) {
      return x;
    } else {
      const float* scale = at<float>(a.layout.scale);
      if constexpr (NORM == Norm::rms) return x * scale[MAX_ROWS + row] * w.weight[i];
      return (x - scale[row]) * scale[MAX_ROWS + row] * w.weight[i] + w.bias[i];
    }
  }

  // --- the first product: coordinates = (h - mean) R' ---

  __device__ __forceinline__ void sum_coordinates(int eraser) const {
    const int dim = a.dim, rank = a.rank;
    const float* right = a.factors.right + int64_t(eraser) * rank * dim;
    const float* mean = a.factors.mean == nullptr ? nullptr : a.factors.mean + int64_t(eraser) * dim;
    for (int part = first_part(); part < end_part(); ++part)
      for (int chunk = 0; chunk < rank; chunk += 8 * CHUNK) {
        float sums[TILES][CHUNK][4] = {};
        each_group(part, [&](int group) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const int column = group * GROUP + 8 * t + 4 * s;
            float centre[4];
            load_four<VECTOR>(mean, column, dim, mean != nullptr, centre);
            const Weights<4> w = weights<4>(column);
            uint32_t factor[CHUNK][TERMS][2];
            const int first = compute_here(chunk + r);
#pragma unroll
            for (int n = 0; n < CHUNK; ++n) {
              const int j = first + 8 * n;
              float four[4];
              load_four<VECTOR>(right + j * dim, column, dim, j < rank, four);
              split_into(four, factor[n]);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
              if (tile >= a.row_tiles) continue;
              uint32_t operand[TERMS][4];
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const int row = tile * TILE + r + 8 * half;
                const Octet<Row> octet = fetch(row, group);
                float four[4];
                uint32_t pairs[TERMS][2];
#pragma unroll
                for (int i = 0; i < 4; ++i) four[i] = normalised(octet.get(4 * s + i), row, w, i) - centre[i];
                split_into(four, pairs);
#pragma unroll
                for (int term = 0; term < TERMS; ++term) {
                  operand[term][half] = pairs[term][0];
                  operand[term][half + 2] = pairs[term][1];
                }
              }
#pragma unroll
              for (int n = 0; n < CHUNK; ++n)
                if (chunk + 8 * n < rank) multiply_add_terms<TERMS>(sums[tile][n], operand, factor[n]);
            }
          }
        });
        add_warps(sums, chunk, part > first_part());
      }
  }

  // Two pairs, by term.
  __device__ __forceinline__ static void split_into(const float (&four)[4], uint32_t (&pairs)[TERMS][2]) {
    uint32_t first[TERMS], second[TERMS];
    split(four[0], four[1], first);
    split(four[2], four[3], second);
#pragma unroll
    for (int term = 0; term < TERMS; ++term) {
      pairs[term][0] = first[term];
      pairs[term][1] = second[term];
    }
  }

  __device__ __forceinline__ void add_warps(const float (&mine)[TILES][CHUNK][4], int chunk, bool add) const {
    float* partial = at<float>(a.layout.partial);
    float* sums = at<float>(a.layout.sums);
    const int stride = a.layout.partial_stride;
    const int width = a.layout.rank_stride - chunk < 8 * CHUNK ? a.layout.rank_stride - chunk : 8 * CHUNK;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      if (tile >= a.row_tiles) continue;
      sync_block();
#pragma unroll
      for (int n = 0; n < CHUNK; ++n)
        if (8 * n < width) {
          float* to = partial + (warp * TILE + r) * stride + 8 * n + 2 * t;
          to[0] = mine[tile][n][0];
          to[1] = mine[tile][n][1];
          to[8 * stride] = mine[tile][n][2];
          to[8 * stride + 1] = mine[tile][n][3];
        }
      sync_block();
      for (int i = thread_index(); i < TILE * width; i += THREADS) {
        const int row = i / width, j = i % width;
        float sum = partial[row * stride + j];
        for (int w = 1; w < WARPS; ++w) sum += partial[(w * TILE + row) * stride + j];
        float* to = sums + (tile * TILE + row) * a.layout.rank_stride + chunk + j;
        *to = add ? *to + sum : sum;
      }
    }
  }

  // The coordinates of whole rows, split and laid out as the second product takes them.
  __device__ __forceinline__ void gather_coordinates() const {
    const float* sums = at<float>(a.layout.sums);
    uint32_t* fragments = at<uint32_t>(a.layout.fragments);
    const int pairs = a.layout.steps * 8;
    for (int i = thread_index(); i < rows() * pairs; i += THREADS) {
      const int row = i / pairs, j = i % pairs * 2;
      Pair pair{};
      if (j < a.layout.rank_stride)
        pair = add_parts(reinterpret_cast<const Pair*>(sums + row * a.layout.rank_stride + j));
      uint32_t out[TERMS];
      split(pair.low, pair.high, out);
      const int step = j / 16, deep = j % 16;
      const int to = (row % 8 * 4 + deep % 8 / 2) * 4 + row % TILE / 8 + deep / 8 * 2;
#pragma unroll
      for (int term = 0; term < TERMS; ++term)
        fragments[((row / TILE * a.layout.steps + step) * TERMS + term) * WARP * 4 + to] = out[term];
    }
  }

  // --- the second product: y = h - coordinates L' ---

  __device__ __forceinline__ void subtract(int eraser) const {
    const int dim = a.dim, rank = a.rank;
    const float* left_t = a.factors.left_t + int64_t(eraser) * rank * dim;
    for (int part = first_part(); part < end_part(); ++part)
      each_group(part, [&](int group) {
        float sums[TILES][4][4] = {};
        for (int step = 0; step < a.layout.steps; ++step) {
          uint32_t factor[4][TERMS][2];
#pragma unroll
          for (int deep = 0; deep < 2; ++deep) {
            const int j = step * 16 + deep * 8 + 2 * t;
            float low[4], high[4];
            load_four<VECTOR>(left_t + j * dim, group * GROUP + 4 * r, dim, j < rank, low);
            load_four<VECTOR>(left_t + (j + 1) * dim, group * GROUP + 4 * r, dim, j + 1 < rank, high);
#pragma unroll
            for (int q = 0; q < 4; ++q) {
              uint32_t out[TERMS];
              split(low[q], high[q], out);
#pragma unroll
              for (int term = 0; term < TERMS; ++term) factor[q][term][deep] = out[term];
            }
          }
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile) {
            if (tile >= a.row_tiles) continue;
            uint32_t operand[TERMS][4];
            const Vector* from = at<Vector>(a.layout.fragments) + (tile * a.layout.steps + step) * TERMS * WARP + lane;
#pragma unroll
            for (int term = 0; term < TERMS; ++term) {
              const Vector vector = from[term * WARP];
#pragma unroll
              for (int i = 0; i < 4; ++i) operand[term][i] = vector.words[i];
            }
#pragma unroll
            for (int q = 0; q < 4; ++q) multiply_add_terms<TERMS>(sums[tile][q], operand, factor[q]);
          }
        }
        const Weights<8> w = weights<8>(compute_here(group) * GROUP + 8 * t);
        each_row([&](int tile, int half, int row) {
          if (at<int32_t>(a.layout.erasers)[row] != eraser) return;
          write(row, group, w, [&](int i) { return sums[tile][i % 4][2 * half + i / 4]; });
        });
      });
  }

  template <typename Erased>
  __device__ __forceinline__ void write(int row, int group, const Weights<8>& w, Erased&& erased) const {
    Octet<Row> octet = fetch(row, group);
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = normalised(octet.get(i), row, w, i) - erased(i);
    octet.set(values);
    store_octet<VECTOR>(octet, row_of(a.y, row), group * GROUP + 8 * t, a.dim);
  }

  // Rows without an eraser: copied, never computed with. Rows of an unknown one: NaN.
  __device__ __forceinline__ void write_others() const {
    for (int part = first_part(); part < end_part(); ++part)
      each_group(part, [&](int group) {
        const Weights<8> w = weights<8>(group * GROUP + 8 * t);
        each_row([&](int, int, int row) {
          const int eraser = at<int32_t>(a.layout.erasers)[row];
          if (eraser == UNKNOWN) {
            write(row, group, w, [](int) { return as_float(0x7fc00000u); });
          } else if (eraser == NO_ERASER) {
            if constexpr (NORM != Norm::none)
              write(row, group, w, [](int) { return 0.0f; });
            else if (a.x.data != a.y.data)
              store_octet<VECTOR>(fetch(row, group), row_of(a.y, row), group * GROUP + 8 * t, a.dim);
          }
        });
      });
  }

  __device__ __forceinline__ void run() const {
    load_rows();
    read_index();
    measure_rows();
    for (int row = 0; row < rows(); ++row) {
      if (!at<int32_t>(a.layout.leaders)[row]) continue;
      const int eraser = at<int32_t>(a.layout.erasers)[row];
      sum_coordinates(eraser);
      if (a.cluster > 1)
        cluster_arrive(), cluster_wait();
      else
        sync_block();
      gather_coordinates();
      sync_block();
      if (a.cluster > 1) cluster_arrive();
      subtract(eraser);
      if (a.cluster > 1) cluster_wait();  // the other blocks have read this one's sums
    }
    if (a.factors.index != nullptr) write_others();
    if (NORM != Norm::none && a.cluster > 1) cluster_arrive(), cluster_wait();
  }
};

// Blocks on a multiprocessor that registers are to suffice for.
constexpr int resident(Access access) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return 1;
#else
  return access == Access::held ? 2 : 1;
#endif
}

template <typename Row, Norm NORM, Access ACCESS>
__global__ __launch_bounds__(THREADS, resident(ACCESS)) void erase_rows(const __grid_constant__ Arguments arguments) {
  Eraser<Row, NORM, ACCESS>{arguments}.run();
}

}  // namespace leace_fast::cuda
