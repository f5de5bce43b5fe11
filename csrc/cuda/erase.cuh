// The kernel: y = h - ((h - mean) R') L' for rows h = x, or h = norm(x + residual).
#pragma once

#include "products.cuh"

namespace leace_fast::cuda {

// Blocks on a multiprocessor that registers are to suffice for.
constexpr int resident(Access access) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return 1;
#else
  return access == Access::held ? 2 : 1;
#endif
}

template <typename Row, Norm NORM, Access ACCESS>
__global__ __launch_bounds__(THREADS, resident(ACCESS)) void erase_rows(const __grid_constant__ Arguments arguments) {
  const Block<Row, NORM, ACCESS> b{arguments};
  load_rows(b);
  read_index(b);
  measure_rows(b);
  for (int row = 0; row < b.rows(); ++row) {
    if (!b.template at<int32_t>(arguments.layout.leaders)[row]) continue;
    const int eraser = b.template at<int32_t>(arguments.layout.erasers)[row];
    sum_coordinates(b, eraser);
    if (arguments.cluster > 1)
      cluster_arrive(), cluster_wait();
    else
      sync_block();
    gather_coordinates(b);
    sync_block();
    if (arguments.cluster > 1) cluster_arrive();
    subtract(b, eraser);
    if (arguments.cluster > 1) cluster_wait();  // the other blocks have read this one's sums
  }
  if (arguments.factors.index != nullptr) write_others(b);
  if (NORM != Norm::none && arguments.cluster > 1) cluster_arrive(), cluster_wait();
}

}  // namespace leace_fast::cuda
