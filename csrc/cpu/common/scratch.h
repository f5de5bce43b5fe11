// Small things that all instruction sets share. Nothing here is compiled for any of them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

#define INLINE __attribute__((always_inline)) inline
// For large loops that many kernels share: a copy in each would take minutes to compile.
#define NOINLINE __attribute__((noinline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

namespace leace_fast::cpu {

template <int VALUE>
struct Constant {
  static constexpr int value = VALUE;
  constexpr operator int64_t() const { return VALUE; }
};

// Memory that grows and is kept until its thread ends.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  __attribute__((noinline)) void* at_least(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      const int64_t unit = bytes < HUGE_PAGE ? 4096 : HUGE_PAGE;
      size_ = (bytes + unit - 1) / unit * unit;
      memory_ = std::aligned_alloc(unit, size_);
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
#ifdef __linux__
      if (unit == HUGE_PAGE) madvise(memory_, size_, MADV_HUGEPAGE);
#endif
    }
    return memory_;
  }

 private:
  static constexpr int64_t HUGE_PAGE = 2 << 20;
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

// Memory that a thread keeps, for the innermost function that asks: fresh pages would cost more than the work on a few
// rows. Static, since each file is compiled for another instruction set.
template <typename Number>
static Number* scratch(int64_t bytes) {
  static thread_local Scratch kept;
  return static_cast<Number*>(kept.at_least(bytes));
}

}  // namespace leace_fast::cpu
