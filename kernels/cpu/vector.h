#pragma once

// A vector of floats as wide as the build's registers, and what the kernels do with it.
//
// Only for sources that are compiled once per capability (see capability.h): all of this lives in
// the build's own namespace and is always inlined. Vector extensions of GCC and Clang; intrinsics
// where a single instruction has no other name. fma() is one rounding where the processor has it
// and two in the portable build, always the same within one build: the kernels are compiled with
// -ffp-contract=off, so that no other expression is fused here and not there.

#if !defined(LIBVAR_CPU_NAMESPACE)
#error "vector.h is for sources that libvar_add_cpu_builds compiles"
#endif

#include <immintrin.h>

#include <cstdint>

#include "cpu/elements.h"

#define LIBVAR_INLINE inline __attribute__((always_inline))

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

using Floats = float __attribute__((vector_size(kLanes * 4)));
using Ints = std::int32_t __attribute__((vector_size(kLanes * 4)));
using Words = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using Halves = std::uint16_t __attribute__((vector_size(kLanes * 2)));

inline constexpr float kInfinity = __builtin_inff();

LIBVAR_INLINE Floats broadcast(float x) {
  return x - Floats{};
}

LIBVAR_INLINE Words words_of(Floats x) {
  return reinterpret_cast<Words>(x);
}

LIBVAR_INLINE Floats floats_of(Words x) {
  return reinterpret_cast<Floats>(x);
}

/// Lane by lane: mask (all ones or zero) ? a : b.
LIBVAR_INLINE Floats select(Ints mask, Floats a, Floats b) {
  return mask ? a : b;
}

/// sum + x in the lanes where index is `value`, sum elsewhere.
LIBVAR_INLINE Floats add_where(Ints index, int value, Floats x, Floats sum) {
#if defined(__AVX512F__)
  const __mmask16 lanes =
      _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(index), _mm512_set1_epi32(value));
  return _mm512_mask_add_ps(sum, lanes, sum, x);
#else
  return select(index == value, sum + x, sum);
#endif
}

/// a > b ? a : b, so that NaN in a is ignored and NaN in b stays.
LIBVAR_INLINE Floats larger(Floats a, Floats b) {
  return a > b ? a : b;
}

/// a * b + c.
LIBVAR_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- Loads and stores. None needs alignment; the partial ones touch `count` < kLanes elements and
// give 0 in the other lanes.

LIBVAR_INLINE Floats load(const float* source) {
  Floats x;
  __builtin_memcpy(&x, source, sizeof(x));
  return x;
}

LIBVAR_INLINE void store(float* target, Floats x) {
  __builtin_memcpy(target, &x, sizeof(x));
}

// GCC 12 knows no single instruction for __builtin_convertvector.
LIBVAR_INLINE Words words_of(Halves x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
#else
  return __builtin_convertvector(x, Words);
#endif
}

/// The low halves of the words.
LIBVAR_INLINE Halves halves_of(Words x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
#else
  return __builtin_convertvector(x, Halves);
#endif
}

/// kLanes bytes as integers.
LIBVAR_INLINE Ints load_bytes(const std::uint8_t* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(
      _mm256_cvtepu8_epi32(_mm_loadu_si64(reinterpret_cast<const void*>(source))));
#else
  return Ints{source[0], source[1], source[2], source[3]};
#endif
}

LIBVAR_INLINE Floats load(const std::int8_t* source) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadu_si64(reinterpret_cast<const void*>(source))));
#else
  return Floats{static_cast<float>(source[0]), static_cast<float>(source[1]),
                static_cast<float>(source[2]), static_cast<float>(source[3])};
#endif
}

/// table[index] for four floats; every index in [0, 4).
LIBVAR_INLINE Floats look_up(const float* table, Ints index) {
#if defined(__AVX512F__)
  return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table)),
                              reinterpret_cast<__m512i>(index));
#elif defined(__AVX2__)
  const __m128 four = _mm_loadu_ps(table);
  return _mm256_permutevar_ps(_mm256_set_m128(four, four), reinterpret_cast<__m256i>(index));
#else
  return Floats{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
#endif
}

