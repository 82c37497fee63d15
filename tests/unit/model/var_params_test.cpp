#include "libvar/var_params.h"

#include <cmath>
#include <limits>
#include <string>

#include "catch.h"
#include "libvar/error.h"

namespace libvar {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// What validate() says of the settings that `change` makes; "" where they are accepted.
template <typename Change>
std::string refusal(Change change) {
  VarParams params;
  change(params);
  try {
    params.validate();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("settings out of range are refused by name", "[var_params]") {
  using Catch::Matchers::Contains;
  CHECK(refusal([](VarParams&) {}).empty());
  CHECK(refusal([](VarParams& v) { v.tau = kInfinity; }).empty());
  CHECK_THAT(refusal([](VarParams& v) { v.tau = kNan; }), Contains("tau must be >= 0, got nan"));
  CHECK_THAT(refusal([](VarParams& v) { v.rho = -0.1f; }), Contains("rho must be in [0, 1]"));
  CHECK_THAT(refusal([](VarParams& v) { v.p = 2; }), Contains("p must be in [0, 1], got 2"));
  CHECK_THAT(refusal([](VarParams& v) { v.min_visual_mass = kNan; }), Contains("min_visual_mass"));
  CHECK_THAT(refusal([](VarParams& v) { v.ratio_epsilon = kInfinity; }), Contains("ratio_epsilon"));
  CHECK_THAT(refusal([](VarParams& v) { v.phi_epsilon = 0.0f; }), Contains("phi_epsilon"));
  CHECK_THAT(refusal([](VarParams& v) { v.phi_epsilon = kInfinity; }), Contains("phi_epsilon"));
  CHECK_THAT(refusal([](VarParams& v) { v.first_layer = -1; }), Contains("first_layer"));
  CHECK_THAT(refusal([](VarParams& v) { v.sources = 16; }), Contains("no token class"));
  CHECK_THAT(refusal([](VarParams& v) { v.targets = v.sources; }), Contains("source and target"));
  CHECK_THAT(refusal([](VarParams& v) { v.targets = 0; }), Contains("no target"));
  CHECK_THAT(refusal([](VarParams& v) { v.head_rule = HeadRule{3}; }), Contains("head_rule"));
}

TEST_CASE("presets have the values that are reported for the paper", "[var_params]") {
  CHECK(VarParams::preset("general") == VarParams{});
  CHECK(VarParams::preset("hallucination").rho == 0.5f);
  CHECK(VarParams::preset("vision-centric").rho == 0.9f);
  CHECK_THROWS_AS(VarParams::preset("fast"), ConfigError);
  const VarParams reference = VarParams::preset("reference");
  CHECK(reference.tau > 20.0f);
  CHECK(std::nextafter(reference.tau, 0.0f) == 20.0f);
  CHECK(reference.p == 0.4f);
  CHECK(reference.include_last_layer);
  CHECK_FALSE(reference.generated_sinks);
}

}  // namespace
}  // namespace libvar
