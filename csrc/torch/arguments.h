// Arguments of the operators, checked and brought into the shape that kernels take: the same for every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>

#include "leace_fast.h"

namespace leace_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t MAX_DIMS = 64;

inline leace_fast_dtype dtype_of(const Tensor& rows) {
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

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline const void* data(const Optional& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }

inline Optional dense(const Optional& x) { return x.has_value() ? Optional(dense(*x)) : x; }

// Rows as the kernels take them: the distance from each to the next, or none where no one distance serves.
inline std::optional<int64_t> row_stride(const Tensor& x) {
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
inline Tensor regular(const Tensor& x) { return row_stride(x).has_value() ? x : torch::stable::contiguous(x); }

// The factors of one call, checked, and held for as long as the kernels need them.
struct Factors {
  Tensor left_t, right;
  Optional mean, index, packed;
  leace_fast_factors plain;

  Factors(const Tensor& x, const Tensor& left, const Tensor& right_, const Optional& mean_, const Optional& index_,
          const Optional& packed_ = std::nullopt)
      : packed(packed_) {
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
    plain = {left_t.const_data_ptr(), right.const_data_ptr(), data(mean), dim, rank, erasers, nullptr};
  }

  const int64_t* numbers() const { return static_cast<const int64_t*>(data(index)); }
};

inline int64_t count_rows(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

// Dense and not yet written; straight to the allocator, for a call by name costs as much as the work on one row.
inline Tensor empty_rows(const Tensor& like) {
  const auto sizes = like.sizes();
  std::array<int64_t, MAX_DIMS> strides;
  const int64_t dims = like.dim();
  STD_TORCH_CHECK(dims <= MAX_DIMS, "project: x has ", dims, " dimensions, expected at most ", MAX_DIMS);
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  int32_t dtype, device, ordinal;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &ordinal));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype, device, ordinal, &made));
  return Tensor(made);
}

// Weight or bias of a norm, as it is.
inline Optional checked_vector(const Optional& part, const Tensor& x, const char* name) {
  if (!part.has_value()) return part;
  dtype_of(*part);
  STD_TORCH_CHECK(part->dim() == 1 && part->size(0) == x.size(x.dim() - 1), name, " must be (d,)");
  return dense(*part);
}

// The same in the dtype that rows are computed in.
inline Optional widened(const Optional& part, const Tensor& x, const char* name) {
  const Optional vector = checked_vector(part, x, name);
  const auto compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  if (!vector.has_value() || vector->scalar_type() == compute) return vector;
  return torch::stable::to(*vector, compute);
}

inline void check_residual(const Tensor& x, const Optional& residual) {
  if (!residual.has_value()) return;
  bool fits = residual->scalar_type() == x.scalar_type() && residual->dim() == x.dim();
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = residual->size(i) == x.size(i);
  STD_TORCH_CHECK(fits, "residual must have the shape and dtype of x");
}

inline void check_no_overlap(const Tensor& x) {
  if (x.numel() == 0) return;
  for (int64_t i = 0; i < x.dim(); ++i)
    STD_TORCH_CHECK(x.stride(i) != 0 || x.size(i) < 2, "project_: x is expanded, its rows share memory");
}

}  // namespace leace_fast
