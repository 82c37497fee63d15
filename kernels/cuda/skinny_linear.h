#pragma once

// How the torch side calls the kernels of skinny_linear and skinny_swiglu. No torch.

#include <cuda_runtime.h>

#include <cstdint>

namespace libvar::cuda {

/// Most rows of input, as in ops.h.
inline constexpr int kMostSkinnyRows = 8;

/// Weight [N, K], K contiguous. W: its elements; T: those of input, bias and output.
template <typename W, typename T>
struct SkinnyMatrix {
  const W* weight;
  const float* scale;   // [N] where W is int8, or null
  const T* bias;        // [N] or null
  std::int64_t stride;  // elements from a row of the weight to the next
};

template <typename W, typename T>
struct SkinnyArguments {
  SkinnyMatrix<W, T> first;   // the matrix; of skinny_swiglu the gate
  SkinnyMatrix<W, T> second;  // of skinny_swiglu what the gate is multiplied by
  const T* input;             // [M, K] contiguous
  T* output;                  // [M, N] contiguous
  std::int64_t num_rows;      // M
  std::int64_t in_features;   // K
  std::int64_t out_features;  // N
  bool starts_early;  // beside the stream's previous kernel, which must not write weight or scale
  bool has_vectors;   // all rows lie at multiples of 16 bytes; set by the launcher
};

/// Defined in skinny_linear.cuh, instantiated for all types in skinny_linear.cu and
/// skinny_swiglu.cu.
template <typename W, typename T>
cudaError_t launch_skinny_linear(const SkinnyArguments<W, T>& args, cudaStream_t stream);

template <typename W, typename T>
cudaError_t launch_skinny_swiglu(const SkinnyArguments<W, T>& args, cudaStream_t stream);

}  // namespace libvar::cuda
