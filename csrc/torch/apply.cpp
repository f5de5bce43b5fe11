// The operators of the apply, and their kernels for the CPU.
//
// Only torch's stable ABI is used: it compiles in seconds, and one build serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <optional>

#include "../project.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Handing work to another thread costs some microseconds: give it at least this many multiplications.
constexpr int64_t WORK_PER_THREAD = 1 << 18;

template <typename Row, typename Factor>
void project_into(const Tensor& x, const Tensor& y, const Tensor& left_t, const Tensor& right, const Tensor* mean) {
  const leace_fast::Factors<Factor> factors{
      static_cast<const Factor*>(left_t.const_data_ptr()), static_cast<const Factor*>(right.const_data_ptr()),
      mean == nullptr ? nullptr : static_cast<const Factor*>(mean->const_data_ptr()), right.size(1), right.size(0)};
  const auto* from = static_cast<const Row*>(x.const_data_ptr());
  auto* to = static_cast<Row*>(y.mutable_data_ptr());
  const int64_t rows = x.numel() / factors.dim;
  const int64_t work_per_row = factors.dim * (2 * factors.rank + 4);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, WORK_PER_THREAD / work_per_row),
                              [&](int64_t begin, int64_t end) {
                                leace_fast::cpu::project(from + begin * factors.dim, to + begin * factors.dim,
                                                         end - begin, factors);
                              });
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Tensor project(const Tensor& x, const Tensor& left, const Tensor& right, const std::optional<Tensor>& mean,
               const std::optional<Tensor>& index) {
  STD_TORCH_CHECK(!index.has_value(), "project: index is not supported yet");
  STD_TORCH_CHECK(x.dim() >= 1 && left.dim() == 2 && right.dim() == 2,
                  "project: expected x (..., d), left (d, k) and right (k, d)");
  const int64_t dim = x.size(x.dim() - 1), rank = right.size(0);
  STD_TORCH_CHECK(left.size(0) == dim && right.size(1) == dim && left.size(1) == rank, "project: x is ", dim,
                  " wide, left (", left.size(0), ", ", left.size(1), "), right (", rank, ", ", right.size(1), ")");
  const auto rows = x.scalar_type();
  const auto compute = rows == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(left.scalar_type() == compute && right.scalar_type() == compute,
                  "project: left and right must be float64 for float64 rows, and float32 for all others");
  if (mean.has_value())
    STD_TORCH_CHECK(mean->dim() == 1 && mean->size(0) == dim && mean->scalar_type() == compute,
                    "project: mean must be (d,) and of the dtype of left");

  const Tensor from = dense(x);
  Tensor to = torch::stable::empty_like(from);
  if (from.numel() == 0) return to;
  // Kept as the transpose of a contiguous (k, d), `left` is read as it lies.
  const bool lies_by_rank = left.stride(0) == 1 && left.stride(1) == dim;
  const Tensor left_t = lies_by_rank ? left : dense(torch::stable::transpose(left, 0, 1));
  const Tensor right_c = dense(right);
  const Tensor mean_c = mean.has_value() ? dense(*mean) : Tensor();
  const Tensor* centre = mean.has_value() ? &mean_c : nullptr;
  switch (rows) {
    case ScalarType::Float:
      project_into<float, float>(from, to, left_t, right_c, centre);
      break;
    case ScalarType::Double:
      project_into<double, double>(from, to, left_t, right_c, centre);
      break;
    case ScalarType::BFloat16:
      project_into<leace_fast::bfloat16, float>(from, to, left_t, right_c, centre);
      break;
    case ScalarType::Half:
      project_into<leace_fast::float16, float>(from, to, left_t, right_c, centre);
      break;
    default:
      STD_TORCH_CHECK(false, "project: rows must be float32, float64, bfloat16 or float16");
  }
  return to;
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

STABLE_TORCH_LIBRARY_IMPL(leace_fast, CPU, m) { m.impl("project", TORCH_BOX(&project)); }

// Read by the package with ctypes, for `leace-fast doctor`.
extern "C" __attribute__((visibility("default"))) const char* leace_fast_torch_version() { return TORCH_VERSION; }
