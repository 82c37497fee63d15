// What the command says to malformed checkpoints, archives and requests of Qwen2-VL, InternVL2 and
// VILA-1.5: the goldens' tiny checkpoints with one part changed.

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "archive/archive.h"
#include "command.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "temporary_folder.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar::testing;
using Catch::Contains;
using Catch::StartsWith;
using nlohmann::json;

namespace {

using Arguments = std::vector<std::string>;
using Words = std::vector<std::string>;
using Shape = std::vector<std::int64_t>;
using Change = std::function<void(FamilyCheckpoint&)>;

constexpr const char* kConfig = "config.json";
constexpr const char* kProcessor = "preprocessor_config.json";

/// Part of a checkpoint that is changed, and what the error must name.
struct Malformed {
  Change change;
  Words words;
};

Change set(const std::string& file, const std::string& pointer, const json& value) {
  return [=](FamilyCheckpoint& checkpoint) {
    checkpoint.files.at(file)[json::json_pointer(pointer)] = value;
  };
}

Change without_key(const std::string& file, const std::string& key) {
  return [=](FamilyCheckpoint& checkpoint) { REQUIRE(checkpoint.files.at(file).erase(key) == 1); };
}

/// @param name  of a configuration or a tokenizer file
Change without_file(const std::string& name) {
  return [=](FamilyCheckpoint& checkpoint) {
    REQUIRE(checkpoint.files.erase(name) + checkpoint.copies.erase(name) == 1);
  };
}

Change without_tensor(const std::string& name) {
  return [=](FamilyCheckpoint& checkpoint) { REQUIRE(checkpoint.tensors.erase(name) == 1); };
}

Change with_shape(const std::string& name, const Shape& shape) {
  return [=](FamilyCheckpoint& checkpoint) {
    checkpoint.tensors.at(name) = at::zeros(shape, at::kFloat);
  };
}

/// The tensor once more under another name.
Change with_copy(const std::string& name, const std::string& other) {
  return [=](FamilyCheckpoint& checkpoint) {
    REQUIRE(checkpoint.tensors.emplace(other, checkpoint.tensors.at(name)).second);
  };
}

Change all(const std::vector<Change>& changes) {
  return [=](FamilyCheckpoint& checkpoint) {
    for (const Change& change : changes) change(checkpoint);
  };
}

FamilyCheckpoint checkpoint_of(const std::string& name) {
  static std::map<std::string, FamilyCheckpoint> read;
  return read.try_emplace(name, family_case(name)).first->second;
}

/// One line that holds all words, nothing on stdout.
void check_error(const CommandResult& result, int code, const Words& words) {
  INFO("stdout: " << result.out << "\nstderr: " << result.err);
  CHECK(result.code == code);
  CHECK(result.out.empty());
  CHECK_THAT(result.err, StartsWith("var: error: "));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  for (const std::string& word : words) CHECK_THAT(result.err, Contains(word));
}

/// `var convert` fails, names the folder and the words, and leaves nothing behind.
void check_refused(const std::filesystem::path& checkpoint, const Words& words) {
  const TemporaryFolder out;
  const CommandResult result =
      run_command({"convert", checkpoint.string(), (out / "model.pt").string()});
  check_error(result, 1, words);
  CHECK_THAT(result.err, Contains(checkpoint.string()));
  CHECK(std::filesystem::is_empty(out.path()));
}

void check_all(const std::string& name, const std::vector<Malformed>& table) {
  for (std::size_t row = 0; row < table.size(); ++row) {
    CAPTURE(name, row);
    const TemporaryFolder folder;
    FamilyCheckpoint checkpoint = checkpoint_of(name);
    table[row].change(checkpoint);
    checkpoint.write(folder / "hf");
    check_refused(folder / "hf", table[row].words);
  }
}

/// The archive of a case, converted once per process.
std::filesystem::path family_archive(const std::string& name) {
  static const TemporaryFolder folder;
  const std::filesystem::path path = folder / (name + ".pt");
  if (std::filesystem::exists(path)) return path;
  const TemporaryFolder checkpoint;
  checkpoint_of(name).write(checkpoint / "hf");
  libvar::ConvertOptions options;
  options.sink_dims = family_case(name).at("sink_dims").get<std::vector<std::int64_t>>();
  libvar::convert_checkpoint(checkpoint / "hf", path, options);
  return path;
}

std::string image_path(const std::string& name) {
  return (golden_folder() / "images" / name).string();
}

/// `var ask` about the picture with two tokens in float32 on the CPU.
CommandResult ask(const std::string& archive, const Arguments& flags) {
  Arguments arguments = {
      "ask", archive, "What?", "--device", "cpu", "--dtype", "fp32", "--max-new-tokens", "2"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return run_command(arguments);
}

/// A black picture: an uncompressed BMP file of 24 bits a pixel.
void write_bmp(const std::filesystem::path& path, std::uint32_t width, std::uint32_t height) {
  const std::uint32_t row_bytes = (3 * width + 3) / 4 * 4, header_bytes = 54;
  std::string bytes = "BM";
  const auto append = [&](std::uint32_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i));
  };
  append(header_bytes + row_bytes * height, 4);
  for (const std::uint32_t value : {0U, header_bytes, 40U, width, height}) append(value, 4);
  append(1, 2);
  append(24, 2);
  bytes.resize(header_bytes + std::size_t{row_bytes} * height, '\0');
  write_bytes(path, bytes);
}

}  // namespace