LIBVAR_INLINE Floats widen(Bfloat16, Halves bits) {
  return floats_of(words_of(bits) << 16);
}

LIBVAR_INLINE Floats widen(Half, Halves bits) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
#else
  const Words x = words_of(bits);
  const Words magnitude = (x & 0x7fffu) << 13;
  // The exponent's bias differs by 112; the product also makes normal floats of subnormal halves.
  Words result = words_of(floats_of(magnitude) * 0x1p112f);
  result |= reinterpret_cast<Words>(magnitude >= (0x7c00u << 13)) & 0x7f800000u;  // infinity, NaN
  return floats_of(result | ((x & 0x8000u) << 16));
#endif
}

LIBVAR_INLINE Halves narrow(Bfloat16, Floats x) {
  const Words bits = words_of(x);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Words nan = reinterpret_cast<Words>(x != x);
  return halves_of((rounded & ~nan) | (nan & 0x7fc0u));
}

LIBVAR_INLINE Halves narrow(Half, Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Halves>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const Words sign = (words_of(x) >> 16) & 0x8000u;
  const Words magnitude = words_of(x) & 0x7fffffffu;
  const Words normal =
      ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);  // ties to even
  // Adding 1/2 leaves the steps of 2^-24, those of subnormal halves, in the lowest bits.
  const Words subnormal = words_of(floats_of(magnitude) + 0.5f) - 0x3f000000u;
  Words result = reinterpret_cast<Ints>(magnitude < 0x38800000u) ? subnormal : normal;
  result = reinterpret_cast<Ints>(magnitude >= 0x477ff000u) ? Words{} + 0x7c00u : result;
  result = reinterpret_cast<Ints>(magnitude > 0x7f800000u) ? Words{} + 0x7e00u : result;
  return halves_of(result | sign);
#endif
}

template <typename T>
LIBVAR_INLINE Floats load(const T* source) {
  Halves bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return widen(T(), bits);
}

template <typename T>
LIBVAR_INLINE void store(T* target, Floats x) {
  const Halves bits = narrow(T(), x);
  __builtin_memcpy(target, &bits, sizeof(bits));
}

