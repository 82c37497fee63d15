// Qwen2-VL, InternVL2 and VILA: configurations, names, and what is refused.

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>

#include <nlohmann/json.hpp>

#include "families/families.h"
#include "families/family.h"
#include "libvar/error.h"

#include "catch.h"

namespace libvar {
namespace {

using Catch::Matchers::Contains;
using nlohmann::json;

json qwen2_vl_7b() {
  return json::parse(R"({"model_type": "qwen2_vl", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "max_position_embeddings": 32768, "use_sliding_window": false, "sliding_window": 32768,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "eos_token_id": 151645,
    "image_token_id": 151655,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4,
      "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
      "in_chans": 3}})");
}

json qwen2_vl_processor() {
  return json::parse(R"({"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
    "temporal_patch_size": 2, "merge_size": 2})");
}

json internvl2_8b() {
  return json::parse(R"({"model_type": "internvl_chat", "downsample_ratio": 0.5,
    "dynamic_image_size": true, "force_image_size": 448, "min_dynamic_patch": 1,
    "max_dynamic_patch": 12, "ps_version": "v2", "select_layer": -1, "template": "internlm2-chat",
    "use_thumbnail": true, "torch_dtype": "bfloat16",
    "llm_config": {"architectures": ["InternLM2ForCausalLM"], "hidden_size": 4096,
      "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
      "num_key_value_heads": 8, "vocab_size": 92553, "rms_norm_eps": 1e-5, "rope_theta": 1000000,
      "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 32768,
      "bias": false, "eos_token_id": 2, "tie_word_embeddings": false},
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
      "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "hidden_act": "gelu",
      "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "qkv_bias": true,
      "qk_normalization": false}})");
}

CheckpointFiles qwen_files(const json& config, const json& processor = qwen2_vl_processor()) {
  return {{"config.json", config.dump()}, {"preprocessor_config.json", processor.dump()}};
}

CheckpointFiles internvl_files(const json& config) {
  return {{"config.json", config.dump()},
          {"preprocessor_config.json", R"({"crop_size": 448, "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 448})"},
          {"added_tokens.json", R"({"<IMG_CONTEXT>": 92546, "<|im_end|>": 92542})"}};
}

ModelConfig read(const CheckpointFiles& files) {
  return find_family(files).read_config(files);
}

std::string error_of(const CheckpointFiles& files) {
  try {
    read(files);
  } catch (const ArchiveError& error) {
    return error.what();
  }
  return "accepted";
}

json with(json config, const std::string& pointer, const json& value) {
  config[json::json_pointer(pointer)] = value;
  return config;
}

std::int64_t parameters_of(const CheckpointFiles& files) {
  std::int64_t parameters = 0;
  for (const TensorSpec& spec : find_family(files).expected_tensors(read(files))) {
    std::int64_t numel = 1;
    for (const std::int64_t size : spec.shape) numel *= size;
    parameters += numel;
  }
  return parameters;
}

TEST_CASE("the published Qwen2-VL-7B is read as it is", "[families]") {
  const ModelConfig config = read(qwen_files(qwen2_vl_7b()));
  CHECK(config.family == "qwen2_vl");
  CHECK(config.decoder.rope_sections == std::vector<std::int64_t>{16, 24, 24});
  CHECK((config.decoder.qkv_bias && !config.decoder.output_bias && config.decoder.head_dim == 128));
  CHECK((config.vision.intermediate_size == 5120 && config.vision.merge_size == 2));
  CHECK((config.image.mode == ImageMode::kDynamic && config.image.max_pixels == 12845056));
  CHECK(config.prompt_style == PromptStyle::kQwen2Vl);
  CHECK((config.stop_tokens == std::vector<std::int64_t>{151645} && config.visual_tokens == 0));
  CHECK(known_sink_dimensions(config.decoder)->dims == std::vector<std::int64_t>{458, 2570});
  CHECK(parameters_of(qwen_files(qwen2_vl_7b())) == 8291375616);  // of the published checkpoint
}

TEST_CASE("transformers' nested spelling of Qwen2-VL means the same", "[families]") {
  json text = qwen2_vl_7b();
  const json vision = text.at("vision_config");
  for (const char* key :
       {"vision_config", "model_type", "image_token_id", "rope_scaling", "rope_theta"})
    text.erase(key);
  text["rope_parameters"] = {
      {"rope_type", "default"}, {"rope_theta", 1e6}, {"mrope_section", {16, 24, 24}}};
  const json nested{{"model_type", "qwen2_vl"},
                    {"text_config", text},
                    {"vision_config", vision},
                    {"image_token_id", 151655},
                    {"tie_word_embeddings", true}};
  const ModelConfig config = read(qwen_files(
      nested, json::parse(R"({"size": {"shortest_edge": 4000, "longest_edge": 9000}})")));
  CHECK((config.decoder.rope_theta == 1e6 && config.decoder.tie_word_embeddings));
  CHECK((config.image.min_pixels == 4000 && config.image.max_pixels == 9000));
}

