#pragma once

#include <cstdint>
#include <string>

#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>

namespace libvar::testing {

/// A BGR picture without any symmetry.
inline cv::Mat make_picture(int height, int width) {
  cv::Mat picture(height, width, CV_8UC3);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      picture.at<cv::Vec3b>(y, x) =
          cv::Vec3b(static_cast<std::uint8_t>(x * 5), static_cast<std::uint8_t>(y * 7),
                    static_cast<std::uint8_t>(x * y + 40));
    }
  }
  return picture;
}

/// The bytes of a picture file.
inline std::string encode(const cv::Mat& picture, const std::string& extension) {
  std::vector<std::uint8_t> bytes;
  CV_Assert(cv::imencode(extension, picture, bytes));
  return {bytes.begin(), bytes.end()};
}

/// A TIFF block of one tag, the orientation.
inline std::string exif_block(int orientation, bool big_endian) {
  const char value = static_cast<char>(orientation);
  if (big_endian) {
    return std::string("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", 19) + value +
           std::string(6, '\0');
  }
  return std::string("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", 18) + value +
         std::string(7, '\0');
}

/// The JPEG file with an EXIF segment behind its first marker.
inline std::string with_exif(const std::string& jpeg, int orientation, bool big_endian) {
  const std::string payload = std::string("Exif\0\0", 6) + exif_block(orientation, big_endian);
  const auto length = static_cast<unsigned>(payload.size() + 2);
  const std::string head = {'\xff', '\xe1', static_cast<char>(length >> 8),
                            static_cast<char>(length & 0xff)};
  return jpeg.substr(0, 2) + head + payload + jpeg.substr(2);
}

}  // namespace libvar::testing