TEST_CASE("malformed Qwen2-VL checkpoints are one line and leave nothing behind",
          "[cli][families]") {
  const std::string decoder = "model.layers.1.";
  check_all(
      "qwen_flat",
      {
          {without_file(kConfig), {"config.json is missing"}},
          {set(kConfig, "/model_type", "qwen9_vl"),
           {"config.json: model_type: expected one of", "qwen2_vl", "found \"qwen9_vl\""}},
          {without_file(kProcessor), {"preprocessor_config.json is missing"}},
          {without_file("tokenizer.json"), {"the tokenizer is missing", "tokenizer.json"}},
          {without_key(kConfig, "rope_scaling"),
           {"config.json: rope_scaling: expected an object with mrope_section, found nothing"}},
          {set(kConfig, "/rope_scaling/type", "yarn"),
           {"config.json: rope_scaling: type: expected mrope or default, found \"yarn\""}},
          {set(kConfig, "/rope_scaling/mrope_section", {2, 3, 4}),
           {"config.json: rope_scaling: mrope_section: expected three numbers that add up to 40",
            "found [2,3,4]"}},
          {set(kConfig, "/rope_scaling/mrope_section", {20, 20}),
           {"mrope_section: expected three numbers that add up to 40", "found [20,20]"}},
          {set(kConfig, "/rope_scaling/mrope_section", {10, 10, 10, 10}),
           {"mrope_section: expected three numbers that add up to 40", "found [10,10,10,10]"}},
          {set(kConfig, "/rope_scaling/mrope_section", "2,3,3"),
           {"config.json: rope_scaling: mrope_section: expected", "found \"2,3,3\""}},
          {set(kConfig, "/vision_config/spatial_merge_size", 3),
           {"preprocessor_config.json: merge_size: expected 3, as config.json says, found 2"}},
          {all({set(kConfig, "/vision_config/spatial_merge_size", 3),
                set(kProcessor, "/merge_size", 3)}),
           {".safetensors: tensor visual.merger.mlp.0.", "expected shape [576", "found [256"}},
          {set(kConfig, "/vision_config/spatial_merge_size", 0),
           {"config.json: vision_config: spatial_merge_size: expected an integer in [1, 64], "
            "found 0"}},
          {set(kProcessor, "/patch_size", 16),
           {"preprocessor_config.json: patch_size: expected 14, as config.json says, found 16"}},
          {set(kProcessor, "/min_pixels", 12845057),
           {"preprocessor_config.json: max_pixels: expected at least min_pixels 12845057, found "
            "12845056"}},
          {set(kConfig, "/vision_config/embed_dim", 66),
           {"config.json: vision_config: embed_dim: expected a multiple of 4 * num_heads 2",
            "found 66"}},
          {set(kConfig, "/vision_config/hidden_size", 64),
           {"config.json: vision_config: hidden_size: expected the decoder's hidden_size 480",
            "found 64"}},
          {set(kConfig, "/num_key_value_heads", 4),
           {"config.json: num_key_value_heads: expected a divisor of num_attention_heads 6",
            "found 4"}},
          {set(kConfig, "/num_attention_heads", 32),
           {"config.json: hidden_size: expected an even multiple of num_attention_heads 32",
            "found 480"}},
          {set(kConfig, "/image_token_id", 608),
           {"config.json: image_token_id: expected an integer in [0, 607], found 608"}},
          {set(kConfig, "/image_token_id", 604),
           {"the tokenizer does not fit config.json: <|image_pad|> is 605 in the one, 604 in the "
            "other"}},
          {without_tensor("lm_head.weight"), {"tensor lm_head.weight is missing"}},
          {set(kConfig, "/vocab_size", 640),
           {".safetensors: tensor ", "expected shape [640, 480], found [608, 480]"}},
          {set(kConfig, "/vocab_size", 600),
           {"config.json: image_token_id: expected an integer in [0, 599], found 605"}},
          {all({set(kConfig, "/vocab_size", 605), set(kConfig, "/image_token_id", 604)}),
           {"the tokenizer does not fit the vocabulary: it gives ids up to 606",
            "config.json: vocab_size is 605"}},
          {without_tensor("visual.patch_embed.proj.weight"),
           {"tensor visual.patch_embed.proj.weight is missing"}},
          {without_tensor(decoder + "self_attn.q_proj.bias"),
           {"tensor model.layers.1.self_attn.q_proj.bias is missing"}},
          {with_shape("visual.blocks.1.attn.qkv.weight", {190, 64}),
           {".safetensors: tensor visual.blocks.1.attn.qkv.weight: expected shape [192, 64], "
            "found [190, 64]"}},
          {with_copy("visual.merger.ln_q.bias", "model.visual.merger.ln_q.bias"),
           {"tensors ", "model.visual.merger.ln_q.bias", " both are visual.merger.ln_q.bias"}},
      });
  check_all("qwen_tied",
            {{without_file("merges.txt"), {"merges.txt is missing, vocab.json is there"}},
             {without_file("vocab.json"), {"the tokenizer is missing", "vocab.json"}},
             {set(kConfig, "/tie_word_embeddings", false), {"tensor lm_head.weight is missing"}},
             {set(kConfig, "/text_config/rope_parameters/rope_type", "yarn"),
              {"config.json: text_config: rope_parameters: rope_type: expected mrope or default, "
               "found \"yarn\""}},
             {set(kConfig, "/text_config/rope_parameters/mrope_section", {14, 21, 20}),
              {"text_config: rope_parameters: mrope_section: expected three numbers that add up "
               "to 56",
               "found [14,21,20]"}}});
}

