#pragma once

// What the CPU kernels share: eight floats at a time, conversion of the element types, choice by
// dtype.
//
// Vector extensions of GCC and Clang instead of intrinsics: AVX2 where the file is compiled for it,
// and the same results up to the rounding of fused multiply-adds where it is not (the portable
// build).

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace libvar::cpu {

inline constexpr std::int64_t kLanes = 8;

using FloatLanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using IntLanes = std::int32_t __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

inline void load(FloatLanes& lanes, const float* source) {
  std::memcpy(&lanes, source, sizeof(lanes));
}

inline void store(float* target, const FloatLanes& lanes) {
  std::memcpy(target, &lanes, sizeof(lanes));
}

/// Sum of the lanes in a fixed order.
inline float sum_of(const FloatLanes& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// target[i] = source[i] as float, i < count.
inline void load_floats(float* target, const float* source, std::int64_t count) {
  std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float));
}

inline void load_floats(float* target, const c10::BFloat16* source, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(source[i].x) << 16;
    std::memcpy(&target[i], &bits, sizeof(bits));
  }
}

inline void load_floats(float* target, const c10::Half* source, std::int64_t count) {
  std::int64_t i = 0;
#if defined(__F16C__)
  for (; i + kLanes <= count; i += kLanes) {
    _mm256_storeu_ps(
        target + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  }
#endif
  for (; i < count; ++i) target[i] = static_cast<float>(source[i]);
}

/// target[i] = source[i] rounded to the element type, i < count.
template <typename T>
void store_floats(T* target, const float* source, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) target[i] = static_cast<T>(source[i]);
}

/// Calls f with a value of the C++ type of a floating dtype. The dtype was checked before
/// (checks.h).
template <typename F>
decltype(auto) dispatch_floating(at::ScalarType type, F&& f) {
  if (type == at::kHalf) return std::forward<F>(f)(c10::Half());
  if (type == at::kBFloat16) return std::forward<F>(f)(c10::BFloat16());
  return std::forward<F>(f)(0.0f);
}

}  // namespace libvar::cpu
