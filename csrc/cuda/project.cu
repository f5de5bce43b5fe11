// The plain erasure, and the count of rows whose index named no eraser.
#include "launch.cuh"

namespace leace_fast::cuda {
namespace {

#ifdef LEACE_FAST_EMULATOR
unsigned long long unknown_rows;
#else
__device__ unsigned long long unknown_rows;
#endif

}  // namespace

cudaError_t unknown_counter(unsigned long long** counter) {
  return cudaGetSymbolAddress(reinterpret_cast<void**>(counter), unknown_rows);
}

cudaError_t take_unknown(unsigned long long* count) {
  const unsigned long long zero = 0;
  cudaError_t error = cudaMemcpyFromSymbol(count, unknown_rows, sizeof *count);
  if (error == cudaSuccess && *count > 0) error = cudaMemcpyToSymbol(unknown_rows, &zero, sizeof zero);
  return error;
}

cudaError_t project(RowType type, Rows x, Rows y, int64_t rows, const Factors& factors, cudaStream_t stream) {
  Arguments arguments{};
  arguments.x = x;
  arguments.y = y;
  arguments.rows = rows;
  arguments.factors = factors;
  return launch<Norm::none>(type, arguments, stream);
}

}  // namespace leace_fast::cuda
