#pragma once

// Stands in for CUDA's cuda_fp16.h: IEEE half precision, conversions only.

#include <bit>
#include <cmath>
#include <cstdint>

struct __half {
  std::uint16_t bits;
};

/// To nearest, ties to even.
inline __half __float2half_rn(float x) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {0x7fff};  // NaN: CUDA makes this one
  if (bits >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and above
  if (bits < 0x38800000u) {  // below 2^-14: multiples of 2^-24
    const float units = std::bit_cast<float>(bits) * 16777216.0f;
    return {static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::lrint(units)))};
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((bits - (112u << 23)) >> 13))};
}

inline __half __float2half(float x) {
  return __float2half_rn(x);
}

inline float __half2float(__half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const std::uint32_t magnitude = exponent == 0x1fu ? 0x7f800000u : (exponent + 112u) << 23;
  return std::bit_cast<float>(sign | magnitude | (mantissa << 13));
}
