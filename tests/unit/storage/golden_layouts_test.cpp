#include <ATen/core/Tensor.h>

#include <cstring>

#include "archive/archive.h"
#include "catch.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

/// The archive of a golden case in a layout; its file is gone afterwards, its tensors stay mapped.
Archive convert_golden(const nlohmann::json& golden, Layout layout, int shards) {
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "in", golden, layout, shards);
  convert_checkpoint(folder / "in", folder / "out.pt");
  return Archive::open(folder / "out.pt");
}

void require_equal(const std::map<std::string, at::Tensor>& found, const Tensors& expected) {
  for (const auto& [name, tensor] : expected) {
    INFO(name);
    REQUIRE(found.count(name) == 1);
    REQUIRE(found.at(name).scalar_type() == tensor.scalar_type());
    REQUIRE(found.at(name).equal(tensor));
  }
  REQUIRE(found.size() == expected.size());
}

}  // namespace

TEST_CASE("the counter gives the values that the goldens were made with", "[golden]") {
  const auto& test = golden_manifest().at("generator_test");
  nlohmann::json golden = {
      {"seed_name", "mha"}, {"dtype", "float32"}, {"overrides", nlohmann::json::array()}};
  golden["tensors"] = {{{"name", "language_model.model.embed_tokens.weight"},
                        {"shape", {3}},
                        {"scale", test.at("value").at("scale")},
                        {"offset", test.at("value").at("offset")}}};
  const at::Tensor values = golden_weights(golden).begin()->second;
  for (std::int64_t i = 0; i < 3; ++i) {
    const float value = values.const_data_ptr<float>()[i];
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    REQUIRE(
        bits ==
        std::stoul(test.at("value").at("bits").at(static_cast<std::size_t>(i)).get<std::string>(),
                   nullptr, 16));
  }
}

TEST_CASE("layouts A, B and C of every golden give the same archive", "[golden]") {
  for (const std::string& name : golden_case_names()) {
    INFO(name);
    const auto& golden = golden_case(name);
    const Tensors expected = golden_weights(golden);
    require_equal(convert_golden(golden, Layout::kA, 3).tensors(), expected);
    require_equal(convert_golden(golden, Layout::kB, 1).tensors(), expected);
    const Archive archive = convert_golden(golden, Layout::kC, 2);
    require_equal(archive.tensors(), expected);
    const ModelConfig config = read_model_config(archive);
    REQUIRE(archive.manifest().dtype == golden.at("dtype"));
    REQUIRE(config.image_token_id == golden.at("image_token_id").get<std::int64_t>());
    REQUIRE(config.visual_tokens == golden.at("visual_tokens_per_image").get<std::int64_t>());
    REQUIRE(
        (config.image.mode == ImageMode::kCrop && config.prompt_style == PromptStyle::kLlavaHf));
  }
}

TEST_CASE("the original layout gives the same tensors, its tower from a folder or inside",
          "[golden]") {
  int originals = 0;
  for (const std::string& name : golden_case_names()) {
    const auto& golden = golden_case(name);
    if (!golden.contains("original")) continue;
    ++originals;
    Tensors expected = golden_weights(golden);
    const auto rows = golden.at("original").at("rows").get<std::int64_t>();
    for (const char* vocabulary :
         {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}) {
      expected[vocabulary] = expected[vocabulary].slice(0, 0, rows);
    }
    const Archive beside = convert_golden(golden, Layout::kOriginal, 2);
    require_equal(beside.tensors(), expected);
    require_equal(convert_golden(golden, Layout::kOriginalInside, 1).tensors(), expected);
    const ModelConfig config = read_model_config(beside);
    REQUIRE(
        (config.image.mode == ImageMode::kPad && config.prompt_style == PromptStyle::kVicunaV1));
    REQUIRE((!config.image_token_id && config.decoder.vocab_size == rows));
    REQUIRE(config.visual_tokens == golden.at("visual_tokens_per_image").get<std::int64_t>());
    REQUIRE(beside.files().count("preprocessor_config.json") == 1);
  }
  if (golden_case_names().size() > 1) REQUIRE(originals > 0);
}

TEST_CASE("the original layout without its tower says where to put it", "[golden]") {
  for (const std::string& name : golden_case_names()) {
    if (!golden_case(name).contains("original")) continue;
    const TemporaryFolder folder;
    write_golden_checkpoint(folder / "in", golden_case(name), Layout::kOriginal);
    std::filesystem::remove_all(folder / "in/clip");
    const std::string message =
        message_of<ArchiveError>([&] { convert_checkpoint(folder / "in", folder / "out.pt"); });
    CHECK_THAT(message,
               Catch::Contains(
                   "holds no vision tower; put the folder of the CLIP model that config.json names "
                   "(clip) into it as vision_tower/"));
  }
}
