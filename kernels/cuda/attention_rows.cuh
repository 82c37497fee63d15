#pragma once

// Attention of many packed rows for each KV head on tensor cores: the text rows of a prefill. No
// torch.

#include "cuda/attention_fragments.cuh"

namespace libvar::cuda {

inline constexpr int kRowsKeys = 64;         ///< of a tile
inline constexpr int kMostRowsRange = 2048;  ///< keys of the longest range
inline constexpr int kNoKey = 0xffff;        ///< offset of a key that is not there

template <typename T, int kDims>
struct RowsShared {
  struct Stage {
    T key[kRowsKeys][kPitch<kDims>];
    T value[kRowsKeys][kPitch<kDims>];
  };

  Stage stage[2];
  // Offsets in the range of each class's keys, in order, then kNoKey up to a multiple of 16.
  alignas(4) std::uint16_t order[kNumTokenClasses][kMostRowsRange + kFragmentKeys];
  signed char kind[kMostRowsRange];
  int count[kNumTokenClasses];
};

/// The range that a block is in. Offsets count from its start.
struct RowsRange {
  int index;
  int start;
  int count;        ///< keys that some row of the block sees
  int limit[2];     ///< last offset that the lane's rows see
  int first_limit;  ///< last offset that all rows of the warp see
};

/// A tile of keys of one class: the class's keys `first` to `first` + 63.
struct RowsTile {
  int c;
  int first;
};

LIBVAR_DEVICE int first_row_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarpSize * 16;
}

template <typename T, int kDims>
struct RowsState {
  std::uint32_t query[kDims / 16][4];
  float out[kDims / 16][2][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // this lane's share
};

/// Writes the order of the range's keys: all threads look classes up, then warp c collects class c.
template <typename T, int kDims>
LIBVAR_DEVICE void order_keys(const PartialArguments<T>& args, RowsShared<T, kDims>& shared,
                              const RowTile& tile, const RowsRange& range, float tau) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int i = static_cast<int>(threadIdx.x); i < range.count; i += kTensorThreads) {
    shared.kind[i] =
        static_cast<signed char>(key_class(args.attention, tile.sequence, range.start + i, tau));
  }
  __syncthreads();
  int count = 0;
  for (int first = 0; first < range.count; first += kWarpSize) {
    const int i = first + lane;
    const bool is_own = i < range.count && shared.kind[i] == warp;
    const unsigned own = __ballot_sync(kFullWarp, is_own);
    if (is_own) {
      shared.order[warp][count + __popc(own & ((1u << lane) - 1u))] = static_cast<std::uint16_t>(i);
    }
    count += __popc(own);
  }
  if (lane < kFragmentKeys) shared.order[warp][count + lane] = kNoKey;
  if (lane == 0) shared.count[warp] = count;
  __syncthreads();
}

template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE int class_count(const RowsShared<T, kDims>& shared, const RowsRange& range, int c) {
  return kClasses ? shared.count[c] : range.count;
}

template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE int key_offset(const RowsShared<T, kDims>& shared, const RowsRange& range, int c,
                             int i) {
  if (kClasses) return shared.order[c][i];
  return i < range.count ? i : kNoKey;
}

/// The tile at `tile`, or the first one of the next class that has keys; c is then past the classes
/// where there is none.
template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE RowsTile settle(const RowsShared<T, kDims>& shared, const RowsRange& range,
                              RowsTile tile) {
  while (tile.c < kNumStates<kClasses> &&
         tile.first >= class_count<kClasses>(shared, range, tile.c)) {
    ++tile.c;
    tile.first = 0;
  }
  return tile;
}

/// Starts the copies of a tile; none past the last one.
template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE void copy_tile(const AttentionArguments<T>& args, RowsShared<T, kDims>& shared,
                             const RowTile& block, const RowsRange& range, RowsTile tile,
                             int stage) {
  const bool is_there = tile.c < kNumStates<kClasses>;
  const int count =
      is_there ? min(class_count<kClasses>(shared, range, tile.c) - tile.first, kRowsKeys) : 0;
  const int padded = (count + kFragmentKeys - 1) / kFragmentKeys * kFragmentKeys;
  const auto local = [&](int i) {
    const int offset = key_offset<kClasses>(shared, range, tile.c, tile.first + i);
    return offset == kNoKey ? -1 : range.start + offset;
  };
  const T* key = args.key + args.key_stride.offset(block.sequence, block.kv_head, 0);
  copy_rows<T, kDims>(shared.stage[stage].key, key, args.key_stride.row, padded, local);
  const T* value = args.value + args.value_stride.offset(block.sequence, block.kv_head, 0);
  copy_rows<T, kDims>(shared.stage[stage].value, value, args.value_stride.row, padded, local);
  commit_copies();
}

