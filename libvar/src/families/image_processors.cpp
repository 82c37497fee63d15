#include "families/image_processors.h"

#include <algorithm>
#include <array>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxSide = 8192;
constexpr std::int64_t kBicubic = 3;  // PIL.Image.BICUBIC

using Channels = std::array<double, 3>;

constexpr Channels kClipMean{0.48145466, 0.4578275, 0.40821073};
constexpr Channels kClipStd{0.26862954, 0.26130258, 0.27577711};
constexpr Channels kImageNetMean{0.485, 0.456, 0.406};
constexpr Channels kImageNetStd{0.229, 0.224, 0.225};
constexpr Channels kHalf{0.5, 0.5, 0.5};

Channels three(const JsonFields& fields, const std::string& key, const Channels& fallback) {
  if (!fields.has(key)) return fallback;
  const std::vector<double> values = fields.numbers(key);
  if (values.size() != 3) fields.fail(key, "three numbers");
  return {values[0], values[1], values[2]};
}

/// Rescaling and normalisation, which all processors spell alike.
ImageProcessorConfig read_levels(const JsonFields& fields, const Channels& mean,
                                 const Channels& std) {
  ImageProcessorConfig out;
  out.do_resize = fields.boolean("do_resize", true);
  out.do_rescale = fields.boolean("do_rescale", true);
  out.do_normalize = fields.boolean("do_normalize", true);
  if (fields.integer("resample", kBicubic) != kBicubic) fields.fail("resample", "3 (bicubic)");
  out.rescale_factor = fields.number("rescale_factor", 1.0 / 255.0);
  out.mean = three(fields, "image_mean", mean);
  out.std = three(fields, "image_std", std);
  if (std::any_of(out.std.begin(), out.std.end(), [](double value) { return !(value > 0); })) {
    fields.fail("image_std", "three numbers above 0");
  }
  return out;
}

/// `key`: N, or {"height": N, "width": N}, which must be the side that the tower reads.
void check_square(const JsonFields& fields, const std::string& key, std::int64_t side) {
  if (!fields.has(key)) return;
  std::int64_t height = 0, width = 0;
  if (fields.at(key).is_object()) {
    const JsonFields size = fields.object(key);
    height = size.integer("height", {}, 1, kMaxSide);
    width = size.integer("width", {}, 1, kMaxSide);
  } else {
    height = width = fields.integer(key, {}, 1, kMaxSide);
  }
  if (height != side || width != side) {
    fields.fail(key, "the vision tower's image_size " + std::to_string(side));
  }
}

/// `size`: 336 or {"shortest_edge": 336}.
std::int64_t shortest_edge(const JsonFields& fields) {
  if (!fields.at("size").is_object()) return fields.integer("size", {}, 1, kMaxSide);
  const JsonFields size = fields.object("size");
  if (!size.has("shortest_edge")) fields.fail("size", "shortest_edge");
  return size.integer("shortest_edge", {}, 1, kMaxSide);
}

}  // namespace

std::optional<ProcessorJson> find_processor(const CheckpointFiles& files) {
  for (const char* name : {"preprocessor_config.json", "vision_tower/preprocessor_config.json"}) {
    const auto file = files.find(name);
    if (file != files.end()) return ProcessorJson{JsonFields::parse(file->second, name), name};
  }
  const auto file = files.find("processor_config.json");
  if (file == files.end()) return {};
  const nlohmann::json json = JsonFields::parse(file->second, file->first);
  const JsonFields fields(json, file->first);
  if (!fields.has("image_processor")) return {};
  fields.object("image_processor");
  return ProcessorJson{json.at("image_processor"), file->first + ": image_processor"};
}

ProcessorJson require_processor(const CheckpointFiles& files, const std::string& published) {
  std::optional<ProcessorJson> found = find_processor(files);
  if (!found) throw ArchiveError(published + " is missing");
  return *std::move(found);
}

