#pragma once

// What the attention kernels share: a call's arguments, the ranges into which keys are cut, and the
// partial states that a launch leaves for the combining kernel. No torch. The kernels:
//   attention_decode.cuh   one or two rows for each KV head, on CUDA cores
//   attention_group.cuh    up to 16 rows for each KV head, on tensor cores
//   attention_rows.cuh     more rows, on tensor cores
//   attention_combine.cuh  merges what the three above leave
//   attention_general.cuh  everything that they don't take, in one kernel
// attention_launch.cuh chooses.

#include <climits>

#include "classes.h"
#include "cuda/device.cuh"

namespace libvar::cuda {

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

template <typename T>
LIBVAR_DEVICE int key_class(const AttentionArguments<T>& args, std::int64_t b, int j, float tau) {
  const float sink_score = args.sink_scores[args.sink_scores_stride.offset(b, j)];
  const bool visual = args.visual_mask[args.visual_mask_stride.offset(b, j)];
  return token_class(sink_score, visual, tau);
}

/// Whether the row may be selected as far as its own place goes; rule 3 comes on top.
template <typename T>
LIBVAR_DEVICE bool row_may_be_selected(const AttentionArguments<T>& args, std::int64_t b, int row,
                                       int position) {
  return args.row_mask != nullptr ? args.row_mask[args.row_mask_stride.offset(b, row)]
                                  : !args.visual_mask[args.visual_mask_stride.offset(b, position)];
}

/// The ranges into which the keys of a sequence are cut: `num_fine` ranges of `fine` keys, then
/// ranges of `coarse` keys. They depend on the kernel alone, never on batch, capacity or length,
/// and so do a row's bits.
struct KeyRanges {
  int fine = 0;
  int num_fine = 0;
  int coarse = 0;

  LIBVAR_HOST_DEVICE int begin(int range) const {
    return range <= num_fine ? range * fine : num_fine * fine + (range - num_fine) * coarse;
  }

  LIBVAR_HOST_DEVICE int index(int position) const {
    const int past_fine = position - num_fine * fine;
    return past_fine < 0 ? position / fine : num_fine + past_fine / coarse;
  }

  /// Ranges that hold any of the first `num_keys` keys.
  LIBVAR_HOST_DEVICE int count(int num_keys) const {
    return num_keys <= 0 ? 0 : index(num_keys - 1) + 1;
  }
};

/// Softmax of one row over the keys of one class in one range, to base 2: the largest score (minus
/// infinity where there is none) and the sum of 2^(score - maximum). The sum of the weighted values
/// lies beside it, and is written only where the range has keys of the class.
struct alignas(8) PartialState {
  float maximum;
  float sum;
};

/// What rule 3 and ratio_epsilon need to know of a range, up to the last row's position.
struct alignas(8) RangeFacts {
  int first_visual_sink;  ///< position, INT_MAX where there is none
  int num_visual;
};

/// One launch: some rows of some sequences of a call. A block owns a tile of packed rows of one KV
/// head, and takes every num_slots-th range. Packed row i is query row first_row + i / G of head
/// G * kv_head + i % G, for G heads in a group.
template <typename T>
struct PartialArguments {
  AttentionArguments<T> attention;
  KeyRanges ranges;
  int num_ranges;  ///< of the capacity
  int num_slots;
  int first_sequence;
  int num_sequences;
  int first_row;
  int num_rows;
  // [sequence, head, row, range, class] and for `out` [..., Dh]; one class in a launch without
  // them.
  PartialState* states;
  float* out;
  RangeFacts* facts;  // [sequence, range]
};

template <typename T>
std::int64_t num_packed_rows(const PartialArguments<T>& args) {
  return std::int64_t{args.num_rows} * (args.attention.num_heads / args.attention.num_kv_heads);
}

/// Blocks of a launch whose blocks own `rows_in_tile` packed rows.
template <typename T>
std::int64_t num_blocks(const PartialArguments<T>& args, int rows_in_tile) {
  return (num_packed_rows(args) + rows_in_tile - 1) / rows_in_tile * args.num_slots *
         args.attention.num_kv_heads * args.num_sequences;
}

template <bool kClasses>
inline constexpr int kNumStates = kClasses ? kNumTokenClasses : 1;

/// Scores are kept to base 2: 2^x is one instruction.
inline constexpr float kLog2E = 1.44269504f;

/// The packed rows of a block, and which of them are there.
struct RowTile {
  std::int64_t sequence;  ///< in the call
  int kv_head;
  int slot;
  int first;          ///< first packed row
  int num_packed;     ///< packed rows of the KV head in this launch
  int group;          ///< heads in a group
  int last_position;  ///< of the tile's last row; nothing past it is read
  bool is_last;       ///< the tile that reports RangeFacts
};

template <typename T>
LIBVAR_DEVICE RowTile row_tile(const PartialArguments<T>& args, int rows_in_tile) {
  RowTile tile = {};
  tile.group = args.attention.num_heads / args.attention.num_kv_heads;
  tile.num_packed = args.num_rows * tile.group;
  const int num_tiles = (tile.num_packed + rows_in_tile - 1) / rows_in_tile;
  int rest = static_cast<int>(blockIdx.x);
  tile.slot = rest % args.num_slots;
  rest /= args.num_slots;
  const int index = rest % num_tiles;
  rest /= num_tiles;
  tile.kv_head = rest % args.attention.num_kv_heads;
  tile.sequence = args.first_sequence + rest / args.attention.num_kv_heads;
  tile.first = index * rows_in_tile;
  const int end = min(tile.first + rows_in_tile, tile.num_packed);
  const int length = sequence_length(args.attention, tile.sequence);
  tile.last_position = length - args.attention.num_rows + args.first_row + (end - 1) / tile.group;
  tile.is_last = tile.kv_head == 0 && index == num_tiles - 1;
  return tile;
}

/// A packed row of a tile: where its query is and where its states go.
struct PackedRow {
  int head = 0;
  int row = 0;             ///< query row of the call
  int position = -1;       ///< -1: not there, sees nothing
  std::int64_t index = 0;  ///< among the rows of the launch
  bool exists = false;
};

template <typename T>
LIBVAR_DEVICE PackedRow packed_row(const PartialArguments<T>& args, const RowTile& tile, int i) {
  PackedRow result;
  const int packed = tile.first + i;
  result.exists = packed < tile.num_packed;
  if (!result.exists) return result;
  const int local_row = packed / tile.group;
  result.head = tile.kv_head * tile.group + packed % tile.group;
  result.row = args.first_row + local_row;
  result.position =
      sequence_length(args.attention, tile.sequence) - args.attention.num_rows + result.row;
  result.index = ((tile.sequence - args.first_sequence) * args.attention.num_heads + result.head) *
                     args.num_rows +
                 local_row;
  return result;
}

/// Index of a row's states of a range in PartialArguments::states.
template <bool kClasses, typename T>
LIBVAR_DEVICE std::int64_t state_index(const PartialArguments<T>& args, std::int64_t row,
                                       int range) {
  return (row * args.num_ranges + range) * kNumStates<kClasses>;
}

/// The ranges of a block: the last, longest ones first.
template <typename T, typename Body>
LIBVAR_DEVICE void for_ranges(const PartialArguments<T>& args, const RowTile& tile,
                              const Body& body) {
  const int num_ranges = args.ranges.count(tile.last_position + 1);
  for (int range = num_ranges - 1 - tile.slot; range >= 0; range -= args.num_slots) body(range);
}

}  // namespace libvar::cuda
