#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "image/image.h"
#include "vision/config.h"

namespace libvar {

/// Most memory that VisionEncoder::encode takes at any moment, its result included, computed from
/// sizes alone. Follows what the encoders allocate: a test holds it to what they do.
///
/// @param out_features   the decoder's hidden size
/// @param dtype          of the computation
/// @param tiles_at_once  see VisionEncoder::encode
std::int64_t encode_bytes(const VisionConfig& config, std::int64_t out_features,
                          at::ScalarType dtype, const std::vector<ProcessedImage>& images,
                          std::int64_t tiles_at_once);

/// Tiles of all images; 0 where pictures are not cut into tiles.
std::int64_t count_tiles(const VisionConfig& config, const std::vector<ProcessedImage>& images);

}  // namespace libvar
