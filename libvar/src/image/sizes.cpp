#include "image/sizes.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr double kMostAspect = 200.0;

/// Python's round(value / factor) * factor: halves go to the even multiple.
std::int64_t round_to_multiple(std::int64_t value, std::int64_t factor) {
  const std::int64_t below = value / factor, twice_rest = 2 * (value % factor);
  const bool up = twice_rest > factor || (twice_rest == factor && below % 2 == 1);
  return (below + (up ? 1 : 0)) * factor;
}

}  // namespace

PictureSize dynamic_size(const PictureSize& picture, const ImageProcessorConfig& config) {
  const auto height = static_cast<double>(picture.height);
  const auto width = static_cast<double>(picture.width);
  if (std::max(height, width) / std::min(height, width) > kMostAspect) {
    throw InputError(c10::str(picture.width, " x ", picture.height,
                              " pixels: expected sides that differ by a factor of at most ",
                              kMostAspect));
  }
  const std::int64_t factor = config.patch_size * config.merge_size;
  const auto step = static_cast<double>(factor);
  PictureSize out{round_to_multiple(picture.height, factor),
                  round_to_multiple(picture.width, factor)};
  const std::int64_t pixels = out.height * out.width;
  if (pixels > config.max_pixels) {
    const double beta = std::sqrt(height * width / static_cast<double>(config.max_pixels));
    const auto cut = [&](double side) {
      return std::max(factor, static_cast<std::int64_t>(std::floor(side / beta / step)) * factor);
    };
    out = {cut(height), cut(width)};
  } else if (pixels < config.min_pixels) {
    const double beta = std::sqrt(static_cast<double>(config.min_pixels) / (height * width));
    const auto fill = [&](double side) {
      return static_cast<std::int64_t>(std::ceil(side * beta / step)) * factor;
    };
    out = {fill(height), fill(width)};
  }
  return out;
}

TileGrid tile_grid(const PictureSize& picture, const ImageProcessorConfig& config) {
  std::vector<TileGrid> grids;
  for (std::int64_t columns = 1; columns <= config.max_tiles; ++columns) {
    for (std::int64_t rows = 1; rows * columns <= config.max_tiles; ++rows) {
      if (rows * columns >= config.min_tiles) grids.push_back({rows, columns});
    }
  }
  std::stable_sort(grids.begin(), grids.end(), [](const TileGrid& a, const TileGrid& b) {
    return a.rows * a.columns < b.rows * b.columns;
  });
  const double aspect = static_cast<double>(picture.width) / static_cast<double>(picture.height);
  const auto area = static_cast<double>(picture.width * picture.height);
  TileGrid best;
  double least = std::numeric_limits<double>::infinity();
  for (const TileGrid& grid : grids) {
    const double difference =
        std::abs(aspect - static_cast<double>(grid.columns) / static_cast<double>(grid.rows));
    const auto half =
        0.5 * static_cast<double>(config.tile_size * config.tile_size * grid.rows * grid.columns);
    if (difference < least || (difference == least && area > half)) {
      least = difference;
      best = grid;
    }
  }
  return best;
}

}  // namespace libvar
