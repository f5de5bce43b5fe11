// The instruction sets that kernels are compiled for, and the one in use: one for all kernels of this library.
#pragma once

#include <cstdint>

// Whether kernels for more than the least of processors are compiled. They need GCC, which compiles what stands behind
// `#pragma GCC target` for another processor: other compilers pass over that, and these kernels would be slow.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LEACE_FAST_X86 1
#endif

namespace leace_fast::cpu {

// Each holds those before it: where a set has no kernel of its own, that of the last one before it serves.
enum class InstructionSet : int64_t { BASELINE, AVX2, AVX512, AVX512BF16, AMX };

// "baseline", "avx2", "avx512", "avx512bf16" or "amx".
const char* name_of(InstructionSet set);

// The set in use: the last that is compiled and that this processor has, or the one that LEACE_FAST_CPU names in the
// environment. Chosen in the first call. Throws std::invalid_argument where that name is none of a set that runs here.
InstructionSet instruction_set();

// The set of that number. Throws std::invalid_argument if it is neither the one in use nor one before it.
InstructionSet instruction_set(int64_t number);

struct Feature {
  const char* name;
  InstructionSet needed_by;  // that set, and all after it
  bool present;
};

struct Features {
  const Feature *first, *last;
  const Feature* begin() const { return first; }
  const Feature* end() const { return last; }
};

// What of the processor any kernel here may use, present or not.
Features features();

}  // namespace leace_fast::cpu
