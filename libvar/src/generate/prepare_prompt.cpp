#include "generate/prepare_prompt.h"

#include <c10/util/StringUtil.h>

#include <filesystem>
#include <string>
#include <utility>
#include <variant>

#include "generate/prompt_ids.h"
#include "libvar/error.h"
#include "text/prompt.h"

namespace libvar {
namespace {

[[noreturn]] void refuse_option(const char* option, const char* needed, ImageMode mode) {
  throw ConfigError(c10::str("Request: ", option, " is for models that ", needed,
                             "; the image mode of this one is ", to_string(mode)));
}

ImageProcessorConfig image_config(const Request& request, ImageProcessorConfig config) {
  const bool crops = config.mode == ImageMode::kCrop || config.mode == ImageMode::kPad;
  if (request.image_mode == "crop" || request.image_mode == "pad") {
    if (!crops) refuse_option("image_mode", "crop or pad", config.mode);
    config.mode = request.image_mode == "crop" ? ImageMode::kCrop : ImageMode::kPad;
  } else if (request.image_mode != "auto") {
    throw ConfigError(
        c10::str("Request: image_mode must be auto, crop or pad, got '", request.image_mode, "'"));
  }
  if (request.resize_order == "pillow13") {
    config.resize_order = ResizePassOrder::kPillow13;
  } else if (request.resize_order != "pillow12") {
    throw ConfigError(c10::str("Request: resize_order must be pillow12 or pillow13, got '",
                               request.resize_order, "'"));
  }
  if (request.max_tiles) {
    if (config.mode != ImageMode::kTiles)
      refuse_option("max_tiles", "cut pictures into tiles", config.mode);
    config.max_tiles = *request.max_tiles;
    if (config.max_tiles < config.min_tiles || config.max_tiles > kMostTiles) {
      throw ConfigError(c10::str("Request: max_tiles must be in [", config.min_tiles, ", ",
                                 kMostTiles, "], got ", config.max_tiles));
    }
  }
  if (request.min_pixels || request.max_pixels) {
    if (config.mode != ImageMode::kDynamic)
      refuse_option("min_pixels, max_pixels", "take pictures of any size", config.mode);
    config.min_pixels = request.min_pixels.value_or(config.min_pixels);
    config.max_pixels = request.max_pixels.value_or(config.max_pixels);
    if (config.min_pixels < 1 || config.max_pixels < config.min_pixels ||
        config.max_pixels > kMostPixels) {
      throw ConfigError(c10::str("Request: expected 1 <= min_pixels <= max_pixels <= ", kMostPixels,
                                 ", got ", config.min_pixels, " and ", config.max_pixels));
    }
  }
  return config;
}

ProcessedImage process(const at::Tensor& image, const ImageSource& source,
                       const ImageProcessorConfig& processor) {
  try {
    return process_image(image, processor);
  } catch (const InputError& error) {  // of its size
    const auto* path = std::get_if<std::filesystem::path>(&source);
    throw InputError(
        c10::str("image ", path != nullptr ? path->string() : "in memory", ": ", error.what()));
  }
}

/// One image token at each place of an image.
std::vector<std::int64_t> request_ids(const LoadedModel& model, const Request& request,
                                      bool first_turn) {
  const auto num_images = static_cast<std::int64_t>(request.images.size());
  std::string text;
  if (request.raw_prompt) {
    text = *request.raw_prompt;
    if (const std::int64_t places = count_image_placeholders(text); places != num_images) {
      throw InputError(
          c10::str("prompt: ", places, " <image> places, but ", num_images, " images"));
    }
  } else {
    const PromptStyle style = request.prompt_style == "auto"
                                  ? model.config.prompt_style
                                  : parse_prompt_style(request.prompt_style);
    text = build_prompt(style, request.system, request.question, num_images, first_turn);
  }
  std::vector<std::int64_t> ids =
      encode_prompt(*model.tokenizer, text, first_turn, model.image_token());
  if (ids.empty()) throw InputError("prompt: it is empty");
  return ids;
}

}  // namespace

PreparedPrompt prepare_prompt(const LoadedModel& model, const Request& request, bool first_turn) {
  PreparedPrompt out;
  out.processor = image_config(request, model.config.image);
  const std::vector<std::int64_t> ids = request_ids(model, request, first_turn);
  std::vector<VisualSize> sizes;
  for (const ImageSource& source : request.images) {
    const at::Tensor image = to_tensor(source, request.exif_rotation);
    out.picture_sizes.push_back({image.size(0), image.size(1)});
    out.images.push_back(process(image, source, out.processor));
    sizes.push_back(model.visual_size(out.images.back()));
  }
  out.sequence = expand_image_tokens(ids, model.image_token(), sizes);
  return out;
}

}  // namespace libvar
