#pragma once

// Instructions that CUDA C++ has no plain name for: asynchronous copies, matrix fragments and
// products (sm_80 and later), 16-byte loads. Inline PTX for nvcc; the emulator's functions where
// g++ compiles the kernels for tests/simt.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/device.cuh"

#if !defined(__CUDACC__)
#include "matrix.h"
#define LIBVAR_SITE    \
  simt::Site {         \
    __FILE__, __LINE__ \
  }
#endif

namespace libvar::cuda {

/// 2 to the power of x, relative error about 2^-22; 0 for minus infinity, NaN for NaN.
LIBVAR_DEVICE float exp2_fast(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

/// Starts a copy of 16 bytes to shared memory; both addresses are multiples of 16. Where `valid` is
/// false nothing is read and zeros arrive.
LIBVAR_DEVICE void copy_async(void* shared, const void* source, bool valid) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  simt::copy_async(shared, source, valid ? 16 : 0, LIBVAR_SITE);
#endif
}

/// Ends a group of copies. Groups may be empty: waiting counts them.
LIBVAR_DEVICE void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::commit_copies();
#endif
}

/// Waits until at most the last kPending groups of this thread are under way.
template <int kPending>
LIBVAR_DEVICE void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  simt::wait_for_copies(kPending);
#endif
}

/// Loads four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 i + r names row r of
/// matrix i. Lane l gets of each matrix row l / 4, elements 2 (l % 4) and the next.
LIBVAR_DEVICE void load_matrices(std::uint32_t (&result)[4], const void* row) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
#else
  simt::load_matrices(result, row, false, LIBVAR_SITE);
#endif
}

/// As load_matrices, each matrix transposed: lane l gets column l / 4, rows 2 (l % 4) and the next.
LIBVAR_DEVICE void load_matrices_transposed(std::uint32_t (&result)[4], const void* row) {
#if defined(__CUDACC__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address)
               : "memory");
#else
  simt::load_matrices(result, row, true, LIBVAR_SITE);
#endif
}

/// d += a b for a of 16 x 16, b of 16 x 8 and d of 16 x 8 (mma.m16n8k16, row.col). With g = lane /
/// 4 and t = lane % 4 a word holds two elements next to each other in
///   a: row g columns 2t, row g + 8 columns 2t, row g columns 2t + 8, row g + 8 columns 2t + 8
///   b: rows 2t column g, rows 2t + 8 column g
/// and d is row g columns 2t and 2t + 1, row g + 8 columns 2t and 2t + 1.
template <typename T>
LIBVAR_DEVICE void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  const std::uint32_t b[2] = {b0, b1};
  simt::multiply_add<T>(d, a, b, LIBVAR_SITE);
#endif
}

/// Two elements of 16 bits in one word, each rounded to nearest; `low` has the lower address.
template <typename T>
LIBVAR_DEVICE std::uint32_t pack(float low, float high) {
  std::uint32_t word = 0;
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
#else
  const T elements[2] = {from_float<T>(low), from_float<T>(high)};
  std::memcpy(&word, elements, sizeof(word));
#endif
  return word;
}

/// Two elements of 16 bits that lie at a multiple of 4 bytes.
LIBVAR_DEVICE std::uint32_t load_word(const void* address) {
#if defined(__CUDACC__)
  return *static_cast<const std::uint32_t*>(address);
#else
  std::uint32_t word;
  std::memcpy(&word, address, sizeof(word));
  return word;
#endif
}

/// 16 bytes of a row. May stand for the memory of any type.
struct __attribute__((may_alias, aligned(16))) Vector {
  std::uint32_t word[4];
};

/// How long a load's bytes are wanted.
enum class Use { kOnce, kAgain };

/// Loads 16 bytes at from + offset; zeros, and nothing is read, where `valid` is false. The address
/// is a multiple of 16. kOnce: they need no place in L1. Not ld.global.nc: the compiler moves those
/// over barriers, down to their use.
template <Use use, typename T>
LIBVAR_DEVICE Vector load_if(const T* from, std::int64_t offset, bool valid) {
  Vector result;
#if defined(__CUDACC__)
#define LIBVAR_LOAD_IF(instruction)                                                                \
  asm volatile(                                                                                    \
      "{\n\t"                                                                                      \
      ".reg .pred valid;\n\t"                                                                      \
      "setp.ne.b32 valid, %5, 0;\n\t"                                                              \
      "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n\t"                            \
      "@valid " instruction                                                                        \
      " {%0, %1, %2, %3}, [%4];\n\t"                                                               \
      "}"                                                                                          \
      : "=&r"(result.word[0]), "=&r"(result.word[1]), "=&r"(result.word[2]), "=&r"(result.word[3]) \
      : "l"(from + offset), "r"(static_cast<int>(valid))                                           \
      : "memory")
  if constexpr (use == Use::kOnce) {
    LIBVAR_LOAD_IF("ld.global.L1::no_allocate.L2::128B.v4.u32");
  } else {
    LIBVAR_LOAD_IF("ld.global.v4.u32");
  }
#undef LIBVAR_LOAD_IF
#else
  result = {};
  if (!valid) return result;
  if (reinterpret_cast<std::uintptr_t>(from + offset) % 16 != 0)
    simt::fail(LIBVAR_SITE, "a load of 16 bytes that is not aligned");
  std::memcpy(&result, from + offset, sizeof(result));
#endif
  return result;
}

template <typename T>
LIBVAR_DEVICE Vector load_once(const T* from, std::int64_t offset, bool valid) {
  return load_if<Use::kOnce>(from, offset, valid);
}

/// Elements of a Vector.
template <typename T>
inline constexpr int kVectorSize = static_cast<int>(sizeof(Vector) / sizeof(T));

template <typename T>
LIBVAR_DEVICE void unpack(const Vector& vector, float (&values)[kVectorSize<T>]) {
  LIBVAR_UNROLL
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = vector.word[i];
    if constexpr (std::is_same_v<T, float>) {
      values[i] = __uint_as_float(word);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      values[2 * i] = __uint_as_float(word << 16);
      values[2 * i + 1] = __uint_as_float(word & 0xffff0000u);
    } else {
      T elements[2];
      memcpy(elements, &word, sizeof(word));
      values[2 * i] = to_float(elements[0]);
      values[2 * i + 1] = to_float(elements[1]);
    }
  }
}

/// Whether one of a word's two elements is infinite or NaN: adding 1 to an exponent of ones carries
/// into the sign's place.
template <typename T>
LIBVAR_DEVICE bool has_non_finite(std::uint32_t word) {
  constexpr std::uint32_t kExponent = std::is_same_v<T, __half> ? 0x7c007c00u : 0x7f807f80u;
  constexpr std::uint32_t kOne = std::is_same_v<T, __half> ? 0x04000400u : 0x00800080u;
  return (((word & kExponent) + kOne) & 0x80008000u) != 0;
}

}  // namespace libvar::cuda
