#pragma once

// Causal softmax attention with redistribution (ops.h: attention). No torch.

#include "classes.h"
#include "cuda/device.cuh"

namespace libvar::cuda {

inline constexpr int kAttentionRows = 4;  ///< query rows of a block, one for each warp
inline constexpr int kAttentionThreads = kAttentionRows * kWarpSize;
inline constexpr int kAttentionTileKeys = kWarpSize;  ///< keys of a tile, one for each lane
inline constexpr int kMaxHeadDim = 256;

/// Sizes and tensors as in ops.h; optional tensors may be null.
template <typename T>
struct AttentionArguments {
  const T* query;                  // [B, H, Q, Dh]
  const T* key;                    // [B, H_kv, K, Dh]
  const T* value;                  // [B, H_kv, K, Dh]
  const float* sink_scores;        // [B, K]
  const bool* visual_mask;         // [B, K]
  const bool* row_mask;            // [B, Q] or null
  const std::int32_t* kv_lengths;  // [B] contiguous or null
  const float* params;             // [B, 4] contiguous or null
  T* out;                          // [B, H, Q, Dh] contiguous
  bool* selected;                  // [B, H, Q] contiguous or null
  float* class_mass;               // [B, H, Q, 4] contiguous or null
  RowStrides query_stride;
  RowStrides key_stride;
  RowStrides value_stride;
  TokenStrides sink_scores_stride;
  TokenStrides visual_mask_stride;
  TokenStrides row_mask_stride;
  std::int64_t batch;
  int num_heads;
  int num_kv_heads;
  int num_rows;
  int num_keys;
  int head_dim;
  float scale;
  RedistributionRule rule;
};

/// A tile of keys and values in float32, whatever the dtype, and what the warps tell their own
/// lanes.
template <int kDims>
struct AttentionShared {
  float query[kAttentionRows][kDims];
  float key[kAttentionTileKeys]
           [kDims + 1];  // lane j reads row j: the odd stride puts the lanes on different banks
  float value[kAttentionTileKeys][kDims];
  float weight[kAttentionRows][kAttentionTileKeys];
  int token_class[kAttentionTileKeys];
};

/// Online softmax state of one row, spread over its warp: lane l owns the outputs d = l, l + 32,
/// ... and sums the weights of the keys that it scored. All classes share one running maximum.
template <int kDimsPerLane>
struct AttentionState {
  float out[kNumTokenClasses][kDimsPerLane] = {};
  float sum[kNumTokenClasses] = {};
  float maximum = -INFINITY;
  float num_visual_keys = 0.0f;
  bool sees_visual_sink = false;
};

template <typename T>
LIBVAR_DEVICE RedistributionRule sequence_rule(const AttentionArguments<T>& args, std::int64_t b) {
  RedistributionRule rule = args.rule;
  if (args.params != nullptr) {
    rule.tau = args.params[4 * b];
    rule.rho = args.params[4 * b + 1];
    rule.p = args.params[4 * b + 2];
    rule.min_visual_mass = args.params[4 * b + 3];
  }
  return rule;
}

template <typename T>
LIBVAR_DEVICE int sequence_length(const AttentionArguments<T>& args, std::int64_t b) {
  if (args.kv_lengths == nullptr) return args.num_keys;
  const int length = args.kv_lengths[b];
  return length < 0 ? 0 : (length > args.num_keys ? args.num_keys : length);
}

/// Brings the keys [start, start + 32) below `end` into shared memory: a warp copies one key at a
/// time, a lane every 32nd dimension of it. What lies at or past `end` is neither read nor written.
template <typename T, int kDims>
LIBVAR_DEVICE void load_tile(const AttentionArguments<T>& args, AttentionShared<kDims>& shared,
                             std::int64_t b, int kv_head, float tau, int start, int end) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int j = warp; j < kAttentionTileKeys && start + j < end; j += kAttentionRows) {
    const T* key = args.key + args.key_stride.offset(b, kv_head, start + j);
    const T* value = args.value + args.value_stride.offset(b, kv_head, start + j);
    for (int d = lane; d < args.head_dim; d += kWarpSize) {
      shared.key[j][d] = to_float(key[d]);
      shared.value[j][d] = to_float(value[d]);
    }
  }
  if (warp == 0 && start + lane < end) {
    const float sink_score = args.sink_scores[args.sink_scores_stride.offset(b, start + lane)];
    const bool visual = args.visual_mask[args.visual_mask_stride.offset(b, start + lane)];
    shared.token_class[lane] = token_class(sink_score, visual, tau);
  }
}

