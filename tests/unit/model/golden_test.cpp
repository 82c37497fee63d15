#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "catch.h"
#include "convert/safetensors.h"
#include "golden_fixture.h"
#include "image/image.h"
#include "libvar/model.h"
#include "libvar/session.h"
#include "loaded_model.h"
#include "unit/model/golden_run.h"

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

constexpr double kPhiBar = 2e-5;       // of the largest phi
constexpr double kFeaturesBar = 2e-5;  // of the largest feature

/// A model of a golden case in its own layout, loaded once.
std::shared_ptr<const Model> load(const json& golden) {
  static std::map<std::string, std::shared_ptr<const Model>> models;
  std::shared_ptr<const Model>& model = models[golden.at("name")];
  if (!model) {
    LoadOptions options;
    options.device = "cpu";
    options.dtype = golden.at("dtype");
    model =
        Model::load(golden_archive(golden.at("name"), golden.at("layout") == "original"), options);
  }
  return model;
}

at::Tensor golden_tensor(const json& golden, const std::string& name) {
  return SafetensorsFile::open(golden_folder() / golden.at("file").get<std::string>()).tensor(name);
}

Request request_of(const json& golden, const json& run) {
  Request request;
  for (const json& image : run.at("images"))
    request.images.push_back(golden_folder() / image.get<std::string>());
  if (run.at("prompt_style") == "raw") {
    request.raw_prompt = run.at("prompt").get<std::string>();
  } else {
    request.question = run.at("question");
    const bool original = golden.at("layout") ==
                          "original";  // the checkpoint's own style and mode, where they are meant
    if (run.at("prompt_style") != (original ? "vicuna_v1" : "llava")) {
      request.prompt_style = run.at("prompt_style") == "llava" ? "llava_hf" : "vicuna_v1";
    }
    if (run.at("image_mode") != (original ? "pad" : "crop"))
      request.image_mode = run.at("image_mode");
  }
  request.var = var_params(run.at("var"));
  request.generation.max_new_tokens = run.at("max_new_tokens");
  request.return_logits = true;
  return request;
}

template <typename Check>
void for_each_run(bool half, Check check) {
  int runs = 0;
  for (const json& golden : golden_manifest().at("cases")) {
    if ((golden.at("dtype") != "float32") != half) continue;
    for (const json& run : golden.at("runs")) {
      CAPTURE(golden.at("name").get<std::string>(), run.at("name").get<std::string>());
      check(golden, run);
      ++runs;
    }
  }
  CHECK(runs > 0);
}

/// The golden tokens behind the golden prompt.
Forced forced_run(const json& golden, const json& run, const std::vector<at::Tensor>& features) {
  Sequence prompt;
  prompt.ids = run.at("prompt_tokens").get<std::vector<std::int64_t>>();
  for (const json& span : run.at("visual_spans"))
    prompt.visual_spans.emplace_back(span[0], span[1]);
  VarParams var = var_params(run.at("var"));
  if (!var.first_layer) var.first_layer = 2;
  return teacher_forced(load(golden)->loaded().decoder, prompt, features,
                        run.at("tokens").get<std::vector<std::int64_t>>(), var);
}

/// Features of each image. [N, 3, S, S] -> N of [tokens, D]
std::vector<at::Tensor> encode(const json& golden, const at::Tensor& pixels) {
  const c10::InferenceMode inference;
  std::vector<ProcessedImage> images;
  for (const at::Tensor& image : pixels.split(1)) images.push_back({image});
  return load(golden)->loaded().encode_images(images);
}

}  // namespace

TEST_CASE("float32 answers equal the goldens in tokens, logits, sinks and selected rows",
          "[golden]") {
  const double bar = golden_manifest().at("logits_bar");
  Worst worst("largest difference of a logit, of the largest logit");
  for_each_run(false, [&](const json& golden, const json& run) {
    Session session(load(golden));
    const Answer answer = session.ask(request_of(golden, run));
    CHECK(answer.prompt_tokens == run.at("prompt_tokens").get<std::vector<std::int64_t>>());
    CHECK(answer.visual_spans ==
          run.at("visual_spans").get<std::vector<std::pair<std::int64_t, std::int64_t>>>());
    CHECK(answer.tokens == run.at("tokens").get<std::vector<std::int64_t>>());
    CHECK(answer.text == run.at("text").get<std::string>());
    CHECK(answer.finish_reason == FinishReason::kLength);
    const double error = relative_error(answer.logits, golden_tensor(golden, run.at("logits")));
    CAPTURE(error);
    worst.note(error);
    CHECK(error <= bar);
    if (!run.at("var").at("enabled").get<bool>()) {
      CHECK(answer.var.selected_rows ==
            std::vector<std::int64_t>(answer.var.selected_rows.size(), 0));
      return;
    }
    CHECK(answer.var.selected_rows == run.at("selected_rows").get<std::vector<std::int64_t>>());
    CHECK(answer.var.visual_sinks ==
          run.at("visual_sinks").get<std::vector<std::vector<std::int64_t>>>());
    std::int64_t eligible = 0;
    for (const std::int64_t rows : answer.var.eligible_rows) eligible += rows;
    CHECK(eligible == run.at("margins").at("eligible_pairs").get<std::int64_t>());
  });
}

