#pragma once

// Kernels whose blocks stay and loop over the work. No torch.

#include "cuda/launch.cuh"

namespace libvar::cuda {

/// Launches as many blocks as the device holds at once, at most `num_blocks`, each of which would
/// have enough to do.
template <typename Arguments>
cudaError_t launch_persistent(void (*kernel)(Arguments), std::int64_t num_blocks, int num_threads,
                              std::size_t shared_bytes, cudaStream_t stream,
                              const Arguments& arguments) {
  int device = 0;
  int num_multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess && num_blocks > num_multiprocessors) {
    int per_multiprocessor = 0;
    error = allow_shared_bytes(kernel, shared_bytes);
    if (error == cudaSuccess) {
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel,
                                                            num_threads, shared_bytes);
    }
    const std::int64_t most = std::int64_t{num_multiprocessors} * per_multiprocessor;
    if (num_blocks > most) num_blocks = most;
  }
  if (error != cudaSuccess) return error;
  return launch(kernel, num_blocks, num_threads, shared_bytes, stream, arguments);
}

}  // namespace libvar::cuda
