#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/StringUtil.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <variant>

#include "image/image.h"
#include "image/picture_file.h"
#include "libvar/error.h"

namespace libvar {
namespace {

std::string read_file(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status))
    throw InputError(c10::str("image ", name, ": no such file"));
  if (std::filesystem::is_directory(status)) {
    throw InputError(c10::str("image ", name, ": is a directory, expected a picture file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw InputError(c10::str("image ", name, ": can't be opened: ", std::strerror(errno)));
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw InputError(c10::str("image ", name, ": can't be read"));
  return bytes;
}

/// OpenCV's 8-bit three-channel picture of the bytes: 16 bits are cut to 8, alpha is dropped,
/// palettes are resolved.
cv::Mat decode_pixels(const PictureFile& file, const std::string& name) {
  const cv::Mat buffer(1, static_cast<int>(file.bytes.size()), CV_8UC1,
                       const_cast<char*>(file.bytes.data()));
  cv::Mat pixels;
  try {
    pixels = cv::imdecode(buffer, cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION);
  } catch (const cv::Exception& error) {
    throw InputError(c10::str("image ", name, ": can't be decoded: ", error.err));
  }
  if (pixels.empty())
    throw InputError(c10::str("image ", name, ": damaged file, its pixels can't be decoded"));
  return pixels;
}

at::Tensor rgb_tensor(const cv::Mat& bgr) {
  at::Tensor image = at::empty({bgr.rows, bgr.cols, 3}, at::kByte);
  auto* out = image.mutable_data_ptr<std::uint8_t>();
  for (int y = 0; y < bgr.rows; ++y) {
    const std::uint8_t* row = bgr.ptr<std::uint8_t>(y);
    for (int x = 0; x < bgr.cols; ++x, row += 3, out += 3) {
      out[0] = row[2];
      out[1] = row[1];
      out[2] = row[0];
    }
  }
  return image;
}

/// Turns and mirrors so that the picture stands upright, as PIL.ImageOps.exif_transpose does.
at::Tensor apply_orientation(const at::Tensor& image, int orientation) {
  at::Tensor upright = orientation >= 5 ? image.transpose(0, 1) : image;
  switch (orientation) {
    case 2:
    case 6:
      upright = upright.flip({1});
      break;
    case 3:
    case 7:
      upright = upright.flip({0, 1});
      break;
    case 4:
    case 8:
      upright = upright.flip({0});
      break;
    default:
      break;
  }
  return upright.contiguous();
}

}  // namespace

at::Tensor read_image(const std::filesystem::path& path, bool exif_rotation) {
  return decode_image(read_file(path), path.string(), exif_rotation);
}

at::Tensor decode_image(std::string_view bytes, const std::string& name, bool exif_rotation) {
  const PictureFile file = inspect_picture_file(bytes, name);
  const at::Tensor image = rgb_tensor(decode_pixels(file, name));
  return exif_rotation ? apply_orientation(image, file.orientation) : image;
}

at::Tensor to_tensor(const ImageSource& source, bool exif_rotation) {
  if (const auto* path = std::get_if<std::filesystem::path>(&source))
    return read_image(*path, exif_rotation);
  const auto& image = std::get<RgbImage>(source);
  constexpr std::int64_t kMaxSide = std::int64_t{1} << 28;
  if (image.width < 1 || image.height < 1 || image.width > kMaxSide || image.height > kMaxSide ||
      static_cast<std::uint64_t>(image.width) * static_cast<std::uint64_t>(image.height) * 3 !=
          image.pixels.size()) {
    throw InputError(c10::str("image in memory: expected height * width * 3 bytes, got ",
                              image.pixels.size(), " bytes for height ", image.height,
                              " and width ", image.width));
  }
  // The clone never writes to the caller's pixels.
  return at::from_blob(const_cast<std::uint8_t*>(image.pixels.data()),
                       {image.height, image.width, 3}, at::kByte)
      .clone();
}

}  // namespace libvar
