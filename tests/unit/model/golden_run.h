#pragma once

// What the golden tests share: settings of a run, and how far from it an answer is.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "generate/conversation.h"
#include "generate/decode_step.h"
#include "libvar/var_params.h"

namespace libvar::testing {

inline ClassSet class_set_of(const nlohmann::json& names) {
  static const std::map<std::string, TokenClass> kClasses{{"VS", TokenClass::kVisualSink},
                                                          {"VN", TokenClass::kVisualNonSink},
                                                          {"TS", TokenClass::kTextSink},
                                                          {"TN", TokenClass::kTextNonSink}};
  ClassSet result = 0;
  for (const nlohmann::json& name : names)
    result = static_cast<ClassSet>(result | class_set(kClasses.at(name)));
  return result;
}

inline VarParams var_params(const nlohmann::json& var) {
  VarParams params;
  params.enabled = var.at("enabled");
  if (!params.enabled) return params;
  params.tau = var.at("tau");
  params.rho = var.at("rho");
  params.p = var.at("p");
  params.min_visual_mass = var.at("min_visual_mass");
  params.first_layer = var.at("first_layer");
  params.include_last_layer = var.at("include_last_layer");
  params.ratio_epsilon = var.at("ratio_epsilon");
  if (!var.at("phi_epsilon").is_null()) params.phi_epsilon = var.at("phi_epsilon").get<float>();
  params.generated_sinks = var.at("generated_sinks");
  params.sources = class_set_of(var.at("sources"));
  params.targets = class_set_of(var.at("targets"));
  params.head_rule = var.at("head_rule") == "ratio" ? HeadRule::kRatio : HeadRule::kAll;
  return params;
}

/// Largest difference as a share of the largest expected magnitude; not a number where shapes
/// differ.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) return std::nan("");
  return ((actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max() /
          expected.to(at::kDouble).abs().max())
      .item<double>();
}

/// What a conversation makes of given tokens, one decode step each, behind a prompt. Steps are
/// captured: the sessions of the other tests run them directly.
struct Forced {
  at::Tensor logits;  ///< [tokens, V] float32
  at::Tensor phi;     ///< [layers, fed positions]
};

inline Forced teacher_forced(const Decoder& decoder, const Sequence& prompt,
                             const std::vector<at::Tensor>& features,
                             const std::vector<std::int64_t>& tokens, const VarParams& var) {
  const c10::InferenceMode inference;
  Conversation conversation(decoder, 0);
  std::vector<at::Tensor> rows{
      conversation.prefill(prompt, features, var, static_cast<std::int64_t>(tokens.size()))
          .to(at::kFloat)};
  DecodeStep step(decoder, 1, /*graphs=*/true);
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    step.begin({{tokens[i], conversation.length(), conversation.next_position(), i, var, {}}},
               conversation.cache());
    step.run();
    conversation.count_step();
    rows.push_back(step.logits()[0].to(at::kFloat, false, /*copy=*/true));
  }
  return {at::stack(rows), conversation.cache().all_sink_scores().select(1, 0).clone()};
}

/// The largest value of a kind over all runs of a test case, printed at its end.
class Worst {
 public:
  explicit Worst(const char* what) : what_(what) {}

  ~Worst() { std::printf("%s: %.3g\n", what_, value_); }

  Worst(const Worst&) = delete;
  Worst& operator=(const Worst&) = delete;

  void note(double value) { value_ = std::isnan(value) ? value : std::max(value_, value); }

 private:
  const char* what_;
  double value_ = 0;
};

}  // namespace libvar::testing
