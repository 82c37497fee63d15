#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <opencv2/core.hpp>
#include <string>
#include <vector>

#include "libvar/token_box.h"

namespace var_command {

/// What a pixel of a segmentation mask is.
enum MaskLevel : std::uint8_t { kBackground = 0, kVoid = 128, kForeground = 255 };

/// Segmentation masks of pictures, by the name of the picture's file.
class Masks {
 public:
  virtual ~Masks() = default;
  /// Pictures that have a mask, ascending.
  virtual std::vector<std::string> pictures() const = 0;
  /// [H, W] of MaskLevel, in the size of the picture as it is stored.
  virtual cv::Mat mask(const std::string& picture, const cv::Size& size) const = 0;
};

/// PASCAL VOC: a PNG of the same stem for each picture in `images`; index 0 (black) is background,
/// 255 (224, 224, 192 in VOC's palette) void, all else an object.
/// @throws libvar::InputError  no picture has a mask
std::unique_ptr<Masks> voc_masks(const std::filesystem::path& folder,
                                 const std::filesystem::path& images);

/// COCO instances: polygons, run lengths as a list or as COCO's text; what no annotation covers is
/// background, a crowd is void.
/// @throws libvar::InputError  no such file; an annotation that is not understood, by its id
std::unique_ptr<Masks> coco_masks(const std::filesystem::path& file);

/// The share of a token's pixels in the picture that are background, void left out; NaN where less
/// than half of its box is in the picture, or all of it is void.
double background_share(const cv::Mat& mask, const libvar::TokenBox& box);

}  // namespace var_command
