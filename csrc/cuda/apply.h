// The erasures on CUDA devices, behind plain pointers: no torch header. A launch neither allocates nor waits, so
// that it may be captured in a CUDA graph.
#pragma once

#include <cstdint>

#ifdef LEACE_FAST_EMULATOR
#include "cuda_emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace leace_fast::cuda {

constexpr int64_t MAX_RANK = 64;

enum class RowType { float32, bfloat16, float16 };

// x - ((x - mean) R') L', with L and R (dim, rank) and (rank, dim), float32. Where there is an `index`, the factors
// are tables of `erasers` erasers, and a row whose index is -1 is left as it is. A row with any other index outside
// of the table becomes NaN and is counted (`take_unknown`).
struct Factors {
  const float* left_t;   // (erasers, rank, dim): the transpose of L, so that both factors are read along rows
  const float* right;    // (erasers, rank, dim)
  const float* mean;     // (erasers, dim), or null for zeros
  const int64_t* index;  // (rows), or null where every row has eraser 0
  int64_t dim, rank, erasers;
};

// Rows lie `stride` numbers apart; the numbers of a row lie together.
struct Rows {
  void* data;
  int64_t stride;
};

struct NormWeights {
  const void* weight;  // (dim), or null for ones
  const void* bias;    // (dim), or null for zeros
  bool float32;        // both are float32; otherwise of the rows' type
  float weight_offset;
  float eps;
};

// Rank 1 to MAX_RANK; any dim and any count of rows, also none. `y` may be `x` itself, or share nothing with it.
cudaError_t project(RowType type, Rows x, Rows y, int64_t rows, const Factors& factors, cudaStream_t stream);

// summed = x + residual, y = the erasure of norm(summed). Without a residual (null data) summed is not written.
cudaError_t add_rms_norm_project(RowType type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows,
                                 const NormWeights& norm, const Factors& factors, cudaStream_t stream);
cudaError_t add_layer_norm_project(RowType type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows,
                                   const NormWeights& norm, const Factors& factors, cudaStream_t stream);

// Rows met on this device, since the last call, whose index named no eraser. Waits for the device.
cudaError_t take_unknown(unsigned long long* count);

}  // namespace leace_fast::cuda
