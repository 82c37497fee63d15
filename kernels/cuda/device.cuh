#pragma once

// What the kernels share on the device: element types, silu, warp reductions. No torch.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/strides.h"

namespace libvar::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

LIBVAR_DEVICE float to_float(float x) {
  return x;
}

LIBVAR_DEVICE float to_float(std::int8_t x) {
  return x;
}

LIBVAR_DEVICE float to_float(__half x) {
  return __half2float(x);
}

LIBVAR_DEVICE float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

/// Rounds to nearest, ties to even.
template <typename T>
LIBVAR_DEVICE T from_float(float x);

template <>
LIBVAR_DEVICE float from_float<float>(float x) {
  return x;
}

template <>
LIBVAR_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <>
LIBVAR_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

LIBVAR_DEVICE float silu(float x) {
  return x / (1.0f + expf(-x));
}

/// Sum over the warp, the same bits in every lane: each step adds the two halves in both orders,
/// and a + b == b + a.
LIBVAR_DEVICE float warp_sum(float x) {
  LIBVAR_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

/// Largest of the warp; NaN only where every lane holds NaN.
LIBVAR_DEVICE float warp_max(float x) {
  LIBVAR_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

}  // namespace libvar::cuda
