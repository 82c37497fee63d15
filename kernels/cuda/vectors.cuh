#pragma once

// Rows of a tensor in 16-byte vectors: loads and stores at any alignment, conversions. No torch.

#include <cstring>
#include <type_traits>

#include "cuda/device.cuh"

namespace libvar::cuda {

/// A word that may stand for the memory of any type.
template <typename Word>
using MayAlias __attribute__((may_alias)) = Word;

/// Elements of T in memory order. May stand for the memory of any type.
struct __attribute__((may_alias, aligned(16))) Vector {
  std::uint32_t words[4];
};

template <typename T>
inline constexpr int kVectorElements = static_cast<int>(sizeof(Vector) / sizeof(T));

/// An element's bits, right-aligned in a word.
template <typename T>
using ElementBits = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint32_t>;

template <typename To, typename From>
LIBVAR_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

LIBVAR_DEVICE bool is_vector_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(Vector) == 0;
}

/// Elements first, first + 1, ... of a row of `size`; those past its end are 0 and not read.
/// @param aligned  is_vector_aligned(row); first is a multiple of the elements of a vector
template <typename T>
LIBVAR_DEVICE Vector load_vector(const T* row, int first, int size, bool aligned) {
  constexpr int kElements = kVectorElements<T>;
  if (aligned && first + kElements <= size) return *reinterpret_cast<const Vector*>(row + first);
  Vector vector = {};
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (first + e >= size) continue;
    const std::uint32_t bits = reinterpret_cast<const MayAlias<ElementBits<T>>*>(row)[first + e];
    vector.words[e * 4 / kElements] |= bits << e % (kElements / 4) * 16;
  }
  return vector;
}

/// The other way; elements past the end of the row are not written.
template <typename T>
LIBVAR_DEVICE void store_vector(T* row, int first, int size, bool aligned, const Vector& vector) {
  constexpr int kElements = kVectorElements<T>;
  if (aligned && first + kElements <= size) {
    *reinterpret_cast<Vector*>(row + first) = vector;
    return;
  }
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (first + e >= size) continue;
    const std::uint32_t word = vector.words[e * 4 / kElements] >> e % (kElements / 4) * 16;
    reinterpret_cast<MayAlias<ElementBits<T>>*>(row)[first + e] = static_cast<ElementBits<T>>(word);
  }
}

LIBVAR_DEVICE void unpack_word(std::uint32_t word, __half* /*type*/, float* x) {
  x[0] = __half2float(bits_as<__half>(static_cast<std::uint16_t>(word)));
  x[1] = __half2float(bits_as<__half>(static_cast<std::uint16_t>(word >> 16)));
}

LIBVAR_DEVICE void unpack_word(std::uint32_t word, __nv_bfloat16* /*type*/, float* x) {
  x[0] = bits_as<float>(word << 16);
  x[1] = bits_as<float>(word & 0xffff0000u);
}

LIBVAR_DEVICE void unpack_word(std::uint32_t word, float* /*type*/, float* x) {
  x[0] = bits_as<float>(word);
}

template <typename T>
LIBVAR_DEVICE void unpack(const Vector& vector, float (&x)[kVectorElements<T>]) {
  LIBVAR_UNROLL
  for (int w = 0; w < 4; ++w)
    unpack_word(vector.words[w], static_cast<T*>(nullptr), x + w * kVectorElements<T> / 4);
}

LIBVAR_DEVICE std::uint32_t pack_word(const float* x, __half* /*type*/) {
  return bits_as<std::uint32_t>(__floats2half2_rn(x[0], x[1]));
}

LIBVAR_DEVICE std::uint32_t pack_word(const float* x, __nv_bfloat16* /*type*/) {
  return bits_as<std::uint32_t>(__floats2bfloat162_rn(x[0], x[1]));
}

LIBVAR_DEVICE std::uint32_t pack_word(const float* x, float* /*type*/) {
  return bits_as<std::uint32_t>(x[0]);
}

/// Rounds to nearest, ties to even.
template <typename T>
LIBVAR_DEVICE Vector pack(const float (&x)[kVectorElements<T>]) {
  Vector vector;
  LIBVAR_UNROLL
  for (int w = 0; w < 4; ++w)
    vector.words[w] = pack_word(x + w * kVectorElements<T> / 4, static_cast<T*>(nullptr));
  return vector;
}

/// Makes the compiler forget what it derived from a value: it would otherwise keep a row's unpacked
/// elements, or every predicate of a loop-invariant word, in registers that the kernel needs.
LIBVAR_DEVICE void forget_derived(std::uint32_t& word) {
  asm volatile("" : "+r"(word));
}

LIBVAR_DEVICE void forget_derived(Vector& vector) {
  LIBVAR_UNROLL
  for (std::uint32_t& word : vector.words) forget_derived(word);
}

}  // namespace libvar::cuda
