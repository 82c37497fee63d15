#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "image/image.h"
#include "image/sizes.h"

namespace libvar {
namespace {

/// What the tower reads of the whole picture at another size.
at::Tensor resized_values(const at::Tensor& image, std::int64_t height, std::int64_t width,
                          const ImageProcessorConfig& config) {
  return normalise(resize_bicubic(image, height, width, config.resize_order), config);
}

ProcessedImage process_tiles(const at::Tensor& image, const ImageProcessorConfig& config) {
  const TileGrid grid = tile_grid({image.size(0), image.size(1)}, config);
  const std::int64_t side = config.tile_size;
  const at::Tensor canvas = resized_values(image, grid.rows * side, grid.columns * side, config);
  std::vector<at::Tensor> tiles;
  for (std::int64_t row = 0; row < grid.rows; ++row) {
    for (std::int64_t column = 0; column < grid.columns; ++column) {
      tiles.push_back(canvas.narrow(1, row * side, side).narrow(2, column * side, side));
    }
  }
  if (config.use_thumbnail && tiles.size() > 1) {
    tiles.push_back(resized_values(image, side, side, config));
  }
  return {at::stack(tiles)};
}

ProcessedImage process_dynamic(const at::Tensor& image, const ImageProcessorConfig& config) {
  PictureSize size{image.size(0), image.size(1)};
  if (config.do_resize) size = dynamic_size(size, config);
  const std::int64_t patch = config.patch_size, merge = config.merge_size;
  TORCH_CHECK_VALUE(size.height % (patch * merge) == 0 && size.width % (patch * merge) == 0,
                    "image: sides of ", size.height, " and ", size.width,
                    " pixels are no multiples of ", patch * merge);
  const std::int64_t rows = size.height / patch, columns = size.width / patch;
  const at::Tensor pixels = resized_values(image, size.height, size.width, config);
  // Patches that are merged lie behind one another; every frame of a patch is the picture.
  const at::Tensor patches =
      pixels.reshape({3, rows / merge, merge, patch, columns / merge, merge, patch})
          .permute({1, 4, 2, 5, 0, 3, 6})
          .unsqueeze(5)
          .expand({-1, -1, -1, -1, -1, config.temporal_patch_size, -1, -1});
  return {patches.reshape({rows * columns, 3 * config.temporal_patch_size * patch * patch}), rows,
          columns};
}

}  // namespace

ProcessedImage process_image(const at::Tensor& image, const ImageProcessorConfig& config) {
  check_picture(image);
  switch (config.mode) {
    case ImageMode::kCrop:
    case ImageMode::kPad:
      return {normalise(resize_and_fit(image, config), config).unsqueeze(0)};
    case ImageMode::kResize:
      return {
          resized_values(image, config.resize_height, config.resize_width, config).unsqueeze(0)};
    case ImageMode::kTiles:
      return process_tiles(image, config);
    case ImageMode::kDynamic:
      return process_dynamic(image, config);
  }
  TORCH_CHECK_VALUE(false, "image: unknown mode");
}

}  // namespace libvar
