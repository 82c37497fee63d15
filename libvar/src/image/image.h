#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "image/config.h"
#include "libvar/request.h"

namespace libvar {

/// Reads a picture as uint8 RGB [H, W, 3], alpha dropped.
/// @throws InputError  missing, not a picture that OpenCV reads, truncated
at::Tensor read_image(const std::filesystem::path& path, bool exif_rotation = true);

/// The same from the bytes of a file; `name` is used in messages.
at::Tensor decode_image(std::string_view bytes, const std::string& name, bool exif_rotation = true);

/// read_image, or a copy of the pixels after a check of their size.
at::Tensor to_tensor(const ImageSource& source, bool exif_rotation = true);

/// @throws c10::TypeError, c10::ValueError  not uint8 [H, W, 3] with at least one pixel
void check_picture(const at::Tensor& image);

/// Bicubic resize with antialiasing, bit for bit that of Pillow in the versions that `order` says.
/// @param image  uint8 [H, W, 3]
at::Tensor resize_bicubic(const at::Tensor& image, std::int64_t height, std::int64_t width,
                          ResizePassOrder order);

/// Resize, crop or pad: the uint8 picture [crop_height, crop_width, 3] before normalisation.
at::Tensor resize_and_fit(const at::Tensor& image, const ImageProcessorConfig& config);

/// Rescaled and normalised. uint8 [H, W, 3] -> float32 [3, H, W]
at::Tensor normalise(const at::Tensor& levels, const ImageProcessorConfig& config);

/// A picture as a vision tower reads it.
struct ProcessedImage {
  /// float32 [tiles, 3, S, S], one tile but for kTiles; kDynamic: [patches, 3 * T * P * P], the
  /// patches that are merged behind one another
  at::Tensor pixels;
  std::int64_t grid_rows = 0, grid_columns = 0;  ///< kDynamic: in patches
};

/// @param image  uint8 [H, W, 3]
/// @throws InputError  a picture that the mode can't take
ProcessedImage process_image(const at::Tensor& image, const ImageProcessorConfig& config);

}  // namespace libvar