/// Scores of the warp's rows with a tile's keys, minus infinity for a key that a row does not see.
/// @tparam kFull  the tile has all 64 keys and every row sees them: nothing is asked between the
///                products, and those of all keys are under way together
template <bool kClasses, bool kFull, typename T, int kDims>
LIBVAR_DEVICE void score_rows(const RowsShared<T, kDims>& shared, const RowsState<T, kDims>& state,
                              const RowsRange& range, RowsTile tile, int stage, int count,
                              float scale, float (&score)[8][4]) {
  LIBVAR_UNROLL
  for (int i = 0; i < 32; ++i) score[i / 4][i % 4] = 0.0f;
  LIBVAR_UNROLL
  for (int step = 0; step < kDims / 16; ++step) {
    LIBVAR_UNROLL
    for (int group = 0; group < kRowsKeys / kFragmentKeys; ++group) {
      if (!kFull && group * kFragmentKeys >= count) continue;
      score_keys<T, kDims>(state.query[step], &shared.stage[stage].key[group * kFragmentKeys], step,
                           score[2 * group], score[2 * group + 1]);
    }
  }
  LIBVAR_UNROLL
  for (auto& block : score) {
    LIBVAR_UNROLL
    for (float& one : block) one *= scale;
  }
  if (kFull) return;
  const int t = static_cast<int>(threadIdx.x) % 4;
  LIBVAR_UNROLL
  for (int block = 0; block < kRowsKeys / 8; ++block) {
    LIBVAR_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = tile.first + 8 * block + 2 * t + i % 2;
      const bool is_there = block / 2 * kFragmentKeys < count;
      const bool is_seen =
          is_there && key_offset<kClasses>(shared, range, tile.c, key) <= range.limit[i / 2];
      score[block][i] = is_seen ? score[block][i] : -INFINITY;
    }
  }
}

/// Brings the state under a maximum that holds for the tile too, and turns scores into weights.
template <typename T, int kDims>
LIBVAR_DEVICE void weigh_rows(RowsState<T, kDims>& state, float (&score)[8][4]) {
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    float maximum = -INFINITY;
    LIBVAR_UNROLL
    for (int block = 0; block < 8; ++block)
      maximum = fmaxf(maximum, fmaxf(score[block][2 * i], score[block][2 * i + 1]));
    maximum = fmaxf(state.maximum[i], row_max(maximum));
    const float base = maximum == -INFINITY ? 0.0f : maximum;  // -inf - -inf would be NaN
    const float correction = exp2_fast(state.maximum[i] - base);
    state.maximum[i] = maximum;
    state.sum[i] *= correction;
    LIBVAR_UNROLL
    for (int block = 0; block < 8; ++block) {
      LIBVAR_UNROLL
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        score[block][e] = exp2_fast(score[block][e] - base);
        state.sum[i] += score[block][e];
      }
    }
    LIBVAR_UNROLL
    for (auto& pair : state.out) {
      LIBVAR_UNROLL
      for (int e = 0; e < 4; ++e) pair[e / 2][2 * i + e % 2] *= correction;
    }
  }
}

template <typename T, int kDims>
LIBVAR_DEVICE bool tile_has_non_finite(const T (*values)[kPitch<kDims>], int count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kWords = kDims / 2;
  bool found = false;
  for (int row = 0; row < count; ++row) {
    for (int i = lane; i < kWords; i += kWarpSize)
      found |= has_non_finite<T>(load_word(&values[row][2 * i]));
  }
  return __any_sync(kFullWarp, found) != 0;
}

/// A tile's weights as left operands, of 16 keys each.
template <typename T>
LIBVAR_DEVICE void pack_weights(const float (&weight)[8][4], std::uint32_t (&packed)[4][4]) {
  LIBVAR_UNROLL
  for (int group = 0; group < 4; ++group) {
    LIBVAR_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float* pair = &weight[2 * group + i / 2][i % 2 * 2];
      packed[group][i] = pack<T>(pair[0], pair[1]);
    }
  }
}

