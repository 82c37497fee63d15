#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "vision/config.h"
#include "weights.h"

namespace libvar {

/// Two linear maps with an activation between them, from image features to the decoder's
/// embeddings.
class Projector {
 public:
  /// @param weights  names relative to the projector ("linear_1.weight")
  Projector(const VisionConfig& config, std::int64_t out_features, const WeightReader& weights);

  /// [..., vision hidden size] -> [..., out_features]
  at::Tensor operator()(const at::Tensor& features) const;

 private:
  Linear linear_1_, linear_2_;
  Activation activation_;
};

}  // namespace libvar
