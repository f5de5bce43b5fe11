#include "processor.h"

#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace leace_fast::cpu {

#ifdef LEACE_FAST_X86
#define LEACE_FAST_FEATURE(name, set) {name, InstructionSet::set, __builtin_cpu_supports(name) != 0}

// As the files of the kernels say in their `#pragma GCC target`.
Features features() {
  static const Feature found[] = {
      LEACE_FAST_FEATURE("avx2", AVX2),
      LEACE_FAST_FEATURE("fma", AVX2),
      LEACE_FAST_FEATURE("f16c", AVX2),
      LEACE_FAST_FEATURE("avx512f", AVX512),
      LEACE_FAST_FEATURE("avx512bw", AVX512),
      LEACE_FAST_FEATURE("avx512cd", AVX512),
      LEACE_FAST_FEATURE("avx512dq", AVX512),
      LEACE_FAST_FEATURE("avx512vl", AVX512),
      LEACE_FAST_FEATURE("avx512bf16", AVX512BF16),
      LEACE_FAST_FEATURE("amx-tile", AMX),
      LEACE_FAST_FEATURE("amx-bf16", AMX),
  };
  return {std::begin(found), std::end(found)};
}

// Linux lends the tile registers to processes that ask.
static bool may_use_tiles() {
#ifdef SYS_arch_prctl
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  static const bool permitted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return permitted;
#else
  return false;
#endif
}

// Whether it is compiled, and this processor has it.
static bool runs_here(InstructionSet set) {
  for (const Feature& feature : features())
    if (feature.needed_by <= set && !feature.present) return false;
  return set < InstructionSet::AMX || may_use_tiles();
}
#else
Features features() { return {nullptr, nullptr}; }

static bool runs_here(InstructionSet set) { return set == InstructionSet::BASELINE; }
#endif

namespace {

constexpr const char* NAMES[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};
constexpr int COUNT = sizeof NAMES / sizeof *NAMES;

// Those above the one that is named are not even asked about: a process that was granted tiles is no longer quite as it
// was.
InstructionSet find(const std::string& name) {
  std::string known;
  for (int i = 0; i < COUNT && runs_here(InstructionSet(i)); ++i) {
    if (name == NAMES[i]) return InstructionSet(i);
    known += (i == 0 ? "" : ", ") + std::string(NAMES[i]);
  }
  throw std::invalid_argument("LEACE_FAST_CPU is '" + name + "', expected one that can run here: " + known);
}

InstructionSet choose() {
  const char* name = std::getenv("LEACE_FAST_CPU");
  if (name != nullptr && *name != '\0') return find(name);
  int set = COUNT - 1;
  while (!runs_here(InstructionSet(set))) --set;
  return InstructionSet(set);
}

}  // namespace

const char* name_of(InstructionSet set) { return NAMES[int(set)]; }

InstructionSet instruction_set() {
  static const InstructionSet once = choose();
  return once;
}

InstructionSet instruction_set(int64_t number) {
  const InstructionSet last = instruction_set();
  if (number < 0 || number > int64_t(last))
    throw std::invalid_argument("the instruction set has number " + std::to_string(number) + ", expected 0 to " +
                                std::to_string(int64_t(last)) + ", which is " + name_of(last));
  return InstructionSet(number);
}

}  // namespace leace_fast::cpu
