// Qwen2-VL, InternVL2 and VILA-1.5 from their published files against transformers
// (tests/golden/families).

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "convert/safetensors.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/model.h"
#include "libvar/session.h"
#include "temporary_folder.h"
#include "unit/model/golden_run.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;

const json& families_manifest() {
  static const json manifest =
      json::parse(read_bytes(golden_folder() / "families" / "manifest.json"));
  return manifest;
}

/// The checkpoint of a case, written in its published form, converted and loaded.
std::shared_ptr<const Model> load(const json& golden) {
  const TemporaryFolder folder;
  const std::filesystem::path checkpoint = folder / "checkpoint";
  std::map<std::string, Tensors> folders;  // "llm/model.norm.weight" lies in llm
  for (auto& [name, tensor] : golden_weights(golden)) {
    const std::size_t slash = name.find('/');
    const bool inside = slash != std::string::npos;
    folders[inside ? name.substr(0, slash) : "."].emplace(inside ? name.substr(slash + 1) : name,
                                                          tensor);
  }
  for (const auto& [name, tensors] : folders) {
    std::filesystem::create_directories(checkpoint / name);
    write_weights(checkpoint / name, tensors, /*shards=*/2);
  }
  for (const auto& [name, content] : golden.at("files").items())
    write_bytes(checkpoint / name, content.dump(2));
  for (const json& file : golden.at("copies")) {
    const std::filesystem::path from = golden_folder() / file.get<std::string>();
    std::filesystem::copy_file(from, checkpoint / golden.value("copies_to", ".") / from.filename());
  }
  ConvertOptions options;
  options.sink_dims = golden.at("sink_dims").get<std::vector<std::int64_t>>();
  convert_checkpoint(checkpoint, folder / "model.pt", options);
  LoadOptions load_options;
  load_options.device = "cpu";
  load_options.dtype = "fp32";
  return Model::load(folder / "model.pt", load_options);
}

Request request_of(const json& run) {
  Request request;
  for (const json& image : run.at("images"))
    request.images.push_back(golden_folder() / image.get<std::string>());
  request.question = run.at("question");
  const json& options = run.at("options");
  const auto option = [&](const char* key) -> std::optional<std::int64_t> {
    if (!options.contains(key)) return {};
    return options.at(key).get<std::int64_t>();
  };
  request.max_tiles = option("max_tiles");
  request.min_pixels = option("min_pixels");
  request.max_pixels = option("max_pixels");
  request.var = var_params(run.at("var"));
  request.generation.max_new_tokens = run.at("max_new_tokens");
  request.return_logits = true;
  return request;
}

}  // namespace

TEST_CASE("further families answer as transformers does, with VAR and without", "[golden]") {
  const SafetensorsFile tensors =
      SafetensorsFile::open(golden_folder() / "families" / "logits.safetensors");
  const double bar = families_manifest().at("logits_bar");
  Worst worst("further families: largest difference of a logit, of the largest logit");
  int runs = 0;
  for (const json& golden : families_manifest().at("cases")) {
    const std::shared_ptr<const Model> model = load(golden);
    CHECK(model->family() == golden.at("family"));
    for (const json& run : golden.at("runs")) {
      CAPTURE(golden.at("name").get<std::string>(), run.at("name").get<std::string>());
      // In one piece, and in chunks that cut images.
      for (const std::int64_t chunk : {0, 7}) {
        SessionOptions options;
        options.prefill_chunk = chunk;
        Session session(model, options);
        const Answer answer = session.ask(request_of(run));
        CHECK(answer.prompt_tokens == run.at("prompt_tokens").get<std::vector<std::int64_t>>());
        CHECK((answer.visual_spans == run.at("visual_spans").get<Spans>()));
        CHECK(answer.tokens == run.at("tokens").get<std::vector<std::int64_t>>());
        if (run.contains("text")) CHECK(answer.text == run.at("text").get<std::string>());
        const double error = relative_error(answer.logits, tensors.tensor(run.at("logits")));
        CAPTURE(error, chunk);
        worst.note(error);
        CHECK(error <= bar);
        if (!run.at("var").at("enabled").get<bool>()) continue;
        CHECK(answer.var.selected_rows == run.at("selected_rows").get<std::vector<std::int64_t>>());
        CHECK(answer.var.visual_sinks ==
              run.at("visual_sinks").get<std::vector<std::vector<std::int64_t>>>());
      }
      ++runs;
    }
  }
  CHECK(runs == 30);
}
