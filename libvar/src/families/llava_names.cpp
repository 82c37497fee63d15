#include "families/llava_names.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <string_view>
#include <utility>

#include "families/tensor_specs.h"

namespace libvar {
namespace {

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

bool ends_with(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

constexpr std::string_view kText = "language_model.model.";
constexpr std::string_view kHead = "language_model.lm_head.";
constexpr std::string_view kVision = "vision_tower.vision_model.";
constexpr std::string_view kProjector = "multi_modal_projector.";

/// What stands before the same rest in the layouts, first match wins; models.md 0.1 and 1.2.
constexpr std::array<std::pair<std::string_view, std::string_view>, 14> kPrefixes{{
    // A, C
    {"language_model.model.", kText},
    {"language_model.lm_head.", kHead},
    {"vision_tower.vision_model.", kVision},
    {"vision_tower.", kVision},
    {"multi_modal_projector.", kProjector},
    // B
    {"model.language_model.", kText},
    {"model.vision_tower.vision_tower.vision_model.",
     kVision},  // original, a fine-tuned tower inside
    {"model.vision_tower.vision_model.", kVision},
    {"model.vision_tower.", kVision},
    {"model.multi_modal_projector.", kProjector},
    // original
    {"model.mm_projector.0.", "multi_modal_projector.linear_1."},
    {"model.mm_projector.2.", "multi_modal_projector.linear_2."},
    {"model.", kText},
    {"lm_head.", kHead},
}};

/// Parts of a whole CLIP checkpoint beside its vision model.
constexpr std::array<std::string_view, 6> kClipText{
    "vision_tower.text_model.",        "vision_tower.logit_scale",
    "vision_tower.visual_projection.", "vision_tower.text_projection.",
    "vision_tower.vision_projection.", "vision_tower.text_embeds"};

/// The layers that are run; what lies above the feature layer is not needed.
void add_tower(TensorSpecs& specs, const VisionConfig& vision) {
  const std::string tower(kVision);
  const std::int64_t hidden = vision.hidden_size;
  const std::int64_t side = vision.image_size / vision.patch_size;
  specs.add(tower + "embeddings.class_embedding", {hidden});
  specs.add(tower + "embeddings.patch_embedding.weight",
            {hidden, 3, vision.patch_size, vision.patch_size});
  specs.add(tower + "embeddings.position_embedding.weight", {side * side + 1, hidden});
  specs.layer_norm(tower + "pre_layrnorm", hidden);  // sic
  specs.clip_layers(tower + "encoder.layers.", vision);
}

}  // namespace

std::optional<std::string> llava_canonical_name(const std::string& name) {
  if (ends_with(name, ".rotary_emb.inv_freq") || ends_with(name, ".position_ids")) return {};
  for (const std::string_view part : kClipText) {
    if (starts_with(name, part)) return {};
  }
  for (const auto& [from, to] : kPrefixes) {
    if (starts_with(name, from)) return std::string(to).append(name, from.size());
  }
  return name;
}

std::vector<TensorSpec> llava_expected_tensors(const ModelConfig& config) {
  TensorSpecs specs;
  specs.decoder(config.decoder_scope, config.decoder);
  add_tower(specs, config.vision);
  const std::string projector(kProjector);
  const std::int64_t hidden = config.decoder.hidden_size;
  specs.linear(projector + "linear_1", hidden, config.vision.hidden_size,
               config.vision.projector_bias);
  specs.linear(projector + "linear_2", hidden, hidden, config.vision.projector_bias);
  return specs.take();
}

}  // namespace libvar