template <int kDimsPerLane>
LIBVAR_DEVICE void accumulate(float (&out)[kDimsPerLane], float weight, const float* value,
                              int lane, int head_dim) {
  for (int i = 0; i < kDimsPerLane; ++i) {
    const int d = lane + i * kWarpSize;
    if (d < head_dim) out[i] = fmaf(weight, value[d], out[i]);
  }
}

/// Adds the first `count` keys of the tile to the state of the warp's row: lane j scores key j,
/// then all lanes go through the keys, each for its own dimensions.
template <int kDimsPerLane>
LIBVAR_DEVICE void attend_tile(AttentionShared<kDimsPerLane * kWarpSize>& shared,
                               AttentionState<kDimsPerLane>& state, int count, int head_dim,
                               float scale) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const bool seen = lane < count;
  float score = -INFINITY;
  if (seen) {
    float dot = 0.0f;
    for (int d = 0; d < head_dim; ++d) dot = fmaf(shared.query[warp][d], shared.key[lane][d], dot);
    score = dot * scale;
  }
  const float maximum = fmaxf(state.maximum, warp_max(score));
  // Scores may all be -inf so far: -inf - -inf would be NaN.
  const float base = maximum == -INFINITY ? 0.0f : maximum;
  const float correction = expf(state.maximum - base);
  state.maximum = maximum;
  const float weight = seen ? expf(score - base) : 0.0f;
  const int own_class = seen ? shared.token_class[lane] : -1;
  for (int c = 0; c < kNumTokenClasses; ++c) {
    state.sum[c] = state.sum[c] * correction + (own_class == c ? weight : 0.0f);
    for (int i = 0; i < kDimsPerLane; ++i) state.out[c][i] *= correction;
  }
  state.num_visual_keys += own_class == 0 || own_class == 1 ? 1.0f : 0.0f;
  state.sees_visual_sink =
      state.sees_visual_sink || own_class == static_cast<int>(TokenClass::kVisualSink);

  shared.weight[warp][lane] = weight;
  __syncwarp();
  for (int j = 0; j < count; ++j) {
    const float key_weight = shared.weight[warp][j];
    const float* value = shared.value[j];
    // The same case in all lanes. An index that is no constant would put the state into local
    // memory.
    switch (shared.token_class[j]) {
      case 0:
        accumulate(state.out[0], key_weight, value, lane, head_dim);
        break;
      case 1:
        accumulate(state.out[1], key_weight, value, lane, head_dim);
        break;
      case 2:
        accumulate(state.out[2], key_weight, value, lane, head_dim);
        break;
      default:
        accumulate(state.out[3], key_weight, value, lane, head_dim);
        break;
    }
  }
}

/// Merges the classes of the warp's row with the weights of the row rule and writes the row.
template <typename T, int kDimsPerLane>
LIBVAR_DEVICE void finish_row(const AttentionArguments<T>& args, const RedistributionRule& rule,
                              const AttentionState<kDimsPerLane>& state, std::int64_t b, int head,
                              int row, int position) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float mass[kNumTokenClasses];
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = warp_sum(state.sum[c]);
  const float total = mass[0] + mass[1] + mass[2] + mass[3];
  const bool is_empty = total == 0.0f;  // no key, or none with a score above -inf; NaN is not empty
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = is_empty ? 0.0f : mass[c] / total;
  const float num_visual_keys = warp_sum(state.num_visual_keys);
  bool eligible = __any_sync(kFullWarp, state.sees_visual_sink) != 0;
  if (eligible) {
    eligible = args.row_mask != nullptr
                   ? args.row_mask[args.row_mask_stride.offset(b, row)]
                   : !args.visual_mask[args.visual_mask_stride.offset(b, position)];
  }
  const ClassWeights weights = class_weights(mass, rule, num_visual_keys, eligible);
  const std::int64_t index = (b * args.num_heads + head) * args.num_rows + row;
  for (int i = 0; i < kDimsPerLane; ++i) {
    const int d = lane + i * kWarpSize;
    float sum = 0.0f;
    for (int c = 0; c < kNumTokenClasses; ++c) sum = fmaf(weights.weight[c], state.out[c][i], sum);
    if (d < args.head_dim)
      args.out[index * args.head_dim + d] = from_float<T>(is_empty ? 0.0f : sum / total);
  }
  if (lane == 0 && args.selected != nullptr) args.selected[index] = weights.selected;
  if (lane < kNumTokenClasses && args.class_mass != nullptr) {
    const float own = lane == 0 ? mass[0] : lane == 1 ? mass[1] : lane == 2 ? mass[2] : mass[3];
    args.class_mass[index * kNumTokenClasses + lane] = own;
  }
}

