#include "image/resize.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "image/image.h"

#include "catch.h"

namespace libvar {
namespace {

constexpr auto kHorizontalFirst = ResizePassOrder::kHorizontalFirst;
constexpr auto kPillow13 = ResizePassOrder::kPillow13;

at::Tensor noise(std::int64_t height, std::int64_t width) {
  at::Tensor image = at::empty({height, width, 3}, at::kByte);
  std::uint32_t state = 12345;
  for (std::int64_t i = 0; i < image.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    image.data_ptr<std::uint8_t>()[i] = static_cast<std::uint8_t>(state >> 24);
  }
  return image;
}

/// One pass along a line in double precision from the definition: Keys' kernel with a = -1/2,
/// stretched when shrinking.
std::vector<double> exact_line(const std::vector<double>& line, std::int64_t size) {
  const double scale = static_cast<double>(line.size()) / static_cast<double>(size);
  const double stretch = std::max(scale, 1.0);
  std::vector<double> out;
  for (std::int64_t i = 0; i < size; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    double sum = 0, weight_sum = 0;
    for (std::size_t x = 0; x < line.size(); ++x) {
      const double t = std::abs((static_cast<double>(x) + 0.5 - center) / stretch);
      double weight = 0;
      if (t < 1) weight = 1.5 * t * t * t - 2.5 * t * t + 1;
      if (t >= 1 && t < 2) weight = -0.5 * t * t * t + 2.5 * t * t - 4 * t + 2;
      sum += weight * line[x];
      weight_sum += weight;
    }
    out.push_back(std::clamp(sum / weight_sum, 0.0, 255.0));
  }
  return out;
}

TEST_CASE("resize equals the definition of the filter along each side", "[image]") {
  const std::int64_t size = GENERATE(1, 2, 7, 16, 29, 31, 64);
  const auto order = GENERATE(kHorizontalFirst, kPillow13);
  const at::Tensor image = noise(29, 3);
  const at::Tensor tall = resize_bicubic(image, size, 3, order);
  const at::Tensor wide = resize_bicubic(image.transpose(0, 1), 3, size, order);
  CHECK(at::equal(tall, wide.transpose(0, 1)));
  double worst = 0;
  for (std::int64_t column = 0; column < 9; ++column) {
    std::vector<double> line;
    for (std::int64_t y = 0; y < 29; ++y)
      line.push_back(image[y][column / 3][column % 3].item<double>());
    const std::vector<double> expected = exact_line(line, size);
    for (std::int64_t y = 0; y < size; ++y) {
      worst =
          std::max(worst, std::abs(tall[y][column / 3][column % 3].item<double>() - expected[y]));
    }
  }
  CHECK(!(worst > 0.5001));
}

TEST_CASE("resize to its own size is a copy", "[image]") {
  const at::Tensor image = noise(11, 13);
  const auto order = GENERATE(kHorizontalFirst, kPillow13);
  CHECK(at::equal(resize_bicubic(image, 11, 13, order), image));
}

TEST_CASE("resize keeps one colour as it is", "[image]") {
  const int level = GENERATE(0, 1, 122, 254, 255);
  const at::Tensor image = at::full({17, 9, 3}, level, at::kByte);
  const auto order = GENERATE(kHorizontalFirst, kPillow13);
  CHECK(at::equal(resize_bicubic(image, 5, 40, order), at::full({5, 40, 3}, level, at::kByte)));
}

TEST_CASE("a window is a part of the whole", "[image]") {
  const at::Tensor image = noise(37, 53);
  const auto [height, width] =
      GENERATE(std::pair(20, 90), std::pair(37, 20), std::pair(80, 53), std::pair(37, 53));
  const auto order = GENERATE(kHorizontalFirst, kPillow13);
  const at::Tensor whole = resize_bicubic(image, height, width, order);
  const Window window{3, 5, 11, 9};
  Canvas canvas{image.data_ptr<std::uint8_t>(), 37, 53, 0, 0, 37, 53, {}};
  at::Tensor part = at::empty({window.height, window.width, 3}, at::kByte);
  resize_window(canvas, height, width, window, order, part.data_ptr<std::uint8_t>());
  CHECK(at::equal(part,
                  whole.narrow(0, window.top, window.height).narrow(1, window.left, window.width)));
}

TEST_CASE("a canvas that is never stored gives what a stored one gives", "[image]") {
  const auto [height, width] = GENERATE(std::pair(13, 37), std::pair(37, 13));
  const at::Tensor image = noise(height, width);
  const std::int64_t side = 37, top = (side - height) / 2, left = (side - width) / 2;
  at::Tensor stored = at::empty({side, side, 3}, at::kByte);
  for (std::int64_t c = 0; c < 3; ++c) stored.select(2, c).fill_(100 + c);
  stored.narrow(0, top, height).narrow(1, left, width).copy_(image);
  const Canvas canvas{
      image.data_ptr<std::uint8_t>(), height, width, top, left, side, side, {100, 101, 102}};
  const auto [out_height, out_width] =
      GENERATE(std::pair(10, 10), std::pair(37, 37), std::pair(50, 50), std::pair(9, 40));
  const auto order = GENERATE(kHorizontalFirst, kPillow13);
  at::Tensor out = at::empty({out_height, out_width, 3}, at::kByte);
  resize_window(canvas, out_height, out_width, {0, 0, out_height, out_width}, order,
                out.data_ptr<std::uint8_t>());
  CHECK(at::equal(out, resize_bicubic(stored, out_height, out_width, order)));
}

/// Processes the picture in both orders.
std::pair<at::Tensor, at::Tensor> in_both_orders(const at::Tensor& image,
                                                 ImageProcessorConfig config) {
  config.std = {1, 1, 1};
  config.resize_order = kHorizontalFirst;
  const at::Tensor before = process_image(image, config).pixels;
  config.resize_order = kPillow13;
  return {before, process_image(image, config).pixels};
}

TEST_CASE("every mode resizes in the order of its configuration", "[image]") {
  ImageProcessorConfig config;
  config.std = {1, 1, 1};
  const auto expected = [&](const at::Tensor& image, std::int64_t height, std::int64_t width) {
    return normalise(resize_bicubic(image, height, width, kPillow13), config);
  };
  SECTION("crop") {
    config.shortest_edge = config.crop_height = config.crop_width = 16;
    const at::Tensor image = noise(60, 20);  // to 48 x 16, of which the middle is cut out
    const auto [before, after] = in_both_orders(image, config);
    CHECK(at::equal(after[0], expected(image, 48, 16).narrow(1, 16, 16)));
    CHECK(!at::equal(before, after));
  }
  SECTION("pad: a square to a square has one order") {
    config.mode = ImageMode::kPad;
    config.shortest_edge = config.crop_height = config.crop_width = 16;
    const auto [before, after] = in_both_orders(noise(60, 20), config);
    CHECK(at::equal(before, after));
  }
  SECTION("resize") {
    config.mode = ImageMode::kResize;
    config.resize_height = config.resize_width = 16;
    const at::Tensor image = noise(60, 20);
    const auto [before, after] = in_both_orders(image, config);
    CHECK(at::equal(after[0], expected(image, 16, 16)));
    CHECK(!at::equal(before, after));
  }
  SECTION("tiles and thumbnail") {
    config.mode = ImageMode::kTiles;
    config.tile_size = 16;
    config.max_tiles = 2;
    const at::Tensor image = noise(48, 20);
    const auto [before, after] = in_both_orders(image, config);
    REQUIRE(after.size(0) == 3);
    const at::Tensor tiles = expected(image, 32, 16);
    CHECK(at::equal(after[0], tiles.narrow(1, 0, 16)));
    CHECK(at::equal(after[1], tiles.narrow(1, 16, 16)));
    CHECK(at::equal(after[2], expected(image, 16, 16)));
    for (int i = 0; i < 3; ++i) CHECK(!at::equal(before[i], after[i]));
  }
  SECTION("any size") {
    config.mode = ImageMode::kDynamic;
    config.patch_size = 14;
    config.merge_size = 2;
    config.temporal_patch_size = 2;
    config.min_pixels = 1;
    config.max_pixels = 10000;
    const at::Tensor image = noise(60, 44);  // to 56 x 56; a picture of that size stays as it is
    const auto [before, after] = in_both_orders(image, config);
    const at::Tensor resized = resize_bicubic(image, 56, 56, kPillow13);
    CHECK(at::equal(after, process_image(resized, config).pixels));
    CHECK(!at::equal(before, after));
  }
}

TEST_CASE("resize refuses what is no picture", "[image]") {
  CHECK_THROWS_AS(resize_bicubic(noise(3, 4).to(at::kFloat), 2, 2, kHorizontalFirst),
                  c10::TypeError);
  CHECK_THROWS_AS(resize_bicubic(noise(3, 4).squeeze().select(2, 0), 2, 2, kHorizontalFirst),
                  c10::ValueError);
  CHECK_THROWS_AS(resize_bicubic(noise(3, 4), 0, 2, kHorizontalFirst), c10::ValueError);
  CHECK_THROWS_AS(resize_bicubic(noise(3, 4).narrow(0, 0, 0), 2, 2, kHorizontalFirst),
                  c10::ValueError);
}

}  // namespace
}  // namespace libvar
