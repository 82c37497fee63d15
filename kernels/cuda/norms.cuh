#pragma once

// Sink scores, alone and fused into the layer's RMSNorm (ops.h: sink_scores, rms_norm_sink_scores,
// add_rms_norm_sink_scores). No torch.

#include "cuda/norms.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kLongNormThreads = 256;
inline constexpr int kMostNormWarps = 16;

struct alignas(16) NormShared {
  float sums[kMostNormWarps];
  float sink_values[kMostSinkDims];  // |x| at each sink dimension inside [0, D)
  // A long token's row follows.
};

/// Sum over the block's kWarps warps, the same bits in every thread. One barrier, which orders
/// everything else that was written before, too.
template <int kWarps>
LIBVAR_DEVICE float sum_over_token(float x, NormShared& shared) {
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) shared.sums[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  float sum = shared.sums[0];
  LIBVAR_UNROLL
  for (int w = 1; w < kWarps; ++w) sum += shared.sums[w];
  return sum;
}

/// One sink dimension in each of a warp's first lanes, -1 in the others and for dimensions outside
/// [0, D), which can't be refused here and are ignored.
template <typename T>
LIBVAR_DEVICE int sink_dim_of_lane(const NormArguments<T>& args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (lane >= args.num_sink_dims) return -1;
  const std::int64_t d = args.sink_dims[lane];
  return d >= 0 && d < args.hidden_size ? static_cast<int>(d) : -1;
}

/// phi from the largest of the values that the owners of the sink dimensions left behind. Called by
/// a whole warp.
template <typename T>
LIBVAR_DEVICE void write_phi(const NormArguments<T>& args, const NormShared& shared, int sink_dim,
                             float mean_square, std::int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const float largest = warp_max(sink_dim >= 0 ? shared.sink_values[lane] : 0.0f);
  if (lane == 0) args.phi[token] = args.num_sink_dims == 0 ? 0.0f : largest / sqrtf(mean_square);
}

/// Element d of the row whose vectors `thread` of kThreads owns; d is one of them. By masks,
/// because an index that is no constant costs local memory.
template <typename T, int kThreads, int kVectors>
LIBVAR_DEVICE float owned_element(const Vector (&row)[kVectors], int thread, int d) {
  constexpr int kInWord = kVectorSize<T> / 4;
  std::uint32_t word = 0;
  LIBVAR_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    LIBVAR_UNROLL
    for (int w = 0; w < 4; ++w) {
      const int place = (v * kThreads + thread) * 4 + w;
      word |= row[v].word[w] & (d / kInWord == place ? 0xffffffffu : 0u);
    }
  }
  const Vector found = {{word, 0, 0, 0}};
  float x[kVectorSize<T>];
  unpack<T>(found, x);
  return d % kInWord == 0 ? x[0] : x[kInWord - 1];
}

/// Sum of two vectors, rounded to the dtype before anything else reads it: phi and the norm are
/// those of the stored residual.
template <typename T>
LIBVAR_DEVICE Vector rounded_sum(const Vector& a, const Vector& b) {
  float x[kVectorSize<T>];
  float y[kVectorSize<T>];
  unpack<T>(a, x);
  unpack<T>(b, y);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) x[e] += y[e];
  return pack<T>(x);
}

/// transformers' order of rounding: normalise, cast, multiply by the weight, cast.
template <typename T>
LIBVAR_DEVICE Vector normalised(const Vector& row, float scale, const Vector& weight) {
  float x[kVectorSize<T>];
  float y[kVectorSize<T>];
  unpack<T>(row, x);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) x[e] *= scale;
  unpack<T>(pack<T>(x), x);
  unpack<T>(weight, y);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) x[e] *= y[e];
  return pack<T>(x);
}

/// Blocks that a multiprocessor shall hold. Without a bound ptxas aims at two blocks of 512 threads
/// on sm_100, and spills for it.
template <int kThreads, int kVectors>
inline constexpr int kNormBlocks = kThreads == 512 ? 1
                                   : kVectors == 4 ? 3
                                                   : 1536 / kThreads;

