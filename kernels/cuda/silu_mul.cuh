#pragma once

// silu of one row times another, element by element (ops.h: silu_mul). No torch.

#include "cuda/silu_mul.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kSiluMulThreads = 128;
inline constexpr int kSiluMulVectors = 2;  // of each row that a thread has in flight

/// Elements of a row that a block computes.
template <typename T>
inline constexpr int kSiluMulElements = kSiluMulThreads* kSiluMulVectors* kVectorSize<T>;

/// As separate operators round: silu, then the product.
template <typename T>
LIBVAR_DEVICE Vector silu_times(const Vector& gate, const Vector& up) {
  float x[kVectorSize<T>];
  float y[kVectorSize<T>];
  unpack<T>(gate, x);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) x[e] = silu(x[e]);
  unpack<T>(pack<T>(x), x);
  unpack<T>(up, y);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) x[e] *= y[e];
  return pack<T>(x);
}

// Work: a block computes a part of one row; thread t owns its vectors t and t + 128. Memory:
// everything is read once and written once, in vectors where the addresses allow it. All loads are
// issued before the first is waited for.
template <typename T>
__global__ void __launch_bounds__(kSiluMulThreads) silu_mul_kernel(SiluMulArguments<T> args) {
  follow_previous_kernel();
  constexpr int kStep = kSiluMulThreads * kVectorSize<T>;
  const int size = static_cast<int>(args.row_size);
  const int blocks = (size + kSiluMulElements<T> - 1) / kSiluMulElements<T>;  // of a row
  const int block = static_cast<int>(blockIdx.x);
  const std::int64_t row = block / blocks;
  const int first =
      block % blocks * kSiluMulElements<T> + static_cast<int>(threadIdx.x) * kVectorSize<T>;
  const T* gate_row = args.gate + row * args.gate_stride;
  const T* up_row = args.up + row * args.up_stride;
  T* output_row = args.output + row * args.row_size;
  const bool gate_aligned = is_vector_aligned(gate_row);
  const bool up_aligned = is_vector_aligned(up_row);
  const bool output_aligned = is_vector_aligned(output_row);

  Vector gate[kSiluMulVectors];
  Vector up[kSiluMulVectors];
  LIBVAR_UNROLL
  for (int v = 0; v < kSiluMulVectors; ++v) {
    gate[v] = load_vector(gate_row, first + v * kStep, size, gate_aligned);
    up[v] = load_vector(up_row, first + v * kStep, size, up_aligned);
  }
  LIBVAR_UNROLL
  for (int v = 0; v < kSiluMulVectors; ++v) {
    if (first + v * kStep >= size) break;
    store_vector(output_row, first + v * kStep, size, output_aligned,
                 silu_times<T>(gate[v], up[v]));
  }
}

template <typename T>
cudaError_t launch_silu_mul(const SiluMulArguments<T>& args, cudaStream_t stream) {
  if (args.row_size > INT32_MAX / 2) return cudaErrorInvalidValue;
  const std::int64_t blocks = (args.row_size + kSiluMulElements<T> - 1) / kSiluMulElements<T>;
  return launch(&silu_mul_kernel<T>, args.num_rows * blocks, kSiluMulThreads, 0, stream, args,
                Start::kBesidePrevious);
}

}  // namespace libvar::cuda
