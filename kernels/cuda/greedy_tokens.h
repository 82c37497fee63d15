#pragma once

// How the torch side calls the kernel of greedy_tokens. No torch.

#include <cuda_runtime.h>

#include <cstdint>

namespace libvar::cuda {

/// Rows are `row_stride` elements apart.
template <typename T>
struct GreedyArguments {
  const T* logits;       // [B, V]
  std::int64_t* tokens;  // [B]
  std::int64_t row_stride;
  std::int64_t num_rows;  // B
  std::int64_t row_size;  // V
};

/// Defined in greedy_tokens.cuh, instantiated for every element type in greedy_tokens.cu.
template <typename T>
cudaError_t launch_greedy_tokens(const GreedyArguments<T>& args, cudaStream_t stream);

}  // namespace libvar::cuda
