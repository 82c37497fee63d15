#include "vision/projector.h"

#include "vision/activation.h"

namespace libvar {

Projector::Projector(const VisionConfig& config, std::int64_t out_features,
                     const WeightReader& weights)
    : linear_1_(Linear::read(weights, "linear_1", config.hidden_size, out_features,
                             config.projector_bias)),
      linear_2_(
          Linear::read(weights, "linear_2", out_features, out_features, config.projector_bias)),
      activation_(config.projector_activation) {}

at::Tensor Projector::operator()(const at::Tensor& features) const {
  return linear_2_(activate(activation_, linear_1_(features)));
}

}  // namespace libvar
