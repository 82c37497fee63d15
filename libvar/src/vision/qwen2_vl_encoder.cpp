#include "vision/qwen2_vl_encoder.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <c10/util/StringUtil.h>

#include "libvar/error.h"
#include "plain_attention.h"
#include "vision/activation.h"

namespace libvar {
namespace {

constexpr double kTheta = 10000.0;

/// Rotate-half in float32, rounded back. [patches, heads, head size]
at::Tensor rotate(const at::Tensor& heads, const at::Tensor& cos, const at::Tensor& sin) {
  const at::Tensor x = heads.to(at::kFloat);
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor turned = at::cat({x.narrow(-1, half, half).neg(), x.narrow(-1, 0, half)}, -1);
  return x.mul(cos.unsqueeze(1)).add_(turned.mul_(sin.unsqueeze(1))).to(heads.scalar_type());
}

}  // namespace

Qwen2VlEncoder::Layer::Layer(const VisionConfig& config, const WeightReader& weights)
    : norm1(LayerNorm::read(weights, "norm1", config.hidden_size, config.layer_norm_eps)),
      norm2(LayerNorm::read(weights, "norm2", config.hidden_size, config.layer_norm_eps)),
      query_key_value(
          Linear::read(weights, "attn.qkv", config.hidden_size, 3 * config.hidden_size, true)),
      attention_out(
          Linear::read(weights, "attn.proj", config.hidden_size, config.hidden_size, true)),
      fc1(Linear::read(weights, "mlp.fc1", config.hidden_size, config.intermediate_size, true)),
      fc2(Linear::read(weights, "mlp.fc2", config.intermediate_size, config.hidden_size, true)) {}

Qwen2VlEncoder::Qwen2VlEncoder(const VisionConfig& config, std::int64_t out_features,
                               const WeightReader& weights)
    : config_(config),
      patch_weight_(weights.read("patch_embed.proj.weight",
                                 {config.hidden_size, 3, config.temporal_patch_size,
                                  config.patch_size, config.patch_size})) {
  const std::int64_t axis_dim = config.hidden_size / config.num_heads / 2;
  const at::Tensor exponents = at::arange(0, axis_dim, 2, at::kFloat).div_(axis_dim);
  frequencies_ = at::pow(kTheta, exponents).reciprocal_().to(weights.target().device);
  layers_.reserve(static_cast<std::size_t>(config.layers_to_run));
  for (std::int64_t i = 0; i < config.layers_to_run; ++i) {
    layers_.emplace_back(config, weights.scope(c10::str("blocks.", i, ".")));
  }
  const WeightReader merger = weights.scope("merger.");
  const std::int64_t merged = config.hidden_size * config.merge_size * config.merge_size;
  merger_norm_ = LayerNorm::read(merger, "ln_q", config.hidden_size, config.layer_norm_eps);
  merger_fc1_ = Linear::read(merger, "mlp.0", merged, merged, true);
  merger_fc2_ = Linear::read(merger, "mlp.2", merged, out_features, true);
}

VisualSize Qwen2VlEncoder::visual_size(const ProcessedImage& image) const {
  const std::int64_t rows = image.grid_rows / config_.merge_size,
                     columns = image.grid_columns / config_.merge_size;
  return {rows * columns, rows, columns};
}

/// Row and column of every patch, in the order of the patches: those that are merged lie behind one
/// another.
Qwen2VlEncoder::Angles Qwen2VlEncoder::angles_of(const ProcessedImage& image) const {
  const std::int64_t merge = config_.merge_size;
  const auto in_order = [&](const at::Tensor& grid) {
    return grid.expand({image.grid_rows, image.grid_columns})
        .reshape({image.grid_rows / merge, merge, image.grid_columns / merge, merge})
        .transpose(1, 2)
        .flatten();
  };
  const auto options = at::TensorOptions(at::kFloat).device(frequencies_.device());
  const at::Tensor row = in_order(at::arange(image.grid_rows, options).unsqueeze(1));
  const at::Tensor column = in_order(at::arange(image.grid_columns, options).unsqueeze(0));
  const at::Tensor half =
      at::cat({at::outer(row, frequencies_), at::outer(column, frequencies_)}, 1);
  const at::Tensor angles = at::cat({half, half}, 1);
  return {angles.cos(), angles.sin()};
}

at::Tensor Qwen2VlEncoder::attend(const Layer& layer, const at::Tensor& normed,
                                  const Angles& angles) const {
  const at::Tensor parts = layer.query_key_value(normed).unflatten(
      -1, {3, config_.num_heads, config_.hidden_size / config_.num_heads});
  const auto heads = [](const at::Tensor& part) { return part.transpose(0, 1).unsqueeze(0); };
  const at::Tensor mixed = plain_attention(
      heads(rotate(parts.select(1, 0), angles.cos, angles.sin)),
      heads(rotate(parts.select(1, 1), angles.cos, angles.sin)), heads(parts.select(1, 2)),
      /*is_causal=*/false);
  return layer.attention_out(mixed.squeeze(0).transpose(0, 1).reshape(normed.sizes()));
}

at::Tensor Qwen2VlEncoder::encode(const ProcessedImage& image) const {
  const at::Tensor weight = patch_weight_.flatten(1);
  if (image.pixels.dim() != 2 || image.pixels.size(1) != weight.size(1) ||
      image.pixels.size(0) != image.grid_rows * image.grid_columns) {
    throw InputError(c10::str("vision tower: expected patches [", image.grid_rows, " * ",
                              image.grid_columns, ", ", weight.size(1), "], got ",
                              image.pixels.sizes()));
  }
  const Angles angles = angles_of(image);
  at::Tensor hidden = at::linear(image.pixels.to(weight.device(), weight.scalar_type()), weight);
  for (const Layer& layer : layers_) {
    hidden.add_(attend(layer, layer.norm1(hidden), angles));
    hidden.add_(layer.fc2(activate(config_.activation, layer.fc1(layer.norm2(hidden)))));
  }
  const at::Tensor merged = merger_norm_(hidden).view({-1, merger_fc1_.weight.size(1)});
  return merger_fc2_(activate(Activation::kGelu, merger_fc1_(merged)));
}

std::vector<at::Tensor> Qwen2VlEncoder::encode(const std::vector<ProcessedImage>& images,
                                               std::int64_t /*tiles_at_once*/) const {
  std::vector<at::Tensor> out;
  out.reserve(images.size());
  for (const ProcessedImage& image : images) out.push_back(encode(image));
  return out;
}

}  // namespace libvar
