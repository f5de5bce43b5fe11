// The CUDA operators of torch for tensors on the CPU: csrc/torch/apply_cuda.cpp as it is, with the emulator behind it,
// in a library of another name. Compiled with -Dleace_fast=leace_fast_emulated.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY(leace_fast_emulated, m) {
  m.def("project(Tensor x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None) -> Tensor");
  m.def("project_(Tensor(a!) x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None) -> ()");
  m.def(
      "add_rms_norm_project(Tensor x, Tensor? residual, Tensor? weight, float eps, Tensor left, Tensor right, "
      "Tensor? mean=None, Tensor? index=None, float weight_offset=0.0) -> (Tensor, Tensor)");
  m.def(
      "add_layer_norm_project(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, Tensor left, "
      "Tensor right, Tensor? mean=None, Tensor? index=None) -> (Tensor, Tensor)");
}

#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard NoGuard
#include "apply_cuda.cpp"
