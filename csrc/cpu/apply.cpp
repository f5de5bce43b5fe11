// The functions of leace_fast.h: rows are sorted by eraser and divided among threads; the kernels do the rest.
#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "leace_fast.h"
#include "processor.h"
#include "rows.h"

namespace leace_fast::cpu {
namespace {

// How work is divided among threads: handing it to another one costs some microseconds.
struct Division {
  int64_t work;      // multiplications that a thread is given at least
  int64_t rows;      // in one piece
  int64_t ranks;     // in one piece, where there are few rows, and threads divide ranks and columns
  int64_t few_rows;  // up to here they do
};
constexpr Division PLAIN{1 << 18, 1, 1, 4}, PACKED{1 << 18, 16, 16, 16};
constexpr int64_t FEW_ROWS_WORK = 1 << 16;  // then in place of `work`: factors are read for it, which takes longer
constexpr int64_t COLUMNS_OF_TASK = 64;  // a multiple of every number of lanes, and of a tile

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
const RowKernels<Row>& plain_kernels() {
  const Kernels& all = *chosen().kernels;
  if constexpr (std::is_same_v<Row, float>) return all.float32;
  else if constexpr (std::is_same_v<Row, double>) return all.float64;
  else if constexpr (std::is_same_v<Row, bfloat16>) return all.bfloat16_;
  else return all.float16_;
}

// Null where there are none on this machine.
const PackedKernels* packed_kernels() {
#ifdef LEACE_FAST_AMX
  static const bool present = has_instruction_set("amx");
  if (present) return &amx_kernels;
#endif
  return nullptr;
}

int64_t packed_size(int64_t dim, int64_t rank) {
  return packed_kernels() == nullptr ? 0 : packed_kernels()->size(dim, rank);
}

template <typename Row>
bool uses_packed(const leace_fast_factors& factors) {
  return sizeof(Row) == 2 && factors.packed != nullptr && packed_size(factors.dim, factors.rank) > 0;
}

template <typename Row>
const RowKernels<Row>& kernels(bool packed) {
  if constexpr (std::is_same_v<Row, bfloat16>) {
    if (packed) return packed_kernels()->bfloat16_;
  } else if constexpr (std::is_same_v<Row, float16>) {
    if (packed) return packed_kernels()->float16_;
  }
  return plain_kernels<Row>();
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

// Calls work(order, eraser's number, begin, end) for all rows, on many threads where there is enough to do.
template <typename Work>
leace_fast_status by_eraser(const int64_t* index, int64_t rows, const leace_fast_factors& factors, Division division,
                            leace_fast_parallel_for parallel_for, const Work& work) {
  Groups groups;
  if (index != nullptr && !groups.sort(index, rows, factors.erasers)) return LEACE_FAST_BAD_INDEX;
  const int64_t piece = division.rows, pieces = (rows + piece - 1) / piece;
  const int64_t work_of_piece = piece * (factors.dim * (2 * factors.rank + 4) + 1);
  parallel(parallel_for, pieces, std::max<int64_t>(1, division.work / work_of_piece), [&](int64_t first, int64_t last) {
    const int64_t begin = first * piece, end = std::min(last * piece, rows);
    if (index == nullptr) return work(static_cast<const int64_t*>(nullptr), 0, begin, end);
    groups.each(begin, end, [&](int64_t group, int64_t from, int64_t to) {
      work(groups.order.data(), group - 1, from, to);
    });
  });
  return LEACE_FAST_OK;
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
leace_fast_status add_norm_project(RowView<const Row> x, RowView<const Row> residual, RowView<Row> summed, RowView<Row> y,
                                   int64_t rows, const leace_fast_norm& norm, const leace_fast_factors& factors,
                                   const int64_t* index, leace_fast_parallel_for parallel_for) {
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

int64_t leace_fast_packed_size(int64_t dim, int64_t rank, int64_t erasers) {
  return erasers * leace_fast::cpu::packed_size(dim, rank);
}

void leace_fast_pack(const leace_fast_factors* factors, void* packed) {
  const int64_t size = leace_fast::cpu::packed_size(factors->dim, factors->rank);
  for (int64_t e = 0; size > 0 && e < factors->erasers; ++e)
    leace_fast::cpu::packed_kernels()->pack(leace_fast::cpu::eraser<float>(*factors, e),
                                            reinterpret_cast<uint32_t*>(static_cast<char*>(packed) + e * size));
}

const char* leace_fast_instruction_set(void) { return leace_fast::cpu::chosen().name; }
