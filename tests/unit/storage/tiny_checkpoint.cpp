#include "unit/storage/tiny_checkpoint.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "temporary_folder.h"

namespace libvar::testing {
namespace {

using nlohmann::json;
using Shape = std::vector<std::int64_t>;

constexpr std::int64_t kHidden = 16, kInner = 24, kLayers = 2, kHeads = 4, kKvHeads = 2,
                       kRows = 520;
constexpr std::int64_t kClip = 8, kClipInner = 12, kClipLayers = 2, kImage = 28, kPatch = 14;

void add(Tensors& tensors, at::ScalarType dtype, const std::string& name, const Shape& shape) {
  const at::Tensor values = at::empty(shape, at::TensorOptions(at::kFloat));
  float* data = values.mutable_data_ptr<float>();
  // Small multiples of 1/64 are exact in every type; the number of tensors so far tells them apart.
  const auto first = static_cast<std::int64_t>(tensors.size());
  for (std::int64_t i = 0; i < values.numel(); ++i)
    data[i] = static_cast<float>((first + i) % 127 - 63) / 64.0F;
  tensors.emplace(name, values.to(dtype));
}

}  // namespace

json published_preprocessor_config() {
  return json::parse(
      R"({"crop_size": {"height": 336, "width": 336}, "do_center_crop": true, "do_convert_rgb": true,
    "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336}})");
}

json published_7b_config() {
  return json::parse(R"({"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
    "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
    "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
      "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
      "vocab_size": 32064},
    "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
      "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
      "projection_dim": 768, "vocab_size": 32000},
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default"})");
}

TinyCheckpoint::TinyCheckpoint(at::ScalarType dtype) {
  config = {{"model_type", "llava"},
            {"image_token_index", 512},
            {"torch_dtype", "float32"},
            {"text_config",
             {{"model_type", "llama"},
              {"hidden_size", kHidden},
              {"intermediate_size", kInner},
              {"num_hidden_layers", kLayers},
              {"num_attention_heads", kHeads},
              {"num_key_value_heads", kKvHeads},
              {"max_position_embeddings", 64},
              {"rms_norm_eps", 1e-5},
              {"vocab_size", kRows}}},
            {"vision_config",
             {{"model_type", "clip_vision_model"},
              {"hidden_size", kClip},
              {"intermediate_size", kClipInner},
              {"num_hidden_layers", kClipLayers},
              {"num_attention_heads", 2},
              {"image_size", kImage},
              {"patch_size", kPatch}}}};
  generation_config = {{"eos_token_id", 2}};
  preprocessor_config = published_preprocessor_config();
  preprocessor_config["crop_size"] = {{"height", kImage}, {"width", kImage}};
  preprocessor_config["size"] = {{"shortest_edge", kImage}};

  const auto tensor = [&](const std::string& name, const Shape& shape) {
    add(tensors, dtype, name, shape);
  };
  const std::string text = "language_model.model.", tower = "vision_tower.vision_model.";
  tensor(text + "embed_tokens.weight", {kRows, kHidden});
  for (std::int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = c10::str(text, "layers.", i, ".");
    for (const char* part : {"q_proj", "o_proj"})
      tensor(layer + "self_attn." + part + ".weight", {kHidden, kHidden});
    for (const char* part : {"k_proj", "v_proj"}) {
      tensor(layer + "self_attn." + part + ".weight", {kKvHeads * kHidden / kHeads, kHidden});
    }
    for (const char* part : {"gate_proj", "up_proj"})
      tensor(layer + "mlp." + part + ".weight", {kInner, kHidden});
    tensor(layer + "mlp.down_proj.weight", {kHidden, kInner});
    tensor(layer + "input_layernorm.weight", {kHidden});
    tensor(layer + "post_attention_layernorm.weight", {kHidden});
  }
  tensor(text + "norm.weight", {kHidden});
  tensor("language_model.lm_head.weight", {kRows, kHidden});
  const auto both = [&](const std::string& name, const Shape& shape) {
    tensor(name + ".weight", shape);
    tensor(name + ".bias", {shape.front()});
  };
  tensor(tower + "embeddings.class_embedding", {kClip});
  tensor(tower + "embeddings.patch_embedding.weight", {kClip, 3, kPatch, kPatch});
  tensor(tower + "embeddings.position_embedding.weight",
         {(kImage / kPatch) * (kImage / kPatch) + 1, kClip});
  for (const char* name : {"pre_layrnorm", "post_layernorm"}) both(tower + name, {kClip});
  for (std::int64_t i = 0; i < kClipLayers; ++i) {
    const std::string layer = c10::str(tower, "encoder.layers.", i, ".");
    for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"})
      both(layer + "self_attn." + part, {kClip, kClip});
    both(layer + "mlp.fc1", {kClipInner, kClip});
    both(layer + "mlp.fc2", {kClip, kClipInner});
    for (const char* part : {"layer_norm1", "layer_norm2"}) both(layer + part, {kClip});
  }
  both("multi_modal_projector.linear_1", {kHidden, kClip});
  both("multi_modal_projector.linear_2", {kHidden, kHidden});
}

void TinyCheckpoint::write(const std::filesystem::path& dir, int shards) const {
  write_weights(dir, tensors, shards);
  write_bytes(dir / "config.json", config.dump(2));
  write_bytes(dir / "generation_config.json", generation_config.dump(2));
  write_bytes(dir / "preprocessor_config.json", preprocessor_config.dump(2));
  for (const char* file : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "added_tokens.json"}) {
    std::filesystem::copy_file(golden_folder() / "tokenizer" / file, dir / file);
  }
}

}  // namespace libvar::testing
