// torch.classes.libvar_bench.Vision: libvar's vision towers and projectors on tensors of the Python
// process that has their peers.

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <c10/core/InferenceMode.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <cstdint>
#include <memory>

#include "model/tensors.h"
#include "vision/encoder.h"

namespace libvar::bench {
namespace {

VisionConfig vision_config(const Numbers& numbers) {
  VisionConfig config;
  const auto read = [&](const char* key, auto& value) {
    if (numbers.contains(key))
      value = static_cast<std::remove_reference_t<decltype(value)>>(numbers.at(key));
  };
  config.tower = static_cast<TowerKind>(static_cast<int>(numbers.at("tower")));
  config.activation = static_cast<Activation>(static_cast<int>(numbers.at("activation")));
  read("hidden_size", config.hidden_size);
  read("intermediate_size", config.intermediate_size);
  read("num_layers", config.num_layers);
  read("layers_to_run", config.layers_to_run);
  read("num_heads", config.num_heads);
  read("image_size", config.image_size);
  read("patch_size", config.patch_size);
  read("merge_size", config.merge_size);
  read("temporal_patch_size", config.temporal_patch_size);
  read("layer_norm_eps", config.layer_norm_eps);
  read("transposed_merge", config.transposed_merge);
  return config;
}

class BenchVision : public torch::CustomClassHolder {
 public:
  BenchVision(const Numbers& config, std::int64_t out_features, const Tensors& tensors)
      : encoder_(make_vision_encoder(
            vision_config(config), out_features,
            WeightReader(tensor_map(tensors), target_of(tensors.begin()->value())))) {}

  /// @param pixels  as ProcessedImage has them
  /// @return        [visual tokens, D]
  at::Tensor encode(const at::Tensor& pixels, std::int64_t rows, std::int64_t columns) const {
    const c10::InferenceMode inference;
    return encoder_->encode({ProcessedImage{pixels, rows, columns}}, /*tiles_at_once=*/0).front();
  }

 private:
  std::unique_ptr<VisionEncoder> encoder_;
};

}  // namespace
}  // namespace libvar::bench

TORCH_LIBRARY_FRAGMENT(libvar_bench, m) {
  using libvar::bench::BenchVision;
  m.class_<BenchVision>("Vision")
      .def(
          torch::init<const libvar::bench::Numbers&, std::int64_t, const libvar::bench::Tensors&>())
      .def("encode", &BenchVision::encode);
}
