// The operators of the apply, and their kernels for the CPU.
//
// Only torch's stable ABI is used: it compiles in seconds, and one build serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <tuple>

#include "operators.h"
#include "threads.h"

namespace {

using namespace leace_fast;

// Of the least that a thread is given, in one portion.
constexpr int64_t MOST_GRAINS = 4;

void parallel_for(int64_t begin, int64_t end, int64_t grain, leace_fast_body body, void* context) {
  threads::share(end - begin, grain, MOST_GRAINS * grain,
                 [&](int64_t first, int64_t last) { body(begin + first, begin + last, context); });
}

void check(leace_fast_status status) {
  STD_TORCH_CHECK(status != LEACE_FAST_BAD_INDEX, "project: index names an eraser that is not there");
  STD_TORCH_CHECK(status != LEACE_FAST_BAD_CPU, "LEACE_FAST_CPU names no instruction set that runs here");
  STD_TORCH_CHECK(status == LEACE_FAST_OK, "project: out of memory");
}

void project_into(const Tensor& from, const Tensor& to, const Factors& factors) {
  if (factors.plain.dim == 0) return;
  leace_fast_factors plain = factors.plain;
  if (factors.packed.has_value()) {
    STD_TORCH_CHECK(factors.packed->is_contiguous() && factors.packed->scalar_type() == ScalarType::Byte &&
                        factors.packed->numel() ==
                            leace_fast_packed_size(plain.dim, plain.rank, plain.erasers),
                    "project: packed does not fit the factors");
    plain.packed = data(factors.packed);
  }
  check(leace_fast_project(dtype_of(from), from.const_data_ptr(), *row_stride(from), to.mutable_data_ptr(),
                           *row_stride(to), count_rows(from), &plain, factors.numbers(), &parallel_for));
}

std::tuple<Tensor, Tensor> add_norm_project(const Tensor& x, const Optional& residual, leace_fast_norm norm,
                                            const Optional& weight, const Optional& bias, const Factors& factors) {
  const Optional scale = widened(weight, x, "weight"), shift = widened(bias, x, "bias");
  norm.weight = data(scale);
  norm.bias = data(shift);
  const Tensor from = regular(x);
  Tensor y = empty_rows(x);
  Tensor summed = residual.has_value() ? empty_rows(x) : torch::stable::new_empty(x, {0});
  check_residual(x, residual);
  const Optional added = residual.has_value() ? Optional(regular(*residual)) : residual;
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

STABLE_TORCH_LIBRARY(leace_fast, m) { define_operators(m); }

STABLE_TORCH_LIBRARY_IMPL(leace_fast, CPU, m) {
  m.impl("project", TORCH_BOX(&project<project_into>));
  m.impl("project_", TORCH_BOX(&project_<project_into>));
  m.impl("add_rms_norm_project", TORCH_BOX(&add_rms_norm_project));
  m.impl("add_layer_norm_project", TORCH_BOX(&add_layer_norm_project));
}

// Read by the package with ctypes: for `leace-fast doctor`, and for the kernels that are called past the dispatcher.
#define LEACE_FAST_EXPORT __attribute__((visibility("default")))
extern "C" {
LEACE_FAST_EXPORT int leace_fast_torch_interface() { return LEACE_FAST_INTERFACE; }
LEACE_FAST_EXPORT const char* leace_fast_torch_version() { return TORCH_VERSION; }
LEACE_FAST_EXPORT const char* leace_fast_torch_instruction_set() { return leace_fast_instruction_set(); }
LEACE_FAST_EXPORT leace_fast_parallel_for leace_fast_torch_threads() { return &parallel_for; }
LEACE_FAST_EXPORT int leace_fast_torch_held_up() { return threads::Patience::was_tried(); }
}