TEST_CASE("malformed InternVL2 checkpoints are one line and leave nothing behind",
          "[cli][families]") {
  const std::string embeddings = "vision_model.embeddings.";
  const std::string wqkv = "language_model.model.layers.2.attention.wqkv.weight";
  check_all(
      "internvl_small",
      {
          {without_file(kConfig), {"config.json is missing"}},
          {without_file(kProcessor), {"preprocessor_config.json is missing"}},
          {without_file("tokenizer.model"), {"the tokenizer is missing", "tokenizer.model"}},
          {without_file("added_tokens.json"),
           {"added_tokens.json: token <IMG_CONTEXT> is missing"}},
          {set(kConfig, "/llm_config/rope_scaling/type", "yarn"),
           {"config.json: llm_config: rope_scaling: type: expected default, linear or dynamic, "
            "found \"yarn\""}},
          {set(kConfig, "/llm_config/architectures", {"Phi3ForCausalLM"}),
           {"config.json: llm_config: architectures: expected InternLM2ForCausalLM",
            "found [\"Phi3ForCausalLM\"]"}},
          {set(kConfig, "/downsample_ratio", 0.3),
           {"config.json: downsample_ratio: expected 0.5, found 0.3"}},
          {set(kConfig, "/vision_config/image_size", 70),
           {"config.json: vision_config: image_size: expected an even number of patches of 14 "
            "pixels to a side",
            "found 70"}},
          {set(kConfig, "/vision_config/image_size", 60),
           {"config.json: force_image_size: expected the vision tower's image_size 60, found "
            "56"}},
          {all({set(kConfig, "/vision_config/image_size", 60),
                set(kConfig, "/force_image_size", 60)}),
           {"preprocessor_config.json: crop_size: expected the vision tower's image_size 60, "
            "found 56"}},
          {set(kConfig, "/vision_config/patch_size", 57),
           {"config.json: vision_config: patch_size: expected at most image_size 56, found 57"}},
          {set(kConfig, "/vision_config/num_attention_heads", 5),
           {"config.json: vision_config: hidden_size: expected a multiple of num_attention_heads "
            "5, found 48"}},
          {set(kConfig, "/max_dynamic_patch", 0),
           {"config.json: max_dynamic_patch: expected an integer in [1, ", "found 0"}},
          {set(kConfig, "/min_dynamic_patch", 7),
           {"config.json: max_dynamic_patch: expected an integer in [7, ", "found 6"}},
          {set(kConfig, "/max_dynamic_patch", 1000),
           {"config.json: max_dynamic_patch: expected an integer in [1, ", "found 1000"}},
          {with_shape(wqkv, {799, 480}),
           {".safetensors: tensor " + wqkv + ": expected 800 rows", "found shape [799, 480]"}},
          {with_shape(wqkv, {1600, 240}),
           {".safetensors: tensor " + wqkv + ": expected 800 rows", "found shape [1600, 240]"}},
          {with_shape("vision_model.encoder.layers.1.attn.qkv.bias", {143}),
           {".safetensors: tensor vision_model.encoder.layers.1.attn.qkv.bias: expected 144 rows",
            "found shape [143]"}},
          {without_tensor(wqkv), {"tensor " + wqkv + " is missing"}},
          {without_tensor(embeddings + "position_embedding"),
           {"tensor vision_model.embeddings.position_embedding is missing"}},
          {with_shape(embeddings + "position_embedding", {1, 16, 48}),
           {".safetensors: tensor vision_model.embeddings.position_embedding: expected shape [1, "
            "17, 48], found [1, 16, 48]"}},
          {without_tensor("language_model.output.weight"),
           {"tensor language_model.output.weight is missing"}},
          {set(kConfig, "/llm_config/vocab_size", 500),
           {".safetensors: tensor language_model.", "expected shape [500, 480], found [448, 480]"}},
          {set(kConfig, "/llm_config/vocab_size", 400),
           {"the tokenizer does not fit the vocabulary", "vocab_size is 400"}},
          {with_copy("language_model.output.weight", "language_model.lm_head.weight"),
           {"tensors language_model.", "language_model.output.weight",
            " both are language_model.lm_head.weight"}},
      });
  check_all("internvl_native",
            {{set(kConfig, "/image_token_id", 0), {"<IMG_CONTEXT> is ", "0 in the other"}}});
}

