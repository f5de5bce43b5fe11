// What one instruction set gives: the work on some rows of one eraser.
#pragma once

#include <cstdint>

#include "../common/number_formats.h"
#include "../common/processor.h"

namespace leace_fast::cpu {

// One eraser; `mean` may be null, and so may `packed`: the factors once more, as the matrix units take them.
template <typename Number>
struct Eraser {
  const Number* left_t;  // (rank, dim)
  const Number* right;   // (rank, dim)
  const Number* mean;    // (dim)
  const void* packed;
  int64_t dim;
  int64_t rank;
};

// Rows by number: `order[i]` is the number of row i, or i itself where it is null.
template <typename Row>
struct RowView {
  Row* data;
  int64_t stride;
  const int64_t* order;
  Row* operator[](int64_t i) const { return data + (order == nullptr ? i : order[i]) * stride; }
};

template <typename Number>
struct Norm {
  bool layer;
  const Number* weight;  // (dim), may be null
  const Number* bias;    // (dim), may be null
  double eps;
  Number weight_offset;
};

// The functions for rows of one dtype. All are serial, and each gives a row the same bits however rows, ranks and
// columns are divided among calls.
template <typename Row>
struct RowKernels {
  using Number = Compute<Row>;

  // Erase rows begin..end of x into y, which may be x.
  void (*project)(RowView<const Row> x, RowView<Row> y, int64_t begin, int64_t end, const Eraser<Number>& eraser);

  // The same in two steps, for a few rows and many threads: coordinates (end - begin, rank) of all rows in the ranks
  // first..last; then, when all are there, the columns first..last of y.
  void (*coordinates)(RowView<const Row> x, int64_t begin, int64_t end, const Eraser<Number>& eraser, int64_t first,
                      int64_t last, Number* coordinates);
  void (*subtract)(RowView<const Row> x, RowView<Row> y, int64_t begin, int64_t end, const Eraser<Number>& eraser,
                   int64_t first, int64_t last, const Number* coordinates);

  // summed = x + residual (or x, if residual.data is null), y = erased norm of summed; begin..end as above.
  void (*norm)(RowView<const Row> x, RowView<const Row> residual, RowView<Row> summed, RowView<Row> y, int64_t begin,
               int64_t end, const Norm<Number>& norm, const Eraser<Number>& eraser);
};

struct Kernels {
  RowKernels<float> float32;
  RowKernels<double> float64;
  RowKernels<bfloat16> bfloat16_;
  RowKernels<float16> float16_;
};

// The functions for rows of 16-bit numbers and erasers whose factors are packed, without those for norms: again the
// same bits for a row however they are called, if ranks and columns are divided at multiples of 16.
struct PackedKernels {
  int64_t (*size)(int64_t dim, int64_t rank);  // bytes; 0 where the other kernels serve as well
  void (*pack)(const Eraser<float>& eraser, uint32_t* to);
  RowKernels<bfloat16> bfloat16_;
  RowKernels<float16> float16_;
};

extern const Kernels baseline_kernels;
#ifdef LEACE_FAST_X86
extern const Kernels avx2_kernels, avx512_kernels;
extern const PackedKernels amx_kernels;
#endif

}  // namespace leace_fast::cpu
