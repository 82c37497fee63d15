#pragma once

// attention on the CPU, without torch: what the entry file (attention.cpp) hands to the builds of
// attention_kernel.cpp.

#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"
#include "libvar/redistribution_rule.h"

namespace libvar::cpu {

/// Keys that are classified, summed and weighted together.
inline constexpr std::int64_t kKeyBlock = 16;

/// Keys whose weighted values are added up in registers before they join the row's sum. Borders
/// are multiples of it in the sequence. Keeps the rounding error small over many keys.
inline constexpr std::int64_t kKeyChunk = 256;

/// Class of a block whose keys are of several classes; of a pure block it is their TokenClass.
inline constexpr std::uint8_t kMixedBlock = kNumTokenClasses;

/// What the rows of one sequence need to know about its keys. Sinks are a handful and images are
/// spans, so that nearly all blocks are pure.
struct KeyClasses {
  std::int64_t length;
  RedistributionRule rule;
  const std::uint8_t* classes;        ///< [length], up to a whole block any class
  const std::uint8_t* block_classes;  ///< [blocks]
  const std::int32_t* blocks;         ///< all blocks by class, the mixed last; ascending in each
  std::int32_t class_begin[kMixedBlock + 2];  ///< where the blocks of a class begin in `blocks`
  std::int64_t first_visual_sink;             ///< position, or past every position
};

/// One call. Strides in elements: sequence, head, row or key.
struct AttentionCall {
  ElementType type;
  const void* query;
  const void* key;
  const void* value;
  void* out;             ///< contiguous
  const bool* row_mask;  ///< null: rows whose own position is not visual
  bool* selected;        ///< null: not wanted
  float* class_mass;     ///< null: not wanted
  std::int64_t query_stride[3], key_stride[3], value_stride[3], row_mask_stride[2];
  std::int64_t num_heads, num_kv_heads, num_rows, head_dim;
  float scale;
  bool with_classes;  ///< false: plain attention, for comparison; the keys have no classes then
  const KeyClasses* sequences;
  std::int64_t score_stride;  ///< floats between the scores of two rows of a tile
};

/// A tile: packed rows [first_row, end_row) of one sequence and key head, and the memory in which
/// it is computed, aligned to 64 bytes. Packed row r is query row r / group of the r % group-th
/// head of the group that shares the key head.
struct AttentionTile {
  std::int64_t sequence, kv_head, first_row, end_row;
  float* scratch;
};

/// Floats of scratch memory for one tile. attend() adds the chunks of the values up one after the
/// other and needs two sums of a row, the steps below one for every chunk.
inline std::int64_t attention_scratch_size(std::int64_t tile_rows, std::int64_t score_stride,
                                           std::int64_t padded_dim, std::int64_t num_sums) {
  return tile_rows * (score_stride + (1 + num_sums) * padded_dim + 2);
}

/// What attend() does, step by step, so that threads can share the keys of a tile. The result has
/// the same bits.
enum class AttentionStep {
  kPrepare,  ///< once
  kScores,   ///< for the keys of the chunks [begin, end)
  kWeights,  ///< for the rows [begin, end) of the tile
  kValues,   ///< for the keys of the chunks [begin, end)
  kFinish,   ///< for the rows [begin, end)
};

}  // namespace libvar::cpu

/// Computes a tile.
LIBVAR_DECLARE_CPU_BUILDS(void attend(const AttentionCall& call, const AttentionTile& tile))

/// One step of it, for a part of its keys or rows.
LIBVAR_DECLARE_CPU_BUILDS(void attend_step(const AttentionCall& call, const AttentionTile& tile,
                                           AttentionStep step, std::int64_t begin,
                                           std::int64_t end))
