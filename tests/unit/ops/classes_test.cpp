// The class of a key and the weights of a row (kernels/classes.h), on numbers worked out by hand.

#include "classes.h"

#include <limits>

#include "catch.h"

namespace libvar {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST_CASE("a key is a sink from tau on, and never with a NaN", "[classes]") {
  CHECK(token_class(20.0f, true, 20.0f) == static_cast<int>(TokenClass::kVisualSink));
  CHECK(token_class(std::nextafterf(20.0f, 0.0f), true, 20.0f) ==
        static_cast<int>(TokenClass::kVisualNonSink));
  CHECK(token_class(25.0f, false, 20.0f) == static_cast<int>(TokenClass::kTextSink));
  CHECK(token_class(3.0f, false, 20.0f) == static_cast<int>(TokenClass::kTextNonSink));
  CHECK(token_class(kNan, true, 0.0f) == static_cast<int>(TokenClass::kVisualNonSink));
  CHECK(token_class(kNan, false, kNan) == static_cast<int>(TokenClass::kTextNonSink));
  CHECK(token_class(1e30f, false, kInfinity) == static_cast<int>(TokenClass::kTextNonSink));
}

TEST_CASE("class weights move a share of the sinks' mass to the targets", "[classes]") {
  const float mass[] = {0.1f, 0.5f, 0.3f, 0.1f};  // r = 0.5 / 0.6, visual mass 0.6
  const ClassWeights weights = class_weights(mass, {}, 10.0f, true);
  REQUIRE(weights.selected);
  CHECK(weights.weight[0] == Approx(0.4));
  CHECK(weights.weight[1] == Approx(1.0 + 0.6 * 0.4 / 0.5));
  CHECK(weights.weight[2] == Approx(0.4));
  CHECK(weights.weight[3] == 1.0f);
  float sum = 0.0f;
  for (int c = 0; c < kNumTokenClasses; ++c) sum += mass[c] * weights.weight[c];
  CHECK(sum == Approx(1.0));
}

TEST_CASE("a row is selected only where every condition holds", "[classes]") {
  const float mass[] = {0.25f, 0.75f, 0.0f, 0.0f};  // r = 0.75, visual mass 1
  RedistributionRule rule;
  rule.rho = 0.75f;
  rule.min_visual_mass = 1.0f;
  CHECK(class_weights(mass, rule, 4.0f, true).selected);
  CHECK_FALSE(class_weights(mass, rule, 4.0f, false).selected);
  rule.rho = std::nextafterf(0.75f, 1.0f);
  CHECK_FALSE(class_weights(mass, rule, 4.0f, true).selected);
  rule.rho = 0.0f;
  const float less_visual[] = {0.25f, 0.5f, 0.0f, 0.25f};
  CHECK_FALSE(class_weights(less_visual, rule, 4.0f, true).selected);
  rule.min_visual_mass = 0.0f;
  CHECK(class_weights(less_visual, rule, 4.0f, true).selected);
  const float no_target[] = {0.5f, 0.0f, 0.0f, 0.5f};
  CHECK_FALSE(class_weights(no_target, rule, 4.0f, true).selected);
  const float subnormal_target[] = {0.5f, 1e-39f, 0.0f, 0.5f};
  CHECK_FALSE(class_weights(subnormal_target, rule, 4.0f, true).selected);
  const float unknown[] = {0.5f, kNan, 0.0f, 0.5f};
  CHECK_FALSE(class_weights(unknown, rule, 4.0f, true).selected);
  const float unknown_sink[] = {kNan, 0.5f, 0.0f, 0.5f};
  CHECK_FALSE(class_weights(unknown_sink, rule, 4.0f, true).selected);
}

TEST_CASE("the head rule all needs only a target mass", "[classes]") {
  const float mass[] = {0.5f, 0.0f, 0.25f, 0.25f};
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  rule.targets = class_set(TokenClass::kTextNonSink);
  rule.p = 1.0f;
  const ClassWeights weights = class_weights(mass, rule, 4.0f, true);
  REQUIRE(weights.selected);
  CHECK(weights.weight[0] == 0.0f);
  CHECK(weights.weight[1] == 1.0f);
  CHECK(weights.weight[2] == 0.0f);
  CHECK(weights.weight[3] == 4.0f);
  rule.targets = class_set(TokenClass::kVisualNonSink);
  CHECK_FALSE(class_weights(mass, rule, 4.0f, true).selected);
  rule.head_rule = HeadRule::kNone;
  rule.targets = class_set(TokenClass::kTextNonSink);
  CHECK_FALSE(class_weights(mass, rule, 4.0f, true).selected);
}

TEST_CASE("p = 0 gives weights of exactly 1", "[classes]") {
  const float mass[] = {0.1f, 0.6f, 0.2f, 0.1f};
  RedistributionRule rule;
  rule.p = 0.0f;
  const ClassWeights weights = class_weights(mass, rule, 4.0f, true);
  CHECK(weights.selected);
  for (const float weight : weights.weight) CHECK(weight == 1.0f);
}

TEST_CASE("ratio_epsilon adds to the visual mass once per visual key", "[classes]") {
  const float mass[] = {0.3f, 0.3f, 0.2f,
                        0.2f};  // 0.5 without it, 1 - 0.3 / (0.6 + 0.01 * 30) = 2 / 3 with it
  RedistributionRule rule;
  rule.rho = 0.66f;
  CHECK_FALSE(class_weights(mass, rule, 30.0f, true).selected);
  rule.ratio_epsilon = 0.01f;
  CHECK(class_weights(mass, rule, 30.0f, true).selected);
  rule.rho = 0.67f;
  CHECK_FALSE(class_weights(mass, rule, 30.0f, true).selected);
}

}  // namespace
}  // namespace libvar
