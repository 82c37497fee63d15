#pragma once

// What redistribute's entry file hands to its kernel. No torch.

#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"
#include "libvar/redistribution_rule.h"

namespace libvar::cpu {

/// Class of a group whose keys are not all of one class.
inline constexpr std::uint8_t kMixedClasses = kNumTokenClasses;

/// The keys of one sequence in groups of kGroup, the last one filled up with the class of the
/// sequence's last key.
struct GroupedKeys {
  const std::uint8_t* of_group;  ///< [ceil(K / kGroup)]: the class of all its keys or kMixedClasses
  const std::uint8_t* of_lane;   ///< [ceil(K / kGroup)][kGroup], see group_lane()
  float num_visual;
  bool has_visual_sink;
};

/// Sizes and tensors as in ops.h, strides in elements. In place: out and its strides are those of
/// probs.
struct RedistributeCall {
  ElementType type;
  const void* probs;     // [B, H, Q, K], K contiguous
  void* out;             // [B, H, Q, K], K contiguous
  const bool* row_mask;  // [B, Q] or null
  std::int64_t probs_stride[3];
  std::int64_t out_stride[3];
  std::int64_t row_mask_stride[2];
  std::int64_t num_heads;
  std::int64_t num_rows;
  std::int64_t num_keys;
  const GroupedKeys* sequences;  // [B]
  RedistributionRule rule;
};

}  // namespace libvar::cpu

/// Fills of_group and of_lane, as large as GroupedKeys says, from scores and visual [K], the
/// bytes of a bool tensor.
LIBVAR_DECLARE_CPU_BUILDS(GroupedKeys group_keys(const float* scores, const std::uint8_t* visual,
                                                 std::int64_t num_keys, float tau, ElementType type,
                                                 std::uint8_t* of_group, std::uint8_t* of_lane))

/// The rows [begin, end) of all B * H * Q, counted as the contiguous tensor counts them.
LIBVAR_DECLARE_CPU_BUILDS(void redistribute_rows(const RedistributeCall& call, std::int64_t begin,
                                                 std::int64_t end))
