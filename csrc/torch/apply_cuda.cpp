// The kernels for CUDA behind the operators of apply.cpp. This file alone knows both torch and CUDA.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cuda/apply.h"
#include "operators.h"

// Declared by torch only to its own builds with CUDA, and exported by all of these.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace {

using namespace leace_fast;

void check(cudaError_t error) {
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                  "leace_fast: the CUDA kernels were not compiled for this GPU. Install again with its compute "
                  "capability in TORCH_CUDA_ARCH_LIST (8.0 and above), or set LEACE_FAST_EXT=0 to use plain torch");
  STD_TORCH_CHECK(error == cudaSuccess, "leace_fast: CUDA: ", cudaGetErrorString(error));
}

// Makes the device of a tensor current, and knows its stream, for as long as it lives.
class Launch {
 public:
  explicit Launch(const Tensor& x) : guard_(x.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

cuda::RowType row_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return cuda::RowType::float32;
    case ScalarType::BFloat16:
      return cuda::RowType::bfloat16;
    case ScalarType::Half:
      return cuda::RowType::float16;
    default:
      STD_TORCH_CHECK(false, "project: rows on CUDA must be float32, bfloat16 or float16");
  }
}

void check_device(const Tensor& x, const Tensor& other) {
  STD_TORCH_CHECK(other.is_cuda() && other.get_device_index() == x.get_device_index(),
                  "project: all arguments must be on the device of x");
}

cuda::Factors kernel_factors(const Tensor& x, const Factors& factors) {
  const auto& plain = factors.plain;
  STD_TORCH_CHECK(plain.rank >= 1 && plain.rank <= cuda::MAX_RANK, "project: on CUDA the rank must be 1 to ",
                  cuda::MAX_RANK);
  check_device(x, factors.left_t);
  check_device(x, factors.right);
  if (factors.mean.has_value()) check_device(x, *factors.mean);
  if (factors.index.has_value()) check_device(x, *factors.index);
  return {static_cast<const float*>(plain.left_t), static_cast<const float*>(plain.right),
          static_cast<const float*>(plain.mean),   factors.numbers(),
          plain.dim,                               plain.rank,
          plain.erasers};
}

cuda::Rows kernel_rows(const Tensor& x) { return {const_cast<void*>(x.const_data_ptr()), *row_stride(x)}; }

void project_into(const Tensor& from, const Tensor& to, const Factors& factors) {
  const Launch launch(from);
  check(cuda::project(row_type(from), kernel_rows(from), kernel_rows(to), count_rows(from),
                      kernel_factors(from, factors), launch.stream()));
}

using AddNormProject = decltype(&cuda::add_rms_norm_project);

std::tuple<Tensor, Tensor> add_norm_project(AddNormProject kernel, const Tensor& x, const Optional& residual,
                                            const Optional& weight, const Optional& bias, double eps,
                                            double weight_offset, const Factors& factors) {
  // Weights of the rows' own type are read as they are, all others as float32.
  const auto own = [&](const Optional& part) { return !part.has_value() || part->scalar_type() == x.scalar_type(); };
  const bool narrow = own(weight) && own(bias) && x.scalar_type() != ScalarType::Float;
  const auto read = [&](const Optional& part, const char* name) {
    if (part.has_value()) check_device(x, *part);
    return narrow ? checked_vector(part, x, name) : widened(part, x, name);
  };
  const Optional scale = read(weight, "weight"), shift = read(bias, "bias");
  const cuda::NormWeights norm{data(scale), data(shift), !narrow, float(weight_offset), float(eps)};
  check_residual(x, residual);
  Optional added;
  if (residual.has_value()) {
    check_device(x, *residual);
    added = regular(*residual);
  }
  const Tensor from = regular(x);
  const Tensor y = empty_rows(x);
  const Tensor summed = added.has_value() ? empty_rows(x) : torch::stable::new_empty(x, {0});
  const Launch launch(x);
  const cuda::Rows none{nullptr, 0};
  check(kernel(row_type(x), kernel_rows(from), added ? kernel_rows(*added) : none, kernel_rows(y),
               added ? kernel_rows(summed) : none, count_rows(x), norm, kernel_factors(x, factors), launch.stream()));
  return {y, summed};
}

std::tuple<Tensor, Tensor> add_rms_norm_project(const Tensor& x, const Optional& residual, const Optional& weight,
                                                double eps, const Tensor& left, const Tensor& right,
                                                const Optional& mean, const Optional& index, double weight_offset) {
  return add_norm_project(cuda::add_rms_norm_project, x, residual, weight, std::nullopt, eps, weight_offset,
                          Factors(x, left, right, mean, index));
}

std::tuple<Tensor, Tensor> add_layer_norm_project(const Tensor& x, const Optional& residual, const Optional& weight,
                                                  const Optional& bias, double eps, const Tensor& left,
                                                  const Tensor& right, const Optional& mean, const Optional& index) {
  return add_norm_project(cuda::add_layer_norm_project, x, residual, weight, bias, eps, 0.0,
                          Factors(x, left, right, mean, index));
}

int64_t take_unknown(const Tensor& on) {
  const Launch launch(on);
  unsigned long long count;
  check(cuda::take_unknown(&count));
  return int64_t(count);
}

}  // namespace

// Rows on the device of `on`, since the last call, whose index named no eraser: they came out as NaN. Waits for it.
STABLE_TORCH_LIBRARY_FRAGMENT(leace_fast, m) { m.def("take_unknown(Tensor on) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(leace_fast, CUDA, m) {
  m.impl("project", TORCH_BOX(&project<project_into>));
  m.impl("project_", TORCH_BOX(&project_<project_into>));
  m.impl("add_rms_norm_project", TORCH_BOX(&add_rms_norm_project));
  m.impl("add_layer_norm_project", TORCH_BOX(&add_layer_norm_project));
  m.impl("take_unknown", TORCH_BOX(&take_unknown));
}
