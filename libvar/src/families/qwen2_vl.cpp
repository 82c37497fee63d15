#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include <c10/util/StringUtil.h>

#include "families/config_readers.h"
#include "families/families.h"
#include "families/image_processors.h"
#include "families/json_fields.h"
#include "families/tensor_specs.h"
#include "libvar/error.h"

namespace libvar {
namespace {

/// Transformers' Qwen2VLTextConfig.
DecoderConfig decoder_defaults() {
  DecoderConfig out;
  out.hidden_size = 8192;
  out.intermediate_size = 29568;
  out.num_layers = 80;
  out.num_heads = 64;
  out.num_kv_heads = 8;
  out.vocab_size = 152064;
  out.max_positions = 32768;
  out.rms_norm_eps = 1e-5;
  out.rope_theta = 1e6;
  out.rope_sections = {16, 24, 24};
  out.qkv_bias = true;
  return out;
}

/// @param text_width  the decoder's hidden size, to which the merger must lead
VisionConfig read_tower(const JsonFields& vision, std::int64_t text_width) {
  VisionConfig out;
  out.tower = TowerKind::kQwen2Vl;
  out.hidden_size = vision.integer("embed_dim", 1280, 1, kMaxWidth);
  out.num_layers = out.layers_to_run = vision.integer("depth", 32, 1, kMaxLayers);
  out.num_heads = vision.integer("num_heads", 16, 1, kMaxWidth);
  if (out.hidden_size % (4 * out.num_heads) != 0) {
    vision.fail("embed_dim", "a multiple of 4 * num_heads " + std::to_string(out.num_heads) +
                                 ": a head has rows and columns of pairs");
  }
  const double inner = vision.number("mlp_ratio", 4) * static_cast<double>(out.hidden_size);
  if (!(inner >= 1) || inner > static_cast<double>(kMaxWidth) || inner != std::floor(inner)) {
    vision.fail("mlp_ratio", "a number that gives a whole MLP width");
  }
  out.intermediate_size = static_cast<std::int64_t>(inner);
  out.patch_size = vision.integer("patch_size", 14, 1, 1024);
  out.merge_size = vision.integer("spatial_merge_size", 2, 1, 64);
  out.temporal_patch_size = vision.integer("temporal_patch_size", 2, 1, 64);
  for (const char* key : {"in_channels", "in_chans"}) {
    if (vision.integer(key, 3) != 3) vision.fail(key, "3");
  }
  if (vision.integer("hidden_size", 3584) != text_width) {
    vision.fail("hidden_size",
                "the decoder's hidden_size " + std::to_string(text_width) + ", to which it leads");
  }
  out.layer_norm_eps = 1e-6;
  out.activation = read_activation(vision, "hidden_act", "quick_gelu");
  return out;
}

void add_tower(TensorSpecs& specs, const VisionConfig& vision, std::int64_t text_width) {
  const std::string tower = "visual.";
  const std::int64_t hidden = vision.hidden_size;
  specs.add(tower + "patch_embed.proj.weight",
            {hidden, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size});
  for (std::int64_t i = 0; i < vision.num_layers; ++i) {
    const std::string block = c10::str(tower, "blocks.", i, ".");
    specs.layer_norm(block + "norm1", hidden);
    specs.layer_norm(block + "norm2", hidden);
    specs.linear(block + "attn.qkv", 3 * hidden, hidden, true);
    specs.linear(block + "attn.proj", hidden, hidden, true);
    specs.linear(block + "mlp.fc1", vision.intermediate_size, hidden, true);
    specs.linear(block + "mlp.fc2", hidden, vision.intermediate_size, true);
  }
  const std::int64_t merged = hidden * vision.merge_size * vision.merge_size;
  specs.layer_norm(tower + "merger.ln_q", hidden);
  specs.linear(tower + "merger.mlp.0", merged, merged, true);
  specs.linear(tower + "merger.mlp.2", text_width, merged, true);
}

class Qwen2VlFamily : public Family {
 public:
  std::string name() const override { return "qwen2_vl"; }

  bool recognises(const nlohmann::json& config) const override {
    const auto type = config.find("model_type");
    return type != config.end() && *type == "qwen2_vl";
  }

  ModelConfig read_config(const CheckpointFiles& files) const override {
    const nlohmann::json json = JsonFields::parse(files.at("config.json"), "config.json");
    const JsonFields config(json, "config.json");
    // Published files are flat; transformers 5 keeps the decoder's values beneath text_config.
    const JsonFields text = config.has("text_config") ? config.object("text_config") : config;
    if (text.boolean("use_sliding_window", false)) text.fail("use_sliding_window", "false");
    ModelConfig out;
    out.family = name();
    out.decoder = read_decoder(text, config, decoder_defaults());
    out.vision = read_tower(config.object("vision_config"), out.decoder.hidden_size);
    out.image = read_dynamic_processor(require_processor(files).fields(), out.vision);
    out.prompt_style = PromptStyle::kQwen2Vl;
    out.image_token = "<|image_pad|>";
    out.image_token_id = config.integer("image_token_id", 151655, 0, out.decoder.vocab_size - 1);
    out.stop_tokens = read_stop_tokens(files, config, out.decoder.vocab_size, 151645);
    out.checkpoint_dtype = read_dtype(config);
    if (out.checkpoint_dtype.empty()) out.checkpoint_dtype = read_dtype(text);
    out.decoder_scope = "";
    return out;
  }

  std::optional<std::string> canonical_name(const std::string& name) const override {
    if (name.ends_with("rotary_emb.inv_freq") || name.ends_with("rotary_pos_emb.inv_freq"))
      return {};
    constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kPrefixes{{
        {"model.language_model.", "model."},
        {"model.visual.", "visual."},
    }};
    for (const auto& [from, to] : kPrefixes) {
      if (name.starts_with(from)) return std::string(to).append(name, from.size());
    }
    return name;
  }

  std::vector<std::string> vision_folders(const CheckpointFiles&) const override { return {}; }

  std::vector<TensorSpec> expected_tensors(const ModelConfig& config) const override {
    TensorSpecs specs;
    specs.decoder(config.decoder_scope, config.decoder);
    add_tower(specs, config.vision, config.decoder.hidden_size);
    return specs.take();
  }
};

}  // namespace

const Family& qwen2_vl_family() {
  static const Qwen2VlFamily family;
  return family;
}

}  // namespace libvar
