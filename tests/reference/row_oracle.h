#pragma once

// The class and row rule of the method, written from the equations in double precision. The oracles
// never call the code under test: nothing of classes.h is used here, only the values of
// RedistributionRule. No torch: tests/simt uses it too.

#include <array>
#include <cmath>
#include <limits>

#include "libvar/redistribution_rule.h"

namespace libvar::reference {

/// Thresholds and shares of one sequence; what `params` overrides is a member of its own.
struct Rule {
  double tau = 20.0;
  double rho = 0.8;
  double p = 0.6;
  double min_visual_mass = 0.2;
  double ratio_epsilon = 0.0;
  std::array<bool, kNumTokenClasses> source = {true, false, true, false};
  std::array<bool, kNumTokenClasses> target = {false, true, false, false};
  HeadRule head_rule = HeadRule::kRatio;

  Rule() = default;

  explicit Rule(const RedistributionRule& rule)
      : tau(rule.tau),
        rho(rule.rho),
        p(rule.p),
        min_visual_mass(rule.min_visual_mass),
        ratio_epsilon(rule.ratio_epsilon),
        head_rule(rule.head_rule) {
    for (int c = 0; c < kNumTokenClasses; ++c) {
      source[c] = (rule.sources & class_set(static_cast<TokenClass>(c))) != 0;
      target[c] = (rule.targets & class_set(static_cast<TokenClass>(c))) != 0;
    }
  }
};

inline bool is_sink(double sink_score, double tau) {
  return !std::isnan(sink_score) && !(sink_score < tau);
}

inline TokenClass class_of(double sink_score, bool visual, double tau) {
  if (visual)
    return is_sink(sink_score, tau) ? TokenClass::kVisualSink : TokenClass::kVisualNonSink;
  return is_sink(sink_score, tau) ? TokenClass::kTextSink : TokenClass::kTextNonSink;
}

/// What a row of one head shows of itself: attention mass of each class, and the keys it sees.
struct RowFacts {
  std::array<double, kNumTokenClasses> mass{};
  double num_visual_keys = 0.0;
  bool eligible = false;  ///< row mask, and a visual sink among the keys
};

/// A row's decision, and how far it was from the other one: tests leave out rows whose margin is
/// within rounding.
struct RowDecision {
  bool selected = false;
  double margin = std::numeric_limits<double>::infinity();
};

inline RowDecision decide_row(const RowFacts& facts, const Rule& rule) {
  RowDecision decision;
  if (!facts.eligible || rule.head_rule == HeadRule::kNone) return decision;
  double target_mass = 0.0;
  for (int c = 0; c < kNumTokenClasses; ++c) target_mass += rule.target[c] ? facts.mass[c] : 0.0;
  if (std::isnan(target_mass) || target_mass <= 0.0) return decision;
  if (rule.head_rule == HeadRule::kAll) {
    decision.selected = true;
    return decision;
  }
  const double visual_sink = facts.mass[0];
  const double visual_non_sink = facts.mass[1];
  const double visual = visual_sink + visual_non_sink;
  if (std::isnan(visual) || visual_non_sink <= 0.0) return decision;
  const double ratio =
      rule.ratio_epsilon > 0.0
          ? 1.0 - visual_sink / (visual + rule.ratio_epsilon * facts.num_visual_keys)
          : visual_non_sink / visual;
  decision.selected = visual >= rule.min_visual_mass && ratio >= rule.rho;
  decision.margin =
      std::fmin(std::fabs(visual - rule.min_visual_mass), std::fabs(ratio - rule.rho));
  return decision;
}

/// The factor of each class in a row, Eq. 4; all 1 in a row that is not selected.
inline std::array<double, kNumTokenClasses> weights_of(const RowFacts& facts, const Rule& rule,
                                                       bool selected) {
  std::array<double, kNumTokenClasses> weights = {1.0, 1.0, 1.0, 1.0};
  if (!selected) return weights;
  double omega = 0.0;
  double target_mass = 0.0;
  for (int c = 0; c < kNumTokenClasses; ++c) {
    if (rule.source[c]) omega += rule.p * facts.mass[c];
    if (rule.target[c]) target_mass += facts.mass[c];
  }
  for (int c = 0; c < kNumTokenClasses; ++c) {
    if (rule.source[c]) weights[c] = 1.0 - rule.p;
    if (rule.target[c]) weights[c] = 1.0 + omega / target_mass;
  }
  return weights;
}

}  // namespace libvar::reference
