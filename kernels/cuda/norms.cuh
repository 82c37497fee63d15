#pragma once

// Sink scores, alone and fused into the layer's RMSNorm (ops.h: sink_scores, rms_norm_sink_scores,
// add_rms_norm_sink_scores). No torch.

#include "cuda/device.cuh"
#include "cuda/norms.h"

namespace libvar::cuda {

inline constexpr int kNormThreads = 256;
inline constexpr int kNormWarps = kNormThreads / kWarpSize;

struct alignas(16) NormShared {
  float sums[kNormWarps];
  // The staged row follows.
};

template <typename T>
LIBVAR_DEVICE T* staged_token(NormShared& shared) {
  return reinterpret_cast<T*>(&shared + 1);
}

/// Largest |x[d]| over the sink dimensions; those outside [0, D) can't be refused here and are
/// ignored.
template <typename T>
LIBVAR_DEVICE float largest_sink_value(const NormArguments<T>& args, const T* row) {
  float largest = 0.0f;
  for (int s = 0; s < args.num_sink_dims; ++s) {
    const std::int64_t d = args.sink_dims[s];
    if (d >= 0 && d < args.hidden_size) largest = fmaxf(largest, fabsf(to_float(row[d])));
  }
  return largest;
}

// Work: a block computes one token; thread t owns the dimensions t, t + 256, ... Thread 0 writes
// phi. Memory: hidden (and delta) is read once, normed (and residual) written once, phi costs 4
// bytes a token. A row that fits waits for its sum in shared memory (D elements); a longer one is
// read again, mostly from L2.
template <typename T>
__global__ void __launch_bounds__(kNormThreads) norm_kernel(NormArguments<T> args) {
  auto& shared = dynamic_shared<NormShared>();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t token = static_cast<int>(blockIdx.x);
  const T* hidden = args.hidden + token * args.hidden_stride;
  const bool adds = args.delta != nullptr;

  float sum = 0.0f;
  for (std::int64_t d = threadIdx.x; d < args.hidden_size; d += kNormThreads) {
    T element = hidden[d];
    if (adds) {
      // Rounded to the dtype before anything else reads it: phi and the norm are those of the
      // stored residual.
      element =
          from_float<T>(to_float(element) + to_float(args.delta[token * args.delta_stride + d]));
      args.residual[token * args.hidden_stride + d] = element;
    }
    if (args.staged) staged_token<T>(shared)[d] = element;
    sum = fmaf(to_float(element), to_float(element), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) shared.sums[warp] = sum;
  __syncthreads();
  sum = shared.sums[0];
  for (int w = 1; w < kNormWarps; ++w) sum += shared.sums[w];
  const float mean_square = sum / static_cast<float>(args.hidden_size) + args.eps;

  const T* row = args.staged ? staged_token<T>(shared)
                             : hidden;  // hidden: the sum by now, if there is a delta
  if (threadIdx.x == 0) {
    args.phi[token] =
        args.num_sink_dims == 0 ? 0.0f : largest_sink_value(args, row) / sqrtf(mean_square);
  }
  if (args.weight == nullptr) return;
  const float scale = rsqrtf(mean_square);
  for (std::int64_t d = threadIdx.x; d < args.hidden_size; d += kNormThreads) {
    // transformers' order of rounding: normalise, cast, multiply by the weight, cast.
    const T unit = from_float<T>(to_float(row[d]) * scale);
    args.normed[token * args.hidden_size + d] =
        from_float<T>(to_float(args.weight[d]) * to_float(unit));
  }
}

template <typename T>
cudaError_t launch_norm(NormArguments<T> args, cudaStream_t stream) {
  const std::size_t row_bytes = static_cast<std::size_t>(args.hidden_size) * sizeof(T);
  args.staged = sizeof(NormShared) + row_bytes <= kMostSharedBytes;
  return launch(&norm_kernel<T>, args.num_tokens, kNormThreads,
                sizeof(NormShared) + (args.staged ? row_bytes : 0), stream, args);
}

}  // namespace libvar::cuda
