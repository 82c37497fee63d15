#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "decoder/config.h"
#include "weights.h"

namespace libvar {

/// Cosine and sine of the rotary embedding for some rows.
struct RotaryAngles {
  at::Tensor cos, sin;  ///< [1, Q, Dh]
};

/// Rotary position embedding, rotate-half convention.
///
///     angle[n, i] = n / factor * theta^(-2 i / Dh)   float32; i < Dh / 2, both halves share them
///
/// Queries and keys are turned by rotate_and_cache (ops.h).
/// With sections (M-RoPE of Qwen2-VL, arXiv:2409.12191) n is the position's first coordinate for
/// the first rope_sections[0] values of i, its second for the next, its third for the rest.
/// cos and sin are rounded to the dtype of the computation before the products, as in transformers.
class RotaryEmbedding {
 public:
  RotaryEmbedding(const DecoderConfig& config, const ComputeTarget& target);

  /// @param positions  [position_axes, Q] int64, in [0, max_positions)
  RotaryAngles angles(const at::Tensor& positions) const;

 private:
  at::Tensor pick(const at::Tensor& table, const at::Tensor& positions) const;

  at::Tensor cos_, sin_;  // [max_positions, Dh]
  at::Tensor axis_;       // [1, 1, Dh] int64: the coordinate of a channel; undefined: there is one
};

}  // namespace libvar