/// Adds a tile's values.
template <bool kFull, typename T, int kDims>
LIBVAR_DEVICE void add_rows(const RowsShared<T, kDims>& shared, RowsState<T, kDims>& state,
                            int stage, int count, const float (&weight)[8][4]) {
  const auto* values = shared.stage[stage].value;
  std::uint32_t packed[4][4];
  pack_weights<T>(weight, packed);
  LIBVAR_UNROLL
  for (int group = 0; group < 4; ++group) {
    if (!kFull && group * kFragmentKeys >= count) continue;
    LIBVAR_UNROLL
    for (int pair = 0; pair < kDims / 16; ++pair) {
      std::uint32_t value[4];
      load_values<T, kDims>(&values[group * kFragmentKeys], 16 * pair, value);
      add_values<T>(packed[group], value, state.out[pair]);
    }
  }
}

/// Adds the values of a tile of which some row of the warp does not see all, and of which some are
/// not finite.
template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE void add_rows_one_by_one(const RowsShared<T, kDims>& shared,
                                       RowsState<T, kDims>& state, const RowsRange& range,
                                       RowsTile tile, int stage, int count,
                                       const float (&weight)[8][4]) {
  const auto* values = shared.stage[stage].value;
  const int t = static_cast<int>(threadIdx.x) % 4;
  std::uint32_t packed[4][4];
  pack_weights<T>(weight, packed);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int group = 0; group * kFragmentKeys < count; ++group) {
    std::uint32_t own[4];
    LIBVAR_UNROLL
    for (int i = 0; i < 4; ++i) {
      own[i] = packed[0][i];
      LIBVAR_UNROLL
      for (int g = 1; g < 4; ++g) own[i] = group == g ? packed[g][i] : own[i];
    }
    int offset[4];
    LIBVAR_UNROLL
    for (int i = 0; i < 4; ++i) {
      offset[i] = key_offset<kClasses>(
          shared, range, tile.c, tile.first + group * kFragmentKeys + 2 * t + i / 2 * 8 + i % 2);
    }
    LIBVAR_UNROLL
    for (int pair = 0; pair < kDims / 16; ++pair) {
      std::uint32_t value[4];
      load_values<T, kDims>(&values[group * kFragmentKeys], 16 * pair, value);
      add_values_row_by_row<T>(own, value, offset, range.limit, state.out[pair]);
    }
  }
}

/// Writes the state of a class and starts anew. The rows' places are computed again, because they
/// would take registers that a tile needs.
template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE void store_class(const PartialArguments<T>& args, const RowTile& block,
                               RowsState<T, kDims>& state, int range, int c, bool is_present) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  const FragmentRows rows(args, block, first_row_of_warp());
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float sum = row_sum(state.sum[i]);
    if (rows.row[i].exists) {
      const std::int64_t index = state_index<kClasses>(args, rows.row[i].index, range) + c;
      if (t == 0) args.states[index] = {state.maximum[i], sum};
      float* out = args.out + index * kDims + 2 * t;
      LIBVAR_UNROLL
      for (int block = 0; is_present && block < kDims / 8; ++block) {
        const float* own = &state.out[block / 2][block % 2][2 * i];
        *reinterpret_cast<Float2*>(out + 8 * block) = {{own[0], own[1]}};
      }
    }
    state.maximum[i] = -INFINITY;
    state.sum[i] = 0.0f;
  }
  LIBVAR_UNROLL
  for (auto& pair : state.out) {
    LIBVAR_UNROLL
    for (int i = 0; i < 8; ++i) pair[i / 4][i % 4] = 0.0f;
  }
}

/// Adds a tile of keys and values. `is_cut`: some row of the warp does not see some of the keys.
template <bool kClasses, bool kFull, typename T, int kDims>
LIBVAR_DEVICE void attend_rows(const RowsShared<T, kDims>& shared, RowsState<T, kDims>& state,
                               const RowsRange& range, RowsTile tile, int stage, int count,
                               bool is_cut, float scale) {
  float score[8][4];
  score_rows<kClasses, kFull>(shared, state, range, tile, stage, count, scale, score);
  weigh_rows(state, score);
  if constexpr (kFull) {
    add_rows<true>(shared, state, stage, count, score);
  } else if (!is_cut || !tile_has_non_finite<T, kDims>(shared.stage[stage].value, count)) {
    add_rows<false>(shared, state, stage, count, score);
  } else {
    add_rows_one_by_one<kClasses>(shared, state, range, tile, stage, count, score);
  }
}

