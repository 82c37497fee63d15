#pragma once

// How the torch side calls the attention kernels. No torch.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/strides.h"
#include "libvar/redistribution_rule.h"

namespace libvar::cuda {

inline constexpr int kMaxHeadDim = 256;

/// Sizes and tensors as in ops.h; optional tensors may be null.
template <typename T>
struct AttentionArguments {
  const T* query;                  // [B, H, Q, Dh]
  const T* key;                    // [B, H_kv, K, Dh]
  const T* value;                  // [B, H_kv, K, Dh]
  const float* sink_scores;        // [B, K]
  const bool* visual_mask;         // [B, K]
  const bool* row_mask;            // [B, Q] or null
  const std::int32_t* kv_lengths;  // [B] contiguous or null
  const float* params;             // [B, 4] contiguous or null
  T* out;                          // [B, H, Q, Dh] contiguous
  bool* selected;                  // [B, H, Q] contiguous or null
  float* class_mass;               // [B, H, Q, 4] contiguous or null
  RowStrides query_stride;
  RowStrides key_stride;
  RowStrides value_stride;
  TokenStrides sink_scores_stride;
  TokenStrides visual_mask_stride;
  TokenStrides row_mask_stride;
  std::int64_t batch;
  int num_heads;
  int num_kv_heads;
  int num_rows;
  int num_keys;
  int head_dim;
  float scale;
  RedistributionRule rule;
};

enum class AttentionKernel {
  kGeneral,  ///< any head size, stride and dtype; needs no memory in between
  kDecode,
  kGroup,
  kRows,
};

/// What a capacity much larger than the length costs in blocks without work stays small.
inline constexpr std::int64_t kMostBlocks = 2048;

/// A call cut into launches: `num_sequences` sequences and `num_rows` query rows each. Where it is
/// cut changes no bits.
struct AttentionPieces {
  int num_sequences = 0;
  int num_rows = 0;
  int num_ranges = 0;
  std::int64_t num_states = 0;
  std::int64_t most_blocks =
      kMostBlocks;        ///< of a launch, beyond which its blocks loop over ranges
  std::size_t bytes = 0;  ///< of the memory in between
};

// The following are defined in attention_launch.cuh, instantiated for every element type in
// attention_launch.cu.

/// By dtype, sizes and alignment alone.
template <typename T>
AttentionKernel choose_attention_kernel(const AttentionArguments<T>& args);

/// @param most_bytes  what the memory in between should not exceed; one sequence's piece of one row
///                    tile always fits, however long its keys are
template <typename T>
AttentionPieces cut_attention(const AttentionArguments<T>& args, AttentionKernel kernel,
                              bool with_classes, std::size_t most_bytes);

/// Computes a call.
/// @param scratch       pieces.bytes on the device, aligned to 16
/// @param with_classes  false: attention without any class logic, for the benchmarks' comparison;
///                      not for kGeneral
/// @return cudaErrorInvalidValue for a head size above kMaxHeadDim
template <typename T>
cudaError_t launch_attention(const AttentionArguments<T>& attention, AttentionKernel kernel,
                             const AttentionPieces& pieces, void* scratch, bool with_classes,
                             cudaStream_t stream);

}  // namespace libvar::cuda