TEST_CASE("malformed VILA-1.5 checkpoints are one line and leave nothing behind",
          "[cli][families]") {
  const std::string llm = "llm/config.json", tower = "vision_tower/config.json";
  const std::string positions = "vision_tower/vision_model.embeddings.position_embedding.weight";
  check_all(
      "vila15_llama2",
      {
          {without_file(kConfig), {"config.json is missing"}},
          {without_file(llm), {"llm/config.json is missing"}},
          {without_file(tower), {"vision_tower/config.json is missing"}},
          {without_file("mm_projector/config.json"), {"mm_projector/config.json is missing"}},
          {without_file("vision_tower/preprocessor_config.json"),
           {"vision_tower/preprocessor_config.json is missing"}},
          {without_file("llm/tokenizer.model"), {"/llm: the tokenizer is missing"}},
          {set("mm_projector/config.json", "/mm_projector_type", "linear"),
           {"mm_projector/config.json: mm_projector_type: expected mlp_downsample, found "
            "\"linear\""}},
          {without_key("mm_projector/config.json", "mm_projector_type"),
           {"mm_projector/config.json: mm_projector_type is missing"}},
          {set(tower, "/model_type", "clip_vision_model"),
           {"vision_tower/config.json: model_type: expected siglip_vision_model, found "
            "\"clip_vision_model\""}},
          {set(tower, "/image_size", 84),
           {"vision_tower/preprocessor_config.json: size: expected the vision tower's image_size "
            "84, found "}},
          {set(tower, "/patch_size", 10),
           {".safetensors: tensor vision_model.embeddings.p",
            "expected shape [48, 3, 10, 10], "
            "found [48, 3, 14, 14]"}},
          {set(tower, "/num_attention_heads", 5),
           {"vision_tower/config.json: hidden_size: expected a multiple of num_attention_heads 5, "
            "found 48"}},
          {set(llm, "/rope_scaling", {{"type", "yarn"}}),
           {"llm/config.json: rope_scaling: type: expected default, linear or dynamic, found "
            "\"yarn\""}},
          {set(llm, "/head_dim", 15),
           {"llm/config.json: head_dim: expected an even number, found 15"}},
          {set(llm, "/head_dim", 32),
           {"/llm/model-",
            "tensor model.layers.0.self_attn.q_proj.weight: expected shape [128, "
            "448], found [448, 448]"}},
          {set(llm, "/num_attention_heads", 20),
           {"llm/config.json: hidden_size: expected an even multiple of num_attention_heads 20, "
            "found 448"}},
          {set(llm, "/vocab_size", 600),
           {"/llm/model-", "expected shape [600, 448], found [512, 448]"}},
          {set(llm, "/vocab_size", 500),
           {"/llm: the tokenizer does not fit the vocabulary", "config.json: vocab_size is 500"}},
          {set(llm, "/model_max_length", "long"),
           {"llm/config.json: model_max_length: expected an integer", "found \"long\""}},
          {set(kConfig, "/image_aspect_ratio", "pad"),
           {"config.json: image_aspect_ratio: expected resize, found \"pad\""}},
          {set(kConfig, "/mm_vision_select_layer", -6),
           {"config.json: mm_vision_select_layer: expected an integer in [-5, 4], found -6"}},
          {without_tensor(positions),
           {"/vision_tower: tensor "
            "vision_model.embeddings.position_embedding.weight is missing"}},
          {with_shape(positions, {24, 48}),
           {"/vision_tower/model-",
            "tensor vision_model.embeddings.position_embedding.weight: "
            "expected shape [25, 48], found [24, 48]"}},
          {without_tensor("llm/lm_head.weight"), {"/llm: tensor lm_head.weight is missing"}},
          {without_tensor("mm_projector/layers.2.weight"),
           {"/mm_projector: tensor layers.2.weight is missing"}},
          {with_shape("mm_projector/layers.1.weight", {48}),
           {"/mm_projector/model-", "tensor layers.1.weight: expected shape [192], found [48]"}},
      });
  check_all("vila15_llama3",
            {{without_file("llm/tokenizer.json"), {"/llm: the tokenizer is missing"}}});
}

