#pragma once

#include <cstdint>

#include "image/config.h"

namespace libvar {

/// Pixels.
struct PictureSize {
  std::int64_t height = 0, width = 0;

  bool operator==(const PictureSize&) const = default;
};

/// The size to which a picture is brought where the tower takes any size (ImageMode::kDynamic).
///
/// Source: smart_resize of Qwen2-VL: multiples of patch_size * merge_size near the picture's own
/// size, with at least min_pixels and at most max_pixels; halves are rounded to even.
/// @throws InputError  one side is more than 200 times as long as the other
PictureSize dynamic_size(const PictureSize& picture, const ImageProcessorConfig& config);

/// A grid of tiles.
struct TileGrid {
  std::int64_t rows = 1, columns = 1;

  bool operator==(const TileGrid&) const = default;
};

/// The grid into which a picture is cut (ImageMode::kTiles).
///
/// Source: dynamic_preprocess of InternVL2: of all grids with min_tiles to max_tiles tiles the one
/// whose aspect is nearest to the picture's; of equally near ones the larger, where the picture has
/// more than half of its pixels.
TileGrid tile_grid(const PictureSize& picture, const ImageProcessorConfig& config);

}  // namespace libvar
