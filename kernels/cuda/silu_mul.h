#pragma once

// How the torch side calls the kernel of silu_mul. No torch.

#include <cuda_runtime.h>

#include <cstdint>

namespace libvar::cuda {

/// Rows of gate and up are `..._stride` elements apart.
template <typename T>
struct SiluMulArguments {
  const T* gate;  // [R, F]
  const T* up;    // [R, F]
  T* output;      // [R, F] contiguous
  std::int64_t gate_stride;
  std::int64_t up_stride;
  std::int64_t num_rows;
  std::int64_t row_size;  // F
};

/// Defined in silu_mul.cuh, instantiated for every element type in silu_mul.cu.
template <typename T>
cudaError_t launch_silu_mul(const SiluMulArguments<T>& args, cudaStream_t stream);

}  // namespace libvar::cuda
