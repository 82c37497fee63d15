#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "vision/encoder.h"
#include "vision/transformer_layer.h"

namespace libvar {

/// Qwen2-VL's vision transformer for pictures of any size, and the merger behind it.
///
/// Source: arXiv:2409.12191 as transformers runs it: patches as a matrix product without bias, no
/// position embedding, pre-norm layers whose queries and keys are turned by a patch's row and
/// column (in float32), full attention within a picture; the merger puts merge_size^2 patches,
/// which lie behind one another, through a norm and two linear maps.
class Qwen2VlEncoder : public VisionEncoder {
 public:
  /// @param weights  names relative to the tower ("patch_embed.proj.weight", "blocks.0...")
  Qwen2VlEncoder(const VisionConfig& config, std::int64_t out_features,
                 const WeightReader& weights);

  VisualSize visual_size(const ProcessedImage& image) const override;
  std::vector<at::Tensor> encode(const std::vector<ProcessedImage>& images,
                                 std::int64_t tiles_at_once) const override;

 private:
  struct Layer {
    Layer(const VisionConfig& config, const WeightReader& weights);

    LayerNorm norm1, norm2;
    Linear query_key_value, attention_out, fc1, fc2;
  };

  struct Angles {
    at::Tensor cos, sin;  ///< float32 [patches, head size]
  };

  Angles angles_of(const ProcessedImage& image) const;
  at::Tensor attend(const Layer& layer, const at::Tensor& normed, const Angles& angles) const;
  at::Tensor encode(const ProcessedImage& image) const;

  VisionConfig config_;
  at::Tensor patch_weight_;  // [D, 3, T, P, P]
  at::Tensor frequencies_;   // float32 [head size / 4]
  std::vector<Layer> layers_;
  LayerNorm merger_norm_;
  Linear merger_fc1_, merger_fc2_;
};

}  // namespace libvar
