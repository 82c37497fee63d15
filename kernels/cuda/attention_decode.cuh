#pragma once

// Attention of one or two packed rows on CUDA cores: decoding with as many KV heads as query heads,
// and few rows of the dtypes and head sizes that tensor cores don't take. No torch.

#include "cuda/attention_launch.cuh"

namespace libvar::cuda {

inline constexpr int kDecodeThreads = 128;
inline constexpr int kDecodeWarps = kDecodeThreads / kWarpSize;

/// @tparam kLanesOfKey     lanes that share a key
/// @tparam kVectorsOfLane  16-byte vectors of a key in each of them
template <typename T, int kLanesOfKey, int kVectorsOfLane>
struct DecodeShape {
  static constexpr int kLanes = kLanesOfKey;
  static constexpr int kVectors = kVectorsOfLane;
  static constexpr int kElements = kVectorSize<T>;
  static constexpr int kDims = kLanes * kVectors * kElements;  ///< largest head size
  static constexpr int kStreams = kDecodeThreads / kLanes;     ///< keys side by side
  static constexpr int kKeys = 8 / kVectors;                   ///< keys of a stream in a tile
  static constexpr int kTileKeys = kStreams * kKeys;
  static constexpr int kOwned = (kDims + kDecodeThreads - 1) / kDecodeThreads;

  /// First dimension of a thread's vector.
  LIBVAR_DEVICE static int first_dim(int thread, int vector) {
    return (thread % kLanes + vector * kLanes) * kElements;
  }
};

template <typename Shape, int kRows, bool kClasses>
struct DecodeShared {
  Vector query[kRows][Shape::kVectors][Shape::kLanes];
  float score[kRows][Shape::kTileKeys];
  int kind[Shape::kTileKeys];  // class of a key, -1 for a key that no row sees
  float out[kNumStates<kClasses>][kRows][kDecodeWarps][Shape::kDims];
};

/// What is known of a range so far. Thread t owns the outputs t, t + 128, ... of every row and
/// class; warp c sums the weights of class c. All classes of a row share one maximum.
template <typename Shape, int kRows, bool kClasses>
struct DecodeState {
  float out[kNumStates<kClasses>][kRows][Shape::kOwned] = {};
  float maximum[kRows];
  float sum[kRows] = {};  // this lane's share of the class of its warp
  unsigned present = 0;   // classes that the range has
  RangeFacts facts = {INT_MAX, 0};
};

/// Adds each of `kCount` values over the lanes that share a key and gives a lane the sum that
/// own_key() names. A step adds two lanes' values and halves their number.
template <int kCount, int kLanes>
LIBVAR_DEVICE float reduce_keys(float (&values)[kCount], int lane) {
  LIBVAR_UNROLL
  for (int count = kCount / 2; count > 0; count /= 2) {
    const int offset = kLanes * count / kCount;
    const bool upper = (lane & offset) != 0;
    LIBVAR_UNROLL
    for (int i = 0; i < count; ++i) {
      const float give = upper ? values[i] : values[i + count];
      const float keep = upper ? values[i + count] : values[i];
      values[i] = keep + __shfl_xor_sync(kFullWarp, give, offset);
    }
  }
  LIBVAR_UNROLL
  for (int offset = kLanes / kCount / 2; offset > 0; offset /= 2)
    values[0] += __shfl_xor_sync(kFullWarp, values[0], offset);
  return values[0];
}

template <int kCount, int kLanes>
LIBVAR_DEVICE int own_key(int lane) {
  return lane % kLanes / (kLanes / kCount);
}

/// The block's rows: queries, zeros past the head size, and places.
template <typename Shape, int kRows>
struct DecodeRows {
  Vector query[kRows][Shape::kVectors];
  PackedRow row[kRows];

