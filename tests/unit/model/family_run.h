#pragma once

// Cases of tests/golden/families as models and requests.

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/model.h"
#include "libvar/request.h"
#include "temporary_folder.h"
#include "unit/model/golden_run.h"

namespace libvar::testing {

/// A checkpoint of a case, written in its published form, converted and loaded.
/// @param dtype  of the computation; empty: the case's
inline std::shared_ptr<const Model> load_checkpoint(const FamilyCheckpoint& checkpoint,
                                                    const nlohmann::json& golden,
                                                    const std::string& dtype = {},
                                                    const std::string& device = "cpu") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "checkpoint";
  checkpoint.write(path);
  ConvertOptions options;
  options.sink_dims = golden.at("sink_dims").get<std::vector<std::int64_t>>();
  convert_checkpoint(path, folder / "model.pt", options);
  LoadOptions load_options;
  load_options.device = device;
  load_options.dtype = dtype.empty() ? golden.at("dtype").get<std::string>() : dtype;
  return Model::load(folder / "model.pt", load_options);
}

/// The model of a case; loaded once per process.
/// @param dtype  of the computation; empty: the case's
inline std::shared_ptr<const Model> load_family_case(const nlohmann::json& golden,
                                                     const std::string& dtype = {},
                                                     const std::string& device = "cpu") {
  static std::map<std::string, std::shared_ptr<const Model>> models;
  const std::string key = golden.at("name").get<std::string>() + " " + dtype + " " + device;
  std::shared_ptr<const Model>& model = models[key];
  if (!model) model = load_checkpoint(FamilyCheckpoint(golden), golden, dtype, device);
  return model;
}

inline const nlohmann::json& family_run(const nlohmann::json& golden, const std::string& name) {
  for (const nlohmann::json& run : golden.at("runs")) {
    if (run.at("name") == name) return run;
  }
  throw std::runtime_error(golden.at("name").get<std::string>() + " has no run " + name);
}

/// A run of a case as its request.
inline Request family_request(const nlohmann::json& run) {
  Request request;
  for (const nlohmann::json& image : run.at("images"))
    request.images.push_back(golden_folder() / image.get<std::string>());
  request.question = run.at("question");
  const nlohmann::json& options = run.at("options");
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

}  // namespace libvar::testing
