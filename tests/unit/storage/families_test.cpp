#include "families/families.h"
#include "catch.h"
#include "golden_fixture.h"
#include "libvar/error.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;
using nlohmann::json;

namespace {

using Dims = std::vector<std::int64_t>;

CheckpointFiles files_of(const json& config,
                         const json& preprocessor = published_preprocessor_config()) {
  return {{"config.json", config.dump()}, {"preprocessor_config.json", preprocessor.dump()}};
}

ModelConfig read(const CheckpointFiles& files) {
  return find_family(files).read_config(files);
}

std::string error_of(const CheckpointFiles& files) {
  return message_of<ArchiveError>([&] { read(files); });
}

/// The error where one value of the published 7B files is another; null removes it.
std::string error_with(const std::string& pointer, const json& value, bool preprocessor = false) {
  json config = published_7b_config(), images = published_preprocessor_config();
  (preprocessor ? images : config)[json::json_pointer(pointer)] = value;
  return error_of(files_of(config, images));
}

/// The original 7B as liuhaotian publishes it (models.md 1.1).
json original_7b_config() {
  return json::parse(
      R"({"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": null,
    "vocab_size": 32000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": false,
    "mm_use_im_start_end": false, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "tie_word_embeddings": false, "torch_dtype": "float16"})");
}

}  // namespace

TEST_CASE("the published LLaVA-1.5-7B config gives the published model", "[families]") {
  const CheckpointFiles files = files_of(published_7b_config());
  const ModelConfig config = read(files);
  REQUIRE(config.family == "llava");
  const DecoderConfig& decoder = config.decoder;
  REQUIRE(Dims{decoder.hidden_size, decoder.intermediate_size, decoder.num_layers,
               decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, decoder.vocab_size,
               decoder.max_positions} == Dims{4096, 11008, 32, 32, 32, 128, 32064, 4096});
  REQUIRE((decoder.rms_norm_eps == 1e-5 && decoder.rope_theta == 10000.0));
  REQUIRE_FALSE(
      (decoder.qkv_bias || decoder.output_bias || decoder.mlp_bias || decoder.tie_word_embeddings));
  const VisionConfig& vision = config.vision;
  REQUIRE(Dims{vision.hidden_size, vision.intermediate_size, vision.num_layers, vision.num_heads,
               vision.image_size, vision.patch_size,
               vision.layers_to_run} == Dims{1024, 4096, 24, 16, 336, 14, 23});
  REQUIRE((vision.drop_class_token && vision.projector_bias && vision.layer_norm_eps == 1e-5));
  REQUIRE((vision.activation == Activation::kQuickGelu &&
           vision.projector_activation == Activation::kGelu));
  REQUIRE(config.image.mode == ImageMode::kCrop);
  REQUIRE(Dims{config.image.shortest_edge, config.image.crop_height, config.image.crop_width} ==
          Dims{336, 336, 336});
  REQUIRE(config.image.rescale_factor == 0.00392156862745098);
  REQUIRE(config.image.mean == std::array<double, 3>{0.48145466, 0.4578275, 0.40821073});
  REQUIRE(config.image.std == std::array<double, 3>{0.26862954, 0.26130258, 0.27577711});
  REQUIRE((config.prompt_style == PromptStyle::kLlavaHf && config.image_token_id == 32000 &&
           config.visual_tokens == 576));
  REQUIRE((config.stop_tokens == Dims{2} && config.checkpoint_dtype == "float16"));

  std::int64_t parameters = 0;
  const auto tensors = find_family(files).expected_tensors(config);
  for (const TensorSpec& spec : tensors) {
    std::int64_t numel = 1;
    for (const std::int64_t size : spec.shape) numel *= size;
    parameters += numel;
  }
  // The published index: 14126854144 bytes of float16, with the last CLIP layer and post_layernorm,
  // which are not run.
  const std::int64_t layer = 4 * (1024 * 1024 + 1024) + 2 * 4096 * 1024 + 4096 + 1024 + 4 * 1024;
  REQUIRE(2 * (parameters + layer + 2 * 1024) == 14126854144);
}

