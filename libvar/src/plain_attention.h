#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace libvar {

/// Attention without redistribution: PyTorch's, of as many rows as there are keys.
///
/// @param query      [B, H, N, Dh]
/// @param key        [B, H_kv, N, Dh], likewise value; H a multiple of H_kv
/// @param is_causal  a row sees the keys up to its own
/// @param scale      of the scores; none: 1 / sqrt(Dh)
/// @return           [B, H, N, Dh]
at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           bool is_causal, std::optional<double> scale = std::nullopt);

}  // namespace libvar
