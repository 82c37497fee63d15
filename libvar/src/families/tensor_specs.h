#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "families/family.h"

namespace libvar {

/// Collects the tensors that a model must have.
class TensorSpecs {
 public:
  void add(const std::string& name, std::vector<std::int64_t> shape);
  /// name.weight [out, in], and name.bias [out] with `bias`
  void linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias);
  /// name.weight and name.bias [size]
  void layer_norm(const std::string& name, std::int64_t size);
  /// The tensors of a Decoder: scope + "model.layers.0..." and scope + "lm_head.weight".
  void decoder(const std::string& scope, const DecoderConfig& config);

  /// The layers that are run of CLIP and SigLIP: prefix + "0.layer_norm1.weight", ...
  void clip_layers(const std::string& prefix, const VisionConfig& vision);
  /// The tensors of a MergingProjector: "multi_modal_projector.layer_norm.weight", ...
  void merging_projector(const VisionConfig& vision, std::int64_t out_features);

  std::vector<TensorSpec> take() { return std::move(specs_); }

 private:
  void quantizable_linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias);

  std::vector<TensorSpec> specs_;
};

}  // namespace libvar