  template <typename T>
  LIBVAR_DEVICE void load(const PartialArguments<T>& args, const RowTile& tile) {
    const AttentionArguments<T>& attention = args.attention;
    LIBVAR_UNROLL
    for (int i = 0; i < kRows; ++i) {
      row[i] = packed_row(args, tile, i);
      const T* from =
          attention.query + attention.query_stride.offset(tile.sequence, row[i].head, row[i].row);
      LIBVAR_UNROLL
      for (int v = 0; v < Shape::kVectors; ++v) {
        const int d = Shape::first_dim(static_cast<int>(threadIdx.x), v);
        query[i][v] = load_once(from, d, d < attention.head_dim);
      }
    }
  }

  LIBVAR_DEVICE void share(Vector (&to)[kRows][Shape::kVectors][Shape::kLanes]) const {
    if (static_cast<int>(threadIdx.x) >= Shape::kLanes) return;
    LIBVAR_UNROLL
    for (int i = 0; i < kRows; ++i) {
      LIBVAR_UNROLL
      for (int v = 0; v < Shape::kVectors; ++v) to[i][v][threadIdx.x] = query[i][v];
    }
  }
};

/// The vectors of this thread in a tile: key i of its stream is key start + i * kStreams + stream.
template <typename Shape>
struct DecodeTile {
  Vector vector[Shape::kKeys][Shape::kVectors];

  /// Zeros where there is no key below `end` and past the head size: nothing is read there.
  template <typename T>
  LIBVAR_DEVICE void load(const T* from, std::int64_t stride, int head_dim, int start, int end) {
    const int stream = static_cast<int>(threadIdx.x) / Shape::kLanes;
    LIBVAR_UNROLL
    for (int i = 0; i < Shape::kKeys; ++i) {
      const int j = start + i * Shape::kStreams + stream;
      LIBVAR_UNROLL
      for (int v = 0; v < Shape::kVectors; ++v) {
        const int d = Shape::first_dim(static_cast<int>(threadIdx.x), v);
        vector[i][v] = load_once(from, j * stride + d, j < end && d < head_dim);
      }
    }
  }
};

/// Scores of the tile's keys, minus infinity for a key that the row does not see.
template <typename T, typename Shape, int kRows, bool kClasses>
LIBVAR_DEVICE void score_tile(DecodeShared<Shape, kRows, kClasses>& shared,
                              const DecodeRows<Shape, kRows>& rows, const DecodeTile<Shape>& keys,
                              int start, float scale) {
  const int stream = static_cast<int>(threadIdx.x) / Shape::kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  LIBVAR_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float query[Shape::kVectors][Shape::kElements];
    LIBVAR_UNROLL
    for (int v = 0; v < Shape::kVectors; ++v)
      unpack<T>(shared.query[r][v][lane % Shape::kLanes], query[v]);
    float dot[Shape::kKeys];
    LIBVAR_UNROLL
    for (int i = 0; i < Shape::kKeys; ++i) {
      dot[i] = 0.0f;
      LIBVAR_UNROLL
      for (int v = 0; v < Shape::kVectors; ++v) {
        float key[Shape::kElements];
        unpack<T>(keys.vector[i][v], key);
        LIBVAR_UNROLL
        for (int e = 0; e < Shape::kElements; ++e) dot[i] = fmaf(query[v][e], key[e], dot[i]);
      }
    }
    const float sum = reduce_keys<Shape::kKeys, Shape::kLanes>(dot, lane);
    const int key = own_key<Shape::kKeys, Shape::kLanes>(lane) * Shape::kStreams + stream;
    if (lane % (Shape::kLanes / Shape::kKeys) == 0)
      shared.score[r][key] = start + key <= rows.row[r].position ? sum * scale : -INFINITY;
  }
}

