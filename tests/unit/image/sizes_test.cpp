// Sizes, tiles and patches of pictures of any size. The vectors are those that the published code
// gives.

#include "image/sizes.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "image/image.h"
#include "libvar/error.h"

#include "catch.h"

namespace libvar {
namespace {

ImageProcessorConfig dynamic_config() {
  ImageProcessorConfig config;
  config.mode = ImageMode::kDynamic;
  config.patch_size = 14;
  config.merge_size = 2;
  config.temporal_patch_size = 2;
  config.min_pixels = 3136;
  config.max_pixels = 12845056;
  config.std = {1, 1, 1};
  return config;
}

ImageProcessorConfig tile_config(std::int64_t side, std::int64_t max_tiles) {
  ImageProcessorConfig config;
  config.mode = ImageMode::kTiles;
  config.tile_size = side;
  config.max_tiles = max_tiles;
  config.std = {1, 1, 1};
  return config;
}

TEST_CASE("smart resize gives Qwen2-VL's sizes", "[image]") {
  struct Case {
    PictureSize picture, expected;
  };

  const std::vector<Case> cases{{{480, 640}, {476, 644}},     {{224, 224}, {224, 224}},
                                {{42, 70}, {56, 56}},         {{20, 400}, {28, 392}},
                                {{1080, 1920}, {1092, 1932}}, {{3000, 5000}, {2772, 4620}},
                                {{30, 30}, {56, 56}},         {{98, 98}, {112, 112}}};
  for (const Case& each : cases) {
    CAPTURE(each.picture.height, each.picture.width);
    CHECK(dynamic_size(each.picture, dynamic_config()) == each.expected);
  }
  CHECK_THROWS_AS(dynamic_size({10, 2001}, dynamic_config()), InputError);
  // A side never becomes nothing.
  ImageProcessorConfig few = dynamic_config();
  few.max_pixels = 3136;
  CHECK(dynamic_size({28, 2800}, few).height == 28);
}

TEST_CASE("tiles are chosen as InternVL2 chooses them", "[image]") {
  struct Case {
    PictureSize picture;
    TileGrid expected;
  };

  const std::vector<Case> cases{
      {{448, 448}, {1, 1}},  {{480, 640}, {3, 4}},  {{800, 800}, {2, 2}}, {{1000, 1000}, {3, 3}},
      {{720, 1280}, {2, 4}}, {{500, 2000}, {1, 4}}, {{700, 100}, {7, 1}}, {{300, 300}, {1, 1}}};
  for (const Case& each : cases) {
    CAPTURE(each.picture.height, each.picture.width);
    CHECK(tile_grid(each.picture, tile_config(448, 12)) == each.expected);
  }
  CHECK(tile_grid({480, 640}, tile_config(448, 1)) == TileGrid{1, 1});
}

TEST_CASE("tiles lie row by row, the thumbnail last", "[image]") {
  // Each quarter of the picture has one value; at equal size the resize copies.
  at::Tensor picture = at::zeros({8, 8, 3}, at::kByte);
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column)
      picture.narrow(0, 4 * row, 4).narrow(1, 4 * column, 4).fill_(10 * (2 * row + column));
  }
  ImageProcessorConfig config = tile_config(4, 4);
  config.min_tiles = 4;
  config.do_rescale = false;
  const at::Tensor tiles = process_image(picture, config).pixels;
  REQUIRE(tiles.sizes() == at::IntArrayRef({5, 3, 4, 4}));
  for (int i = 0; i < 4; ++i) CHECK(tiles[i].eq(10.0 * i).all().item<bool>());
  CHECK(tiles[4].min().item<float>() < 5);
  CHECK(tiles[4].max().item<float>() > 25);
  config.use_thumbnail = false;
  CHECK(process_image(picture, config).pixels.size(0) == 4);
  CHECK(process_image(at::full({4, 4, 3}, 7, at::kByte), tile_config(4, 4)).pixels.size(0) == 1);
}

TEST_CASE("patches that are merged lie behind one another, frames repeated", "[image]") {
  ImageProcessorConfig config = dynamic_config();
  config.patch_size = 2;
  config.min_pixels = 1;
  config.do_rescale = config.do_normalize = false;
  // Pixel (y, x) of channel c is 100 c + 8 y + x on a picture of 4 x 8.
  const at::Tensor plane = at::arange(32, at::kByte).view({4, 8, 1});
  const at::Tensor picture = at::cat({plane, plane + 100, plane + 200}, 2);
  const ProcessedImage image = process_image(picture, config);
  CHECK((image.grid_rows == 2 && image.grid_columns == 4));
  REQUIRE(image.pixels.sizes() == at::IntArrayRef({8, 3 * 2 * 2 * 2}));
  // First pixels of the patches: (0,0), (0,1), (1,0), (1,1), then the next block of columns.
  const std::vector<float> first{0, 2, 16, 18, 4, 6, 20, 22};
  for (std::size_t i = 0; i < first.size(); ++i)
    CHECK(image.pixels[static_cast<std::int64_t>(i)][0].item<float>() == first[i]);
  // Within a patch: channel, frame, row, column.
  const std::vector<float> row{0, 1, 8, 9, 0, 1, 8, 9, 100, 101};
  for (std::size_t i = 0; i < row.size(); ++i)
    CHECK(image.pixels[0][static_cast<std::int64_t>(i)].item<float>() == row[i]);
}

TEST_CASE("a straight resize does not keep the aspect", "[image]") {
  ImageProcessorConfig config;
  config.mode = ImageMode::kResize;
  config.resize_height = config.resize_width = 6;
  config.std = {1, 1, 1};
  const at::Tensor picture = at::arange(5 * 9 * 3, at::kByte).view({5, 9, 3});
  const at::Tensor pixels = process_image(picture, config).pixels;
  REQUIRE(pixels.sizes() == at::IntArrayRef({1, 3, 6, 6}));
  CHECK(
      at::equal(pixels[0], normalise(resize_bicubic(picture, 6, 6, config.resize_order), config)));
}

}  // namespace
}  // namespace libvar
