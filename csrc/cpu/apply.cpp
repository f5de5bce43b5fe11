// The functions of leace_fast.h: rows are sorted by eraser and divided among threads; the kernels do the rest.
#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "features.h"
#include "leace_fast.h"
#include "rows.h"

namespace leace_fast::cpu {
namespace {

// Handing work to another thread costs some microseconds: give it at least this many multiplications.
constexpr int64_t WORK_PER_THREAD = 1 << 18;
constexpr int64_t FEW_ROWS = 4;          // up to here threads divide ranks and columns
constexpr int64_t COLUMNS_OF_TASK = 64;  // a multiple of every number of lanes

struct Chosen {
  const char* name;
  const Kernels* kernels;
};

Chosen choose() {
#if defined(__x86_64__)
  if (has_instruction_set("avx512")) return {"avx512", &avx512_kernels};
  if (has_instruction_set("avx2")) return {"avx2", &avx2_kernels};
#endif
  return {"baseline", &baseline_kernels};
}

const Chosen& chosen() {
  static const Chosen once = choose();
  return once;
}

template <typename Row>
const RowKernels<Row>& kernels();
template <>
const RowKernels<float>& kernels() {
  return chosen().kernels->float32;
}
template <>
const RowKernels<double>& kernels() {
  return chosen().kernels->float64;
}
template <>
const RowKernels<bfloat16>& kernels() {
  return chosen().kernels->bfloat16_;
}
template <>
const RowKernels<float16>& kernels() {
  return chosen().kernels->float16_;
}

// Calls work(b, e) for ranges that cover begin..end.
template <typename Work>
void parallel(leace_fast_parallel_for parallel_for, int64_t end, int64_t grain, const Work& work) {
  if (parallel_for == nullptr || end <= grain) return work(0, end);
  const auto body = [](int64_t first, int64_t last, void* context) { (*static_cast<const Work*>(context))(first, last); };
  parallel_for(0, end, grain, body, const_cast<void*>(static_cast<const void*>(&work)));
}

// The rows by eraser: group 0 has none, group e + 1 has eraser e.
struct Groups {
  std::vector<int64_t> order;   // the numbers of the rows, group by group
  std::vector<int64_t> starts;  // of the groups, and the end

  // Returns false where `index` names an eraser that is not there.
  bool sort(const int64_t* index, int64_t rows, int64_t erasers) {
    starts.assign(erasers + 2, 0);
    for (int64_t row = 0; row < rows; ++row) {
      if (index[row] < -1 || index[row] >= erasers) return false;
      ++starts[index[row] + 2];
    }
    for (int64_t group = 0; group <= erasers; ++group) starts[group + 1] += starts[group];
    std::vector<int64_t> next(starts);
    order.resize(rows);
    for (int64_t row = 0; row < rows; ++row) order[next[index[row] + 1]++] = row;
    return true;
  }

  // Calls work(group, b, e) for the parts of groups that positions begin..end of `order` consist of.
  template <typename Work>
  void each(int64_t begin, int64_t end, const Work& work) const {
    auto group = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; ++group) {
      const int64_t stop = std::min(end, starts[group + 1]);
      if (begin < stop) work(group, begin, stop);
      begin = stop;
    }
  }
};

// The eraser of that number, or one of rank 0 for -1.
template <typename Number>
Eraser<Number> eraser(const leace_fast_factors& factors, int64_t number) {
  if (number < 0) return {nullptr, nullptr, nullptr, factors.dim, 0};
  const int64_t size = factors.rank * factors.dim;
  const auto* mean = static_cast<const Number*>(factors.mean);
  return {static_cast<const Number*>(factors.left_t) + number * size,
          static_cast<const Number*>(factors.right) + number * size,
          mean == nullptr ? nullptr : mean + number * factors.dim, factors.dim, factors.rank};
}

// Calls work(order, eraser's number, begin, end) for all rows, on many threads where there is enough to do.
template <typename Work>
leace_fast_status by_eraser(const int64_t* index, int64_t rows, const leace_fast_factors& factors,
                            leace_fast_parallel_for parallel_for, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, WORK_PER_THREAD / (factors.dim * (2 * factors.rank + 4) + 1));
  if (index == nullptr) {
    parallel(parallel_for, rows, grain,
             [&](int64_t begin, int64_t end) { work(static_cast<const int64_t*>(nullptr), 0, begin, end); });
    return LEACE_FAST_OK;
  }
  Groups groups;
  if (!groups.sort(index, rows, factors.erasers)) return LEACE_FAST_BAD_INDEX;
  parallel(parallel_for, rows, grain, [&](int64_t begin, int64_t end) {
    groups.each(begin, end, [&](int64_t group, int64_t first, int64_t last) {
      work(groups.order.data(), group - 1, first, last);
    });
  });
  return LEACE_FAST_OK;
}

