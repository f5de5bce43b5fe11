#include "processor.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace leace_fast::cpu {
namespace {

#if defined(__x86_64__)
#define LEACE_FAST_FEATURE(name) {name, __builtin_cpu_supports(name) != 0}
const Feature* list() {
  static const Feature found[] = {
      LEACE_FAST_FEATURE("avx2"),     LEACE_FAST_FEATURE("fma"),        LEACE_FAST_FEATURE("f16c"),
      LEACE_FAST_FEATURE("avx512f"),  LEACE_FAST_FEATURE("avx512bw"),   LEACE_FAST_FEATURE("avx512cd"),
      LEACE_FAST_FEATURE("avx512dq"), LEACE_FAST_FEATURE("avx512vl"),   LEACE_FAST_FEATURE("avx512bf16"),
      LEACE_FAST_FEATURE("amx-tile"), LEACE_FAST_FEATURE("amx-bf16"),
      {nullptr, false},
  };
  return found;
}
#else
const Feature* list() {
  static const Feature found[] = {{nullptr, false}};
  return found;
}
#endif

bool has(const char* name) {
  const Features all = features();
  for (const Feature* feature = all.begin; feature != all.end; ++feature)
    if (std::strcmp(feature->name, name) == 0) return feature->present;
  return false;
}

template <typename... Names>
bool has_all(Names... names) {
  return (has(names) && ...);
}

// Linux lends the tile registers to processes that ask.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  static const bool permitted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return permitted;
#else
  return false;
#endif
}

}  // namespace

Features features() {
  const Feature* end = list();
  while (end->name != nullptr) ++end;
  return {list(), end};
}

bool has_instruction_set(const char* set) {
  const char* sets[] = {"amx", "avx512bf16", "avx512", "avx2", "baseline"};
  const char* highest = std::getenv("LEACE_FAST_CPU");
  bool allowed = highest == nullptr || *highest == '\0';
  for (const char* each : sets) {
    allowed = allowed || std::strcmp(each, highest) == 0;
    if (std::strcmp(each, set) == 0) break;
  }
  if (std::strcmp(set, "baseline") == 0) return true;
  if (!allowed || !has_all("avx2", "fma", "f16c")) return false;
  if (std::strcmp(set, "avx2") == 0) return true;
  if (!has_all("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")) return false;
  if (std::strcmp(set, "avx512") == 0) return true;
  if (!has("avx512bf16")) return false;
  if (std::strcmp(set, "avx512bf16") == 0) return true;
  return std::strcmp(set, "amx") == 0 && has_all("amx-tile", "amx-bf16") && may_use_tiles();
}

}  // namespace leace_fast::cpu
