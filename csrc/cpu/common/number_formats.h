// The formats that rows are stored in, as numbers one by one; lanes.inl has them by vectors.
#pragma once

#include <cstdint>
#include <cstring>

namespace leace_fast {

// Storage only: the bits of a number; all arithmetic is in float32 or float64.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

namespace cpu {

using leace_fast::bfloat16;
using leace_fast::float16;

// The dtype that rows of a dtype are computed in.
template <typename Row>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Row>
using Compute = typename ComputeOf<Row>::type;

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Branch-free, so that loops over them vectorise.
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }

inline float widen(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;  // in place, but for the bias of the exponent
  const float finite = bits_as<float>(magnitude) * 0x1p112f;    // exact, also from subnormals
  const uint32_t special = magnitude | 0x7f800000u;
  return bits_as<float>((magnitude >= 0x0f800000u ? special : bits_as<uint32_t>(finite)) | sign);
}

}  // namespace cpu
}  // namespace leace_fast
