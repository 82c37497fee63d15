#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "image/image.h"
#include "image/resize.h"
#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxCanvasSide = 16384;  // of a picture padded to a square

std::int64_t floor_half(std::int64_t value) {
  return value >= 0 ? value / 2 : -((1 - value) / 2);
}

/// The picture itself, or centred on a square of the mean colour.
Canvas make_canvas(const at::Tensor& image, const ImageProcessorConfig& config) {
  Canvas canvas;
  canvas.pixels = image.const_data_ptr<std::uint8_t>();
  canvas.height = canvas.picture_height = image.size(0);
  canvas.width = canvas.picture_width = image.size(1);
  if (config.mode == ImageMode::kCrop) return canvas;
  const std::int64_t side = std::max(canvas.height, canvas.width);
  if (side > kMaxCanvasSide && canvas.height != canvas.width) {
    throw InputError(
        c10::str(canvas.width, " x ", canvas.height,
                 " pixels: too long to be padded to a square, its longer side may have at most ",
                 kMaxCanvasSide));
  }
  canvas.top = (side - canvas.height) / 2;
  canvas.left = (side - canvas.width) / 2;
  canvas.height = canvas.width = side;
  for (std::size_t c = 0; c < 3; ++c) {
    canvas.colour[c] =
        static_cast<std::uint8_t>(std::clamp(static_cast<int>(config.mean[c] * 255), 0, 255));
  }
  return canvas;
}

/// Size after the resize of the shorter side to `shortest_edge`; the longer one is cut to an
/// integer, as int() does.
std::pair<std::int64_t, std::int64_t> resized_size(const Canvas& canvas,
                                                   std::int64_t shortest_edge) {
  const std::int64_t shorter = std::min(canvas.height, canvas.width);
  const std::int64_t longer = std::max(canvas.height, canvas.width);
  const auto other = static_cast<std::int64_t>(static_cast<double>(shortest_edge * longer) /
                                               static_cast<double>(shorter));
  return canvas.width <= canvas.height ? std::pair(other, shortest_edge)
                                       : std::pair(shortest_edge, other);
}

/// Value of each level in each channel: float64 product, then float32 arithmetic.
std::array<std::array<float, 256>, 3> level_values(const ImageProcessorConfig& config) {
  std::array<std::array<float, 256>, 3> values{};
  for (std::size_t c = 0; c < 3; ++c) {
    const auto mean = static_cast<float>(config.mean[c]);
    const auto std = static_cast<float>(config.std[c]);
    for (std::size_t level = 0; level < 256; ++level) {
      const auto exact = static_cast<double>(level);
      const auto value =
          static_cast<float>(config.do_rescale ? exact * config.rescale_factor : exact);
      values[c][level] = config.do_normalize ? (value - mean) / std : value;
    }
  }
  return values;
}

}  // namespace

void check_picture(const at::Tensor& image) {
  TORCH_CHECK_TYPE(image.scalar_type() == at::kByte, "image: expected uint8, got ",
                   image.scalar_type());
  TORCH_CHECK_VALUE(
      image.dim() == 3 && image.size(2) == 3 && image.size(0) > 0 && image.size(1) > 0,
      "image: expected [H, W, 3], got ", image.sizes());
}

std::string_view to_string(ImageMode mode) {
  switch (mode) {
    case ImageMode::kCrop:
      return "crop";
    case ImageMode::kPad:
      return "pad";
    case ImageMode::kResize:
      return "resize";
    case ImageMode::kTiles:
      return "tiles";
    case ImageMode::kDynamic:
      return "dynamic";
  }
  return "unknown";
}

at::Tensor resize_and_fit(const at::Tensor& image, const ImageProcessorConfig& config) {
  check_picture(image);
  const at::Tensor source = image.contiguous();
  const Canvas canvas = make_canvas(source, config);
  const auto [height, width] = config.do_resize ? resized_size(canvas, config.shortest_edge)
                                                : std::pair(canvas.height, canvas.width);
  if (!config.do_center_crop && (height != config.crop_height || width != config.crop_width)) {
    throw InputError(c10::str(image.size(1), " x ", image.size(0), " pixels becomes ", width, " x ",
                              height, ", but the model takes ", config.crop_width, " x ",
                              config.crop_height, " and its processor crops nothing"));
  }
  // Row y of the result is row y + top of the resized picture, black where there is none.
  const std::int64_t top = floor_half(height - config.crop_height);
  const std::int64_t left = floor_half(width - config.crop_width);
  Window window;
  window.top = std::max<std::int64_t>(0, top);
  window.left = std::max<std::int64_t>(0, left);
  window.height = std::min(height, config.crop_height);
  window.width = std::min(width, config.crop_width);
  at::Tensor fitted = at::empty({window.height, window.width, 3}, at::kByte);
  resize_window(canvas, height, width, window, config.resize_order,
                fitted.mutable_data_ptr<std::uint8_t>());
  if (window.height == config.crop_height && window.width == config.crop_width) return fitted;
  at::Tensor out = at::zeros({config.crop_height, config.crop_width, 3}, at::kByte);
  out.narrow(0, window.top - top, window.height)
      .narrow(1, window.left - left, window.width)
      .copy_(fitted);
  return out;
}

at::Tensor normalise(const at::Tensor& levels, const ImageProcessorConfig& config) {
  const auto values = level_values(config);
  const std::int64_t pixels = levels.size(0) * levels.size(1);
  at::Tensor out = at::empty({3, levels.size(0), levels.size(1)}, at::kFloat);
  const auto* level = levels.const_data_ptr<std::uint8_t>();
  auto* value = out.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < pixels; ++i) {
    for (std::int64_t c = 0; c < 3; ++c) value[c * pixels + i] = values[c][level[3 * i + c]];
  }
  return out;
}

}  // namespace libvar
