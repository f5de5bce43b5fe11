// Compiles the loops of project_rows.h for each instruction set, and picks one when the library is loaded.
#include "../project.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "features.h"
#include "number_formats.h"

namespace leace_fast::cpu {
namespace baseline {
#include "project_rows.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LEACE_FAST_X86 1

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "project_rows.h"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
#include "project_rows.h"
}
#pragma GCC pop_options
#endif

namespace {

struct Kernels {
  const char* name;
  void (*float32)(const float*, float*, int64_t, const Factors<float>&);
  void (*float64)(const double*, double*, int64_t, const Factors<double>&);
  void (*bfloat16)(const struct bfloat16*, struct bfloat16*, int64_t, const Factors<float>&);
  void (*float16)(const struct float16*, struct float16*, int64_t, const Factors<float>&);
};

#define LEACE_FAST_KERNELS(set) \
  Kernels { #set, set::project_rows, set::project_rows, set::project_rows, set::project_rows }

Kernels choose() {
#ifdef LEACE_FAST_X86
  if (has_instruction_set("avx512")) return LEACE_FAST_KERNELS(avx512);
  if (has_instruction_set("avx2")) return LEACE_FAST_KERNELS(avx2);
#endif
  return LEACE_FAST_KERNELS(baseline);
}

const Kernels kernels = choose();

}  // namespace

void project(const float* x, float* y, int64_t rows, const Factors<float>& factors) {
  kernels.float32(x, y, rows, factors);
}

void project(const double* x, double* y, int64_t rows, const Factors<double>& factors) {
  kernels.float64(x, y, rows, factors);
}

void project(const bfloat16* x, bfloat16* y, int64_t rows, const Factors<float>& factors) {
  kernels.bfloat16(x, y, rows, factors);
}

void project(const float16* x, float16* y, int64_t rows, const Factors<float>& factors) {
  kernels.float16(x, y, rows, factors);
}

const char* instruction_set() { return kernels.name; }

}  // namespace leace_fast::cpu
