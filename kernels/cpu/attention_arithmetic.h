#pragma once

// The arithmetic of attention_kernel.cpp: products of elements, in one of two forms.
//
// FloatArithmetic converts every element to float. PairArithmetic, where the processor has bf16 dot
// products, multiplies pairs of bfloat16 exactly and adds them up in float; the probabilities,
// already multiplied by their class weights, are rounded to bfloat16 for that.
//
// A row's bits depend on the form and on the row's own keys alone: how many rows and how many units
// of dimensions are computed at once changes the order of independent sums only.

#include "cpu/attention_kernel.h"
#include "cpu/vector.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {

template <typename T>
struct FloatArithmetic {
  using Element = T;
  using Factor = float;  ///< what queries and probabilities are stored as
  using Vector = Floats;
  using Sums = Floats;
  using KeyFactors = Floats;
  using Values = Floats;
  static constexpr std::int64_t kDimStep = kLanes;  ///< dimensions of a Vector and a Sums
  static constexpr std::int64_t kKeysAtOnce = 1;

  /// Units of kDimStep dimensions whose sums stay in registers.
  template <int rows>
  static constexpr int units_at_once() {
    return kLanes == 16 ? (rows == 4 ? 4 : 8) : 8 / rows;
  }

  static LIBVAR_INLINE void copy_query(float* target, const T* source, std::int64_t dim) {
    std::int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(target + d, load(source + d));
    if (d < dim) store(target + d, load_partial(source + d, dim - d));
  }

  template <typename S>
  static LIBVAR_INLINE Vector load_vector(const S* source) {
    return load(source);
  }

  static LIBVAR_INLINE Vector load_vector_partial(const T* source, std::int64_t count) {
    return load_partial(source, count);
  }

  static LIBVAR_INLINE Floats dot(Vector a, Vector b, Floats sum) { return fma(a, b, sum); }

  static LIBVAR_INLINE void make_factors(float*, std::int64_t) {}

  static LIBVAR_INLINE void make_weighted_factors(float* probabilities, std::int64_t num_full,
                                                  std::int64_t, const std::uint8_t* block_classes,
                                                  const float* weight) {
    for (std::int64_t i = 0; i < num_full; ++i) {
      const float w = weight[block_classes[i]];
      float* block = probabilities + i * kKeyBlock;
      for (std::int64_t j = 0; j < kKeyBlock; j += kLanes) store(block + j, load(block + j) * w);
    }
  }

  static LIBVAR_INLINE KeyFactors load_factors(const float* factor) { return broadcast(*factor); }

  static LIBVAR_INLINE const T* zeros() { return nullptr; }  // never read: one key at a time

  static LIBVAR_INLINE Values load_values(const T* key, const T*) { return load(key); }

  static LIBVAR_INLINE Values load_values_partial(const T* key, const T*, std::int64_t count) {
    return load_partial(key, count);
  }

  static LIBVAR_INLINE void add(Sums& sums, KeyFactors factors, Values values) {
    sums = fma(factors, values, sums);
  }

  static LIBVAR_INLINE Sums load_sums(const float* source) { return load(source); }

  static LIBVAR_INLINE void store_sums(float* target, Sums sums) { store(target, sums); }

  static LIBVAR_INLINE void order_sums(float*, std::int64_t) {}
};

#if defined(__AVX512BF16__)
/// The values of a key that is not there, for as many units of dimensions as are computed at once.
alignas(64) static constexpr Bfloat16 kZeroValues[4 * 32] = {};

struct PairArithmetic {
  using Element = Bfloat16;
  using Factor = Bfloat16;
  using Vector = __m512i;  // 32 dimensions

  struct Sums {
    Floats low, high;  // of 32 dimensions, in the order of the unpack instructions
  };

  using KeyFactors = __m512i;  // the pair of two keys, in every lane

  struct Values {
    __m512i low, high;  // pairs of two keys' elements of one dimension
  };

  static constexpr std::int64_t kDimStep = 32;
  static constexpr std::int64_t kKeysAtOnce = 2;

  template <int rows>
  static constexpr int units_at_once() {
    return rows == 4 ? 2 : 4;
  }

