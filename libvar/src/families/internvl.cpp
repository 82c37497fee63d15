#include <algorithm>
#include <nlohmann/json.hpp>

#include "families/config_readers.h"
#include "families/families.h"
#include "families/image_processors.h"
#include "families/internvl_names.h"
#include "families/json_fields.h"
#include "libvar/error.h"
#include "text/added_tokens.h"

namespace libvar {
namespace {

constexpr const char* kImageToken = "<IMG_CONTEXT>";
constexpr const char* kEndOfTurn = "<|im_end|>";

/// transformers' own configuration, in place of InternVLChatModel's.
bool is_native(const JsonFields& config) {
  return config.text("model_type") == "internvl";
}

AddedTokens added_tokens(const CheckpointFiles& files) {
  return AddedTokens::read(files,
                           [](std::string_view) -> std::optional<std::int64_t> { return {}; });
}

std::int64_t added_token(const CheckpointFiles& files, const std::string& content) {
  const AddedTokens tokens = added_tokens(files);
  const AddedToken* token = tokens.find(content);
  if (token == nullptr)
    throw ArchiveError("tokenizer_config.json, added_tokens.json: token " + content +
                       " is missing");
  return token->id;
}

/// One side of a square: N or [N, N].
std::int64_t square(const JsonFields& fields, const std::string& key, std::int64_t fallback) {
  if (!fields.has(key)) return fallback;
  const std::vector<std::int64_t> sides = fields.integers(key, 1, 8192);
  if (sides.empty() || sides.front() != sides.back()) fields.fail(key, "equal sides");
  return sides.front();
}

VisionConfig read_tower(const JsonFields& vision, bool native) {
  VisionConfig out;
  out.tower = TowerKind::kInternVit;
  out.hidden_size = vision.integer("hidden_size", native ? 1024 : 3200, 1, kMaxWidth);
  out.intermediate_size = vision.integer("intermediate_size", native ? 4096 : 12800, 1, kMaxWidth);
  out.num_layers = vision.integer("num_hidden_layers", native ? 24 : 48, 1, kMaxLayers);
  out.num_heads = vision.integer("num_attention_heads", native ? 16 : 25, 1, kMaxWidth);
  check_head_size(vision, out.hidden_size, out.num_heads);
  out.image_size = square(vision, "image_size", native ? 448 : 224);
  out.patch_size = square(vision, "patch_size", 14);
  if (out.patch_size > out.image_size)
    vision.fail("patch_size", "at most image_size " + std::to_string(out.image_size));
  if (vision.integer("num_channels", 3) != 3) vision.fail("num_channels", "3");
  const char* qk_norm = native ? "use_qk_norm" : "qk_normalization";
  if (vision.boolean(qk_norm, !native)) vision.fail(qk_norm, "false");
  if (vision.text("norm_type", native ? "layer_norm" : "rms_norm") != "layer_norm")
    vision.fail("norm_type", "layer_norm");
  if (native && !vision.boolean("use_mean_pooling", true)) vision.fail("use_mean_pooling", "true");
  if (native && !vision.boolean("use_absolute_position_embeddings", true))
    vision.fail("use_absolute_position_embeddings", "true");
  out.qkv_bias = vision.boolean(native ? "attention_bias" : "qkv_bias", false);
  out.layer_norm_eps = vision.number("layer_norm_eps", 1e-6);
  if (!(out.layer_norm_eps > 0)) vision.fail("layer_norm_eps", "a number above 0");
  out.activation = read_activation(vision, "hidden_act", "gelu");
  out.merge_size = 2;
  return out;
}

/// Half of the sides of the patch grid: what pixel shuffle needs.
void check_merging(const JsonFields& config, const JsonFields& vision, const VisionConfig& tower) {
  if (config.number("downsample_ratio", 0.5) != 0.5) config.fail("downsample_ratio", "0.5");
  if (tower.image_size / tower.patch_size % tower.merge_size != 0) {
    vision.fail("image_size", "an even number of patches of " + std::to_string(tower.patch_size) +
                                  " pixels to a side, which downsample_ratio halves");
  }
}

DecoderConfig read_internlm2(const JsonFields& text, const JsonFields& top) {
  const std::vector<std::string> architectures = text.texts("architectures");
  if (architectures.size() != 1 || architectures.front() != "InternLM2ForCausalLM") {
    text.fail("architectures", "InternLM2ForCausalLM, the language model of InternVL2-8B");
  }
  if (text.boolean("bias", true)) text.fail("bias", "false");
  DecoderConfig defaults = llama_defaults();
  defaults.vocab_size = 103168;  // of InternLM2Config
  return read_decoder(text, top, defaults);
}

void read_published(const CheckpointFiles& files, const JsonFields& config, ModelConfig& out) {
  const JsonFields vision = config.object("vision_config");
  out.decoder = read_internlm2(config.object("llm_config"), config);
  out.vision = read_tower(vision, /*native=*/false);
  out.vision.layers_to_run = read_feature_layer(config, "select_layer", -1, out.vision.num_layers);
  check_merging(config, vision, out.vision);
  if (config.text("ps_version", "v1") != "v2") config.fail("ps_version", "v2");
  if (config.text("template", "internlm2-chat") != "internlm2-chat")
    config.fail("template", "internlm2-chat");
  if (square(config, "force_image_size", out.vision.image_size) != out.vision.image_size) {
    config.fail("force_image_size",
                "the vision tower's image_size " + std::to_string(out.vision.image_size));
  }
  out.image = read_tile_processor(require_processor(files).fields(), out.vision.image_size);
  if (config.boolean("dynamic_image_size", false)) {
    out.image.min_tiles = config.integer("min_dynamic_patch", 1, 1, kMostTiles);
    out.image.max_tiles = config.integer("max_dynamic_patch", 6, out.image.min_tiles, kMostTiles);
  }
  out.image.use_thumbnail = config.boolean("use_thumbnail", false);
  out.image_token_id = added_token(files, kImageToken);
  out.stop_tokens = {added_token(files, kEndOfTurn)};
  const std::int64_t end_of_text =
      config.object("llm_config").integer("eos_token_id", 2, 0, out.decoder.vocab_size - 1);
  if (end_of_text != out.stop_tokens.front()) out.stop_tokens.push_back(end_of_text);
}

void read_native(const CheckpointFiles& files, const JsonFields& config, ModelConfig& out) {
  const JsonFields text = config.object("text_config"), vision = config.object("vision_config");
  if (text.text("model_type", "qwen2") != "llama")
    text.fail("model_type", "llama, as InternVL2-8B becomes in this layout");
  out.decoder = read_decoder(text, config, llama_defaults());
  out.decoder.tie_word_embeddings = config.boolean("tie_word_embeddings", true);  // InternVLConfig
  out.vision = read_tower(vision, /*native=*/true);
  out.vision.layers_to_run =
      read_feature_layer(config, "vision_feature_layer", -1, out.vision.num_layers);
  check_merging(config, vision, out.vision);
  if (config.text("vision_feature_select_strategy", "default") != "default")
    config.fail("vision_feature_select_strategy", "default");
  out.vision.projector_activation = read_activation(config, "projector_hidden_act", "gelu");
  out.image = read_tile_processor(require_processor(files).fields(), out.vision.image_size);
  out.image_token_id = config.integer("image_token_id", 151667, 0, out.decoder.vocab_size - 1);
  out.stop_tokens = read_stop_tokens(files, config, out.decoder.vocab_size, 2);
  const AddedTokens tokens = added_tokens(files);
  const AddedToken* end_of_turn = tokens.find(kEndOfTurn);
  if (end_of_turn != nullptr && std::find(out.stop_tokens.begin(), out.stop_tokens.end(),
                                          end_of_turn->id) == out.stop_tokens.end()) {
    out.stop_tokens.push_back(end_of_turn->id);
  }
  if (out.checkpoint_dtype.empty()) out.checkpoint_dtype = read_dtype(text);
}

class InternVlFamily : public Family {
 public:
  std::string name() const override { return "internvl"; }