TEST_CASE("damaged files of a family's checkpoint are one line and leave nothing behind",
          "[cli][families]") {
  const auto [name, part] =
      GENERATE(std::pair("qwen_flat", ""), std::pair("internvl_small", ""),
               std::pair("vila15_llama2", "llm"), std::pair("vila15_llama2", "mm_projector"));
  CAPTURE(name, part);
  const TemporaryFolder folder;
  const std::filesystem::path hf = folder / "hf";
  checkpoint_of(name).write(hf);
  const std::filesystem::path dir = *part == '\0' ? hf : hf / part,
                              shard = dir / "model-00002-of-00002.safetensors";
  std::string file = shard.string(), what;
  SECTION("a shard without its end") {
    const std::string bytes = read_bytes(shard);
    write_bytes(shard, bytes.substr(0, bytes.size() - 1));
  }
  SECTION("a shard of a few bytes") {
    write_bytes(shard, "abc");
  }
  SECTION("a shard that is not there") {
    std::filesystem::remove(shard);
    what = "this shard of the checkpoint is missing";
  }
  SECTION("no weights") {
    for (const char* gone : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                             "model.safetensors.index.json"})
      REQUIRE(std::filesystem::remove(dir / gone));
    file = dir.string();
    what = "holds no weights";
  }
  SECTION("a config.json that ends in the middle") {
    const std::string text = read_bytes(dir / kConfig);
    write_bytes(dir / kConfig, text.substr(0, text.size() / 2));
    file = (dir / kConfig).lexically_relative(hf).string();
    what = "is no JSON";
  }
  SECTION("a folder in place of config.json") {
    std::filesystem::remove(dir / kConfig);
    std::filesystem::create_directory(dir / kConfig);
    file = (dir / kConfig).string();
    what = "directory";
  }
  check_refused(hf, {file, what});
}

