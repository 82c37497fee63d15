#include "families/clip_processor.h"

#include <algorithm>

#include "families/json_fields.h"
#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxPixels = 8192;
constexpr std::int64_t kBicubic = 3;  // PIL.Image.BICUBIC

std::array<double, 3> three(const JsonFields& fields, const std::string& key) {
  const std::vector<double> values = fields.numbers(key);
  if (values.size() != 3) fields.fail(key, "three numbers");
  return {values[0], values[1], values[2]};
}

/// `size`: 336 or {"shortest_edge": 336}.
std::int64_t shortest_edge(const JsonFields& fields) {
  if (!fields.at("size").is_object()) return fields.integer("size", {}, 1, kMaxPixels);
  const JsonFields size = fields.object("size");
  if (!size.has("shortest_edge")) fields.fail("size", "shortest_edge");
  return size.integer("shortest_edge", {}, 1, kMaxPixels);
}

}  // namespace

ImageProcessorConfig read_clip_processor(const nlohmann::json& json, const std::string& where,
                                         std::int64_t image_size) {
  const JsonFields fields(json, where);
  ImageProcessorConfig out;
  out.do_resize = fields.boolean("do_resize", true);
  out.do_center_crop = fields.boolean("do_center_crop", true);
  out.do_rescale = fields.boolean("do_rescale", true);
  out.do_normalize = fields.boolean("do_normalize", true);
  out.mode = fields.boolean("do_pad", false) ? ImageMode::kPad : ImageMode::kCrop;
  if (fields.integer("resample", kBicubic) != kBicubic) fields.fail("resample", "3 (bicubic)");
  out.shortest_edge = fields.has("size") ? shortest_edge(fields) : image_size;
  out.crop_height = out.crop_width = image_size;
  if (out.do_center_crop && fields.has("crop_size")) {
    if (fields.at("crop_size").is_object()) {
      const JsonFields crop = fields.object("crop_size");
      out.crop_height = crop.integer("height", {}, 1, kMaxPixels);
      out.crop_width = crop.integer("width", {}, 1, kMaxPixels);
    } else {
      out.crop_height = out.crop_width = fields.integer("crop_size", {}, 1, kMaxPixels);
    }
  }
  if (out.crop_height != image_size || out.crop_width != image_size) {
    fields.fail("crop_size", "the vision tower's image_size " + std::to_string(image_size));
  }
  if (!out.do_center_crop && out.mode == ImageMode::kCrop) fields.fail("do_center_crop", "true");
  out.rescale_factor = fields.number("rescale_factor", 1.0 / 255.0);
  const ImageProcessorConfig published = clip_336_processor();
  out.mean = fields.has("image_mean") ? three(fields, "image_mean") : published.mean;
  out.std = fields.has("image_std") ? three(fields, "image_std") : published.std;
  if (std::any_of(out.std.begin(), out.std.end(), [](double value) { return !(value > 0); })) {
    fields.fail("image_std", "three numbers above 0");
  }
  return out;
}

ImageProcessorConfig clip_336_processor() {
  ImageProcessorConfig out;
  out.shortest_edge = out.crop_height = out.crop_width = 336;
  out.mean = {0.48145466, 0.4578275, 0.40821073};
  out.std = {0.26862954, 0.26130258, 0.27577711};
  return out;
}

}  // namespace libvar
