#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace libvar::cpu {

/// exp(x) for x <= 0 or NaN, in a form that the compiler vectorises.
///
/// x = n ln 2 + r with |r| <= ln(2) / 2, then a polynomial of degree 6 for exp(r) (coefficients:
/// Cephes, expf). Numerics: within 2 units in the last place for x >= -87; 0 below -87.3 (the
/// result would be subnormal) and at -inf; exactly 1 at 0; NaN at NaN.
inline float exp_of_non_positive(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRoundToInteger =
      12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
  constexpr float kLeast = -87.3f;
  const float clamped = x < kLeast ? kLeast : x;  // keeps NaN
  const float shifted = clamped * kLog2E + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  // The integer n stands in the low bits of `shifted`; moved to the exponent it is the factor 2^n.
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  const float result = y * power;
  return x < kLeast ? 0.0f : result;
}

}  // namespace libvar::cpu
