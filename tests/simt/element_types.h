#pragma once

// The dtypes of the kernels as the tests see them: how values get in and out, and how coarse they
// are.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <vector>

#include "cuda/device.cuh"

template <typename T>
struct ElementType;

template <>
struct ElementType<float> {
  static constexpr const char* kName = "float32";
  static constexpr double kUlp = 0x1p-23;        ///< distance of 1 and the next value
  static constexpr double kSmallest = 0x1p-149;  ///< least value above 0
};

template <>
struct ElementType<__half> {
  static constexpr const char* kName = "float16";
  static constexpr double kUlp = 0x1p-10;
  static constexpr double kSmallest = 0x1p-24;
};

template <>
struct ElementType<__nv_bfloat16> {
  static constexpr const char* kName = "bfloat16";
  static constexpr double kUlp = 0x1p-7;
  static constexpr double kSmallest = 0x1p-133;
};

template <typename T>
T to_element(double x) {
  return libvar::cuda::from_float<T>(static_cast<float>(x));
}

template <typename T>
double to_double(T x) {
  return libvar::cuda::to_float(x);
}

/// Rounds every value to the dtype, so that kernel and oracle see the same numbers.
template <typename T>
void round_to(std::vector<double>& values) {
  for (double& x : values) x = to_double(to_element<T>(x));
}

/// How far a correctly rounded result may lie from the exact one: half a unit in its last place.
template <typename T>
double rounding_of(double exact) {
  return std::fmax(std::fabs(exact) * ElementType<T>::kUlp, ElementType<T>::kSmallest) / 2.0;
}

/// NaN to start with: what a kernel forgets to write is found.
template <typename T>
std::vector<T> unwritten(std::size_t size) {
  return std::vector<T>(size, to_element<T>(NAN));
}

/// Passes where two results hold the same bits, NaN included.
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
