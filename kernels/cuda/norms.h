#pragma once

// How the torch side calls the norm kernels. No torch.

#include <cuda_runtime.h>

#include <cstdint>

namespace libvar::cuda {

/// Most sink dimensions of a call, as in checks.cpp.
inline constexpr int kMostSinkDims = 8;

/// Tokens are the rows of a matrix [T, D] whose rows are `..._stride` elements apart.
template <typename T>
struct NormArguments {
  const T* hidden;                // [T, D]
  const T* delta;                 // [T, D] or null: added to hidden
  T* residual;                    // hidden again, to take the sum; null without delta
  const T* weight;                // [D] or null: no norm, only phi
  const std::int64_t* sink_dims;  // [S] contiguous
  T* normed;                      // [T, D] contiguous, or null
  float* phi;                     // [T]
  std::int64_t hidden_stride;
  std::int64_t delta_stride;
  std::int64_t num_tokens;
  std::int64_t hidden_size;
  int num_sink_dims;
  float eps;
  bool keeps_row;  // of a long token, in shared memory; set by launch_norm
};

/// Defined in norms.cuh, instantiated for every element type in norms.cu.
template <typename T>
cudaError_t launch_norm(NormArguments<T> args, cudaStream_t stream);

}  // namespace libvar::cuda
