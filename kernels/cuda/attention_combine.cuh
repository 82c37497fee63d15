#pragma once

// Merges the partial states of the rows: class masses, the row rule, the weighted sum. No torch.

#include "cuda/attention_launch.cuh"

namespace libvar::cuda {

inline constexpr int kCombineThreads = 128;
inline constexpr int kCombineWarps = kCombineThreads / kWarpSize;

struct alignas(16) Float4 {
  float x[4];
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

struct CombineEntry {
  int index;     // of a partial state, counted from the row's first
  float factor;  // of its weighted values
};

/// What the kWarps warps of a row tell one another.
template <int kWarps>
struct CombineShared {
  float maximum[kWarps];
  float mass[kWarps][kNumTokenClasses];
  int num_visual[kWarps];
  int sees_visual_sink[kWarps];
  CombineEntry entries[kWarps][kWarpSize * kNumTokenClasses];
  Float4 out[kWarps][kWarps > 1 ? kMaxHeadDim / 4 : 1];
};

/// Warp of this thread among those of its row.
template <int kWarps>
LIBVAR_DEVICE int warp_of_row() {
  return static_cast<int>(threadIdx.x) / kWarpSize % kWarps;
}

/// A barrier for the warps of a row.
template <int kWarps>
LIBVAR_DEVICE void sync_row() {
  if constexpr (kWarps == 1) {
    __syncwarp();
  } else {
    static_assert(kWarps == kCombineWarps);
    __syncthreads();
  }
}

/// Where a row of the launch is.
struct CombineRow {
  std::int64_t sequence;
  std::int64_t local_sequence;
  int head;
  int row;
  int position;
  int num_ranges;
  const PartialState* states;
};

/// @param local_row  of the launch
template <bool kClasses, typename T>
LIBVAR_DEVICE CombineRow combine_row(const PartialArguments<T>& args, int local_row) {
  CombineRow row = {};
  row.row = args.first_row + local_row;
  row.head = static_cast<int>(blockIdx.y);
  row.local_sequence = static_cast<int>(blockIdx.z);
  row.sequence = args.first_sequence + row.local_sequence;
  row.position = sequence_length(args.attention, row.sequence) - args.attention.num_rows + row.row;
  row.num_ranges = args.ranges.count(row.position + 1);
  const std::int64_t index = (row.local_sequence * args.attention.num_heads + row.head) *
                                 static_cast<std::int64_t>(args.num_rows) +
                             local_row;
  row.states = args.states + state_index<kClasses>(args, index, 0);
  return row;
}

/// Ranges are dealt out to the warps one by one, so that few of them keep all warps busy.
template <int kWarps>
LIBVAR_DEVICE int dealt_range(int round) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  return (round * kWarpSize + lane) * kWarps + warp_of_row<kWarps>();
}

/// Largest maximum of the row; on the way, what the row sees of visual tokens.
template <bool kClasses, int kWarps, typename T>
LIBVAR_DEVICE float survey(const PartialArguments<T>& args, CombineShared<kWarps>& shared,
                           const CombineRow& row) {
  const int warp = warp_of_row<kWarps>();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float maximum = -INFINITY;
  int num_visual = 0;
  bool sees_visual_sink = false;
  for (int round = 0; round * kWarpSize * kWarps < row.num_ranges; ++round) {
    const int range = dealt_range<kWarps>(round);
    if (range >= row.num_ranges) continue;
    LIBVAR_UNROLL
    for (int c = 0; c < kNumStates<kClasses>; ++c)
      maximum = fmaxf(maximum, row.states[range * kNumStates<kClasses> + c].maximum);
    if (kClasses) {
      const RangeFacts facts = args.facts[row.local_sequence * args.num_ranges + range];
      sees_visual_sink |= facts.first_visual_sink <= row.position;
      // The facts of the row's own range may count keys past the row.
      if (range < row.num_ranges - 1) num_visual += facts.num_visual;
    }
  }
  if (kClasses && args.attention.rule.ratio_epsilon > 0.0f && row.num_ranges > 0) {
    for (int j = args.ranges.begin(row.num_ranges - 1) + warp * kWarpSize + lane; j <= row.position;
         j += kWarps * kWarpSize) {
      const std::int64_t at = args.attention.visual_mask_stride.offset(row.sequence, j);
      num_visual += args.attention.visual_mask[at] ? 1 : 0;
    }
  }
  maximum = warp_max(maximum);
  if (kClasses) {
    LIBVAR_UNROLL
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
      num_visual += __shfl_xor_sync(kFullWarp, num_visual, offset);
  }
  const int sees = kClasses ? __any_sync(kFullWarp, sees_visual_sink) : 0;
  if (lane == 0) {
    shared.maximum[warp] = maximum;
    shared.num_visual[warp] = num_visual;
    shared.sees_visual_sink[warp] = sees;
  }
  sync_row<kWarps>();
  LIBVAR_UNROLL
  for (int i = 0; i < kWarps; ++i) maximum = fmaxf(maximum, shared.maximum[i]);
  return maximum;
}

/// The row's mass of each class relative to `base`, the same bits in every thread.
template <bool kClasses, int kWarps>
LIBVAR_DEVICE void sum_masses(CombineShared<kWarps>& shared, const CombineRow& row, float base,
                              float (&mass)[kNumTokenClasses]) {
  constexpr int kStates = kNumStates<kClasses>;
  const int warp = warp_of_row<kWarps>();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float sum[kStates] = {};
  for (int round = 0; round * kWarpSize * kWarps < row.num_ranges; ++round) {
    const int range = dealt_range<kWarps>(round);
    if (range >= row.num_ranges) continue;
    LIBVAR_UNROLL
    for (int c = 0; c < kStates; ++c) {
      const PartialState state = row.states[range * kStates + c];
      sum[c] += state.sum * exp2_fast(state.maximum - base);
    }
  }
  LIBVAR_UNROLL
  for (int c = 0; c < kStates; ++c) {
    sum[c] = warp_sum(sum[c]);
    if (lane == 0) shared.mass[warp][c] = sum[c];
  }
  sync_row<kWarps>();
  LIBVAR_UNROLL
  for (int c = 0; c < kNumTokenClasses; ++c) {
    mass[c] = 0.0f;
    LIBVAR_UNROLL
    for (int i = 0; i < kWarps; ++i) mass[c] += c < kStates ? shared.mass[i][c] : 0.0f;
  }
}

/// Weighted values of the ranges that were dealt to this warp: lane l owns dimensions 4 l .. 4 l +
/// 3, and with kVectors = 2 those 128 further on.
template <typename T, int kVectors, bool kClasses, int kWarps>
LIBVAR_DEVICE void sum_values(const PartialArguments<T>& args, CombineShared<kWarps>& shared,
                              const CombineRow& row, float base,
                              const float (&weight)[kNumTokenClasses], Float4 (&sum)[kVectors]) {
  constexpr int kStates = kNumStates<kClasses>;
  const int warp = warp_of_row<kWarps>();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int head_dim = args.attention.head_dim;
  const float* out = args.out + (row.states - args.states) * head_dim;
  for (int round = 0; round * kWarpSize * kWarps < row.num_ranges; ++round) {
    // A list of what is there, so that the loads below don't wait for one another.
    const int range = dealt_range<kWarps>(round);
    int num_entries = 0;
    LIBVAR_UNROLL
    for (int c = 0; c < kStates; ++c) {
      PartialState state = {-INFINITY, 0.0f};
      if (range < row.num_ranges) state = row.states[range * kStates + c];
      const bool is_there = state.sum != 0.0f;  // NaN is
      const unsigned there = __ballot_sync(kFullWarp, is_there);
      const int place = num_entries + __popc(there & ((1u << lane) - 1u));
      if (is_there) {
        shared.entries[warp][place] = {range * kStates + c,
                                       weight[c] * exp2_fast(state.maximum - base)};
      }
      num_entries += __popc(there);
    }
    __syncwarp();
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int d = 4 * (lane + v * kWarpSize);
      if (d >= head_dim) continue;
#if defined(__CUDACC__)
#pragma unroll 8
#endif
      for (int i = 0; i < num_entries; ++i) {
        const CombineEntry entry = shared.entries[warp][i];
        const Float4 values = *reinterpret_cast<const Float4*>(
            out + static_cast<std::int64_t>(entry.index) * head_dim + d);
        LIBVAR_UNROLL
        for (int e = 0; e < 4; ++e) sum[v].x[e] = fmaf(entry.factor, values.x[e], sum[v].x[e]);
      }
    }
    __syncwarp();  // the next round overwrites the list
  }
}

