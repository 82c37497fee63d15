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

/// The picture with one colour for each visual token laid over it: viridis from 0 to `most`,
/// readable for colour-blind people. A thumbnail's tokens are a panel of their own.
/// @param width  pixels of a panel; 0: the picture's, at least 480
cv::Mat heat_map(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<double>& values, double most, const std::string& caption,
                 int width = 0);

/// The picture with the grid of its visual tokens, and some of them outlined.
cv::Mat outlined(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<std::int64_t>& tokens, const std::string& caption);

/// rows x columns values from `least` to `most` as squares, with labels on both sides.
cv::Mat value_grid(const std::vector<std::vector<double>>& values, double least, double most,
                   const std::string& row_name, const std::string& column_name,
                   const std::string& caption);

/// Pictures beside each other, aligned at the top.
cv::Mat beside(const std::vector<cv::Mat>& pictures);

/// Lines of so many pictures, one below another, aligned at the left.
cv::Mat in_lines(const std::vector<cv::Mat>& pictures, std::size_t across);

/// Three digits.
std::string short_number(double value);

/// Black text whose baseline begins at a point.
void put_text(cv::Mat& canvas, const std::string& text, cv::Point at, double size = 0.45);

/// Pixels across of that text.
int text_width(const std::string& text, double size);

/// @throws libvar::InputError  it can't be written
void write_picture(const std::filesystem::path& path, const cv::Mat& picture);

}  // namespace var_command
