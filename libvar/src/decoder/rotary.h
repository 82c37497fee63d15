#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "decoder/config.h"
#include "weights.h"

namespace libvar {

/// Cosine and sine of the rotary embedding for some rows.
struct RotaryAngles {
  at::Tensor cos, sin;  ///< [B, 1, Q, Dh]
};

/// Rotary position embedding, rotate-half convention.
///
///     angle[n, i] = n * theta^(-2 i / Dh)            float32; i < Dh / 2, both halves share the
///     angles rotate(x)   = x * cos + (-x[Dh/2:], x[:Dh/2]) * sin
/// cos and sin are rounded to the dtype of the computation before the products, as in transformers.
class RotaryEmbedding {
 public:
  RotaryEmbedding(const DecoderConfig& config, const ComputeTarget& target);

  /// @param positions  [B, Q] int64, in [0, max_positions)
  RotaryAngles angles(const at::Tensor& positions) const;

 private:
  at::Tensor cos_, sin_;  // [max_positions, Dh]
};

/// @param heads  [B, H, Q, Dh], any strides
/// @return       the rotated rows, fresh storage
at::Tensor rotate(const at::Tensor& heads, const RotaryAngles& angles);

}  // namespace libvar