TEST_CASE("a Qwen2-VL that is not understood is refused by key and value", "[families]") {
  const auto error_with = [](const std::string& pointer, const json& value) {
    return error_of(qwen_files(with(qwen2_vl_7b(), pointer, value)));
  };
  CHECK_THAT(error_of({{"config.json", qwen2_vl_7b().dump()}}),
             Contains("preprocessor_config.json is missing"));
  CHECK_THAT(error_with("/rope_scaling/mrope_section", {16, 24, 23}),
             Contains("mrope_section: expected three numbers that add up to 64"));
  CHECK_THAT(error_with("/rope_scaling", nullptr), Contains("rope_scaling: expected"));
  CHECK_THAT(error_with("/rope_scaling/type", "yarn"), Contains("type: expected mrope or default"));
  CHECK_THAT(error_with("/vision_config/hidden_size", 1280),
             Contains("expected the decoder's hidden_size 3584"));
  CHECK_THAT(error_with("/vision_config/embed_dim", 1288), Contains("embed_dim"));
  CHECK_THAT(error_with("/vision_config/mlp_ratio", 0.0001), Contains("mlp_ratio"));
  CHECK_THAT(error_with("/use_sliding_window", true), Contains("use_sliding_window"));
  const auto error_of_processor = [](const json& processor) {
    return error_of(qwen_files(qwen2_vl_7b(), processor));
  };
  CHECK_THAT(error_of_processor(with(qwen2_vl_processor(), "/merge_size", 3)),
             Contains("merge_size: expected 2, as config.json says, found 3"));
  CHECK_THAT(error_of_processor(with(qwen2_vl_processor(), "/max_pixels", 3135)),
             Contains("max_pixels: expected at least min_pixels 3136"));
}

TEST_CASE("the published InternVL2-8B is read as it is", "[families]") {
  const ModelConfig config = read(internvl_files(internvl2_8b()));
  CHECK(config.family == "internvl");
  CHECK((config.visual_tokens == 256 && config.image_token_id == 92546));
  CHECK((config.image.mode == ImageMode::kTiles && config.image.max_tiles == 12));
  CHECK((config.image.use_thumbnail && config.vision.layers_to_run == 24));
  CHECK(config.stop_tokens == std::vector<std::int64_t>{92542, 2});
  CHECK(config.decoder.rope_factor == 1.0);
  CHECK_FALSE(known_sink_dimensions(config.decoder));
}

TEST_CASE("fused projections of InternVL2 come apart in the published order", "[families]") {
  const Family& family = find_family(internvl_files(internvl2_8b()));
  ModelConfig config;
  config.decoder.num_heads = 4;
  config.decoder.num_kv_heads = 2;
  config.decoder.head_dim = 1;
  // Two key heads, each with two queries, a key and a value.
  const auto parts =
      family.canonical_tensors("language_model.model.layers.3.attention.wqkv.weight", config);
  REQUIRE(parts.size() == 3);
  const at::Tensor fused = at::arange(8, at::kFloat).unsqueeze(1);
  const std::vector<std::vector<float>> expected{{0, 1, 4, 5}, {2, 6}, {3, 7}};
  const char* names[] = {"q_proj", "k_proj", "v_proj"};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(parts[i].name ==
          std::string("language_model.model.layers.3.self_attn.") + names[i] + ".weight");
    const at::Tensor rows = parts[i].part(fused);
    REQUIRE(rows.size(0) == static_cast<std::int64_t>(expected[i].size()));
    for (std::size_t row = 0; row < expected[i].size(); ++row)
      CHECK(rows[static_cast<std::int64_t>(row)][0].item<float>() == expected[i][row]);
  }
  const auto thirds =
      family.canonical_tensors("vision_model.encoder.layers.0.attn.qkv.bias", config);
  REQUIRE(thirds.size() == 3);
  CHECK(thirds[1].name == "vision_tower.encoder.layer.0.attention.k_proj.bias");
  CHECK(at::equal(thirds[1].part(at::arange(6)), at::arange(2, 4)));
}

