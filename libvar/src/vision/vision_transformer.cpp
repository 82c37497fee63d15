#include "vision/clip_tower.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/StringUtil.h>

#include <string>

#include "libvar/error.h"
#include "vision/activation.h"

namespace libvar {

ClipTower::Norm ClipTower::read_norm(const VisionConfig& config, const WeightReader& weights,
                                     const std::string& name) {
  return {weights.read(name + ".weight", {config.hidden_size}),
          weights.read(name + ".bias", {config.hidden_size})};
}

ClipTower::Layer::Layer(const VisionConfig& config, const WeightReader& weights)
    : norm1(read_norm(config, weights, "layer_norm1")),
      norm2(read_norm(config, weights, "layer_norm2")),
      query_key_value(weights.scope("self_attn."),
                      {{"q_proj", config.hidden_size},
                       {"k_proj", config.hidden_size},
                       {"v_proj", config.hidden_size}},
                      config.hidden_size, true),
      attention_out(Linear::read(weights, "self_attn.out_proj", config.hidden_size,
                                 config.hidden_size, true)),
      fc1(Linear::read(weights, "mlp.fc1", config.hidden_size, config.intermediate_size, true)),
      fc2(Linear::read(weights, "mlp.fc2", config.intermediate_size, config.hidden_size, true)) {}

ClipTower::ClipTower(const VisionConfig& config, const WeightReader& weights) : config_(config) {
  const std::int64_t patches_per_side = config.image_size / config.patch_size;
  patch_weight_ = weights.read("embeddings.patch_embedding.weight",
                               {config.hidden_size, 3, config.patch_size, config.patch_size});
  class_embedding_ = weights.read("embeddings.class_embedding", {config.hidden_size});
  positions_ = weights.read("embeddings.position_embedding.weight",
                            {1 + patches_per_side * patches_per_side, config.hidden_size});
  pre_norm_ = read_norm(config, weights, "pre_layrnorm");
  layers_.reserve(static_cast<std::size_t>(config.layers_to_run));
  for (std::int64_t i = 0; i < config.layers_to_run; ++i) {
    layers_.emplace_back(config, weights.scope(c10::str("encoder.layers.", i, ".")));
  }
}

at::Tensor ClipTower::normalise(const Norm& norm, const at::Tensor& hidden) const {
  return at::layer_norm(hidden, {config_.hidden_size}, norm.weight, norm.bias,
                        config_.layer_norm_eps);
}

at::Tensor ClipTower::attend(const Layer& layer, const at::Tensor& normed) const {
  const std::int64_t batch = normed.size(0), tokens = normed.size(1);
  std::vector<at::Tensor> parts = layer.query_key_value(normed);
  for (at::Tensor& part : parts) {
    part = part.unflatten(-1, {config_.num_heads, config_.hidden_size / config_.num_heads})
               .transpose(1, 2);
  }
  const at::Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
  return layer.attention_out(mixed.transpose(1, 2).reshape({batch, tokens, config_.hidden_size}));
}

at::Tensor ClipTower::operator()(const at::Tensor& pixels) const {
  if (pixels.dim() != 4 || pixels.size(1) != 3 || pixels.size(2) != config_.image_size ||
      pixels.size(3) != config_.image_size) {
    throw InputError(c10::str("vision tower: expected pixels [N, 3, ", config_.image_size, ", ",
                              config_.image_size, "], got ", pixels.sizes()));
  }
  // The convolution as a matrix product: cuDNN would compute a float32 one in TF32.
  const std::int64_t patch = config_.patch_size, side = config_.image_size / patch;
  const at::Tensor rows = pixels.to(patch_weight_.device(), patch_weight_.scalar_type())
                              .narrow(2, 0, side * patch)
                              .narrow(3, 0, side * patch)
                              .reshape({pixels.size(0), 3, side, patch, side, patch})
                              .permute({0, 2, 4, 1, 3, 5})
                              .reshape({pixels.size(0), side * side, 3 * patch * patch});
  const at::Tensor patches = at::linear(rows, patch_weight_.flatten(1));
  const at::Tensor class_token = class_embedding_.expand({pixels.size(0), 1, config_.hidden_size});
  at::Tensor hidden = normalise(pre_norm_, at::cat({class_token, patches}, 1).add_(positions_));
  for (const Layer& layer : layers_) {
    hidden = hidden.add_(attend(layer, normalise(layer.norm1, hidden)));
    hidden.add_(layer.fc2(activate(config_.activation, layer.fc1(normalise(layer.norm2, hidden)))));
  }
  return config_.drop_class_token ? hidden.narrow(1, 1, hidden.size(1) - 1) : hidden;
}

}  // namespace libvar
