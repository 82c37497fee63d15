#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "libvar/redistribution_rule.h"

namespace libvar {

/// Settings of Visual Attention Redistribution for one request.
///
/// Source: arXiv:2503.03321; rho and p have the paper's meaning (docs/decisions/0004). The defaults
/// are the paper's; Model::var_defaults() gives those stored with a model.
struct VarParams {
  bool enabled = true;
  float tau = 20.0f;  ///< sink threshold on phi, >= 0, +inf allowed
  float rho = 0.8f;   ///< least visual non-sink ratio of an image-centric head, in [0, 1]
  float p = 0.6f;     ///< share of the sinks' attention that is moved, in [0, 1]; 0 is the identity
  float min_visual_mass =
      0.2f;  ///< least visual attention mass of a row that may be changed, in [0, 1]
  std::optional<std::int64_t> first_layer =
      {};  ///< first layer that may be changed, >= 0; none: the model's own (2 as a rule)
  bool include_last_layer = false;        ///< the last layer is left alone by default
  float ratio_epsilon = 0.0f;             ///< see RedistributionRule, >= 0
  std::optional<float> phi_epsilon = {};  ///< epsilon in phi; none: that of the layer's RMSNorm
  bool generated_sinks = true;            ///< false: the phi of generated tokens is stored as 0
  ClassSet sources = class_set(TokenClass::kVisualSink, TokenClass::kTextSink);
  ClassSet targets = class_set(TokenClass::kVisualNonSink);
  HeadRule head_rule = HeadRule::kRatio;

  /// What the authors' published code computes with its published settings (docs/decisions/0005).
  static VarParams reference();

  /// `general`, `hallucination`, `vision-centric` or `reference`.
  /// @throws ConfigError  another name
  static VarParams preset(std::string_view name);

  /// @throws ConfigError  names the field that is out of range (NaN included) or the class that is
  /// source and target
  void validate() const;

  /// The part that the kernels read; HeadRule::kNone where `enabled` is false.
  RedistributionRule rule() const;

  bool operator==(const VarParams&) const = default;
};

}  // namespace libvar
