#pragma once

#include <cstdint>

namespace libvar {

enum class Activation { kQuickGelu, kGelu, kGeluTanh, kSilu, kRelu };

enum class TowerKind { kClip, kSiglip, kInternVit, kQwen2Vl };

/// A vision transformer and the projector behind it, which merges patches where merge_size says so.
struct VisionConfig {
  TowerKind tower = TowerKind::kClip;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t image_size = 0;  ///< pixels of a tile's side; 0: of any size
  std::int64_t patch_size = 0;  ///< pixels
  std::int64_t merge_size = 1;  ///< so many rows and columns of patches become one visual token
  std::int64_t temporal_patch_size = 1;  ///< frames of a patch; a picture is repeated
  double layer_norm_eps = 1e-5;
  bool qkv_bias = true;
  Activation activation = Activation::kQuickGelu;
  std::int64_t layers_to_run =
      0;  ///< layers below the one whose output is used (feature layer -2: num_layers - 1)
  bool drop_class_token = true;
  bool transposed_merge = false;  ///< merged tokens go down the columns of the picture
  Activation projector_activation = Activation::kGelu;
  bool projector_bias = true;
};

}  // namespace libvar