/// Every warp goes through the tile's scores: the new maximum is the same in all of them, without a
/// barrier. Returns the factor by which what was summed before shrinks.
template <typename Shape, int kRows, bool kClasses>
LIBVAR_DEVICE void update_sums(const DecodeShared<Shape, kRows, kClasses>& shared,
                               DecodeState<Shape, kRows, kClasses>& state,
                               float (&correction)[kRows], int start) {
  constexpr int kPerLane = (Shape::kTileKeys + kWarpSize - 1) / kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int kind[kPerLane];
  LIBVAR_UNROLL
  for (int k = 0; k < kPerLane; ++k) {
    const int key = lane + k * kWarpSize;
    kind[k] = key < Shape::kTileKeys ? shared.kind[key] : -1;
    LIBVAR_UNROLL
    for (int c = 0; c < kNumStates<kClasses>; ++c)
      state.present |= __any_sync(kFullWarp, kind[k] == c) != 0 ? 1u << c : 0u;
    if (kClasses) {
      const unsigned sinks = __ballot_sync(kFullWarp, kind[k] == 0);
      if (sinks != 0 && state.facts.first_visual_sink == INT_MAX)
        state.facts.first_visual_sink = start + k * kWarpSize + __ffs(static_cast<int>(sinks)) - 1;
      state.facts.num_visual += __popc(__ballot_sync(kFullWarp, kind[k] == 0 || kind[k] == 1));
    }
  }
  LIBVAR_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float score[kPerLane];
    float maximum = -INFINITY;
    LIBVAR_UNROLL
    for (int k = 0; k < kPerLane; ++k) {
      const int key = lane + k * kWarpSize;
      score[k] = key < Shape::kTileKeys ? shared.score[r][key] : -INFINITY;
      maximum = fmaxf(maximum, score[k]);
    }
    maximum = fmaxf(state.maximum[r], warp_max(maximum));
    // Scores may all be -inf so far: -inf - -inf would be NaN.
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    correction[r] = exp2_fast(state.maximum[r] - base);
    state.maximum[r] = maximum;
    state.sum[r] *= correction[r];
    if (warp < kNumStates<kClasses>) {
      LIBVAR_UNROLL
      for (int k = 0; k < kPerLane; ++k)
        state.sum[r] += kind[k] == warp ? exp2_fast(score[k] - base) : 0.0f;
    }
  }
}

/// Weighted values of one class, added up over the streams of each warp.
template <typename T, typename Shape, int kRows, bool kClasses>
LIBVAR_DEVICE void weigh_values(DecodeShared<Shape, kRows, kClasses>& shared,
                                const DecodeRows<Shape, kRows>& rows,
                                const DecodeTile<Shape>& values,
                                const float (&weight)[kRows][Shape::kKeys], int c, int start) {
  const int stream = static_cast<int>(threadIdx.x) / Shape::kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  LIBVAR_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float sum[Shape::kVectors][Shape::kElements] = {};
    LIBVAR_UNROLL
    for (int i = 0; i < Shape::kKeys; ++i) {
      const int key = i * Shape::kStreams + stream;
      // Left out, not weighed with 0: the value of a key that the row does not see may be NaN.
      if (shared.kind[key] != c || start + key > rows.row[r].position) continue;
      LIBVAR_UNROLL
      for (int v = 0; v < Shape::kVectors; ++v) {
        float value[Shape::kElements];
        unpack<T>(values.vector[i][v], value);
        LIBVAR_UNROLL
        for (int e = 0; e < Shape::kElements; ++e)
          sum[v][e] = fmaf(weight[r][i], value[e], sum[v][e]);
      }
    }
    LIBVAR_UNROLL
    for (int v = 0; v < Shape::kVectors; ++v) {
      LIBVAR_UNROLL
      for (int e = 0; e < Shape::kElements; ++e) {
        LIBVAR_UNROLL
        for (int offset = Shape::kLanes; offset < kWarpSize; offset *= 2)
          sum[v][e] += __shfl_xor_sync(kFullWarp, sum[v][e], offset);
        if (lane < Shape::kLanes) shared.out[c][r][warp][Shape::first_dim(lane, v) + e] = sum[v][e];
      }
    }
  }
}