/// Goes through a range's keys class by class; the next tile is on its way while one is computed.
template <bool kClasses, typename T, int kDims>
LIBVAR_DEVICE void attend_range(const PartialArguments<T>& args, RowsShared<T, kDims>& shared,
                                const RowTile& block, RowsState<T, kDims>& state,
                                const RowsRange& range) {
  const AttentionArguments<T>& attention = args.attention;
  const float scale = attention.scale * kLog2E;
  RowsTile tile = settle<kClasses>(shared, range, {0, 0});
  copy_tile<kClasses>(attention, shared, block, range, tile, 0);
  for (int stage = 0; tile.c < kNumStates<kClasses>; stage ^= 1) {
    const RowsTile next = settle<kClasses>(shared, range, {tile.c, tile.first + kRowsKeys});
    const int count = min(class_count<kClasses>(shared, range, tile.c) - tile.first, kRowsKeys);
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before it any more
    copy_tile<kClasses>(attention, shared, block, range, next, stage ^ 1);
    const int last = key_offset<kClasses>(shared, range, tile.c, tile.first + count - 1);
    const bool is_cut = last > range.first_limit;
    if (count == kRowsKeys && !is_cut) {
      attend_rows<kClasses, true>(shared, state, range, tile, stage, count, false, scale);
    } else {
      attend_rows<kClasses, false>(shared, state, range, tile, stage, count, is_cut, scale);
    }
    if (next.c != tile.c) store_class<kClasses>(args, block, state, range.index, tile.c, true);
    tile = next;
  }
  __syncthreads();  // the next range overwrites the order of the keys
}

// Work: a block takes ranges of keys for 64 packed rows of one KV head, a warp 16 of them. A
// range's keys are put in order by class first, so that a tile holds keys of one class and one
// state in registers serves all of them: it is written and cleared where the class changes. Memory:
// tiles of 64 keys and values are gathered through that order, a row's 16-byte vectors side by
// side, in two stages (89 KB at head size 128). A class's tiles begin at its first key and are cut
// to multiples of 16 keys: a row's bits depend on the keys that it sees, not on those behind it.
template <typename T, int kDims, bool kClasses>
__global__ void __launch_bounds__(kTensorThreads, 2) rows_kernel(PartialArguments<T> args) {
  follow_previous_kernel();
  auto& shared = dynamic_shared<RowsShared<T, kDims>>();
  const RowTile block = row_tile(args, kRowsRows);
  const FragmentRows rows(args, block, first_row_of_warp());
  const int first_position = packed_row(args, block, first_row_of_warp()).position;
  const float tau = kClasses ? sequence_rule(args.attention, block.sequence).tau : 0.0f;
  RowsState<T, kDims> state;
  load_query<T, kDims>(args, block, rows, state.query);

  for_ranges(args, block, [&](int index) {
    RowsRange range = {};
    range.index = index;
    range.start = args.ranges.begin(index);
    range.count = min(args.ranges.begin(index + 1), block.last_position + 1) - range.start;
    for (int i = 0; i < 2; ++i)
      range.limit[i] = min(rows.row[i].position - range.start, kNoKey - 1);
    range.first_limit = first_position - range.start;
    if (kClasses) {
      order_keys(args, shared, block, range, tau);
      for (int c = 0; c < kNumTokenClasses; ++c) {
        if (shared.count[c] == 0) store_class<kClasses>(args, block, state, index, c, false);
      }
      if (block.is_last && threadIdx.x == 0) {
        RangeFacts facts = {INT_MAX, shared.count[0] + shared.count[1]};
        if (shared.count[0] > 0) facts.first_visual_sink = range.start + shared.order[0][0];
        args.facts[std::int64_t{block.local_sequence} * args.num_ranges + index] = facts;
      }
    }
    attend_range<kClasses>(args, shared, block, state, range);
  });
}

template <typename T, int kDims>
cudaError_t launch_rows_of(const PartialArguments<T>& args, bool with_classes,
                           cudaStream_t stream) {
  return with_classes
             ? launch(&rows_kernel<T, kDims, true>, tile_grid(args, kRowsRows), kTensorThreads,
                      sizeof(RowsShared<T, kDims>), stream, args, Start::kBesidePrevious)
             : launch(&rows_kernel<T, kDims, false>, tile_grid(args, kRowsRows), kTensorThreads,
                      sizeof(RowsShared<T, kDims>), stream, args, Start::kBesidePrevious);
}

template <typename T>
cudaError_t launch_rows(PartialArguments<T> args, bool with_classes, cudaStream_t stream) {
  switch (args.attention.head_dim) {
    case 64:
      return launch_rows_of<T, 64>(args, with_classes, stream);
    case 80:
      return launch_rows_of<T, 80>(args, with_classes, stream);
    case 96:
      return launch_rows_of<T, 96>(args, with_classes, stream);
    case 128:
      return launch_rows_of<T, 128>(args, with_classes, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace libvar::cuda
