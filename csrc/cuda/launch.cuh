// From the arguments of apply.h to a launch: the plan, the kernel for the rows' type, the cluster.
#pragma once

#include "erase.cuh"

namespace leace_fast::cuda {

// Lives once on each device, with the module: nothing is allocated. See project.cu.
cudaError_t unknown_counter(unsigned long long** counter);

#ifndef LEACE_FAST_EMULATOR

inline cudaError_t describe(Device* device) {
  int ordinal, major, minor;
  cudaError_t error = cudaGetDevice(&ordinal);
  const auto read = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, ordinal);
  };
  read(&major, cudaDevAttrComputeCapabilityMajor);
  read(&minor, cudaDevAttrComputeCapabilityMinor);
  read(&device->multiprocessors, cudaDevAttrMultiProcessorCount);
  read(&device->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(&device->shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  if (error == cudaSuccess) device->capability = 10 * major + minor;
  return error;
}

inline cudaError_t start(void (*kernel)(Arguments), const Plan& plan, const Arguments& arguments,
                         cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.layout.bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(plan.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.blocks));
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = size_t(plan.layout.bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = plan.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

#endif

// Whether every octet of these rows starts at an address of 16 bytes.
inline bool aligned(const Rows& rows, int64_t row_bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.stride * row_bytes % 16 == 0;
}
inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <typename Row, Norm NORM>
cudaError_t launch_rows(Arguments& arguments, cudaStream_t stream) {
  const Factors& factors = arguments.factors;
  Device device;
  cudaError_t error = describe(&device);
  if (error == cudaSuccess && factors.index != nullptr) error = unknown_counter(&arguments.unknown);
  if (error != cudaSuccess) return error;

  bool vector = factors.dim % 8 == 0 && aligned(factors.left_t) && aligned(factors.right) && aligned(factors.mean) &&
                aligned(arguments.norm.weight) && aligned(arguments.norm.bias);
  for (const Rows& rows : {arguments.x, arguments.residual, arguments.y, arguments.summed})
    vector = vector && aligned(rows, sizeof(Row));
  const Plan plan = make_plan({arguments.rows, factors.dim, factors.rank, int(sizeof(Row)), vector}, device);
  if (plan.blocks > INT32_MAX || plan.layout.bytes > device.shared_per_block) return cudaErrorInvalidConfiguration;
  arguments.dim = int(factors.dim);
  arguments.rank = int(factors.rank);
  arguments.parts = plan.parts;
  arguments.cluster = plan.cluster;
  arguments.row_tiles = plan.row_tiles;
  arguments.groups_per_part = int(plan.groups_per_part(factors.dim));
  arguments.layout = plan.layout;

  const auto kernel = plan.hold ? erase_rows<Row, NORM, Access::held>
                      : vector  ? erase_rows<Row, NORM, Access::again>
                                : erase_rows<Row, NORM, Access::single>;
  return start(kernel, plan, arguments, stream);
}

template <Norm NORM>
cudaError_t launch(RowType type, Arguments arguments, cudaStream_t stream) {
  const Factors& factors = arguments.factors;
  if (factors.rank < 1 || factors.rank > MAX_RANK || factors.dim < 1 ||
      factors.dim > INT32_MAX / GROUP || arguments.rows < 0)
    return cudaErrorInvalidValue;
  if (arguments.rows == 0) return cudaSuccess;
  switch (type) {
    case RowType::float32:
      return launch_rows<float, NORM>(arguments, stream);
    case RowType::bfloat16:
      return launch_rows<Bfloat16, NORM>(arguments, stream);
    case RowType::float16:
      return launch_rows<Float16, NORM>(arguments, stream);
  }
  return cudaErrorInvalidValue;
}

template <Norm NORM>
cudaError_t launch_add_norm(RowType type, Rows x, Rows residual, Rows y, Rows summed, int64_t rows,
                            const NormWeights& norm, const Factors& factors, cudaStream_t stream) {
  Arguments arguments{};
  arguments.x = x;
  arguments.residual = residual;
  arguments.y = y;
  arguments.summed = summed;
  arguments.rows = rows;
  arguments.factors = factors;
  arguments.norm = norm;
  return launch<NORM>(type, arguments, stream);
}

}  // namespace leace_fast::cuda
