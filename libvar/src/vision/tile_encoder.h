#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "vision/encoder.h"

namespace libvar {

/// A tower that reads tiles of one size, each by itself; the tiles of all images pass together, or
/// so many at a time as the caller has memory for.
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

  std::vector<at::Tensor> encode(const std::vector<ProcessedImage>& images,
                                 std::int64_t tiles_at_once) const override {
    if (images.empty()) return {};
    std::vector<at::Tensor> pixels;
    pixels.reserve(images.size());
    for (const ProcessedImage& image : images) pixels.push_back(image.pixels);
    const at::Tensor features = encode_tiles(at::cat(pixels), tiles_at_once);
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
  /// [tiles, 3, S, S] -> [tiles, tokens, D]
  at::Tensor encode_tiles(const at::Tensor& pixels, std::int64_t at_once) const {
    const std::int64_t tiles = pixels.size(0);
    if (at_once <= 0 || at_once >= tiles) return projector_(tower_(pixels));
    at::Tensor result;
    for (std::int64_t begin = 0; begin < tiles; begin += at_once) {
      const std::int64_t count = std::min(at_once, tiles - begin);
      const at::Tensor part = projector_(tower_(pixels.narrow(0, begin, count)));
      if (begin == 0) result = at::empty({tiles, part.size(1), part.size(2)}, part.options());
      result.narrow(0, begin, count).copy_(part);
    }
    return result;
  }

  Tower tower_;
  Projector projector_;
  VisualSize tile_;
};

}  // namespace libvar
