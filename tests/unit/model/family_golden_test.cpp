// Qwen2-VL, InternVL2 and VILA from their published files against transformers
// (tests/golden/families).

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "convert/safetensors.h"
#include "generate/prepare_prompt.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/model.h"
#include "libvar/session.h"
#include "loaded_model.h"
#include "temporary_folder.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;

constexpr int kRuns = 67;              // of the float32 cases
constexpr double kFeaturesBar = 2e-5;  // of the largest feature
constexpr double kPhiBar = 2e-5;       // of the largest sink score
constexpr double kPixelBar = 1e-6;     // of the largest value

const SafetensorsFile& families_tensors() {
  static const SafetensorsFile file =
      SafetensorsFile::open(golden_folder() / "families" / "families.safetensors");
  return file;
}

/// Every so many rows, or values, of a tensor: what the manifest stores.
at::Tensor strided(const at::Tensor& tensor, const char* key) {
  return tensor.slice(0, 0, {}, families_manifest().at(key).get<std::int64_t>());
}

/// Calls check(model, golden, run) for every run of the float32 cases, or of the half ones.
template <typename Check>
void for_each_run(bool half, int expected, Check check) {
  int runs = 0;
  for (const json& golden : families_manifest().at("cases")) {
    if ((golden.at("dtype") != "float32") != half) continue;
    const std::shared_ptr<const Model> model = load_family_case(golden);
    CHECK(model->family() == golden.at("family"));
    for (const json& run : golden.at("runs")) {
      CAPTURE(golden.at("name").get<std::string>(), run.at("name").get<std::string>());
      check(model, run);
      ++runs;
    }
  }
  CHECK(runs == expected);
}

void check_statistics(const VarStatistics& var, const json& run) {
  CHECK(var.selected_rows == run.at("selected_rows").get<std::vector<std::int64_t>>());
  CHECK(var.visual_sinks == run.at("visual_sinks").get<std::vector<std::vector<std::int64_t>>>());
  std::int64_t eligible = 0;
  for (const std::int64_t rows : var.eligible_rows) eligible += rows;
  CHECK(eligible == run.at("margins").at("eligible_pairs").get<std::int64_t>());
}

VarParams resolved(const json& run) {
  VarParams var = var_params(run.at("var"));
  if (!var.first_layer) var.first_layer = 2;
  return var;
}

}  // namespace

TEST_CASE("further families answer as transformers does, with VAR and without", "[golden]") {
  const double bar = families_manifest().at("logits_bar");
  Worst worst("further families: largest difference of a logit, of the largest logit");
  for_each_run(
      /*half=*/false, kRuns, [&](const std::shared_ptr<const Model>& model, const json& run) {
        // In one piece, and in chunks that cut images.
        for (const std::int64_t chunk : {0, 7}) {
          SessionOptions options;
          options.prefill_chunk = chunk;
          Session session(model, options);
          const Answer answer = session.ask(family_request(run));
          CHECK(answer.prompt_tokens == run.at("prompt_tokens").get<std::vector<std::int64_t>>());
          CHECK((answer.visual_spans == run.at("visual_spans").get<Spans>()));
          CHECK(answer.tokens == run.at("tokens").get<std::vector<std::int64_t>>());
          CHECK(answer.text == run.at("text").get<std::string>());
          const double error = relative_error(strided(answer.logits, "row_stride"),
                                              families_tensors().tensor(run.at("logits")));
          CAPTURE(error, chunk);
          worst.note(error);
          CHECK(error <= bar);
          if (run.at("var").at("enabled").get<bool>()) check_statistics(answer.var, run);
        }
      });
}

TEST_CASE("further families: pixels, features, positions and sink scores", "[golden]") {
  Worst worst_pixel("further families: largest difference of a pixel value, of the largest");
  Worst worst_feature("further families: largest difference of an image feature, of the largest");
  Worst worst_phi("further families: largest difference of a sink score, of the largest");
  int pixels = 0, features = 0, sink_scores = 0, positions = 0;
  const auto check = [](Worst& worst, const at::Tensor& actual, const json& name, double bar) {
    const double error = relative_error(actual, families_tensors().tensor(name));
    CAPTURE(error);
    worst.note(error);
    CHECK(error <= bar);
    return 1;
  };
  for_each_run(
      /*half=*/false, kRuns, [&](const std::shared_ptr<const Model>& model, const json& run) {
        const c10::InferenceMode inference;
        const LoadedModel& loaded = model->loaded();
        const PreparedPrompt prepared =
            prepare_prompt(loaded, family_request(run), /*first_turn=*/true);
        const auto rows = run.at("positions").get<std::vector<std::vector<std::int64_t>>>();
        if (rows.size() == 3) {
          const at::Tensor actual = three_axis_positions(prepared.sequence, 0);
          for (std::int64_t axis = 0; axis < 3; ++axis) {
            CHECK(at::equal(actual[axis], at::tensor(rows[static_cast<std::size_t>(axis)])));
          }
          ++positions;
        }
        const std::vector<at::Tensor> encoded = loaded.encode_images(prepared.images);
        if (run.contains("pixels")) {
          std::vector<at::Tensor> values;
          for (const ProcessedImage& image : prepared.images)
            values.push_back(image.pixels.flatten());
          pixels += check(worst_pixel, strided(at::cat(values), "pixel_stride"), run.at("pixels"),
                          kPixelBar);
        }
        if (run.contains("features"))
          features += check(worst_feature, at::cat(encoded), run.at("features"), kFeaturesBar);
        if (!run.contains("phi")) return;
        const Forced forced =
            teacher_forced(loaded.decoder, prepared.sequence, encoded,
                           run.at("tokens").get<std::vector<std::int64_t>>(), resolved(run));
        sink_scores += check(worst_phi, forced.phi, run.at("phi"), kPhiBar);
      });
  CHECK(pixels == 18);
  CHECK(features == 18);
  CHECK(sink_scores == 18);
  CHECK(positions == 16);
}

TEST_CASE("further families: half types stay within twice the error of PyTorch's own",
          "[golden][half]") {
  Worst worst_max("further families, half types: largest error, over that of PyTorch");
  Worst worst_rms("further families, half types: root mean square error, over that of PyTorch");
  for_each_run(/*half=*/true, 6, [&](const std::shared_ptr<const Model>& model, const json& run) {
    const c10::InferenceMode inference;
    const LoadedModel& loaded = model->loaded();
    const PreparedPrompt prepared =
        prepare_prompt(loaded, family_request(run), /*first_turn=*/true);
    const Forced forced =
        teacher_forced(loaded.decoder, prepared.sequence, loaded.encode_images(prepared.images),
                       run.at("tokens").get<std::vector<std::int64_t>>(), resolved(run));
    const at::Tensor error =
        (strided(forced.logits, "row_stride") - families_tensors().tensor(run.at("logits"))).abs();
    const double max_ratio =
        error.max().item<double>() / run.at("half").at("max_error").get<double>();
    const double rms_ratio =
        error.pow(2).mean().sqrt().item<double>() / run.at("half").at("rms_error").get<double>();
    CAPTURE(max_ratio, rms_ratio);
    worst_max.note(max_ratio);
    worst_rms.note(rms_ratio);
    CHECK(max_ratio <= 2);
    CHECK(rms_ratio <= 2);
  });
}
