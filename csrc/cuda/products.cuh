// The two products of an erasure, on tensor cores.
//
// For a lane to keep its eight columns in both, in the first product as operand a and in the second as sum, columns are
// numbered differently inside the instructions: depth 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of half s of the first product are
// columns 8 t + 4 s and on, and column n of instruction q of the second is column 4 n + q.
//
// What a warp sums is determined by (dim, rank, dtype), warps are added in order, then parts in order: a row's
// bits do not depend on its neighbours, on the count of rows or on how many blocks there are.
#pragma once

#include "loads.cuh"
#include "norms.cuh"

namespace leace_fast::cuda {

// --- the first product: coordinates = (h - mean) R' ---

// Two pairs, by term.
template <int TERMS>
__device__ __forceinline__ void split_into(const float (&four)[4], uint32_t (&pairs)[TERMS][2]) {
  uint32_t first[TERMS], second[TERMS];
  split(four[0], four[1], first);
  split(four[2], four[3], second);
#pragma unroll
  for (int term = 0; term < TERMS; ++term) {
    pairs[term][0] = first[term];
    pairs[term][1] = second[term];
  }
}

template <typename B>
__device__ __forceinline__ void add_warps(const B& b, const float (&mine)[B::TILES][B::CHUNK][4], int chunk, bool add) {
  const Layout& layout = b.a.layout;
  float* partial = b.template at<float>(layout.partial);
  float* sums = b.template at<float>(layout.sums);
  const int stride = layout.partial_stride;
  const int width = layout.rank_stride - chunk < 8 * B::CHUNK ? layout.rank_stride - chunk : 8 * B::CHUNK;
#pragma unroll
  for (int tile = 0; tile < B::TILES; ++tile) {
    if (tile >= b.a.row_tiles) continue;
    sync_block();
#pragma unroll
    for (int n = 0; n < B::CHUNK; ++n)
      if (8 * n < width) {
        float* to = partial + (b.warp * TILE + b.r) * stride + 8 * n + 2 * b.t;
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
      float* to = sums + (tile * TILE + row) * layout.rank_stride + chunk + j;
      *to = add ? *to + sum : sum;
    }
  }
}

template <typename B>
__device__ __forceinline__ void sum_coordinates(const B& b, int eraser) {
  constexpr int TILES = B::TILES, CHUNK = B::CHUNK, TERMS = B::TERMS;
  const Arguments& a = b.a;
  const int dim = a.dim, rank = a.rank;
  const float* right = a.factors.right + int64_t(eraser) * rank * dim;
  const float* mean = a.factors.mean == nullptr ? nullptr : a.factors.mean + int64_t(eraser) * dim;
  for (int part = b.first_part(); part < b.end_part(); ++part)
    for (int chunk = 0; chunk < rank; chunk += 8 * CHUNK) {
      float sums[TILES][CHUNK][4] = {};
      b.each_group(part, [&](int group) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const int column = group * GROUP + 8 * b.t + 4 * s;
          float centre[4];
          load_four<B::VECTOR>(mean, column, dim, mean != nullptr, centre);
          const Weights<4> w = weights<4>(b, column);
          uint32_t factor[CHUNK][TERMS][2];
          const int first = compute_here(chunk + b.r);
#pragma unroll
          for (int n = 0; n < CHUNK; ++n) {
            const int j = first + 8 * n;
            float four[4];
            load_four<B::VECTOR>(right + j * dim, column, dim, j < rank, four);
            split_into(four, factor[n]);
          }
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile) {
            if (tile >= a.row_tiles) continue;
            uint32_t operand[TERMS][4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int row = tile * TILE + b.r + 8 * half;
              const Octet<typename B::Row> octet = b.fetch(row, group);
              float four[4];
              uint32_t pairs[TERMS][2];
#pragma unroll
              for (int i = 0; i < 4; ++i) four[i] = normalised(b, octet.get(4 * s + i), row, w, i) - centre[i];
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
      add_warps(b, sums, chunk, part > b.first_part());
    }
}

// The coordinates of whole rows, split and laid out as the second product takes them.
template <typename B>
__device__ __forceinline__ void gather_coordinates(const B& b) {
  const Layout& layout = b.a.layout;
  const float* sums = b.template at<float>(layout.sums);
  uint32_t* fragments = b.template at<uint32_t>(layout.fragments);
  const int pairs = layout.steps * 8;
  for (int i = thread_index(); i < b.rows() * pairs; i += THREADS) {
    const int row = i / pairs, j = i % pairs * 2;
    Pair pair{};
    if (j < layout.rank_stride)
      pair = b.add_parts(reinterpret_cast<const Pair*>(sums + row * layout.rank_stride + j));
    uint32_t out[B::TERMS];
    split(pair.low, pair.high, out);
    const int step = j / 16, deep = j % 16;
    const int to = (row % 8 * 4 + deep % 8 / 2) * 4 + row % TILE / 8 + deep / 8 * 2;
#pragma unroll
    for (int term = 0; term < B::TERMS; ++term)
      fragments[((row / TILE * layout.steps + step) * B::TERMS + term) * WARP * 4 + to] = out[term];
  }
}

// --- the second product: y = h - coordinates L' ---

// Writes this lane's columns of a row of y: h less what `erased` gives for each.
template <typename B, typename Erased>
__device__ __forceinline__ void write(const B& b, int row, int group, const Weights<8>& w, Erased&& erased) {
  Octet<typename B::Row> octet = b.fetch(row, group);
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = normalised(b, octet.get(i), row, w, i) - erased(i);
  octet.set(values);
  store_octet<B::VECTOR>(octet, b.row_of(b.a.y, row), group * GROUP + 8 * b.t, b.a.dim);
}

template <typename B>
__device__ __forceinline__ void subtract(const B& b, int eraser) {
  constexpr int TILES = B::TILES, TERMS = B::TERMS;
  const Arguments& a = b.a;
  const int dim = a.dim, rank = a.rank;
  const float* left_t = a.factors.left_t + int64_t(eraser) * rank * dim;
  for (int part = b.first_part(); part < b.end_part(); ++part)
    b.each_group(part, [&](int group) {
      float sums[TILES][4][4] = {};
      for (int step = 0; step < a.layout.steps; ++step) {
        uint32_t factor[4][TERMS][2];
#pragma unroll
        for (int deep = 0; deep < 2; ++deep) {
          const int j = step * 16 + deep * 8 + 2 * b.t;
          float low[4], high[4];
          load_four<B::VECTOR>(left_t + j * dim, group * GROUP + 4 * b.r, dim, j < rank, low);
          load_four<B::VECTOR>(left_t + (j + 1) * dim, group * GROUP + 4 * b.r, dim, j + 1 < rank, high);
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
          const Vector* from =
              b.template at<Vector>(a.layout.fragments) + (tile * a.layout.steps + step) * TERMS * WARP + b.lane;
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
      const Weights<8> w = weights<8>(b, compute_here(group) * GROUP + 8 * b.t);
      b.each_row([&](int tile, int half, int row) {
        if (b.template at<int32_t>(a.layout.erasers)[row] != eraser) return;
        write(b, row, group, w, [&](int i) { return sums[tile][i % 4][2 * half + i / 4]; });
      });
    });
}

// Rows without an eraser: copied, never computed with. Rows of an unknown one: NaN.
template <typename B>
__device__ __forceinline__ void write_others(const B& b) {
  const Arguments& a = b.a;
  for (int part = b.first_part(); part < b.end_part(); ++part)
    b.each_group(part, [&](int group) {
      const Weights<8> w = weights<8>(b, group * GROUP + 8 * b.t);
      b.each_row([&](int, int, int row) {
        const int eraser = b.template at<int32_t>(a.layout.erasers)[row];
        if (eraser == UNKNOWN) {
          write(b, row, group, w, [](int) { return as_float(0x7fc00000u); });
        } else if (eraser == NO_ERASER) {
          if constexpr (B::NORM != Norm::none)
            write(b, row, group, w, [](int) { return 0.0f; });
          else if (a.x.data != a.y.data)
            store_octet<B::VECTOR>(b.fetch(row, group), b.row_of(a.y, row), group * GROUP + 8 * b.t, a.dim);
        }
      });
    });
}

}  // namespace leace_fast::cuda