template <typename Shape, int kRows, bool kClasses>
LIBVAR_DEVICE void add_tile(const DecodeShared<Shape, kRows, kClasses>& shared,
                            DecodeState<Shape, kRows, kClasses>& state,
                            const float (&correction)[kRows], unsigned present) {
  LIBVAR_UNROLL
  for (int c = 0; c < kNumStates<kClasses>; ++c) {
    LIBVAR_UNROLL
    for (int r = 0; r < kRows; ++r) {
      LIBVAR_UNROLL
      for (int i = 0; i < Shape::kOwned; ++i) {
        const int d = static_cast<int>(threadIdx.x) + i * kDecodeThreads;
        state.out[c][r][i] *= correction[r];
        if (((present >> c) & 1u) == 0 || d >= Shape::kDims) continue;
        LIBVAR_UNROLL
        for (int warp = 0; warp < kDecodeWarps; ++warp)
          state.out[c][r][i] += shared.out[c][r][warp][d];
      }
    }
  }
}

template <typename T, typename Shape, int kRows, bool kClasses>
LIBVAR_DEVICE void store_range(const PartialArguments<T>& args, const RowTile& tile,
                               const DecodeRows<Shape, kRows>& rows,
                               const DecodeState<Shape, kRows, kClasses>& state, int range) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  LIBVAR_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_sum(state.sum[r]);
    if (!rows.row[r].exists) continue;
    const std::int64_t index = state_index<kClasses>(args, rows.row[r].index, range);
    if (warp < kNumStates<kClasses> && lane == 0) {
      const bool is_present = ((state.present >> warp) & 1u) != 0;
      args.states[index + warp] =
          is_present ? PartialState{state.maximum[r], sum} : PartialState{-INFINITY, 0.0f};
    }
    LIBVAR_UNROLL
    for (int c = 0; c < kNumStates<kClasses>; ++c) {
      LIBVAR_UNROLL
      for (int i = 0; i < Shape::kOwned; ++i) {
        const int d = static_cast<int>(threadIdx.x) + i * kDecodeThreads;
        if (((state.present >> c) & 1u) != 0 && d < args.attention.head_dim)
          args.out[(index + c) * args.attention.head_dim + d] = state.out[c][r][i];
      }
    }
  }
  if (kClasses && tile.is_last && threadIdx.x == 0) {
    args.facts[std::int64_t{tile.local_sequence} * args.num_ranges + range] = state.facts;
  }
}

