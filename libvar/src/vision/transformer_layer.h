#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "vision/config.h"
#include "weights.h"

namespace libvar {

/// Layer normalisation over the last dimension.
struct LayerNorm {
  at::Tensor weight, bias;  ///< [size]
  double eps = 1e-5;

  static LayerNorm read(const WeightReader& weights, const std::string& name, std::int64_t size,
                        double eps);
  at::Tensor operator()(const at::Tensor& input) const;
};

/// What the tensors of a TransformerLayer are called.
struct TransformerLayerNames {
  const char* norm1;
  const char *query, *key, *value, *out;
  const char* norm2;
  const char *fc1, *fc2;
  const char *scale1 = nullptr, *scale2 = nullptr;  ///< layer scale; null: there is none
};

/// Those of CLIP and SigLIP.
inline constexpr TransformerLayerNames kClipLayerNames{.norm1 = "layer_norm1",
                                                       .query = "self_attn.q_proj",
                                                       .key = "self_attn.k_proj",
                                                       .value = "self_attn.v_proj",
                                                       .out = "self_attn.out_proj",
                                                       .norm2 = "layer_norm2",
                                                       .fc1 = "mlp.fc1",
                                                       .fc2 = "mlp.fc2"};

/// A pre-norm layer of a vision transformer: every token attends to every other one of its tile.
///
///     x += scale1 * attention(norm1(x))
///     x += scale2 * fc2(act(fc1(norm2(x))))
class TransformerLayer {
 public:
  TransformerLayer(const VisionConfig& config, const TransformerLayerNames& names,
                   const WeightReader& weights);

  /// @param hidden  [N, tokens, hidden_size], used up
  at::Tensor operator()(at::Tensor hidden) const;

 private:
  at::Tensor attend(const at::Tensor& normed) const;

  std::int64_t num_heads_;
  Activation activation_;
  LayerNorm norm1_, norm2_;
  ProjectionGroup query_key_value_;
  Linear attention_out_, fc1_, fc2_;
  at::Tensor scale1_, scale2_;  // [hidden_size], or undefined
};

/// Patches of tiles in row-major order, as a convolution reads them; what is left at the right and
/// at the bottom belongs to none.
///
/// @param pixels  [N, 3, S, S] of any floating dtype, on any device
/// @param weight  [D, 3, P, P] of the convolution
/// @return        [N, patches, 3 * P * P] in the dtype and on the device of the weight
/// @throws InputError  tiles of another size than image_size
at::Tensor patches_of(const at::Tensor& pixels, const at::Tensor& weight, std::int64_t image_size);

}  // namespace libvar
