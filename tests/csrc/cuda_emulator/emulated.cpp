// The kernels' own sources, compiled for the emulator, and entries for ctypes.
#include "cuda_emulator.h"
#include "plan.h"

namespace leace_fast::cuda {

inline Device device;
inline cudaError_t describe(Device* to) {
  *to = device;
  return cudaSuccess;
}

template <typename Kernel, typename Arguments>
cudaError_t start(Kernel kernel, const Plan& plan, const Arguments& arguments, cudaStream_t) {
  for (int64_t first = 0; first < plan.blocks; first += plan.cluster)
    emulator::run_cluster([&] { kernel(arguments); }, first, plan.cluster, THREADS, plan.layout.bytes);
  return cudaSuccess;
}

}  // namespace leace_fast::cuda

#include "add_layer_norm_project.cu"
#include "add_rms_norm_project.cu"
#include "project.cu"

using namespace leace_fast::cuda;

extern "C" {

void emulate(Device device_to_be, uint32_t seed) {
  device = device_to_be;
  emulator::seed = seed;
}

// norm: 0 none, 1 rms, 2 layer.
int run(int norm, int type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows, const NormWeights* weights,
        const Factors* factors) {
  const auto kind = RowType(type);
  if (norm == 0) return project(kind, x, y, rows, *factors, nullptr);
  const auto launch = norm == 1 ? add_rms_norm_project : add_layer_norm_project;
  return launch(kind, x, residual, y, summed, rows, *weights, *factors, nullptr);
}

unsigned long long unknown() {
  unsigned long long count = 0;
  take_unknown(&count);
  return count;
}

void plan(const Shape* shape, const Device* on, Plan* out) { *out = make_plan(*shape, *on); }
}
