// The few things that only the device can do, each in one function. For tests without a GPU, the kernels compile with
// an emulator of the same functions instead.
#pragma once

#include <cstdint>

#ifdef LEACE_FAST_EMULATOR
#include "cuda_emulator.h"
#else

namespace leace_fast::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

struct alignas(8) Pair {
  float low, high;
};

__device__ __forceinline__ int thread_index() { return int(threadIdx.x); }
__device__ __forceinline__ int64_t block_index() { return int64_t(blockIdx.x); }

__device__ __forceinline__ char* shared_memory() {
  extern __shared__ Vector memory[];
  return reinterpret_cast<char*>(memory);
}

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Arriving publishes what this block wrote; having waited, a block sees what all blocks of its cluster published.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// The same place in the shared memory of another block of the cluster.
template <typename T>
__device__ __forceinline__ const T* peer(const T* mine, int block) {
#if __CUDA_ARCH__ >= 900
  const T* theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(block));
  return theirs;
#else
  return mine;
#endif
}

// sum += a b for a tile of 16 rows, 16 products deep, 8 columns wide.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers rounded to the nearest, the first in the low half.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ uint32_t pack_float16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float widen_float16(uint32_t bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(uint16_t(bits)));
  return wide;
}
__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t as_bits(float value) { return __float_as_uint(value); }

// Keeps the compiler from computing many addresses ahead of a loop, in registers that the sums need.
__device__ __forceinline__ int64_t compute_here(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}
__device__ __forceinline__ int compute_here(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Division and square root rounded to the nearest, whatever the compiler's flags.
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float square_root(float a) { return __fsqrt_rn(a); }

__device__ __forceinline__ void add_one(unsigned long long* counter) { atomicAdd(counter, 1ull); }

}  // namespace leace_fast::cuda
#endif
