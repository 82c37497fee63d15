#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "vision/config.h"
#include "weights.h"

namespace libvar {

/// CLIP's vision transformer, up to the layer whose output is used as image features.
///
/// Source: openai/clip-vit-large-patch14-336 as transformers runs it: convolution without bias over
/// patches in row-major order, class embedding in front, positions, pre_layrnorm, pre-norm layers;
/// no norm behind the last layer that is run.
class ClipTower {
 public:
  /// @param weights  names relative to the tower ("embeddings.class_embedding",
  /// "encoder.layers.0...")
  ClipTower(const VisionConfig& config, const WeightReader& weights);

  /// Image features.
  /// @param pixels  [N, 3, S, S] of any floating dtype, on any device; S is the tower's image size
  /// @return        [N, tokens, hidden_size] in the dtype and on the device of the weights
  at::Tensor operator()(const at::Tensor& pixels) const;

 private:
  struct Norm {
    at::Tensor weight, bias;
  };

  struct Layer {
    Layer(const VisionConfig& config, const WeightReader& weights);

    Norm norm1, norm2;
    ProjectionGroup query_key_value;
    Linear attention_out, fc1, fc2;
  };

  static Norm read_norm(const VisionConfig& config, const WeightReader& weights,
                        const std::string& name);
  at::Tensor normalise(const Norm& norm, const at::Tensor& hidden) const;
  at::Tensor attend(const Layer& layer, const at::Tensor& normed) const;

  VisionConfig config_;
  at::Tensor patch_weight_;     // [D, 3, P, P]
  at::Tensor class_embedding_;  // [D]
  at::Tensor positions_;        // [1 + patches, D]
  Norm pre_norm_;
  std::vector<Layer> layers_;
};

}  // namespace libvar
