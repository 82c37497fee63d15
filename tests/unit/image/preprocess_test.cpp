#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>

#include "image/image.h"
#include "libvar/error.h"

#include "catch.h"

namespace libvar {
namespace {

ImageProcessorConfig config(ImageMode mode, std::int64_t shortest_edge, std::int64_t crop) {
  ImageProcessorConfig config;
  config.mode = mode;
  config.shortest_edge = shortest_edge;
  config.crop_height = config.crop_width = crop;
  config.mean = {0.48145466, 0.4578275, 0.40821073};
  config.std = {0.26862954, 0.26130258, 0.27577711};
  return config;
}

/// Row y and column x of the picture in its first two channels.
at::Tensor coordinates(std::int64_t height, std::int64_t width) {
  at::Tensor image = at::full({height, width, 3}, 200, at::kByte);
  image.select(2, 0).copy_(at::arange(height).unsqueeze(1));
  image.select(2, 1).copy_(at::arange(width).unsqueeze(0));
  return image;
}

int level(const at::Tensor& image, std::int64_t y, std::int64_t x, std::int64_t c) {
  return image[y][x][c].item<int>();
}

TEST_CASE("the centre is cut out with floored offsets", "[image]") {
  const auto [height, width, top, left] = GENERATE(std::tuple(8, 13, 0, 2), std::tuple(13, 8, 2, 0),
                                                   std::tuple(8, 12, 0, 2), std::tuple(8, 8, 0, 0));
  const at::Tensor out = resize_and_fit(coordinates(height, width), config(ImageMode::kCrop, 8, 8));
  REQUIRE(out.sizes() == at::IntArrayRef({8, 8, 3}));
  CHECK(level(out, 0, 0, 0) == top);
  CHECK(level(out, 0, 0, 1) == left);
  CHECK(level(out, 7, 7, 0) == top + 7);
  CHECK(level(out, 7, 7, 1) == left + 7);
}

TEST_CASE("a picture smaller than the crop stands in black", "[image]") {
  const at::Tensor out =
      resize_and_fit(at::full({5, 5, 3}, 9, at::kByte), config(ImageMode::kCrop, 5, 8));
  // (8 - 5) / 2 rounded up before the picture, down behind it
  for (std::int64_t i = 0; i < 8; ++i) {
    CHECK(level(out, i, 4, 0) == (i >= 2 && i < 7 ? 9 : 0));
    CHECK(level(out, 4, i, 2) == (i >= 2 && i < 7 ? 9 : 0));
  }
}

TEST_CASE("the longer side is cut to an integer", "[image]") {
  // 8 * 12 / 7 = 13.7: 13 columns fill a crop of 13 and leave the first of 14 black
  ImageProcessorConfig wide = config(ImageMode::kCrop, 8, 8);
  wide.crop_width = 13;
  const at::Tensor image = at::full({7, 12, 3}, 50, at::kByte);
  CHECK(resize_and_fit(image, wide).eq(50).all().item<bool>());
  wide.crop_width = 14;
  const at::Tensor out = resize_and_fit(image, wide);
  CHECK(level(out, 0, 0, 0) == 0);
  CHECK(level(out, 0, 1, 0) == 50);
}

TEST_CASE("padding gives a square of the mean colour, cut to integers", "[image]") {
  const auto mode = ImageMode::kPad;
  const at::Tensor wide = resize_and_fit(coordinates(5, 8), config(mode, 8, 8));
  for (std::int64_t y = 0; y < 8; ++y) {
    const bool inside = y >= 1 && y < 6;  // (8 - 5) / 2 rounded down
    CHECK(level(wide, y, 3, 0) == (inside ? y - 1 : 122));
    CHECK(level(wide, y, 3, 1) == (inside ? 3 : 116));
    CHECK(level(wide, y, 3, 2) == (inside ? 200 : 104));
  }
  const at::Tensor tall = resize_and_fit(coordinates(8, 5), config(mode, 8, 8));
  for (std::int64_t x = 0; x < 8; ++x) CHECK(level(tall, 3, x, 2) == (x >= 1 && x < 6 ? 200 : 104));
}

TEST_CASE("pixel values are rescaled in double and normalised in float", "[image]") {
  const auto crop = config(ImageMode::kCrop, 2, 2);
  const at::Tensor out = process_image(at::full({2, 2, 3}, 77, at::kByte), crop).pixels[0];
  REQUIRE(out.sizes() == at::IntArrayRef({3, 2, 2}));
  REQUIRE(out.scalar_type() == at::kFloat);
  for (std::int64_t c = 0; c < 3; ++c) {
    const auto share = static_cast<float>(77.0 * (1.0 / 255.0));
    const float expected =
        (share - static_cast<float>(crop.mean[c])) / static_cast<float>(crop.std[c]);
    CHECK(out[c][1][0].item<float>() == expected);
  }
}

TEST_CASE("the processor's steps can be left out", "[image]") {
  ImageProcessorConfig plain = config(ImageMode::kCrop, 4, 4);
  plain.do_rescale = plain.do_normalize = false;
  CHECK(process_image(at::full({4, 4, 3}, 77, at::kByte), plain).pixels.eq(77).all().item<bool>());
  plain.do_resize = false;
  CHECK(level(resize_and_fit(coordinates(10, 10), plain), 0, 0, 0) == 3);
  plain.do_center_crop = false;
  CHECK_THROWS_AS(resize_and_fit(coordinates(10, 10), plain), InputError);
  CHECK(at::equal(resize_and_fit(coordinates(4, 4), plain), coordinates(4, 4)));
}

TEST_CASE("very long pictures cost no more than what is cut out of them", "[image]") {
  const at::Tensor image = at::full({60000, 1, 3}, 33, at::kByte);
  CHECK(resize_and_fit(image, config(ImageMode::kCrop, 336, 336)).eq(33).all().item<bool>());
  CHECK_THROWS_AS(resize_and_fit(image, config(ImageMode::kPad, 336, 336)), InputError);
}

TEST_CASE("preprocessing refuses what is no picture", "[image]") {
  const auto crop = config(ImageMode::kCrop, 4, 4);
  CHECK_THROWS_AS(process_image(at::full({4, 4, 3}, 1.0f), crop), c10::TypeError);
  CHECK_THROWS_AS(process_image(at::full({4, 4, 4}, 1, at::kByte), crop), c10::ValueError);
}

}  // namespace
}  // namespace libvar
