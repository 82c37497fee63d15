#include "masks.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "libvar/error.h"

namespace var_command {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

[[noreturn]] void fail_size(const std::string& what, const cv::Size& found,
                            const cv::Size& wanted) {
  throw libvar::InputError(what + ": expected the picture's " + std::to_string(wanted.width) +
                           " x " + std::to_string(wanted.height) + " pixels, found " +
                           std::to_string(found.width) + " x " + std::to_string(found.height));
}

class VocMasks : public Masks {
 public:
  VocMasks(const fs::path& folder, const fs::path& images) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(images, error)) {
      const fs::path mask = folder / entry.path().stem().concat(".png");
      if (entry.is_regular_file() && fs::is_regular_file(mask))
        files_.emplace(entry.path().filename().string(), mask.string());
    }
    if (files_.empty()) {
      throw libvar::InputError(images.string() + ": no picture has a mask of its name in " +
                               folder.string());
    }
  }

  std::vector<std::string> pictures() const override {
    std::vector<std::string> out;
    for (const auto& [name, file] : files_) out.push_back(name);
    return out;
  }

  cv::Mat mask(const std::string& picture, const cv::Size& size) const override {
    const std::string& file = files_.at(picture);
    const cv::Mat levels = cv::imread(file, cv::IMREAD_UNCHANGED);
    if (levels.empty() || levels.depth() != CV_8U)
      throw libvar::InputError(file + ": can't be read as an 8-bit mask");
    if (levels.size() != size) fail_size(file, levels.size(), size);
    cv::Mat out(levels.size(), CV_8U, cv::Scalar(kForeground)), background, unknown;
    if (levels.channels() == 1) {  // indices in grey
      cv::inRange(levels, 0, 0, background);
      cv::inRange(levels, 255, 255, unknown);
    } else {  // a palette is read as colours, blue first
      cv::Mat colours = levels;
      if (levels.channels() == 4) cv::cvtColor(levels, colours, cv::COLOR_BGRA2BGR);
      cv::inRange(colours, cv::Scalar(0, 0, 0), cv::Scalar(0, 0, 0), background);
      cv::inRange(colours, cv::Scalar(192, 224, 224), cv::Scalar(192, 224, 224), unknown);
    }
    out.setTo(cv::Scalar(kBackground), background);
    out.setTo(cv::Scalar(kVoid), unknown);
    return out;
  }

 private:
  std::map<std::string, std::string> files_;
};

/// COCO's text of run lengths: numbers of 5 bits a character, lowest first, with a sign bit; from
/// the third on each is the difference to the one before the last.
std::vector<std::int64_t> counts_of_text(const std::string& text) {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < text.size();) {
    std::int64_t value = 0;
    int shift = 0;
    for (bool more = true; more && i < text.size(); shift += 5) {
      const std::int64_t bits = text[i++] - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) != 0;
      if (!more && (bits & 0x10) != 0) value |= -(std::int64_t{1} << (shift + 5));
    }
    if (out.size() > 2) value += out[out.size() - 2];
    out.push_back(value);
  }
  return out;
}

/// Runs go down the columns, background first.
void draw_runs(cv::Mat& mask, const std::vector<std::int64_t>& counts, std::uint8_t level,
               const std::string& what) {
  const auto pixels = static_cast<std::int64_t>(mask.total());
  std::int64_t at = 0;
  bool inside = false;
  for (const std::int64_t count : counts) {
    if (count < 0 || at + count > pixels)
      throw libvar::InputError(what + ": run lengths that don't fit the picture");
    for (std::int64_t i = at; inside && i < at + count; ++i) {
      mask.at<std::uint8_t>(static_cast<int>(i % mask.rows), static_cast<int>(i / mask.rows)) =
          level;
    }
    at += count;
    inside = !inside;
  }
  if (at != pixels) throw libvar::InputError(what + ": run lengths that don't fill the picture");
}

