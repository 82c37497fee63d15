#include "vision/transformer_layer.h"

#include <ATen/ops/layer_norm.h>
#include <c10/util/StringUtil.h>

#include <utility>
#include <vector>

#include "libvar/error.h"
#include "plain_attention.h"
#include "vision/activation.h"

namespace libvar {

LayerNorm LayerNorm::read(const WeightReader& weights, const std::string& name, std::int64_t size,
                          double eps) {
  return {weights.read(name + ".weight", {size}), weights.read(name + ".bias", {size}), eps};
}

at::Tensor LayerNorm::operator()(const at::Tensor& input) const {
  return at::layer_norm(input, weight.sizes(), weight, bias, eps);
}

TransformerLayer::TransformerLayer(const VisionConfig& config, const TransformerLayerNames& names,
                                   const WeightReader& weights)
    : num_heads_(config.num_heads),
      activation_(config.activation),
      norm1_(LayerNorm::read(weights, names.norm1, config.hidden_size, config.layer_norm_eps)),
      norm2_(LayerNorm::read(weights, names.norm2, config.hidden_size, config.layer_norm_eps)),
      query_key_value_(weights,
                       {{names.query, config.hidden_size},
                        {names.key, config.hidden_size},
                        {names.value, config.hidden_size}},
                       config.hidden_size, config.qkv_bias),
      attention_out_(
          Linear::read(weights, names.out, config.hidden_size, config.hidden_size, true)),
      fc1_(Linear::read(weights, names.fc1, config.hidden_size, config.intermediate_size, true)),
      fc2_(Linear::read(weights, names.fc2, config.intermediate_size, config.hidden_size, true)) {
  if (names.scale1 != nullptr) scale1_ = weights.read(names.scale1, {config.hidden_size});
  if (names.scale2 != nullptr) scale2_ = weights.read(names.scale2, {config.hidden_size});
}

at::Tensor TransformerLayer::attend(const at::Tensor& normed) const {
  std::vector<at::Tensor> parts = query_key_value_(normed);
  for (at::Tensor& part : parts) {
    part = part.unflatten(-1, {num_heads_, part.size(-1) / num_heads_}).transpose(1, 2);
  }
  const at::Tensor mixed = plain_attention(parts[0], parts[1], parts[2], /*is_causal=*/false);
  return attention_out_(mixed.transpose(1, 2).reshape(normed.sizes()));
}

at::Tensor TransformerLayer::operator()(at::Tensor hidden) const {
  const auto add = [&hidden](const at::Tensor& delta, const at::Tensor& scale) {
    hidden.add_(scale.defined() ? delta.mul_(scale) : delta);
  };
  add(attend(norm1_(hidden)), scale1_);
  add(fc2_(activate(activation_, fc1_(norm2_(hidden)))), scale2_);
  return hidden;
}

at::Tensor patches_of(const at::Tensor& pixels, const at::Tensor& weight, std::int64_t image_size) {
  if (pixels.dim() != 4 || pixels.size(1) != 3 || pixels.size(2) != image_size ||
      pixels.size(3) != image_size) {
    throw InputError(c10::str("vision tower: expected pixels [N, 3, ", image_size, ", ", image_size,
                              "], got ", pixels.sizes()));
  }
  const std::int64_t patch = weight.size(-1), side = image_size / patch;
  return pixels.to(weight.device(), weight.scalar_type())
      .narrow(2, 0, side * patch)
      .narrow(3, 0, side * patch)
      .reshape({pixels.size(0), 3, side, patch, side, patch})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({pixels.size(0), side * side, 3 * patch * patch});
}

}  // namespace libvar
