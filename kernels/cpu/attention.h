#pragma once

#include <ATen/core/Tensor.h>

#include "libvar/redistribution_rule.h"

namespace libvar::cpu {

// What benchmarks compare, so that they can tell what the class logic of `attention` costs on the
// CPU. Both without dispatcher and checks; arguments as AttentionInputs.

/// `attention`: classes of keys, scores, softmax, masses, weights, values.
at::Tensor attention_with_classes(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const at::Tensor& sink_scores,
                                  const at::Tensor& visual_mask, double scale,
                                  const RedistributionRule& rule);

/// The same code for scores, softmax and values; no classes of keys, no masses, no weights.
at::Tensor attention_without_classes(const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& value, double scale);

}  // namespace libvar::cpu
