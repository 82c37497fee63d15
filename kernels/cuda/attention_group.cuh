#pragma once

// Attention of up to 16 packed rows for each KV head on tensor cores: decoding with grouped heads,
// and a few text rows. No torch.

#include "cuda/attention_fragments.cuh"

namespace libvar::cuda {

inline constexpr int kGroupKeys = 128;  ///< of a range; one thread classifies one of them

template <typename T, int kDims>
struct GroupShared {
  T key[kGroupKeys][kPitch<kDims>];
  T value[kGroupKeys][kPitch<kDims>];
  std::uint32_t weight[kGroupRows][kPitch<kGroupKeys> / 2];  // two elements a word
  float maximum[kTensorWarps][kGroupRows];
  float sum[kTensorWarps][kNumTokenClasses][kGroupRows];
  int kind[kGroupKeys];                          // class of a key, -1 for a key that no row sees
  unsigned classes[kGroupKeys / kFragmentKeys];  // bit c: some of the 16 keys is of class c
};

/// Outputs of the 16 rows in the warp's dimensions: pairs of blocks of 8, w and w + 4 of warp w.
template <typename T, int kDims, bool kClasses>
struct GroupState {
  static constexpr int kPairs = kDims / 16;
  static constexpr int kOwnPairs = (kPairs + kTensorWarps - 1) / kTensorWarps;

  float out[kNumStates<kClasses>][kOwnPairs][2][4] = {};
};

/// Scores of the warp's 32 keys, minus infinity where a row does not see a key, and the rows'
/// largest ones to shared memory.
template <typename T, int kDims>
LIBVAR_DEVICE void score_group(GroupShared<T, kDims>& shared,
                               const std::uint32_t (&query)[kDims / 16][4],
                               const FragmentRows& rows, int start, int count, float scale,
                               float (&score)[4][4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float maximum[2] = {-INFINITY, -INFINITY};
  float product[2][2][4] = {};
  LIBVAR_UNROLL
  for (int step = 0; step < kDims / 16; ++step) {
    LIBVAR_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int first = warp * kWarpSize + half * kFragmentKeys;
      if (first < count)
        score_keys<T, kDims>(query[step], &shared.key[first], step, product[half][0],
                             product[half][1]);
    }
  }
  LIBVAR_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int first = warp * kWarpSize + half * kFragmentKeys;
    LIBVAR_UNROLL
    for (int block = 0; block < 2; ++block) {
      LIBVAR_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int position = start + first + 8 * block + 2 * (lane % 4) + i % 2;
        const bool seen = position <= rows.row[i / 2].position;
        score[2 * half + block][i] = seen ? product[half][block][i] * scale : -INFINITY;
        maximum[i / 2] = fmaxf(maximum[i / 2], score[2 * half + block][i]);
      }
    }
  }
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    maximum[i] = row_max(maximum[i]);
    if (lane % 4 == 0) shared.maximum[warp][lane / 4 + 8 * i] = maximum[i];
  }
}

template <typename T, int kDims>
LIBVAR_DEVICE float group_maximum(const GroupShared<T, kDims>& shared, int row) {
  float maximum = -INFINITY;
  LIBVAR_UNROLL
  for (int w = 0; w < kTensorWarps; ++w) maximum = fmaxf(maximum, shared.maximum[w][row]);
  return maximum;
}

/// Softmax weights of the warp's 32 keys to shared memory, in the dtype; their sums by class are
/// taken before rounding.
template <typename T, int kDims, bool kClasses>
LIBVAR_DEVICE void weigh_group(GroupShared<T, kDims>& shared, const float (&score)[4][4]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float base[2];
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float maximum = group_maximum(shared, lane / 4 + 8 * i);
    base[i] = maximum == -INFINITY ? 0.0f : maximum;  // -inf - -inf would be NaN
  }
  float sum[kNumStates<kClasses>][2] = {};
  LIBVAR_UNROLL
  for (int block = 0; block < 4; ++block) {
    const int key = warp * kWarpSize + 8 * block + 2 * (lane % 4);
    float weight[4];
    LIBVAR_UNROLL
    for (int i = 0; i < 4; ++i) {
      weight[i] = exp2_fast(score[block][i] - base[i / 2]);
      const int kind = kClasses ? shared.kind[key + i % 2] : 0;
      LIBVAR_UNROLL
      for (int c = 0; c < kNumStates<kClasses>; ++c)
        sum[c][i / 2] += !kClasses || kind == c ? weight[i] : 0.0f;
    }
    LIBVAR_UNROLL
    for (int i = 0; i < 2; ++i) {
      shared.weight[lane / 4 + 8 * i][key / 2] = pack<T>(weight[2 * i], weight[2 * i + 1]);
    }
  }
  LIBVAR_UNROLL
  for (int c = 0; c < kNumStates<kClasses>; ++c) {
    LIBVAR_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float of_row = row_sum(sum[c][i]);
      if (lane % 4 == 0) shared.sum[warp][c][lane / 4 + 8 * i] = of_row;
    }
  }
  if (kClasses) {
    const int kind = shared.kind[warp * kWarpSize + lane];
    unsigned classes[2] = {};
    LIBVAR_UNROLL
    for (int c = 0; c < kNumTokenClasses; ++c) {
      const unsigned lanes = __ballot_sync(kFullWarp, kind == c);
      classes[0] |= (lanes & 0xffffu) != 0 ? 1u << c : 0u;
      classes[1] |= (lanes >> 16) != 0 ? 1u << c : 0u;
    }
    if (lane < 2) shared.classes[2 * warp + lane] = lane == 0 ? classes[0] : classes[1];
  }
}

