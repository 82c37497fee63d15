#include "vision/encoder.h"

#include <c10/util/Exception.h>

#include "vision/clip_tower.h"
#include "vision/projector.h"
#include "vision/tile_encoder.h"

namespace libvar {

std::unique_ptr<VisionEncoder> make_vision_encoder(const VisionConfig& config,
                                                   std::int64_t out_features,
                                                   const WeightReader& weights) {
  switch (config.tower) {
    case TowerKind::kClip: {
      const std::int64_t side = config.image_size / config.patch_size;
      const VisualSize tile = config.drop_class_token ? VisualSize{side * side, side, side}
                                                      : VisualSize{side * side + 1};
      return std::make_unique<TileEncoder<ClipTower, Projector>>(
          ClipTower(config, weights.scope("vision_tower.vision_model.")),
          Projector(config, out_features, weights.scope("multi_modal_projector.")), tile);
    }
    case TowerKind::kSiglip:
    case TowerKind::kInternVit:
    case TowerKind::kQwen2Vl:
      break;
  }
  TORCH_CHECK(false, "vision tower ", static_cast<int>(config.tower), " is unknown");
}

}  // namespace libvar
