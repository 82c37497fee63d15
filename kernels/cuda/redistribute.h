#pragma once

// How the torch side calls the redistribution kernels. No torch.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/strides.h"
#include "libvar/redistribution_rule.h"

namespace libvar::cuda {

/// Sizes and tensors as in ops.h. In place: out and its strides are those of probs.
template <typename T>
struct RedistributeArguments {
  const T* probs;            // [B, H, Q, K], K contiguous
  T* out;                    // [B, H, Q, K], K contiguous
  const float* sink_scores;  // [B, K]
  const bool* visual_mask;   // [B, K]
  const bool* row_mask;      // [B, Q] or null
  RowStrides probs_stride;
  RowStrides out_stride;
  TokenStrides sink_scores_stride;
  TokenStrides visual_mask_stride;
  TokenStrides row_mask_stride;
  std::int64_t batch;
  std::int64_t num_heads;
  std::int64_t num_rows;
  std::int64_t num_keys;
  RedistributionRule rule;
  bool keeps_classes;  // of a long row, in shared memory; set by launch_redistribute
  bool keeps_row;      // the same
};

/// Defined in redistribute.cuh, instantiated for every element type in redistribute.cu.
template <typename T>
cudaError_t launch_redistribute(RedistributeArguments<T> args, cudaStream_t stream);

}  // namespace libvar::cuda
