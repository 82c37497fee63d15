#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "vision/config.h"
#include "vision/transformer_layer.h"
#include "weights.h"

namespace libvar {

/// Two linear maps with an activation between them, from image features to the decoder's
/// embeddings.
class Projector {
 public:
  /// @param weights  names relative to the projector ("linear_1.weight")
  Projector(const VisionConfig& config, std::int64_t out_features, const WeightReader& weights);

  /// [..., vision hidden size] -> [..., out_features]
  at::Tensor operator()(const at::Tensor& features) const;

 private:
  Linear linear_1_, linear_2_;
  Activation activation_;
};

/// A projector that makes one token of merge_size x merge_size patches, behind a norm.
///
/// Source: pixel shuffle (ps_version v2) and mlp1 of InternVL2; the downsampling projector of
/// VILA-1.5, whose grid is transposed. A side that merge_size does not divide is filled with zeros
/// at the bottom and at the right.
///
///     y = linear_2(act(linear_1(norm([x(mr, mc), x(mr, mc + 1), ..., x(mr + m - 1, mc + m -
///     1)]))))
class MergingProjector {
 public:
  /// @param weights  names relative to the projector ("layer_norm.weight", "linear_1.weight")
  MergingProjector(const VisionConfig& config, std::int64_t out_features,
                   const WeightReader& weights);

  /// [N, side * side, vision hidden size] -> [N, merged tokens, out_features]
  at::Tensor operator()(const at::Tensor& features) const;

 private:
  std::int64_t side_, merge_;
  bool transposed_;
  LayerNorm norm_;
  Linear linear_1_, linear_2_;
  Activation activation_;
};

}  // namespace libvar
