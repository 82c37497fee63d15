#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "vision/config.h"
#include "vision/transformer_layer.h"
#include "weights.h"

namespace libvar {

/// What the tensors of a VisionTransformer are called; a part without a name is not there.
struct VisionTransformerNames {
  const char* patches;  ///< of the convolution: .weight, and .bias with patch_bias
  bool patch_bias = false;
  const char* class_token = nullptr;
  const char* positions;
  /// Class token and positions are parameters of their own, with leading dimensions of 1.
  bool leading_ones = false;
  const char* pre_norm = nullptr;
  const char* layers;  ///< before the number of a layer
  TransformerLayerNames layer = kClipLayerNames;
};

/// openai/clip-vit-large-patch14-336: a class token, a norm before the first layer.
inline constexpr VisionTransformerNames kClipNames{
    .patches = "embeddings.patch_embedding",
    .class_token = "embeddings.class_embedding",
    .positions = "embeddings.position_embedding.weight",
    .pre_norm = "pre_layrnorm",  // sic
    .layers = "encoder.layers."};

/// google/siglip: no class token, a bias in the convolution.
inline constexpr VisionTransformerNames kSiglipNames{
    .patches = "embeddings.patch_embedding",
    .patch_bias = true,
    .positions = "embeddings.position_embedding.weight",
    .layers = "encoder.layers."};

/// InternViT in transformers' own layout: a class token, a bias in the convolution, layer scale.
inline constexpr VisionTransformerNames kInternVitNames{
    .patches = "embeddings.patch_embeddings.projection",
    .patch_bias = true,
    .class_token = "embeddings.cls_token",
    .positions = "embeddings.position_embeddings",
    .leading_ones = true,
    .layers = "encoder.layer.",
    .layer = {.norm1 = "layernorm_before",
              .query = "attention.q_proj",
              .key = "attention.k_proj",
              .value = "attention.v_proj",
              .out = "attention.projection_layer",
              .norm2 = "layernorm_after",
              .fc1 = "mlp.fc1",
              .fc2 = "mlp.fc2",
              .scale1 = "lambda_1",
              .scale2 = "lambda_2"}};

/// A vision transformer over tiles of one size, up to the layer whose output is used as image
/// features.
///
/// Source: CLIP, SigLIP and InternViT as transformers runs them: convolution over patches in
/// row-major order, class token in front, positions, pre-norm layers; no norm behind the last layer
/// that is run.
class VisionTransformer {
 public:
  /// @param weights  names relative to the tower
  VisionTransformer(const VisionConfig& config, const VisionTransformerNames& names,
                    const WeightReader& weights);

  /// Image features.
  /// @param pixels  [N, 3, S, S] of any floating dtype, on any device; S is the tower's image size
  /// @return        [N, tokens, hidden_size] in the dtype and on the device of the weights
  at::Tensor operator()(const at::Tensor& pixels) const;

 private:
  VisionConfig config_;
  at::Tensor patch_weight_;  // [D, 3, P, P]
  std::optional<at::Tensor> patch_bias_;
  at::Tensor class_token_;  // [D], or undefined
  at::Tensor positions_;    // [tokens, D]
  std::optional<LayerNorm> pre_norm_;
  std::vector<TransformerLayer> layers_;
};

}  // namespace libvar