template <typename T>
LIBVAR_INLINE Floats load_partial(const T* source, std::int64_t count) {
  T buffer[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = source[i];
  return load(static_cast<const T*>(buffer));
}

template <typename T>
LIBVAR_INLINE void store_partial(T* target, Floats x, std::int64_t count) {
  T buffer[kLanes];
  store(static_cast<T*>(buffer), x);
  for (std::int64_t i = 0; i < count; ++i) target[i] = buffer[i];
}

// ---- Reductions, in a fixed order: always lanes that lie half the remaining width apart meet.

/// The four numbers that are left when the lanes of x met under `meet` until they were four.
template <typename Meet>
LIBVAR_INLINE __m128 four_of(Floats x, [[maybe_unused]] Meet meet) {
#if defined(__AVX512F__)
  const __m256 half = meet(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  return meet(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX2__)
  return meet(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
#else
  return x;
#endif
}

/// Sum of the lanes.
LIBVAR_INLINE float sum_of(Floats x) {
  const __m128 four = four_of(x, [](auto a, auto b) { return a + b; });
  return (four[0] + four[2]) + (four[1] + four[3]);
}

/// Largest lane. A NaN that meets a number may win or lose.
LIBVAR_INLINE float largest_of(Floats x) {
  const __m128 four = four_of(x, [](auto a, auto b) { return a > b ? a : b; });
  const float even = four[0] > four[2] ? four[0] : four[2];
  const float odd = four[1] > four[3] ? four[1] : four[3];
  return even > odd ? even : odd;
}

// Steps of sums_of(). Each adds the lanes of a half (quarter, ...) apart, those of a in one half of
// the result and those of b in the other.
#if defined(__AVX512F__)
LIBVAR_INLINE Floats add_halves(Floats a, Floats b) {
  return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
}

LIBVAR_INLINE Floats add_quarters(Floats a, Floats b) {
  return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}

LIBVAR_INLINE Floats add_pairs(Floats a, Floats b) {
  return _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
}

LIBVAR_INLINE Floats add_neighbours(Floats a, Floats b) {
  return _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xdd);
}
#elif defined(__AVX2__)
LIBVAR_INLINE Floats add_halves(Floats a, Floats b) {
  return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
}

LIBVAR_INLINE Floats add_pairs(Floats a, Floats b) {
  return _mm256_shuffle_ps(a, b, 0x44) + _mm256_shuffle_ps(a, b, 0xee);
}

LIBVAR_INLINE Floats add_neighbours(Floats a, Floats b) {
  return _mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xdd);
}
#else
LIBVAR_INLINE Floats add_pairs(Floats a, Floats b) {
  return _mm_shuffle_ps(a, b, 0x44) + _mm_shuffle_ps(a, b, 0xee);
}

LIBVAR_INLINE Floats add_neighbours(Floats a, Floats b) {
  return _mm_shuffle_ps(a, b, 0x88) + _mm_shuffle_ps(a, b, 0xdd);
}
#endif

/// Lane i is sum_of(x[i]), bit for bit, for kLanes vectors.
LIBVAR_INLINE Floats sums_of(const Floats (&x)[kLanes]) {
#if defined(__AVX512F__)
  Floats quarters[4];
  for (int i = 0; i < 4; ++i) {
    quarters[i] = add_quarters(add_halves(x[i], x[i + 4]), add_halves(x[i + 8], x[i + 12]));
  }
#elif defined(__AVX2__)
  Floats quarters[4];
  for (int i = 0; i < 4; ++i) quarters[i] = add_halves(x[i], x[i + 4]);
#else
  const Floats(&quarters)[4] = x;
#endif
  return add_neighbours(add_pairs(quarters[0], quarters[1]), add_pairs(quarters[2], quarters[3]));
}

/// target[0..3] = sum_of of four vectors, bit for bit.
LIBVAR_INLINE void store_sums_of(float* target, Floats a, Floats b, Floats c, Floats d) {
#if defined(__AVX512F__)
  const Floats quarters = add_quarters(add_halves(a, b), add_halves(c, d));
  const Floats pairs = add_pairs(quarters, quarters);
  const Floats sums = add_neighbours(pairs, pairs);
  for (int i = 0; i < 4; ++i) target[i] = sums[4 * i];
#elif defined(__AVX2__)
  const Floats pairs = add_pairs(add_halves(a, b), add_halves(c, d));
  const Floats sums = add_neighbours(pairs, pairs);
  target[0] = sums[0];
  target[1] = sums[4];
  target[2] = sums[1];
  target[3] = sums[5];
#else
  store(target, add_neighbours(add_pairs(a, b), add_pairs(c, d)));
#endif
}

// ---- exp

/// exp(x) for x <= 0 or NaN.
///
/// x = n ln 2 + r with |r| <= ln(2) / 2, then a polynomial of degree 6 for exp(r) (coefficients:
/// Cephes, expf). Numerics: within 2 units in the last place for x >= -87; 0 below -87.3 (the
/// result would be subnormal) and at -inf; exactly 1 at 0; NaN at NaN.
LIBVAR_INLINE Floats exp_of_non_positive(Floats x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23 leaves no bits for a fraction
  constexpr float kLeast = -87.3f;
  const Floats clamped = larger(broadcast(kLeast), x);  // keeps NaN
  const Floats shifted = fma(clamped, broadcast(kLog2E), broadcast(kRoundToInteger));
  const Floats n = shifted - kRoundToInteger;
  const Floats r = fma(n, broadcast(-kLn2Low), fma(n, broadcast(-kLn2High), clamped));
  Floats y = broadcast(1.9875691500e-4f);
  y = fma(y, r, broadcast(1.3981999507e-3f));
  y = fma(y, r, broadcast(8.3334519073e-3f));
  y = fma(y, r, broadcast(4.1665795894e-2f));
  y = fma(y, r, broadcast(1.6666665459e-1f));
  y = fma(y, r, broadcast(5.0000001201e-1f));
  y = fma(y, r * r, r) + 1.0f;
  // The integer n stands in the low bits of `shifted`; moved to the exponent it is the factor 2^n.
  const Floats power = floats_of((words_of(shifted) + 127u) << 23);
  return select(x < kLeast, Floats{}, y * power);
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
