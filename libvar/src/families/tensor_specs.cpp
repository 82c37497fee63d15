#include "families/tensor_specs.h"

#include <c10/util/StringUtil.h>

#include <utility>

namespace libvar {

void TensorSpecs::add(const std::string& name, std::vector<std::int64_t> shape) {
  specs_.push_back({name, std::move(shape)});
}

void TensorSpecs::linear(const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
  add(name + ".weight", {out, in});
  if (bias) add(name + ".bias", {out});
}

void TensorSpecs::quantizable_linear(const std::string& name, std::int64_t out, std::int64_t in,
                                     bool bias) {
  add(name + ".weight", {out, in});
  specs_.back().is_quantizable = true;
  if (bias) add(name + ".bias", {out});
}

void TensorSpecs::layer_norm(const std::string& name, std::int64_t size) {
  add(name + ".weight", {size});
  add(name + ".bias", {size});
}

void TensorSpecs::decoder(const std::string& scope, const DecoderConfig& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t query = config.num_heads * config.head_dim;
  const std::int64_t key_value = config.num_kv_heads * config.head_dim;
  add(scope + "model.embed_tokens.weight", {config.vocab_size, hidden});
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = c10::str(scope, "model.layers.", i, ".");
    add(layer + "input_layernorm.weight", {hidden});
    add(layer + "post_attention_layernorm.weight", {hidden});
    quantizable_linear(layer + "self_attn.q_proj", query, hidden, config.qkv_bias);
    quantizable_linear(layer + "self_attn.k_proj", key_value, hidden, config.qkv_bias);
    quantizable_linear(layer + "self_attn.v_proj", key_value, hidden, config.qkv_bias);
    quantizable_linear(layer + "self_attn.o_proj", hidden, query, config.output_bias);
    quantizable_linear(layer + "mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
    quantizable_linear(layer + "mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
    quantizable_linear(layer + "mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  }
  add(scope + "model.norm.weight", {hidden});
  if (!config.tie_word_embeddings) add(scope + "lm_head.weight", {config.vocab_size, hidden});
}

void TensorSpecs::clip_layers(const std::string& prefix, const VisionConfig& vision) {
  const std::int64_t hidden = vision.hidden_size;
  for (std::int64_t i = 0; i < vision.layers_to_run; ++i) {
    const std::string layer = c10::str(prefix, i, ".");
    layer_norm(layer + "layer_norm1", hidden);
    layer_norm(layer + "layer_norm2", hidden);
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      linear(layer + "self_attn." + part, hidden, hidden, true);
    }
    linear(layer + "mlp.fc1", vision.intermediate_size, hidden, true);
    linear(layer + "mlp.fc2", hidden, vision.intermediate_size, true);
  }
}

void TensorSpecs::merging_projector(const VisionConfig& vision, std::int64_t out_features) {
  const std::string projector = "multi_modal_projector.";
  const std::int64_t merged = vision.hidden_size * vision.merge_size * vision.merge_size;
  layer_norm(projector + "layer_norm", merged);
  linear(projector + "linear_1", out_features, merged, true);
  linear(projector + "linear_2", out_features, out_features, true);
}

}  // namespace libvar
