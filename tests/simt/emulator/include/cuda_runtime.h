#pragma once

// Stands in for CUDA's cuda_runtime.h where g++ compiles the kernels for tests/simt: the names that
// kernels/cuda uses.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <tuple>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

using dim3 = simt::Size3;
using cudaStream_t = struct CUstream_st*;

inline const simt::Index3& threadIdx = simt::thread_index;
inline const simt::Index3& blockIdx = simt::block_index;
inline const dim3& blockDim = simt::block_size;
inline const dim3& gridDim = simt::grid_size;

using std::max;
using std::min;

inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}

// Never fused by this build's compiler: it has no instructions to fuse with.
inline float __fmul_rn(float x, float y) {
  return x * y;
}

inline float __fadd_rn(float x, float y) {
  return x + y;
}

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}

inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}

inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7u) * 8 & 0xffu) << 8 * i;
  return result;
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

// Every meeting point knows its place in the source through the default arguments.
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_SITE) {
  simt::block_barrier({file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  simt::warp_collective(simt::Collective::kSync, mask, 0, 0, {file, line});
}

namespace simt {

template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(Collective::kShuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt

// A lane whose source would lie outside its segment of `width` lanes gets its own value, as CUDA
// defines.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
  const int segment = simt::lane_index() / width * width;
  return simt::shuffle(mask, value, segment + (source & (width - 1)), {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIMT_SITE) {
  const int lane = simt::lane_index();
  const int source = lane ^ lane_mask;
  return simt::shuffle(mask, value, source / width > lane / width ? lane : source, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const int lane = simt::lane_index();
  const int source = lane + static_cast<int>(delta);
  return simt::shuffle(mask, value, source / width == lane / width ? source : lane, {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  const int lane = simt::lane_index();
  const int source = lane - static_cast<int>(delta);
  return simt::shuffle(mask, value, source >= lane / width * width ? source : lane, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return static_cast<unsigned>(
      simt::warp_collective(simt::Collective::kBallot, mask, predicate != 0, 0, {file, line}));
}

inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::warp_collective(simt::Collective::kAny, mask, predicate != 0, 0, {file, line}) != 0;
}

inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return simt::warp_collective(simt::Collective::kAll, mask, predicate != 0, 0, {file, line}) ==
         mask;
}

// --- the part of the host's side that launch.cuh uses ---

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };

struct cudaLaunchAttributeValue {
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
};

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

namespace simt {

/// Shared memory that each kernel may ask for, beyond the 48 KB that all may.
inline std::map<const void*, std::size_t>& shared_limits() {
  static std::map<const void*, std::size_t> limits;
  return limits;
}

}  // namespace simt

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<std::size_t>(value) > simt::kMaxSharedBytes)
    return cudaErrorInvalidValue;
  simt::shared_limits()[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

/// Runs the kernel to its end. What is wrong with the kernel itself is thrown as simt::Error.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto limit = simt::shared_limits().find(reinterpret_cast<const void*>(kernel));
  const std::size_t shared_limit = limit == simt::shared_limits().end() ? 48 * 1024 : limit->second;
  if (config->dynamicSmemBytes > std::max<std::size_t>(shared_limit, 48 * 1024))
    return cudaErrorInvalidValue;
  const std::tuple<Parameters...> kept(std::forward<Arguments>(arguments)...);
  simt::begin_kernel(config->numAttrs > 0);
  simt::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                 [&] { std::apply(kernel, kept); });
  return cudaSuccess;
}

// --- what persistent.cuh asks of the device ---

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = simt::kNumMultiprocessors;
  return cudaSuccess;
}

/// One: blocks run one after the other, and few blocks make each of them loop.
template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks, void (*)(Parameters...),
                                                          int, std::size_t) {
  *num_blocks = 1;
  return cudaSuccess;
}
