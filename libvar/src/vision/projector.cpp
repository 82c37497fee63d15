#include "vision/projector.h"

#include <ATen/ops/constant_pad_nd.h>

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

namespace {

constexpr double kMergedNormEps = 1e-5;  // of torch.nn.LayerNorm

std::int64_t merged_size(const VisionConfig& config) {
  return config.hidden_size * config.merge_size * config.merge_size;
}

}  // namespace

MergingProjector::MergingProjector(const VisionConfig& config, std::int64_t out_features,
                                   const WeightReader& weights)
    : side_(config.image_size / config.patch_size),
      merge_(config.merge_size),
      transposed_(config.transposed_merge),
      norm_(LayerNorm::read(weights, "layer_norm", merged_size(config), kMergedNormEps)),
      linear_1_(Linear::read(weights, "linear_1", merged_size(config), out_features, true)),
      linear_2_(Linear::read(weights, "linear_2", out_features, out_features, true)),
      activation_(config.projector_activation) {}

at::Tensor MergingProjector::operator()(const at::Tensor& features) const {
  const std::int64_t missing = (merge_ - side_ % merge_) % merge_;
  const std::int64_t merged_side = (side_ + missing) / merge_;
  at::Tensor grid = features.unflatten(1, {side_, side_});
  if (missing > 0) grid = at::constant_pad_nd(grid, {0, 0, 0, missing, 0, missing});
  grid = grid.reshape({features.size(0), merged_side, merge_, merged_side, merge_, -1});
  grid = transposed_ ? grid.permute({0, 3, 1, 2, 4, 5}) : grid.permute({0, 1, 3, 2, 4, 5});
  const at::Tensor merged = grid.reshape({features.size(0), merged_side * merged_side, -1});
  return linear_2_(activate(activation_, linear_1_(norm_(merged))));
}

}  // namespace libvar
