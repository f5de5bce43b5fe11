// Rows in memory, eight numbers of a row in a lane, and a float32 as a sum of bfloat16 terms.
#pragma once

#include "intrinsics.cuh"
#include "plan.h"

namespace leace_fast::cuda {

// Storage only: the bits of a number.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bfloat16 x) { return as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(Float16 x) { return widen_float16(x.bits); }

// Eight neighbouring numbers of one row, as they are stored.
template <typename Row>
struct Octet {
  static constexpr int VECTORS = int(sizeof(Row)) / 2;
  Vector vectors[VECTORS];

  // `i` must be known to the compiler, so that the words stay in registers.
  __device__ __forceinline__ float get(int i) const {
    if constexpr (sizeof(Row) == 4) {
      return as_float(vectors[i / 4].words[i % 4]);
    } else {
      const uint32_t word = vectors[0].words[i / 2];
      return widen(Row{uint16_t(i % 2 ? word >> 16 : word)});
    }
  }

  // Rounded once, to the nearest.
  __device__ __forceinline__ void set(const float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      if constexpr (sizeof(Row) == 4) {
        vectors[i / 4].words[i % 4] = as_bits(values[i]);
        vectors[i / 4].words[i % 4 + 1] = as_bits(values[i + 1]);
      } else if constexpr (std::is_same_v<Row, Bfloat16>) {
        vectors[0].words[i / 2] = pack_bfloat16(values[i], values[i + 1]);
      } else {
        vectors[0].words[i / 2] = pack_float16(values[i], values[i + 1]);
      }
    }
  }
};

// Columns from `dim` on read as zeros, and are not written. VECTOR: whole octets, at addresses of 16 bytes.
template <bool VECTOR, typename Row>
__device__ __forceinline__ Octet<Row> load_octet(const Row* row, int column, int dim) {
  Octet<Row> octet{};
  if constexpr (VECTOR) {
    if (column < dim) octet = *reinterpret_cast<const Octet<Row>*>(row + column);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i >= dim) continue;
      if constexpr (sizeof(Row) == 4)
        octet.vectors[i / 4].words[i % 4] = as_bits(row[column + i]);
      else
        octet.vectors[0].words[i / 2] |= uint32_t(row[column + i].bits) << (i % 2 * 16);
    }
  }
  return octet;
}

template <bool VECTOR, typename Row>
__device__ __forceinline__ void store_octet(const Octet<Row>& octet, Row* row, int column, int dim) {
  if constexpr (VECTOR) {
    if (column < dim) *reinterpret_cast<Octet<Row>*>(row + column) = octet;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i >= dim) continue;
      if constexpr (sizeof(Row) == 4)
        row[column + i] = as_float(octet.vectors[i / 4].words[i % 4]);
      else
        row[column + i].bits = uint16_t(octet.vectors[0].words[i / 2] >> (i % 2 * 16));
    }
  }
}

// Four neighbouring float32 of a factor.
template <bool VECTOR>
__device__ __forceinline__ void load_four(const float* row, int column, int dim, bool valid, float (&out)[4]) {
  if constexpr (VECTOR) {
    Vector vector{};
    if (valid && column < dim) vector = *reinterpret_cast<const Vector*>(row + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = as_float(vector.words[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = valid && column + i < dim ? row[column + i] : 0.0f;
  }
}

// A pair of float32 as bfloat16 terms that sum to it: each the nearest to what the earlier ones left.
template <int TERMS>
__device__ __forceinline__ void split(float low, float high, uint32_t (&out)[TERMS]) {
#pragma unroll
  for (int i = 0; i < TERMS; ++i) {
    out[i] = pack_bfloat16(low, high);
    low -= as_float(out[i] << 16);
    high -= as_float(out[i] & 0xffff0000u);
  }
}

// sum += (a_0 + a_1 + ...) (b_0 + b_1 + ...) but for products below the last place, the smallest first. Tensor cores
// cut sums off where float32 rounds them, so at 24 bits each step is summed apart and then added.
template <int TERMS>
__device__ __forceinline__ void multiply_add_terms(float (&sum)[4], const uint32_t (&a)[TERMS][4],
                                                   const uint32_t (&b)[TERMS][2]) {
  constexpr bool APART = TERMS == 3;
  float apart[4] = {};
#pragma unroll
  for (int order = TERMS - 1; order >= 0; --order)
#pragma unroll
    for (int i = 0; i <= order; ++i) multiply_add(APART ? apart : sum, a[i], b[order - i]);
  if constexpr (APART) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += apart[i];
  }
}

}  // namespace leace_fast::cuda