/// Writes a row's output from what its warps have summed.
template <typename T, int kVectors, int kWarps>
LIBVAR_DEVICE void write_row(const AttentionArguments<T>& args, CombineShared<kWarps>& shared,
                             std::int64_t index, float total, bool is_empty,
                             const Float4 (&sum)[kVectors]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  T* out = args.out + index * args.head_dim;
  if constexpr (kWarps == 1) {
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int d = 4 * (lane + v * kWarpSize);
      if (d >= args.head_dim) continue;
      Four<T> four;
      LIBVAR_UNROLL
      for (int e = 0; e < 4; ++e) four.x[e] = from_float<T>(is_empty ? 0.0f : sum[v].x[e] / total);
      *reinterpret_cast<Four<T>*>(out + d) = four;
    }
  } else {
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v)
      shared.out[warp_of_row<kWarps>()][lane + v * kWarpSize] = sum[v];
    sync_row<kWarps>();
    const auto* values = reinterpret_cast<const float*>(shared.out);
    for (int d = static_cast<int>(threadIdx.x); d < args.head_dim; d += kCombineThreads) {
      float value = 0.0f;
      LIBVAR_UNROLL
      for (int i = 0; i < kWarps; ++i) value += values[i * kMaxHeadDim + d];
      out[d] = from_float<T>(is_empty ? 0.0f : value / total);
    }
  }
}

