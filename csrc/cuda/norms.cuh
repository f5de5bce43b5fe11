// The norms: what a block measures of its rows, and a number of a row as it comes out of the norm.
#pragma once

#include "block.cuh"

namespace leace_fast::cuda {

// The sum over each whole row of what `value` gives for one number; `slot` 0 and 1 are separate in memory.
template <typename B, typename Value>
__device__ __forceinline__ float sum_rows(const B& b, int slot, Value&& value) {
  const Arguments& a = b.a;
  float* sums = b.template at<float>(a.layout.moments) + slot * MAX_ROWS;
  float* partial = b.template at<float>(a.layout.partial);  // [WARPS][MAX_ROWS]
  for (int part = b.first_part(); part < b.end_part(); ++part) {
    float mine[B::TILES][2] = {};
    b.each_group(part, [&](int group) {
      b.each_row([&](int tile, int half, int row) {
        const Octet<typename B::Row> octet = b.fetch(row, group);
        const int column = group * GROUP + 8 * b.t;
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (B::VECTOR ? column < a.dim : column + i < a.dim) mine[tile][half] += value(row, octet.get(i));
      });
    });
    b.each_row([&](int tile, int half, int row) {
      float sum = mine[tile][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (b.t == 0) partial[b.warp * MAX_ROWS + row] = sum;
    });
    sync_block();
    if (thread_index() < b.rows()) {
      float sum = partial[thread_index()];
      for (int w = 1; w < WARPS; ++w) sum += partial[w * MAX_ROWS + thread_index()];
      sums[thread_index()] = part > b.first_part() ? sums[thread_index()] + sum : sum;
    }
    sync_block();
  }
  if (a.cluster > 1) cluster_arrive(), cluster_wait();
  Pair pair{};
  if (thread_index() < b.rows()) pair = b.add_parts(reinterpret_cast<Pair*>(sums) + thread_index() / 2);
  return thread_index() % 2 ? pair.high : pair.low;  // of row `thread_index()`
}

// What a row's numbers are normalised by.
template <typename B>
__device__ __forceinline__ void measure_rows(const B& b) {
  if constexpr (B::NORM != Norm::none) {
    float* subtract = b.template at<float>(b.a.layout.scale);
    float* multiply = subtract + MAX_ROWS;
    const float dim = float(b.a.dim);
    if (thread_index() < MAX_ROWS) subtract[thread_index()] = 0.0f;
    if constexpr (B::NORM == Norm::layer) {
      const float sum = sum_rows(b, 1, [](int, float x) { return x; });
      if (thread_index() < b.rows()) subtract[thread_index()] = divide(sum, dim);
      sync_block();
    }
    const float squares = sum_rows(b, 0, [&](int row, float x) {
      const float centred = B::NORM == Norm::layer ? x - subtract[row] : x;
      return centred * centred;
    });
    if (thread_index() < b.rows())
      multiply[thread_index()] = divide(1.0f, square_root(divide(squares, dim) + b.a.norm.eps));
    sync_block();
  }
}

template <int COUNT>
struct Weights {
  float weight[COUNT], bias[COUNT];
};

template <int COUNT, typename B>
__device__ __forceinline__ void load_weights(const B& b, const void* from, float absent, int column,
                                             float (&out)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    out[i] = absent;
    if (from == nullptr || column + i >= b.a.dim) continue;
    out[i] = b.a.norm.float32 ? static_cast<const float*>(from)[column + i]
                              : widen(static_cast<const typename B::Row*>(from)[column + i]);
  }
}

template <int COUNT, typename B>
__device__ __forceinline__ Weights<COUNT> weights(const B& b, int column) {
  Weights<COUNT> w{};
  if constexpr (B::NORM != Norm::none) {
    const NormWeights& norm = b.a.norm;
    load_weights(b, norm.weight, 1.0f - norm.weight_offset, column, w.weight);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) w.weight[i] += norm.weight_offset;
    if constexpr (B::NORM == Norm::layer) load_weights(b, norm.bias, 0.0f, column, w.bias);
  }
  return w;
}

template <int COUNT, typename B>
__device__ __forceinline__ float normalised(const B& b, float x, int row, const Weights<COUNT>& w, int i) {
  if constexpr (B::NORM == Norm::none) {
    return x;
  } else {
    const float* scale = b.template at<float>(b.a.layout.scale);
    if constexpr (B::NORM == Norm::rms) return x * scale[MAX_ROWS + row] * w.weight[i];
    return (x - scale[row]) * scale[MAX_ROWS + row] * w.weight[i] + w.bias[i];
  }
}

}  // namespace leace_fast::cuda
