#pragma once

// The token of a row's largest logit (ops.h: greedy_tokens). No torch.

#include <cfloat>

#include "cuda/greedy_tokens.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kGreedyThreads = 1024;
inline constexpr int kGreedyVectors = 4;  // that a thread has in flight

struct Candidate {
  float logit;
  int token;
};

struct GreedyShared {
  Candidate of_warps[kGreedyThreads / kWarpSize];
};

/// Whether `a` is chosen before `b`: NaN before all, then the larger logit, then the lower token.
LIBVAR_DEVICE bool is_before(const Candidate& a, const Candidate& b) {
  const bool a_is_nan = a.logit != a.logit;
  const bool b_is_nan = b.logit != b.logit;
  if (a_is_nan != b_is_nan) return a_is_nan;
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/// The first candidate of the warp, in lane 0.
LIBVAR_DEVICE Candidate first_of_warp(Candidate mine) {
  LIBVAR_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const Candidate other = {__shfl_xor_sync(kFullWarp, mine.logit, offset),
                             __shfl_xor_sync(kFullWarp, mine.token, offset)};
    if (is_before(other, mine)) mine = other;
  }
  return mine;
}

// Work: a block takes a row; thread t owns its vectors t, t + 1024, ... Memory: the row, which a
// linear map has just written, is read once from the L2 cache, in vectors where it is aligned.
template <typename T>
__global__ void __launch_bounds__(kGreedyThreads) greedy_tokens_kernel(GreedyArguments<T> args) {
  follow_previous_kernel();
  constexpr int kElements = kVectorSize<T>;
  constexpr int kStep = kGreedyThreads * kElements;
  GreedyShared& shared = dynamic_shared<GreedyShared>();
  const int size = static_cast<int>(args.row_size);
  const int thread = static_cast<int>(threadIdx.x);
  const T* row = args.logits + static_cast<std::int64_t>(blockIdx.x) * args.row_stride;
  const bool is_aligned = is_vector_aligned(row);

  Candidate best = {-INFINITY, size};
  for (int first = thread * kElements; first < size; first += kGreedyVectors * kStep) {
    Vector vectors[kGreedyVectors];
    LIBVAR_UNROLL
    for (int v = 0; v < kGreedyVectors; ++v)
      vectors[v] = load_vector(row, first + v * kStep, size, is_aligned);
    LIBVAR_UNROLL
    for (int v = 0; v < kGreedyVectors; ++v) {
      float logits[kElements];
      unpack<T>(vectors[v], logits);
      LIBVAR_UNROLL
      for (int e = 0; e < kElements; ++e) {
        // Tokens come in ascending order: of equal logits the first stays. So does NaN.
        const int token = first + v * kStep + e;
        if (token < size && (logits[e] > best.logit || logits[e] != logits[e]))
          best = {logits[e], token};
      }
    }
  }
  best = first_of_warp(best);
  if (thread % kWarpSize == 0) shared.of_warps[thread / kWarpSize] = best;
  __syncthreads();
  if (thread >= kWarpSize) return;
  best = first_of_warp(shared.of_warps[thread]);
  if (thread == 0) args.tokens[blockIdx.x] = fabsf(best.logit) <= FLT_MAX ? best.token : -1;
}

template <typename T>
cudaError_t launch_greedy_tokens(const GreedyArguments<T>& args, cudaStream_t stream) {
  if (args.row_size > INT32_MAX / 2) return cudaErrorInvalidValue;
  return launch(&greedy_tokens_kernel<T>, args.num_rows, kGreedyThreads, sizeof(GreedyShared),
                stream, args, Start::kBesidePrevious);
}

}  // namespace libvar::cuda