/// Adds the values of all keys, weighed for all rows, in the warp's dimensions. Returns the classes
/// that the range has.
template <typename T, int kDims, bool kClasses>
LIBVAR_DEVICE unsigned add_group(const GroupShared<T, kDims>& shared,
                                 GroupState<T, kDims, kClasses>& state, const FragmentRows& rows,
                                 int start, int count, bool is_cut) {
  using State = GroupState<T, kDims, kClasses>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int limit[2] = {rows.row[0].position, rows.row[1].position};
  unsigned present = 0;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int first = 0; first < count; first += kFragmentKeys) {
    std::uint32_t weight[4];
    load_matrices(weight, &shared.weight[lane % 16][first / 2 + lane / 16 * 4]);
    const unsigned classes = kClasses ? shared.classes[first / kFragmentKeys] : 1u;
    present |= classes;
    const bool is_mixed = kClasses && (classes & (classes - 1u)) != 0;
    const int key = first + 2 * (lane % 4);
    LIBVAR_UNROLL
    for (int own = 0; own < State::kOwnPairs; ++own) {
      const int pair = warp + own * kTensorWarps;
      if (pair >= State::kPairs) continue;
      std::uint32_t value[4];
      load_values<T, kDims>(&shared.value[first], 16 * pair, value);
      const bool is_careful = is_cut && any_non_finite<T>(value);
      LIBVAR_UNROLL
      for (int c = 0; c < kNumStates<kClasses>; ++c) {
        if (((classes >> c) & 1u) == 0) continue;
        std::uint32_t of_class[4] = {weight[0], weight[1], weight[2], weight[3]};
        if (is_mixed) {
          LIBVAR_UNROLL
          for (int half = 0; half < 2; ++half) {
            const std::uint32_t mask = (shared.kind[key + 8 * half] == c ? 0x0000ffffu : 0u) |
                                       (shared.kind[key + 8 * half + 1] == c ? 0xffff0000u : 0u);
            of_class[2 * half] &= mask;
            of_class[2 * half + 1] &= mask;
          }
        }
        if (is_careful) {
          const int position[4] = {start + key, start + key + 1, start + key + 8, start + key + 9};
          add_values_row_by_row<T>(of_class, value, position, limit, state.out[c][own]);
        } else {
          add_values<T>(of_class, value, state.out[c][own]);
        }
      }
    }
  }
  return present;
}

template <typename T, int kDims, bool kClasses>
LIBVAR_DEVICE void store_group(const PartialArguments<T>& args, const GroupShared<T, kDims>& shared,
                               const GroupState<T, kDims, kClasses>& state, const RowTile& tile,
                               const FragmentRows& rows, int range, unsigned present) {
  using State = GroupState<T, kDims, kClasses>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int own_row = static_cast<int>(threadIdx.x) % kGroupRows;
  const int own_class = static_cast<int>(threadIdx.x) / kGroupRows;
  if (own_class < kNumStates<kClasses>) {
    const PackedRow row = packed_row(args, tile, own_row);
    PartialState result = {-INFINITY, 0.0f};
    if (((present >> own_class) & 1u) != 0) {
      result.maximum = group_maximum(shared, own_row);
      LIBVAR_UNROLL
      for (int w = 0; w < kTensorWarps; ++w) result.sum += shared.sum[w][own_class][own_row];
    }
    if (row.exists) args.states[state_index<kClasses>(args, row.index, range) + own_class] = result;
  }
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    if (!rows.row[i].exists) continue;
    float* out = args.out + state_index<kClasses>(args, rows.row[i].index, range) * kDims;
    LIBVAR_UNROLL
    for (int c = 0; c < kNumStates<kClasses>; ++c) {
      if (((present >> c) & 1u) == 0) continue;
      LIBVAR_UNROLL
      for (int own = 0; own < State::kOwnPairs; ++own) {
        const int pair = warp + own * kTensorWarps;
        if (pair >= State::kPairs) continue;
        LIBVAR_UNROLL
        for (int block = 0; block < 2; ++block) {
          const float* sum = state.out[c][own][block];
          *reinterpret_cast<Float2*>(out + c * kDims + 16 * pair + 8 * block +
                                     2 * (lane % 4)) = {{sum[2 * i], sum[2 * i + 1]}};
        }
      }
    }
  }
}