TEST_CASE("a folder of VILA-1.5 that is missing is named", "[cli][families]") {
  const char* part = GENERATE("llm", "vision_tower", "mm_projector");
  const TemporaryFolder folder;
  checkpoint_of("vila15_llama2").write(folder / "hf");
  std::filesystem::remove_all(folder / "hf" / part);
  check_refused(folder / "hf",
                {(folder / "hf" / part).string() + ": this folder of the checkpoint is missing"});
}

TEST_CASE("archives of a family that miss a part are one line", "[cli][families]") {
  const std::string name = GENERATE("qwen_flat", "internvl_small", "vila15_llama2");
  CAPTURE(name);
  const bool folders = name == "vila15_llama2";
  const TemporaryFolder folder;
  const libvar::Archive archive = libvar::Archive::open(family_archive(name));
  libvar::CheckpointFiles files = archive.files();
  std::map<std::string, at::Tensor> tensors = archive.tensors();
  std::string what;
  bool info_reads_it = false;
  SECTION("the image processor") {
    const std::string file = folders ? "vision_tower/preprocessor_config.json" : kProcessor;
    REQUIRE(files.erase(file) == 1);
    what = file + " is missing";
  }
  SECTION("the configuration") {
    REQUIRE(files.erase(kConfig) == 1);
    what = "config.json is missing";
  }
  SECTION("the tokenizer") {
    for (const char* file : {"tokenizer.model", "tokenizer.json"}) files.erase(file);
    what = "the tokenizer is missing";
    info_reads_it = true;
  }
  if (name == "qwen_flat") SECTION("the image token") {
      json config = json::parse(files.at(kConfig));
      config["image_token_id"] = 1;
      files[kConfig] = config.dump();
      what = "<|image_pad|> is 605 in the one, 1 in the other";
      info_reads_it = true;
    }
  SECTION("another family") {
    const auto other =
        libvar::Archive::open(family_archive(folders ? "qwen_flat" : "vila15_llama2"));
    files["libvar.json"] = other.files().at("libvar.json");
    what = "family";
  }
  SECTION("a tensor") {
    const std::string norm =
        name == "qwen_flat" ? "model.norm.weight" : "language_model.model.norm.weight";
    REQUIRE(tensors.erase(norm) == 1);
    what = norm + " is missing";
  }
  SECTION("a row of a tensor") {
    const std::string bias =
        name == "qwen_flat" ? "visual.merger.mlp.2.bias" : "multi_modal_projector.linear_2.bias";
    const std::int64_t width = tensors.at(bias).size(0);
    tensors.at(bias) = at::zeros({width - 1}, at::kFloat);
    what = bias + ": expected shape [" + std::to_string(width) + "]";
  }
  std::vector<libvar::TensorSource> sources;
  for (const auto& [key, tensor] : tensors) {
    sources.push_back({key, tensor.sizes().vec(), at::kFloat, [&value = tensor] { return value; }});
  }
  const std::string file = (folder / "model.pt").string();
  libvar::write_archive(file, sources, files);
  check_error(ask(file, {}), 1, {file, what});
  const CommandResult info = run_command({"info", file});
  if (info_reads_it) {
    CHECK(info.code == 0);
  } else {
    check_error(info, 1, {file, what});
  }
}

