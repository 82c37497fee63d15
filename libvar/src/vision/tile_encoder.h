#pragma once

#include <ATen/ops/cat.h>

#include <utility>
#include <vector>

#include "vision/encoder.h"

namespace libvar {

/// A tower that reads tiles of one size, each by itself; the tiles of all images pass together.
template <typename Tower, typename Projector>
class TileEncoder : public VisionEncoder {
 public:
  /// @param tile  the visual tokens of a tile
  TileEncoder(Tower tower, Projector projector, const VisualSize& tile)
      : tower_(std::move(tower)), projector_(std::move(projector)), tile_(tile) {}

  VisualSize visual_size(const ProcessedImage& image) const override {
    const std::int64_t tiles = image.pixels.size(0);
    return tiles == 1 ? tile_ : VisualSize{tiles * tile_.tokens};
  }

  std::vector<at::Tensor> encode(const std::vector<ProcessedImage>& images) const override {
    if (images.empty()) return {};
    std::vector<at::Tensor> pixels;
    pixels.reserve(images.size());
    for (const ProcessedImage& image : images) pixels.push_back(image.pixels);
    const at::Tensor features = projector_(tower_(at::cat(pixels)));  // [tiles, tokens, D]
    std::vector<at::Tensor> out;
    out.reserve(images.size());
    std::int64_t begin = 0;
    for (const at::Tensor& tiles : pixels) {
      out.push_back(features.narrow(0, begin, tiles.size(0)).flatten(0, 1));
      begin += tiles.size(0);
    }
    return out;
  }

 private:
  Tower tower_;
  Projector projector_;
  VisualSize tile_;
};

}  // namespace libvar
