#pragma once

// Rows of a tensor in 16-byte vectors: loads and stores at any alignment, conversions. No torch.

#include <type_traits>

#include "cuda/mma.cuh"

namespace libvar::cuda {

/// A word that may stand for the memory of any type.
template <typename Word>
using MayAlias __attribute__((may_alias)) = Word;

/// An element's bits, right-aligned in a word.
template <typename T>
using ElementBits = std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint32_t>;

LIBVAR_DEVICE bool is_vector_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(Vector) == 0;
}

/// Elements first, first + 1, ... of a row of `size`; those past its end are 0 and not read.
/// @param aligned  is_vector_aligned(row); first is a multiple of the elements of a vector
template <typename T>
LIBVAR_DEVICE Vector load_vector(const T* row, int first, int size, bool aligned) {
  constexpr int kElements = kVectorSize<T>;
  if (aligned && first + kElements <= size) return *reinterpret_cast<const Vector*>(row + first);
  Vector vector = {};
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (first + e >= size) continue;
    const std::uint32_t bits = reinterpret_cast<const MayAlias<ElementBits<T>>*>(row)[first + e];
    vector.word[e * 4 / kElements] |= bits << e % (kElements / 4) * 16;
  }
  return vector;
}

/// The other way; elements past the end of the row are not written.
template <typename T>
LIBVAR_DEVICE void store_vector(T* row, int first, int size, bool aligned, const Vector& vector) {
  constexpr int kElements = kVectorSize<T>;
  if (aligned && first + kElements <= size) {
    *reinterpret_cast<Vector*>(row + first) = vector;
    return;
  }
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (first + e >= size) continue;
    const std::uint32_t word = vector.word[e * 4 / kElements] >> e % (kElements / 4) * 16;
    reinterpret_cast<MayAlias<ElementBits<T>>*>(row)[first + e] = static_cast<ElementBits<T>>(word);
  }
}

/// Rounds to nearest, ties to even.
template <typename T>
LIBVAR_DEVICE Vector pack(const float (&values)[kVectorSize<T>]) {
  Vector vector;
  LIBVAR_UNROLL
  for (int w = 0; w < 4; ++w) {
    if constexpr (std::is_same_v<T, float>) {
      vector.word[w] = __float_as_uint(values[w]);
    } else {
      vector.word[w] = pack<T>(values[2 * w], values[2 * w + 1]);
    }
  }
  return vector;
}

/// Makes the compiler forget what it derived from a value: it would otherwise keep a row's unpacked
/// elements, or every predicate of a loop-invariant word, in registers that the kernel needs.
LIBVAR_DEVICE void forget_derived(std::uint32_t& word) {
  asm volatile("" : "+r"(word));
}

LIBVAR_DEVICE void forget_derived(Vector& vector) {
  LIBVAR_UNROLL
  for (std::uint32_t& word : vector.word) forget_derived(word);
}

}  // namespace libvar::cuda
