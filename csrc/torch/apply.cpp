// The operators of the apply, and their kernels for the CPU.
//
// Only torch's stable ABI is used: it compiles in seconds, and one build serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "leace_fast.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t MAX_DIMS = 64;

leace_fast_dtype dtype_of(const Tensor& rows) {
  switch (rows.scalar_type()) {
    case ScalarType::Float:
      return LEACE_FAST_FLOAT32;
    case ScalarType::Double:
      return LEACE_FAST_FLOAT64;
    case ScalarType::BFloat16:
      return LEACE_FAST_BFLOAT16;
    case ScalarType::Half:
      return LEACE_FAST_FLOAT16;
    default:
      STD_TORCH_CHECK(false, "project: rows, weight and bias must be float32, float64, bfloat16 or float16");
  }
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

const void* data(const Optional& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }

Optional dense(const Optional& x) { return x.has_value() ? Optional(dense(*x)) : x; }

// Rows as the kernels take them: the distance from each to the next, or none where no one distance serves.
std::optional<int64_t> row_stride(const Tensor& x) {
  const int64_t dims = x.dim();
  const auto sizes = x.sizes(), strides = x.strides();
  if (sizes[dims - 1] > 1 && strides[dims - 1] != 1) return std::nullopt;
  std::optional<int64_t> stride;  // of the innermost dimension that has more than one row
  int64_t rows = 1;
  for (int64_t i = dims - 2; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (!stride.has_value()) stride = strides[i];
    if (strides[i] != *stride * rows) return std::nullopt;
    rows *= sizes[i];
  }
  return stride.value_or(sizes[dims - 1]);
}

// x itself if its rows lie at one distance, else a dense copy.
Tensor regular(const Tensor& x) { return row_stride(x).has_value() ? x : torch::stable::contiguous(x); }

// The factors of one call, checked, and held for as long as the kernels need them.
struct Factors {
  Tensor left_t, right;
  Optional mean, index;
  leace_fast_factors plain;

  Factors(const Tensor& x, const Tensor& left, const Tensor& right_, const Optional& mean_, const Optional& index_) {
    const int64_t stack = index_.has_value() ? 1 : 0;
    STD_TORCH_CHECK(x.dim() >= 1 && left.dim() == 2 + stack && right_.dim() == 2 + stack,
                    "project: expected x (..., d), left (d, k) and right (k, d), stacked where there is an index");
    const int64_t dim = x.size(x.dim() - 1), rank = right_.size(stack), erasers = stack ? left.size(0) : 1;
    STD_TORCH_CHECK(left.size(stack) == dim && left.size(stack + 1) == rank && right_.size(stack + 1) == dim &&
                        (!stack || right_.size(0) == erasers),
                    "project: the shapes of x, left and right do not fit");
    const auto compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(left.scalar_type() == compute && right_.scalar_type() == compute,
                    "project: left and right must be float64 for float64 rows, and float32 for all others");
    if (mean_.has_value())
      STD_TORCH_CHECK(mean_->dim() == 1 + stack && mean_->size(stack) == dim && mean_->scalar_type() == compute &&
                          (!stack || mean_->size(0) == erasers),
                      "project: mean must be (d,), or (E, d), and of the dtype of left");
    if (index_.has_value()) {
      bool fits = index_->scalar_type() == ScalarType::Long && index_->dim() == x.dim() - 1;
      for (int64_t i = 0; fits && i + 1 < x.dim(); ++i) fits = index_->size(i) == x.size(i);
      STD_TORCH_CHECK(fits, "project: index must be int64, of the leading shape of x");
    }
    // Kept as the transpose of a contiguous (k, d), `left` is read as it lies.
    const bool by_rank = (left.stride(stack) == 1 || dim == 1) && (left.stride(stack + 1) == dim || rank == 1) &&
                         (!stack || left.stride(0) == dim * rank || erasers == 1);
    left_t = by_rank ? left : dense(torch::stable::transpose(left, stack, stack + 1));
    right = dense(right_);
    mean = dense(mean_);
    index = dense(index_);
    plain = {left_t.const_data_ptr(), right.const_data_ptr(), data(mean), dim, rank, erasers};
  }

  const int64_t* numbers() const { return static_cast<const int64_t*>(data(index)); }
};

void parallel_for(int64_t begin, int64_t end, int64_t grain, leace_fast_body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

void check(leace_fast_status status) {
  STD_TORCH_CHECK(status != LEACE_FAST_BAD_INDEX, "project: index names an eraser that is not there");
  STD_TORCH_CHECK(status == LEACE_FAST_OK, "project: out of memory");
}

int64_t count_rows(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

void project_into(const Tensor& from, const Tensor& to, const Factors& factors) {
  if (factors.plain.dim == 0) return;
  check(leace_fast_project(dtype_of(from), from.const_data_ptr(), *row_stride(from), to.mutable_data_ptr(),
                           *row_stride(to), count_rows(from), &factors.plain, factors.numbers(), &parallel_for));
}

// Dense and not yet written; straight to the allocator, for a call by name costs as much as the work on one row.
Tensor empty_rows(const Tensor& like) {
  const auto sizes = like.sizes();
  std::array<int64_t, MAX_DIMS> strides;
  const int64_t dims = like.dim();
  STD_TORCH_CHECK(dims <= MAX_DIMS, "project: x has ", dims, " dimensions, expected at most ", MAX_DIMS);
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Tensor project(const Tensor& x, const Tensor& left, const Tensor& right, const Optional& mean, const Optional& index) {
  const Factors factors(x, left, right, mean, index);
  const Tensor from = regular(x);
  Tensor to = empty_rows(x);
  project_into(from, to, factors);
  return to;
}

void project_(const Tensor& x, const Tensor& left, const Tensor& right, const Optional& mean, const Optional& index) {
  const Factors factors(x, left, right, mean, index);
  for (int64_t i = 0; i < x.dim(); ++i)
    STD_TORCH_CHECK(x.stride(i) != 0 || x.size(i) < 2, "project_: x is expanded, its rows share memory");
  if (row_stride(x).has_value()) return project_into(x, x, factors);
  Tensor copy = torch::stable::contiguous(x), target = x;
  project_into(copy, copy, factors);
  torch::stable::copy_(target, copy);
}

Optional widened(const Optional& part, const Tensor& x, const char* name) {
  if (!part.has_value()) return part;
  dtype_of(*part);
  STD_TORCH_CHECK(part->dim() == 1 && part->size(0) == x.size(x.dim() - 1), name, " must be (d,)");
  const auto compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return dense(part->scalar_type() == compute ? *part : torch::stable::to(*part, compute));
}

std::tuple<Tensor, Tensor> add_norm_project(const Tensor& x, const Optional& residual, leace_fast_norm norm,
                                            const Optional& weight, const Optional& bias, const Factors& factors) {
  const Optional scale = widened(weight, x, "weight"), shift = widened(bias, x, "bias");
  norm.weight = data(scale);
  norm.bias = data(shift);
  const Tensor from = regular(x);
  Tensor y = empty_rows(x);
  Tensor summed = residual.has_value() ? empty_rows(x) : torch::stable::new_empty(x, {0});
  Optional added;
  if (residual.has_value()) {
    bool fits = residual->scalar_type() == x.scalar_type() && residual->dim() == x.dim();
    for (int64_t i = 0; fits && i < x.dim(); ++i) fits = residual->size(i) == x.size(i);
    STD_TORCH_CHECK(fits, "residual must have the shape and dtype of x");
    added = regular(*residual);
  }
  if (factors.plain.dim > 0)
    check(leace_fast_add_norm_project(
        dtype_of(x), from.const_data_ptr(), *row_stride(from), data(added), added ? *row_stride(*added) : 0,
        added ? summed.mutable_data_ptr() : nullptr, added ? *row_stride(summed) : 0, y.mutable_data_ptr(),
        *row_stride(y), count_rows(x), &norm, &factors.plain, factors.numbers(), &parallel_for));
  return {y, summed};
}

std::tuple<Tensor, Tensor> add_rms_norm_project(const Tensor& x, const Optional& residual, const Optional& weight,
                                                double eps, const Tensor& left, const Tensor& right,
                                                const Optional& mean, const Optional& index, double weight_offset) {
  const leace_fast_norm norm{0, nullptr, nullptr, eps, weight_offset};
  return add_norm_project(x, residual, norm, weight, std::nullopt, Factors(x, left, right, mean, index));
}

std::tuple<Tensor, Tensor> add_layer_norm_project(const Tensor& x, const Optional& residual, const Optional& weight,
                                                  const Optional& bias, double eps, const Tensor& left,
                                                  const Tensor& right, const Optional& mean, const Optional& index) {
  const leace_fast_norm norm{1, nullptr, nullptr, eps, 0.0};
  return add_norm_project(x, residual, norm, weight, bias, Factors(x, left, right, mean, index));
}

}  // namespace

// Rows x (..., d); left (d, k), right (k, d), mean (d,). With `index`, an eraser's number for each row and -1 for none,
// the factors are stacked: (E, d, k), (E, k, d), (E, d). The second output of the norms is x + residual, and empty
// where there is no residual.
STABLE_TORCH_LIBRARY(leace_fast, m) {
  m.def("project(Tensor x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None) -> Tensor");
  m.def("project_(Tensor(a!) x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None) -> ()");
  m.def(
      "add_rms_norm_project(Tensor x, Tensor? residual, Tensor? weight, float eps, Tensor left, Tensor right, "
      "Tensor? mean=None, Tensor? index=None, float weight_offset=0.0) -> (Tensor, Tensor)");
  m.def(
      "add_layer_norm_project(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, Tensor left, "
      "Tensor right, Tensor? mean=None, Tensor? index=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(leace_fast, CPU, m) {
  m.impl("project", TORCH_BOX(&project));
  m.impl("project_", TORCH_BOX(&project_));
  m.impl("add_rms_norm_project", TORCH_BOX(&add_rms_norm_project));
  m.impl("add_layer_norm_project", TORCH_BOX(&add_layer_norm_project));
}

// Read by the package with ctypes, for `leace-fast doctor`.
extern "C" __attribute__((visibility("default"))) const char* leace_fast_torch_version() { return TORCH_VERSION; }