/// By the first warp, from the classes of the range's keys.
template <typename T, int kDims>
LIBVAR_DEVICE void report_facts(const PartialArguments<T>& args,
                                const GroupShared<T, kDims>& shared, const RowTile& tile, int range,
                                int start) {
  RangeFacts facts = {INT_MAX, 0};
  for (int first = 0; first < kGroupKeys; first += kWarpSize) {
    const int kind = shared.kind[first + static_cast<int>(threadIdx.x)];
    const unsigned sinks = __ballot_sync(kFullWarp, kind == 0);
    if (sinks != 0 && facts.first_visual_sink == INT_MAX)
      facts.first_visual_sink = start + first + __ffs(static_cast<int>(sinks)) - 1;
    facts.num_visual += __popc(__ballot_sync(kFullWarp, kind == 0 || kind == 1));
  }
  if (threadIdx.x == 0)
    args.facts[std::int64_t{tile.local_sequence} * args.num_ranges + range] = facts;
}

// Work: a block takes ranges of 128 keys for 16 packed rows of one KV head. Scores: a warp computes
// all rows against 32 of the keys; weights go through shared memory; outputs: a warp computes all
// rows and keys in a quarter of the dimensions, so that the outputs of four classes fit into its
// registers and keys need no order. Memory: all keys and values of a range are asked for at once,
// in the order of their positions (72 KB at head size 128), and classes are looked up while they
// are under way; what hides the rest is the two other blocks of the multiprocessor.
template <typename T, int kDims, bool kClasses>
__global__ void __launch_bounds__(kTensorThreads, 3) group_kernel(PartialArguments<T> args) {
  follow_previous_kernel();
  auto& shared = dynamic_shared<GroupShared<T, kDims>>();
  const AttentionArguments<T>& attention = args.attention;
  const RowTile tile = row_tile(args, kGroupRows);
  const FragmentRows rows(args, tile, 0);
  const int first_position = packed_row(args, tile, 0).position;
  const float tau = kClasses ? sequence_rule(attention, tile.sequence).tau : 0.0f;
  const T* key = attention.key + attention.key_stride.offset(tile.sequence, tile.kv_head, 0);
  const T* value = attention.value + attention.value_stride.offset(tile.sequence, tile.kv_head, 0);
  for_ranges(args, tile, [&](int range) {
    const int start = args.ranges.begin(range);
    const int count = min(tile.last_position + 1 - start, kGroupKeys);
    const int padded = (count + kFragmentKeys - 1) / kFragmentKeys * kFragmentKeys;
    const auto local = [&](int i) { return i < count ? start + i : -1; };
    // Anew for each range: registers that outputs of four classes need.
    std::uint32_t query[kDims / 16][4];
    load_query<T, kDims>(args, tile, rows, query);
    copy_rows<T, kDims>(shared.key, key, attention.key_stride.row, padded, local);
    commit_copies();
    copy_rows<T, kDims>(shared.value, value, attention.value_stride.row, padded, local);
    commit_copies();
    if (kClasses) {
      const int own = static_cast<int>(threadIdx.x);
      shared.kind[own] = own < count ? key_class(attention, tile.sequence, start + own, tau) : -1;
    }
    wait_for_copies<1>();
    __syncthreads();
    float score[4][4];
    score_group(shared, query, rows, start, count, attention.scale * kLog2E, score);
    __syncthreads();
    weigh_group<T, kDims, kClasses>(shared, score);
    wait_for_copies<0>();
    __syncthreads();
    const bool is_cut = start + count - 1 > first_position;
    GroupState<T, kDims, kClasses> state;
    const unsigned present = add_group(shared, state, rows, start, count, is_cut);
    store_group(args, shared, state, tile, rows, range, present);
    if (kClasses && tile.is_last && threadIdx.x < kWarpSize)
      report_facts(args, shared, tile, range, start);
    __syncthreads();  // the next range overwrites everything
  });
}

template <typename T, int kDims>
cudaError_t launch_group_of(const PartialArguments<T>& args, bool with_classes,
                            cudaStream_t stream) {
  return with_classes
             ? launch(&group_kernel<T, kDims, true>, tile_grid(args, kGroupRows), kTensorThreads,
                      sizeof(GroupShared<T, kDims>), stream, args, Start::kBesidePrevious)
             : launch(&group_kernel<T, kDims, false>, tile_grid(args, kGroupRows), kTensorThreads,
                      sizeof(GroupShared<T, kDims>), stream, args, Start::kBesidePrevious);
}

template <typename T>
cudaError_t launch_group(PartialArguments<T> args, bool with_classes, cudaStream_t stream) {
  switch (args.attention.head_dim) {
    case 64:
      return launch_group_of<T, 64>(args, with_classes, stream);
    case 80:
      return launch_group_of<T, 80>(args, with_classes, stream);
    case 96:
      return launch_group_of<T, 96>(args, with_classes, stream);
    case 128:
      return launch_group_of<T, 128>(args, with_classes, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace libvar::cuda
