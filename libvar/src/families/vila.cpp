#include <algorithm>
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
#include "text/added_tokens.h"

namespace libvar {
namespace {

constexpr const char* kEndOfTurn = "<|eot_id|>";  // of Llama-3's chats

/// Layers of the projector, as published and canonical.
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kProjectorLayers{{
    {"mm_projector.layers.1.", "multi_modal_projector.layer_norm."},
    {"mm_projector.layers.2.", "multi_modal_projector.linear_1."},
    {"mm_projector.layers.4.", "multi_modal_projector.linear_2."},
}};

/// A configuration of one of the checkpoint's folders.
nlohmann::json part_config(const CheckpointFiles& files, const std::string& name) {
  const auto file = files.find(name);
  if (file == files.end()) throw ArchiveError(name + " is missing");
  return JsonFields::parse(file->second, name);
}

/// @param llm  llm/config.json; a model_max_length above max_position_embeddings stretches
/// positions
DecoderConfig read_language_model(const JsonFields& llm, const JsonFields& top) {
  DecoderConfig out = read_decoder(llm, llm, llama_defaults());
  const JsonFields& holder = llm.has("model_max_length") ? llm : top;
  const std::int64_t length =
      holder.integer("model_max_length", out.max_positions, 1, kMaxPositions);
  if (length > out.max_positions) {
    const auto ratio = static_cast<double>(length) / static_cast<double>(out.max_positions);
    out.rope_factor = std::ceil(ratio);
    out.max_positions = length;
  }
  return out;
}

/// @param vision  a SiglipVisionConfig with transformers' defaults, or a whole SiglipConfig
VisionConfig read_tower(const JsonFields& vision) {
  if (vision.has("vision_config")) return read_tower(vision.object("vision_config"));
  if (vision.text("model_type", "siglip_vision_model") != "siglip_vision_model")
    vision.fail("model_type", "siglip_vision_model");
  VisionConfig out = read_vision_transformer(vision, 16, 1e-6, "gelu_pytorch_tanh");
  out.tower = TowerKind::kSiglip;
  out.merge_size = 2;
  out.transposed_merge = true;
  return out;
}

void add_tower(TensorSpecs& specs, const VisionConfig& vision) {
  const std::string tower = "vision_tower.vision_model.";
  const std::int64_t hidden = vision.hidden_size, side = vision.image_size / vision.patch_size;
  specs.add(tower + "embeddings.patch_embedding.weight",
            {hidden, 3, vision.patch_size, vision.patch_size});
  specs.add(tower + "embeddings.patch_embedding.bias", {hidden});
  specs.add(tower + "embeddings.position_embedding.weight", {side * side, hidden});
  specs.clip_layers(tower + "encoder.layers.", vision);
}

/// Llama-3's end of a turn, where the tokenizer has it.
std::optional<std::int64_t> end_of_turn(const CheckpointFiles& files) {
  const AddedTokens tokens =
      AddedTokens::read(files, [](std::string_view) -> std::optional<std::int64_t> { return {}; });
  const AddedToken* token = tokens.find(kEndOfTurn);
  if (token == nullptr) return {};
  return token->id;
}

std::vector<std::int64_t> read_llm_stops(const CheckpointFiles& files, const JsonFields& llm,
                                         std::int64_t vocab_size) {
  CheckpointFiles own;
  const auto generation = files.find("llm/generation_config.json");
  if (generation != files.end()) own.emplace("generation_config.json", generation->second);
  return read_stop_tokens(own, llm, vocab_size, 2);
}

/// VILA-1.5: a folder for each part.
class VilaFamily : public Family {
 public:
  std::string name() const override { return "vila"; }

  bool recognises(const nlohmann::json& config) const override {
    const auto type = config.find("model_type");
    return type != config.end() && *type == "llava_llama";
  }

  std::vector<CheckpointPart> parts(const CheckpointFiles&) const override {
    return {{"llm", "language_model.", /*holds_tokenizer=*/true},
            {"vision_tower", "vision_tower.", false},
            {"mm_projector", "mm_projector.", false}};
  }

  ModelConfig read_config(const CheckpointFiles& files) const override {
    const nlohmann::json json = JsonFields::parse(files.at("config.json"), "config.json");
    const nlohmann::json llm_json = part_config(files, "llm/config.json"),
                         vision_json = part_config(files, "vision_tower/config.json"),
                         projector_json = part_config(files, "mm_projector/config.json");
    const JsonFields config(json, "config.json"), llm(llm_json, "llm/config.json"),
        vision(vision_json, "vision_tower/config.json"),
        projector(projector_json, "mm_projector/config.json");
    ModelConfig out;
    out.family = name();
    out.decoder = read_language_model(llm, config);
    out.vision = read_tower(vision);
    out.vision.layers_to_run =
        read_feature_layer(config, "mm_vision_select_layer", -2, out.vision.num_layers);
    if (config.text("mm_vision_select_feature", "cls_patch") != "cls_patch")
      config.fail("mm_vision_select_feature", "cls_patch, all tokens");
    if (projector.text("mm_projector_type") != "mlp_downsample")
      projector.fail("mm_projector_type", "mlp_downsample");
    if (config.text("image_aspect_ratio", "resize") != "resize")
      config.fail("image_aspect_ratio", "resize");
    out.image = read_resize_processor(
        require_processor(files, "vision_tower/preprocessor_config.json").fields(),
        out.vision.image_size);
    out.stop_tokens = read_llm_stops(files, llm, out.decoder.vocab_size);
    const auto turn = end_of_turn(files);
    out.prompt_style = turn ? PromptStyle::kLlama3 : PromptStyle::kVicunaV1;
    const bool stops = std::count(out.stop_tokens.begin(), out.stop_tokens.end(), turn) > 0;
    if (turn && !stops) out.stop_tokens.push_back(*turn);
    out.checkpoint_dtype = read_dtype(llm);
    const std::int64_t side =
        (out.vision.image_size / out.vision.patch_size + out.vision.merge_size - 1) /
        out.vision.merge_size;
    out.visual_tokens = side * side;
    return out;
  }

  std::optional<std::string> canonical_name(const std::string& name) const override {
    if (name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".position_ids") ||
        name.starts_with("vision_tower.vision_model.head.")) {
      return {};
    }
    for (const auto& [published, canonical] : kProjectorLayers) {
      if (name.starts_with(published)) return std::string(canonical).append(name, published.size());
    }
    return name;
  }

  std::string published_name(const std::string& name, const CheckpointFiles&) const override {
    for (const auto& [published, canonical] : kProjectorLayers) {
      if (name.starts_with(canonical)) return std::string(published).append(name, canonical.size());
    }
    return name;
  }

  std::vector<std::string> vision_folders(const CheckpointFiles&) const override { return {}; }

  std::vector<TensorSpec> expected_tensors(const ModelConfig& config) const override {
    TensorSpecs specs;
    specs.decoder(config.decoder_scope, config.decoder);
    add_tower(specs, config.vision);
    specs.merging_projector(config.vision, config.decoder.hidden_size);
    return specs.take();
  }
};

}  // namespace

const Family& vila_family() {
  static const VilaFamily family;
  return family;
}

}  // namespace libvar
