#pragma once

// What the attention kernels share: the ranges into which keys are cut, and the partial states that
// a launch leaves for the combining kernel. No torch. The kernels:
//   attention_decode.cuh   one or two rows for each KV head, on CUDA cores
//   attention_group.cuh    up to 16 rows for each KV head, on tensor cores
//   attention_rows.cuh     more rows, on tensor cores
//   attention_combine.cuh  merges what the three above leave
//   attention_general.cuh  everything that they don't take, in one kernel
// attention_launch.cuh chooses.

#include <climits>

#include "classes.h"
#include "cuda/attention.h"
#include "cuda/device.cuh"

namespace libvar::cuda {

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

/// What the class of a key is computed from.
struct KeyFacts {
  float sink_score;
  bool visual;
};

template <typename T>
LIBVAR_DEVICE KeyFacts key_facts(const AttentionArguments<T>& args, std::int64_t b, int j) {
  return {args.sink_scores[args.sink_scores_stride.offset(b, j)],
          args.visual_mask[args.visual_mask_stride.offset(b, j)]};
}

template <typename T>
LIBVAR_DEVICE int key_class(const AttentionArguments<T>& args, std::int64_t b, int j, float tau) {
  const KeyFacts facts = key_facts(args, b, j);
  return token_class(facts.sink_score, facts.visual, tau);
}

/// Whether the row may be selected as far as its own place goes; rule 3 comes on top.
template <typename T>
LIBVAR_DEVICE bool row_may_be_selected(const AttentionArguments<T>& args, std::int64_t b, int row,
                                       int position) {
  return args.row_mask != nullptr ? args.row_mask[args.row_mask_stride.offset(b, row)]
                                  : !args.visual_mask[args.visual_mask_stride.offset(b, position)];
}

/// The ranges into which the keys of a sequence are cut: `num_fine` ranges of 2^fine_log2 keys,
/// then ranges of 2^coarse_log2 keys. They depend on the kernel alone, never on batch, capacity or
/// length, and so do a row's bits.
struct KeyRanges {
  int fine_log2 = 0;
  int num_fine = 0;
  int coarse_log2 = 0;

  LIBVAR_HOST_DEVICE int begin(int range) const {
    return range <= num_fine ? range << fine_log2
                             : (num_fine << fine_log2) + ((range - num_fine) << coarse_log2);
  }

  LIBVAR_HOST_DEVICE int index(int position) const {
    const int past_fine = position - (num_fine << fine_log2);
    return past_fine < 0 ? position >> fine_log2 : num_fine + (past_fine >> coarse_log2);
  }

  /// Ranges that hold any of the first `num_keys` keys.
  LIBVAR_HOST_DEVICE int count(int num_keys) const {
    return num_keys <= 0 ? 0 : index(num_keys - 1) + 1;
  }
};

/// Divides by a number that the host knows. A division of the device takes dozens of instructions,
/// and a decode kernel is over after a few thousand cycles.
class Divider {
 public:
  Divider() = default;

  /// Exact for n * divisor < 2^32.
  explicit Divider(int divisor)
      : divisor_(divisor),
        reciprocal_((std::uint64_t{1} << 32) / static_cast<std::uint64_t>(divisor) + 1) {}

  LIBVAR_DEVICE int divide(int n) const {
    return static_cast<int>((static_cast<std::uint64_t>(n) * reciprocal_) >> 32);
  }

  LIBVAR_DEVICE int divisor() const { return divisor_; }

 private:
  int divisor_ = 1;
  std::uint64_t reciprocal_ = 0;
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
  Divider group;     ///< heads of a group
  Divider kv_heads;  ///< of a sequence
  int num_ranges;    ///< of the capacity
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

/// Tiles of `rows_in_tile` packed rows of a KV head.
template <typename T>
std::int64_t num_row_tiles(const PartialArguments<T>& args, int rows_in_tile) {
  return (num_packed_rows(args) + rows_in_tile - 1) / rows_in_tile;
}

/// Blocks of a launch: slots, row tiles, KV heads of all sequences.
template <typename T>
dim3 tile_grid(const PartialArguments<T>& args, int rows_in_tile) {
  return dim3(static_cast<unsigned>(args.num_slots),
              static_cast<unsigned>(num_row_tiles(args, rows_in_tile)),
              static_cast<unsigned>(args.attention.num_kv_heads * args.num_sequences));
}

template <bool kClasses>
inline constexpr int kNumStates = kClasses ? kNumTokenClasses : 1;

/// Scores are kept to base 2: 2^x is one instruction.
inline constexpr float kLog2E = 1.44269504f;

/// The packed rows of a block.
struct RowTile {
  std::int64_t sequence;  ///< in the call
  int local_sequence;     ///< in the launch
  int kv_head;
  int slot;
  int first;           ///< first packed row
  int num_packed;      ///< packed rows of the KV head in this launch
  int first_position;  ///< of query row first_row
  int last_position;   ///< of the tile's last row; nothing past it is read
  bool is_last;        ///< the tile that reports RangeFacts
};

template <typename T>
LIBVAR_DEVICE RowTile row_tile(const PartialArguments<T>& args, int rows_in_tile) {
  RowTile tile = {};
  const auto head = static_cast<int>(blockIdx.z);
  tile.local_sequence = args.kv_heads.divide(head);
  tile.kv_head = head - tile.local_sequence * args.kv_heads.divisor();
  tile.sequence = args.first_sequence + tile.local_sequence;
  tile.slot = static_cast<int>(blockIdx.x);
  tile.first = static_cast<int>(blockIdx.y) * rows_in_tile;
  tile.num_packed = args.num_rows * args.group.divisor();
  const int last = min(tile.first + rows_in_tile, tile.num_packed) - 1;
  tile.first_position =
      sequence_length(args.attention, tile.sequence) - args.attention.num_rows + args.first_row;
  tile.last_position = tile.first_position + args.group.divide(last);
  tile.is_last = tile.kv_head == 0 && blockIdx.y == gridDim.y - 1;
  return tile;
}

/// A packed row of a tile: where its query is and where its states go. One that does not exist sees
/// no key; its query may be read, since it points to one that exists.
struct PackedRow {
  int head = 0;
  int row = 0;  ///< query row of the call
  int position = -1;
  std::int64_t index = 0;  ///< among the rows of the launch
  bool exists = false;
};

template <typename T>
LIBVAR_DEVICE PackedRow packed_row(const PartialArguments<T>& args, const RowTile& tile, int i) {
  PackedRow result;
  const int packed = tile.first + i;
  result.exists = packed < tile.num_packed;
  const int local_row = result.exists ? args.group.divide(packed) : 0;
  const int in_group = result.exists ? packed - local_row * args.group.divisor() : 0;
  result.head = tile.kv_head * args.group.divisor() + in_group;
  result.row = args.first_row + local_row;
  result.position = result.exists ? tile.first_position + local_row : -1;
  result.index =
      (static_cast<std::int64_t>(tile.local_sequence) * args.attention.num_heads + result.head) *
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
