#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace libvar {

/// How a picture is brought to the sizes that a vision tower reads.
enum class ImageMode {
  kCrop,     ///< shorter side to shortest_edge, centre crop
  kPad,      ///< to a square of the mean colour, then as kCrop
  kResize,   ///< straight to resize_height x resize_width, the aspect is not kept
  kTiles,    ///< a grid of square tiles chosen by the aspect, and a thumbnail
  kDynamic,  ///< to multiples of patch_size * merge_size near its own size
};

/// Which of a resize's two passes comes first. Levels are rounded to 8 bits between them, so the
/// order can be seen.
enum class ResizePassOrder {
  kHorizontalFirst,  ///< Pillow before 13.0, with which the published results were made
  /// Pillow 13.0: vertical first where rows are lost, and more than twice as many as columns
  /// (columns won count as lost ones below 0).
  kPillow13,
};

/// Bounds of what a checkpoint or a request may ask for.
inline constexpr std::int64_t kMostTiles = 128;
inline constexpr std::int64_t kMostPixels = std::int64_t{1} << 28;

/// "crop", "pad", "resize", "tiles" or "dynamic".
std::string_view to_string(ImageMode mode);

/// What the checkpoint's preprocessor_config.json asks for, and the request. Sizes are pixels.
struct ImageProcessorConfig {
  ImageMode mode = ImageMode::kCrop;
  ResizePassOrder resize_order = ResizePassOrder::kHorizontalFirst;
  bool do_resize = true, do_center_crop = true, do_rescale = true, do_normalize = true;
  std::int64_t shortest_edge = 0;                             ///< kCrop, kPad: resize target
  std::int64_t crop_height = 0, crop_width = 0;               ///< kCrop, kPad
  std::int64_t resize_height = 0, resize_width = 0;           ///< kResize
  std::int64_t tile_size = 0, min_tiles = 1, max_tiles = 12;  ///< kTiles
  bool use_thumbnail = true;                                  ///< kTiles: one more, if not alone
  std::int64_t patch_size = 0, merge_size = 0, temporal_patch_size = 0;  ///< kDynamic
  std::int64_t min_pixels = 0, max_pixels = 0;                           ///< kDynamic
  double rescale_factor = 1.0 / 255.0;
  std::array<double, 3> mean{}, std{};
};

}  // namespace libvar
