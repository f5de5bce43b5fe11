// Runs the CUDA kernels on the CPU, from their own sources, for tests on machines without a GPU.
//
// Threads are fibers that give way at barriers, shuffles and tensor-core instructions, in an order that a seed
// chooses: a missing barrier shows as a result that depends on the seed. Shared memory starts as NaN and is walled in;
// threads of a block that wait at different places stop the run. Tensor cores sum as pessimistically as measured ones.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoKernelImageForDevice = 209
};
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "none" : "refused"; }

template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}
template <typename T>
cudaError_t cudaMemcpyFromSymbol(void* to, const T& symbol, size_t bytes) {
  std::memcpy(to, &symbol, bytes);
  return cudaSuccess;
}
template <typename T>
cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t bytes) {
  std::memcpy(&symbol, from, bytes);
  return cudaSuccess;
}

namespace leace_fast::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

struct alignas(8) Pair {
  float low, high;
};

namespace emulator {

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "CUDA emulator: %s\n", why);
  std::abort();
}

// All of `size` threads arrive before any goes on; the same one may be used again at once.
struct Barrier {
  int size, arrived = 0;
  int64_t generation = 0;

  int64_t arrive() {
    const int64_t mine = generation;
    if (++arrived == size) arrived = 0, ++generation;
    return mine;
  }
};

// What the lanes of a warp hand to each other: each its operands and the place of its result.
struct Exchange {
  Barrier barrier{32};
  struct Lane {
    const uint32_t *a, *b;
    float* sum;
    float value;
  } lanes[32];
  float values[32];
};

struct Block {
  int64_t index;
  Barrier barrier;
  std::vector<Exchange> warps;
  std::vector<Vector> shared;  // a wall, the memory, a wall
  int running;
};

constexpr int WALL = 64;  // vectors
constexpr uint32_t STONE = 0x7fa5a5a5u;  // a NaN

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int thread, block;  // in its cluster
  int64_t cluster_ticket = -1;
  bool done = false;
};

struct Run {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;  // of one cluster
  Barrier cluster_barrier;
  Fiber* current = nullptr;
  bool moved = false;  // whether any fiber got further since the scheduler last looked
  std::function<void()> kernel;
};

inline Run* run = nullptr;
inline uint32_t seed = 0;

inline Block& this_block() { return run->blocks[size_t(run->current->block)]; }

template <typename Ready>
void wait_until(Ready&& ready) {
  while (!ready()) swapcontext(&run->current->context, &run->scheduler);
  run->moved = true;
}

inline void wait_at(Barrier& barrier) {
  const int64_t ticket = barrier.arrive();
  run->moved = true;
  wait_until([&] { return barrier.generation > ticket; });
}

inline void enter() {
  run->kernel();
  run->current->done = run->moved = true;
  --this_block().running;
}

// One cluster of blocks, to its end.
inline void run_cluster(std::function<void()> kernel, int64_t first_block, int blocks, int threads, int64_t shared_bytes) {
  Run here;
  run = &here;
  here.kernel = std::move(kernel);
  here.cluster_barrier.size = blocks * threads;
  const size_t vectors = size_t(shared_bytes + 15) / 16;
  const Vector stone{{STONE, STONE, STONE, STONE}};
  for (int b = 0; b < blocks; ++b)
    here.blocks.push_back({first_block + b, Barrier{threads}, std::vector<Exchange>(size_t(threads) / 32),
                           std::vector<Vector>(vectors + 2 * WALL, stone), threads});
  here.fibers.resize(size_t(blocks) * threads);
  constexpr size_t STACK = 64 << 10;
  for (size_t i = 0; i < here.fibers.size(); ++i) {
    Fiber& fiber = here.fibers[i];
    fiber.thread = int(i % threads);
    fiber.block = int(i / threads);
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, STACK};
    fiber.context.uc_link = &here.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  // With a seed, whole blocks or single warps run in any order, each as far as it gets while the others stand still.
  std::mt19937 random(seed);
  const size_t unit = seed % 2 ? size_t(threads) : 32;
  std::vector<size_t> units(here.fibers.size() / unit);
  std::iota(units.begin(), units.end(), 0);
  for (bool all_done = false; !all_done;) {
    if (seed != 0) std::shuffle(units.begin(), units.end(), random);
    const size_t turn = seed == 0 ? 0 : random() % 32;
    bool any_moved = false;
    all_done = true;
    for (const size_t u : units) {
      bool unit_done;
      do {
        here.moved = false;
        unit_done = true;
        for (size_t i = 0; i < unit; ++i) {
          Fiber& fiber = here.fibers[u * unit + (i ^ turn)];
          if (fiber.done) continue;
          here.current = &fiber;
          swapcontext(&here.scheduler, &fiber.context);
          unit_done = unit_done && fiber.done;
        }
        any_moved = any_moved || here.moved;
      } while (seed != 0 && here.moved && !unit_done);
      all_done = all_done && unit_done;
    }
    if (!all_done && !any_moved) stop("threads wait for each other at different barriers");
  }
  for (const Block& block : here.blocks)
    for (size_t i = 0; i < WALL; ++i)
      if (std::memcmp(&block.shared[i], &stone, 16) != 0 ||
          std::memcmp(&block.shared[WALL + vectors + i], &stone, 16) != 0)
        stop("a block wrote outside of its shared memory");
  run = nullptr;
}