TEST_CASE("sink dimensions are known for the two published language models only", "[families]") {
  json config = published_7b_config();
  const auto dims = [&]() -> std::optional<SinkDimensions> {
    const CheckpointFiles files = files_of(config);
    return known_sink_dimensions(read(files).decoder);
  };
  REQUIRE(dims()->dims == Dims{1415, 2533});
  CHECK_THAT(dims()->source, Contains("Vicuna-7B"));
  config["text_config"]["vocab_size"] = 128256;
  REQUIRE_FALSE(dims());
  config["text_config"]["vocab_size"] = 32064;
  config["text_config"].update({{"hidden_size", 5120},
                                {"intermediate_size", 13824},
                                {"num_hidden_layers", 40},
                                {"num_attention_heads", 40},
                                {"num_key_value_heads", 40}});
  REQUIRE(dims()->dims == Dims{2100, 4743});
  config["text_config"]["num_hidden_layers"] = 4;
  REQUIRE_FALSE(dims());
}

TEST_CASE("spellings of transformers 5 read like the published ones", "[families]") {
  json config = published_7b_config();
  config.erase("image_token_index");
  config.erase("torch_dtype");
  config["image_token_id"] = 31999;
  config["dtype"] = "bfloat16";
  config["text_config"]["rope_parameters"] = {{"rope_theta", 500000.0}, {"rope_type", "default"}};
  config["text_config"]["head_dim"] = 64;
  config["text_config"]["eos_token_id"] = {2, 7};
  config["multimodal_projector_bias"] = false;
  config["tie_word_embeddings"] = true;
  config["vision_feature_layer"] = -1;
  config["vision_feature_select_strategy"] = "full";
  CheckpointFiles files = {
      {"config.json", config.dump()},
      {"processor_config.json", json{{"image_processor", published_preprocessor_config()}}.dump()}};
  const ModelConfig read_config = read(files);
  REQUIRE((read_config.image_token_id == 31999 && read_config.checkpoint_dtype == "bfloat16"));
  REQUIRE((read_config.decoder.rope_theta == 500000.0 && read_config.decoder.head_dim == 64));
  REQUIRE((read_config.stop_tokens == Dims{2, 7} && read_config.decoder.tie_word_embeddings));
  REQUIRE_FALSE(read_config.vision.projector_bias);
  REQUIRE((read_config.vision.layers_to_run == 24 && !read_config.vision.drop_class_token &&
           read_config.visual_tokens == 577));
  for (const TensorSpec& spec : find_family(files).expected_tensors(read_config)) {
    CHECK(spec.name != "language_model.lm_head.weight");
    CHECK(spec.name != "multi_modal_projector.linear_1.bias");
  }
  files["generation_config.json"] = R"({"eos_token_id": [3, 4]})";
  REQUIRE(read(files).stop_tokens == Dims{3, 4});
  files["preprocessor_config.json"] = R"({"size": 336, "crop_size": 336})";
  REQUIRE((read(files).image.shortest_edge == 336 && read(files).image.crop_width == 336));
}

TEST_CASE("missing keys take the defaults of transformers", "[families]") {
  json config = published_7b_config();
  config["text_config"] = {{"model_type", "llama"}};
  config["vision_config"] = {{"model_type", "clip_vision_model"}};
  config["image_token_index"] = 31999;
  const ModelConfig read_config = read(files_of(config, json::parse(R"({"size": 224})")));
  REQUIRE((read_config.decoder.rms_norm_eps == 1e-6 && read_config.decoder.max_positions == 2048));
  REQUIRE(read_config.decoder.vocab_size == 32000);
  const VisionConfig& vision = read_config.vision;
  REQUIRE(Dims{vision.hidden_size, vision.intermediate_size, vision.num_layers, vision.num_heads,
               vision.image_size, vision.patch_size,
               vision.layers_to_run} == Dims{768, 3072, 12, 12, 224, 32, 11});
}

