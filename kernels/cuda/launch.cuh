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

/// When a kernel may start.
enum class Start {
  kAfterPrevious,   ///< when the stream's previous kernel has ended: always right
  kBesidePrevious,  ///< earlier, where the device can (programmatic dependent launch): every thread
                    ///< must call wait_for_previous_kernel before it reads what the previous kernel
                    ///< may write, or writes at all
};

/// Whether the code of `kernel` that runs on this device waits for the previous kernel: code for
/// older devices, which a newer one may run too, does not.
template <typename Arguments>
cudaError_t can_wait_for_previous_kernel(void (*kernel)(Arguments), bool* can) {
  constexpr int kFirstVersion = 90;
  cudaFuncAttributes attributes = {};
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  *can = error == cudaSuccess && attributes.ptxVersion >= kFirstVersion;
  return error;
}

/// Launches `kernel` over a grid of blocks; no blocks is no launch. Errors come back, they are not
/// thrown.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), dim3 grid, int num_threads, std::size_t shared_bytes,
                   cudaStream_t stream, const Arguments& arguments,
                   Start start = Start::kAfterPrevious) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  cudaError_t error = allow_shared_bytes(kernel, shared_bytes);
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};
  if (start == Start::kBesidePrevious && error == cudaSuccess) {
    bool can_wait = false;
    error = can_wait_for_previous_kernel(kernel, &can_wait);
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = can_wait ? 1 : 0;
  }
  if (error != cudaSuccess) return error;
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(num_threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

/// As above, blocks in one row.
template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), std::int64_t num_blocks, int num_threads,
                   std::size_t shared_bytes, cudaStream_t stream, const Arguments& arguments,
                   Start start = Start::kAfterPrevious) {
  if (num_blocks < 0 || num_blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch(kernel, dim3(static_cast<unsigned>(num_blocks)), num_threads, shared_bytes, stream,
                arguments, start);
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

/// Returns when the stream's previous kernel has ended and its writes are visible; at once for a
/// kernel that started after it. See Start.
LIBVAR_DEVICE void wait_for_previous_kernel() {
#if !defined(__CUDACC__)
  simt::wait_for_previous_kernel();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the stream's next kernel start beside this one as soon as all blocks have come here, if it
/// is launched so. What this kernel writes is safe: the next one waits for its end. So is what the
/// kernel before wrote, if this one has not yet waited for it: its own end comes after.
LIBVAR_DEVICE void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Both, for kernels that have nothing to do before. The next kernel starts only after the wait:
/// what it asks for early, weights, would delay what this one reads.
LIBVAR_DEVICE void follow_previous_kernel() {
  wait_for_previous_kernel();
  let_next_kernel_start();
}

/// The block's dynamic shared memory as the kernel's one struct. Nothing else is shared, so that
/// the emulator, which poisons this memory, sees every read of something that was not written.
template <typename Shared>
LIBVAR_DEVICE Shared& dynamic_shared() {
  extern __shared__ __align__(16) unsigned char libvar_dynamic_shared[];
  return *reinterpret_cast<Shared*>(libvar_dynamic_shared);
}

}  // namespace libvar::cuda