  static LIBVAR_INLINE void copy_query(Bfloat16* target, const Bfloat16* source, std::int64_t dim) {
    std::int64_t d = 0;
    for (; d + kDimStep <= dim; d += kDimStep) {
      _mm512_storeu_si512(target + d, load_vector(source + d));
    }
    if (d < dim) _mm512_storeu_si512(target + d, load_vector_partial(source + d, dim - d));
  }

  static LIBVAR_INLINE Vector load_vector(const Bfloat16* source) {
    return _mm512_loadu_si512(source);
  }

  static LIBVAR_INLINE Vector load_vector_partial(const Bfloat16* source, std::int64_t count) {
    return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, source);
  }

  static LIBVAR_INLINE Floats dot(Vector a, Vector b, Floats sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  // Factors are written over the probabilities: the halves end before the floats that are still to
  // be read.
  static_assert(kLanes == kKeyBlock);

  static LIBVAR_INLINE void round_block(float* probabilities, std::int64_t block, Floats x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(reinterpret_cast<Bfloat16*>(probabilities) + block * kKeyBlock, &rounded,
                     sizeof(rounded));
  }

  /// Probabilities of num_blocks blocks -> factors, in place.
  static LIBVAR_INLINE void make_factors(float* probabilities, std::int64_t num_blocks) {
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      round_block(probabilities, i, load(probabilities + i * kKeyBlock));
    }
  }

  /// The same, the first num_full blocks multiplied by the weight of their class.
  static LIBVAR_INLINE void make_weighted_factors(float* probabilities, std::int64_t num_full,
                                                  std::int64_t num_blocks,
                                                  const std::uint8_t* block_classes,
                                                  const float* weight) {
    for (std::int64_t i = 0; i < num_full; ++i) {
      round_block(probabilities, i, load(probabilities + i * kKeyBlock) * weight[block_classes[i]]);
    }
    for (std::int64_t i = num_full; i < num_blocks; ++i) {
      round_block(probabilities, i, load(probabilities + i * kKeyBlock));
    }
  }

  static LIBVAR_INLINE KeyFactors load_factors(const Bfloat16* factors) {
    std::int32_t pair;
    __builtin_memcpy(&pair, factors, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }

  static LIBVAR_INLINE const Bfloat16* zeros() { return kZeroValues; }

  static LIBVAR_INLINE Values load_values(const Bfloat16* first, const Bfloat16* second) {
    return interleave(load_vector(first), load_vector(second));
  }

  static LIBVAR_INLINE Values load_values_partial(const Bfloat16* first, const Bfloat16* second,
                                                  std::int64_t count) {
    return interleave(load_vector_partial(first, count), load_vector_partial(second, count));
  }

  static LIBVAR_INLINE Values interleave(__m512i first, __m512i second) {
    return {_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)};
  }

  static LIBVAR_INLINE void add(Sums& sums, KeyFactors factors, Values values) {
    sums.low = dot(factors, values.low, sums.low);
    sums.high = dot(factors, values.high, sums.high);
  }

  static LIBVAR_INLINE Sums load_sums(const float* source) {
    return {load(source), load(source + kLanes)};
  }

  static LIBVAR_INLINE void store_sums(float* target, Sums sums) {
    store(target, sums.low);
    store(target + kLanes, sums.high);
  }

  /// From the order of the unpack instructions, which is fours of low and high in turn.
  static LIBVAR_INLINE void order_sums(float* sums, std::int64_t count) {
    for (std::int64_t d = 0; d < count; d += kDimStep) {
      const Sums s = load_sums(sums + d);
      const Floats even = _mm512_shuffle_f32x4(s.low, s.high, 0x44);  // l0 l1 h0 h1
      const Floats odd = _mm512_shuffle_f32x4(s.low, s.high, 0xee);   // l2 l3 h2 h3
      store(sums + d, _mm512_shuffle_f32x4(even, even, 0xd8));
      store(sums + d + kLanes, _mm512_shuffle_f32x4(odd, odd, 0xd8));
    }
  }
};

using Bfloat16Arithmetic = PairArithmetic;
#else
using Bfloat16Arithmetic = FloatArithmetic<Bfloat16>;
#endif

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