TEST_CASE("the original LLaVA config pads pictures and speaks vicuna_v1", "[families]") {
  json original = original_7b_config();
  CheckpointFiles files{{"config.json", original.dump()}};
  ModelConfig config = read(files);
  REQUIRE((config.image.mode == ImageMode::kPad && config.prompt_style == PromptStyle::kVicunaV1));
  REQUIRE((!config.image_token_id && config.decoder.vocab_size == 32000 &&
           config.decoder.hidden_size == 4096));
  REQUIRE((config.vision.num_layers == 24 && config.vision.layers_to_run == 23 &&
           config.visual_tokens == 576));
  REQUIRE((config.image.shortest_edge == 336 && config.checkpoint_dtype == "float16" &&
           config.stop_tokens == Dims{2}));
  REQUIRE(known_sink_dimensions(config.decoder)->dims == Dims{1415, 2533});
  REQUIRE(find_family(files).vision_folders(files) ==
          std::vector<std::string>{"vision_tower", "openai/clip-vit-large-patch14-336"});

  original["mm_vision_tower"] = "my/tower";
  files["config.json"] = original.dump();
  CHECK_THAT(error_of(files),
             Contains("config.json: mm_vision_tower: expected a folder with the CLIP tower"));
  files[kVisionConfigFile] =
      R"({"vision_config": {"hidden_size": 64, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}})";
  CHECK_THAT(error_of(files), Contains("preprocessor_config.json is missing"));
  files["preprocessor_config.json"] = R"({"size": 28, "crop_size": 28})";
  config = read(files);
  REQUIRE((config.vision.hidden_size == 64 && config.visual_tokens == 4 &&
           config.image.mode == ImageMode::kPad));
  original["image_aspect_ratio"] = "square";
  files["config.json"] = original.dump();
  REQUIRE(read(files).image.mode == ImageMode::kCrop);
  for (const auto& [key, value, text] : std::vector<std::tuple<std::string, json, std::string>>{
           {"image_aspect_ratio", "anyres", "expected pad or square, found \"anyres\""},
           {"mm_projector_type", "linear", "expected mlp2x_gelu, found \"linear\""},
           {"mm_use_im_start_end", true, "expected false, found true"},
           {"mm_vision_select_feature", "cls", "expected patch or cls_patch"},
           {"mm_vision_select_layer", -26, "expected an integer in [-13, 12]"}}) {
    json changed = original;
    changed[key] = value;
    files["config.json"] = changed.dump();
    CHECK_THAT(error_of(files), Contains("config.json: " + key + ": " + text));
  }
}

