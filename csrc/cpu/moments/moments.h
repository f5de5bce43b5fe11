// Sums over rows for the statistics: class sums in float64, and the second moment of narrow rows. Behind plain
// pointers; no torch header. Every function is a fixed sequence of operations for each column, or each tile of the
// result: no bit depends on how many threads share the work.
#pragma once

#include <cstdint>
#include <functional>

#include "../common/number_formats.h"
#include "../common/processor.h"

namespace leace_fast::moments {

using cpu::InstructionSet;

// cpu::instruction_set(number), which has kernels: throws std::invalid_argument for the baseline too.
InstructionSet with_kernels(int64_t number);

// Calls work(begin, end) for ranges that cover 0..count, on any threads; an item costs about `cost` operations.
using Work = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t count, int64_t cost, const Work& work)>;

// Rows of which each is contiguous; `weight` may be null, which stands for ones.
template <typename Row>
struct Rows {
  const Row* x;
  int64_t count, dim, stride;
  const double* weight;
};

// Whether all entries are finite.
template <typename Row>
bool all_finite(const Rows<Row>& rows, InstructionSet set);

// The sums of a block of rows about `shift`, for each column.
struct ColumnSums {
  double* total;    // of w (x - shift)
  double* squares;  // of w (x - shift)^2
};

// Adds w (x - shift) to sums[label], for the columns begin..end, and to the sums of the block.
template <typename Row>
void add_class_sums(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums,
                    const ColumnSums& of_block, int64_t begin, int64_t end, InstructionSet set);

// Adds sum w (x - shift)(x - shift)' to the lower triangle of `second`, of which rows lie `second_stride` apart.
// Returns false, and adds nothing, where squares of x leave the range of float32. `of_rows` are the sums of these very
// rows. Packed, the rows take up to three times the memory of float32 rows, which is kept for the next call.
template <typename Row>
bool add_second_moment(const Rows<Row>& rows, const double* shift, const ColumnSums& of_rows, double* second,
                       int64_t second_stride, InstructionSet set, const Parallel& parallel);

}  // namespace leace_fast::moments
