#pragma once

// How every kernel is launched and gets its shared memory. No torch; tests/simt compiles the same
// text with g++, which is why there is no <<<>>> here.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace libvar::cuda {

inline constexpr std::size_t kSharedBytesWithoutOptIn = 48 * 1024;

/// Most dynamic shared memory that a kernel of ours asks for. sm_86, sm_89 and sm_120 allow 99 KB
/// in a block.
inline constexpr std::size_t kMostSharedBytes = 96 * 1024;

/// Lets a kernel have dynamic shared memory beyond what all may have.
template <typename Arguments>
cudaError_t allow_shared_bytes(void (*kernel)(Arguments), std::size_t shared_bytes) {
  if (shared_bytes <= kSharedBytesWithoutOptIn) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

/// Launches `kernel` over a grid of blocks; no blocks is no launch. Errors come back, they are not
/// thrown.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), dim3 grid, int num_threads, std::size_t shared_bytes,
                   cudaStream_t stream, const Arguments& arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const cudaError_t error = allow_shared_bytes(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

/// As above, blocks in one row.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), std::int64_t num_blocks, int num_threads,
                   std::size_t shared_bytes, cudaStream_t stream, const Arguments& arguments) {
  if (num_blocks < 0 || num_blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(kernel, dim3(static_cast<unsigned>(num_blocks)), num_threads, shared_bytes, stream,
                arguments);
}

// LIBVAR_UNROLL stands before loops over small arrays: an index that is no constant costs local
// memory. LIBVAR_NO_UNROLL stands before loops whose loads would otherwise all be in flight at
// once, each in registers of its own.
#if defined(__CUDACC__)
#define LIBVAR_DEVICE __device__ __forceinline__
#define LIBVAR_UNROLL _Pragma("unroll")
#define LIBVAR_NO_UNROLL _Pragma("unroll 1")
#else
#define LIBVAR_DEVICE inline
#define LIBVAR_UNROLL
#define LIBVAR_NO_UNROLL
#endif

/// The block's dynamic shared memory as the kernel's one struct. Nothing else is shared, so that
/// the emulator, which poisons this memory, sees every read of something that was not written.
template <typename Shared>
LIBVAR_DEVICE Shared& dynamic_shared() {
  extern __shared__ __align__(16) unsigned char libvar_dynamic_shared[];
  return *reinterpret_cast<Shared*>(libvar_dynamic_shared);
}

}  // namespace libvar::cuda