TEST_CASE("a config that is not understood is refused by file, key and value", "[families]") {
  CHECK_THAT(error_of({}), Contains("config.json is missing"));
  CHECK_THAT(error_of({{"config.json", "{"}}), Contains("config.json: is no JSON"));
  CHECK_THAT(error_of({{"config.json", std::string(500000, '[')}}),
             Contains("config.json: is nested too deep"));
  CHECK_THAT(
      error_with("/model_type", "qwen9_vl"),
      Contains("config.json: model_type: expected one of the supported families (llava, vila, "
               "qwen2_vl, internvl), found \"qwen9_vl\""));
  CHECK_THAT(error_with("/model_type", nullptr),
             Contains("supported families (llava, vila, qwen2_vl, internvl), found nothing"));
  CHECK_THAT(error_with("/text_config", nullptr),
             Contains("expected text_config and vision_config"));
  CHECK_THAT(error_with("/vision_config", nullptr),
             Contains("config.json: vision_config is missing"));
  CHECK_THAT(error_with("/vision_config", 3),
             Contains("vision_config: expected an object in braces, found 3"));
  CHECK_THAT(error_with("/text_config/model_type", "qwen2"),
             Contains("text_config: model_type: expected llama, found \"qwen2\""));
  CHECK_THAT(error_with("/text_config/hidden_act", "gelu"),
             Contains("text_config: hidden_act: expected silu"));
  CHECK_THAT(error_with("/text_config/hidden_size", "4096"),
             Contains("hidden_size: expected an integer") && Contains("found \"4096\""));
  CHECK_THAT(error_with("/text_config/hidden_size", -1), Contains("found -1"));
  CHECK_THAT(error_with("/text_config/hidden_size", 4097),
             Contains("expected an even multiple of num_attention_heads 32"));
  CHECK_THAT(error_with("/text_config/num_key_value_heads", 5),
             Contains("expected a divisor of num_attention_heads 32"));
  CHECK_THAT(error_with("/text_config/num_hidden_layers", 1.5),
             Contains("num_hidden_layers: expected an integer"));
  CHECK_THAT(error_with("/text_config/rope_scaling",
                        json{{"type", "mrope"}, {"mrope_section", {1, 2, 3}}}),
             Contains("text_config: rope_scaling: type: expected default, linear or dynamic, found "
                      "\"mrope\""));
  CHECK_THAT(error_with("/text_config/rope_scaling", json{{"type", "linear"}, {"factor", 0.5}}),
             Contains("rope_scaling: factor: expected a number of at least 1, found 0.5"));
  CHECK_THAT(error_with("/text_config/rope_parameters", json{{"rope_type", "llama3"}}),
             Contains("rope_type: expected default"));
  CHECK_THAT(error_with("/text_config/rms_norm_eps", 0),
             Contains("rms_norm_eps: expected a number above 0, found 0"));
  CHECK_THAT(error_with("/vision_config/model_type", "siglip_vision_model"),
             Contains("expected clip_vision_model"));
  CHECK_THAT(error_with("/vision_config/hidden_act", "mish"),
             Contains("vision_config: hidden_act: expected quick_gelu"));
  CHECK_THAT(error_with("/vision_feature_layer", json{-2, -5}),
             Contains("vision_feature_layer: expected an integer"));
  CHECK_THAT(error_with("/vision_feature_select_strategy", "cls"),
             Contains("expected default or full"));
  CHECK_THAT(error_with("/image_token_index", 32064),
             Contains("image_token_index: expected an integer in [0, 32063], found 32064"));
  CHECK_THAT(error_with("/torch_dtype", "int8"),
             Contains("torch_dtype: expected float32, float16 or bfloat16"));
  CHECK_THAT(error_with("/resample", 2, true),
             Contains("preprocessor_config.json: resample: expected 3 (bicubic), found 2"));
  CHECK_THAT(error_with("/crop_size", 224, true),
             Contains("crop_size: expected the vision tower's image_size 336, found 224"));
  CHECK_THAT(error_with("/size", json{{"height", 336}, {"width", 336}}, true),
             Contains("size: expected shortest_edge"));
  CHECK_THAT(error_with("/do_center_crop", false, true), Contains("do_center_crop: expected true"));
  CHECK_THAT(error_with("/image_std", json{0.2, 0.0, 0.2}, true),
             Contains("image_std: expected three numbers above 0"));
  CHECK_THAT(error_with("/image_mean", json{0.2}, true),
             Contains("image_mean: expected three numbers"));
  const json config = published_7b_config();
  CHECK_THAT(error_of({{"config.json", config.dump()}}),
             Contains("preprocessor_config.json is missing"));
}

TEST_CASE("names of every layout become those of layout A", "[families]") {
  const Family& family = llava_family();
  const std::string tower = "vision_tower.vision_model.";
  const std::vector<std::pair<std::string, std::string>> names{
      {"language_model.model.layers.3.mlp.up_proj.weight",
       "language_model.model.layers.3.mlp.up_proj.weight"},
      {"model.language_model.layers.3.mlp.up_proj.weight",
       "language_model.model.layers.3.mlp.up_proj.weight"},
      {"model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"},
      {"language_model.lm_head.weight", "language_model.lm_head.weight"},
      {"lm_head.weight", "language_model.lm_head.weight"},
      {"vision_tower.vision_model.pre_layrnorm.bias", tower + "pre_layrnorm.bias"},
      {"vision_tower.pre_layrnorm.bias", tower + "pre_layrnorm.bias"},
      {"model.vision_tower.pre_layrnorm.bias", tower + "pre_layrnorm.bias"},
      {"model.vision_tower.vision_model.pre_layrnorm.bias", tower + "pre_layrnorm.bias"},
      {"model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
       tower + "pre_layrnorm.bias"},
      {"multi_modal_projector.linear_2.bias", "multi_modal_projector.linear_2.bias"},
      {"model.multi_modal_projector.linear_2.bias", "multi_modal_projector.linear_2.bias"},
      {"model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"},
      {"model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight"}};
  for (const auto& [name, canonical] : names) {
    INFO(name);
    CHECK(family.canonical_name(name) == canonical);
  }
  for (const char* name :
       {"model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.embeddings.position_ids",
        "vision_tower.text_model.embeddings.token_embedding.weight", "vision_tower.logit_scale"}) {
    INFO(name);
    CHECK_FALSE(family.canonical_name(name));
  }
}
