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

#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard NoGuard
#include "apply_cuda.cpp"

STABLE_TORCH_LIBRARY(leace_fast_emulated, m) { leace_fast_emulated::define_operators(m); }
