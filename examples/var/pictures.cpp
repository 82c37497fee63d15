#include "pictures.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "libvar/error.h"

namespace var_command {
namespace {

constexpr int kLeastWidth = 480, kCaption = 26, kScale = 34, kGap = 12, kCell = 26;
const cv::Scalar white(255, 255, 255), black(0, 0, 0), grid_colour(205, 205, 205),
    orange(0, 159, 230);

/// Viridis of a value in [0, 1].
cv::Vec3b colour_of(double value) {
  static const cv::Mat table = [] {
    cv::Mat levels(1, 256, CV_8U), out;
    for (int i = 0; i < 256; ++i) levels.at<std::uint8_t>(0, i) = static_cast<std::uint8_t>(i);
    cv::applyColorMap(levels, out, cv::COLORMAP_VIRIDIS);
    return out;
  }();
  if (std::isnan(value)) return {160, 160, 160};
  return table.at<cv::Vec3b>(0, static_cast<int>(std::lround(std::clamp(value, 0.0, 1.0) * 255)));
}

/// @param width  0: the picture's, at least kLeastWidth
cv::Mat resized(const cv::Mat& picture, int width, double& factor) {
  if (width == 0) width = std::max(picture.cols, kLeastWidth);
  factor = static_cast<double>(width) / picture.cols;
  cv::Mat out;
  cv::resize(picture, out, {}, factor, factor, factor < 1 ? cv::INTER_AREA : cv::INTER_CUBIC);
  return out;
}

cv::Rect rectangle_of(const libvar::TokenBox& box, double factor, const cv::Size& size) {
  const auto pixel = [&](double value) { return static_cast<int>(std::lround(value * factor)); };
  const cv::Rect whole(0, 0, size.width, size.height);
  return cv::Rect(cv::Point(pixel(box.left), pixel(box.top)),
                  cv::Point(pixel(box.right), pixel(box.bottom))) &
         whole;
}

/// The tokens of the tiles, or of the thumbnail, over the picture.
cv::Mat coloured(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<double>& values, double most, int width, bool thumbnail) {
  double factor = 1;
  const cv::Mat base = resized(picture, width, factor);
  cv::Mat colours = base.clone();
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    if (boxes[i].thumbnail != thumbnail) continue;
    const cv::Rect area = rectangle_of(boxes[i], factor, base.size());
    if (area.empty()) continue;
    const cv::Vec3b colour = colour_of(most > 0 ? values[i] / most : 0);
    colours(area).setTo(cv::Scalar(colour[0], colour[1], colour[2]));
  }
  cv::Mat out;
  cv::addWeighted(base, 0.4, colours, 0.6, 0, out);
  return out;
}

void draw_scale(cv::Mat& canvas, int top, int width, double least, double most) {
  const int bar = std::min(200, width - 160);
  for (int x = 0; x < bar; ++x) {
    const cv::Vec3b colour = colour_of(static_cast<double>(x) / bar);
    cv::line(canvas, {70 + x, top + 8}, {70 + x, top + 22},
             cv::Scalar(colour[0], colour[1], colour[2]));
  }
  put_text(canvas, short_number(least), {8, top + 20});
  put_text(canvas, short_number(most), {78 + bar, top + 20});
}

/// From the left to the right, or from the top down.
cv::Mat in_line(const std::vector<cv::Mat>& pictures, bool across) {
  int length = -kGap, breadth = 0;
  for (const cv::Mat& picture : pictures) {
    length += (across ? picture.cols : picture.rows) + kGap;
    breadth = std::max(breadth, across ? picture.rows : picture.cols);
  }
  length = std::max(length, 1);
  cv::Mat canvas(across ? breadth : length, across ? length : breadth, CV_8UC3, white);
  cv::Point corner(0, 0);
  for (const cv::Mat& picture : pictures) {
    picture.copyTo(canvas(cv::Rect(corner, picture.size())));
    (across ? corner.x : corner.y) += (across ? picture.cols : picture.rows) + kGap;
  }
  return canvas;
}

}  // namespace

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

void put_text(cv::Mat& canvas, const std::string& text, cv::Point at, double size) {
  cv::putText(canvas, text, at, cv::FONT_HERSHEY_SIMPLEX, size, black, 1, cv::LINE_AA);
}

int text_width(const std::string& text, double size) {
  return cv::getTextSize(text, cv::FONT_HERSHEY_SIMPLEX, size, 1, nullptr).width;
}

