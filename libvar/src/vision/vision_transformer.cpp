#include "vision/vision_transformer.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <c10/util/StringUtil.h>

#include <utility>

namespace libvar {

VisionTransformer::VisionTransformer(const VisionConfig& config,
                                     const VisionTransformerNames& names,
                                     const WeightReader& weights)
    : config_(config) {
  const std::int64_t hidden = config.hidden_size, side = config.image_size / config.patch_size;
  const bool has_class_token = names.class_token != nullptr;
  const auto read = [&](const char* name, std::vector<std::int64_t> shape) {
    if (!names.leading_ones) return weights.read(name, shape);
    const std::vector<std::int64_t> own = shape;
    while (shape.size() < 3) shape.insert(shape.begin(), 1);
    return weights.read(name, shape).view(own);
  };
  patch_weight_ = weights.read(c10::str(names.patches, ".weight"),
                               {hidden, 3, config.patch_size, config.patch_size});
  if (names.patch_bias) patch_bias_ = weights.read(c10::str(names.patches, ".bias"), {hidden});
  if (has_class_token) class_token_ = read(names.class_token, {hidden});
  positions_ = read(names.positions, {side * side + (has_class_token ? 1 : 0), hidden});
  if (names.pre_norm != nullptr)
    pre_norm_ = LayerNorm::read(weights, names.pre_norm, hidden, config.layer_norm_eps);
  layers_.reserve(static_cast<std::size_t>(config.layers_to_run));
  for (std::int64_t i = 0; i < config.layers_to_run; ++i) {
    layers_.emplace_back(config, names.layer, weights.scope(c10::str(names.layers, i, ".")));
  }
}

at::Tensor VisionTransformer::operator()(const at::Tensor& pixels) const {
  // The convolution as a matrix product: cuDNN would compute a float32 one in TF32.
  at::Tensor hidden = at::linear(patches_of(pixels, patch_weight_, config_.image_size),
                                 patch_weight_.flatten(1), patch_bias_);
  if (class_token_.defined()) {
    hidden = at::cat({class_token_.expand({hidden.size(0), 1, config_.hidden_size}), hidden}, 1);
  }
  hidden.add_(positions_);
  if (pre_norm_) hidden = (*pre_norm_)(hidden);
  for (const TransformerLayer& layer : layers_) hidden = layer(std::move(hidden));
  const bool drops = class_token_.defined() && config_.drop_class_token;
  return drops ? hidden.narrow(1, 1, hidden.size(1) - 1) : hidden;
}

}  // namespace libvar
