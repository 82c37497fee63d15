#pragma once

#include <cstdint>
#include <filesystem>
#include <opencv2/core.hpp>
#include <string>
#include <vector>

#include "libvar/token_box.h"

namespace var_command {

/// A picture as the model sees it: BGR, turned as its EXIF orientation says where `exif_rotation`.
/// @throws libvar::InputError  it can't be read
cv::Mat read_picture(const std::string& path, bool exif_rotation);

/// The picture, at least 480 pixels wide, with one colour for each visual token laid over it:
/// viridis from 0 to `most`, readable for colour-blind people. A thumbnail's tokens are a panel of
/// their own.
cv::Mat heat_map(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<double>& values, double most, const std::string& caption);

/// The picture with the grid of its visual tokens, and some of them outlined.
cv::Mat outlined(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<std::int64_t>& tokens, const std::string& caption);

/// rows x columns values from `least` to `most` as squares, with labels on both sides.
cv::Mat value_grid(const std::vector<std::vector<double>>& values, double least, double most,
                   const std::string& row_name, const std::string& column_name,
                   const std::string& caption);

/// A bar for each value in percent, with its label; a line at the first one.
cv::Mat bar_chart(const std::vector<std::string>& labels, const std::vector<double>& values,
                  const std::string& caption);

/// Pictures beside each other, aligned at the top.
cv::Mat beside(const std::vector<cv::Mat>& pictures);

/// @throws libvar::InputError  it can't be written
void write_picture(const std::filesystem::path& path, const cv::Mat& picture);

}  // namespace var_command
