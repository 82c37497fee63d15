#pragma once

// What torch classes of bench/model are made of: numbers and tensors from Python.

#include <ATen/core/Dict.h>

#include <string>

#include "weights.h"

namespace libvar::bench {

using Numbers = c10::Dict<std::string, double>;
using Tensors = c10::Dict<std::string, at::Tensor>;

inline TensorMap tensor_map(const Tensors& tensors) {
  TensorMap result;
  for (const auto& entry : tensors) result[entry.key()] = entry.value();
  return result;
}

/// Where a weight is, in its dtype.
inline ComputeTarget target_of(const at::Tensor& weight) {
  return {weight.device(), weight.scalar_type(), /*fuse_projections=*/weight.is_cuda()};
}

}  // namespace libvar::bench
