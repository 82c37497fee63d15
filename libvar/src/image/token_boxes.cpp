#include "image/token_boxes.h"

#include <algorithm>
#include <cmath>

namespace libvar {
namespace {

/// A rectangle in pixels of the picture.
struct Area {
  double left = 0, top = 0, width = 0, height = 0;
};

/// The square that a tower reads, in pixels of the picture: what resize_and_fit keeps of it.
Area fitted_area(const PictureSize& picture, const ImageProcessorConfig& config) {
  const bool pads = config.mode == ImageMode::kPad;
  const std::int64_t longer = std::max(picture.height, picture.width);
  const std::int64_t canvas_height = pads ? longer : picture.height,
                     canvas_width = pads ? longer : picture.width;
  const auto canvas_top = static_cast<double>((canvas_height - picture.height) / 2),
             canvas_left = static_cast<double>((canvas_width - picture.width) / 2);
  std::int64_t height = canvas_height, width = canvas_width;  // after the resize
  if (config.do_resize) {
    const std::int64_t shorter = std::min(canvas_height, canvas_width);
    height = config.shortest_edge * canvas_height / shorter;
    width = config.shortest_edge * canvas_width / shorter;
  }
  const auto scale_y = static_cast<double>(canvas_height) / static_cast<double>(height),
             scale_x = static_cast<double>(canvas_width) / static_cast<double>(width);
  const auto top = std::floor(static_cast<double>(height - config.crop_height) / 2),
             left = std::floor(static_cast<double>(width - config.crop_width) / 2);
  return {left * scale_x - canvas_left, top * scale_y - canvas_top,
          static_cast<double>(config.crop_width) * scale_x,
          static_cast<double>(config.crop_height) * scale_y};
}

/// The boxes of one grid of tokens over an area that the tower reads as rows x columns patches.
/// @param cut_rows, cut_columns  patches in whole and in part: pixels behind the last whole patch
/// are not read
void add_grid(const Area& area, double rows, double columns, const VisionConfig& vision,
              TokenBox box, std::vector<TokenBox>& out) {
  const std::int64_t merge = vision.merge_size;
  const auto token_rows = (static_cast<std::int64_t>(rows) + merge - 1) / merge,
             token_columns = (static_cast<std::int64_t>(columns) + merge - 1) / merge;
  const double height = area.height / rows * static_cast<double>(merge),
               width = area.width / columns * static_cast<double>(merge);
  for (std::int64_t i = 0; i < token_rows * token_columns; ++i) {
    const std::int64_t row = vision.transposed_merge ? i % token_rows : i / token_columns;
    const std::int64_t column = vision.transposed_merge ? i / token_rows : i % token_columns;
    box.left = area.left + static_cast<double>(column) * width;
    box.top = area.top + static_cast<double>(row) * height;
    box.right = box.left + width;
    box.bottom = box.top + height;
    out.push_back(box);
  }
}

}  // namespace

std::vector<TokenBox> token_boxes(const PictureSize& picture, const ProcessedImage& processed,
                                  const ImageProcessorConfig& processor,
                                  const VisionConfig& vision) {
  std::vector<TokenBox> out;
  const Area whole{0, 0, static_cast<double>(picture.width), static_cast<double>(picture.height)};
  if (processor.mode == ImageMode::kDynamic) {
    add_grid(whole, static_cast<double>(processed.grid_rows),
             static_cast<double>(processed.grid_columns), vision, {}, out);
    return out;
  }
  // A side in patches; what is behind the last whole one is not read.
  const double side =
      static_cast<double>(vision.image_size) / static_cast<double>(vision.patch_size);
  if (processor.mode != ImageMode::kTiles) {
    const bool fits = processor.mode == ImageMode::kCrop || processor.mode == ImageMode::kPad;
    add_grid(fits ? fitted_area(picture, processor) : whole, side, side, vision, {}, out);
    return out;
  }
  const TileGrid grid = tile_grid(picture, processor);
  const double width = whole.width / static_cast<double>(grid.columns),
               height = whole.height / static_cast<double>(grid.rows);
  TokenBox box;
  for (; box.tile < grid.rows * grid.columns; ++box.tile) {
    const auto row = static_cast<double>(box.tile / grid.columns),
               column = static_cast<double>(box.tile % grid.columns);
    add_grid({column * width, row * height, width, height}, side, side, vision, box, out);
  }
  if (processed.pixels.size(0) > grid.rows * grid.columns) {
    box.thumbnail = true;
    add_grid(whole, side, side, vision, box, out);
  }
  return out;
}

}  // namespace libvar
