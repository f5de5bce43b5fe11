// Residual add, RMSNorm, erasure: one pass.
#include "launch.cuh"

namespace leace_fast::cuda {

cudaError_t add_rms_norm_project(RowType type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows,
                                 const NormWeights& norm, const Factors& factors, cudaStream_t stream) {
  return launch_add_norm<Norm::rms>(type, x, residual, y, summed, rows, norm, factors, stream);
}

}  // namespace leace_fast::cuda
