#pragma once

// How the torch side calls the rotary kernel. No torch.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/strides.h"

namespace libvar::cuda {

/// Rows of heads are [head_dim], contiguous.
template <typename T>
struct RotaryArguments {
  const T* query;              // [B, H, Q, Dh]
  const T* key;                // [B, H_kv, Q, Dh]
  const T* value;              // [B, H_kv, Q, Dh]
  const float* sink_scores;    // [B, Q]
  const T* cos;                // [B or 1, Q, Dh]
  const T* sin;                // [B or 1, Q, Dh]
  const std::int64_t* places;  // [B] contiguous
  T* rotated;                  // [B, H, Q, Dh] contiguous
  T* key_cache;                // [B, H_kv, K, Dh]
  T* value_cache;              // [B, H_kv, K, Dh]
  float* sink_score_cache;     // [B, K]
  RowStrides query_stride;
  RowStrides key_stride;
  RowStrides value_stride;
  RowStrides key_cache_stride;
  RowStrides value_cache_stride;
  TokenStrides sink_scores_stride;
  TokenStrides sink_score_cache_stride;
  TokenStrides cos_stride;  // batch 0 where all sequences share them
  TokenStrides sin_stride;
  std::int64_t batch;
  std::int64_t num_rows;
  std::int64_t capacity;  // K
  int num_heads;
  int num_kv_heads;
  int half;  // Dh / 2
};

/// Defined in rotary.cuh, instantiated for every element type in rotary.cu.
template <typename T>
cudaError_t launch_rotary(const RotaryArguments<T>& args, cudaStream_t stream);

}  // namespace libvar::cuda