// Work: a block takes ranges of keys for one tile of one or two packed rows. kLanes lanes share a
// key, 16 bytes each, and kStreams keys stand side by side. Memory: all vectors of a tile's keys
// and values are asked for at once, in the order of their positions, before anything is computed
// (128 bytes a thread); scores and weighted values go through shared memory (1 to 32 KB). Values of
// the classes are added one class after the other from the same registers: no order of keys is
// needed before they are read, and a tile of one class costs what it costs without classes.
template <typename T, int kLanes, int kVectors, int kRows, bool kClasses>
__global__ void __launch_bounds__(kDecodeThreads, kRows == 1 ? 4 : 3)
    decode_kernel(PartialArguments<T> args) {
  follow_previous_kernel();
  using Shape = DecodeShape<T, kLanes, kVectors>;
  auto& shared = dynamic_shared<DecodeShared<Shape, kRows, kClasses>>();
  const AttentionArguments<T>& attention = args.attention;
  const RowTile tile = row_tile(args, kRows);
  const float tau = kClasses ? sequence_rule(attention, tile.sequence).tau : 0.0f;
  const T* key = attention.key + attention.key_stride.offset(tile.sequence, tile.kv_head, 0);
  const T* value = attention.value + attention.value_stride.offset(tile.sequence, tile.kv_head, 0);
  const int stream = static_cast<int>(threadIdx.x) / kLanes;
  DecodeRows<Shape, kRows> rows;
  rows.load(args, tile);

  for_ranges(args, tile, [&](int range) {
    DecodeState<Shape, kRows, kClasses> state;
    LIBVAR_UNROLL
    for (int r = 0; r < kRows; ++r) state.maximum[r] = -INFINITY;
    const int range_end = min(args.ranges.begin(range + 1), tile.last_position + 1);
    for (int start = args.ranges.begin(range); start < range_end; start += Shape::kTileKeys) {
      DecodeTile<Shape> keys;
      DecodeTile<Shape> values;
      // The class is looked up between the loads and their use: no load waits for phi.
      const int own = start + static_cast<int>(threadIdx.x);
      KeyFacts facts = {};
      if (kClasses) facts = key_facts(attention, tile.sequence, min(own, range_end - 1));
      keys.load(key, attention.key_stride.row, attention.head_dim, start, range_end);
      values.load(value, attention.value_stride.row, attention.head_dim, start, range_end);
      // Queries come from shared memory behind a barrier, which waits for no load of keys and
      // values. From registers, the compiler would compute scores before it asks for the values.
      rows.share(shared.query);
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < Shape::kTileKeys) {
        const int kind = kClasses ? token_class(facts.sink_score, facts.visual, tau) : 0;
        shared.kind[threadIdx.x] = own < range_end ? kind : -1;
      }
      score_tile<T>(shared, rows, keys, start, attention.scale * kLog2E);
      __syncthreads();
      float correction[kRows];
      update_sums(shared, state, correction, start);
      float weight[kRows][Shape::kKeys];
      LIBVAR_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float base = state.maximum[r] == -INFINITY ? 0.0f : state.maximum[r];
        LIBVAR_UNROLL
        for (int i = 0; i < Shape::kKeys; ++i)
          weight[r][i] = exp2_fast(shared.score[r][i * Shape::kStreams + stream] - base);
      }
      LIBVAR_UNROLL
      for (int c = 0; c < kNumStates<kClasses>; ++c) {
        if (((state.present >> c) & 1u) != 0)
          weigh_values<T>(shared, rows, values, weight, c, start);
      }
      // The next tile writes scores and kinds, which nobody reads past this barrier, and the
      // weighted values only after its own first barrier: no third one.
      __syncthreads();
      add_tile(shared, state, correction, state.present);
    }
    store_range<T>(args, tile, rows, state, range);
  });
}

template <typename T, int kLanes, int kVectors, int kRows, bool kClasses>
cudaError_t launch_decode_of(const PartialArguments<T>& args, cudaStream_t stream) {
  using Shape = DecodeShape<T, kLanes, kVectors>;
  // A range is whole tiles: tiles would otherwise cross its end.
  if ((1 << args.ranges.coarse_log2) % Shape::kTileKeys != 0) return cudaErrorInvalidValue;
  return launch(&decode_kernel<T, kLanes, kVectors, kRows, kClasses>, tile_grid(args, kRows),
                kDecodeThreads, sizeof(DecodeShared<Shape, kRows, kClasses>), stream, args,
                Start::kBesidePrevious);
}

template <typename T, int kRows, bool kClasses>
cudaError_t launch_decode_rows(const PartialArguments<T>& args, cudaStream_t stream) {
  const int vectors = args.attention.head_dim / kVectorSize<T>;
  if (vectors <= 8) return launch_decode_of<T, 8, 1, kRows, kClasses>(args, stream);
  if (vectors <= 16) return launch_decode_of<T, 16, 1, kRows, kClasses>(args, stream);
  if (vectors <= 32) return launch_decode_of<T, 32, 1, kRows, kClasses>(args, stream);
  if constexpr (sizeof(T) == 4) return launch_decode_of<T, 32, 2, kRows, kClasses>(args, stream);
  return cudaErrorInvalidValue;
}

template <typename T>
cudaError_t launch_decode(PartialArguments<T> args, bool with_classes, cudaStream_t stream) {
  if (num_packed_rows(args) == 1) {
    return with_classes ? launch_decode_rows<T, 1, true>(args, stream)
                        : launch_decode_rows<T, 1, false>(args, stream);
  }
  return with_classes ? launch_decode_rows<T, 2, true>(args, stream)
                      : launch_decode_rows<T, 2, false>(args, stream);
}

}  // namespace libvar::cuda
