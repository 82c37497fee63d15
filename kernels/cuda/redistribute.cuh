#pragma once

// Redistribution of given probabilities (ops.h: redistribute). No torch.

#include "classes.h"
#include "cuda/device.cuh"
#include "cuda/redistribute.h"

namespace libvar::cuda {

inline constexpr int kRedistributeThreads = 128;
inline constexpr int kRedistributeWarps = kRedistributeThreads / kWarpSize;

/// The first four are the masses of the classes.
enum RedistributeSum { kNumVisualKeys = kNumTokenClasses, kNumVisualSinks, kNumRedistributeSums };

struct alignas(16) RedistributeShared {
  float sums[kRedistributeWarps][kNumRedistributeSums];
  // The staged row follows.
};

template <typename T>
LIBVAR_DEVICE T* staged_row(RedistributeShared& shared) {
  return reinterpret_cast<T*>(&shared + 1);
}

template <typename T>
LIBVAR_DEVICE int class_of_key(const RedistributeArguments<T>& args, std::int64_t b,
                               std::int64_t j) {
  return token_class(args.sink_scores[args.sink_scores_stride.offset(b, j)],
                     args.visual_mask[args.visual_mask_stride.offset(b, j)], args.rule.tau);
}

/// Adds up the row that the block reads, from sums of 0, the same bits in every thread; keeps the
/// row in shared memory if it is staged.
template <typename T>
LIBVAR_DEVICE void sum_row(const RedistributeArguments<T>& args, RedistributeShared& shared,
                           const T* probs, std::int64_t b, float (&sums)[kNumRedistributeSums]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (std::int64_t j = threadIdx.x; j < args.num_keys; j += kRedistributeThreads) {
    const T element = probs[j];
    if (args.staged) staged_row<T>(shared)[j] = element;
    const int own_class = class_of_key(args, b, j);
    const float probability = to_float(element);
    LIBVAR_UNROLL
    for (int c = 0; c < kNumTokenClasses; ++c) sums[c] += own_class == c ? probability : 0.0f;
    sums[kNumVisualKeys] += own_class <= static_cast<int>(TokenClass::kVisualNonSink) ? 1.0f : 0.0f;
    sums[kNumVisualSinks] += own_class == static_cast<int>(TokenClass::kVisualSink) ? 1.0f : 0.0f;
  }
  LIBVAR_UNROLL
  for (int s = 0; s < kNumRedistributeSums; ++s) {
    sums[s] = warp_sum(sums[s]);
    if (lane == 0) shared.sums[warp][s] = sums[s];
  }
  __syncthreads();
  LIBVAR_UNROLL
  for (int s = 0; s < kNumRedistributeSums; ++s) {
    sums[s] = shared.sums[0][s];
    LIBVAR_UNROLL
    for (int w = 1; w < kRedistributeWarps; ++w) sums[s] += shared.sums[w][s];
  }
}

// Work: a block computes one row of one head of one sequence; thread t owns the keys t, t + 128,
// ... Rows that their mask leaves out are copied, or in place not even read. Memory: probs is read
// once and written once. A row that fits waits for its sums in shared memory (K elements); a longer
// one is read again, mostly from L2. A thread reads back only what it wrote there itself.
template <typename T>
__global__ void __launch_bounds__(kRedistributeThreads)
    redistribute_kernel(RedistributeArguments<T> args) {
  auto& shared = dynamic_shared<RedistributeShared>();
  const std::int64_t row = static_cast<int>(blockIdx.x) % args.num_rows;
  const std::int64_t head = static_cast<int>(blockIdx.x) / args.num_rows % args.num_heads;
  const std::int64_t b = static_cast<int>(blockIdx.x) / args.num_rows / args.num_heads;
  const T* probs = args.probs + args.probs_stride.offset(b, head, row);
  T* out = args.out + args.out_stride.offset(b, head, row);
  const bool in_place = out == probs;

  const bool may_change =
      args.rule.head_rule != HeadRule::kNone &&
      (args.row_mask == nullptr || args.row_mask[args.row_mask_stride.offset(b, row)]);
  float sums[kNumRedistributeSums] = {};
  if (may_change) sum_row(args, shared, probs, b, sums);
  const float mass[kNumTokenClasses] = {sums[0], sums[1], sums[2], sums[3]};
  const ClassWeights weights = class_weights(mass, args.rule, sums[kNumVisualKeys],
                                             may_change && sums[kNumVisualSinks] > 0.0f);
  if (!weights.selected && in_place) return;
  const T* source = may_change && args.staged ? staged_row<T>(shared) : probs;
  for (std::int64_t j = threadIdx.x; j < args.num_keys; j += kRedistributeThreads) {
    T element = source[j];
    if (weights.selected) {
      const int own_class = class_of_key(args, b, j);
      float weight = weights.weight[0];
      LIBVAR_UNROLL
      for (int c = 1; c < kNumTokenClasses; ++c)
        weight = own_class == c ? weights.weight[c] : weight;
      if (weight != 1.0f) element = from_float<T>(to_float(element) * weight);
    }
    out[j] = element;
  }
}

template <typename T>
cudaError_t launch_redistribute(RedistributeArguments<T> args, cudaStream_t stream) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.num_keys) * sizeof(T);
  args.staged = sizeof(RedistributeShared) + row_bytes <= kMostSharedBytes;
  const std::int64_t num_blocks =
      args.num_keys == 0 ? 0 : args.batch * args.num_heads * args.num_rows;
  return launch(&redistribute_kernel<T>, num_blocks, kRedistributeThreads,
                sizeof(RedistributeShared) + (args.staged ? row_bytes : 0), stream, args);
}

}  // namespace libvar::cuda