// Work: kWarps warps merge one row, every kWarps-th range each. Ranges past the row's position are
// not looked at: other rows of the tile left them. Memory: reads the states twice from L1 and every
// weighted sum once; shared memory holds what the warps found.
template <typename T, int kVectors, bool kClasses, int kWarps>
__global__ void __launch_bounds__(kCombineThreads, 5) combine_kernel(PartialArguments<T> args) {
  constexpr int kRows = kCombineWarps / kWarps;
  follow_previous_kernel();
  const int own = static_cast<int>(threadIdx.x) / (kWarps * kWarpSize);
  const int local_row = static_cast<int>(blockIdx.x) * kRows + own;
  if (local_row >= args.num_rows) return;
  auto& shared = dynamic_shared<CombineShared<kWarps>[kRows]>()[own];
  const AttentionArguments<T>& attention = args.attention;
  const CombineRow row = combine_row<kClasses>(args, local_row);
  const float maximum = survey<kClasses>(args, shared, row);
  const float base = maximum == -INFINITY ? 0.0f : maximum;
  float mass[kNumTokenClasses];
  sum_masses<kClasses>(shared, row, base, mass);
  const float total = mass[0] + mass[1] + mass[2] + mass[3];
  const bool is_empty = total == 0.0f;  // no key, or none with a score above -inf; NaN is not empty
  LIBVAR_UNROLL
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = is_empty ? 0.0f : mass[c] / total;

  ClassWeights weights = {{1.0f, 1.0f, 1.0f, 1.0f}, false};
  if (kClasses) {
    int num_visual = 0;
    int sees_visual_sink = 0;
    LIBVAR_UNROLL
    for (int i = 0; i < kWarps; ++i) {
      num_visual += shared.num_visual[i];
      sees_visual_sink |= shared.sees_visual_sink[i];
    }
    const bool eligible = sees_visual_sink != 0 &&
                          row_may_be_selected(attention, row.sequence, row.row, row.position);
    weights = class_weights(mass, sequence_rule(attention, row.sequence),
                            static_cast<float>(num_visual), eligible);
  }
  Float4 sum[kVectors] = {};
  if (!is_empty) sum_values<T, kVectors, kClasses>(args, shared, row, base, weights.weight, sum);
  const std::int64_t index =
      (row.sequence * attention.num_heads + row.head) * attention.num_rows + row.row;
  write_row<T>(attention, shared, index, total, is_empty, sum);
  if (threadIdx.x % (kWarps * kWarpSize) != 0) return;
  if (attention.selected != nullptr) attention.selected[index] = weights.selected;
  if (attention.class_mass == nullptr) return;
  LIBVAR_UNROLL
  for (int c = 0; c < kNumTokenClasses; ++c)
    attention.class_mass[index * kNumTokenClasses + c] = mass[c];
}

template <typename T, bool kClasses, int kWarps>
cudaError_t launch_combine_kernel(const PartialArguments<T>& args, cudaStream_t stream) {
  constexpr int kRows = kCombineWarps / kWarps;
  const dim3 grid(static_cast<unsigned>((args.num_rows + kRows - 1) / kRows),
                  static_cast<unsigned>(args.attention.num_heads),
                  static_cast<unsigned>(args.num_sequences));
  const auto kernel = args.attention.head_dim <= 4 * kWarpSize
                          ? &combine_kernel<T, 1, kClasses, kWarps>
                          : &combine_kernel<T, 2, kClasses, kWarps>;
  return launch(kernel, grid, kCombineThreads, kRows * sizeof(CombineShared<kWarps>), stream, args,
                Start::kBesidePrevious);
}

template <typename T>
cudaError_t launch_combine(const PartialArguments<T>& args, AttentionKernel kernel,
                           bool with_classes, cudaStream_t stream) {
  // One row of a decode step has all the device; of many rows a warp each keeps it busy.
  if (kernel == AttentionKernel::kRows)
    return with_classes ? launch_combine_kernel<T, true, 1>(args, stream)
                        : launch_combine_kernel<T, false, 1>(args, stream);
  return with_classes ? launch_combine_kernel<T, true, kCombineWarps>(args, stream)
                      : launch_combine_kernel<T, false, kCombineWarps>(args, stream);
}

}  // namespace libvar::cuda
