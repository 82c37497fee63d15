#pragma once

// Causal softmax attention with redistribution for every head size up to 256, every alignment and
// dtype: what the faster kernels don't take. No torch.

#include "cuda/attention_launch.cuh"

namespace libvar::cuda {

inline constexpr int kGeneralRows = 4;  ///< query rows of a block, one for each warp
inline constexpr int kGeneralThreads = kGeneralRows * kWarpSize;
inline constexpr int kGeneralTileKeys = kWarpSize;  ///< keys of a tile, one for each lane

/// A tile of keys and values in float32, whatever the dtype, and what the warps tell their own
/// lanes.
template <int kDims>
struct GeneralShared {
  float query[kGeneralRows][kDims];
  float key[kGeneralTileKeys]
           [kDims + 1];  // lane j reads row j: the odd stride puts the lanes on different banks
  float value[kGeneralTileKeys][kDims];
  float weight[kGeneralRows][kGeneralTileKeys];
  int token_class[kGeneralTileKeys];
};

/// Online softmax state of one row, spread over its warp: lane l owns the outputs d = l, l + 32,
/// ... and sums the weights of the keys that it scored. All classes share one running maximum.
template <int kDimsPerLane>
struct GeneralState {
  float out[kNumTokenClasses][kDimsPerLane] = {};
  float sum[kNumTokenClasses] = {};
  float maximum = -INFINITY;
  float num_visual_keys = 0.0f;
  bool sees_visual_sink = false;
};

/// Brings the keys [start, start + 32) below `end` into shared memory: a warp copies one key at a
/// time, a lane every 32nd dimension of it. What lies at or past `end` is neither read nor written.
template <typename T, int kDims>
LIBVAR_DEVICE void load_tile(const AttentionArguments<T>& args, GeneralShared<kDims>& shared,
                             std::int64_t b, int kv_head, float tau, int start, int end) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int j = warp; j < kGeneralTileKeys && start + j < end; j += kGeneralRows) {
    const T* key = args.key + args.key_stride.offset(b, kv_head, start + j);
    const T* value = args.value + args.value_stride.offset(b, kv_head, start + j);
    for (int d = lane; d < args.head_dim; d += kWarpSize) {
      shared.key[j][d] = to_float(key[d]);
      shared.value[j][d] = to_float(value[d]);
    }
  }
  if (warp == 0 && start + lane < end) {
    shared.token_class[lane] = key_class(args, b, start + lane, tau);
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
LIBVAR_DEVICE void attend_tile(GeneralShared<kDimsPerLane * kWarpSize>& shared,
                               GeneralState<kDimsPerLane>& state, int count, int head_dim,
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
                              const GeneralState<kDimsPerLane>& state, std::int64_t b, int head,
                              int row, int position) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float mass[kNumTokenClasses];
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = warp_sum(state.sum[c]);
  const float total = mass[0] + mass[1] + mass[2] + mass[3];
  const bool is_empty = total == 0.0f;  // no key, or none with a score above -inf; NaN is not empty
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = is_empty ? 0.0f : mass[c] / total;
  const float num_visual_keys = warp_sum(state.num_visual_keys);
  const bool eligible = __any_sync(kFullWarp, state.sees_visual_sink) != 0 &&
                        row_may_be_selected(args, b, row, position);
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

// Work: a block computes kGeneralRows consecutive query rows of one head of one sequence, a warp
// one row. Blocks are ordered by row tile, head, sequence. All warps load the tiles of keys and
// values; a warp leaves out the tiles past its own row. Tiles start at multiples of 32 keys from
// position 0, so a row's bits depend on nothing but its own keys. Memory: K and V are read once per
// block, in tiles of 32 keys that are kept as float32 in shared memory (36 KB at head size 128, 70
// KB at 256). The state of a row, four classes, is in the registers of its warp: 4 * Dh / 32 a
// lane.
template <typename T, int kDimsPerLane>
__global__ void __launch_bounds__(kGeneralThreads, 2) general_kernel(AttentionArguments<T> args) {
  follow_previous_kernel();
  auto& shared = dynamic_shared<GeneralShared<kDimsPerLane * kWarpSize>>();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int num_row_tiles = (args.num_rows + kGeneralRows - 1) / kGeneralRows;
  const int first_row = static_cast<int>(blockIdx.x) % num_row_tiles * kGeneralRows;
  const int head = static_cast<int>(blockIdx.x) / num_row_tiles % args.num_heads;
  const std::int64_t b = static_cast<int>(blockIdx.x) / num_row_tiles / args.num_heads;
  const int kv_head = head / (args.num_heads / args.num_kv_heads);
  const RedistributionRule rule = sequence_rule(args, b);
  const int length = sequence_length(args, b);
  const int row = first_row + warp;
  const int last_row = min(first_row + kGeneralRows, args.num_rows) - 1;
  const int position = length - args.num_rows + row;  // negative: a row before the first key
  const int block_end = length - args.num_rows + last_row + 1;
  const bool in_range = row < args.num_rows;

  if (in_range) {
    const T* query = args.query + args.query_stride.offset(b, head, row);
    for (int d = lane; d < args.head_dim; d += kWarpSize)
      shared.query[warp][d] = to_float(query[d]);
  }
  GeneralState<kDimsPerLane> state;
  for (int start = 0; start < block_end; start += kGeneralTileKeys) {
    load_tile(args, shared, b, kv_head, rule.tau, start, block_end);
    __syncthreads();
    const int count = min(position + 1 - start, kGeneralTileKeys);
    if (in_range && count > 0) attend_tile(shared, state, count, args.head_dim, args.scale);
    __syncthreads();  // the next tile overwrites this one
  }
  if (in_range) finish_row(args, rule, state, b, head, row, position);
}

template <typename T, int kDimsPerLane>
cudaError_t launch_general_of(const AttentionArguments<T>& args, cudaStream_t stream) {
  const std::int64_t num_row_tiles = (args.num_rows + kGeneralRows - 1) / kGeneralRows;
  return launch(&general_kernel<T, kDimsPerLane>, args.batch * args.num_heads * num_row_tiles,
                kGeneralThreads, sizeof(GeneralShared<kDimsPerLane * kWarpSize>), stream, args,
                Start::kBesidePrevious);
}

template <typename T>
cudaError_t launch_general(const AttentionArguments<T>& args, cudaStream_t stream) {
  if (args.head_dim <= 64) return launch_general_of<T, 2>(args, stream);
  if (args.head_dim <= 128) return launch_general_of<T, 4>(args, stream);
  return launch_general_of<T, 8>(args, stream);
}

}  // namespace libvar::cuda
