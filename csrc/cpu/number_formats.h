// Between the formats that rows are stored in and the one that is computed in. Branch-free, so that loops over
// them vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "../project.h"

namespace leace_fast::cpu {

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

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

// To the nearest, ties to even; NaN stays NaN.
template <typename Row>
struct Narrow;

template <>
struct Narrow<float> {
  static float from(float x) { return x; }
};

template <>
struct Narrow<double> {
  static double from(double x) { return x; }
};

template <>
struct Narrow<bfloat16> {
  static bfloat16 from(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  }
};

template <>
struct Narrow<float16> {
  static float16 from(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // The last place of 0.5f is the smallest float16, so the sum rounds there.
    const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;            // 65520 and more
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return {uint16_t(result | sign)};
  }
};

}  // namespace leace_fast::cpu
