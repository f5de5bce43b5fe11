// The kernels of erasers whose factors lie packed, on matrix units.
#include <cmath>
#include <cstdint>
#include <utility>

#include "../common/scratch.h"
#include "kernels.h"

#ifdef LEACE_FAST_X86
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,amx-tile,amx-bf16")

namespace leace_fast::cpu {
namespace amx {
namespace {

#define VECTOR_BYTES 64
#include "../common/lanes.inl"
#include "../common/tiles.inl"

#include "packed.inl"

#include "amx.inl"

int64_t packed_size(int64_t dim, int64_t rank) {
  return rank < LEAST_RANK ? 0 : Layout(dim, rank).size * int64_t(sizeof(uint32_t));
}

template <typename Row>
constexpr RowKernels<Row> row_kernels() {
  return {&project<Row>, &coordinates<Row>, &subtract<Row>, nullptr};
}

}  // namespace
}  // namespace amx

extern const PackedKernels amx_kernels;
const PackedKernels amx_kernels = {&amx::packed_size, &amx::pack, amx::row_kernels<bfloat16>(),
                                   amx::row_kernels<float16>()};

}  // namespace leace_fast::cpu
#endif
