// The sums of the statistics as torch operators, for narrow rows on the CPU; the statistics in Python check and
// call them.
#include "../cpu/moments/moments.h"
#include "threads.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <optional>

namespace {

using leace_fast::cpu::InstructionSet;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Handing work to another thread costs some microseconds: give it at least this many operations, and not many more.
constexpr int64_t LEAST_WORK = 1 << 17, MOST_WORK = 1 << 19;

void parallel(int64_t count, int64_t cost, const leace_fast::moments::Work& work) {
  const auto items = [&](int64_t operations) { return std::max<int64_t>(1, operations / std::max<int64_t>(cost, 1)); };
  leace_fast::threads::share(count, items(LEAST_WORK), items(MOST_WORK), work);
}

const double* doubles(const Tensor& tensor) { return static_cast<const double*>(tensor.const_data_ptr()); }
double* mutable_doubles(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

// Raises unless a tensor is one block of memory of these numbers: the kernels take bare pointers.
void check(const char* name, const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> shape) {
  bool fits = tensor.scalar_type() == type && tensor.is_contiguous() && tensor.is_cpu() &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) fits = fits && tensor.size(axis++) == size;
  STD_TORCH_CHECK(fits, name, " does not fit the rows: wrong dtype, shape or layout");
}

void check_weight(const std::optional<Tensor>& weight, int64_t rows) {
  if (weight.has_value()) check("weight", *weight, ScalarType::Double, {rows});
}

// Labels say where sums are written: one out of range would write elsewhere.
void check_labels(const Tensor& labels, int64_t rows, int64_t classes) {
  check("labels", labels, ScalarType::Long, {rows});
  const auto* values = static_cast<const int64_t*>(labels.const_data_ptr());
  uint64_t most = 0;  // a negative label is a large one
  for (int64_t row = 0; row < rows; ++row) most = std::max(most, static_cast<uint64_t>(values[row]));
  STD_TORCH_CHECK(rows == 0 || most < static_cast<uint64_t>(classes), "a label is out of range");
}

// Calls `function` with the rows of x, each of which must be contiguous.
template <typename Function>
auto with_rows(const Tensor& x, const std::optional<Tensor>& weight, const Function& function) {
  STD_TORCH_CHECK(x.dim() == 2 && (x.stride(1) == 1 || x.size(1) == 1), "expected rows (n, d), each contiguous");
  const double* weights = weight.has_value() ? doubles(*weight) : nullptr;
  const auto rows = [&]<typename Row>(const Row* data) {
    return function(leace_fast::moments::Rows<Row>{data, x.size(0), x.size(1), x.stride(0), weights});
  };
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return rows(static_cast<const float*>(x.const_data_ptr()));
    case ScalarType::BFloat16:
      return rows(static_cast<const leace_fast::bfloat16*>(x.const_data_ptr()));
    case ScalarType::Half:
      return rows(static_cast<const leace_fast::float16*>(x.const_data_ptr()));
    default:
      STD_TORCH_CHECK(false, "rows must be float32, bfloat16 or float16");
  }
}

bool all_finite(const Tensor& x, int64_t instruction_set) {
  const InstructionSet set = leace_fast::moments::with_kernels(instruction_set);
  return with_rows(x, std::nullopt, [&](const auto& rows) {
    std::atomic<bool> finite = true;
    parallel(rows.count, rows.dim / 16 + 1, [&](int64_t begin, int64_t end) {
      auto part = rows;
      part.x += begin * rows.stride;
      part.count = end - begin;
      if (!leace_fast::moments::all_finite(part, set)) finite = false;
    });
    return finite.load();
  });
}

void add_class_sums(Tensor sums, Tensor total, Tensor squares, const Tensor& x, const Tensor& labels,
                    const std::optional<Tensor>& weight, const Tensor& shift, int64_t instruction_set) {
  const InstructionSet set = leace_fast::moments::with_kernels(instruction_set);
  STD_TORCH_CHECK(x.dim() == 2 && sums.dim() == 2, "expected rows (n, d) and sums (k, d)");
  check("sums", sums, ScalarType::Double, {sums.size(0), x.size(1)});
  for (const auto& part : {total, squares, shift}) check("a vector", part, ScalarType::Double, {x.size(1)});
  check_weight(weight, x.size(0));
  check_labels(labels, x.size(0), sums.size(0));
  const leace_fast::moments::ColumnSums of_block{mutable_doubles(total), mutable_doubles(squares)};
  with_rows(x, weight, [&](const auto& rows) {
    constexpr int64_t UNIT = 64;  // columns: a cache line of any dtype, so that no two threads write the same one
    parallel((rows.dim + UNIT - 1) / UNIT, rows.count * UNIT / 2, [&](int64_t begin, int64_t end) {
      leace_fast::moments::add_class_sums(rows, static_cast<const int64_t*>(labels.const_data_ptr()), doubles(shift),
                                      mutable_doubles(sums), of_block, begin * UNIT,
                                      std::min(end * UNIT, rows.dim), set);
    });
  });
}

bool add_second_moment(Tensor second, const Tensor& x, const std::optional<Tensor>& weight, const Tensor& shift,
                       Tensor total, Tensor squares, int64_t instruction_set) {
  const InstructionSet set = leace_fast::moments::with_kernels(instruction_set);
  STD_TORCH_CHECK(x.dim() == 2, "expected rows (n, d)");
  check("second", second, ScalarType::Double, {x.size(1), x.size(1)});
  for (const auto& part : {total, squares, shift}) check("a vector", part, ScalarType::Double, {x.size(1)});
  check_weight(weight, x.size(0));
  const leace_fast::moments::ColumnSums of_rows{mutable_doubles(total), mutable_doubles(squares)};
  return with_rows(x, weight, [&](const auto& rows) {
    return leace_fast::moments::add_second_moment(rows, doubles(shift), of_rows, mutable_doubles(second),
                                                  second.stride(0), set, parallel);
  });
}

// As Tensor::copy_, which shares out the smallest of batches.
void copy_rows(Tensor to, const Tensor& x) {
  STD_TORCH_CHECK(to.dim() == 2 && to.is_cpu() && x.is_cpu() && to.scalar_type() == x.scalar_type() &&
                      x.dim() == 2 && to.size(0) == x.size(0) && to.size(1) == x.size(1) && to.is_contiguous(),
                  "copy_rows: expected rows (n, d) of one dtype");
  with_rows(x, std::nullopt, [&](const auto& rows) {
    const int64_t bytes = rows.dim * int64_t(sizeof(*rows.x));
    auto* target = static_cast<char*>(to.mutable_data_ptr());
    parallel(rows.count, rows.dim / 4 + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) std::memcpy(target + row * bytes, rows.x + row * rows.stride, bytes);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(leace_fast, m) {
  m.def("all_finite(Tensor x, int instruction_set) -> bool");
  m.def(
      "add_class_sums(Tensor(a!) sums, Tensor(b!) total, Tensor(c!) squares, Tensor x, Tensor labels, Tensor? weight, "
      "Tensor shift, int instruction_set) -> ()");
  m.def(
      "add_second_moment(Tensor(a!) second, Tensor x, Tensor? weight, Tensor shift, Tensor total, Tensor squares, "
      "int instruction_set) -> bool");
  m.def("copy_rows(Tensor(a!) to, Tensor x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(leace_fast, CPU, m) {
  m.impl("all_finite", TORCH_BOX(&all_finite));
  m.impl("add_class_sums", TORCH_BOX(&add_class_sums));
  m.impl("add_second_moment", TORCH_BOX(&add_second_moment));
  m.impl("copy_rows", TORCH_BOX(&copy_rows));
}
