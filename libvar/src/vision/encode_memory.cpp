#include "vision/encode_memory.h"

#include <algorithm>

namespace libvar {
namespace {

struct Sizes {
  std::int64_t hidden, inner, out, merge, element;
};

/// What a matrix product may take beside its result: another layout of its weight.
std::int64_t workspace(const Sizes& size) {
  const std::int64_t merged = size.hidden * size.merge * size.merge;
  return size.element * std::max({size.hidden * std::max(size.inner, 3 * size.hidden),
                                  merged * std::max(merged, size.out), size.out * size.out});
}

/// The worst moments of a layer, for each token: attention (residual stream, its norm, queries,
/// keys, values, what they mix to, twice, the output) and the two linear maps with the activation
/// between them, which may need a third buffer.
std::int64_t layer_bytes(const Sizes& size) {
  return size.element * std::max({8 * size.hidden, 2 * size.hidden + 3 * size.inner,
                                  3 * size.hidden + 2 * size.inner});
}

std::int64_t bytes_of_tiles(const VisionConfig& config, const Sizes& size, std::int64_t tiles,
                            std::int64_t at_once) {
  const std::int64_t side = config.image_size / config.patch_size;
  const std::int64_t tokens = side * side + 1;  // with a class token
  const std::int64_t merged_side = (side + size.merge - 1) / size.merge;
  const std::int64_t visual = size.merge == 1 ? tokens : merged_side * merged_side;
  const std::int64_t pixels = 3 * config.image_size * config.image_size;
  const std::int64_t patches = size.element * (2 * pixels + 2 * tokens * size.hidden);
  const std::int64_t copies = size.merge == 1 ? 0 : 4;  // padded, in the order of the merge, normed
  const std::int64_t product = size.element == 4 ? 0 : 4;  // a half product's sums in float32
  const std::int64_t projection =
      size.element * ((tokens + copies * visual * size.merge * size.merge) * size.hidden +
                      3 * visual * size.out) +
      product * visual * size.out;
  const std::int64_t tile = std::max({patches, tokens * layer_bytes(size), projection});
  const bool in_parts = at_once > 0 && at_once < tiles;
  return tiles * pixels * 4 + (in_parts ? at_once : tiles) * tile +
         (in_parts ? tiles * visual * size.out * size.element : 0) + workspace(size);
}

/// One picture of any size. The rotation of queries and keys is in float32.
std::int64_t bytes_of_patches(const VisionConfig& config, const Sizes& size, std::int64_t patches) {
  const std::int64_t area = size.merge * size.merge;
  const std::int64_t pixels =
      3 * config.temporal_patch_size * config.patch_size * config.patch_size;
  const std::int64_t rotation = size.element == 4 ? 8 : 12 + size.element;
  const std::int64_t angles = 2 * size.hidden / config.num_heads * 4;
  const std::int64_t attention = (6 * size.element + rotation) * size.hidden;
  const std::int64_t merger = 4 * size.element * size.hidden;
  return patches *
             (angles + std::max({size.element * ((size.element == 4 ? 0 : pixels) + size.hidden),
                                 layer_bytes(size), attention, merger})) +
         patches / area * size.out * size.element;
}

}  // namespace

std::int64_t count_tiles(const VisionConfig& config, const std::vector<ProcessedImage>& images) {
  if (config.tower == TowerKind::kQwen2Vl) return 0;
  std::int64_t tiles = 0;
  for (const ProcessedImage& image : images) tiles += image.pixels.size(0);
  return tiles;
}

std::int64_t encode_bytes(const VisionConfig& config, std::int64_t out_features,
                          at::ScalarType dtype, const std::vector<ProcessedImage>& images,
                          std::int64_t tiles_at_once) {
  if (images.empty()) return 0;
  const Sizes size{config.hidden_size, config.intermediate_size, out_features, config.merge_size,
                   static_cast<std::int64_t>(c10::elementSize(dtype))};
  if (config.tower != TowerKind::kQwen2Vl)
    return bytes_of_tiles(config, size, count_tiles(config, images), tiles_at_once);
  std::int64_t results = 0, largest = 0;
  for (const ProcessedImage& image : images) {
    const std::int64_t patches = image.grid_rows * image.grid_columns;
    largest = std::max(largest, results + bytes_of_patches(config, size, patches));
    results += patches / (size.merge * size.merge) * out_features * size.element;
  }
  return largest + workspace(size);
}

}  // namespace libvar
