// What a block reads before it computes: its rows, and the eraser of each.
#pragma once

#include "block.cuh"

namespace leace_fast::cuda {

constexpr int NO_ERASER = -1, UNKNOWN = -2, NO_ROW = -3;

template <int BATCH, typename B>
__device__ __forceinline__ void load_batch(const B& b, int first, int group, bool add) {
  using Row = typename B::Row;
  const Arguments& a = b.a;
  const int dim = a.dim, column = group * GROUP + 8 * b.t;
  Octet<Row> octets[2 * BATCH] = {}, residuals[2 * BATCH] = {};
  const auto place = [&](int i) { return first * TILE + 8 * i + b.r; };
#pragma unroll
  for (int i = 0; i < 2 * BATCH; ++i)
    if (b.exists(place(i))) octets[i] = load_octet<B::VECTOR>(b.row_of(a.x, place(i)), column, dim);
  if (add) {
#pragma unroll
    for (int i = 0; i < 2 * BATCH; ++i)
      if (b.exists(place(i))) residuals[i] = load_octet<B::VECTOR>(b.row_of(a.residual, place(i)), column, dim);
#pragma unroll
    for (int i = 0; i < 2 * BATCH; ++i) {
      float sums[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] = octets[i].get(j) + residuals[i].get(j);
      octets[i].set(sums);
      if (b.exists(place(i))) store_octet<B::VECTOR>(octets[i], b.row_of(a.summed, place(i)), column, dim);
    }
  }
  if constexpr (B::HELD) {
#pragma unroll
    for (int i = 0; i < 2 * BATCH; ++i) {
      if (place(i) >= b.rows()) continue;
#pragma unroll
      for (int v = 0; v < B::VECTORS; ++v) b.held(place(i), group)[v * WARP] = octets[i].vectors[v];
    }
  }
}

// Reads x and the residual, writes their sum, and keeps the rows if they are to be held.
template <typename B>
__device__ __forceinline__ void load_rows(const B& b) {
  if constexpr (B::HELD || B::NORM != Norm::none) {
    const bool add = b.adds();
    for (int part = b.first_part(); part < b.end_part(); ++part)
      b.each_group(part, [&](int group) {
        // Some rows at a time: their reads are all on their way before the first is used.
        constexpr int AT_ONCE = 8 / int(sizeof(typename B::Row)), BATCH = B::TILES < AT_ONCE ? B::TILES : AT_ONCE;
#pragma unroll
        for (int first = 0; first < B::TILES; first += BATCH)
          if (first < b.a.row_tiles && (B::HELD || add)) load_batch<BATCH>(b, first, group, add);
      });
  }
}

// Which eraser each row has, and which rows are the first to have theirs.
template <typename B>
__device__ __forceinline__ void read_index(const B& b) {
  const Arguments& a = b.a;
  int32_t* erasers = b.template at<int32_t>(a.layout.erasers);
  const int row = thread_index();
  if (row < b.rows()) {
    int eraser = 0;
    if (!b.exists(row)) {
      eraser = NO_ROW;
    } else if (a.factors.index != nullptr) {
      const int64_t index = a.factors.index[b.first_row + row];
      eraser = index >= 0 && index < a.factors.erasers ? int(index) : index == -1 ? NO_ERASER : UNKNOWN;
      if (eraser == UNKNOWN && b.number == 0) add_one(a.unknown);
    }
    erasers[row] = eraser;
  }
  sync_block();
  if (row < b.rows()) {
    bool leads = a.factors.index != nullptr ? erasers[row] >= 0 : row == 0;
    if (a.factors.index != nullptr)
      for (int earlier = 0; earlier < row; ++earlier) leads = leads && erasers[earlier] != erasers[row];
    b.template at<int32_t>(a.layout.leaders)[row] = leads;
  }
  sync_block();
}

}  // namespace leace_fast::cuda
