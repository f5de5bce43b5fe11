// The kernels that serve, by the instruction set in use and the dtype of rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels.h"
#include "leace_fast.h"

namespace leace_fast::cpu {

inline const Kernels& kernels_in_use() {
  [[maybe_unused]] const InstructionSet set = instruction_set();
#ifdef LEACE_FAST_X86
  if (set >= InstructionSet::AVX512) return avx512_kernels;
  if (set >= InstructionSet::AVX2) return avx2_kernels;
#endif
  return baseline_kernels;
}

// Null where there are none for it.
inline const PackedKernels* packed_kernels() {
#ifdef LEACE_FAST_X86
  if (instruction_set() >= InstructionSet::AMX) return &amx_kernels;
#endif
  return nullptr;
}

template <typename Row>
const RowKernels<Row>& plain_kernels() {
  const Kernels& all = kernels_in_use();
  if constexpr (std::is_same_v<Row, float>) return all.float32;
  else if constexpr (std::is_same_v<Row, double>) return all.float64;
  else if constexpr (std::is_same_v<Row, bfloat16>) return all.bfloat16_;
  else return all.float16_;
}

inline int64_t packed_size(int64_t dim, int64_t rank) {
  return packed_kernels() == nullptr ? 0 : packed_kernels()->size(dim, rank);
}

template <typename Row>
bool uses_packed(const leace_fast_factors& factors) {
  return sizeof(Row) == 2 && factors.packed != nullptr && packed_size(factors.dim, factors.rank) > 0;
}

template <typename Row>
const RowKernels<Row>& kernels(bool packed) {
  if constexpr (std::is_same_v<Row, bfloat16>) {
    if (packed) return packed_kernels()->bfloat16_;
  } else if constexpr (std::is_same_v<Row, float16>) {
    if (packed) return packed_kernels()->float16_;
  }
  return plain_kernels<Row>();
}

}  // namespace leace_fast::cpu
