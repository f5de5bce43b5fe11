// Small things that all instruction sets share. Nothing here is compiled for any of them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

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
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, size_);
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace leace_fast::cpu
