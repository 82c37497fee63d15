#include "libvar/var_params.h"

#include <c10/util/StringUtil.h>

#include <cmath>
#include <limits>

#include "libvar/error.h"

namespace libvar {
namespace {

void check_share(const char* name, float value) {
  if (!(value >= 0.0f && value <= 1.0f)) {
    throw ConfigError(c10::str("VarParams: ", name, " must be in [0, 1], got ", value));
  }
}

void check_finite(const char* name, float value) {
  if (!std::isfinite(value)) {
    throw ConfigError(c10::str("VarParams: ", name, " must be finite, got ", value));
  }
}

void check_not_negative(const char* name, float value) {
  if (!(value >= 0.0f))
    throw ConfigError(c10::str("VarParams: ", name, " must be >= 0, got ", value));
}

}  // namespace

VarParams VarParams::reference() {
  VarParams params;
  params.tau = std::nextafter(20.0f, std::numeric_limits<float>::infinity());
  params.rho = 0.5f;
  params.p = 0.4f;
  params.min_visual_mass = 0.2f;
  params.first_layer = 2;
  params.include_last_layer = true;
  params.ratio_epsilon = 1e-6f;
  params.phi_epsilon = 1e-6f;
  params.generated_sinks = false;
  return params;
}

VarParams VarParams::preset(std::string_view name) {
  if (name == "reference") return reference();
  VarParams params;
  if (name == "general") {
    params.rho = 0.8f;
  } else if (name == "hallucination") {
    params.rho = 0.5f;
  } else if (name == "vision-centric") {
    params.rho = 0.9f;
  } else {
    throw ConfigError(c10::str(
        "VarParams: preset must be general, hallucination, vision-centric or reference, got '",
        name, "'"));
  }
  return params;
}

void VarParams::validate() const {
  check_not_negative("tau", tau);
  check_share("rho", rho);
  check_share("p", p);
  check_share("min_visual_mass", min_visual_mass);
  check_not_negative("ratio_epsilon", ratio_epsilon);
  check_finite("ratio_epsilon", ratio_epsilon);
  if (phi_epsilon) check_finite("phi_epsilon", *phi_epsilon);
  if ((sources | targets) >> kNumTokenClasses != 0) {
    throw ConfigError("VarParams: sources and targets have a bit that is no token class");
  }
  if (head_rule > HeadRule::kNone) throw ConfigError("VarParams: head_rule is no HeadRule");
  if (phi_epsilon && !(*phi_epsilon > 0.0f)) {
    throw ConfigError(c10::str("VarParams: phi_epsilon must be > 0, got ", *phi_epsilon));
  }
  if (first_layer && *first_layer < 0) {
    throw ConfigError(c10::str("VarParams: first_layer must be >= 0, got ", *first_layer));
  }
  if ((sources & targets) != 0)
    throw ConfigError("VarParams: a token class is both source and target");
  if (targets == 0) throw ConfigError("VarParams: no target class");
}

RedistributionRule VarParams::rule() const {
  RedistributionRule rule;
  rule.tau = tau;
  rule.rho = rho;
  rule.p = p;
  rule.min_visual_mass = min_visual_mass;
  rule.ratio_epsilon = ratio_epsilon;
  rule.sources = sources;
  rule.targets = targets;
  rule.head_rule = enabled ? head_rule : HeadRule::kNone;
  return rule;
}

}  // namespace libvar