cv::Mat read_picture(const std::string& path, bool exif_rotation) {
  const int flags =
      exif_rotation ? cv::IMREAD_COLOR : cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION;
  cv::Mat picture = cv::imread(path, flags);
  if (picture.empty()) throw libvar::InputError(path + ": can't be read as a picture");
  return picture;
}

cv::Mat heat_map(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<double>& values, double most, const std::string& caption,
                 int width) {
  std::vector<cv::Mat> panels{coloured(picture, boxes, values, most, width, false)};
  const bool has_thumbnail =
      std::any_of(boxes.begin(), boxes.end(), [](const auto& box) { return box.thumbnail; });
  if (has_thumbnail) panels.push_back(coloured(picture, boxes, values, most, width, true));
  const cv::Mat maps = beside(panels);
  cv::Mat canvas(maps.rows + kCaption + kScale, maps.cols, CV_8UC3, white);
  maps.copyTo(canvas(cv::Rect(0, kCaption, maps.cols, maps.rows)));
  put_text(canvas, caption, {8, 18});
  draw_scale(canvas, kCaption + maps.rows, maps.cols, 0, most);
  return canvas;
}

cv::Mat outlined(const cv::Mat& picture, const std::vector<libvar::TokenBox>& boxes,
                 const std::vector<std::int64_t>& tokens, const std::string& caption) {
  double factor = 1;
  const cv::Mat base = resized(picture, 0, factor);
  cv::Mat canvas(base.rows + kCaption, base.cols, CV_8UC3, white);
  cv::Mat inner = canvas(cv::Rect(0, kCaption, base.cols, base.rows));
  base.copyTo(inner);
  for (const libvar::TokenBox& box : boxes) {
    if (!box.thumbnail)
      cv::rectangle(inner, rectangle_of(box, factor, base.size()), grid_colour, 1);
  }
  for (const std::int64_t token : tokens) {
    const cv::Rect area =
        rectangle_of(boxes.at(static_cast<std::size_t>(token)), factor, base.size());
    cv::rectangle(inner, area, black, 5);  // orange on black: seen on any ground
    cv::rectangle(inner, area, orange, 2);
  }
  put_text(canvas, caption, {8, 18});
  return canvas;
}

cv::Mat value_grid(const std::vector<std::vector<double>>& values, double least, double most,
                   const std::string& row_name, const std::string& column_name,
                   const std::string& caption) {
  const int rows = static_cast<int>(values.size()),
            columns = rows > 0 ? static_cast<int>(values.front().size()) : 0, left = 76;
  const int width = std::max(left + columns * kCell + kGap, kLeastWidth);
  cv::Mat canvas(2 * kCaption + rows * kCell + kScale, width, CV_8UC3, white);
  put_text(canvas, caption, {8, 18});
  put_text(canvas, column_name, {left, kCaption + 14}, 0.4);
  for (int row = 0; row < rows; ++row) {
    const int top = 2 * kCaption - 6 + row * kCell;
    put_text(canvas, (row == 0 ? row_name + " " : "") + std::to_string(row),
             {row == 0 ? 8 : 50, top + 17}, 0.4);
    for (int column = 0; column < columns; ++column) {
      const double value = values[static_cast<std::size_t>(row)][static_cast<std::size_t>(column)];
      const cv::Vec3b colour = colour_of((value - least) / (most - least));
      cv::rectangle(canvas, cv::Rect(left + column * kCell, top, kCell - 1, kCell - 1),
                    cv::Scalar(colour[0], colour[1], colour[2]), cv::FILLED);
    }
  }
  draw_scale(canvas, 2 * kCaption - 6 + rows * kCell, width, least, most);
  return canvas;
}

cv::Mat beside(const std::vector<cv::Mat>& pictures) {
  return in_line(pictures, true);
}

cv::Mat in_lines(const std::vector<cv::Mat>& pictures, std::size_t across) {
  std::vector<cv::Mat> lines;
  for (std::size_t i = 0; i < pictures.size(); i += across) {
    const auto first = pictures.begin() + static_cast<std::ptrdiff_t>(i);
    const auto count = static_cast<std::ptrdiff_t>(std::min(across, pictures.size() - i));
    lines.push_back(beside({first, first + count}));
  }
  return in_line(lines, false);
}

void write_picture(const std::filesystem::path& path, const cv::Mat& picture) {
  if (!cv::imwrite(path.string(), picture))
    throw libvar::InputError(path.string() + ": can't be written");
}

}  // namespace var_command
