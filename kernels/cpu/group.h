#pragma once

// A group of 32 neighbouring elements as floats: what the kernels work on that only stream over
// rows (redistribute, norms).
//
// The group lies in 32 lanes, first[] and then second[], whatever the width of the registers; lanes
// are added up in one order, and nothing here or in those kernels is fused. So the results of all
// builds are the same bits. Which lane holds which element: group_lane() in elements.h. Of bfloat16
// the even elements lie in first[] and the odd ones in second[], because a 32-bit word holds one of
// each, and a shift and a mask take it apart where unpacking would cost shuffles.

#include "cpu/vector.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {

inline constexpr int kParts = kGroup / 2 / kLanes;  // registers of half a group

struct HalfGroup {
  Floats part[kParts];
};

struct Group {
  HalfGroup first;
  HalfGroup second;
};

LIBVAR_INLINE Words words_at(const Bfloat16* source) {
  Words words;
  __builtin_memcpy(&words, source, sizeof(words));
  return words;
}

template <typename T>
LIBVAR_INLINE Group load_group(const T* source) {
  Group x;
  for (std::int64_t i = 0; i < kParts; ++i) {
    x.first.part[i] = load(source + i * kLanes);
    x.second.part[i] = load(source + (kParts + i) * kLanes);
  }
  return x;
}

LIBVAR_INLINE Group load_group(const Bfloat16* source) {
  Group x;
  for (std::int64_t i = 0; i < kParts; ++i) {
    const Words words = words_at(source + i * 2 * kLanes);
    x.first.part[i] = floats_of(words << 16);
    x.second.part[i] = floats_of(words & 0xffff0000u);
  }
  return x;
}

template <typename T>
LIBVAR_INLINE void store_group(T* target, const Group& x) {
  for (std::int64_t i = 0; i < kParts; ++i) {
    store(target + i * kLanes, x.first.part[i]);
    store(target + (kParts + i) * kLanes, x.second.part[i]);
  }
}

/// x rounded to bfloat16 (to nearest, ties to even) in the high half of each word; anything in the
/// low half. A NaN must have zeros in its low half, as every NaN has that was computed from
/// bfloat16 values: then the rounding can't carry out of it.
LIBVAR_INLINE Words rounded_high_half(Floats x) {
  const Words bits = words_of(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

LIBVAR_INLINE void store_group(Bfloat16* target, const Group& x) {
  for (std::int64_t i = 0; i < kParts; ++i) {
    const Words words = (rounded_high_half(x.first.part[i]) >> 16) |
                        (rounded_high_half(x.second.part[i]) & 0xffff0000u);
    __builtin_memcpy(target + i * 2 * kLanes, &words, sizeof(words));
  }
}

/// The first `count` elements of a group, 0 in the lanes of the others.
template <typename T>
LIBVAR_INLINE Group load_partial_group(const T* source, std::int64_t count) {
  T buffer[kGroup] = {};
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = source[i];
  return load_group(static_cast<const T*>(buffer));
}

template <typename T>
LIBVAR_INLINE void store_partial_group(T* target, const Group& x, std::int64_t count) {
  T buffer[kGroup];
  store_group(static_cast<T*>(buffer), x);
  for (std::int64_t i = 0; i < count; ++i) target[i] = buffer[i];
}

/// What is left of x when it is stored as T.
LIBVAR_INLINE Floats rounded_to(float, Floats x) {
  return x;
}

LIBVAR_INLINE Floats rounded_to(Half, Floats x) {
  return widen(Half(), narrow(Half(), x));
}

LIBVAR_INLINE Floats rounded_to(Bfloat16, Floats x) {
  return floats_of(rounded_high_half(x) & 0xffff0000u);
}

LIBVAR_INLINE void add(HalfGroup& sum, const HalfGroup& x) {
  for (std::int64_t i = 0; i < kParts; ++i) sum.part[i] += x.part[i];
}

/// Sum of the 16 lanes, in one order in every build.
LIBVAR_INLINE float sum_of(const HalfGroup& x) {
  __m128 quarter[4];
  static_assert(sizeof(quarter) == sizeof(x));
  __builtin_memcpy(&quarter, &x, sizeof(x));
  const __m128 four = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
