// The functions of leace_fast.h: rows are sorted by eraser and divided among threads; the kernels do the rest.
#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "choice.h"
#include "division.h"
#include "leace_fast.h"

namespace leace_fast::cpu {
namespace {

// The eraser of that number, or one of rank 0 for -1.
template <typename Row>
Eraser<Compute<Row>> eraser(const leace_fast_factors& factors, int64_t number) {
  using Number = Compute<Row>;
  if (number < 0) return {nullptr, nullptr, nullptr, nullptr, factors.dim, 0};
  const int64_t size = factors.rank * factors.dim;
  const auto* mean = static_cast<const Number*>(factors.mean);
  const auto* packed = static_cast<const char*>(factors.packed);
  return {static_cast<const Number*>(factors.left_t) + number * size,
          static_cast<const Number*>(factors.right) + number * size,
          mean == nullptr ? nullptr : mean + number * factors.dim,
          packed == nullptr ? nullptr : packed + number * packed_size(factors.dim, factors.rank), factors.dim,
          factors.rank};
}

// A few rows and large factors: threads divide the ranks, then the columns, and each reads a part of the factors.
template <typename Row>
void project_few(RowView<const Row> x, RowView<Row> y, int64_t rows, const Eraser<Compute<Row>>& eraser, bool packed,
                 Division division, leace_fast_parallel_for parallel_for) {
  std::vector<Compute<Row>> coordinates(rows * eraser.rank);
  const auto divide = [&](int64_t count, int64_t piece, int64_t work_of_one, const auto& work) {
    const int64_t grain = std::max<int64_t>(1, FEW_ROWS_WORK / (piece * work_of_one * rows));
    parallel(parallel_for, (count + piece - 1) / piece, grain, [&](int64_t first, int64_t last) {
      work(first * piece, std::min(last * piece, count));
    });
  };
  const RowKernels<Row>& use = kernels<Row>(packed);
  divide(eraser.rank, division.ranks, eraser.dim, [&](int64_t first, int64_t last) {
    use.coordinates(x, 0, rows, eraser, first, last, coordinates.data());
  });
  divide(eraser.dim, COLUMNS_OF_TASK, eraser.rank, [&](int64_t first, int64_t last) {
    use.subtract(x, y, 0, rows, eraser, first, last, coordinates.data());
  });
}

template <typename Row>
leace_fast_status project(const void* from, int64_t x_stride, void* to, int64_t y_stride, int64_t rows,
                          const leace_fast_factors& factors, const int64_t* index,
                          leace_fast_parallel_for parallel_for) {
  const RowView<const Row> x{static_cast<const Row*>(from), x_stride, nullptr};
  const RowView<Row> y{static_cast<Row*>(to), y_stride, nullptr};
  const bool packed = uses_packed<Row>(factors);
  const Division division = packed ? PACKED : PLAIN;
  if (index == nullptr && parallel_for != nullptr && rows <= division.few_rows &&
      rows * factors.dim * factors.rank >= 2 * FEW_ROWS_WORK) {
    project_few(x, y, rows, eraser<Row>(factors, 0), packed, division, parallel_for);
    return LEACE_FAST_OK;
  }
  return by_eraser(index, rows, factors, division, parallel_for,
                   [&](const int64_t* order, int64_t number, int64_t begin, int64_t end) {
                     const RowView<const Row> in{x.data, x_stride, order};
                     const RowView<Row> out{y.data, y_stride, order};
                     if (number >= 0)
                       return kernels<Row>(packed).project(in, out, begin, end, eraser<Row>(factors, number));
                     if (in.data != out.data)
                       for (int64_t row = begin; row < end; ++row)
                         std::memcpy(out[row], in[row], factors.dim * sizeof(Row));
                   });
}

template <typename Row>
leace_fast_status add_norm_project(RowView<const Row> x, RowView<const Row> residual, RowView<Row> summed,
                                   RowView<Row> y, int64_t rows, const leace_fast_norm& norm,
                                   const leace_fast_factors& factors, const int64_t* index,
                                   leace_fast_parallel_for parallel_for) {
  using Number = Compute<Row>;
  const Norm<Number> typed{norm.layer != 0, static_cast<const Number*>(norm.weight),
                           static_cast<const Number*>(norm.bias), norm.eps,
                           static_cast<Number>(norm.weight_offset)};
  return by_eraser(index, rows, factors, PLAIN, parallel_for,
                   [&](const int64_t* order, int64_t number, int64_t begin, int64_t end) {
                     plain_kernels<Row>().norm({x.data, x.stride, order}, {residual.data, residual.stride, order},
                                         {summed.data, summed.stride, order}, {y.data, y.stride, order}, begin, end,
                                         typed, eraser<Row>(factors, number));
                   });
}

// Returns work(a number of the dtype of rows).
template <typename Work>
leace_fast_status by_dtype(leace_fast_dtype dtype, const Work& work) {
  try {
    instruction_set();  // throws, if it does, before anything is written
    switch (dtype) {
      case LEACE_FAST_FLOAT32:
        return work(float());
      case LEACE_FAST_FLOAT64:
        return work(double());
      case LEACE_FAST_BFLOAT16:
        return work(bfloat16());
      case LEACE_FAST_FLOAT16:
        return work(float16());
    }
    return LEACE_FAST_BAD_DTYPE;
  } catch (const std::bad_alloc&) {
    return LEACE_FAST_NO_MEMORY;
  } catch (const std::invalid_argument&) {
    return LEACE_FAST_BAD_CPU;
  }
}

// Returns work(), or `otherwise` if LEACE_FAST_CPU names no instruction set that runs here.
template <typename Result, typename Work>
Result unless_bad_cpu(Result otherwise, const Work& work) {
  try {
    return work();
  } catch (const std::invalid_argument&) {
    return otherwise;
  }
}

}  // namespace
}  // namespace leace_fast::cpu