// Work: a block computes kAttentionRows consecutive query rows of one head of one sequence, a warp
// one row. Blocks are ordered by row tile, head, sequence. All warps load the tiles of keys and
// values; a warp leaves out the tiles past its own row. Tiles start at multiples of 32 keys from
// position 0, so a row's bits depend on nothing but its own keys. Memory: K and V are read once per
// block, in tiles of 32 keys that are kept as float32 in shared memory (36 KB at head size 128, 70
// KB at 256). The state of a row, four classes, is in the registers of its warp: 4 * Dh / 32 a
// lane.
template <typename T, int kDimsPerLane>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_kernel(AttentionArguments<T> args) {
  auto& shared = dynamic_shared<AttentionShared<kDimsPerLane * kWarpSize>>();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int num_row_tiles = (args.num_rows + kAttentionRows - 1) / kAttentionRows;
  const int first_row = static_cast<int>(blockIdx.x) % num_row_tiles * kAttentionRows;
  const int head = static_cast<int>(blockIdx.x) / num_row_tiles % args.num_heads;
  const std::int64_t b = static_cast<int>(blockIdx.x) / num_row_tiles / args.num_heads;
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const RedistributionRule rule = sequence_rule(args, b);
  const int length = sequence_length(args, b);
  const int row = first_row + warp;
  const int last_row = min(first_row + kAttentionRows, args.num_rows) - 1;
  const int position = length - args.num_rows + row;  // negative: a row before the first key
  const int block_end = length - args.num_rows + last_row + 1;
  const bool in_range = row < args.num_rows;

  if (in_range) {
    const T* query = args.query + args.query_stride.offset(b, head, row);
    for (int d = lane; d < args.head_dim; d += kWarpSize)
      shared.query[warp][d] = to_float(query[d]);
  }
  AttentionState<kDimsPerLane> state;
  for (int start = 0; start < block_end; start += kAttentionTileKeys) {
    load_tile(args, shared, b, kv_head, rule.tau, start, block_end);
    __syncthreads();
    const int count = min(position + 1 - start, kAttentionTileKeys);
    if (in_range && count > 0) attend_tile(shared, state, count, args.head_dim, args.scale);
    __syncthreads();  // the next tile overwrites this one
  }
  if (in_range) finish_row(args, rule, state, b, head, row, position);
}

template <typename T, int kDimsPerLane>
cudaError_t launch_attention_kernel(const AttentionArguments<T>& args, cudaStream_t stream) {
  const std::int64_t num_row_tiles = (args.num_rows + kAttentionRows - 1) / kAttentionRows;
  return launch(&attention_kernel<T, kDimsPerLane>, args.batch * args.num_heads * num_row_tiles,
                kAttentionThreads, sizeof(AttentionShared<kDimsPerLane * kWarpSize>), stream, args);
}

/// @return cudaErrorInvalidValue for a head size above kMaxHeadDim
template <typename T>
cudaError_t launch_attention(const AttentionArguments<T>& args, cudaStream_t stream) {
  if (args.head_dim <= 64) return launch_attention_kernel<T, 2>(args, stream);
  if (args.head_dim <= 128) return launch_attention_kernel<T, 4>(args, stream);
  if (args.head_dim <= kMaxHeadDim) return launch_attention_kernel<T, 8>(args, stream);
  return cudaErrorInvalidValue;
}

}  // namespace libvar::cuda
