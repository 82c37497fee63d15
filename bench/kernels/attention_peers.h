#pragma once

// Other ways to attention, with redistribution and without, in ATen. All of them in the arithmetic
// that models use: scores in the dtype of the inputs, softmax in float32.

#include "kernels/attention_inputs.h"

namespace libvar::bench {

/// A backend of scaled_dot_product_attention.
enum class Sdpa { kDefault, kFlash, kCudnn, kEfficient };

/// at::scaled_dot_product_attention; grouped heads through enable_gqa.
at::Tensor sdpa(const AttentionSet& set, Sdpa backend);
/// The same with the heads of a group packed as query rows: the way a careful user calls it in
/// decode.
at::Tensor sdpa_packed(const AttentionSet& set, Sdpa backend);
/// The flash operator itself: its causal mask is aligned to the bottom right.
at::Tensor flash_causal(const AttentionSet& set);

/// matmul, softmax, matmul, K and V repeated for grouped heads, as transformers writes it.
at::Tensor eager(const AttentionSet& set);
/// The same with the heads of a group packed as rows: nothing is repeated.
at::Tensor eager_packed(const AttentionSet& set);
/// eager with redistribution of the probabilities, vectorised over heads and rows.
at::Tensor eager_redistributed(const AttentionSet& set, const RedistributionRule& rule);
/// Four stock flash calls (all keys, visual keys, visual sinks, sinks) merged by their logsumexp;
/// one row.
at::Tensor subtract(const AttentionSet& set, const RedistributionRule& rule);

/// Redistribution of probabilities as a sequence of ATen operators, sums and products in float32.
at::Tensor eager_redistribute(const at::Tensor& probs, const at::Tensor& sink_scores,
                              const at::Tensor& visual_mask, const RedistributionRule& rule);
/// The same in the dtype of the probabilities, as published code does it: faster and less exact.
at::Tensor eager_redistribute_low_precision(const at::Tensor& probs, const at::Tensor& sink_scores,
                                            const at::Tensor& visual_mask,
                                            const RedistributionRule& rule);

}  // namespace libvar::bench
