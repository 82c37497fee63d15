#pragma once

#include <array>
#include <cstdint>

namespace libvar {

enum class ImageMode { kCrop, kPad };

/// What the checkpoint's preprocessor_config.json asks for.
struct ImageProcessorConfig {
  ImageMode mode = ImageMode::kCrop;
  bool do_resize = true, do_center_crop = true, do_rescale = true, do_normalize = true;
  std::int64_t shortest_edge = 0;                ///< resize target, pixels
  std::int64_t crop_height = 0, crop_width = 0;  ///< pixels
  double rescale_factor = 1.0 / 255.0;
  std::array<double, 3> mean{}, std{};
};

}  // namespace libvar
