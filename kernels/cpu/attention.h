#pragma once

#include <ATen/core/Tensor.h>

namespace libvar::cpu {

/// The kernel of `attention` on the CPU without its class logic, so that benchmarks can tell what
/// that costs: no classes of keys, no masses, no weights; scores, softmax and values are the same
/// code. Arguments as AttentionInputs, unchecked.
at::Tensor attention_without_classes(const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& value, double scale);

}  // namespace libvar::cpu