// 16 exact products and the sum so far, cut off (never rounded) 24 places below the largest of them, then cut to
// float32: no tensor core measured so far keeps less.
__attribute__((optimize("O2"))) inline void multiply_add_tile(const Exchange::Lane (&lanes)[32]) {
  const auto value = [](uint32_t word, int half) {
    const uint32_t bits = half ? word & 0xffff0000u : word << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) {
        a[lane / 4 + i % 2 * 8][lane % 4 * 2 + half + i / 2 * 8] = value(lanes[lane].a[i], half);
        if (i < 2) b[lane % 4 * 2 + half + i * 8][lane / 4] = value(lanes[lane].b[i], half);
      }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& sum = lanes[row % 8 * 4 + column / 2].sum[row / 8 * 2 + column % 2];
      double addends[17] = {sum}, largest = std::abs(double(sum)), total = 0;
      bool finite = std::isfinite(sum);
      for (int deep = 0; deep < 16; ++deep) {
        addends[deep + 1] = double(a[row][deep]) * b[deep][column];
        finite = finite && std::isfinite(addends[deep + 1]);
        largest = std::max(largest, std::abs(addends[deep + 1]));
      }
      if (!finite || largest == 0) {
        for (double addend : addends) total += addend;
        sum = float(total);
        continue;
      }
      const double place = std::ldexp(1.0, std::ilogb(largest) - 24);
      for (double addend : addends) total += std::trunc(addend / place) * place;
      const float nearest = float(total);
      sum = std::abs(double(nearest)) > std::abs(total) ? std::nextafterf(nearest, 0.0f) : nearest;
    }
}

}  // namespace emulator

inline int thread_index() { return emulator::run->current->thread; }
inline int64_t block_index() { return emulator::this_block().index; }
inline char* shared_memory() { return reinterpret_cast<char*>(emulator::this_block().shared.data() + emulator::WALL); }
inline void sync_block() { emulator::wait_at(emulator::this_block().barrier); }

inline emulator::Exchange& this_warp() { return emulator::this_block().warps[size_t(thread_index() / 32)]; }

inline float shuffle_xor(float value, int mask) {
  emulator::Exchange& warp = this_warp();
  const int lane = thread_index() % 32;
  warp.lanes[lane].value = value;
  emulator::wait_at(warp.barrier);
  const float theirs = warp.lanes[lane ^ mask].value;
  emulator::wait_at(warp.barrier);
  return theirs;
}

inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::Exchange& warp = this_warp();
  warp.lanes[thread_index() % 32] = {a, b, sum, 0};
  if (warp.barrier.arrived == 31) emulator::multiply_add_tile(warp.lanes);
  emulator::wait_at(warp.barrier);
}

inline void cluster_arrive() {
  emulator::Fiber& fiber = *emulator::run->current;
  if (fiber.cluster_ticket >= 0) emulator::stop("arrived twice at the cluster's barrier without waiting");
  fiber.cluster_ticket = emulator::run->cluster_barrier.arrive();
  emulator::run->moved = true;
}
inline void cluster_wait() {
  emulator::Fiber& fiber = *emulator::run->current;
  if (fiber.cluster_ticket < 0) emulator::stop("waited at the cluster's barrier without arriving");
  emulator::wait_until([&] { return emulator::run->cluster_barrier.generation > fiber.cluster_ticket; });
  fiber.cluster_ticket = -1;
}
template <typename T>
const T* peer(const T* mine, int block) {
  const auto offset = reinterpret_cast<const char*>(mine) - shared_memory();
  emulator::Block& theirs = emulator::run->blocks.at(size_t(block));
  if (theirs.running == 0) emulator::stop("a block reads the memory of one that has ended");
  return reinterpret_cast<const T*>(reinterpret_cast<char*>(theirs.shared.data() + emulator::WALL) + offset);
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32_t round_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  return std::isnan(value) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline uint32_t pack_bfloat16(float low, float high) { return round_bfloat16(high) << 16 | round_bfloat16(low); }
inline uint32_t pack_float16(float low, float high) {
  const auto bits = [](float value) {
    const _Float16 narrow = _Float16(value);
    uint16_t out;
    std::memcpy(&out, &narrow, 2);
    return uint32_t(out);
  };
  return bits(high) << 16 | bits(low);
}
inline float widen_float16(uint32_t bits) {
  const uint16_t narrow = uint16_t(bits);
  _Float16 value;
  std::memcpy(&value, &narrow, 2);
  return float(value);
}
inline int64_t compute_here(int64_t value) { return value; }
inline int compute_here(int value) { return value; }
inline float divide(float a, float b) { return a / b; }
inline float square_root(float a) { return std::sqrt(a); }
inline void add_one(unsigned long long* counter) { ++*counter; }

}  // namespace leace_fast::cuda