using leace_fast::cpu::RowView;

leace_fast_status leace_fast_project(leace_fast_dtype dtype, const void* x, int64_t x_stride, void* y,
                                     int64_t y_stride, int64_t rows, const leace_fast_factors* factors,
                                     const int64_t* index, leace_fast_parallel_for parallel_for) {
  return leace_fast::cpu::by_dtype(dtype, [&](auto number) {
    return leace_fast::cpu::project<decltype(number)>(x, x_stride, y, y_stride, rows, *factors, index, parallel_for);
  });
}

leace_fast_status leace_fast_add_norm_project(leace_fast_dtype dtype, const void* x, int64_t x_stride,
                                              const void* residual, int64_t residual_stride, void* summed,
                                              int64_t summed_stride, void* y, int64_t y_stride, int64_t rows,
                                              const leace_fast_norm* norm, const leace_fast_factors* factors,
                                              const int64_t* index, leace_fast_parallel_for parallel_for) {
  return leace_fast::cpu::by_dtype(dtype, [&](auto number) {
    using Row = decltype(number);
    return leace_fast::cpu::add_norm_project<Row>(
        RowView<const Row>{static_cast<const Row*>(x), x_stride, nullptr},
        RowView<const Row>{static_cast<const Row*>(residual), residual_stride, nullptr},
        RowView<Row>{static_cast<Row*>(summed), summed_stride, nullptr},
        RowView<Row>{static_cast<Row*>(y), y_stride, nullptr}, rows, *norm, *factors, index, parallel_for);
  });
}

int64_t leace_fast_packed_size(int64_t dim, int64_t rank, int64_t erasers) {
  return leace_fast::cpu::unless_bad_cpu(int64_t(0),
                                         [&] { return erasers * leace_fast::cpu::packed_size(dim, rank); });
}

void leace_fast_pack(const leace_fast_factors* factors, void* packed) {
  const int64_t size = leace_fast_packed_size(factors->dim, factors->rank, 1);
  for (int64_t e = 0; size > 0 && e < factors->erasers; ++e)
    leace_fast::cpu::packed_kernels()->pack(leace_fast::cpu::eraser<float>(*factors, e),
                                            reinterpret_cast<uint32_t*>(static_cast<char*>(packed) + e * size));
}

const char* leace_fast_instruction_set(void) {
  return leace_fast::cpu::unless_bad_cpu(static_cast<const char*>(nullptr), [] {
    return leace_fast::cpu::name_of(leace_fast::cpu::instruction_set());
  });
}