TEST_CASE("pictures' sizes that a family can't take are one line", "[cli][families]") {
  const TemporaryFolder folder;
  const std::string thin = (folder / "thin.bmp").string();
  const std::string qwen = family_archive("qwen_flat").string();
  write_bmp(thin, 402, 2);
  check_error(ask(qwen, {"--image", image_path("tiny.png"), "--image", thin}), 1,
              {"image " + thin, "402 x 2", "a factor of at most 200"});
  write_bmp(thin, 400, 2);
  CHECK(ask(qwen, {"--image", thin}).code == 0);
}

TEST_CASE("flags of pictures' sizes are refused by models that have no use for them",
          "[cli][families]") {
  const auto [name, mode] =
      GENERATE(std::pair("qwen_flat", "dynamic"), std::pair("internvl_small", "tiles"),
               std::pair("vila15_llama2", "resize"), std::pair("llava", "crop"));
  CAPTURE(name);
  const std::string archive =
      (name == std::string("llava") ? golden_archive("mha") : family_archive(name)).string();
  const std::string mode_words = std::string("the image mode of this one is ") + mode;
  const bool tiles = mode == std::string("tiles"), dynamic = mode == std::string("dynamic");
  const Arguments image = {"--image", image_path("tiny.png")};
  const auto with_image = [&](const Arguments& flags) {
    Arguments arguments = image;
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return ask(archive, arguments);
  };
  if (tiles) {
    CHECK(with_image({"--max-tiles", "1"}).code == 0);
  } else {
    check_error(with_image({"--max-tiles", "2"}), 2, {"max_tiles", mode_words});
  }
  for (const char* flag : {"--min-pixels", "--max-pixels"}) {
    if (dynamic) {
      CHECK(with_image({flag, "4000"}).code == 0);
    } else {
      check_error(with_image({flag, "4000"}), 2, {"min_pixels, max_pixels", mode_words});
    }
  }
  if (mode != std::string("crop"))
    check_error(with_image({"--image-mode", "pad"}), 2, {"image_mode", mode_words});
}

TEST_CASE("flags of pictures' sizes out of range are usage errors", "[cli][families]") {
  const std::string qwen = family_archive("qwen_flat").string(),
                    internvl = family_archive("internvl_small").string();
  for (const char* flag : {"--max-tiles", "--min-pixels", "--max-pixels"}) {
    for (const char* value : {"0", "-1", "1.5", "many"}) {
      check_error(ask(qwen, {flag, value}), 2,
                  {flag, std::string("expected a whole number of at least 1, got ") + value});
    }
  }
  check_error(ask(internvl, {"--max-tiles", "129"}), 2, {"max_tiles must be in [1, ", "got 129"});
  check_error(ask(qwen, {"--min-pixels", "8000", "--max-pixels", "4000"}), 2,
              {"min_pixels <= max_pixels", "got 8000 and 4000"});
  check_error(ask(qwen, {"--max-pixels", "3135"}), 2, {"got 3136 and 3135"});
}

TEST_CASE("ask takes the flags of pictures' sizes to the model", "[cli][families][golden]") {
  const std::string name = GENERATE("qwen_flat", "qwen_tied", "internvl_small", "internvl_large");
  CAPTURE(name);
  const json& runs = family_case(name).at("runs");
  const auto run = std::find_if(runs.begin(), runs.end(),
                                [](const json& item) { return item.at("name") == "options"; });
  REQUIRE(run != runs.end());
  Arguments arguments = {"ask",
                         family_archive(name).string(),
                         run->at("question"),
                         "--json",
                         "--device",
                         "cpu",
                         "--dtype",
                         "fp32",
                         "--max-new-tokens",
                         std::to_string(run->at("max_new_tokens").get<int>())};
  for (const std::string image : run->at("images"))
    arguments.insert(arguments.end(), {"--image", (golden_folder() / image).string()});
  for (const auto& [key, value] : run->at("options").items()) {
    std::string flag = "--" + key;
    std::replace(flag.begin(), flag.end(), '_', '-');
    arguments.insert(arguments.end(), {flag, value.dump()});
  }
  if (run->at("var").at("enabled") == false) arguments.emplace_back("--no-var");
  const CommandResult result = run_command(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  const json answer = json::parse(result.out);
  for (const char* key : {"tokens", "prompt_tokens", "visual_spans"}) {
    INFO(key);
    CHECK(answer.at(key) == run->at(key));
  }
}
