// What the processor can do, asked once.
#pragma once

namespace leace_fast::cpu {

struct Feature {
  const char* name;
  bool present;
};

struct Features {
  const Feature* begin;
  const Feature* end;
};

// The features that any kernel here may use, present or not.
Features features();

// Whether all of the features that `set` needs are present, and may be used: "amx", "avx512bf16", "avx512", "avx2" or
// "baseline".
// LEACE_FAST_CPU in the environment, one of these names, keeps the kernels from the sets above it.
bool has_instruction_set(const char* set);

}  // namespace leace_fast::cpu
