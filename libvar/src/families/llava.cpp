#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "families/config_readers.h"
#include "families/families.h"
#include "families/image_processors.h"
#include "families/json_fields.h"
#include "families/llava_names.h"
#include "libvar/error.h"

namespace libvar {
namespace {

/// The original layout keeps the decoder's values at the top and names its tower; Hugging Face's
/// has a config for each part.
bool is_original(const JsonFields& config) {
  return !config.has("text_config") && config.has("mm_vision_tower");
}

/// Original checkpoints name the published tower, which may then be without a config of its own.
bool names_clip_336(const JsonFields& config) {
  const std::string tower = config.text("mm_vision_tower");
  const std::string known = "clip-vit-large-patch14-336";
  return tower.size() >= known.size() &&
         tower.compare(tower.size() - known.size(), known.size(), known) == 0;
}

/// @param vision  a CLIPVisionConfig with transformers' defaults, or a whole CLIPConfig that holds
/// one
VisionConfig read_tower(const JsonFields& vision) {
  if (vision.has("vision_config")) return read_tower(vision.object("vision_config"));
  const std::string type = vision.text("model_type", "clip_vision_model");
  if (type != "clip_vision_model" && type != "clip") vision.fail("model_type", "clip_vision_model");
  return read_vision_transformer(vision, 32, 1e-5, "quick_gelu");
}

VisionConfig clip_336_tower() {
  VisionConfig out;
  out.hidden_size = 1024;
  out.intermediate_size = 4096;
  out.num_layers = 24;
  out.num_heads = 16;
  out.image_size = 336;
  out.patch_size = 14;
  return out;
}

void read_hf(const CheckpointFiles& files, const JsonFields& config, ModelConfig& out) {
  const JsonFields text = config.object("text_config");
  if (text.text("model_type", "llama") != "llama") text.fail("model_type", "llama");
  out.decoder = read_decoder(text, config, llama_defaults());
  out.vision = read_tower(config.object("vision_config"));
  out.vision.layers_to_run =
      read_feature_layer(config, "vision_feature_layer", -2, out.vision.num_layers);
  const std::string strategy = config.text("vision_feature_select_strategy", "default");
  if (strategy != "default" && strategy != "full")
    config.fail("vision_feature_select_strategy", "default or full");
  out.vision.drop_class_token = strategy == "default";
  out.vision.projector_activation = read_activation(config, "projector_hidden_act", "gelu");
  out.vision.projector_bias = config.boolean("multimodal_projector_bias", true);
  const std::string key = config.has("image_token_id") ? "image_token_id" : "image_token_index";
  out.image_token_id = config.integer(key, 32000, 0, out.decoder.vocab_size - 1);
  out.checkpoint_dtype = read_dtype(config);
  if (out.checkpoint_dtype.empty()) out.checkpoint_dtype = read_dtype(text);
  out.prompt_style = PromptStyle::kLlavaHf;
  out.image = read_clip_processor(require_processor(files).fields(), out.vision.image_size);
}

void read_original(const CheckpointFiles& files, const JsonFields& config, ModelConfig& out) {
  out.decoder = read_decoder(config, config, llama_defaults());
  const auto tower = files.find(kVisionConfigFile);
  if (tower != files.end()) {
    const nlohmann::json json = JsonFields::parse(tower->second, tower->first);
    out.vision = read_tower(JsonFields(json, tower->first));
  } else if (names_clip_336(config)) {
    out.vision = clip_336_tower();
  } else {
    config.fail("mm_vision_tower",
                "a folder with the CLIP tower and its config.json beside the checkpoint, or "
                "openai/clip-vit-large-patch14-336");
  }
  out.vision.layers_to_run =
      read_feature_layer(config, "mm_vision_select_layer", -2, out.vision.num_layers);
  const std::string feature = config.text("mm_vision_select_feature", "patch");
  if (feature != "patch" && feature != "cls_patch")
    config.fail("mm_vision_select_feature", "patch or cls_patch");
  out.vision.drop_class_token = feature == "patch";
  if (config.text("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu")
    config.fail("mm_projector_type", "mlp2x_gelu");
  if (config.boolean("mm_use_im_start_end", false)) config.fail("mm_use_im_start_end", "false");
  out.checkpoint_dtype = read_dtype(config);
  out.prompt_style = PromptStyle::kVicunaV1;
  out.image = names_clip_336(config) && !find_processor(files)
                  ? clip_336_processor()
                  : read_clip_processor(require_processor(files).fields(), out.vision.image_size);
  const std::string ratio = config.text("image_aspect_ratio", "square");
  if (ratio != "pad" && ratio != "square") config.fail("image_aspect_ratio", "pad or square");
  out.image.mode = ratio == "pad" ? ImageMode::kPad : ImageMode::kCrop;
}

class LlavaFamily : public Family {
 public:
  std::string name() const override { return "llava"; }

  bool recognises(const nlohmann::json& config) const override {
    const auto type = config.find("model_type");
    if (type == config.end()) return false;
    // VILA v1 is a LLaVA in the original layout; VILA-1.5 keeps the decoder's sizes in a folder.
    return *type == "llava" || (*type == "llava_llama" && config.contains("num_hidden_layers"));
  }

  ModelConfig read_config(const CheckpointFiles& files) const override {
    const auto file = files.find("config.json");
    if (file == files.end()) throw ArchiveError("config.json is missing");
    const nlohmann::json json = JsonFields::parse(file->second, file->first);
    const JsonFields config(json, file->first);
    ModelConfig out;
    out.family = name();
    if (is_original(config)) {
      read_original(files, config, out);
    } else if (config.has("text_config")) {
      read_hf(files, config, out);
    } else {
      throw ArchiveError(
          "config.json: expected text_config and vision_config (the Hugging Face layout) or "
          "mm_vision_tower (the original "
          "LLaVA layout), found none of them");
    }
    out.stop_tokens = read_stop_tokens(files, config, out.decoder.vocab_size, 2);
    const std::int64_t side = out.vision.image_size / out.vision.patch_size;
    out.visual_tokens = side * side + (out.vision.drop_class_token ? 0 : 1);
    return out;
  }

  std::optional<std::string> canonical_name(const std::string& name) const override {
    return llava_canonical_name(name);
  }

  std::vector<std::string> vision_folders(const CheckpointFiles& files) const override {
    const nlohmann::json json = JsonFields::parse(files.at("config.json"), "config.json");
    const JsonFields config(json, "config.json");
    if (!is_original(config)) return {};
    return {"vision_tower", config.text("mm_vision_tower")};
  }

  std::vector<TensorSpec> expected_tensors(const ModelConfig& config) const override {
    return llava_expected_tensors(config);
  }
};

}  // namespace

const Family& llava_family() {
  static const LlavaFamily family;
  return family;
}

}  // namespace libvar