TEST_CASE("an InternVL2 that is not understood is refused by key and value", "[families]") {
  const auto error_with = [](const std::string& pointer, const json& value) {
    return error_of(internvl_files(with(internvl2_8b(), pointer, value)));
  };
  CheckpointFiles files = internvl_files(internvl2_8b());
  files.erase("preprocessor_config.json");
  CHECK_THAT(error_of(files), Contains("preprocessor_config.json is missing"));
  files = internvl_files(internvl2_8b());
  files.erase("added_tokens.json");
  CHECK_THAT(error_of(files), Contains("token <IMG_CONTEXT> is missing"));
  CHECK_THAT(error_with("/max_dynamic_patch", 0),
             Contains("max_dynamic_patch: expected an integer"));
  CHECK_THAT(error_with("/vision_config/image_size", 434), Contains("even number of patches"));
  CHECK_THAT(error_with("/ps_version", "v1"), Contains("ps_version: expected v2"));
  CHECK_THAT(error_with("/downsample_ratio", 0.25), Contains("downsample_ratio: expected 0.5"));
  CHECK_THAT(error_with("/llm_config/architectures", {"Phi3ForCausalLM"}),
             Contains("expected InternLM2ForCausalLM"));
  CHECK_THAT(error_with("/llm_config/rope_scaling/type", "yarn"), Contains("rope_scaling: type"));
  CHECK_THAT(error_with("/llm_config/bias", true), Contains("bias: expected false"));
  CHECK_THAT(error_with("/vision_config/qk_normalization", true), Contains("qk_normalization"));
  CHECK_THAT(error_with("/template", "phi3-chat"), Contains("template: expected internlm2-chat"));
}

CheckpointFiles vila_files(const std::string& file = "", const json& changed = {}) {
  CheckpointFiles files{
      {"config.json", R"({"model_type": "llava_llama", "image_aspect_ratio": "resize",
        "mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -2})"},
      {"llm/config.json", R"({"hidden_size": 2560, "intermediate_size": 6912,
        "num_hidden_layers": 32, "num_attention_heads": 20, "vocab_size": 32000,
        "max_position_embeddings": 4096, "model_max_length": 9000})"},
      {"vision_tower/config.json", R"({"hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14})"},
      {"vision_tower/preprocessor_config.json", R"({"size": {"height": 384, "width": 384}})"},
      {"mm_projector/config.json", R"({"mm_projector_type": "mlp_downsample"})"}};
  if (!file.empty()) {
    json value = json::parse(files.at(file));
    value.update(changed);
    files[file] = value.dump();
  }
  return files;
}

TEST_CASE("VILA-1.5-3b is read from its folders", "[families]") {
  const ModelConfig config = read(vila_files());
  CHECK(config.family == "vila");
  CHECK((config.visual_tokens == 196 && config.vision.layers_to_run == 26));
  CHECK((config.decoder.rope_factor == 3.0 && config.decoder.max_positions == 9000));
  CHECK((config.image.mode == ImageMode::kResize && config.image.resize_height == 384));
  CHECK((config.prompt_style == PromptStyle::kVicunaV1 && !config.image_token_id));
  CheckpointFiles llama3 = vila_files();
  llama3["added_tokens.json"] = R"({"<|eot_id|>": 128009})";
  CHECK(read(llama3).prompt_style == PromptStyle::kLlama3);
  CHECK(read(llama3).stop_tokens == std::vector<std::int64_t>{2, 128009});
}

TEST_CASE("VILA v1 is a LLaVA in the original layout", "[families]") {
  const json v1{{"model_type", "llava_llama"}, {"num_hidden_layers", 32}, {"mm_vision_tower", "x"}};
  CHECK(find_family({{"config.json", v1.dump()}}).name() == "llava");
}

TEST_CASE("a VILA-1.5 that is not understood is refused by file and key", "[families]") {
  for (const char* part : {"llm/config.json", "vision_tower/config.json",
                           "mm_projector/config.json", "vision_tower/preprocessor_config.json"}) {
    CheckpointFiles files = vila_files();
    files.erase(part);
    CHECK(error_of(files) == std::string(part) + " is missing");
  }
  CHECK_THAT(error_of(vila_files("mm_projector/config.json", {{"mm_projector_type", "linear"}})),
             Contains("mm_projector_type: expected mlp_downsample, found \"linear\""));
  CHECK_THAT(error_of(vila_files("config.json", {{"image_aspect_ratio", "pad"}})),
             Contains("image_aspect_ratio: expected resize"));
  CHECK_THAT(error_of(vila_files("vision_tower/config.json", {{"image_size", 336}})),
             Contains("expected the vision tower's image_size 336"));
  CHECK_THAT(error_of(vila_files("llm/config.json", {{"rope_scaling", {{"type", "yarn"}}}})),
             Contains("llm/config.json: rope_scaling: type: expected default, linear or dynamic"));
}

}  // namespace
}  // namespace libvar
