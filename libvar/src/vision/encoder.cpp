#include "vision/encoder.h"

#include <c10/util/Exception.h>

#include "vision/projector.h"
#include "vision/qwen2_vl_encoder.h"
#include "vision/tile_encoder.h"
#include "vision/vision_transformer.h"

namespace libvar {
namespace {

constexpr const char* kProjectorScope = "multi_modal_projector.";

std::unique_ptr<VisionEncoder> make_clip_encoder(const VisionConfig& config,
                                                 std::int64_t out_features,
                                                 const WeightReader& weights) {
  const std::int64_t side = config.image_size / config.patch_size;
  const VisualSize tile =
      config.drop_class_token ? VisualSize{side * side, side, side} : VisualSize{side * side + 1};
  return std::make_unique<TileEncoder<VisionTransformer, Projector>>(
      VisionTransformer(config, kClipNames, weights.scope("vision_tower.vision_model.")),
      Projector(config, out_features, weights.scope(kProjectorScope)), tile);
}

std::unique_ptr<VisionEncoder> make_merging_encoder(const VisionConfig& config,
                                                    const VisionTransformerNames& names,
                                                    const std::string& tower,
                                                    std::int64_t out_features,
                                                    const WeightReader& weights) {
  const std::int64_t side =
      (config.image_size / config.patch_size + config.merge_size - 1) / config.merge_size;
  const VisualSize tile =
      config.transposed_merge ? VisualSize{side * side} : VisualSize{side * side, side, side};
  return std::make_unique<TileEncoder<VisionTransformer, MergingProjector>>(
      VisionTransformer(config, names, weights.scope(tower)),
      MergingProjector(config, out_features, weights.scope(kProjectorScope)), tile);
}

}  // namespace

std::unique_ptr<VisionEncoder> make_vision_encoder(const VisionConfig& config,
                                                   std::int64_t out_features,
                                                   const WeightReader& weights) {
  switch (config.tower) {
    case TowerKind::kClip:
      return make_clip_encoder(config, out_features, weights);
    case TowerKind::kSiglip:
      return make_merging_encoder(config, kSiglipNames, "vision_tower.vision_model.", out_features,
                                  weights);
    case TowerKind::kInternVit:
      return make_merging_encoder(config, kInternVitNames, "vision_tower.", out_features, weights);
    case TowerKind::kQwen2Vl:
      return std::make_unique<Qwen2VlEncoder>(config, out_features, weights.scope("visual."));
  }
  TORCH_CHECK(false, "vision tower ", static_cast<int>(config.tower), " is unknown");
}

}  // namespace libvar
