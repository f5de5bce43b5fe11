// Residual add, LayerNorm, erasure: one pass.
#include "launch.cuh"

namespace leace_fast::cuda {

cudaError_t add_layer_norm_project(RowType type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows,
                                   const NormWeights& norm, const Factors& factors, cudaStream_t stream) {
  Arguments arguments{};
  arguments.x = x;
  arguments.residual = residual;
  arguments.y = y;
  arguments.summed = summed;
  arguments.rows = rows;
  arguments.factors = factors;
  arguments.norm = norm;
  return launch<Norm::layer>(type, arguments, stream);
}

}  // namespace leace_fast::cuda