TEST_CASE("image features equal the goldens", "[golden]") {
  Worst worst("largest difference of an image feature, of the largest feature");
  for_each_run(false, [&](const json& golden, const json& run) {
    if (!run.contains("features") || !run.contains("pixel_values")) return;
    const at::Tensor features =
        at::cat(encode(golden, golden_tensor(golden, run.at("pixel_values"))));
    const double error = relative_error(features, golden_tensor(golden, run.at("features")));
    CAPTURE(error);
    worst.note(error);
    CHECK(error <= kFeaturesBar);
  });
}

TEST_CASE("sink scores equal the goldens", "[golden]") {
  Worst worst("largest difference of a sink score, of the largest score");
  for_each_run(false, [&](const json& golden, const json& run) {
    if (!run.contains("phi")) return;
    const std::string pixels_of =
        run.contains("pixel_values") ? run.at("pixel_values").get<std::string>() : "";
    at::Tensor pixels;
    if (!pixels_of.empty()) {
      pixels = golden_tensor(golden, pixels_of);
    } else {
      for (const json& other :
           golden.at("runs")) {  // another run with the same pictures keeps their pixels
        if (other.contains("pixel_values") && other.at("images") == run.at("images")) {
          pixels = golden_tensor(golden, other.at("pixel_values"));
        }
      }
    }
    if (!pixels.defined()) return;
    const Forced forced = forced_run(golden, run, encode(golden, pixels));
    const double error = relative_error(forced.phi, golden_tensor(golden, run.at("phi")));
    CAPTURE(error);
    worst.note(error);
    CHECK(error <= kPhiBar);
  });
}

TEST_CASE("half types stay within twice the error of PyTorch's own", "[golden][half]") {
  Worst worst_max("half types: largest error, over that of PyTorch");
  Worst worst_rms("half types: root mean square error, over that of PyTorch");
  for_each_run(true, [&](const json& golden, const json& run) {
    const c10::InferenceMode inference;
    const LoadedModel& model = load(golden)->loaded();
    std::vector<ProcessedImage> images;
    const Request request = request_of(golden, run);
    for (const ImageSource& image : request.images) {
      images.push_back(process_image(to_tensor(image), model.config.image));
    }
    const Forced forced = forced_run(golden, run, model.encode_images(images));
    const at::Tensor error = (forced.logits - golden_tensor(golden, run.at("logits"))).abs();
    const json& torch = run.at("half");
    const double max_error = error.max().item<double>(),
                 rms_error = error.pow(2).mean().sqrt().item<double>();
    const double torch_max = torch.at("max_error"), torch_rms = torch.at("rms_error");
    CAPTURE(max_error, torch_max, rms_error, torch_rms);
    worst_max.note(max_error / torch_max);
    worst_rms.note(rms_error / torch_rms);
    CHECK(max_error <= 2 * torch_max);
    CHECK(rms_error <= 2 * torch_rms);
  });
}

TEST_CASE("chunked prefill equals the goldens", "[golden]") {
  const double bar = golden_manifest().at("logits_bar");
  const json& golden = golden_case("mha");
  for (const json& run : golden.at("runs")) {
    if (run.at("name") != "two_images") continue;
    for (const std::int64_t chunk : {5, 16, 29, 40}) {
      SessionOptions options;
      options.prefill_chunk = chunk;
      Session session(load(golden), options);
      const Answer answer = session.ask(request_of(golden, run));
      CAPTURE(chunk);
      CHECK(relative_error(answer.logits, golden_tensor(golden, run.at("logits"))) <= bar);
      CHECK(answer.tokens == run.at("tokens").get<std::vector<std::int64_t>>());
      CHECK(answer.var.selected_rows == run.at("selected_rows").get<std::vector<std::int64_t>>());
    }
  }
}

TEST_CASE("a checkpoint of the original layout answers as its published twin", "[golden]") {
  const json& golden = golden_case("gqa");
  LoadOptions options;
  options.device = "cpu";
  options.dtype = "fp32";
  const std::shared_ptr<const Model> twin = Model::load(golden_archive("gqa", false), options);
  for (const json& run : golden.at("runs")) {
    if (run.at("name") != "on") continue;
    Request request = request_of(golden, run);
    request.prompt_style = "vicuna_v1";
    request.image_mode = "pad";
    Session session(twin);
    const Answer answer = session.ask(request);
    const at::Tensor expected = golden_tensor(golden, run.at("logits"));
    CHECK(relative_error(answer.logits.narrow(1, 0, expected.size(1)), expected) <= 2e-5);
    CHECK(answer.prompt_tokens[static_cast<std::size_t>(answer.visual_spans[0].first)] ==
          golden.at("image_token_id"));
    CHECK(answer.tokens == run.at("tokens").get<std::vector<std::int64_t>>());
  }
}