// A few rows and large factors: threads divide the ranks, then the columns, and each reads a part of the factors.
template <typename Row>
void project_few(RowView<const Row> x, RowView<Row> y, int64_t rows, const Eraser<Compute<Row>>& eraser,
                 leace_fast_parallel_for parallel_for) {
  std::vector<Compute<Row>> coordinates(rows * eraser.rank);
  const auto grain = [&](int64_t work) { return std::max<int64_t>(1, WORK_PER_THREAD / (work * rows)); };
  parallel(parallel_for, eraser.rank, grain(eraser.dim), [&](int64_t first, int64_t last) {
    kernels<Row>().coordinates(x, 0, rows, eraser, first, last, coordinates.data());
  });
  const int64_t tasks = (eraser.dim + COLUMNS_OF_TASK - 1) / COLUMNS_OF_TASK;
  parallel(parallel_for, tasks, grain(eraser.rank * COLUMNS_OF_TASK), [&](int64_t first, int64_t last) {
    kernels<Row>().subtract(x, y, 0, rows, eraser, first * COLUMNS_OF_TASK,
                            std::min(last * COLUMNS_OF_TASK, eraser.dim), coordinates.data());
  });
}

template <typename Row>
leace_fast_status project(const void* from, int64_t x_stride, void* to, int64_t y_stride, int64_t rows,
                          const leace_fast_factors& factors, const int64_t* index,
                          leace_fast_parallel_for parallel_for) {
  const RowView<const Row> x{static_cast<const Row*>(from), x_stride, nullptr};
  const RowView<Row> y{static_cast<Row*>(to), y_stride, nullptr};
  if (index == nullptr && parallel_for != nullptr && rows <= FEW_ROWS &&
      rows * factors.dim * factors.rank >= WORK_PER_THREAD) {
    project_few(x, y, rows, eraser<Compute<Row>>(factors, 0), parallel_for);
    return LEACE_FAST_OK;
  }
  return by_eraser(index, rows, factors, parallel_for,
                   [&](const int64_t* order, int64_t number, int64_t begin, int64_t end) {
                     const RowView<const Row> in{x.data, x_stride, order};
                     const RowView<Row> out{y.data, y_stride, order};
                     if (number >= 0)
                       return kernels<Row>().project(in, out, begin, end, eraser<Compute<Row>>(factors, number));
                     if (in.data != out.data)
                       for (int64_t row = begin; row < end; ++row)
                         std::memcpy(out[row], in[row], factors.dim * sizeof(Row));
                   });
}

template <typename Row>
leace_fast_status add_norm_project(RowView<const Row> x, RowView<const Row> residual, RowView<Row> summed, RowView<Row> y,
                                   int64_t rows, const leace_fast_norm& norm, const leace_fast_factors& factors,
                                   const int64_t* index, leace_fast_parallel_for parallel_for) {
  using Number = Compute<Row>;
  const Norm<Number> typed{norm.layer != 0, static_cast<const Number*>(norm.weight),
                           static_cast<const Number*>(norm.bias), norm.eps,
                           static_cast<Number>(norm.weight_offset)};
  return by_eraser(index, rows, factors, parallel_for,
                   [&](const int64_t* order, int64_t number, int64_t begin, int64_t end) {
                     kernels<Row>().norm({x.data, x.stride, order}, {residual.data, residual.stride, order},
                                         {summed.data, summed.stride, order}, {y.data, y.stride, order}, begin, end,
                                         typed, eraser<Number>(factors, number));
                   });
}

// Returns work(a number of the dtype of rows).
template <typename Work>
leace_fast_status by_dtype(leace_fast_dtype dtype, const Work& work) {
  try {
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

const char* leace_fast_instruction_set(void) { return leace_fast::cpu::chosen().name; }