class CocoMasks : public Masks {
 public:
  explicit CocoMasks(const fs::path& file) : file_(file.string()) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw libvar::InputError(file_ + ": can't be read");
    const json content = json::parse(in, nullptr, false);
    if (!content.is_object() || !content.contains("images") || !content.contains("annotations"))
      throw libvar::InputError(file_ + ": expected COCO instances with images and annotations");
    std::map<std::int64_t, std::string> names;
    for (const json& image : content.at("images")) {
      names.emplace(image.at("id").get<std::int64_t>(), image.at("file_name"));
      annotations_[image.at("file_name")];
    }
    for (const json& annotation : content.at("annotations")) {
      const auto name = names.find(annotation.at("image_id").get<std::int64_t>());
      if (name != names.end()) annotations_[name->second].push_back(annotation);
    }
  }

  std::vector<std::string> pictures() const override {
    std::vector<std::string> out;
    for (const auto& [name, annotations] : annotations_) out.push_back(name);
    return out;
  }

  cv::Mat mask(const std::string& picture, const cv::Size& size) const override {
    cv::Mat out(size, CV_8U, cv::Scalar(kBackground));
    // Crowds first: objects in them are objects.
    for (const bool crowds : {true, false}) {
      for (const json& annotation : annotations_.at(picture)) {
        if ((annotation.value("iscrowd", 0) != 0) == crowds)
          draw(out, annotation, crowds ? kVoid : kForeground);
      }
    }
    return out;
  }

 private:
  void draw(cv::Mat& mask, const json& annotation, std::uint8_t level) const {
    const std::string what =
        file_ + ": annotation " + annotation.value("id", json()).dump() + ": segmentation";
    try {
      const json& shape = annotation.at("segmentation");
      if (shape.is_object()) {
        const json& size = shape.at("size");
        if (size.at(0) != mask.rows || size.at(1) != mask.cols)
          fail_size(what, {size.at(1).get<int>(), size.at(0).get<int>()}, mask.size());
        const json& counts = shape.at("counts");
        draw_runs(
            mask,
            counts.is_string() ? counts_of_text(counts) : counts.get<std::vector<std::int64_t>>(),
            level, what);
        return;
      }
      std::vector<std::vector<cv::Point>> polygons;
      for (const json& polygon : shape) {
        const auto numbers = polygon.get<std::vector<double>>();
        polygons.emplace_back();
        for (std::size_t i = 0; i + 1 < numbers.size(); i += 2) {
          polygons.back().emplace_back(static_cast<int>(std::floor(numbers[i])),
                                       static_cast<int>(std::floor(numbers[i + 1])));
        }
      }
      for (const auto& polygon : polygons)  // one by one: where two overlap is an object too
        cv::fillPoly(mask, std::vector<std::vector<cv::Point>>{polygon}, cv::Scalar(level));
    } catch (const json::exception&) {
      throw libvar::InputError(what + ": expected polygons or run lengths");
    }
  }

  std::string file_;
  std::map<std::string, std::vector<json>> annotations_;
};

}  // namespace

std::unique_ptr<Masks> voc_masks(const fs::path& folder, const fs::path& images) {
  return std::make_unique<VocMasks>(folder, images);
}

std::unique_ptr<Masks> coco_masks(const fs::path& file) {
  return std::make_unique<CocoMasks>(file);
}

double background_share(const cv::Mat& mask, const libvar::TokenBox& box) {
  const auto pixel = [](double value) { return static_cast<int>(std::lround(value)); };
  const cv::Rect whole(0, 0, mask.cols, mask.rows);
  const cv::Rect wanted(cv::Point(pixel(box.left), pixel(box.top)),
                        cv::Point(std::max(pixel(box.right), pixel(box.left) + 1),
                                  std::max(pixel(box.bottom), pixel(box.top) + 1)));
  const cv::Rect inside = wanted & whole;
  if (2 * inside.area() < wanted.area()) return std::numeric_limits<double>::quiet_NaN();
  const cv::Mat part = mask(inside);
  const int background = cv::countNonZero(part == kBackground),
            known = inside.area() - cv::countNonZero(part == kVoid);
  if (known == 0) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(background) / known;
}

}  // namespace var_command
