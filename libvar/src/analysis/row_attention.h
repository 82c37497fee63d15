#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "decoder/attention.h"

namespace libvar {

/// Softmax probabilities of some rows of a layer's pass, in float32.
///
/// @param rows  positions, ascending, all of this pass
/// @return      [1, H, R, K] with K = past + Q keys; 0 at keys behind a row
at::Tensor row_probabilities(const AttentionView& view, const std::vector<std::int64_t>& rows);

/// The same after redistribution; rows before the first visual sink stay.
/// @param rows  text tokens
at::Tensor redistribute_rows(const AttentionView& view, const std::vector<std::int64_t>& rows,
                             const at::Tensor& probs);

/// Norm of W_O v_j of each head for the given keys. [H, keys] float32
at::Tensor value_norms(const AttentionView& view, const at::Tensor& keys);

}  // namespace libvar
