// inspect and knock_out in half types and on a GPU, beside float32 on the CPU, which
// inspection_test.cpp holds to transformers' models.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "golden_fixture.h"
#include "libvar/inspection.h"
#include "libvar/knockout.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "unit/ops/cuda_support.h"  // last, with catch.h: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

// Bounds in roundings of the type, 2^-8 in bf16 and 2^-11 in fp16; twice what was measured.
constexpr double kRoundings = 25, kKnockoutRoundings = 40;

/// Largest differences of two inspections: of shares of attention, the rest relative.
struct Difference {
  double attention = 0, ratio = 0, phi = 0, contribution = 0, magnitudes = 0;
};

Inspection inspect_all(const std::shared_ptr<const Model>& model, const Request& request) {
  InspectOptions options;
  options.head_layers = {1, 2};
  options.magnitude_positions = {0, 20};
  options.contributions = true;
  return inspect(model, request, options);
}

double most_of(std::initializer_list<double> values) {
  double out = 0;
  for (const double value : values) out = std::isnan(value) ? value : std::max(out, value);
  return out;
}

Difference difference(const Inspection& actual, const Inspection& expected) {
  const auto absolute = [&](at::Tensor Inspection::*member) {
    const at::Tensor &a = actual.*member, &b = expected.*member;
    CHECK(a.scalar_type() == at::kFloat);
    CHECK(a.device().is_cpu());
    if (a.sizes() != b.sizes()) return std::nan("");
    return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
  };
  const auto relative = [&](at::Tensor Inspection::*member) {
    return relative_error(actual.*member, expected.*member);
  };
  return {most_of({absolute(&Inspection::attention), absolute(&Inspection::redistributed),
                   absolute(&Inspection::head_attention), absolute(&Inspection::head_redistributed),
                   absolute(&Inspection::visual_mass)}),
          absolute(&Inspection::visual_ratio), relative(&Inspection::sink_scores),
          relative(&Inspection::contribution), relative(&Inspection::magnitudes)};
}

}  // namespace

TEST_CASE("inspections and knockouts in half types stay near float32 of the same weights",
          "[inspection][half]") {
  const std::string name = GENERATE("qwen_bf16", "internvl_bf16", "vila15_fp16");
  CAPTURE(name);
  static Worst worst("inspection, half types: largest difference to float32, in roundings"),
      worst_knockout("knockout, half types: log-probabilities' difference, in roundings");
  const json& golden = family_case(name);
  const double unit = golden.at("dtype") == "bfloat16" ? 0x1p-8 : 0x1p-11;  // of a rounding
  Request request = family_request(family_run(golden, "always"));
  request.generation.max_new_tokens = 1;  // the rows of the prompt: both see the same tokens
  const std::shared_ptr<const Model> half = load_family_case(golden),
                                     exact = load_family_case(golden, "fp32");
  REQUIRE(half->dtype() == golden.at("dtype"));
  REQUIRE(exact->dtype() == "float32");
  const Inspection found = inspect_all(half, request), expected = inspect_all(exact, request);
  const Difference off = difference(found, expected);
  for (const double error : {off.attention, off.ratio, off.phi, off.contribution, off.magnitudes}) {
    worst.note(error / unit);
    CHECK(error <= kRoundings * unit);
  }
  CHECK(found.selected.equal(expected.selected));
  CHECK(found.selected.any().item<bool>());

  const auto tokens = family_run(golden, "always").at("tokens").get<std::vector<std::int64_t>>();
  Knockout knockout;
  const auto log_probs = [&](const std::shared_ptr<const Model>& model) {
    return at::tensor(knock_out(model, request, knockout, tokens).expected_log_probs);
  };
  const at::Tensor removed = log_probs(exact), removed_half = log_probs(half);
  knockout.keep_mass = true;
  const at::Tensor kept = log_probs(exact), kept_half = log_probs(half);
  const auto most = [](const at::Tensor& values) { return values.abs().max().item<double>(); };
  worst_knockout.note(most(kept_half - kept) / unit);
  CHECK(most(kept_half - kept) <= kKnockoutRoundings * unit);
  if (golden.at("dtype") != "float16") return;  // what keep_mass does is less than bf16's error
  const double effect = most(kept - removed);
  CHECK(most(kept_half - removed_half - (kept - removed)) <= 0.5 * effect);
}

TEST_CASE("inspections and knockouts on a GPU equal those on the CPU", "[.][cuda]") {
  if (!libvar::test::have_gpu()) return;
  const auto& [name, run_name] =
      GENERATE(std::pair("vila1_inside", "on"), std::pair("qwen_flat", "two_images"),
               std::pair("internvl_small", "on"));
  CAPTURE(name);
  const json& golden = family_case(name);
  const json& run = family_run(golden, run_name);
  const Request request = family_request(run);
  const std::shared_ptr<const Model> cpu = load_family_case(golden),
                                     gpu = load_family_case(golden, "fp32", "cuda");
  const Inspection found = inspect_all(gpu, request), expected = inspect_all(cpu, request);
  CHECK(found.answer.tokens == expected.answer.tokens);
  CHECK(found.rows == expected.rows);
  CHECK(found.selected.equal(expected.selected));
  const Difference off = difference(found, expected);
  for (const double error : {off.attention, off.ratio, off.phi, off.contribution, off.magnitudes})
    CHECK(error <= 1e-4);
  const auto tokens = run.at("tokens").get<std::vector<std::int64_t>>();
  for (const bool keep_mass : {false, true}) {
    Knockout knockout;
    knockout.keep_mass = keep_mass;
    const auto log_probs = [&](const std::shared_ptr<const Model>& model) {
      return at::tensor(knock_out(model, request, knockout, tokens).expected_log_probs);
    };
    CHECK((log_probs(gpu) - log_probs(cpu)).abs().max().item<double>() <= 1e-4);
  }
}