ImageProcessorConfig read_clip_processor(const JsonFields& fields, std::int64_t image_size) {
  ImageProcessorConfig out = read_levels(fields, kClipMean, kClipStd);
  out.mode = fields.boolean("do_pad", false) ? ImageMode::kPad : ImageMode::kCrop;
  out.do_center_crop = fields.boolean("do_center_crop", true);
  out.shortest_edge = fields.has("size") ? shortest_edge(fields) : image_size;
  out.crop_height = out.crop_width = image_size;
  if (out.do_center_crop) check_square(fields, "crop_size", image_size);
  if (!out.do_center_crop && out.mode == ImageMode::kCrop) fields.fail("do_center_crop", "true");
  return out;
}

ImageProcessorConfig clip_336_processor() {
  ImageProcessorConfig out;
  out.shortest_edge = out.crop_height = out.crop_width = 336;
  out.mean = kClipMean;
  out.std = kClipStd;
  return out;
}

ImageProcessorConfig read_resize_processor(const JsonFields& fields, std::int64_t image_size) {
  ImageProcessorConfig out = read_levels(fields, kHalf, kHalf);
  out.mode = ImageMode::kResize;
  if (!out.do_resize) fields.fail("do_resize", "true");
  check_square(fields, "size", image_size);
  out.resize_height = out.resize_width = image_size;
  return out;
}

ImageProcessorConfig read_tile_processor(const JsonFields& fields, std::int64_t image_size) {
  const bool is_clip = fields.has("crop_size");  // as InternVL2 publishes it
  ImageProcessorConfig out = is_clip ? read_levels(fields, kImageNetMean, kImageNetStd)
                                     : read_levels(fields, kClipMean, kClipStd);
  out.mode = ImageMode::kTiles;
  check_square(fields, is_clip ? "crop_size" : "size", image_size);
  out.tile_size = image_size;
  const bool cuts = fields.boolean("crop_to_patches", false);
  out.min_tiles = cuts ? fields.integer("min_patches", 1, 1, kMostTiles) : 1;
  out.max_tiles = cuts ? fields.integer("max_patches", 12, out.min_tiles, kMostTiles) : 1;
  return out;
}

ImageProcessorConfig read_dynamic_processor(const JsonFields& fields, const VisionConfig& vision) {
  ImageProcessorConfig out = read_levels(fields, kClipMean, kClipStd);
  out.mode = ImageMode::kDynamic;
  if (!out.do_resize) fields.fail("do_resize", "true");
  const auto agrees = [&](const char* key, std::int64_t fallback, std::int64_t expected) {
    if (fields.integer(key, fallback, 1, kMaxSide) != expected)
      fields.fail(key, std::to_string(expected) + ", as config.json says");
    return expected;
  };
  out.patch_size = agrees("patch_size", 14, vision.patch_size);
  out.merge_size = agrees("merge_size", 2, vision.merge_size);
  out.temporal_patch_size = agrees("temporal_patch_size", 2, vision.temporal_patch_size);
  // Transformers' defaults; min_pixels and max_pixels go before `size`, which later versions write.
  out.min_pixels = std::int64_t{56} * 56;
  out.max_pixels = std::int64_t{28} * 28 * 1280;
  if (fields.has("size")) {
    const JsonFields size = fields.object("size");
    for (const char* key : {"shortest_edge", "min_pixels"}) {
      if (size.has(key)) out.min_pixels = size.integer(key, {}, 1, kMostPixels);
    }
    for (const char* key : {"longest_edge", "max_pixels"}) {
      if (size.has(key)) out.max_pixels = size.integer(key, {}, 1, kMostPixels);
    }
  }
  out.min_pixels = fields.integer("min_pixels", out.min_pixels, 1, kMostPixels);
  out.max_pixels = fields.integer("max_pixels", out.max_pixels, 1, kMostPixels);
  if (out.max_pixels < out.min_pixels) {
    fields.fail("max_pixels", "at least min_pixels " + std::to_string(out.min_pixels));
  }
  return out;
}

}  // namespace libvar
