// y = x - ((x - mean) R') L' row by row: the kernels, behind plain pointers. No torch header here, so that
// they compile and are inspected anywhere a compiler is.
#pragma once

#include <cstdint>

namespace leace_fast {

// Storage only: the bits of a number; all arithmetic is in the factors' dtype.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The factors of one eraser. All are contiguous; `mean` may be null, which stands for zeros.
template <typename Factor>
struct Factors {
  const Factor* left_t;  // (rank, dim): the transpose of `left`, so that both factors are read along rows
  const Factor* right;   // (rank, dim)
  const Factor* mean;    // (dim)
  int64_t dim;
  int64_t rank;
};

namespace cpu {

// Project `rows` contiguous rows of x into y, which may be x itself. Serial: the caller splits the rows among
// threads. A row's bits depend on the row and the factors alone, never on its neighbours or on `rows`.
void project(const float* x, float* y, int64_t rows, const Factors<float>& factors);
void project(const double* x, double* y, int64_t rows, const Factors<double>& factors);
void project(const bfloat16* x, bfloat16* y, int64_t rows, const Factors<float>& factors);
void project(const float16* x, float16* y, int64_t rows, const Factors<float>& factors);

// The instruction set that the calls above run on here: "avx512", "avx2" or "baseline".
const char* instruction_set();

}  // namespace cpu
}  // namespace leace_fast