// Work: a block computes one token; thread t owns the vectors t, t + kThreads, ... The owner of a
// sink dimension drops its value into shared memory before the barrier that the norm has anyway.
// Memory: the row waits for its sum in registers; hidden (and delta) is read once, normed (and
// residual) written once, phi costs 4 bytes a token. All loads are issued before the first is
// waited for.
template <typename T, int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads, kNormBlocks<kThreads, kVectors>)
    norm_kernel(NormArguments<T> args) {
  follow_previous_kernel();
  constexpr int kElements = kVectorSize<T>;
  auto& shared = dynamic_shared<NormShared>();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t token = static_cast<int>(blockIdx.x);
  const int size = static_cast<int>(args.hidden_size);
  const T* hidden = args.hidden + token * args.hidden_stride;
  const int sink_dim = sink_dim_of_lane(args);

  Vector row[kVectors];
  const bool hidden_aligned = is_vector_aligned(hidden);
  LIBVAR_UNROLL
  for (int v = 0; v < kVectors; ++v)
    row[v] = load_vector(hidden, (v * kThreads + thread) * kElements, size, hidden_aligned);
  Vector weight[kVectors] = {};
  if (args.weight != nullptr) {
    const bool aligned = is_vector_aligned(args.weight);
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v)
      weight[v] = load_vector(args.weight, (v * kThreads + thread) * kElements, size, aligned);
  }
  if (args.delta != nullptr) {
    const T* delta = args.delta + token * args.delta_stride;
    const bool delta_aligned = is_vector_aligned(delta);
    T* residual = args.residual + token * args.hidden_stride;
    Vector added[kVectors];
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v)
      added[v] = load_vector(delta, (v * kThreads + thread) * kElements, size, delta_aligned);
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      row[v] = rounded_sum<T>(row[v], added[v]);
      store_vector(residual, (v * kThreads + thread) * kElements, size, hidden_aligned, row[v]);
    }
  }

  float sum = 0.0f;
  LIBVAR_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    float x[kElements];
    unpack<T>(row[v], x);
    LIBVAR_UNROLL
    for (int e = 0; e < kElements; ++e) sum = fmaf(x[e], x[e], sum);
  }
  for (int s = 0; s < args.num_sink_dims; ++s) {
    const int d = __shfl_sync(kFullWarp, sink_dim, s);
    if (d >= 0 && d / kElements % kThreads == thread)
      shared.sink_values[s] = fabsf(owned_element<T, kThreads>(row, thread, d));
  }
  sum = sum_over_token<kThreads / kWarpSize>(sum, shared);
  const float mean_square = sum / static_cast<float>(size) + args.eps;

  if (args.weight != nullptr) {
    const float scale = rsqrtf(mean_square);
    T* normed = args.normed + token * args.hidden_size;
    const bool normed_aligned = is_vector_aligned(normed);
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      forget_derived(row[v]);
      store_vector(normed, (v * kThreads + thread) * kElements, size, normed_aligned,
                   normalised<T>(row[v], scale, weight[v]));
    }
  }
  if (thread < kWarpSize) write_phi(args, shared, sink_dim, mean_square, token);
}

// Work: a block computes one token of any size; thread t owns the dimensions t, t + 256, ...
// Memory: as above, but a row that fits waits for its sum in shared memory (D elements), and a
// longer one is read again, mostly from L2.
template <typename T>
__global__ void __launch_bounds__(kLongNormThreads) long_norm_kernel(NormArguments<T> args) {
  follow_previous_kernel();
  auto& shared = dynamic_shared<NormShared>();
  const std::int64_t token = static_cast<int>(blockIdx.x);
  const T* hidden = args.hidden + token * args.hidden_stride;
  T* kept = args.keeps_row ? reinterpret_cast<T*>(&shared + 1) : nullptr;
  const int sink_dim = sink_dim_of_lane(args);

  float sum = 0.0f;
  for (std::int64_t d = threadIdx.x; d < args.hidden_size; d += kLongNormThreads) {
    T element = hidden[d];
    if (args.delta != nullptr) {
      element =
          from_float<T>(to_float(element) + to_float(args.delta[token * args.delta_stride + d]));
      args.residual[token * args.hidden_stride + d] = element;
    }
    if (kept != nullptr) kept[d] = element;
    sum = fmaf(to_float(element), to_float(element), sum);
  }
  const T* row = kept != nullptr ? kept : hidden;  // hidden: the sum by now, if there is a delta
  for (int s = 0; s < args.num_sink_dims; ++s) {
    const int d = __shfl_sync(kFullWarp, sink_dim, s);
    if (d >= 0 && d % kLongNormThreads == static_cast<int>(threadIdx.x))
      shared.sink_values[s] = fabsf(to_float(row[d]));
  }
  sum = sum_over_token<kLongNormThreads / kWarpSize>(sum, shared);
  const float mean_square = sum / static_cast<float>(args.hidden_size) + args.eps;
  if (threadIdx.x < kWarpSize) write_phi(args, shared, sink_dim, mean_square, token);
  if (args.weight == nullptr) return;
  const float scale = rsqrtf(mean_square);
  for (std::int64_t d = threadIdx.x; d < args.hidden_size; d += kLongNormThreads) {
    const T unit = from_float<T>(to_float(row[d]) * scale);
    args.normed[token * args.hidden_size + d] =
        from_float<T>(to_float(args.weight[d]) * to_float(unit));
  }
}

template <typename T>
cudaError_t launch_norm(NormArguments<T> args, cudaStream_t stream) {
  if (args.hidden_size > INT32_MAX / 2 || args.num_sink_dims > kMostSinkDims)
    return cudaErrorInvalidValue;
  const auto launch_rows = [&](auto kernel, int num_threads) {
    return launch(kernel, args.num_tokens, num_threads, sizeof(NormShared), stream, args,
                  Start::kBesidePrevious);
  };
  const std::int64_t num_vectors = (args.hidden_size + kVectorSize<T> - 1) / kVectorSize<T>;
  if (num_vectors <= 128) return launch_rows(&norm_kernel<T, 128, 1>, 128);
  if (num_vectors <= 256 * 2) return launch_rows(&norm_kernel<T, 256, 2>, 256);
  if (num_vectors <= 256 * 4) return launch_rows(&norm_kernel<T, 256, 4>, 256);
  if (num_vectors <= 512 * 4) return launch_rows(&norm_kernel<T, 512, 4>, 512);
  const std::size_t row_bytes = static_cast<std::size_t>(args.hidden_size) * sizeof(T);
  args.keeps_row = sizeof(NormShared) + row_bytes <= kMostSharedBytes;
  return launch(&long_norm_kernel<T>, args.num_tokens, kLongNormThreads,
                sizeof(NormShared) + (args.keeps_row ? row_bytes : 0), stream, args,
                Start::kBesidePrevious);
}

}  // namespace libvar::cuda
