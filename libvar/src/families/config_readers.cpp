#include "families/config_readers.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "libvar/error.h"

namespace libvar {
namespace {

void read_sections(const JsonFields& rope, DecoderConfig& out) {
  const std::string expected =
      "three numbers that add up to " + std::to_string(out.head_dim / 2) + ", half of head_dim";
  if (!rope.has("mrope_section")) rope.fail("mrope_section", expected);
  out.rope_sections = rope.integers("mrope_section", 0, out.head_dim);
  const std::int64_t sum =
      std::accumulate(out.rope_sections.begin(), out.rope_sections.end(), std::int64_t{0});
  if (out.rope_sections.size() != 3 || sum != out.head_dim / 2)
    rope.fail("mrope_section", expected);
}

void read_rotary(const JsonFields& text, DecoderConfig& out) {
  const bool three_axes = out.position_axes() == 3;
  bool found_sections = false;
  out.rope_theta = text.number("rope_theta", out.rope_theta);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {  // of transformers 5, and before
    if (!text.has(key)) continue;
    const JsonFields rope = text.object(key);
    out.rope_theta = rope.number("rope_theta", out.rope_theta);
    for (const char* type : {"rope_type", "type"}) {
      const std::string kind = rope.text(type, "default");
      if (kind == "linear") {
        out.rope_factor = rope.number("factor");
        if (!(out.rope_factor >= 1)) rope.fail("factor", "a number of at least 1");
      } else if (kind != "default" && kind != "dynamic" && !(kind == "mrope" && three_axes)) {
        rope.fail(type, three_axes ? "mrope or default" : "default, linear or dynamic");
      }
    }
    if (three_axes) {
      read_sections(rope, out);
      found_sections = true;
    }
  }
  if (three_axes && !found_sections) text.fail("rope_scaling", "an object with mrope_section");
  if (!(out.rope_theta > 0)) text.fail("rope_theta", "a number above 0");
}

}  // namespace

DecoderConfig llama_defaults() {
  DecoderConfig out;
  out.hidden_size = 4096;
  out.intermediate_size = 11008;
  out.num_layers = 32;
  out.num_heads = 32;
  out.vocab_size = 32000;
  out.max_positions = 2048;
  return out;
}

DecoderConfig read_decoder(const JsonFields& text, const JsonFields& top,
                           const DecoderConfig& defaults) {
  DecoderConfig out = defaults;
  if (text.text("hidden_act", "silu") != "silu") text.fail("hidden_act", "silu");
  out.hidden_size = text.integer("hidden_size", defaults.hidden_size, 1, kMaxWidth);
  out.intermediate_size =
      text.integer("intermediate_size", defaults.intermediate_size, 1, kMaxWidth);
  out.num_layers = text.integer("num_hidden_layers", defaults.num_layers, 1, kMaxLayers);
  out.num_heads = text.integer("num_attention_heads", defaults.num_heads, 1, kMaxWidth);
  out.num_kv_heads =
      text.integer("num_key_value_heads",
                   defaults.num_kv_heads > 0 ? defaults.num_kv_heads : out.num_heads, 1, kMaxWidth);
  if (out.num_heads % out.num_kv_heads != 0) {
    text.fail("num_key_value_heads",
              "a divisor of num_attention_heads " + std::to_string(out.num_heads));
  }
  if (text.has("head_dim")) {
    out.head_dim = text.integer("head_dim", {}, 2, kMaxWidth);
    if (out.head_dim % 2 != 0) text.fail("head_dim", "an even number");
  } else {
    out.head_dim = out.hidden_size / out.num_heads;
    if (out.hidden_size % (2 * out.num_heads) != 0) {
      text.fail("hidden_size",
                "an even multiple of num_attention_heads " + std::to_string(out.num_heads));
    }
  }
  out.vocab_size = text.integer("vocab_size", defaults.vocab_size, 1, kMaxPositions);
  out.max_positions =
      text.integer("max_position_embeddings", defaults.max_positions, 1, kMaxPositions);
  out.rms_norm_eps = text.number("rms_norm_eps", defaults.rms_norm_eps);
  if (!(out.rms_norm_eps > 0)) text.fail("rms_norm_eps", "a number above 0");
  out.qkv_bias = text.boolean("attention_bias", defaults.qkv_bias);
  out.output_bias = text.boolean("attention_bias", false);
  out.mlp_bias = text.boolean("mlp_bias", false);
  out.tie_word_embeddings = top.boolean(
      "tie_word_embeddings", text.boolean("tie_word_embeddings", defaults.tie_word_embeddings));
  read_rotary(text, out);
  return out;
}

Activation read_activation(const JsonFields& fields, const std::string& key,
                           const std::string& fallback) {
  constexpr std::array<std::pair<const char*, Activation>, 6> kNames{
      {{"quick_gelu", Activation::kQuickGelu},
       {"gelu", Activation::kGelu},
       {"gelu_pytorch_tanh", Activation::kGeluTanh},
       {"gelu_new", Activation::kGeluTanh},
       {"silu", Activation::kSilu},
       {"relu", Activation::kRelu}}};
  const std::string name = fields.text(key, fallback);
  const auto found = std::find_if(kNames.begin(), kNames.end(),
                                  [&](const auto& entry) { return name == entry.first; });
  if (found == kNames.end())
    fields.fail(key, "quick_gelu, gelu, gelu_pytorch_tanh, gelu_new, silu or relu");
  return found->second;
}

VisionConfig read_vision_transformer(const JsonFields& vision, std::int64_t default_patch_size,
                                     double default_eps, const std::string& default_activation) {
  VisionConfig out;
  out.hidden_size = vision.integer("hidden_size", 768, 1, kMaxWidth);
  out.intermediate_size = vision.integer("intermediate_size", 3072, 1, kMaxWidth);
  out.num_layers = vision.integer("num_hidden_layers", 12, 1, kMaxLayers);
  out.num_heads = vision.integer("num_attention_heads", 12, 1, kMaxWidth);
  check_head_size(vision, out.hidden_size, out.num_heads);
  out.image_size = vision.integer("image_size", 224, 1, 8192);
  out.patch_size = vision.integer("patch_size", default_patch_size, 1, out.image_size);
  if (vision.integer("num_channels", 3) != 3) vision.fail("num_channels", "3");
  out.layer_norm_eps = vision.number("layer_norm_eps", default_eps);
  if (!(out.layer_norm_eps > 0)) vision.fail("layer_norm_eps", "a number above 0");
  out.activation = read_activation(vision, "hidden_act", default_activation);
  return out;
}

std::int64_t read_feature_layer(const JsonFields& config, const std::string& key,
                                std::int64_t fallback, std::int64_t num_layers) {
  const std::int64_t layer = config.integer(key, fallback, -num_layers - 1, num_layers);
  return layer < 0 ? num_layers + 1 + layer : layer;
}

std::vector<std::int64_t> read_stop_tokens(const CheckpointFiles& files, const JsonFields& config,
                                           std::int64_t vocab_size, std::int64_t fallback) {
  const std::string key = "eos_token_id";
  const auto file = files.find("generation_config.json");
  if (file != files.end()) {
    const nlohmann::json json = JsonFields::parse(file->second, file->first);
    const JsonFields generation(json, file->first);
    if (generation.has(key)) return generation.integers(key, 0, vocab_size - 1);
  }
  if (config.has(key)) return config.integers(key, 0, vocab_size - 1);
  if (config.has("text_config") && config.object("text_config").has(key)) {
    return config.object("text_config").integers(key, 0, vocab_size - 1);
  }
  return {fallback};
}

std::string read_dtype(const JsonFields& fields) {
  const std::string key = fields.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = fields.text(key, "");
  const std::array<const char*, 4> known{"", "float32", "float16", "bfloat16"};
  if (std::find(known.begin(), known.end(), name) == known.end())
    fields.fail(key, "float32, float16 or bfloat16");
  return name;
}

void check_head_size(const JsonFields& fields, std::int64_t hidden_size, std::int64_t num_heads) {
  if (hidden_size % num_heads == 0) return;
  fields.fail("hidden_size", "a multiple of num_attention_heads " + std::to_string(num_heads));
}

}  // namespace libvar
