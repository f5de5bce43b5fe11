// The layouts that the DLPack standard fixes, https://dmlc.github.io/dlpack/latest/c_api.html.
#pragma once

#include <cstdint>
#include <optional>

#include "leace_fast.h"

namespace leace_fast::python {

namespace dlpack {

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* manager;
  void (*deleter)(Managed*);
};

// The functions of a framework, as it offers them on the type of its tensors.
struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void (*allocate)();
  void (*managed_from_object)();
  void (*managed_to_object)();
  int (*tensor_from_object)(void* object, Tensor* to);  // 0, or -1 and an error of Python; nothing is kept alive
  void (*current_stream)();
};

constexpr char EXCHANGE_ATTRIBUTE[] = "__dlpack_c_exchange_api__", EXCHANGE_NAME[] = "dlpack_exchange_api";
constexpr uint32_t MAJOR = 1;
constexpr int32_t CPU = 1;
constexpr uint8_t INT = 0, UINT = 1, FLOAT = 2, BFLOAT = 4;

}  // namespace dlpack

// The dtype of floating numbers that the kernels know.
inline std::optional<leace_fast_dtype> floating(const dlpack::Tensor& x) {
  if (x.lanes != 1) return std::nullopt;
  if (x.code == dlpack::BFLOAT && x.bits == 16) return LEACE_FAST_BFLOAT16;
  if (x.code == dlpack::FLOAT && x.bits == 64) return LEACE_FAST_FLOAT64;
  if (x.code == dlpack::FLOAT && x.bits == 32) return LEACE_FAST_FLOAT32;
  if (x.code == dlpack::FLOAT && x.bits == 16) return LEACE_FAST_FLOAT16;
  return std::nullopt;
}

}  // namespace leace_fast::python
