#pragma once

// skinny_linear on the CPU, without torch: what the entry file (skinny_linear.cpp) hands to the
// builds of skinny_linear_kernel.cpp.

#include <cstddef>
#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"

namespace libvar::cpu {

constexpr int kMostInputRows = 8;  ///< kMaxSkinnyRows of libvar/ops.h

/// Bytes from one prepared input row to the next: room for floats, padded to whole steps of the
/// kernel, and one cache line more, so that not all rows lie in the same sets of the cache.
constexpr std::int64_t prepared_row_bytes(std::int64_t in_features) {
  constexpr std::int64_t kStep = 2 * kGroup;
  return (in_features + kStep - 1) / kStep * kStep * static_cast<std::int64_t>(sizeof(float)) + 64;
}

/// output[m][n] = sum_k input[m][k] weight[n][k] * weight_scale[n] + bias[n] for the weight rows
/// [begin, end).
struct SkinnyLinear {
  ElementType type;                 ///< of input, bias and output, and of weight without scales
  const std::byte* prepared_input;  ///< num_rows times prepared_row_bytes, see prepare_input
  std::int64_t num_rows;
  std::int64_t in_features;
  const void* weight;          ///< [N, K], K contiguous
  std::int64_t weight_stride;  ///< elements from a weight row to the next
  const float* weight_scale;   ///< [N]: weight is int8; or null
  const void* bias;            ///< [N] or null
  void* output;                ///< [M, N] contiguous
  std::int64_t out_features;
};

}  // namespace libvar::cpu

/// One row of K elements as the kernel of this build wants to meet it: zero-padded, and as floats
/// where no instruction multiplies the dtype.
LIBVAR_DECLARE_CPU_BUILDS(void prepare_input(ElementType type, bool is_quantized, const void* row,
                                             std::int64_t in_features, std::byte* target);
                          void skinny_linear_rows(const SkinnyLinear& linear, std::int64_t begin,
                                                  std::int64_t end))