  bool recognises(const nlohmann::json& config) const override {
    const auto type = config.find("model_type");
    return type != config.end() && (*type == "internvl_chat" || *type == "internvl");
  }

  ModelConfig read_config(const CheckpointFiles& files) const override {
    const nlohmann::json json = JsonFields::parse(files.at("config.json"), "config.json");
    const JsonFields config(json, "config.json");
    ModelConfig out;
    out.family = name();
    out.prompt_style = PromptStyle::kInternLm2Chat;
    out.image_token = kImageToken;
    out.checkpoint_dtype = read_dtype(config);
    if (is_native(config)) {
      read_native(files, config, out);
    } else {
      read_published(files, config, out);
    }
    const std::int64_t side = out.vision.image_size / out.vision.patch_size / out.vision.merge_size;
    out.visual_tokens = side * side;
    return out;
  }

  std::optional<std::string> canonical_name(const std::string& name) const override {
    ModelConfig any;  // sizes play no part in a name
    any.decoder.num_heads = any.decoder.num_kv_heads = any.decoder.head_dim = 1;
    const std::vector<CanonicalTensor> tensors = internvl_canonical_tensors(name, any);
    if (tensors.empty()) return {};
    return tensors.front().name;
  }

  std::vector<CanonicalTensor> canonical_tensors(const std::string& name,
                                                 const ModelConfig& config) const override {
    return internvl_canonical_tensors(name, config);
  }

  std::string published_name(const std::string& canonical,
                             const CheckpointFiles& files) const override {
    const nlohmann::json json = JsonFields::parse(files.at("config.json"), "config.json");
    return is_native(JsonFields(json, "config.json")) ? canonical
                                                      : internvl_published_name(canonical);
  }

  std::vector<std::string> vision_folders(const CheckpointFiles&) const override { return {}; }

  std::vector<TensorSpec> expected_tensors(const ModelConfig& config) const override {
    return internvl_expected_tensors(config);
  }
};

}  // namespace

const Family& internvl_family() {
  static const InternVlFamily family;
  return family;
}

}  // namespace libvar
