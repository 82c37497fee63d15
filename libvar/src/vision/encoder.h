#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "image/image.h"
#include "vision/config.h"
#include "visual_size.h"
#include "weights.h"

namespace libvar {

/// A vision tower and the projector behind it. Immutable.
class VisionEncoder {
 public:
  virtual ~VisionEncoder() = default;

  /// The visual tokens that encode() makes of an image.
  virtual VisualSize visual_size(const ProcessedImage& image) const = 0;

  /// Image features as the decoder's embeddings.
  /// @param tiles_at_once  most tiles that pass through the tower together; 0: all. Encoders of
  ///                       pictures of any size take one picture at a time
  /// @return  for each image [visual tokens, D], in the dtype and on the device of the weights
  virtual std::vector<at::Tensor> encode(const std::vector<ProcessedImage>& images,
                                         std::int64_t tiles_at_once) const = 0;
};

/// The encoder that config.tower names.
/// @param out_features  D, the decoder's hidden size
/// @param weights       names from the root of the archive
std::unique_ptr<VisionEncoder> make_vision_encoder(const VisionConfig& config,
                                                   std::int64_t out_features,
                                                   const WeightReader& weights);

}  // namespace libvar
